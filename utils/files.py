"""Files that are written whole or not at all."""

import contextlib
import os
from pathlib import Path

from utils.command import UsageError


@contextlib.contextmanager
def replacing(path):
    """Path of a temporary file beside `path`, for the block to write: after the block it takes `path`'s place.

    If the block fails, `path` stays as it was and the temporary file goes. Its name is this process's own.
    """
    path = Path(path)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        with contextlib.suppress(OSError):  # of a read-only folder: there is nothing to remove
            temporary.unlink(missing_ok=True)


def write_text(path, text):
    """Write text to `path`, whole or not at all."""
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


def output_path(path, force=False, sources=()):
    """Path of a file to write.

    Raises UsageError if its folder is missing, if it is there and not to be replaced, or is no regular file: a link, a
    device or a folder is never replaced, nor one of the files that it is made from, `sources` (None: there is none).
    """
    path = Path(path)
    if not path.parent.is_dir():
        raise UsageError(f"no folder {path.parent}")
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise UsageError(f"{path} is not a regular file: give another name")
    if path.resolve() in [Path(source).resolve() for source in sources if source]:
        raise UsageError(f"{path} is what is read, and would be lost: give another name")
    if path.exists() and not force:
        raise UsageError(f"{path} is there already: give another name, or add --force")
    return path
