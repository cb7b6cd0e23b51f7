"""Preparation of a large step's activations for the tensor cores: norm or SwiGLU, then halves (HalfActivations)."""

from __future__ import annotations

from ggpy.cuda.compile import Source
from ggpy.cuda.isa.warp import Value, Warp, f32, kernel

PARAMETERS = "u64 u64 u64 u64 u64 u32 u32 f32 u64 u64"  # see `_quantize`
THREADS = 512  # the most that work on a token
LOG2_E = 1.4426950408889634


def source(kind: str, width: str) -> Source:
    """A kernel "quantize_activations.norm.4": `norm` or `swiglu`, loading 4 columns at once or 1, for odd sizes."""

    def emit(w: Warp, *parameters: Value) -> None:
        _quantize(w, kind == "swiglu", width == "4", *parameters)

    return Source(kernel(f"quantize_activations_{kind}_{width}", PARAMETERS, emit), PARAMETERS, THREADS)


def _quantize(
    w: Warp,
    gated: bool,
    whole: bool,  # all rows are multiples of 16 columns and lie on multiples of 16 bytes
    src: Value,  # float32 rows; of a gated unit the gate
    src_stride: Value,  # bytes from row to row
    up: Value,  # of a gated unit the other factor
    up_stride: Value,
    rows: Value,  # int32 [tokens], the rows of src that are wanted; 0: one after the other
    n_cols: Value,
    padded: Value,  # columns as stored, a multiple of 16
    eps: Value,  # of the norm; below 0: there is none
    weight: Value,  # float32 [n_cols] of the norm, or 0
    halves: Value,  # to; the scales follow the last token
) -> None:
    """Emit the kernel. Grid: tokens. A thread takes 16 columns at a time, in two passes: one for the largest and the
    sum of squares, one to store."""
    token = w.special("ctaid.x")
    thread, threads = w.special("tid.x"), w.special("ntid.x")
    row = w.load_where(rows > 0, rows + token.wide() * 4, token)
    line, up_line = src + row.wide() * src_stride, up + row.wide() * up_stride

    def floats(at: Value, first: Value, where: Value | None = None, otherwise: float = 0.0) -> list[Value]:
        """16 columns of a row, `otherwise` beyond its end or where a condition does not hold."""
        at = at + (first * 4).wide()
        if whole:
            inside = first < n_cols if where is None else where & (first < n_cols)
            return [value for k in range(4) for value in w.load4_where(inside, at + 16 * k, otherwise)]
        found = []
        for k in range(16):
            inside = first + k < n_cols if where is None else where & (first + k < n_cols)
            found.append(w.load_where(inside, at + 4 * k, w.real(otherwise)))
        return found

    def values(first: Value) -> list[Value]:
        found = floats(line, first)
        if not gated:
            return found
        factors = zip(found, floats(up_line, first), strict=True)
        return [g * w.function("rcp.approx.ftz", w.exp2(g * -LOG2_E) + 1.0) * u for g, u in factors]

    def weights(first: Value) -> list[Value]:
        return floats(weight, first, weight > 0, 1.0)

    pieces = padded // 16
    steps = (pieces + threads - w.word(1)) // threads

    def measure(step: Value, state: list[Value]) -> list[Value]:
        largest, squares = state
        first = (step * threads + thread) * 16
        found = values(first)
        for value in found:
            squares = w.fma(value, value, squares)
        if not gated:
            found = [value * factor for value, factor in zip(found, weights(first), strict=True)]
        for value in found:
            largest = w.max(largest, w.function("abs", value))
        return [largest, squares]

    largest, squares = w.loop(w.word(0), steps, [w.real(0.0), w.real(0.0)], measure)
    largest, squares = _over_block(w, thread, threads, largest, squares)
    mean = squares * w.function("rcp.rn", w.float_of(n_cols))
    factor = (eps >= 0.0).select(w.function("rsqrt.approx", mean + eps), 1.0)
    exponent = w.as_bits(largest * factor) >> 23
    exponent = (exponent < 11).select(w.word(11), exponent)
    # stored values lie below 2048
    power, inverse = w.as_float(exponent - w.word(10) << 23), w.as_float(w.word(264) - exponent << 23)
    factor = factor * inverse
    at = halves + (token.wide() * padded.wide()) * 2
    with w.when(thread.equals(0)):
        tokens = w.special("nctaid.x")
        scales_at = (tokens.wide() * padded.wide() * 2 + 255) & ((1 << 64) - 256)
        w.store(power, halves + scales_at + token.wide() * 4)

    def store(step: Value, state: list[Value]) -> list[Value]:
        first = (step * threads + thread) * 16
        found = [value * factor for value in values(first)]
        if not gated:
            found = [value * by for value, by in zip(found, weights(first), strict=True)]
        with w.when(first < padded):
            for odd in range(2):
                pairs = [w.halves(found[4 * k + odd], found[4 * k + 2 + odd]) for k in range(4)]
                w.store4(pairs, at + (first * 2 + 16 * odd).wide())
        return []

    w.loop(w.word(0), steps, [], store)


def _over_block(w: Warp, thread: Value, threads: Value, largest: Value, total: Value) -> tuple[Value, Value]:
    """The largest of all threads' first values and the sum of their second ones, in every thread."""
    for distance in (16, 8, 4, 2, 1):
        largest = w.max(largest, w.from_lane(largest, distance))
        total = total + w.from_lane(total, distance)
    shared, warp = w.shared_memory(), thread >> 5
    with w.when((thread & 31).equals(0)):
        w.store(largest, shared + warp * 8)
        w.store(total, shared + warp * 8 + 4)
    w.barrier()

    def join(k: Value, state: list[Value]) -> list[Value]:
        first, second = w.load(shared + k * 8, f32, 2)
        return [w.max(state[0], first), state[1] + second]

    largest, total = w.loop(w.word(0), threads >> 5, [w.real(0.0), w.real(0.0)], join)
    return largest, total
