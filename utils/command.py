"""How a command ends: one clear line on standard error and an exit status, never a traceback for a user's mistake."""

import argparse
import functools
import platform
import re
import sys
from pathlib import Path


class UsageError(Exception):
    """Wrong usage or missing data; the command exits with status 2."""


class RunError(Exception):
    """A run, or a file that it needs, failed; the command exits with status 1."""


class Parser(argparse.ArgumentParser):
    """argparse, with errors of one line and defaults in the help."""

    def __init__(self, **kwargs):
        super().__init__(formatter_class=argparse.ArgumentDefaultsHelpFormatter, allow_abbrev=False, **kwargs)

    def error(self, message):
        self.exit(2, f"error: {message} (see python -m {self.prog} --help)\n")


def command(main):
    """Decorates `main(argv=None)`: turns UsageError, RunError and OSError into one line and an exit status."""

    @functools.wraps(main)
    def wrapped(argv=None):
        try:
            return main(argv)
        except (UsageError, RunError, OSError) as error:
            return _fail(error, status_of(error))
        except (RuntimeError, MemoryError) as error:
            if not isinstance(error, MemoryError) and not re.search("out of memory|can't allocate memory", str(error)):
                raise
            return _fail("out of memory: give a smaller --batch-size", 1)
        except KeyboardInterrupt:
            return _fail("interrupted", 130)

    return wrapped


def status_of(error):
    """The exit status of a command that ends with `error`."""
    return 2 if isinstance(error, UsageError) else 1


def _fail(error, status):
    print("error:", " ".join(str(error).split()), file=sys.stderr)
    raise SystemExit(status)


def cpu_name():
    """The processor's name, or what Python knows of it."""
    try:
        return re.search(r"model name\s*: (.+)", Path("/proc/cpuinfo").read_text())[1]
    except (OSError, TypeError):  # not Linux, or it does not say
        return platform.processor() or platform.machine()


def positive_int(text):
    """argparse type: an integer of 1 or more."""
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError(f"must be 1 or more, not {value}")
    return value


def non_negative_int(text):
    """argparse type: an integer of 0 or more."""
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError(f"must be 0 or more, not {value}")
    return value


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


def seed(text):
    """argparse type: an integer in [0, 2^63)."""
    value = non_negative_int(text)
    if value >= 2**63:
        raise argparse.ArgumentTypeError("must be below 2^63")
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


for _type, _name in ((positive_int, "int"), (non_negative_int, "int"), (seed, "int"), (positive_float, "float")):
    _type.__name__ = _name  # what argparse calls the type in "invalid int value: 'x'"
non_negative_float.__name__ = fraction.__name__ = ede_t.__name__ = "float"
