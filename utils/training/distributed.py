"""One job in many processes: what torchrun starts, and what a single process does without.

Every function works in a plain process too, where it is the world's only rank. Tensors on a GPU travel by NCCL, those
on a CPU by gloo.
"""

import contextlib
import os
import sys

import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from utils.command import RunError, UsageError, status_of


def launched():
    """Whether torchrun, or a launcher that sets the same variables, started this process."""
    return "RANK" in os.environ and "WORLD_SIZE" in os.environ


_job = None
"""The store that all attempts of a job by torchrun's --max-restarts share."""


def mark_begun():
    """Tell later attempts of this job that it has begun its run, and may go on with what it finds."""
    if _job is not None and is_main():
        _job.set("begun", "yes")


def restarted():
    """Whether this is a later attempt of a job that had begun its run: not of one that was refused to."""
    return int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0)) > 0 and _job is not None and _job.check(["begun"])


def rank():
    return dist.get_rank() if dist.is_initialized() else 0


def world_size():
    return dist.get_world_size() if dist.is_initialized() else 1


def local_rank():
    """This rank among those on its machine: the number of its GPU."""
    return int(os.environ.get("LOCAL_RANK", 0)) if dist.is_initialized() else 0


def local_world_size():
    """How many ranks share this machine."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1)) if dist.is_initialized() else 1


def is_main():
    """Whether this is rank 0, the only one that writes and prints."""
    return rank() == 0


@contextlib.contextmanager
def session():
    """The process group of the job for the length of the block; nothing in a plain process.

    Raises RunError where another rank is lost: torchrun then ends or restarts the job.
    """
    if not launched():
        yield
        return
    try:
        _join()
        yield
    except RuntimeError as error:
        # gloo raises plain RuntimeErrors, which name its source files.
        if isinstance(error, dist.DistError) or "gloo" in str(error).lower():
            raise RunError(f"rank {os.environ['RANK']} lost another rank, or cannot reach it") from None
        raise
    except SystemExit:  # which all ranks agreed on
        dist.destroy_process_group()
        raise
    dist.destroy_process_group()


def _join():
    # torchrun's restarted ranks meet in the store of those before them: without a prefix of their own they would look
    # for ranks that are dead.
    global _job
    _job, rank, ranks = next(dist.rendezvous("env://"))
    store = dist.PrefixStore(f"attempt_{os.environ.get('TORCHELASTIC_RESTART_COUNT', 0)}", _job)
    backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
    dist.init_process_group(backend, store=store, rank=rank, world_size=ranks)


@contextlib.contextmanager
def fail_together():
    """Set-up that all ranks do alike: if it fails on any, all end with the same status, and one prints the error.

    The block must hold no communication between ranks. Without this a rank that fails alone leaves the others waiting.
    """
    error = None
    try:
        yield
    except (UsageError, RunError, OSError) as caught:
        if world_size() == 1:
            raise
        error = caught
    # As text: an exception's own pickling is not to be relied on.
    failures = [failure for failure in gather((str(error), status_of(error)) if error else None) if failure]
    if not failures:
        return
    message, status = failures[0]
    if is_main():
        print("error:", " ".join(message.split()), file=sys.stderr, flush=True)
    barrier()  # torchrun ends the other ranks as soon as one exits: not before the line is out
    raise SystemExit(status)


def gather(value):
    """[value of each rank], on every rank; any value that pickles."""
    if world_size() == 1:
        return [value]
    values = [None] * world_size()
    dist.all_gather_object(values, value)
    return values


def barrier():
    """Wait for all ranks."""
    gather(None)


def largest(*numbers):
    """The largest of each integer over all ranks: a tuple, the same on all ranks."""
    if world_size() == 1:
        return numbers
    values = torch.tensor(numbers, dtype=torch.int32)
    dist.all_reduce(values, dist.ReduceOp.MAX)
    return tuple(values.tolist())


def wrap(step, device):
    """The step, with gradients averaged over the ranks; the step itself where there is one rank.

    The step is wrapped, not the model: then one forward pass of DistributedDataParallel holds both passes of IRes, and
    BatchNorm's buffers, which rank 0 sends round before it, are not touched between them. What rank 0 holds is the
    whole state of the training, so that it alone can save it.
    """
    if world_size() == 1:
        return step
    return DistributedDataParallel(step, device_ids=[device.index] if device.type == "cuda" else None)


def no_sync(step, skip):
    """A context in which `step`'s backward pass keeps gradients to this rank, where `skip` says so."""
    if skip and isinstance(step, DistributedDataParallel):
        return step.no_sync()
    return contextlib.nullcontext()


def share_buffers(model):
    """Give all ranks rank 0's buffers (BatchNorm's statistics): then they evaluate the same network."""
    if world_size() > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
