"""DIR/{train,test}/<class>/<image> as one uint8 array per split, decoded once and cached."""

import contextlib
import fcntl
import hashlib
import os
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from tqdm import tqdm

from modules.caches import user_cache
from utils.command import RunError, UsageError, height_width, is_out_of_memory
from utils.images import UnreadableImage, read_images, remedy, scan


def load_split(root, split, image_size=None, progress=True, skip_corrupt=None):
    """images uint8 (N, 3, H, W), labels int64 (N,), classes and skipped (how many are left out) of root/split.

    image_size: N, (H, W), or None: as they are. Raises UsageError for missing data; RunError for an image that cannot
    be read (skip_corrupt: if none can), images of several sizes, or more of them than memory holds.
    """
    root = Path(root)
    if not root.is_dir():
        raise UsageError(f"no folder {root}")
    folder = root / split
    if not folder.is_dir():
        raise UsageError(f"no folder {folder}: --dataset folder reads DIR/train/<class> and DIR/test/<class>")
    classes, samples = scan(folder)
    files, labels = zip(*samples)
    size = height_width(image_size) if image_size else None
    images, kept = _cached_images(folder, files, size, progress, skip_corrupt)
    labels = torch.tensor(labels)[torch.from_numpy(kept)]
    skipped = len(files) - len(kept)
    return {"images": torch.from_numpy(images), "labels": labels, "classes": classes, "skipped": skipped}


@contextlib.contextmanager
def memory_for(count, size, where="cpu"):
    """Within it, want of memory for `count` images of `size` (H, W) on device `where` is a RunError that says so."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        need = count * 3 * size[0] * size[1] / 1e9
        raise RunError(
            f"out of memory: {count:,} images of {size[0]}x{size[1]} need {need:.1f} GB on {where}, as they are kept "
            "there whole: give a smaller --image-size or fewer images, or train with imagenet.train, which reads them "
            "batch by batch"
        ) from None


def _cached_images(folder, files, size, progress, skip_corrupt):
    """(uint8 (N, 3, H, W), indices (N,) of the files they are), from the cache if no file has changed since."""
    key = _key(folder, files, size)
    keys = {key, f"{key} less corrupt"} if skip_corrupt else {key}
    caches = _places(folder, size)
    for cache in caches:
        try:
            with np.load(cache, allow_pickle=False) as stored:
                if str(stored["key"]) in keys:
                    kept = stored["kept"] if "kept" in stored else np.arange(len(files))
                    images = stored["images"]
                    break
        except Exception:  # there is none, or it is damaged, in any of the ways a zip file can be
            continue
    else:
        images, kept, may_pass = decode_all(files, size, f"decoding {folder.name}", progress, skip_corrupt)
        content = {"key": key, "images": images}
        if len(kept) < len(files):
            content |= {"key": f"{key} less corrupt", "kept": kept}
        if not may_pass:
            any(_store(cache, content) for cache in caches)
    left_out = sorted(set(range(len(files))) - set(kept.tolist()))
    if left_out:
        names = ", ".join(files[i] for i in left_out[:3]) + (", ..." if len(left_out) > 3 else "")
        print(f"skipped: {len(left_out)} images that cannot be read: {names}", file=sys.stderr, flush=True)
    return images, kept


def _key(folder, files, size):
    """Tells whether the files, or the size that they are resized to, have changed."""
    square = size and size[0] == size[1]
    digest = hashlib.sha256(str(size[0] if square else size).encode())
    for file in files:
        try:
            status = os.stat(file)
            state = f"|{status.st_size}|{status.st_mtime_ns}\n"
        except OSError:  # a broken link: reading it will say so
            state = "|none\n"
        digest.update(os.fsencode(os.path.relpath(file, folder)) + state.encode())
    return digest.hexdigest()


def _places(folder, size):
    """Where the cache may lie: beside the data, and in the user's own cache if there is such a place."""
    name = f"{size[0]}x{size[1]}" if size and size[0] != size[1] else size[0] if size else "own"
    beside = folder.parent / f".{folder.name}-{name}.cache.npz"
    users = user_cache()
    if users is None:
        return [beside]
    where = hashlib.sha256(os.fsencode(beside.resolve())).hexdigest()[:16]
    return [beside, users / f"{where}.npz"]


def _store(cache, content):
    """Write `cache` whole or not at all; whether it was. A read-only or full disk is none to cache on."""
    temporary = cache.with_name(f"{cache.stem}.{os.getpid()}.tmp.npz")
    try:
        cache.parent.mkdir(parents=True, exist_ok=True)
        for stale in cache.parent.glob(f"{cache.stem}.*.tmp.npz"):
            _remove_unless_written(stale)
        with open(temporary, "wb") as file:
            with contextlib.suppress(OSError):  # not every file system has locks
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            np.savez(file, **content)
        os.replace(temporary, cache)
        return True
    except OSError:
        return False
    finally:  # after Ctrl-C too: it may be as large as the data
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _remove_unless_written(temporary):
    """Remove what a killed process left; one that is alive, here or on another machine, holds a lock on its own."""
    with contextlib.suppress(OSError), open(temporary, "r+b") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        os.unlink(temporary)


def decode_all(files, size, title, progress, skip_corrupt):
    """(uint8 (N, 3, H, W), indices (N,) of the files that they are, whether another time there may be more) of image
    files, resized to `size` (H, W) if any."""

    def convert(image):
        if size and image.size != size[::-1]:
            image = image.resize(size[::-1], Image.Resampling.BILINEAR)
        return np.asarray(image)

    images, kept, error, may_pass = None, [], None, False
    with contextlib.closing(read_images(files, convert)) as decoded:
        bar = tqdm(decoded, title, len(files), unit="img", disable=None if progress else True)
        for i, image in enumerate(bar):
            if isinstance(image, UnreadableImage):
                error, may_pass = error or image, may_pass or image.may_pass
                if not skip_corrupt:
                    raise RunError(f"{error}{remedy(skip_corrupt)}")
                continue
            if images is None:
                with memory_for(len(files), image.shape):
                    images = np.empty((len(files), 3, *image.shape[:2]), np.uint8)
            if image.shape[:2] != images.shape[2:]:
                raise RunError(
                    f"{files[i]} is {image.shape[1]}x{image.shape[0]}, {os.path.basename(files[kept[0]])} is "
                    f"{images.shape[3]}x{images.shape[2]}: --image-size N or HxW resizes all images to one size"
                )
            images[len(kept)] = image.transpose(2, 0, 1)
            kept.append(i)
    if not kept:
        raise RunError(f"none of the {len(files)} images can be read: {error}")
    return images[: len(kept)], np.array(kept), may_pass
