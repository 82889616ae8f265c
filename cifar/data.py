"""Small-image data sets as one uint8 tensor, and batches of it, augmented and normalised where the tensor lives.

No worker processes: a whole data set of 32x32 images fits on any device, and a batch is one gather.
"""

import hashlib
import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tqdm import tqdm

from utils.command import RunError, UsageError

DATASETS = ("cifar10", "cifar100", "folder", "digits")
MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".webp", ".ppm", ".tif", ".tiff")


@dataclass
class ImageSet:
    """images: uint8 (N, 3, H, W); labels: int64 (N,); classes: their names; flip: whether a mirror image is as good."""

    images: torch.Tensor
    labels: torch.Tensor
    classes: list
    flip: bool = True

    def __len__(self):
        return len(self.labels)

    def fingerprint(self):
        """First 12 digits of a SHA-256 over images and labels: tells whether two runs saw the same data."""
        digest = hashlib.sha256(self.images.numpy().tobytes())
        digest.update(self.labels.numpy().tobytes())
        return digest.hexdigest()[:12]


def load(dataset, data_dir=None, download=False, image_size=None, progress=True, splits=("train", "test")):
    """[ImageSet of each split], on the CPU.

    dataset: one of DATASETS; data_dir: where it lies (not for digits); image_size: resize a folder's images to
    image_size x image_size. Raises UsageError for missing data, RunError for images that cannot be used.
    """
    if image_size and dataset != "folder":
        raise UsageError("--image-size goes with --dataset folder")
    if dataset == "digits":
        return _load_digits(splits)
    if data_dir is None:
        raise UsageError(f"--dataset {dataset} needs --data-dir")
    if dataset == "folder":
        return _load_folder(Path(data_dir), image_size, progress, splits)
    return _load_cifar(dataset, data_dir, download, splits)


def _load_digits(splits):
    """scikit-learn's 1,797 handwritten digits, 8x8 -> 32x32: a fixed stratified split, 1,437 to train, 360 to test."""
    from sklearn.datasets import load_digits
    from sklearn.model_selection import train_test_split

    digits = load_digits()
    images = torch.from_numpy(digits.images).float()[:, None] / 16
    images = F.interpolate(images, size=(32, 32), mode="bilinear", align_corners=False)
    images = (images * 255).round().to(torch.uint8).expand(-1, 3, -1, -1)
    labels = torch.from_numpy(digits.target).long()
    indices = train_test_split(np.arange(len(labels)), test_size=360, stratify=digits.target, random_state=0)
    rows = dict(zip(("train", "test"), indices))
    classes = [str(i) for i in range(10)]
    return [ImageSet(images[rows[s]].contiguous(), labels[rows[s]], classes, flip=False) for s in splits]


def _load_cifar(dataset, data_dir, download, splits):
    from torchvision.datasets import CIFAR10, CIFAR100

    reader = {"cifar10": CIFAR10, "cifar100": CIFAR100}[dataset]
    sets = []
    for split in splits:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # torchvision's pickles predate NumPy 2's names
                data = reader(data_dir, train=split == "train", download=download)
        except RuntimeError:
            raise UsageError(f"no {dataset} in {data_dir}: add --download, or give another --data-dir") from None
        except OSError as error:
            raise UsageError(f"cannot get {dataset} into {data_dir}: {error}") from None
        images = torch.from_numpy(data.data).permute(0, 3, 1, 2).contiguous()
        sets.append(ImageSet(images, torch.tensor(data.targets), data.classes))
    return sets


def _load_folder(root, image_size, progress, splits):
    """DIR/{train,test}/<class>/<image>, decoded once and cached."""
    if not root.is_dir():
        raise UsageError(f"no folder {root}")
    sets = []
    for split in splits:
        if not (root / split).is_dir():
            raise UsageError(f"no folder {root / split}: --dataset folder reads DIR/train/<class> and DIR/test/<class>")
        files, labels, classes = _scan(root / split)
        if sets and classes != sets[0].classes:
            different = sorted(set(classes) ^ set(sets[0].classes))
            raise UsageError(f"train and test of {root} differ in their classes: {', '.join(different)}")
        images = _cached_images(root / split, files, image_size, progress)
        sets.append(ImageSet(images, torch.tensor(labels), classes))
    if len(sets) == 2 and sets[0].images.shape[2:] != sets[1].images.shape[2:]:
        raise RunError(f"train and test images of {root} differ in size; --image-size N resizes all of them")
    return sets


