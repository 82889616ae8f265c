"""The layout of maps, sign bits and tables that the compiled kernels and the programs for them share.

Map: float32 (H, W, C) in memory, C filled up to a multiple of LANES with zeros. Sign bits: uint64 words (H, W, words)
along the channels, channel c is bit c % 64 of word c // 64, 1 where x + shift >= 0, and 0 past the last channel; around
them lies a border of zeros where a convolution pads. For LOOKUP a word has 16 bits, and PAIRS makes of the bits, border
included, a uint16 for each nibble (4 bits): (nibble + 16 * the one of the pixel with which it is looked up) * 16, which
is where the table for the two lies.

Program: int64 (steps, len(Field)), one step a row, executed in order. A step makes the output in `chunks` independent
chunks: `rows` rows of the output by one of `parts` parts of its blocks of LANES channels. `chain` further steps need of
the step the same chunk alone, and are done with it by the same thread; all others wait for the whole of it. Addresses
are absolute; steps between rows, pixels and taps are in bytes.
"""

from enum import IntEnum

LANES = 16
"""Channels in a block: those of one 512-bit register of sums. A narrower CPU takes several registers for one."""

GROUP = 4
"""Blocks of LOOKUP whose weights lie side by side, because they are computed at once."""


class Kind(IntEnum):
    """What a step does."""

    COUNT = 0  # binary convolution: differing bits of source and weights, taken from `base`
    LOOKUP = 1  # the same by tables, of what PAIRS made, for CPUs that cannot count the bits of a word at once
    DENSE = 2  # convolution in float32: one chain of fused multiply-adds over the taps, in the order of `offsets`
    COPY = 3  # the source map itself
    BF16 = 4  # convolution of pairs of taps in bfloat16, summed in float32
    STEM = 5  # DENSE or BF16, whose rows are pooled at once: 3x3 maxima of stride 2, and averages over two rows
    POOL = 6  # maxima or averages over windows
    IMAGE = 7  # the image (3, H, W) with a border of zeros
    IMAGE_BF16 = 8  # the same as (H, W, 3), in bfloat16
    SIGNS = 9  # the bits of the source map's signs, with the finish table's SHIFT alone
    ROUND = 10  # the source map in bfloat16
    PAIRS = 11  # sign bits' nibbles, each with that of the pixel SOURCE_PIXEL further; WIDTH counts 8 bytes of bits


class Field(IntEnum):
    """The columns of a program. What no kind names is of kinds that finish: COUNT, LOOKUP, DENSE, COPY, BF16, STEM."""

    KIND = 0
    CHUNKS = 1
    CHAIN = 2
    ROWS = 3
    PARTS = 4
    HEIGHT = 5  # of the output
    WIDTH = 6
    BLOCKS = 7  # of LANES output channels
    SOURCE = 8
    SOURCE_ROW = 9  # from the windows of one output row to those of the next
    SOURCE_PIXEL = 10
    TAPS = 11  # products of one sum: words, LOOKUP: threes of nibbles, or float32 numbers
    OFFSETS = 12  # int64 (taps,): where a tap lies in its window
    OFFSETS_BLOCK = 13  # from one block's offsets to the next: 0 where all have the same
    WEIGHTS = 14  # (blocks, taps, LANES): uint64, float32, pairs of bfloat16; LOOKUP: `modules.inference.bits.nibbles`
    BASE = 15  # COUNT, LOOKUP: float32 (cases, C): the sum where no bit differs, which is smaller at the borders
    ROW_BASE = 16  # int64 (H,) likewise: where a row's cases start
    COLUMN_BASE = 17  # int64 (W,) likewise: where a column's case lies within them
    FINISH = 18  # float32 (len(Finish), C)
    FINISH_ROW = 19
    RESIDUAL = 20
    RESIDUAL_ROW = 21
    RESIDUAL_PIXEL = 22
    OUT = 23  # 0: no map is written
    OUT_ROW = 24
    OUT_PIXEL = 25
    OUT_CHANNEL = 26  # IMAGE
    BITS = 27  # 0: no sign bits are written; the first pixel within the border
    BITS_ROW = 28
    BITS_PIXEL = 29
    MAXIMUM = 30  # POOL: whether it takes maxima
    WINDOW_ROWS = 31  # POOL: int64 (H, 2): first row of a window, and the row after its last
    WINDOW_COLUMNS = 32  # POOL, and STEM for its averages: int64 (W, 2)
    INNER = 33  # STEM: kind of its convolution
    INNER_WIDTH = 34  # STEM: width of the convolution's maps; OUT_PIXEL is that of its lines
    POOLED = 35  # STEM: map (H, W, C) of the maxima
    POOLED_ROW = 36
    POOLED_PIXEL = 37
    TAP = 38  # STEM: map (H, TAP_WIDTH, C) of the averages over two rows
    TAP_ROW = 39
    TAP_PIXEL = 40
    TAP_WIDTH = 41
    TABLE = 42  # LOOKUP: `modules.inference.bits.DIFFERING_BITS`
    PART_BLOCKS = 43  # blocks of a part; the last part has what is left
    NIBBLES_APART = 44  # LOOKUP: from one nibble of a tap to the next
    PLAIN = 45  # whether SCALE, BEFORE, AFTER, and what multiplies the residual and is added to it, change nothing


class Finish(IntEnum):
    """Rows of the table of what follows a sum s, with the training graph's rounding, in float32 but for `fma`:

    y = fma(s * SCALE, ALPHA, BETA) + fma(residual, RESIDUAL_ALPHA, RESIDUAL_BETA) + BEFORE; y = (y * POSITIVE if y > 0
    else y * NEGATIVE) + AFTER, no less than LOW and no more than HIGH; the bit of its sign is y + SHIFT >= 0.
    """

    SCALE = 0
    ALPHA = 1
    BETA = 2
    RESIDUAL_ALPHA = 3
    RESIDUAL_BETA = 4
    BEFORE = 5
    POSITIVE = 6
    NEGATIVE = 7
    AFTER = 8
    LOW = 9
    HIGH = 10
    SHIFT = 11


class Call(IntEnum):
    """int64 numbers of one thread's call: the image's address and its steps in bytes, and memory for lines of maps."""

    IMAGE = 0
    IMAGE_CHANNEL = 1
    IMAGE_ROW = 2
    IMAGE_PIXEL = 3
    LINES = 4
