"""Programs for the compiled kernels: steps over maps in one block of memory; see `modules.inference.layout`."""

import math
from dataclasses import replace
from typing import NamedTuple

import numpy as np
import torch

from modules.inference import native
from modules.inference.bits import DIFFERING_BITS, nibbles, threes
from modules.inference.layout import GROUP, LANES, Call, Field, Finish, Kind
from modules.inference.maps import BYTES, REGION, Maps, aligned, blocks_of, external
from modules.inference.threads import Pace

_ROWS_APART, _CHANNELS_APART = 14, 2
"""Chunks of a large map are bands of its rows, about so many; those of a small one so many blocks, or GROUP."""
_PLAIN = [Finish.SCALE, Finish.RESIDUAL_ALPHA, Finish.RESIDUAL_BETA, Finish.BEFORE, Finish.AFTER]
"""Rows of a table that Field.PLAIN is about."""


def fill(table, channels):
    """float32 (len(Finish), C) with channels up to a multiple of LANES, whose output and sign bits are 0."""
    wide = np.zeros((len(Finish), blocks_of(channels) * LANES), np.float32)
    wide[Finish.SHIFT] = -np.inf
    wide[:, :channels] = table
    return aligned(wide)


def neutral(channels):
    """The finish table that changes nothing: float32 (len(Finish), C)."""
    table = np.zeros((len(Finish), channels), np.float32)
    for row in ("SCALE", "ALPHA", "RESIDUAL_ALPHA", "POSITIVE", "NEGATIVE"):
        table[Finish[row]] = 1
    table[Finish.LOW], table[Finish.HIGH] = -np.inf, np.inf
    return table


class Filters(NamedTuple):
    """A binary convolution: tensors as `modules.inference.bits.arrange` gives them."""

    blocks: torch.Tensor
    tap_counts: torch.Tensor
    in_channels: int
    stride: int
    padding: int


