"""Vector code from Python: a thin layer over llvmlite in which the SIMD kernels are written.

Every value is a vector of 16 lanes, one lane a weight row, a cache position or a column. A 512-bit CPU holds it in one
register; for narrower ones LLVM splits it, so a kernel is written once. Where the order of the parts decides whether
all fits into registers, a kernel asks for narrower vectors itself. Only what has no portable spelling, the 8-bit dot
product, is chosen by tier. Addresses are i64 values; loads and stores are unaligned.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache

from llvmlite import ir
from numba.core import cgutils

from ggpy.codegen.native import ON_ARM, host_features

LANES = 16
i1, i8, i16, i32, i64 = (ir.IntType(n) for n in (1, 8, 16, 32, 64))
f16, f32 = ir.HalfType(), ir.FloatType()
VF = ir.VectorType(f32, LANES)
VI = ir.VectorType(i32, LANES)

LOG2_E = 1.4426950408889634
# exp2 on [-0.5, 0.5], relative error 2e-7: minimax coefficients of Cephes' exp2f.
EXP2 = (
    1.535336188319500e-4,
    1.339887440266574e-3,
    9.618437357674640e-3,
    5.550332471162809e-2,
    2.402264791363012e-1,
    6.931472028550421e-1,
    1.0,
)
# The same to 1.6e-7 with a multiplication less, exactly 1 at 0: a minimax fit of our own.
EXP2_5 = (
    1.3264727252773778e-3,
    9.671512785858840e-3,
    5.550733744471492e-2,
    2.402224208211044e-1,
    6.931469775976775e-1,
    1.0,
)


class Vec:
    """Emits vector code at `builder`'s position for the tier `isa`, in vectors of `lanes` 32-bit lanes."""

    def __init__(self, builder: ir.IRBuilder, isa: str, lanes: int = LANES) -> None:
        self.b = builder
        self.isa = isa
        self.lanes = lanes
        self.vf, self.vi = ir.VectorType(f32, lanes), ir.VectorType(i32, lanes)
        self.vb = ir.VectorType(i8, 4 * lanes)

    # ---- constants and addresses

    def const(self, value: int) -> ir.Constant:
        return ir.Constant(i64, value)

    def float(self, value: float) -> ir.Constant:
        return ir.Constant(self.vf, [value] * self.lanes)

    def int(self, value: int) -> ir.Constant:
        return ir.Constant(self.vi, [value] * self.lanes)

    def at(self, address: ir.Value, offset: ir.Value | int) -> ir.Value:
        """address + offset, in bytes."""
        if isinstance(offset, int):
            return address if offset == 0 else self.b.add(address, self.const(offset))
        return self.b.add(address, offset)

    def mul(self, a: ir.Value, n: ir.Value | int) -> ir.Value:
        return self.b.mul(a, self.const(n) if isinstance(n, int) else n)

    def _intrinsic(self, name: str, ret: ir.Type, args: Sequence[ir.Value]) -> ir.Value:
        kind = ir.FunctionType(ret, [a.type for a in args])
        return self.b.call(cgutils.get_or_insert_function(self.b.module, kind, name), args)

    # ---- memory

    def load(self, address: ir.Value, kind: ir.Type, align: int = 1) -> ir.Value:
        value = self.b.load(self.b.inttoptr(address, kind.as_pointer()))
        value.align = align
        return value

    def store(self, value: ir.Value, address: ir.Value) -> None:
        self.b.store(value, self.b.inttoptr(address, value.type.as_pointer()), align=1)

    def store_first(self, a: ir.Value, address: ir.Value, n: ir.Value) -> None:
        """Store the first n lanes (i64), all where there are no more than n."""
        b, mask = self.b, ir.VectorType(i1, self.lanes)
        left = self.splat(b.trunc(n, i32))
        first = b.icmp_signed("<", self.lane_index(), left)
        pointer = self.vf.as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [self.vf, pointer, i32, mask])
        function = cgutils.get_or_insert_function(b.module, kind, f"llvm.masked.store.v{self.lanes}f32.p0")
        b.call(function, [a, b.inttoptr(address, pointer), ir.Constant(i32, 1), first])

    def prefetch(self, address: ir.Value, level: int = 2) -> None:
        """Prefetch the cache line at `address`, which need not be readable, into the L2 cache or L1."""
        pointer = ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
        function = cgutils.get_or_insert_function(self.b.module, kind, "llvm.prefetch.p0")
        for_reading, locality, data = (ir.Constant(i32, n) for n in (0, 4 - level, 1))
        self.b.call(function, [self.b.inttoptr(address, pointer), for_reading, locality, data])

    def load_f32(self, address: ir.Value) -> ir.Value:
        return self.load(address, self.vf)

    def load_f16(self, address: ir.Value) -> ir.Value:
        return self.b.fpext(self.load(address, ir.VectorType(f16, self.lanes)), self.vf)

    def load_bf16(self, address: ir.Value) -> ir.Value:
        wide = self.b.zext(self.load(address, ir.VectorType(i16, self.lanes)), self.vi)
        return self.b.bitcast(self.b.shl(wide, self.int(16)), self.vf)

    def load_bytes(self, address: ir.Value) -> ir.Value:
        """Bytes as 32-bit lanes, four in each."""
        return self.load(address, self.vi)

    def load_u8_int(self, address: ir.Value) -> ir.Value:
        """16 unsigned bytes as integers."""
        return self.b.zext(self.load(address, ir.VectorType(i8, self.lanes)), self.vi)

    def load_u8(self, address: ir.Value) -> ir.Value:
        """16 unsigned bytes as floats."""
        return self.b.sitofp(self.load_u8_int(address), self.vf)

    def load_s8(self, address: ir.Value) -> ir.Value:
        """Signed bytes as floats."""
        return self.b.sitofp(self.b.sext(self.load(address, ir.VectorType(i8, self.lanes)), self.vi), self.vf)

    def load_power(self, address: ir.Value) -> ir.Value:
        """16 bytes e as the floats 2 ** (e - 128), of which the first two are subnormal."""
        e = self.load_u8_int(address)
        normal = self.b.shl(self.b.sub(e, self.int(1)), self.int(23))
        least = self.b.shl(self.b.add(e, self.int(1)), self.int(21))  # above `normal` for e = 0 and 1 alone
        return self.b.bitcast(self._intrinsic(f"llvm.smax.v{self.lanes}i32", self.vi, [normal, least]), self.vf)

    # ---- lanes

    def splat(self, scalar: ir.Value) -> ir.Value:
        """A scalar in every lane; a value just loaded becomes the consumer's broadcast memory operand."""
        kind = ir.VectorType(scalar.type, self.lanes)
        one = self.b.insert_element(ir.Constant(kind, ir.Undefined), scalar, ir.Constant(i32, 0))
        return self.b.shuffle_vector(one, ir.Constant(kind, ir.Undefined), ir.Constant(self.vi, [0] * self.lanes))

    def bcast_f32(self, address: ir.Value) -> ir.Value:
        return self.splat(self.load(address, f32, 4))

    def bcast_i32(self, address: ir.Value) -> ir.Value:
        return self.splat(self.load(address, i32, 4))

    def scalars(self, address: ir.Value, count: int, element: ir.Type) -> Callable[[int], ir.Value]:
        """A function of `i`: the i-th of `count` neighbouring 32-bit scalars, in every lane."""

        def bcast(i: int) -> ir.Value:
            return self.splat(self.load(self.at(address, 4 * i), element, 4))

        @cache
        def vector(first: int) -> ir.Value:
            return self.load(self.at(address, 4 * first), ir.VectorType(element, min(4, count - first)), 4)

        def lane(i: int) -> ir.Value:  # one load for four: products take a lane of a register as their operand
            four = vector(i // 4 * 4)
            return self.b.shuffle_vector(four, four, ir.Constant(self.vi, [i % 4] * self.lanes))

        return lane if self.isa == "neon" and count > 1 else bcast

    def lane_index(self) -> ir.Constant:
        return ir.Constant(self.vi, list(range(self.lanes)))

    def first_lanes(self, a: ir.Value, n: ir.Value) -> ir.Value:
        """The first n lanes (i64), all where there are no more than n; 0 in the others."""
        left = self.splat(self.b.trunc(n, i32))
        return self.b.select(self.b.icmp_signed("<", self.lane_index(), left), a, self.float(0.0))

    def high_nibbles(self, codes: ir.Value) -> ir.Value:
        """The upper four bits of every byte."""
        shifted = self.b.lshr(self.b.bitcast(codes, self.vb), ir.Constant(self.vb, [4] * self.vb.count))
        return self.b.bitcast(shifted, self.vi)

    # ---- float arithmetic

    def fma(self, a: ir.Value, b: ir.Value, c: ir.Value) -> ir.Value:
        return self._intrinsic(f"llvm.fma.v{self.lanes}f32", self.vf, [a, b, c])

    def maximum(self, a: ir.Value, b: ir.Value) -> ir.Value:
        return self.b.select(self.b.fcmp_ordered(">", a, b), a, b)

    def abs(self, a: ir.Value) -> ir.Value:
        return self._intrinsic(f"llvm.fabs.v{self.lanes}f32", self.vf, [a])

    def round(self, a: ir.Value) -> ir.Value:
        """Round to the nearest integer, ties to even."""
        return self._intrinsic(f"llvm.rint.v{self.lanes}f32", self.vf, [a])

    def sum_lanes(self, a: ir.Value) -> ir.Value:
        """The sum as a scalar, added pairwise."""
        for width in self._halvings():
            a = self.b.fadd(a, self._rotate(a, width))
        return self.b.extract_element(a, ir.Constant(i32, 0))

    def max_lanes(self, a: ir.Value) -> ir.Value:
        for width in self._halvings():
            a = self.maximum(a, self._rotate(a, width))
        return self.b.extract_element(a, ir.Constant(i32, 0))

    def sum_each(self, vectors: Sequence[ir.Value]) -> ir.Value:
        """The sums of up to 16 vectors, each in a lane of its own, in order. A vector's lanes are added as in
        `sum_lanes`, whatever the others are."""
        level, width = list(vectors), self.lanes
        while width > 1:
            level += level[-1:] if len(level) % 2 else []
            # each vector is groups of `width` lanes, one of each vector that it is made of; halves of both are added
            place = [g * width + i for g in range(self.lanes // width) for i in range(width // 2)]
            halves = []
            for half in (0, width // 2):
                order = [lane + half for lane in place] + [self.lanes + lane + half for lane in place]
                halves.append(ir.Constant(ir.VectorType(i32, self.lanes), order))
            pairs = zip(level[::2], level[1::2], strict=True)
            level = [self.b.fadd(*(self.b.shuffle_vector(x, y, order) for order in halves)) for x, y in pairs]
            width //= 2
        assert len(level) == 1
        return level[0]

    def sum_lanes_int(self, a: ir.Value) -> ir.Value:
        return self._intrinsic(f"llvm.vector.reduce.add.v{self.lanes}i32", i32, [a])

    def _halvings(self) -> list[int]:
        return [self.lanes >> k for k in range(1, self.lanes.bit_length())]

    def _rotate(self, a: ir.Value, by: int) -> ir.Value:
        order = [(lane + by) % self.lanes for lane in range(self.lanes)]
        return self.b.shuffle_vector(a, a, ir.Constant(self.vi, order))

    def exp(self, x: ir.Value) -> ir.Value:
        """e^x to 2 units in the last place; 0 below -87, clamped above 88."""
        x = self.maximum(x, self.float(-87.5))
        x = self.b.select(self.b.fcmp_ordered("<", x, self.float(88.0)), x, self.float(88.0))
        whole = self.round(self.b.fmul(x, self.float(LOG2_E)))
        # x - whole * ln 2, in two parts so that the difference is exact, then as a power of two again
        rest = self.fma(whole, self.float(-0.693359375), x)
        rest = self.fma(whole, self.float(2.12194440e-4), rest)
        rest = self.b.fmul(rest, self.float(LOG2_E))
        poly = self.float(EXP2[0])
        for c in EXP2[1:]:
            poly = self.fma(poly, rest, self.float(c))
        exponent = self.b.shl(self.b.add(self.b.fptosi(whole, self.vi), self.int(127)), self.int(23))
        return self.b.fmul(poly, self.b.bitcast(exponent, self.vf))

    def sigmoid(self, x: ir.Value) -> ir.Value:
        """1 / (1 + e^-x)."""
        return self.b.fdiv(self.float(1.0), self.b.fadd(self.float(1.0), self.exp(self.b.fneg(x))))

    def tanh(self, x: ir.Value) -> ir.Value:
        """The hyperbolic tangent, to 1e-7, absolute."""
        twice = self.sigmoid(self.b.fmul(self.float(2.0), x))
        return self.b.fsub(self.b.fmul(self.float(2.0), twice), self.float(1.0))

    def exp2_negative(self, x: ir.Value, fused: bool = True) -> ir.Value:
        """2^x for x <= 0, to 3 units in the last place; exactly 0 below -126. Without `fused` products and sums are
        rounded apart, which is the same on every CPU.

        Rounding to a whole number is an addition that pushes the fraction out, and leaves that number in the low bits.
        """
        b, magic = self.b, self.float(1.5 * 2**23)
        shifted = b.fadd(self.maximum(x, self.float(-127.0)), magic)
        rest = b.fsub(x, b.fsub(shifted, magic))
        poly = self.float(EXP2_5[0])
        for c in EXP2_5[1:]:
            poly = self.fma(poly, rest, self.float(c)) if fused else b.fadd(b.fmul(poly, rest), self.float(c))
        exponent = b.shl(b.bitcast(shifted, VI), self.int(23))
        power = b.bitcast(b.add(b.bitcast(poly, VI), exponent), VF)
        return b.select(b.fcmp_ordered(">=", x, self.float(-126.0)), power, self.float(0.0))

    # ---- 8-bit dot product

    def dot(self, total: ir.Value, unsigned: ir.Value, signed: ir.Value) -> ir.Value:
        """total + the four byte products of each lane: `unsigned` times `signed`, both given as 32-bit lanes.

        Without VNNI two products are first added in 16 bits: exact while unsigned values stay below 129. NEON has no
        such mixed product before Armv8.6: both are signed there, so unsigned values stay below 128.
        """
        b = self.b
        if self.isa == "neon":  # vectors of 4 lanes
            return self._intrinsic(
                "llvm.aarch64.neon.sdot.v4i32.v16i8",
                self.vi,
                [total, b.bitcast(unsigned, self.vb), b.bitcast(signed, self.vb)],
            )
        if self.isa == "avx512vnni":
            parts = [total, b.bitcast(unsigned, self.vb), b.bitcast(signed, self.vb)]
            return self._intrinsic("llvm.x86.avx512.vpdpbusd.512", self.vi, parts)
        if self.isa == "portable":
            for byte in range(4):
                u = b.and_(b.lshr(unsigned, self.int(8 * byte)), self.int(255))
                s = b.ashr(b.shl(signed, self.int(24 - 8 * byte)), self.int(24))
                total = b.add(total, b.mul(u, s))
            return total
        halves = []
        for lo in (0, 8):
            t, u, s = (self._half(v, lo) for v in (total, unsigned, signed))
            v32i8 = ir.VectorType(i8, 32)
            u, s = b.bitcast(u, v32i8), b.bitcast(s, v32i8)
            if self.isa == "avx2vnni":
                halves.append(self._intrinsic("llvm.x86.avx512.vpdpbusd.256", t.type, [t, u, s]))
                continue
            v16i16 = ir.VectorType(i16, 16)
            pairs = self._intrinsic("llvm.x86.avx2.pmadd.ub.sw", v16i16, [u, s])
            quads = self._intrinsic("llvm.x86.avx2.pmadd.wd", t.type, [pairs, ir.Constant(v16i16, [1] * 16)])
            halves.append(b.add(t, quads))
        return b.shuffle_vector(halves[0], halves[1], self.lane_index())

    @property
    def signed_weights(self) -> bool:
        """True where `dot_signed` takes signed weights as they are; otherwise they enter
        as weight + 128 and 128 * sum(x) must be subtracted."""
        return self.isa in ("avx2", "neon")

    def dot_signed(self, total: ir.Value, weight: ir.Value, x: ir.Value) -> ir.Value:
        """Like `dot` for signed weights; see `signed_weights`."""
        if self.isa != "avx2":
            return self.dot(total, weight, x)
        # |w| * (x with w's sign): both fit the unsigned-by-signed product without overflow in 16 bits
        halves = []
        for lo in (0, 8):
            v32i8 = ir.VectorType(i8, 32)
            w, s = (self.b.bitcast(self._half(v, lo), v32i8) for v in (weight, x))
            magnitude = self.b.select(self.b.icmp_signed("<", w, ir.Constant(v32i8, [0] * 32)), self.b.neg(w), w)
            flipped = self._intrinsic("llvm.x86.avx2.psign.b", v32i8, [s, w])
            v8i32 = ir.VectorType(i32, 8)
            halves.append((self.b.bitcast(magnitude, v8i32), self.b.bitcast(flipped, v8i32)))
        join = [self.b.shuffle_vector(a, b, self.lane_index()) for a, b in zip(halves[0], halves[1], strict=True)]
        return self.dot(total, join[0], join[1])

    def _half(self, v: ir.Value, lo: int) -> ir.Value:
        return self.b.shuffle_vector(v, v, ir.Constant(ir.VectorType(i32, 8), list(range(lo, lo + 8))))

    # ---- table look-up

    def lookup(self, codes: ir.Value, table: Sequence[int]) -> ir.Value:
        """table[code] of every byte; `codes` and the result as 32-bit lanes, codes below 16."""
        b, table = self.b, [t & 255 for t in (*table, *(0,) * (16 - len(table)))]
        if self.isa == "neon":  # vectors of 4 lanes
            parts = [ir.Constant(self.vb, table), b.bitcast(codes, self.vb)]
            return b.bitcast(self._intrinsic("llvm.aarch64.neon.tbl1.v16i8", self.vb, parts), self.vi)
        if self.isa == "avx512vnni":
            parts = [ir.Constant(self.vb, table * 4), b.bitcast(codes, self.vb)]
            return b.bitcast(self._intrinsic("llvm.x86.avx512.pshuf.b.512", self.vb, parts), self.vi)
        if self.isa in ("avx2", "avx2vnni"):
            v32i8, halves = ir.VectorType(i8, 32), []
            for lo in (0, 8):
                parts = [ir.Constant(v32i8, table * 2), b.bitcast(self._half(codes, lo), v32i8)]
                found = self._intrinsic("llvm.x86.avx2.pshuf.b", v32i8, parts)
                halves.append(b.bitcast(found, ir.VectorType(i32, 8)))
            return b.shuffle_vector(halves[0], halves[1], self.lane_index())
        # No table instruction in portable code: choose between pairs by the lowest bit, between those by the next, …
        bytes_, found = b.bitcast(codes, self.vb), [ir.Constant(self.vb, [t] * self.vb.count) for t in table]
        for bit in range(4):
            mask = b.and_(bytes_, ir.Constant(self.vb, [1 << bit] * self.vb.count))
            odd = b.icmp_unsigned("!=", mask, ir.Constant(self.vb, [0] * self.vb.count))
            found = [b.select(odd, high, low) for low, high in zip(found[::2], found[1::2], strict=True)]
        return b.bitcast(found[0], self.vi)

    # ---- control

    def function(self, name: str, n_args: int, body: Callable[[Vec, list[ir.Value]], None]) -> ir.Function:
        """A separate function of `n_args` i64 arguments, so that registers are allocated
        for its own loop alone and not for one large body."""
        kind = ir.FunctionType(ir.VoidType(), [i64] * n_args)
        function = ir.Function(self.b.module, kind, self.b.module.get_unique_name(name))
        function.linkage = "internal"
        function.attributes.add("noinline")
        if self.isa == "neon":  # numba compiles for the features that LLVM finds by itself, which lack this one
            features = host_features() if ON_ARM else "+neon,+dotprod"
            set.add(function.attributes, f'"target-features"="{features}"')  # llvmlite's own `add` knows no such
        inner = Vec(ir.IRBuilder(function.append_basic_block("entry")), self.isa, self.lanes)
        body(inner, list(function.args))
        inner.b.ret_void()
        return function

    def dispatch(self, selector: ir.Value, functions: dict[int, ir.Function], args: Sequence[ir.Value]) -> None:
        """Call the function whose key `selector` equals."""
        b = self.b
        end = b.append_basic_block("end")
        cases = b.switch(selector, end)
        for key, function in functions.items():
            block = b.append_basic_block("case")
            cases.add_case(self.const(key), block)
            b.position_at_end(block)
            b.call(function, args)
            b.branch(end)
        b.position_at_end(end)

    def loop(
        self,
        count: ir.Value,
        carried: Sequence[ir.Value],
        body: Callable[[ir.Value, list[ir.Value]], Sequence[ir.Value]],
        may_be_empty: bool = False,
    ) -> list[ir.Value]:
        """`for i in range(count)` with `carried` values passed from round to round; `count` is at least 1, unless it
        `may_be_empty`. Returns the last round's values."""
        b = self.b
        entry = b.block
        block, done = b.append_basic_block("loop"), b.append_basic_block("done")
        if may_be_empty:
            b.cbranch(b.icmp_signed(">", count, self.const(0)), block, done)
        else:
            b.branch(block)
        b.position_at_end(block)
        index = b.phi(i64)
        index.add_incoming(self.const(0), entry)
        phis = [b.phi(v.type) for v in carried]
        for phi, v in zip(phis, carried, strict=True):
            phi.add_incoming(v, entry)
        results = list(body(index, phis))
        following = b.add(index, self.const(1))
        index.add_incoming(following, b.block)
        for phi, v in zip(phis, results, strict=True):
            phi.add_incoming(v, b.block)
        last = b.block
        b.cbranch(b.icmp_signed("<", following, count), block, done)
        b.position_at_end(done)
        if not may_be_empty:
            return results
        after = [b.phi(v.type) for v in carried]
        for phi, before, result in zip(after, carried, results, strict=True):
            phi.add_incoming(before, entry)
            phi.add_incoming(result, last)
        return after
