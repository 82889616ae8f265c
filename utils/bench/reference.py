"""The plain reference that utils.bench compares with: what a straightforward script does.

Estimators as chains of masks, the attention mask made image by image in a Python loop, images decoded and augmented one
by one with PIL in a DataLoader. The estimators of Bi-Real Net and the clipped one are replaced; EDE stays as it is.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from torch import nn

from cifar import data
from modules.binarize import BiRealSTE, ClipSTE
from modules.restriction import IResLoss


class MaskChainBiReal(nn.Module):
    """BiRealSTE as a chain of masks over the polynomial whose derivative it is; autograd keeps every link."""

    def forward(self, x):
        below, negative, inside = (x < -1).float(), (x < 0).float(), (x < 1).float()
        left = below * -1 + (x * x + 2 * x) * (1 - below)
        middle = left * negative + (2 * x - x * x) * (1 - negative)
        smooth = middle * inside + (1 - inside)
        hard = torch.where(x >= 0, 1.0, -1.0)
        return hard.detach() - smooth.detach() + smooth


class MaskChainClip(nn.Module):
    """ClipSTE through a clamp that autograd differentiates."""

    def forward(self, x):
        smooth = torch.clamp(x, -1.0, 1.0)
        return torch.where(x >= 0, 1.0, -1.0).detach() - smooth.detach() + smooth


class ImageLoopIResLoss(IResLoss):
    """IResLoss whose masks are made one image at a time."""

    def forward(self, images, targets):
        maps = self.model.features(images)
        logits = self.model.classify(maps)
        attention = maps[-1].detach().float().square().sum(1, keepdim=True)
        attention = F.interpolate(attention, size=images.shape[2:], mode="bilinear", align_corners=False)
        masks = []
        for i in range(len(images)):
            threshold = self.lam * attention[i].mean()
            masks.append((attention[i] >= threshold).float())
        masked = self.criterion(self.model(images * torch.stack(masks)), targets)
        original = self.criterion(logits, targets)
        return self.mu * original + (1 - self.mu) * masked, logits, {}


def use_mask_chains(model):
    """Replace the estimators of a network by their plain equivalents; returns it."""
    plain = {BiRealSTE: MaskChainBiReal, ClipSTE: MaskChainClip}
    for module in list(model.modules()):
        for name, child in module.named_children():
            if type(child) in plain:
                setattr(module, name, plain[type(child)]())
            elif getattr(child, "inplace", False):
                child.inplace = False
    return model


def pil_loader(dataset, data_dir, batch_size, workers, image_size=32):
    """The plain data path: a DataLoader over `dataset`'s training images with torchvision's PIL transforms."""
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    steps = [transforms.RandomCrop(image_size, padding=4), transforms.RandomHorizontalFlip(), transforms.ToTensor()]
    transform = transforms.Compose([*steps, transforms.Normalize(data.MEAN, data.STD)])
    if dataset == "folder":
        images = ImageFolder(Path(data_dir) / "train", transform)
    else:
        (train_set,) = data.load(dataset, data_dir, splits=("train",))
        pixels = train_set.images.permute(0, 2, 3, 1).numpy()

        class InMemory(Dataset):
            def __len__(self):
                return len(pixels)

            def __getitem__(self, i):
                return transform(Image.fromarray(pixels[i])), train_set.labels[i].item()

        images = InMemory()
    return DataLoader(images, min(batch_size, len(images)), shuffle=True, num_workers=workers, drop_last=True)
