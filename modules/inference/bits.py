"""Signs as bits: 64 channels to a word, and weights in the order in which the kernels read them."""

import numpy as np
import torch
import torch.nn.functional as F

from modules.inference.layout import GROUP, LANES
from modules.inference.maps import aligned

WORD = 64


def pack_signs(x):
    """Bits of the signs of x (N, C, H, W): uint64 (N, H, W, ceil(C / 64)).

    Channel c is bit c % 64 of word c // 64, 1 where x >= 0; bits past C are 0.
    """
    bits = (x >= 0).permute(0, 2, 3, 1).to(torch.uint8)
    bits = F.pad(bits, (0, -bits.shape[3] % WORD)).unflatten(3, (-1, 8))
    places = 2 ** torch.arange(8, dtype=torch.uint8)
    return (bits * places).sum(4, dtype=torch.uint8).view(torch.uint64)


def unpack_signs(bits, channels):
    """Inverse of `pack_signs`: float32 (N, channels, H, W) of -1 and +1."""
    places = 2 ** torch.arange(8, dtype=torch.uint8)
    signs = (bits.view(torch.uint8).unsqueeze(4) & places).ne(0).flatten(3)[..., :channels]
    return signs.permute(0, 3, 1, 2).to(torch.float32).mul_(2).sub_(1)


_BITS_SET = torch.tensor([bin(byte).count("1") for byte in range(256)], dtype=torch.uint8)


def arrange(bits):
    """Weights as the kernel reads them, from `bits` (C_out, k, k, words).

    Returns blocks, uint64 (ceil(C_out / 16), k * k * words, 16), zero past C_out, so that neighbouring output channels
    are neighbours in memory, and tap_counts, float32 (k * k, C_out): the bits set in each tap.
    """
    rows = bits.view(torch.int64).flatten(1)
    rows = F.pad(rows, (0, 0, 0, -len(rows) % 16))
    blocks = rows.unflatten(0, (-1, 16)).transpose(1, 2).contiguous().view(torch.uint64)
    counts = _BITS_SET[bits.view(torch.uint8).int()].sum(3, dtype=torch.float32).flatten(1).T.contiguous()
    return blocks, counts


def nibbles(blocks, kernel, pairs):
    """Each byte of the weights as its low and its high nibble, for LOOKUP; see `modules.inference.layout`.

    blocks: as `arrange` gives them, of so many rows and columns of taps; pairs: how many pairs of a tap's bytes have
    bits. Returns uint8 (groups, rows, pairs, columns, byte of the pair, GROUP, nibble, LANES). Blocks past the last one
    are zeros.
    """
    blocks = np.pad(blocks, ((0, -len(blocks) % GROUP), (0, 0), (0, 0)))
    rows = blocks.reshape(-1, GROUP, kernel, kernel, blocks.shape[1] // kernel**2, LANES, 1).view(np.uint8)
    rows = np.moveaxis(rows, 6, 5).reshape(*rows.shape[:4], -1, 2, LANES)[:, :, :, :, :pairs]
    rows = rows.transpose(0, 2, 4, 3, 5, 1, 6)
    return np.stack([rows & 15, rows >> 4], 6)


def _differing():
    """uint8 (256, 2, 16): how many bits of a byte's low and high nibble differ from those of 0 to 15."""
    byte, nibble = np.arange(256), np.arange(16)
    return _BITS_SET.numpy()[np.stack([(byte & 15)[:, None] ^ nibble, (byte >> 4)[:, None] ^ nibble], 1)]


DIFFERING_BITS = aligned(_differing())
