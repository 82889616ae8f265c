"""How a command ends: one clear line on standard error and an exit status, never a traceback for a user's mistake."""

import argparse
import contextlib
import functools
import os
import platform
import re
import select
import sys
from pathlib import Path

CLOSED_PIPE = 141
"""Exit status of a command whose output nobody reads any more: 128 + SIGPIPE, as of other programs."""
OUT_OF_MEMORY = re.compile("out of memory|(can't|cannot) allocate memory", re.IGNORECASE)


class UsageError(Exception):
    """Wrong usage or missing data; the command exits with status 2."""


class RunError(Exception):
    """A run, or a file that it needs, failed; the command exits with status 1."""


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    def _get_help_string(self, action):
        """With the default, unless there is none, or the help says it in words."""
        if action.default in (None, []) or "default:" in (action.help or ""):
            return action.help
        return super()._get_help_string(action)


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line and defaults in the help."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=_Formatter, allow_abbrev=False, **kwargs)

    def parse_args(self, args=None, namespace=None):
        """As argparse does it, but an empty argument, as an unset variable of the shell leaves it, is an error."""
        args = sys.argv[1:] if args is None else list(args)
        for before, text in zip([None, *args], args):
            if not text or re.fullmatch("--[a-z0-9-]+=", text):
                flag = text[:-1] or (before if before and before.startswith("-") else "")
                self.error(f"argument {flag or 'without a flag'}: is empty")
        return super().parse_args(args, namespace)

    def error(self, message):
        raise UsageError(f"{message} (see python -m {self.prog} --help)")  # `command` answers it


def command(main):
    """Decorates `main(argv=None)`: turns UsageError, RunError and OSError into one line and an exit status.

    What the output's encoding cannot write is escaped; a reader of the output that goes away ends the command quietly.
    """

    @functools.wraps(main)
    def wrapped(argv=None):
        for stream in (sys.stdout, sys.stderr):
            if hasattr(stream, "reconfigure"):  # else there is none, or it is a test's
                stream.reconfigure(errors="backslashreplace")
        try:
            try:
                return main(argv)
            finally:
                _flush()  # while an error can still be answered
        except (UsageError, RunError, OSError) as error:
            if _output_is_lost() and isinstance(error, BrokenPipeError):
                raise SystemExit(CLOSED_PIPE) from None
            return _fail(error, status_of(error))
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            return _fail("out of memory: give a smaller --batch-size", 1)
        except KeyboardInterrupt:
            return _fail("interrupted", 130)

    return wrapped


def is_out_of_memory(error):
    """Whether Python, NumPy or torch, on the CPU or on a GPU, raised `error` for want of memory."""
    return isinstance(error, MemoryError) or bool(isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)))


@contextlib.contextmanager
def answering(message, kind=RunError, errors=(RuntimeError, IndexError, ValueError)):
    """Within it `errors`, by default what torch raises where things do not fit together, become an error of that kind,
    one line that begins with `message`. Want of memory stays what it is: `command` answers it."""
    try:
        yield
    except errors as error:
        if is_out_of_memory(error):
            raise
        raise kind(f"{message}: {error}") from None


def _flush():
    if sys.stdout is not None and not sys.stdout.closed:
        sys.stdout.flush()


def _output_is_lost():
    """Whether standard output has no reader, or no room; then the interpreter's end must not try it again."""
    try:
        _flush()
        if not _has_no_reader(sys.stdout):
            return False
    except OSError:
        pass
    with contextlib.suppress(OSError, ValueError):  # not a file of the system's: nothing to keep quiet
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return True


def _has_no_reader(stream):
    try:
        poll = select.poll()
        poll.register(stream.fileno(), 0)
        return any(event & (select.POLLERR | select.POLLHUP) for _, event in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # there is no stream, or it is none of the system's
        return False


def status_of(error):
    """The exit status of a command that ends with `error`."""
    return 2 if isinstance(error, UsageError) else 1


def _fail(error, status):
    line = " ".join(str(error).split()).encode(errors="backslashreplace").decode()  # a file may hold half a character
    print("error:", line, file=sys.stderr)
    raise SystemExit(status)


def cpu_name():
    """The processor's name, or what Python knows of it, and the instructions that torch uses on it, as AVX2."""
    import torch

    try:
        name = re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):  # not Linux, or it does not say
        name = platform.processor() or platform.machine()
    return f"{name} ({torch.backends.cpu.get_cpu_capability()})"


def available_cpus():
    """How many CPUs this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()


def bounded_int(low, high):
    """An argparse type: an integer in [low, high]."""

    def parse(text):
        value = int(text)
        if not low <= value <= high:
            bound = f"{low} or more" if value < low else f"{high:,} or less"
            raise argparse.ArgumentTypeError(f"must be {bound}, not {text.strip()[:30]}")
        return value

    parse.__name__ = "int"
    return parse


positive_int = bounded_int(1, 2**63 - 1)
"""argparse type: an integer of 1 or more."""
non_negative_int = bounded_int(0, 2**63 - 1)
"""argparse type: an integer of 0 or more."""
side = bounded_int(1, 16_384)
"""argparse type: a side of square images, in pixels."""
threads = bounded_int(1, 4096)
"""argparse type: threads of one machine."""
data_processes = bounded_int(0, 4096)
"""argparse type: processes that load data; 0: the command's own."""


def image_size(text):
    """argparse type: N for images of NxN pixels, or HxW, which gives (H, W)."""
    height, cross, width = text.lower().partition("x")
    return (side(height), side(width)) if cross else side(text)


def height_width(size):
    """(H, W) of an image size: N, or a pair."""
    return (size, size) if isinstance(size, int) else tuple(size)


def positive_float(text):
    """argparse type: a finite number above 0."""
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be above 0 and finite, not {text}")
    return value


def non_negative_float(text):
    """argparse type: a finite number, 0 or above."""
    value = float(text)
    if not 0 <= value < float("inf"):
        raise argparse.ArgumentTypeError(f"must be 0 or above and finite, not {text}")
    return value


def ede_t(text):
    """argparse type: EDE's t, from 1e-6 to 10, where it ends."""
    value = float(text)
    if not 1e-6 <= value <= 10:
        raise argparse.ArgumentTypeError(f"must lie in [1e-6, 10], not {text}")
    return value


def fraction(text):
    """argparse type: a number in [0, 1]."""
    value = float(text)
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"must lie in [0, 1], not {text}")
    return value


def folder(text):
    """argparse type: the path of a folder to write to."""
    try:
        text.encode()
    except UnicodeEncodeError:  # TensorBoard takes no other
        raise argparse.ArgumentTypeError("must have a name in UTF-8") from None
    return text


image_size.__name__ = "size"  # what argparse calls the type in "invalid size value: 'x'"
positive_float.__name__ = non_negative_float.__name__ = fraction.__name__ = ede_t.__name__ = "float"
