"""SIGTERM and Ctrl-C: a training saves where it is, and ends."""

import signal
import threading


class StopSignal:
    """Within the block SIGTERM and SIGINT set `received` to their number, for the loop to end when it is safe to.

    A second Ctrl-C ends the process at once. `received` is 0 while there was none.
    """

    received = 0

    def __init__(self):
        self._previous = {}

    def __enter__(self):
        if threading.current_thread() is threading.main_thread():  # Python allows handlers nowhere else
            for number in (signal.SIGTERM, signal.SIGINT):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def _note(self, number, frame):
        if self.received and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.received = number

    def __exit__(self, *exception):
        for number, handler in self._previous.items():
            signal.signal(number, handler)