class Program:
    """Steps, added one after the other, and how much memory they need. What it adds are Maps."""

    def __init__(self):
        self.steps, self.size, self.kept, self.lines = [], 0, [], 0
        self.part, self.pace, self.idle = "", Pace(), []

    def instance(self):
        """An instance that no other thread uses; it belongs back into `idle`."""
        try:
            return self.idle.pop()
        except IndexError:
            return Instance(self)

    def keep(self, array):
        """The address of a constant array, which lives as long as the program."""
        array = aligned(array)
        self.kept.append(array)
        return array.ctypes.data

    def memory(self, size):
        """The address of `size` bytes, zeros at first."""
        address = external(0) + self.size
        self.size += -(-size // BYTES) * BYTES
        return address

    def maps(self, height, width, channels, border=0, half=False):
        """New Maps in memory, zeros at first; half: in bfloat16."""
        pixel = (BYTES // 2 if half else BYTES) * blocks_of(channels)
        row = pixel * (width + 2 * border)
        address = self.memory(row * (height + 2 * border)) + border * (row + pixel)
        return Maps(address, height, width, channels, row, pixel)

    def add(self, kind, **fields):
        """Add a step of `kind`; fields by their names."""
        step = {"part": self.part, Field.KIND: kind, Field.CHAIN: 0}
        step |= {Field[name]: value for name, value in fields.items()}
        self.steps.append(step)
        return step

    def _chunks(self, step, height, width, blocks):
        if min(height, width) < 1:
            raise ValueError(f"the images are too small: a layer would give maps of {height}x{width}")
        rows, part = -(-height // _ROWS_APART), blocks
        if height <= _ROWS_APART:
            rows, part = height, GROUP if step[Field.KIND] == Kind.LOOKUP else _CHANNELS_APART
        parts = -(-blocks // part)
        step |= {Field.HEIGHT: height, Field.WIDTH: width, Field.ROWS: rows}
        step |= {Field.BLOCKS: blocks, Field.PARTS: parts, Field.PART_BLOCKS: part}
        step[Field.CHUNKS] = -(-height // rows) * parts

    def _finishing(self, step, size, table, residual, out):
        """Fill in what follows the sums of a step: the output's Maps, `out` or new ones of `size` (H, W)."""
        for maps in (residual, out):
            if maps is not None and (maps.height, maps.width) != tuple(size):
                raise ValueError(f"maps of {maps.height}x{maps.width} do not fit those of {size[0]}x{size[1]}")
        channels, plain = table.shape[1], np.array_equal(table[_PLAIN], neutral(table.shape[1])[_PLAIN])
        table = fill(table, channels)
        self._chunks(step, *size, blocks_of(channels))
        out = out or self.maps(*size, channels)
        nothing = {Field.RESIDUAL: self.keep(np.zeros(table.shape[1], np.float32))}
        step |= residual.fields("RESIDUAL") if residual else nothing
        step |= {Field.FINISH: self.keep(table), Field.FINISH_ROW: table.strides[0]} | out.fields("OUT")
        step |= {Field.PLAIN: int(plain), "table": table, "channels": channels}
        return replace(out, channels=channels, step=step)

    def count(self, signs, conv, table, residual=None, out=None):
        """The binary convolution of `signs` by `conv`, `Filters` or an XnorConv2d, and what follows it."""
        kernel, sizes = _outputs(signs, conv)
        if _by_tables(conv):
            offsets = _offsets(kernel, conv.padding, signs, 2 * np.arange(-(-conv.in_channels // 4)))
            weights = nibbles(conv.blocks.numpy(), kernel, conv.in_channels)
            step = self._windows(Kind.LOOKUP, signs, conv.stride, threes(offsets, 0)[:, 0], weights)
            step |= {Field.TABLE: self.keep(DIFFERING_BITS), Field.NIBBLES_APART: signs.pixel if kernel == 3 else 2}
        else:
            offsets = _offsets(kernel, conv.padding, signs, 8 * np.arange(-(-conv.in_channels // 64)))
            step = self._windows(Kind.COUNT, signs, conv.stride, offsets.reshape(-1), conv.blocks.numpy())
        self._bases(step, (signs.height, signs.width), sizes, kernel, conv)
        return self._finishing(step, sizes, table, residual, out)

    def _bases(self, step, sizes_in, sizes, kernel, conv):
        """The sums without a differing bit, by which taps of a window lie within the image."""
        cases, places = [], []
        for size, outputs in zip(sizes_in, sizes):
            at = np.arange(outputs)[:, None] * conv.stride - conv.padding + np.arange(kernel)
            inside, place = np.unique((at >= 0) & (at < size), axis=0, return_inverse=True)
            cases.append(inside)
            places.append(place.reshape(-1))
        inside = (cases[0][:, None, :, None] & cases[1][None, :, None, :]).reshape(-1, kernel * kernel)
        counts = conv.tap_counts.numpy()
        base = inside.sum(1, keepdims=True) * conv.in_channels + 2 * (~inside).astype(np.float32) @ counts
        wide = np.zeros((len(base), blocks_of(counts.shape[1]) * LANES), np.float32)
        wide[:, : counts.shape[1]] = base
        rows, columns = places[0] * len(cases[1]) * wide.strides[0], places[1] * wide.strides[0]
        step |= {Field.BASE: self.keep(wide), Field.ROW_BASE: self.keep(rows), Field.COLUMN_BASE: self.keep(columns)}

    def dense(self, source, taps, size, table, *, stride=1, residual=None, out=None, kind=Kind.DENSE):
        """A convolution in floating point, and what follows it.

        taps: where they lie, bytes, int64 (taps,) or (blocks, taps), and their weights (blocks, taps, LANES); size:
        (H, W) of the output.
        """
        offsets, weights = taps
        step = self._windows(kind, source, stride, offsets, weights)
        if offsets.ndim == 2:
            step[Field.OFFSETS_BLOCK] = offsets.strides[0]
        return self._finishing(step, size, table, residual, out)

    def _windows(self, kind, source, stride, offsets, weights):
        """Add a step of `kind` over windows of the source, whose taps lie at `offsets`, in bytes."""
        return self.add(
            kind, SOURCE=source.address, SOURCE_ROW=stride * source.row, SOURCE_PIXEL=stride * source.pixel,
            TAPS=offsets.shape[-1], OFFSETS=self.keep(offsets), WEIGHTS=self.keep(weights),
        )  # fmt: skip

    def copy(self, source, table, residual=None, out=None):
        """What follows a convolution, alone."""
        step = self.add(Kind.COPY, **_source(source))
        return self._finishing(step, (source.height, source.width), table, residual, out)

    def signs(self, maps, conv, shift=None):
        """What `count` reads for `conv` of maps + shift >= 0, shift (C,): bits, written with the maps where that is
        still possible, or what PAIRS makes of them."""
        step = maps.step
        if step is None or "table" not in step or Field.BITS in step:
            self.copy(maps, neutral(maps.channels), out=maps)
            self.steps[-1] |= {Field.KIND: Kind.SIGNS, Field.OUT: 0}
            step = self.steps[-1]
        return self._signs(step, shift, conv)

    def shifted_signs(self, maps, conv, shift):
        """The same with a shift that the call brings, maps that are the same everywhere."""
        self.copy(maps, neutral(maps.channels), shift, out=maps)
        self.steps[-1][Field.OUT] = 0
        return self._signs(self.steps[-1], None, conv)

    def _signs(self, step, shift, conv):
        height, width, channels, border = step[Field.HEIGHT], step[Field.WIDTH], step["channels"], conv.padding
        pixel = 2 * blocks_of(channels) if _by_tables(conv) else 8 * -(-channels // 64)
        row = pixel * (width + 2 * border)
        address = self.memory(row * (height + 2 * border + 1) + BYTES) + border * (row + pixel)  # PAIRS reads on
        bits = Maps(address, height, width, channels, row, pixel)
        step["table"][Finish.SHIFT, :channels] = 0 if shift is None else shift
        step |= bits.fields("BITS")
        return self._pairs(bits, conv) if _by_tables(conv) else bits

    def _pairs(self, bits, conv):
        border, (_, width) = conv.padding, _outputs(bits, conv)[1]
        pixel, row = 4 * bits.pixel, 4 * bits.row  # of a byte two nibbles, of a nibble two bytes
        address = self.memory(row * (bits.height + 2 * border) + BYTES) + border * row
        step = self.add(
            Kind.PAIRS, SOURCE=bits.address - border * bits.pixel, SOURCE_ROW=bits.row, OUT=address, OUT_ROW=row,
            SOURCE_PIXEL=conv.stride * bits.pixel if width > 1 else 0,
        )  # fmt: skip
        self._chunks(step, bits.height, -(-bits.row // 8), 1)
        return Maps(address + border * pixel, bits.height, bits.width, bits.channels, row, pixel)

    def forget(self, maps):
        """Only the bits of maps are needed: they are not written."""
        if maps.step is not None and Field.BITS in maps.step:
            maps.step[Field.OUT] = 0

    def round(self, maps):
        """The maps in bfloat16, for `dense`."""
        out = self.maps(maps.height, maps.width, maps.channels, half=True)
        step = self.add(Kind.ROUND, **_source(maps))
        step |= out.fields("OUT")
        self._chunks(step, maps.height, maps.width, blocks_of(maps.channels))
        return out

    def pool(self, source, rows, columns, maximum=False, out=None):
        """Maxima or averages of maps over windows, int64 (H, 2) and (W, 2)."""
        size = len(rows), len(columns)
        out = out or self.maps(*size, source.channels)
        step = self.add(
            Kind.POOL, **_source(source), MAXIMUM=int(maximum), WINDOW_ROWS=self.keep(rows),
            WINDOW_COLUMNS=self.keep(columns),
        )  # fmt: skip
        step |= out.fields("OUT")
        self._chunks(step, *size, blocks_of(source.channels))
        return out

    def image(self, height, width, padding, half=False):
        """The image of the call with a border: (Maps of a plane, bytes to the next). half: bfloat16, channels last."""
        pixel = 6 if half else 4
        row = pixel * (width + 2 * padding)
        plane = row * (height + 2 * padding)
        channel, size = (2, plane) if half else (plane, 3 * plane)
        address = self.memory(size + BYTES)  # the last pair of bfloat16 may reach further
        step = self.add(
            Kind.IMAGE_BF16 if half else Kind.IMAGE, OUT=address + padding * (row + pixel), OUT_ROW=row,
            OUT_PIXEL=pixel, OUT_CHANNEL=channel,
        )  # fmt: skip
        self._chunks(step, height, width, 1)
        return Maps(address, height, width, 3, row, pixel), channel

    def stem(self, maps, columns):
        """Turn the last step, a convolution that made `maps`, into one whose rows are pooled at once.

        columns: windows of the averages, (W', 2). Returns (maxima, averages (H / 2, W', C)), H and W being even.
        """
        step = maps.step
        height, width = maps.height // 2, maps.width // 2
        pooled, tap = (self.maps(height, size, maps.channels) for size in (width, len(columns)))
        self.lines = max(self.lines, 3 * maps.width * BYTES)
        step |= {Field.INNER: step[Field.KIND], Field.KIND: Kind.STEM, Field.INNER_WIDTH: maps.width}
        step |= pooled.fields("POOLED") | tap.fields("TAP") | {Field.TAP_WIDTH: len(columns), Field.OUT_PIXEL: BYTES}
        step[Field.WINDOW_COLUMNS] = self.keep(columns)
        blocks = blocks_of(maps.channels)
        step |= {Field.HEIGHT: height, Field.WIDTH: width, Field.ROWS: -(-height // 2)}
        step |= {Field.PARTS: blocks, Field.PART_BLOCKS: 1}
        step[Field.CHUNKS] = 2 * blocks if height > 1 else blocks
        return pooled, tap

    def chain(self, count):
        """The last `count` steps need of each other the same rows alone, where their chunks are bands of rows."""
        group = self.steps[-count:]
        chunks = {(step[Field.ROWS], step[Field.CHUNKS], step[Field.PARTS]) for step in group}
        if len(chunks) == 1 and group[0][Field.PARTS] == 1:
            for left, step in enumerate(reversed(group)):
                step[Field.CHAIN] = left

    def parts(self):
        """{part: [(first, past the last)] of its steps}; those chained together are of their last one's part."""
        found, first = {}, 0
        for i, step in enumerate(self.steps):
            if step[Field.CHAIN] == 0:
                found.setdefault(step["part"], []).append((first, i + 1))
                first = i + 1
        return found

    def table(self):
        """int64 (steps, len(Field)), with addresses as they are before there is memory."""
        table = np.zeros((len(self.steps), len(Field)), np.int64)
        for row, step in zip(table, self.steps):
            for field, value in step.items():
                if isinstance(field, Field):
                    row[field] = value
        return table


def _source(source):
    return dict(SOURCE=source.address, SOURCE_ROW=source.row, SOURCE_PIXEL=source.pixel)


def _by_tables(conv):
    """Whether a binary convolution is to be LOOKUP, whose sums have 16 bits."""
    return native.has_tables() and len(conv.tap_counts) * conv.in_channels < 1 << 16


def _outputs(source, conv):
    """(kernel, (H, W) of the output) of a binary convolution."""
    kernel = math.isqrt(len(conv.tap_counts))
    return kernel, [(size + 2 * conv.padding - kernel) // conv.stride + 1 for size in (source.height, source.width)]


def _offsets(kernel, padding, maps, within):
    """int64 (kernel, kernel, len(within)): where the taps of a window lie, in bytes."""
    at = np.arange(kernel) - padding
    return at[:, None, None] * maps.row + at[:, None] * maps.pixel + within


class Instance:
    """A program with memory of its own: what one thread executes, or several that share its chunks."""

    def __init__(self, program):
        self.program = program
        self.memory = aligned(np.zeros(program.size, np.uint8))
        self.table = program.table()
        self.externals = []
        flat = self.table.reshape(-1)
        for index in np.flatnonzero(flat >> REGION):
            number, offset = divmod(int(flat[index]), 1 << REGION)
            if number == 1:
                flat[index] = self.memory.ctypes.data + offset
            else:
                self.externals.append((index, number - 2, offset))
        self.flat, self.address, self.own = flat, self.table.ctypes.data, self.arguments()

    def bind(self, *addresses):
        """Say where the arrays of this call lie: addresses[i] is that of `external(i + 1)`."""
        for index, number, offset in self.externals:
            self.flat[index] = addresses[number] + offset

    def arguments(self):
        """What one thread brings: (numbers of a `Call`, their address, memory for lines)."""
        lines = aligned(np.empty(self.program.lines, np.uint8))
        call = np.zeros(len(Call), np.int64)
        call[Call.LINES] = lines.ctypes.data
        return call, call.ctypes.data, lines