def _scan(folder):
    classes = sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))
    if not classes:
        raise UsageError(f"{folder} holds no class folders")
    files, labels = [], []
    for label, name in enumerate(classes):
        found = sorted(entry for entry in (folder / name).iterdir() if entry.suffix.lower() in SUFFIXES)
        if not found:
            raise UsageError(f"class folder {folder / name} holds no images")
        files += found
        labels += [label] * len(found)
    return files, labels, classes


def _cached_images(folder, files, image_size, progress):
    """uint8 (N, 3, H, W) of the files, from the cache if no file has changed since it was written."""
    digest = hashlib.sha256(str(image_size).encode())
    for file in files:
        status = file.stat()
        digest.update(f"{file.relative_to(folder)}|{status.st_size}|{status.st_mtime_ns}\n".encode())
    key = digest.hexdigest()
    beside = folder.parent / f".{folder.name}-{image_size or 'own'}.cache.npz"
    where = hashlib.sha256(str(beside.resolve()).encode()).hexdigest()[:16]
    users = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ir2net" / f"{where}.npz"
    for cache in (beside, users):
        try:
            with np.load(cache, allow_pickle=False) as stored:
                if str(stored["key"]) == key:
                    return torch.from_numpy(stored["images"])
        except Exception:  # there is none, or it is damaged, in any of the ways a zip file can be
            continue
    images = _decode_all(files, image_size, f"decoding {folder.name}", progress)
    for cache in (beside, users):
        temporary = cache.with_name(f"{cache.stem}.{os.getpid()}.tmp.npz")
        try:
            cache.parent.mkdir(parents=True, exist_ok=True)
            np.savez(temporary, key=key, images=images)
            os.replace(temporary, cache)
            break
        except OSError:
            temporary.unlink(missing_ok=True)  # a read-only or full disk: the next place, or no cache
    return torch.from_numpy(images)


def _decode_all(files, image_size, title, progress):
    from PIL import Image, ImageOps, UnidentifiedImageError

    def decode(file):
        try:
            with Image.open(file) as image:
                if image.mode.startswith(("I", "F")):
                    raise RunError(f"{file} has more than 8 bits per channel: convert it to 8")
                image = ImageOps.exif_transpose(image).convert("RGB")
        except (UnidentifiedImageError, Image.DecompressionBombError, OSError, ValueError, SyntaxError) as error:
            raise RunError(f"{file} is not an image that can be read ({type(error).__name__})") from None
        if image_size and image.size != (image_size, image_size):
            image = image.resize((image_size, image_size), Image.Resampling.BILINEAR)
        return np.asarray(image)

    first = decode(files[0])
    images = np.empty((len(files), 3, *first.shape[:2]), np.uint8)
    with ThreadPoolExecutor() as pool:
        bar = tqdm(files, title, unit="img", disable=None if progress else True)
        try:
            for i, image in enumerate(pool.map(decode, bar)):
                if image.shape != first.shape:
                    raise RunError(
                        f"{files[i]} is {image.shape[1]}x{image.shape[0]}, {files[0].name} is "
                        f"{first.shape[1]}x{first.shape[0]}: --image-size N resizes all images to NxN"
                    )
                images[i] = image.transpose(2, 0, 1)
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    return images


def labels(dataset, train, test):
    """What a run keeps of its data: plain values."""
    return {
        "dataset": dataset,
        "train_images": len(train),
        "test_images": len(test),
        "classes": train.classes,
        "image_size": list(train.images.shape[2:]),
        "train_fingerprint": train.fingerprint(),
        "test_fingerprint": test.fingerprint(),
    }


