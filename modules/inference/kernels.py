"""Kernels of 1-bit inference, compiled by numba into one function, `run`, that executes a whole program.

`modules.inference.layout` describes maps, sign bits and programs. No kernel allocates, calls Python, or knows a
network. What is fast is written in LLVM's own vectors, because its vectoriser would keep the sums in memory.
"""

import functools
import itertools

from llvmlite import binding, ir
from numba import intp, njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from modules.inference.layout import GROUP, LANES, Call, Field, Finish, Kind

_i8, _i16, _i32, _i64, _float = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.IntType(64), ir.FloatType()
_words = ir.VectorType(_i64, LANES // 2)
_floats, _ints = ir.VectorType(_float, LANES), ir.VectorType(_i32, LANES)
_half = ir.VectorType(_float, LANES // 2)
_FIELDS = len(Field)
_BYTES = 4 * LANES
_bytes, _shorts = ir.VectorType(_i8, 2 * LANES), ir.VectorType(_i16, LANES)
_eight = ir.VectorType(_i8, 8)
_TAP_BYTES = 3 * 2 * LANES
"""Weights of one tap of LOOKUP, of two blocks."""
_FULL = 21
"""How many taps of LOOKUP a byte has room for, each of which counts up to 12 bits."""
HAS_TABLES = bool(binding.get_host_cpu_features().get("avx2"))
"""Whether the CPU looks up 32 bytes in tables at once. Elsewhere LOOKUP is not to be called."""
HAS_BF16 = bool(binding.get_host_cpu_features().get("avx512bf16"))
"""Whether the CPU multiplies numbers in bfloat16."""
_WIDE = bool(binding.get_host_cpu_features().get("avx512f"))
"""Whether there are 32 registers for a block of sums each. Elsewhere 16 registers hold half a block each."""
# Pixels of the tiles, in falling order: their sums, and what is added to them, fit into the registers.
_COUNTS, _SUMS, _PAIRS = ((7, 4, 1), (7, 4, 1), (7, 4, 1)) if _WIDE else ((2, 1), (6, 3, 1), (3, 1))
_FIXED_SUMS = 14 if _WIDE else 6
_BF16_STEM = 14
binding.initialize_native_asmparser()


def _constant(vector, number):
    return ir.Constant(vector, [number] * vector.count)


def _whole(number):
    return ir.Constant(_i64, number)


def _llvm(builder, name, *values):
    """Call of one of LLVM's own functions, for vectors of one type."""
    vector = values[0].type
    signature = ir.FunctionType(vector, [vector] * len(values))
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), values)


def _fma(builder, *values):
    return _llvm(builder, "llvm.fma.v16f32", *values)


def _load(builder, address, kind, offset=0):
    """The value of type `kind` at the address, an i64, aligned to 2 bytes."""
    place = builder.add(address, offset if isinstance(offset, ir.Value) else _whole(offset))
    value = builder.load(builder.inttoptr(place, kind.as_pointer()))
    value.align = 2
    return value


def _store(builder, value, address):
    builder.store(value, builder.inttoptr(address, value.type.as_pointer())).align = 2


def _broadcast(builder, value, vector):
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, value, ir.Constant(_i32, 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(_i32, vector.count), None))


class _Step:
    """The fields of a step, read as they are needed."""

    def __init__(self, builder, address):
        self.builder, self.address = builder, address

    def __getitem__(self, field):
        return _load(self.builder, self.address, _i64, 8 * field)

    def times(self, field, number):
        return self.builder.mul(self[field], _whole(number))


def _accumulate(builder, step, pixels, place, element, vectors, add):
    """Sums over the taps of windows: [pixel][vector]. add(total, x, weight) is one step of a sum.

    pixels: how many windows, and the bytes from one to the next if they are known: then no register holds them.

    place: addresses of window, weights and offsets. element: type of a tap of the window. vectors: of each the weights'
    type, and where they lie behind a tap's first ones.
    """
    pixels, apart = pixels
    window, weights, offsets = place
    zeros = [ir.Constant(_floats if vector is _ints else vector, None) for vector, _ in vectors]
    totals = [[cgutils.alloca_once_value(builder, zero) for zero in zeros] for _ in range(pixels)]
    windows = [
        builder.add(window, _whole(apart * p) if apart else step.times(Field.SOURCE_PIXEL, p)) for p in range(pixels)
    ]
    size = 2 * _BYTES if vectors[0][0] is _words else _BYTES
    # What there is less of lies in registers: the weights of a tap, or the numbers that they are multiplied with.
    order = sorted(itertools.product(range(pixels), range(len(vectors))), key=lambda at: at[pixels < len(vectors)])
    with cgutils.for_range(builder, step[Field.TAPS]) as tap:
        offset = _load(builder, builder.add(offsets, builder.mul(tap.index, _whole(8))), _i64)
        start, numbers, block = builder.add(weights, builder.mul(tap.index, _whole(size))), {}, {}
        for p, v in order:
            vector, at = vectors[v]
            if v not in block:
                block[v] = _load(builder, builder.add(start, at), vector)
            if p not in numbers:
                numbers[p] = _broadcast(builder, _load(builder, windows[p], element, offset), vector)
            builder.store(add(builder.load(totals[p][v]), numbers[p], block[v]), totals[p][v])
    return [[builder.load(total) for total in of_pixel] for of_pixel in totals]


