"""Threads that share a program's chunks, or a batch's images: plain ones, which sleep until there is work."""

import contextlib
import itertools
import os
import queue
import threading
import time

import numpy as np
import torch

_LONGEST = 512
"""Calls without helpers, at most, before they are tried again."""
_WORTH = 0.95
"""With helpers a call must take less than so much of what it takes without."""


class Pace:
    """Whether helpers have been worth it: on a busy machine a call may wait for one that has lost its core."""

    def __init__(self):
        self.without, self.pause, self.left = float("inf"), 1, 1

    def wants_helpers(self):
        """True, but for the first call, and for a while after a call that helpers did not make faster."""
        if self.left == 0:
            return True
        self.left -= 1
        return False

    def learn(self, helped, seconds):
        """A call has taken so long: a failure doubles the pause."""
        if not helped:
            self.without = min(seconds, 0.9 * self.without + 0.1 * seconds)
        elif seconds > _WORTH * self.without:
            self.pause = self.left = min(2 * self.pause, _LONGEST)
        else:
            self.pause = 1


class _Helpers:
    """The helpers of this process."""

    def __init__(self):
        self.forked = False
        self.lock, self.queues = threading.Lock(), []

    def after_fork(self):
        self.__init__()
        self.forked = True

    def start(self, count, job):
        """Let `count` helpers call job(), soon."""
        with self.lock:
            while len(self.queues) < count:
                jobs = queue.SimpleQueue()
                threading.Thread(target=_serve, args=(jobs,), name="ir2net", daemon=True).start()
                self.queues.append(jobs)
        for jobs in self.queues[:count]:
            jobs.put(job)


def _serve(jobs):
    while True:
        job = jobs.get()
        with contextlib.suppress(MemoryError):  # who asked for help does the work without
            job()
        del job


_helpers = _Helpers()
os.register_at_fork(after_in_child=_helpers.after_fork)


@contextlib.contextmanager
def operators_that_end():
    """Within it torch's own operators take one thread in a forked process: others would be waited for in vain."""
    count = torch.get_num_threads()
    if not _helpers.forked or count == 1:
        yield
        return
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)


def execute(run, instance, threads, image=None):
    """Execute a program's instance once, its chunks shared by so many threads.

    run: what `native.load` gave. image: address, and steps in bytes of channel, row and pixel, if the program needs it.
    """
    if threads == 1:
        run_steps(run, instance, instance.own, image)
        return
    pace, start = instance.program.pace, time.perf_counter()
    if helped := pace.wants_helpers():
        counters = np.zeros(16 * len(instance.table), np.int64)  # new ones: who comes late finds nothing to do
        _helpers.start(threads - 1, lambda: run_steps(run, instance, instance.arguments(), image, counters))
        run_steps(run, instance, instance.own, image, counters)
    else:
        run_steps(run, instance, instance.own, image)
    pace.learn(helped, time.perf_counter() - start)


def run_steps(run, instance, arguments, image, counters=None, steps=None):
    """Execute the steps (first, past the last), or all, or what is left of them if `counters` are shared."""
    call, address, _ = arguments
    if image is not None:
        call[: len(image)] = image
    shared = 0 if counters is None else counters.ctypes.data
    first, last = steps or (0, len(instance.table))
    run(instance.address, first, last, address, shared)


def for_each(task, count, threads):
    """task(i) for each i below `count`, by so many threads; returns when all are done. Raises what a task raises."""
    if threads == 1:
        for i in range(count):
            task(i)
        return
    numbers, done = itertools.count(), queue.SimpleQueue()

    def help():
        while (i := next(numbers)) < count:
            try:
                task(i)
            except Exception as error:
                done.put(error)
            else:
                done.put(None)

    _helpers.start(min(threads, count) - 1, help)
    help()
    for error in [done.get() for _ in range(count)]:
        if error is not None:
            raise error
