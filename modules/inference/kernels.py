"""Compiled kernels of inference: XOR and popcount in SIMD registers, and the full precision around them. Needs numba.

All maps are (N, H, W, C) in memory. Signs are bits, 1 where x >= 0, in uint64 words along the channels. The interfaces
are `modules.inference.xnor` and `modules.inference.fused`. It is one file because numba's cache notices changes of a
function's own file alone.
"""

import functools
import itertools
import os
import sys
import threading

import numpy as np
from llvmlite import ir
from numba import config, njit, prange, set_num_threads, types
from numba.core import cgutils, event
from numba.extending import intrinsic
from numba.np.ufunc.parallel import _launch_threads

PIXELS = 7
"""Output pixels that share one load of the weights: 14 registers of sums, and all ImageNet sizes are multiples."""
VECTORS = 2
"""512-bit registers of output channels that are summed at a time; a CPU with narrower ones takes several for one."""
COUNT_CHANNELS, DENSE_CHANNELS = 8 * VECTORS, 16 * VECTORS
"""Output channels in a block of weights: 64-bit sums of the binary convolution, 32-bit sums of the dense one."""

NONE, HARDTANH, PRELU = range(3)
SCALE, ALPHA, BETA, RES_ALPHA, RES_BETA, BEFORE, SLOPE, AFTER = range(8)
"""Rows of the table `finish` (8, C_out), what follows the convolution: sums * SCALE * ALPHA + BETA, plus residual *
RES_ALPHA + RES_BETA, then the activation, where PRELU has SLOPE and stands between the shifts BEFORE and AFTER."""

_i32, _i64, _float = ir.IntType(32), ir.IntType(64), ir.FloatType()
_words, _counts = ir.VectorType(_i64, 8), ir.VectorType(_i32, 8)


def _llvm(builder, name, *values):
    """Call of one of LLVM's own functions, for vectors of one type."""
    vector = values[0].type
    signature = ir.FunctionType(vector, [vector] * len(values))
    return builder.call(cgutils.get_or_insert_function(builder.module, signature, name), values)


def _add_differing_bits(builder, total, x, weight):
    return builder.add(total, _llvm(builder, "llvm.ctpop.v8i64", builder.xor(x, weight)))


def _count_as_float(builder, total):
    return builder.sitofp(builder.trunc(total, _counts), ir.VectorType(_float, 8))


def _add_product(builder, total, x, weight):
    return _llvm(builder, "llvm.fma.v16f32", x, weight, total)


def _window_kernel(pixels, vector, accumulate, result):
    """Kernel: sums over `pixels` input windows for a block of VECTORS * lanes output channels, kept in registers.

    Written in LLVM's own vectors, because its vectoriser would keep the sums in memory. accumulate(builder, total, x,
    weight) is one step of a sum, in this order; result(builder, total) is what is stored, a vector of float32.
    The kernel's arguments, all intp: address of the first window; elements from one window to the next, and from one
    row of a window to the next; rows; elements per row; address of the weights (rows, elements per row, channels);
    address of the sums; sums from one pixel to the next.
    """
    element, lanes = vector.element, vector.count

    @intrinsic
    def kernel(typing_context, window, window_step, row_step, rows, row_size, weights, out, out_step):
        def codegen(context, builder, signature, args):
            window, window_step, row_step, rows, row_size, weights, out, out_step = args
            window = builder.inttoptr(window, element.as_pointer())
            weights = builder.inttoptr(weights, vector.as_pointer())
            out = builder.inttoptr(out, _float.as_pointer())

            def times(value, number):
                return builder.mul(value, ir.Constant(_i64, number))

            def vector_at(index):
                load = builder.load(builder.gep(weights, [index]))
                load.align = 4
                return load

            zero = ir.Constant(vector, None)
            totals = [[cgutils.alloca_once_value(builder, zero) for _ in range(VECTORS)] for _ in range(pixels)]
            with cgutils.for_range(builder, rows) as row, cgutils.for_range(builder, row_size) as step:
                first = times(builder.add(builder.mul(row.index, row_size), step.index), VECTORS)
                block = [vector_at(builder.add(first, ir.Constant(_i64, v))) for v in range(VECTORS)]
                start = builder.add(builder.mul(row.index, row_step), step.index)
                for p in range(pixels):
                    place = builder.add(start, times(window_step, p))
                    x = _broadcast(builder, builder.load(builder.gep(window, [place])), vector)
                    for total, weight in zip(totals[p], block):
                        builder.store(accumulate(builder, builder.load(total), x, weight), total)
            for p in range(pixels):
                for v, total in enumerate(totals[p]):
                    place = builder.add(times(out_step, p), ir.Constant(_i64, v * lanes))
                    value = result(builder, builder.load(total))
                    target = builder.bitcast(builder.gep(out, [place]), value.type.as_pointer())
                    builder.store(value, target).align = 4
            return context.get_dummy_value()

        return types.void(*[types.intp] * 8), codegen

    return kernel