class Batches:
    """Batches (images (B, 3, H, W), normalised, in `dtype`; labels int64 (B,)) of an ImageSet, on `device`.

    train: `epoch(e)` yields the images in the order that (seed, e) gives, each cropped at an offset of its own from
    the image padded by 4 black pixels and, where the set allows, mirrored with probability 1/2; the last partial
    batch is left out (unless it is the only one), so that all batches have one size. Else every image is yielded
    once, in order, as it is.
    """

    PADDING = 4

    def __init__(self, data, batch_size, device="cpu", train=False, seed=0, dtype=torch.float32):
        self.batch_size = min(batch_size, len(data))
        self.count = len(data)
        self.train = train
        self.seed = seed
        self.flip = data.flip
        self.device = torch.device(device)
        self.size = tuple(data.images.shape[2:])
        images = F.pad(data.images, (self.PADDING,) * 4) if train else data.images
        self.stored_size = tuple(images.shape[2:])
        self.pixels = images.flatten(2).to(self.device)
        self.labels = data.labels.to(self.device)
        self.dtype = dtype
        scale, shift = [1 / (255 * s) for s in STD], [m / s for m, s in zip(MEAN, STD)]
        self.scale = torch.tensor(scale, dtype=dtype, device=self.device).view(1, 3, 1, 1)
        self.shift = torch.tensor(shift, dtype=dtype, device=self.device).view(1, 3, 1, 1)

    def __len__(self):
        if self.train:
            return self.count // self.batch_size
        return -(-self.count // self.batch_size)

    @property
    def images_per_epoch(self):
        return len(self) * self.batch_size if self.train else self.count

    def __iter__(self):
        for start in range(0, self.count, self.batch_size):
            rows = slice(start, start + self.batch_size)
            yield self._normalise(self.pixels[rows].unflatten(2, self.size)), self.labels[rows]

    def epoch(self, epoch, start=0):
        """The augmented batches of epoch `epoch` from batch `start` on; the same for (seed, epoch), on every device."""
        order, top, left, mirrored = (x.to(self.device) for x in self.draw(epoch))
        for first in range(start * self.batch_size, len(self) * self.batch_size, self.batch_size):
            at = slice(first, first + self.batch_size)
            images = self._crop(self.pixels[order[at]], top[at], left[at], mirrored[at])
            yield self._normalise(images), self.labels[order[at]]

    def draw(self, epoch):
        """Order, top and left crop offsets (0 to 8), and mirror flags of an epoch: four tensors (N,)."""
        generator = torch.Generator().manual_seed((self.seed * 1_000_003 + epoch) % 2**63)
        n = self.count
        order = torch.randperm(n, generator=generator)
        offsets = torch.randint(0, 2 * self.PADDING + 1, (2, n), generator=generator)
        mirrored = torch.rand(n, generator=generator) < 0.5
        return order, offsets[0], offsets[1], mirrored & self.flip

    def _crop(self, pixels, top, left, mirrored):
        """(B, 3, stored H * stored W) -> (B, 3, H, W): one gather for all images, each at its own place."""
        height, width = self.size
        columns = torch.arange(width, device=self.device)
        columns = torch.where(mirrored[:, None], width - 1 - columns, columns) + left[:, None]
        rows = torch.arange(height, device=self.device) + top[:, None]
        where = (rows[:, :, None] * self.stored_size[1] + columns[:, None, :]).view(len(top), 1, -1)
        return pixels.gather(2, where.expand(-1, 3, -1)).view(-1, 3, height, width)

    def _normalise(self, images):
        return images.to(self.dtype, memory_format=torch.channels_last).mul_(self.scale).sub_(self.shift)


def unnormalise(images):
    """Normalised images (N, 3, H, W) back to [0, 1], to be shown."""
    mean, std = (torch.tensor(x, device=images.device).view(1, 3, 1, 1) for x in (MEAN, STD))
    return (images * std + mean).clamp(0, 1)