def _from_base(builder, counts, base):
    """base - 2 * counts of differing bits, both [block][pixel]: vectors of float32."""
    address, columns = base

    def sums(block, p, count):
        case = builder.add(_load(builder, columns, _i64, 8 * p), _whole(_BYTES * block))
        products = _load(builder, address, _floats, case)
        return _fma(builder, builder.sitofp(count, _floats), _constant(_floats, -2.0), products)

    return [[sums(block, p, count) for p, count in enumerate(of_block)] for block, of_block in enumerate(counts)]


def _count_sums(builder, step, pixels, place, base):
    """base - 2 * differing bits: [block][pixel], vectors of float32."""

    def add(total, x, weight):
        return builder.add(total, _llvm(builder, "llvm.ctpop.v8i64", builder.xor(x, weight)))

    counts, even = [], ir.Constant(_ints, list(range(0, 2 * LANES, 2)))
    for totals in _accumulate(builder, step, pixels, place, _i64, [(_words, _whole(at)) for at in (0, _BYTES)], add):
        counts.append(builder.shuffle_vector(*(builder.bitcast(total, _ints) for total in totals), even))
    return _from_base(builder, [counts], base)


def _lookup_sums(builder, step, pixels, place, base, blocks):
    """The same, [block][pixel]: nibbles of two pixels choose a table, in which two blocks' weights are looked up.

    A byte that was found counts one pixel's bits in its low half and the other's in its high half, which has room for
    the three nibbles of a tap.
    """
    window, weights, offsets = place
    pairs, couples = range(-(-pixels[0] // 2)), range(-(-blocks // 2))
    windows = [builder.add(window, step.times(Field.SOURCE_PIXEL, 2 * p)) for p in pairs]
    totals = [[_zeros(builder, _shorts, 4) for _ in pairs] for _ in couples]
    counts = [[_zeros(builder, _bytes, 2) for _ in pairs] for _ in couples]
    taps, full, tables = step[Field.TAPS], _whole(_FULL), (step[Field.TABLE], step[Field.NIBBLES_APART])
    with cgutils.for_range(builder, builder.udiv(builder.add(taps, _whole(_FULL - 1)), full)) as group:
        first = builder.mul(group.index, full)
        left = builder.sub(taps, first)
        with cgutils.for_range(builder, builder.select(builder.icmp_signed("<", left, full), left, full)) as tap:
            _look_up(builder, tables, (windows, weights, offsets), builder.add(first, tap.index), counts)
        for total, count in zip(itertools.chain(*totals), itertools.chain(*counts)):
            _add_counts(builder, total, count)

    def sums(block, p):
        return builder.zext(builder.load(totals[block // 2][p // 2][2 * (block % 2) + p % 2]), _ints)

    return _from_base(builder, [[sums(block, p) for p in range(pixels[0])] for block in range(blocks)], base)


def _zeros(builder, vector, number):
    return [cgutils.alloca_once_value(builder, ir.Constant(vector, None)) for _ in range(number)]


def _look_up(builder, tables, place, tap, counts):
    """Adds what is found for a tap to the counts, [two blocks][two pixels].

    Of each there are two: bytes that were found, and the same moved down by half a byte, where the upper byte's low
    half comes into the lower byte's high half.
    """
    windows, weights, offsets = place
    first, apart = tables
    offset = _load(builder, builder.add(offsets, builder.mul(tap, _whole(8))), _i64)
    start = builder.add(weights, builder.mul(tap, _whole(GROUP // 2 * _TAP_BYTES)))
    whole = ir.Constant(ir.VectorType(_i32, 2 * LANES), 2 * list(range(LANES)))
    for p, window in enumerate(windows):
        chosen = []
        for nibble in range(3):
            at = builder.add(builder.add(window, offset), builder.mul(apart, _whole(nibble)))
            table = builder.add(first, builder.zext(_load(builder, at, _i16), _i64))
            table = _load(builder, table, ir.VectorType(_i8, LANES))
            chosen.append(builder.shuffle_vector(table, table, whole))
        for couple, of_couple in enumerate(counts):
            found = _found(builder, chosen, start, _TAP_BYTES * couple)
            moved = builder.lshr(builder.bitcast(found, _shorts), _constant(_shorts, 4))
            for count, more in zip(of_couple[p], (found, builder.bitcast(moved, _bytes))):
                builder.store(builder.add(builder.load(count), more), count)


def _found(builder, tables, start, offset):
    """The sum of what three tables say of the weights, which are read where they lie.

    One asm holds all of it: LLVM would add in another order, and run out of registers.
    """
    if not HAS_TABLES:
        return _load(builder, start, _bytes, offset)
    signature = ir.FunctionType(_bytes, [*[_bytes] * 3, _i64])
    first, second, third = (f"vpshufb {offset + 2 * LANES * i}($4), ${1 + i}, " for i in range(3))
    add = "vpaddb %ymm15, $0, $0; "
    look_up = f"{first}$0; {second}%ymm15; {add}{third}%ymm15; {add}"
    return builder.call(ir.InlineAsm(signature, look_up, "=&x,x,x,x,r,~{xmm15}"), [*tables, start])


def _add_counts(builder, totals, counts):
    """Adds the counts of two pixels and two blocks to their totals, [2 * block + pixel], and makes the counts zero.

    With a to d what is to be added to the four totals, two bytes of `found` hold a + 16 b and c + 16 d, and those of
    `moved` b + 16 c and d, all modulo 256: so d gives c, c gives b, and b gives a.
    """
    found, moved = (builder.bitcast(builder.load(count), _shorts) for count in counts)
    byte, half = _constant(_shorts, 255), _constant(_shorts, 4)

    def without(both, known):
        return builder.and_(builder.sub(both, builder.shl(known, half)), byte)

    last = builder.lshr(moved, _constant(_shorts, 8))
    third = without(builder.lshr(found, _constant(_shorts, 8)), last)
    second = without(moved, third)
    for total, more in zip(totals, (without(found, second), second, third, last)):
        builder.store(builder.add(builder.load(total), more), total)
    for count in counts:
        builder.store(ir.Constant(_bytes, None), count)


def _dense_sums(builder, step, pixels, place, base, blocks=1):
    """Chains of fused multiply-adds: [block][pixel]. Half a block is summed where a register holds no more."""
    part = _floats if _WIDE else _half
    parts = LANES // part.count

    def add(total, x, weight):
        return _llvm(builder, f"llvm.fma.v{part.count}f32", x, weight, total)

    beside = [step.times(Field.TAPS, _BYTES * block) for block in range(blocks)]
    vectors = [(part, builder.add(block, _whole(4 * part.count * i))) for block in beside for i in range(parts)]
    sums = list(zip(*_accumulate(builder, step, pixels, place, _float, vectors, add)))
    if _WIDE:
        return sums
    whole = ir.Constant(_ints, list(range(LANES)))
    return [
        [builder.shuffle_vector(low, high, whole) for low, high in zip(*halves)]
        for halves in zip(sums[::2], sums[1::2])
    ]


def _bf16_sums(builder, step, pixels, place, base):
    """Each tap is a pair of products. Without the instruction for it this is slow, and good for tests alone."""
    signature = ir.FunctionType(_floats, [_floats, _ints, _ints])
    product = ir.InlineAsm(signature, "vdpbf16ps $3, $2, $0", "=v,0,v,v")

    def add(total, x, weight):
        if HAS_BF16:
            return builder.call(product, [total, x, weight])
        for part in (_second, _first):
            total = _fma(builder, part(builder, x), part(builder, weight), total)
        return total

    return list(zip(*_accumulate(builder, step, pixels, place, _i32, [(_ints, _whole(0))], add)))


def _first(builder, pairs):
    """The first numbers of pairs of bfloat16, as float32."""
    return builder.bitcast(builder.shl(pairs, _constant(_ints, 16)), _floats)


def _second(builder, pairs):
    return builder.bitcast(builder.and_(pairs, _constant(_ints, -1 << 16)), _floats)


def _copied(builder, step, pixels, place, base):
    return [[_load(builder, place[0], _floats, step.times(Field.SOURCE_PIXEL, p)) for p in range(pixels[0])]]


def _activated(builder, row, y, added, plain):
    """The sums y of a pixel with what follows them, before they are limited; plain: see Field.PLAIN."""
    if not plain:
        y = builder.fmul(y, row(Finish.SCALE))
        added = _fma(builder, added, row(Finish.RESIDUAL_ALPHA), row(Finish.RESIDUAL_BETA))
    y = builder.fadd(_fma(builder, y, row(Finish.ALPHA), row(Finish.BETA)), added)
    if not plain:
        y = builder.fadd(y, row(Finish.BEFORE))
    positive = builder.fcmp_ordered(">", y, _constant(_floats, 0.0))
    y = builder.fmul(y, builder.select(positive, row(Finish.POSITIVE), row(Finish.NEGATIVE)))
    return y if plain else builder.fadd(y, row(Finish.AFTER))


def _finish(builder, step, row, sums, residual, out, bits, block):
    """What follows the sums of each pixel, and where it goes; see `modules.inference.layout.Finish`.

    row(name): a row of the block's table. block: which one it is, of those whose first one the addresses are of.
    """
    beside = _whole(_BYTES * block)

    def present(address):
        return builder.icmp_unsigned("!=", address, _whole(0))

    def added(p):
        return _load(builder, residual, _floats, builder.add(step.times(Field.RESIDUAL_PIXEL, p), beside))

    finished, values = [cgutils.alloca_once(builder, _floats) for _ in sums], []
    with builder.if_else(present(step[Field.PLAIN])) as branches:
        for branch, plain in zip(branches, (True, False)):
            with branch:
                for p, y in enumerate(sums):
                    builder.store(_activated(builder, row, y, added(p), plain), finished[p])
    for y in map(builder.load, finished):
        y = builder.select(builder.fcmp_ordered("<", y, row(Finish.LOW)), row(Finish.LOW), y)
        values.append(builder.select(builder.fcmp_ordered(">", y, row(Finish.HIGH)), row(Finish.HIGH), y))
    with builder.if_then(present(out)):
        for p, y in enumerate(values):
            _store(builder, y, builder.add(builder.add(out, step.times(Field.OUT_PIXEL, p)), beside))
    with builder.if_then(present(bits)):
        for p, y in enumerate(values):
            shifted = builder.fadd(y, row(Finish.SHIFT))
            signs = builder.fcmp_ordered(">=", shifted, _constant(_floats, 0.0))
            word = builder.bitcast(signs, _i16)
            _store(builder, word, builder.add(builder.add(bits, step.times(Field.BITS_PIXEL, p)), _whole(2 * block)))


def _row(builder, step, table, name):
    return _load(builder, builder.add(table, step.times(Field.FINISH_ROW, name)), _floats)


def _tile(builder, sums_of, pixels, apart):
    """A function of its own: `pixels` neighbouring pixels of a block of output channels, or several, from the sums to
    the output. Its arguments are those of `_tiles`' kernel after `left`."""
    signature = ir.FunctionType(ir.VoidType(), [_i64] * 10)
    function = ir.Function(builder.module, signature, builder.module.get_unique_name("tile"))
    function.linkage = "internal"
    function.attributes.add("noinline")
    builder = ir.IRBuilder(function.append_basic_block())
    address, window, weights, offsets, base, columns, finish, residual, out, bits = function.args
    step = _Step(builder, address)
    sums = sums_of(builder, step, (pixels, apart), (window, weights, offsets), (base, columns))
    for block, of_block in enumerate(sums):
        table = builder.add(finish, _whole(_BYTES * block))
        row = functools.partial(_row, builder, step, table)
        _finish(builder, step, row, of_block, residual, out, bits, block)
    builder.ret_void()
    return function


def _choose(builder, left, sizes, call):
    """call(size) of the first of `sizes` that is not more than `left`, or of the last of them."""
    size, *smaller = sizes
    if not smaller:
        return call(size)
    fits = builder.icmp_signed(">=", left, _whole(size))
    if 2 * smaller[0] == size + 1:  # so many pixels take two equal tiles
        fits = builder.and_(fits, builder.icmp_signed("!=", left, _whole(size + 1)))
    with builder.if_else(fits) as (yes, no):
        with yes:
            call(size)
        with no:
            _choose(builder, left, smaller, call)


def _tiles(sums_of, sizes, apart=None):
    """Kernel: the next tile of a line with `left` pixels; returns how many pixels it has.

    sizes: how many pixels a tile may have, from the most on; the last is taken where none before fits. apart:
    SOURCE_PIXEL, if the kernel is for one value of it.

    Its other arguments are addresses: of the step; of the first window, the first block's weights and offsets; of its
    base and of the first pixel's entry in COLUMN_BASE; of its part of the finish table; of the first pixel's residual,
    output and bits, the last two 0 if there are none.
    """

    @intrinsic
    def kernel(typing_context, left, step, window, weights, offsets, base, columns, finish, residual, out, bits):
        def codegen(context, builder, signature, args):
            left, *at = args
            taken = cgutils.alloca_once(builder, _i64)

            def call(size):
                builder.call(_tile(builder, sums_of, size, apart), at)
                builder.store(_whole(size), taken)

            _choose(builder, left, sizes, call)
            return builder.load(taken)

        return types.intp(*[types.intp] * 11), codegen

    return kernel


def _pooling(mean):
    """Kernel: the averages, or else the maxima, of one block of channels over a window, from address to address."""

    @intrinsic
    def kernel(typing_context, source, row_step, pixel_step, rows, columns, out):
        def codegen(context, builder, signature, args):
            source, row_step, pixel_step, rows, columns, out = args
            start = ir.Constant(_floats, None) if mean else _constant(_floats, float("-inf"))
            total = cgutils.alloca_once_value(builder, start)
            with cgutils.for_range(builder, rows) as row:
                line = builder.add(source, builder.mul(row.index, row_step))
                with cgutils.for_range(builder, columns) as column:
                    x = _load(builder, builder.add(line, builder.mul(column.index, pixel_step)), _floats)
                    known = builder.load(total)
                    larger = builder.select(builder.fcmp_ordered(">", known, x), known, x)
                    builder.store(builder.fadd(known, x) if mean else larger, total)
            result = builder.load(total)
            if mean:
                count = builder.sitofp(builder.mul(rows, columns), _float)
                result = builder.fdiv(result, _broadcast(builder, count, _floats))
            _store(builder, result, out)
            return context.get_dummy_value()

        return types.void(*[types.intp] * 6), codegen

    return kernel


_mean, _maximum = _pooling(True), _pooling(False)


@intrinsic
def _maxima_3x3(typing_context, lines, line_step, pixels, out, out_step):
    """Maxima of one block of channels over three lines and three columns, every second column, from its second on."""

    def codegen(context, builder, signature, args):
        lines, line_step, pixels, out, out_step = args
        with cgutils.for_range(builder, pixels) as pixel:
            highest = None
            for row, column in itertools.product(range(3), range(3)):
                at = builder.add(lines, builder.mul(line_step, _whole(row)))
                at = builder.add(at, builder.mul(pixel.index, _whole(2 * _BYTES)))
                x = _load(builder, at, _floats, _BYTES * column)
                larger = highest and builder.fcmp_ordered(">", highest, x)
                highest = builder.select(larger, highest, x) if highest else x
            _store(builder, highest, builder.add(out, builder.mul(pixel.index, out_step)))
        return context.get_dummy_value()

    return types.void(*[types.intp] * 5), codegen


@intrinsic
def _sign_block(typing_context, source, shift, bits):
    """The bits of the signs of one block of channels, and of its shift."""

    def codegen(context, builder, signature, args):
        source, shift, bits = args
        shifted = builder.fadd(_load(builder, source, _floats), _load(builder, shift, _floats))
        signs = builder.fcmp_ordered(">=", shifted, _constant(_floats, 0.0))
        _store(builder, builder.bitcast(signs, _i16), bits)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp, types.intp), codegen


@intrinsic
def _pair_nibbles(typing_context, source, apart, out):
    """The nibbles of 8 bytes of sign bits, each with the one so many bytes further: where their tables lie."""

    def codegen(context, builder, signature, args):
        source, apart, out = args
        first, second = (_load(builder, at, _eight) for at in (source, builder.add(source, apart)))
        low, high, half = (_constant(_eight, number) for number in (15, 240, 4))
        lows = builder.or_(builder.and_(first, low), builder.shl(second, half))
        highs = builder.or_(builder.lshr(first, half), builder.and_(second, high))
        order = ir.Constant(_ints, [8 * (i % 2) + i // 2 for i in range(LANES)])
        pairs = builder.zext(builder.shuffle_vector(lows, highs, order), _shorts)
        _store(builder, builder.shl(pairs, _constant(_shorts, 4)), out)
        return context.get_dummy_value()

    return types.void(*[types.intp] * 3), codegen


@intrinsic
def get(typing_context, table, index):
    """The int64 at `index` of a table, from its address: fields of a step, entries of its lists."""

    def codegen(context, builder, signature, args):
        return builder.load(builder.gep(builder.inttoptr(args[0], _i64.as_pointer()), [args[1]]))

    return types.intp(types.intp, types.intp), codegen


def _copying(numbers):
    """Kernel: so many float32 at `source` are stored at `out`."""

    @intrinsic
    def kernel(typing_context, source, out):
        def codegen(context, builder, signature, args):
            _store(builder, _load(builder, args[0], ir.VectorType(_float, numbers)), args[1])
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), codegen

    return kernel


def _rounding(numbers):
    """Kernel: so many float32 at `source` are stored at `out` as the nearest bfloat16, the even one of two as near."""
    words, halves = ir.VectorType(_i32, numbers), ir.VectorType(_i16, numbers)

    @intrinsic
    def kernel(typing_context, source, out):
        def codegen(context, builder, signature, args):
            word, sixteen = _load(builder, args[0], words), _constant(words, 16)
            odd = builder.and_(builder.lshr(word, sixteen), _constant(words, 1))
            word = builder.add(builder.add(word, _constant(words, 0x7FFF)), odd)
            _store(builder, builder.trunc(builder.lshr(word, sixteen), halves), args[1])
            return context.get_dummy_value()

        return types.void(types.intp, types.intp), codegen

    return kernel


_copy_number, _copy_block = _copying(1), _copying(LANES)
_round_number, _round_block = _rounding(1), _rounding(LANES)


@intrinsic
def _fill_lowest(typing_context, out, pixels):
    """Minus infinity in one block of channels of all pixels of a line."""

    def codegen(context, builder, signature, args):
        with cgutils.for_range(builder, args[1]) as pixel:
            place = builder.add(args[0], builder.mul(pixel.index, _whole(_BYTES)))
            _store(builder, _constant(_floats, float("-inf")), place)
        return context.get_dummy_value()

    return types.void(types.intp, types.intp), codegen


@intrinsic
def _claim(typing_context, address):
    """The number at the address, which goes up by one: each thread gets another."""

    def codegen(context, builder, signature, args):
        place = builder.inttoptr(args[0], _i64.as_pointer())
        return builder.atomic_rmw("add", place, _whole(1), "seq_cst")

    return types.intp(types.intp), codegen


@intrinsic
def _read(typing_context, address):
    """The number at the address, which other threads change; a short rest comes with it."""

    def codegen(context, builder, signature, args):
        if binding.get_process_triple().startswith(("x86_64", "i686")):
            builder.asm(ir.FunctionType(ir.VoidType(), []), "pause", "", [], True)
        return builder.load_atomic(builder.inttoptr(args[0], _i64.as_pointer()), "acquire", 8)

    return types.intp(types.intp), codegen


OPTIONS = {"nogil": True, "error_model": "numpy", "_nrt": False, "no_cpython_wrapper": True, "no_cfunc_wrapper": True}
_kernel = njit(**OPTIONS)
_inlined = njit(inline="always", **OPTIONS)
"""For what calls much, and is called in one place: what a function calls, numba compiles again with each caller."""

_count = _tiles(_count_sums, _COUNTS)
_lookup_group, _lookup_two, _lookup_one = (
    _tiles(functools.partial(_lookup_sums, blocks=blocks), sizes)
    for blocks, sizes in ((GROUP, (4, 3, 2, 1)), (2, (4, 2, 1)), (1, (4, 2, 1)))
)
_dense_pair = _tiles(functools.partial(_dense_sums, blocks=2), _PAIRS)
_dense_near, _dense_next = (_tiles(_dense_sums, (_FIXED_SUMS,), apart) for apart in (8, 4))
_few_dense = _tiles(_dense_sums, _SUMS)
_bf16_stem = _tiles(_bf16_sums, (_BF16_STEM,), 12)
_few_bf16 = _tiles(_bf16_sums, (7, 1))
_copy = _tiles(_copied, (4, 1))


@_kernel
def _dense(left, blocks, pixel, at):
    """The next tile of DENSE; pixel: SOURCE_PIXEL. `at`: the tile's arguments."""
    if blocks == 2:
        return _dense_pair(left, *at)
    if left >= _FIXED_SUMS and pixel == 8:
        return _dense_near(left, *at)
    if left >= _FIXED_SUMS and pixel == 4:
        return _dense_next(left, *at)
    return _few_dense(left, *at)


@_kernel
def _bf16(left, pixel, at):
    """The next tile of BF16."""
    if left >= _BF16_STEM and pixel == 12:
        return _bf16_stem(left, *at)
    return _few_bf16(left, *at)


@_kernel
def _line(kind, blocks, step, window, weights, offsets, base, columns, finish, residual, out, bits, width):
    """A line of `width` output pixels of so many blocks of channels."""
    x, pixel = 0, get(step, Field.SOURCE_PIXEL)
    while x < width:
        r = residual + x * get(step, Field.RESIDUAL_PIXEL)
        o = out + x * get(step, Field.OUT_PIXEL) if out else 0
        b = bits + x * get(step, Field.BITS_PIXEL) if bits else 0
        at = (step, window + x * pixel, weights, offsets, base, columns + 8 * x, finish, r, o, b)
        if kind == Kind.COUNT:
            x += _count(width - x, *at)
        elif kind == Kind.LOOKUP:
            if blocks == GROUP:
                x += _lookup_group(width - x, *at)
            else:
                x += _lookup_two(width - x, *at) if blocks == 2 else _lookup_one(width - x, *at)
        elif kind == Kind.DENSE:
            x += _dense(width - x, blocks, pixel, at)
        elif kind == Kind.BF16:
            x += _bf16(width - x, pixel, at)
        else:
            x += _copy(width - x, *at)


@_kernel
def _part(step, chunk):
    """(first row, last row, first block, last block) of a chunk."""
    rows, part = divmod(chunk, get(step, Field.PARTS))
    first = rows * get(step, Field.ROWS)
    blocks = get(step, Field.PART_BLOCKS)
    last = min(first + get(step, Field.ROWS), get(step, Field.HEIGHT))
    return first, last, part * blocks, min((part + 1) * blocks, get(step, Field.BLOCKS))


@_kernel
def _together(step, block, end):
    """How many blocks of channels, from `block` on, are computed at once."""
    kind, left = get(step, Field.KIND), end - block
    if kind == Kind.LOOKUP and left >= GROUP:
        return GROUP
    pairs = kind == Kind.LOOKUP or (kind == Kind.DENSE and get(step, Field.OFFSETS_BLOCK) == 0)
    return 2 if pairs and left >= 2 else 1


@_kernel
def _weights(step, block):
    """The address of a block's weights."""
    kind, taps = get(step, Field.KIND), get(step, Field.TAPS)
    if kind == Kind.LOOKUP:
        return get(step, Field.WEIGHTS) + _TAP_BYTES * (GROUP // 2 * taps * (block // GROUP) + block % GROUP // 2)
    return get(step, Field.WEIGHTS) + _BYTES * taps * block * (2 if kind == Kind.COUNT else 1)


@_inlined
def _lines(step, chunk):
    """A chunk of COUNT, LOOKUP, DENSE, COPY or BF16."""
    kind, first, last, block, end = get(step, Field.KIND), *_part(step, chunk)
    counts = kind == Kind.COUNT or kind == Kind.LOOKUP
    while block < end:
        blocks, channel = _together(step, block, end), _BYTES * block
        weights, finish = _weights(step, block), get(step, Field.FINISH) + channel
        offsets = get(step, Field.OFFSETS) + get(step, Field.OFFSETS_BLOCK) * block
        source = get(step, Field.SOURCE) + (channel if kind == Kind.COPY else 0)
        for y in range(first, last):
            base = get(step, Field.BASE) + channel + get(get(step, Field.ROW_BASE), y) if counts else 0
            residual = get(step, Field.RESIDUAL) + channel + get(step, Field.RESIDUAL_ROW) * y
            out = get(step, Field.OUT) + channel + get(step, Field.OUT_ROW) * y if get(step, Field.OUT) else 0
            bits = get(step, Field.BITS) + 2 * block + get(step, Field.BITS_ROW) * y if get(step, Field.BITS) else 0
            window = source + get(step, Field.SOURCE_ROW) * y
            _line(kind, blocks, step, window, weights, offsets, base,
                  get(step, Field.COLUMN_BASE), finish, residual, out, bits, get(step, Field.WIDTH))  # fmt: skip
        block += blocks


@_inlined
def _signs(step, chunk):
    """A chunk of SIGNS or ROUND."""
    first, last, start, end = _part(step, chunk)
    signs = get(step, Field.KIND) == Kind.SIGNS
    shift = get(step, Field.FINISH) + Finish.SHIFT * get(step, Field.FINISH_ROW)
    for y in range(first, last):
        source = get(step, Field.SOURCE) + get(step, Field.SOURCE_ROW) * y
        bits = get(step, Field.BITS) + get(step, Field.BITS_ROW) * y
        out = get(step, Field.OUT) + get(step, Field.OUT_ROW) * y
        for _ in range(get(step, Field.WIDTH)):
            for block in range(start, end):
                if signs:
                    _sign_block(source + _BYTES * block, shift + _BYTES * block, bits + 2 * block)
                else:
                    _round_block(source + _BYTES * block, out + 2 * LANES * block)
            source += get(step, Field.SOURCE_PIXEL)
            bits += get(step, Field.BITS_PIXEL)
            out += get(step, Field.OUT_PIXEL)


@_inlined
def _pair(step, chunk):
    """A chunk of PAIRS."""
    first, last, _, _ = _part(step, chunk)
    for y in range(first, last):
        source = get(step, Field.SOURCE) + get(step, Field.SOURCE_ROW) * y
        out = get(step, Field.OUT) + get(step, Field.OUT_ROW) * y
        for eight in range(get(step, Field.WIDTH)):
            _pair_nibbles(source + 8 * eight, get(step, Field.SOURCE_PIXEL), out + 4 * 8 * eight)


@_kernel
def _pool_line(step, lines, pooled, tap, row):
    """The stem's maxima and averages in row `row`, for one block of channels, from the three lines of its maps."""
    size, pixel = get(step, Field.INNER_WIDTH) * _BYTES, get(step, Field.POOLED_PIXEL)
    _maximum(lines, size, _BYTES, 3, 2, pooled)  # nothing is to the left of the first
    _maxima_3x3(lines + _BYTES, size, get(step, Field.WIDTH) - 1, pooled + pixel, pixel)
    columns = get(step, Field.WINDOW_COLUMNS)
    upper, lower = 2 * row % 3 * size, (2 * row + 1) % 3 * size
    for x in range(get(step, Field.TAP_WIDTH)):
        left, right = get(columns, 2 * x), get(columns, 2 * x + 1)
        source = lines + upper + left * _BYTES
        _mean(source, lower - upper, _BYTES, 2, right - left, tap + x * get(step, Field.TAP_PIXEL))


@_inlined
def _stem(step, chunk, lines):
    """A chunk of STEM. `lines`: memory for three rows of the convolution's maps, one block of channels wide."""
    first, last, start, end = _part(step, chunk)
    width = get(step, Field.INNER_WIDTH)
    for block in range(start, end):
        weights, channel = _weights(step, block), _BYTES * block
        finish = get(step, Field.FINISH) + channel
        if first == 0:
            _fill_lowest(lines + 2 * width * _BYTES, width)  # the row above the first
        for y in range(max(0, 2 * first - 1), 2 * last):
            window, line = get(step, Field.SOURCE) + get(step, Field.SOURCE_ROW) * y, lines + y % 3 * width * _BYTES
            # Without intp, 0 and 1 are types of their own, for which numba would compile the function once more.
            _line(get(step, Field.INNER), intp(1), step, window, weights,
                  get(step, Field.OFFSETS), intp(0), intp(0), finish,
                  get(step, Field.RESIDUAL) + channel, line, intp(0), width)  # fmt: skip
            row = y // 2
            if y % 2 == 1 and row >= first:
                pooled = get(step, Field.POOLED) + get(step, Field.POOLED_ROW) * row + channel
                _pool_line(step, lines, pooled, get(step, Field.TAP) + get(step, Field.TAP_ROW) * row + channel, row)


@_inlined
def _pool(step, chunk):
    """A chunk of POOL."""
    first, last, start, end = _part(step, chunk)
    rows = get(step, Field.WINDOW_ROWS)
    columns = get(step, Field.WINDOW_COLUMNS)
    for y in range(first, last):
        top, bottom = get(rows, 2 * y), get(rows, 2 * y + 1)
        for x in range(get(step, Field.WIDTH)):
            left, right = get(columns, 2 * x), get(columns, 2 * x + 1)
            source = get(step, Field.SOURCE) + top * get(step, Field.SOURCE_ROW) + left * get(step, Field.SOURCE_PIXEL)
            out = get(step, Field.OUT) + y * get(step, Field.OUT_ROW) + x * get(step, Field.OUT_PIXEL)
            row, pixel, maximum = get(step, Field.SOURCE_ROW), get(step, Field.SOURCE_PIXEL), get(step, Field.MAXIMUM)
            for at in range(_BYTES * start, _BYTES * end, _BYTES):
                if maximum:
                    _maximum(source + at, row, pixel, bottom - top, right - left, out + at)
                else:
                    _mean(source + at, row, pixel, bottom - top, right - left, out + at)


@_inlined
def _image(step, chunk, call):
    """A chunk of IMAGE or IMAGE_BF16: rows of all three channels."""
    first, last, _, _ = _part(step, chunk)
    pixel, whole = get(call, Call.IMAGE_PIXEL), get(step, Field.KIND) == Kind.IMAGE
    for channel in range(3):
        for y in range(first, last):
            source = get(call, Call.IMAGE) + channel * get(call, Call.IMAGE_CHANNEL) + y * get(call, Call.IMAGE_ROW)
            out = get(step, Field.OUT) + channel * get(step, Field.OUT_CHANNEL) + y * get(step, Field.OUT_ROW)
            width = get(step, Field.WIDTH)
            blocks = width // LANES if whole and pixel == 4 else 0
            for block in range(blocks):
                _copy_block(source + _BYTES * block, out + _BYTES * block)
            for x in range(LANES * blocks, width):
                if whole:
                    _copy_number(source + x * pixel, out + x * get(step, Field.OUT_PIXEL))
                else:
                    _round_number(source + x * pixel, out + x * get(step, Field.OUT_PIXEL))


@_inlined
def _execute(step, chunk, call):
    """One chunk of one step."""
    kind = get(step, Field.KIND)
    if kind <= Kind.BF16:
        _lines(step, chunk)
    elif kind == Kind.STEM:
        _stem(step, chunk, get(call, Call.LINES))
    elif kind == Kind.POOL:
        _pool(step, chunk)
    elif kind == Kind.SIGNS or kind == Kind.ROUND:
        _signs(step, chunk)
    elif kind == Kind.PAIRS:
        _pair(step, chunk)
    else:
        _image(step, chunk, call)


@_inlined
def _share(step, counter, call):
    """The chunks of a step and those chained to it, alone (counter 0), or what is left of them for this thread."""
    chunks, chunk = get(step, Field.CHUNKS), 0
    while True:
        if counter:
            chunk = _claim(counter)
        if chunk >= chunks:
            return
        for i in range(get(step, Field.CHAIN) + 1):
            _execute(step + 8 * _FIELDS * i, chunk, call)
        if counter:
            _claim(counter + 64)
        chunk += 1


def run(table, first, last, call, counters):
    """Execute the steps from `first` to before `last` of a program; all arguments are intp, three of them addresses.

    table: int64 (steps, len(Field)). call: int64 (len(Call),). counters: 0, or int64 (steps, 16), zeros before the
    first thread calls: then several threads that call at the same time share the chunks, and each returns when no work
    is left. Returns 0.
    """
    i = 0
    while first + i < last:
        step, counter = table + 8 * _FIELDS * (first + i), counters
        if counters:
            counter += 128 * (first + i)
        _share(step, counter, call)
        if counters:
            while _read(counter + 64) < get(step, Field.CHUNKS):
                pass
        i += get(step, Field.CHAIN) + 1
    return 0