def _broadcast(builder, value, vector):
    undefined = ir.Constant(vector, ir.Undefined)
    single = builder.insert_element(undefined, value, ir.Constant(_i32, 0))
    return builder.shuffle_vector(single, undefined, ir.Constant(ir.VectorType(_i32, vector.count), None))


_count_pixels, _count_pixel = (_window_kernel(n, _words, _add_differing_bits, _count_as_float) for n in (PIXELS, 1))
_dense_pixels, _dense_pixel = (
    _window_kernel(n, ir.VectorType(_float, 16), _add_product, lambda builder, total: total) for n in (PIXELS, 1)
)


@intrinsic
def _sign_word(typing_context, values, shifts):
    """uint64 whose bit c is values[c] + shifts[c] >= 0, from the addresses of 64 float32 each."""

    def codegen(context, builder, signature, args):
        vector = ir.VectorType(_float, 64)
        loaded = []
        for address in args:
            load = builder.load(builder.inttoptr(address, vector.as_pointer()))
            load.align = 4
            loaded.append(load)
        signs = builder.fcmp_ordered(">=", builder.fadd(*loaded), ir.Constant(vector, None))
        return builder.bitcast(signs, _i64)

    return types.uint64(types.intp, types.intp), codegen


@intrinsic
def _multiply_add(typing_context, x, factor, term):
    """x * factor + term in float32, rounded once: what torch's BatchNorm computes."""

    def codegen(context, builder, signature, args):
        return builder.fma(*args)

    return types.float32(types.float32, types.float32, types.float32), codegen


