"""Files that torch.save writes: written whole or not at all, told from packed ones, and read without running code."""

import pickle
import re
import warnings
import zipfile
from pathlib import Path

import torch

from utils.command import RunError
from utils.files import replacing


def write(path, content, legacy=False):
    """torch.save, whole or not at all. legacy: in the file format before PyTorch 1.6. Raises RunError if it cannot."""
    try:
        with replacing(path) as temporary:
            temporary.touch()  # says why it cannot, which torch.save does not
            torch.save(content, temporary, _use_new_zipfile_serialization=not legacy)
    except OSError as error:
        raise RunError(f"cannot write {path}: {error.strerror}") from None
    except RuntimeError as error:
        raise RunError(f"cannot write {path} (is the disk full?): {str(error).splitlines()[0]}") from None


def has_checksums(path):
    """Whether the file is a zip, as PyTorch writes since 1.6: the format before has no checksums."""
    with open(path, "rb") as file:
        return file.read(2) == b"PK"


def is_packed(path):
    """Whether the file looks like a packed network, or like any safetensors file; False if there is none."""
    try:
        with open(path, "rb") as file:
            return file.read(9)[8:] == b"{"
    except OSError:
        return False


def read(path):
    """What a file written by torch.save holds, on the CPU; weights only, so no code in a pickle ever runs.

    A zip's checksums are compared first, which torch.load does not do; the format before PyTorch 1.6 has none.
    Raises RunError in one line if there is no such file, or it is damaged, or holds more than tensors and values.
    """
    path = Path(path)
    if not path.exists():
        raise RunError(f"no checkpoint at {path}")
    if not path.is_file():
        raise RunError(f"{path} is a {'directory' if path.is_dir() else 'device'}, not a checkpoint")
    if path.stat().st_size == 0:
        raise RunError(f"{path} is empty (0 bytes)")
    if is_packed(path):
        hint = "give the checkpoint that it was made from; python -m utils.released inspect tells what it is"
        raise RunError(f"{path} is packed, or another safetensors file: {hint}")
    try:
        if has_checksums(path):
            with zipfile.ZipFile(path) as file:
                damaged = file.testzip()
            if damaged:
                raise RunError(f"{path} is damaged: the checksum of {damaged!r} in it does not match")
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of pickles that torch.save did not write; the error says enough
            return torch.load(path, map_location="cpu", weights_only=True)
    except RunError:
        raise
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL ([\w.]*\w)", str(error))
        if refused:
            raise RunError(f"{path} holds more than weights ({refused[1]}): refused, nothing in it was run") from None
        raise RunError(f"{path} is no checkpoint, or is damaged") from None
    except Exception as error:  # a damaged file can fail anywhere in zipfile and torch.load
        raise RunError(f"{path} is no checkpoint, or is truncated ({type(error).__name__})") from None
