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
    places = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)
    return (bits * places).sum(4, dtype=torch.uint8).view(torch.uint64)


def unpack_signs(bits, channels):
    """Inverse of `pack_signs`: float32 (N, channels, H, W) of -1 and +1."""
    places = 2 ** torch.arange(8, dtype=torch.uint8, device=bits.device)
    signs = (bits.view(torch.uint8).unsqueeze(4) & places).ne(0).flatten(3)[..., :channels]
    return signs.permute(0, 3, 1, 2).to(torch.float32).mul_(2).sub_(1)


_BITS_SET = torch.tensor([bin(byte).count("1") for byte in range(256)], dtype=torch.uint8, device="cpu")


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


def threes(array, fill):
    """Something of each nibble, (..., rows, columns, nibbles), as LOOKUP reads it, three at a time: (..., taps, 3).

    Three columns of a row go together, where there are three; else neighbours, up to two of them `fill`.
    """
    columns, nibbles = array.shape[-2:]
    if columns == 3:
        array = array.swapaxes(-1, -2)
    else:
        array = np.pad(array, [*[(0, 0)] * (array.ndim - 1), (0, -nibbles % 3)], constant_values=fill)
    return array.reshape(*array.shape[:-3], -1, 3)


_NOT_LOOKED_UP = 128
"""A weight for which 0 is found in any table."""


def nibbles(blocks, kernel, in_channels):
    """The weights' nibbles, for LOOKUP; see `modules.inference.layout`.

    blocks: as `arrange` gives them, of so many rows and columns of taps. Returns uint8 (groups of GROUP blocks, taps,
    GROUP / 2, 3, LANES, 2): two blocks lie side by side, channel by channel. Blocks past the last one are zeros.
    """
    blocks = np.pad(blocks, ((0, -len(blocks) % GROUP), (0, 0), (0, 0)))
    rows = blocks.reshape(-1, 2, kernel, kernel, blocks.shape[1] // kernel**2, LANES, 1).view(np.uint8)
    rows = np.moveaxis(rows, 5, 2)  # (two blocks, 2, LANES, kernel, kernel, words, bytes)
    halves = np.stack([rows & 15, rows >> 4], -1).reshape(*rows.shape[:5], -1)[..., : -(-in_channels // 4)]
    taps = threes(halves, _NOT_LOOKED_UP)
    return taps.reshape(-1, GROUP // 2, *taps.shape[1:]).transpose(0, 4, 1, 5, 3, 2)


def _differing():
    """uint8 (256, 16): how many bits of a byte's low nibble differ from 0 to 15; of its high one, times 16."""
    byte, nibble = np.arange(256)[:, None], np.arange(16)
    counts = _BITS_SET.numpy()
    return counts[byte & 15 ^ nibble] + 16 * counts[byte >> 4 ^ nibble]


DIFFERING_BITS = aligned(_differing())