@intrinsic
def _finish_pixels(
    typing_context, x, x_step, factor, products, finish, finish_step, residual, residual_step, activation, out,
    out_step, pixels,
):  # fmt: skip
    """`_finish_row` for 16 channels of some pixels, with the rows of `finish` in registers.

    x, products, finish, residual (0 if there is none) and out are addresses of float32, the steps go from one pixel,
    or row of finish, to the next.
    """

    def codegen(context, builder, signature, args):
        x, x_step, factor, products, finish, finish_step, residual, residual_step, activation, out, out_step, pixels = (
            args
        )
        vector = ir.VectorType(_float, 16)
        x, products, finish, addend, out = (
            builder.inttoptr(address, _float.as_pointer()) for address in (x, products, finish, residual, out)
        )

        def place(base, index, step):
            return builder.bitcast(builder.gep(base, [builder.mul(index, step)]), vector.as_pointer())

        def load(*where):
            value = builder.load(place(*where))
            value.align = 4
            return value

        def constant(number):
            return ir.Constant(vector, [number] * 16)

        def fused(*values):
            return _llvm(builder, "llvm.fma.v16f32", *values)

        rows = [load(finish, ir.Constant(_i64, row), finish_step) for row in range(AFTER + 1)]
        factor = _broadcast(builder, factor, vector)
        for has_residual, kind in itertools.product((False, True), (NONE, HARDTANH, PRELU)):
            same = builder.icmp_signed("!=" if has_residual else "==", residual, ir.Constant(_i64, 0))
            same = builder.and_(same, builder.icmp_signed("==", activation, ir.Constant(_i64, kind)))
            with builder.if_then(same), cgutils.for_range(builder, pixels) as loop:
                base = _broadcast(builder, builder.load(builder.gep(products, [loop.index])), vector)
                y = builder.fadd(base, builder.fmul(factor, load(x, loop.index, x_step)))
                y = fused(builder.fmul(y, rows[SCALE]), rows[ALPHA], rows[BETA])
                if has_residual:
                    added = load(addend, loop.index, residual_step)
                    y = builder.fadd(y, fused(added, rows[RES_ALPHA], rows[RES_BETA]))
                if kind == HARDTANH:
                    y = builder.select(builder.fcmp_ordered("<", y, constant(-1.0)), constant(-1.0), y)
                    y = builder.select(builder.fcmp_ordered(">", y, constant(1.0)), constant(1.0), y)
                elif kind == PRELU:
                    y = builder.fadd(y, rows[BEFORE])
                    positive = builder.fcmp_ordered(">", y, constant(0.0))
                    y = builder.fadd(builder.select(positive, y, builder.fmul(y, rows[SLOPE])), rows[AFTER])
                builder.store(y, place(out, loop.index, out_step)).align = 4
        return context.get_dummy_value()

    whole, single = types.intp, types.float32
    return types.void(whole, whole, single, whole, whole, whole, whole, whole, whole, whole, whole, whole), codegen


def _compiled(function, **options):
    """function, compiled at its first call, or read from numba's cache; NUMBA_CACHE_DIR moves that."""
    options = {"nogil": True, "error_model": "numpy", **options}
    try:
        return njit(cache=True, **options)(function)
    except RuntimeError:  # no directory can be written to: each process compiles for itself
        return njit(**options)(function)


_compiled_parallel = functools.partial(_compiled, parallel=True)


class _Announcement(event.Listener):
    """One line on standard error before the first kernel is compiled: it takes half a minute, not milliseconds."""

    made = False

    def on_start(self, event):
        if event.data["dispatcher"].py_func.__module__ == __name__ and not self.made:
            self.made = True
            print("compiling the kernels of 1-bit inference, once on this machine: up to a minute", file=sys.stderr)

    def on_end(self, event):
        pass


event.register("numba:compile", _Announcement())


