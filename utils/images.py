"""Image files, for both families alike: which entries of a folder are images, and how one is read."""

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from PIL import ExifTags, Image

from utils.command import RunError, UsageError

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".pgm", ".tif", ".tiff")


_TURN = Image.Transpose
_UPRIGHT = {
    2: _TURN.FLIP_LEFT_RIGHT, 3: _TURN.ROTATE_180, 4: _TURN.FLIP_TOP_BOTTOM, 5: _TURN.TRANSPOSE, 6: _TURN.ROTATE_270,
    7: _TURN.TRANSVERSE, 8: _TURN.ROTATE_90,
}  # fmt: skip
"""EXIF's orientation -> what undoes it."""


class UnreadableImage(RunError):
    """A file that holds no image, a damaged one, or one of more than 8 bits per channel; the text names it.

    may_pass: the system refused to read the file, which it may do another time.
    """

    def __init__(self, message, may_pass=False):
        super().__init__(message)
        self.may_pass = may_pass


def remedy(skip_corrupt):
    """What a line about an UnreadableImage ends with; skip_corrupt: the flag's value, None if a command has none."""
    return "" if skip_corrupt is None else "; --skip-corrupt leaves such images out"


def read_image(path):
    """The image at `path` as RGB, turned as its EXIF orientation says; grey, CMYK and palette images are converted.

    Raises UnreadableImage.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of odd EXIF data: the pixels are sound
        return _read(path)


def read_images(paths, convert):
    """Yields convert(image as `read_image` gives it) or the UnreadableImage of each path, in order, on all cores."""

    def work(path):
        try:
            return convert(_read(path))
        except UnreadableImage as error:
            return error

    pool = ThreadPoolExecutor()
    try:
        with warnings.catch_warnings():  # here: it is the process's, not the thread's
            warnings.simplefilter("ignore")
            yield from pool.map(work, paths)
    finally:
        pool.shutdown(cancel_futures=True)


def _read(path):
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):  # Pillow would clip them to white or black
                raise UnreadableImage(f"{path} has more than 8 bits per channel: convert it to 8")
            image = _upright(image)
            if "transparency" in image.info:
                image = image.convert("RGBA")  # a palette with transparency has no direct way to RGB
            return image.convert("RGB")
    except UnreadableImage:
        raise
    except MemoryError:
        raise RunError(f"out of memory while reading {path}: run fewer processes, or make the image smaller") from None
    except Exception as error:  # a damaged file can fail anywhere in Pillow
        may_pass = getattr(error, "errno", None) is not None and not isinstance(error, FileNotFoundError)
        raise UnreadableImage(f"{path} is not an image that can be read ({type(error).__name__})", may_pass) from None


def _upright(image):
    """The image turned as its EXIF orientation says. Pillow's own function fails if any other tag is damaged."""
    image.load()  # turns a TIFF
    try:
        turn = _UPRIGHT.get(image.getexif().get(ExifTags.Base.Orientation))
    except Exception:  # damaged EXIF data can fail anywhere, too: the pixels are sound
        turn = None
    return image if turn is None else image.transpose(turn)


def scan(folder):
    """(classes, [(file, label)]) of folder/<class>/**/<image>: names sorted, label: the class's number.

    Entries whose name starts with a dot are no data: editors, notebooks and macOS leave them behind. Links are
    followed. Raises UsageError without class folders, or if one holds no images; OSError if one cannot be listed.
    """
    folder = Path(folder)
    with os.scandir(folder) as entries:
        classes = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UsageError(f"{folder} holds no class folders: it must hold <class>/<image>")
    samples, empty = [], []
    for label, name in enumerate(classes):
        before = len(samples)
        samples += [(file, label) for file in _files(os.path.join(folder, name))]
        if len(samples) == before:
            empty.append(name)
    if empty:
        more = ", ..." if len(empty) > 5 else ""
        raise UsageError(f"{folder} has class folders without images: {', '.join(empty[:5])}{more}")
    return classes, samples


def _files(folder):
    """Image files below `folder`, folder by folder in the order of their paths, as torchvision's ImageFolder has it."""
    found, above = [], {}
    for where, folders, names in os.walk(folder, followlinks=True, onerror=_refuse):
        status = os.stat(where)
        identity, ancestors = (status.st_dev, status.st_ino), above.get(os.path.dirname(where), frozenset())
        if identity in ancestors:  # a link back up
            folders.clear()
            continue
        above[where] = ancestors | {identity}
        folders[:] = [name for name in folders if not name.startswith(".")]
        found.append((where, sorted(n for n in names if not n.startswith(".") and n.lower().endswith(SUFFIXES))))
    return [os.path.join(where, name) for where, names in sorted(found) for name in names]


def _refuse(error):
    raise error