@_compiled
def _pack_row(x, shift, bits, padding, row):
    """Signs of row `row` of x (N, H, W, C) + shift (1 or N, C), counted over all images, into the padded bits."""
    height, width, channels = x.shape[1:]
    image, y = divmod(row, height)
    values, shifts = x[image, y], shift[image % shift.shape[0]]
    words = bits[image, y + padding]
    for i in range(width):
        for word in range(channels // 64):
            c = 64 * word
            words[i + padding, word] = _sign_word(values[i, c:].ctypes.data, shifts[c:].ctypes.data)
        if channels % 64:
            last = np.uint64(0)
            for c in range(channels // 64 * 64, channels):
                if values[i, c] + shifts[c] >= 0:
                    last |= np.uint64(1) << np.uint64(c % 64)
            words[i + padding, channels // 64] = last


@_compiled
def _count_row(bits, weights, tap_counts, shape, stride, padding, counts, products, row, rows):
    """counts (W', >= C_out) of differing bits, products (W',) of signs that the sums have: row `row` of the output.

    row: counted over all images of `rows` each. Where the window hangs over the border, the zeros there counted as
    bits: what they added is taken away again.
    """
    height, width, channels = shape
    image, y = divmod(row, rows)
    kernel = int(np.sqrt(tap_counts.shape[0]))
    row_step, words = bits.shape[2] * bits.shape[3], bits.shape[3]
    window = bits[image, y * stride].ctypes.data
    step = stride * words
    for block in range(weights.shape[0]):
        weight, target = weights[block].ctypes.data, counts[0, block * COUNT_CHANNELS :].ctypes.data
        i = 0
        while i < counts.shape[0]:
            at, to = window + 8 * step * i, target + 4 * counts.shape[1] * i
            if i + PIXELS <= counts.shape[0]:
                _count_pixels(at, step, row_step, kernel, kernel * words, weight, to, counts.shape[1])
                i += PIXELS
            else:
                _count_pixel(at, step, row_step, kernel, kernel * words, weight, to, counts.shape[1])
                i += 1
    for i in range(counts.shape[0]):
        top, left = y * stride - padding, i * stride - padding
        inside = kernel * kernel
        if top < 0 or left < 0 or top + kernel > height or left + kernel > width:
            for tap in range(kernel * kernel):
                if not (0 <= top + tap // kernel < height and 0 <= left + tap % kernel < width):
                    inside -= 1
                    for c in range(tap_counts.shape[1]):
                        counts[i, c] -= tap_counts[tap, c]
        products[i] = inside * channels


@_compiled
def _finish_row(x, factor, products, finish, residual, has_residual, activation, out):
    """out = activation((products + factor * x) * SCALE * ALPHA + BETA + residual): maps (W, C), products (W,)."""
    channels = out.shape[1]
    together = 28  # pixels: three maps of 64 channels fit the first-level cache
    for start in range(0, out.shape[0], together):
        pixels = min(together, out.shape[0] - start)
        for c in range(0, channels - 15, 16):
            added = residual[start, c:].ctypes.data if has_residual else 0
            _finish_pixels(
                x[start, c:].ctypes.data, x.shape[1], factor, products[start:].ctypes.data, finish[0, c:].ctypes.data,
                channels, added, channels, activation, out[start, c:].ctypes.data, channels, pixels,
            )  # fmt: skip
    for i in range(out.shape[0]):
        for c in range(channels // 16 * 16, channels):
            y = products[i] + factor * x[i, c]
            y = _multiply_add(y * finish[SCALE, c], finish[ALPHA, c], finish[BETA, c])
            if has_residual:
                y += _multiply_add(residual[i, c], finish[RES_ALPHA, c], finish[RES_BETA, c])
            if activation == HARDTANH:
                y = min(max(y, np.float32(-1)), np.float32(1))
            elif activation == PRELU:
                y += finish[BEFORE, c]
                y = (y if y > 0 else y * finish[SLOPE, c]) + finish[AFTER, c]
            out[i, c] = y


@_compiled
def _output_row(
    bits, weights, tap_counts, shape, stride, padding, finish, residual, has_residual, activation, out, row
):
    """Row `row` of out (N, H', W', C_out), counted over all images: convolution, and what follows it."""
    image, y = divmod(row, out.shape[1])
    counts = np.empty((out.shape[2], weights.shape[0] * COUNT_CHANNELS), np.float32)
    products = np.empty(out.shape[2], np.float32)
    _count_row(bits, weights, tap_counts, shape, stride, padding, counts, products, row, out.shape[1])
    factor = np.float32(-2)
    _finish_row(counts, factor, products, finish, residual[image, y], has_residual, activation, out[image, y])


@_compiled
def _padded_bits(x, padding):
    images, height, width, channels = x.shape
    return np.zeros((images, height + 2 * padding, width + 2 * padding, (channels + 63) // 64), np.uint64)


@_compiled
def _conv(x, shift, weights, tap_counts, stride, padding, finish, residual, has_residual, activation, out):
    bits, shape = _padded_bits(x, padding), x.shape[1:]
    for row in range(x.shape[0] * x.shape[1]):
        _pack_row(x, shift, bits, padding, row)
    for row in range(out.shape[0] * out.shape[1]):
        _output_row(
            bits, weights, tap_counts, shape, stride, padding, finish, residual, has_residual, activation, out, row
        )


@_compiled_parallel
def _conv_parallel(x, shift, weights, tap_counts, stride, padding, finish, residual, has_residual, activation, out):
    bits, shape = _padded_bits(x, padding), x.shape[1:]
    for i in prange(x.shape[0] * x.shape[1]):
        _pack_row(x, shift, bits, padding, np.intp(i))
    for i in prange(out.shape[0] * out.shape[1]):
        row = np.intp(i)  # a parallel loop's counter is unsigned, and so would be what is computed with it
        _output_row(
            bits, weights, tap_counts, shape, stride, padding, finish, residual, has_residual, activation, out, row
        )


@_compiled
def _finish(x, finish, residual, has_residual, activation, out):
    nothing, factor = np.zeros(x.shape[1], np.float32), np.float32(1)
    for row in range(x.shape[0]):
        _finish_row(x[row], factor, nothing, finish, residual[row], has_residual, activation, out[row])


@_compiled_parallel
def _finish_parallel(x, finish, residual, has_residual, activation, out):
    nothing, factor = np.zeros(x.shape[1], np.float32), np.float32(1)
    for row in prange(x.shape[0]):
        _finish_row(x[row], factor, nothing, finish, residual[row], has_residual, activation, out[row])


@_compiled
def _dense_row(x, weights, out, row):
    """Row `row` of x (rows, C_in) @ weights -> out (rows, C_out), PIXELS rows at a time where there are as many."""
    channels, first = x.shape[1], x[row].ctypes.data
    for block in range(weights.shape[0]):
        weight, target = weights[block].ctypes.data, out[row, block * DENSE_CHANNELS :].ctypes.data
        if row + PIXELS <= out.shape[0]:
            _dense_pixels(first, channels, 0, 1, channels, weight, target, out.shape[1])
        else:
            for i in range(out.shape[0] - row):
                to = target + 4 * out.shape[1] * i
                _dense_pixel(first + 4 * channels * i, channels, 0, 1, channels, weight, to, out.shape[1])


@_compiled
def _dense(x, weights, out):
    for row in range(0, out.shape[0], PIXELS):
        _dense_row(x, weights, out, row)


@_compiled_parallel
def _dense_parallel(x, weights, out):
    for i in prange((out.shape[0] + PIXELS - 1) // PIXELS):
        _dense_row(x, weights, out, np.intp(i) * PIXELS)


@_compiled
def _pool_lines(above, upper, lower, sums, highest):
    for i in range(sums.shape[0]):
        sums[i] += upper[i] + lower[i]
        highest[i] = max(max(above[i], upper[i]), lower[i])


@_compiled
def _pool_columns(highest, start, out):
    """out (>= W / 2, C): the maximum over three neighbours of every second column of highest, from `start` on."""
    for i in range((highest.shape[0] - start) // 2):
        middle = start + 2 * i
        before = max(middle - 1, 0)
        for c in range(highest.shape[1]):
            out[i, c] = max(max(highest[middle, c], highest[middle + 1, c]), highest[before, c])


@_compiled
def _stem_tile(x, finish, activation, tap, pooled, image, t, u):
    """The part of `stem` under tap[image, t, u]: small enough for the first-level cache."""
    channels = x.shape[3]
    height, width = x.shape[1] // tap.shape[1], x.shape[2] // tap.shape[2]
    top, left = t * height, max(u * width - 1, 0)  # with the column before the tile, for the maximum
    start, size = u * width - left, u * width - left + width
    nothing, factor = np.zeros(size, np.float32), np.float32(1)
    lines = np.empty((3, size, channels), np.float32)
    highest, sums = np.empty(size * channels, np.float32), np.zeros(size * channels, np.float32)
    upper, lower, above = lines[0], lines[1], lines[2]
    if top > 0:
        line = x[image, top - 1][left : left + size]
        _finish_row(line, factor, nothing, finish, line, False, activation, above)
    else:
        above[:] = -np.inf
    for y in range(top, top + height, 2):
        line = x[image, y][left : left + size]
        _finish_row(line, factor, nothing, finish, line, False, activation, upper)
        line = x[image, y + 1][left : left + size]
        _finish_row(line, factor, nothing, finish, line, False, activation, lower)
        _pool_lines(above.ravel(), upper.ravel(), lower.ravel(), sums, highest)
        _pool_columns(highest.reshape(size, channels), start, pooled[image, y // 2][u * (width // 2) :])
        above, lower = lower, above
    mean = np.zeros(channels, np.float32)
    for i in range(start, size):
        for c in range(channels):
            mean[c] += sums[i * channels + c]
    tap[image, t, u] = mean / np.float32(height * width)


@_compiled
def _stem_band(x, finish, activation, tap, pooled, band):
    image, t = divmod(band, tap.shape[1])
    for u in range(tap.shape[2]):
        _stem_tile(x, finish, activation, tap, pooled, image, t, u)


@_compiled
def _stem(x, finish, activation, tap, pooled):
    for band in range(tap.shape[0] * tap.shape[1]):
        _stem_band(x, finish, activation, tap, pooled, band)


@_compiled_parallel
def _stem_parallel(x, finish, activation, tap, pooled):
    for band in prange(tap.shape[0] * tap.shape[1]):
        _stem_band(x, finish, activation, tap, pooled, np.intp(band))


_one_at_a_time = threading.Lock()  # numba's own thread pool ends the process if two threads enter it
_forked = threading.Event()
"""Set in a process forked from one whose numba had threads: numba would end it, if it asked for threads of its own."""


def _after_fork():
    if _start_threads.cache_info().currsize:
        _forked.set()


os.register_at_fork(after_in_child=_after_fork)


@functools.cache
def _start_threads():
    """Start numba's threads so that they sleep, not spin, while they wait.

    There are as many as cores, as there are of torch's, and one that spins keeps one that has work from its core: on a
    busy machine a kernel then took 16 ms. OpenMP reads the setting once, when its library is loaded.
    """
    before = os.environ.get("OMP_WAIT_POLICY")
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        _launch_threads()
    finally:
        if before is None:
            del os.environ["OMP_WAIT_POLICY"]


def _call(serial, parallel, threads, *args):
    threads = min(threads, config.NUMBA_NUM_THREADS)
    if threads == 1 or _forked.is_set():
        return serial(*args)
    with _one_at_a_time:
        _start_threads()
        set_num_threads(threads)
        return parallel(*args)


def convolve(threads, *args):
    """The binary convolution and what follows it; see `modules.inference.xnor.binary_conv2d`.

    x (N, H, W, C) float32; shift (1 or N, C); weights (blocks, taps * words, COUNT_CHANNELS) uint64; tap_counts
    (taps, C_out) float32: bits set in each tap's weights; stride; padding; finish (8, C_out); residual
    (N, H', W', C_out), read if has_residual; activation; out (N, H', W', C_out) float32. All contiguous.
    """
    _call(_conv, _conv_parallel, threads, *args)


def finish(threads, *args):
    """What follows a convolution, alone: x (rows, W, C), finish, residual, has_residual, activation, out."""
    _call(_finish, _finish_parallel, threads, *args)


def dense(threads, *args):
    """x (rows, C_in), weights (C_out / DENSE_CHANNELS, C_in, DENSE_CHANNELS), out (rows, C_out): out = x @ weights."""
    _call(_dense, _dense_parallel, threads, *args)


def stem(threads, *args):
    """What follows the stem's convolution, in one pass: x (N, H, W, C), finish, activation, tap, pooled.

    y = activation(x * SCALE * ALPHA + BETA); pooled (N, H / 2, W / 2, C): the maximum of y over 3x3, stride 2,
    padding 1; tap (N, h, w, C): the average of y over H / h x W / w. H / h and W / w are even numbers.
    """
    _call(_stem, _stem_parallel, threads, *args)
