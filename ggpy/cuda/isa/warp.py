"""Tensor-core code from Python: a thin layer over llvmlite in which the prefill kernels are written.

A kernel is a Python function that emits the code of one thread: Python's loops unroll, Python's lists are registers,
and what must loop on the device says so (`Warp.loop`). Values carry their operators, so that addresses read as
arithmetic. Integers are unsigned: 32 bits for indices, packed halves and shared memory, 64 for addresses. Whatever
touches memory or the tensor cores is inline PTX, which neither LLVM nor numba reorders.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

i1, i32, i64, f32 = ir.IntType(1), ir.IntType(32), ir.IntType(64), ir.FloatType()
LETTERS = {i1: "b", i32: "r", i64: "l", f32: "f"}  # of PTX inline assembly


class Value:
    """One register: an integer or a float, with the operators of its type. Integers divide and shift as unsigned."""

    __slots__ = ("b", "v")

    def __init__(self, builder: ir.IRBuilder, value: ir.Value) -> None:
        self.b, self.v = builder, value

    def _other(self, other: Value | float) -> ir.Value:
        if isinstance(other, Value):
            assert other.v.type == self.v.type, f"{other.v.type} meets {self.v.type}"
            return other.v
        return ir.Constant(self.v.type, other)

    def _op(self, name: str, other: Value | float) -> Value:
        prefix = "f" if self.v.type == f32 and name in ("add", "sub", "mul") else ""
        return Value(self.b, getattr(self.b, prefix + name)(self.v, self._other(other)))

    def __add__(self, other: Value | float) -> Value:
        return self if isinstance(other, int) and other == 0 else self._op("add", other)

    def __sub__(self, other: Value | float) -> Value:
        return self if isinstance(other, int) and other == 0 else self._op("sub", other)

    def __mul__(self, other: Value | float) -> Value:
        return self if isinstance(other, int) and other == 1 else self._op("mul", other)

    def __floordiv__(self, other: Value | int) -> Value:
        return self._op("udiv", other)

    def __mod__(self, other: Value | int) -> Value:
        return self._op("urem", other)

    def __and__(self, other: Value | int) -> Value:
        return self._op("and_", other)

    def __or__(self, other: Value | int) -> Value:
        return self._op("or_", other)

    def __xor__(self, other: Value | int) -> Value:
        return self._op("xor", other)

    def __lshift__(self, other: Value | int) -> Value:
        return self._op("shl", other)

    def __rshift__(self, other: Value | int) -> Value:
        return self._op("lshr", other)

    def _compare(self, how: str, other: Value | float, signed: bool = False) -> Value:
        if self.v.type == f32:
            return Value(self.b, self.b.fcmp_ordered(how, self.v, self._other(other)))
        compare = self.b.icmp_signed if signed else self.b.icmp_unsigned
        return Value(self.b, compare(how, self.v, self._other(other)))

    def __lt__(self, other: Value | float) -> Value:
        return self._compare("<", other)

    def __gt__(self, other: Value | float) -> Value:
        return self._compare(">", other)

    def __ge__(self, other: Value | float) -> Value:
        return self._compare(">=", other)

    def equals(self, other: Value | float) -> Value:
        return self._compare("==", other)

    def below(self, other: Value | int) -> Value:
        """The comparison self < other as signed integers."""
        return self._compare("<", other, signed=True)

    def select(self, yes: Value, no: Value | float) -> Value:
        """`yes` where this condition holds, else `no`."""
        return Value(self.b, self.b.select(self.v, yes.v, yes._other(no)))

    def min(self, other: Value | float) -> Value:
        return (self < other).select(self, other)

    def wide(self) -> Value:
        """This value as an unsigned 64-bit integer."""
        return Value(self.b, self.b.zext(self.v, i64))


class Warp:
    """Emitter of the code of one thread, at `builder`'s position."""

    def __init__(self, builder: ir.IRBuilder) -> None:
        self.b = builder

    def word(self, value: int) -> Value:
        return Value(self.b, ir.Constant(i32, value))

    def real(self, value: float) -> Value:
        return Value(self.b, ir.Constant(f32, value))

    def asm(
        self,
        text: str,
        outs: Sequence[ir.Type],
        ins: Sequence[Value],
        *,
        tied: Sequence[Value] = (),
        effect: bool = False,
    ) -> Any:
        """Inline PTX: operands `$0`… are `outs`, then `ins`; `tied` values enter in the registers of the first outputs.
        Code with an `effect` keeps its place among other code that has one."""
        constraints = ["=" + LETTERS[t] for t in outs] + [LETTERS[v.v.type] for v in ins]
        constraints += [str(k) for k in range(len(tied))] + ["~{memory}"] * effect
        arguments = [v.v for v in [*ins, *tied]]
        returned = ir.VoidType() if not outs else outs[0] if len(outs) == 1 else ir.LiteralStructType(list(outs))
        kind = ir.FunctionType(returned, [a.type for a in arguments])
        code = ir.InlineAsm(kind, text, ",".join(constraints), side_effect=effect)
        result = self.b.call(code, arguments, attrs=("convergent",) if effect else ())
        if not outs:
            return None
        if len(outs) == 1:
            return Value(self.b, result)
        return [Value(self.b, self.b.extract_value(result, k)) for k in range(len(outs))]

    # ---- where this thread is, and control flow

    def special(self, register: str) -> Value:
        """A special register such as `tid.x`."""
        return self.asm(f"mov.u32 $0, %{register};", [i32], [])  # type: ignore[no-any-return]

    def loop(
        self,
        first: Value,
        last: Value,
        state: Sequence[Value],
        body: Callable[..., Sequence[Value]],
        once: bool = False,
    ) -> Any:
        """A loop, for i in first..last-1: state = body(i, state); returns the last state. `once`: the caller knows that
        the loop runs at least once, and no test stands before it."""
        before, inside, after = self.b.block, self.b.append_basic_block("body"), self.b.append_basic_block("after")
        if once:
            self.b.branch(inside)
        else:
            self.b.cbranch((first < last).v, inside, after)
        self.b.position_at_end(inside)
        index = self.b.phi(i32)
        index.add_incoming(first.v, before)
        carried = [self.b.phi(s.v.type) for s in state]
        for phi, start in zip(carried, state, strict=True):
            phi.add_incoming(start.v, before)
        ends = body(Value(self.b, index), [Value(self.b, phi) for phi in carried])
        following = self.b.add(index, ir.Constant(i32, 1))
        bottom = self.b.block
        index.add_incoming(following, bottom)
        for phi, end in zip(carried, ends, strict=True):
            phi.add_incoming(end.v, bottom)
        self.b.cbranch(self.b.icmp_unsigned("<", following, last.v), inside, after)
        self.b.position_at_end(after)
        if once:
            return list(ends)
        results = [self.b.phi(s.v.type) for s in state]
        for phi, start, end in zip(results, state, ends, strict=True):
            phi.add_incoming(start.v, before)
            phi.add_incoming(end.v, bottom)
        return [Value(self.b, phi) for phi in results]

    def when(self, condition: Value) -> Any:
        """A context whose code runs where `condition` holds."""
        return self.b.if_then(condition.v)

    def change(self, condition: Value, state: Sequence[Value], body: Callable[..., Sequence[Value]]) -> list[Value]:
        """The state after a branch: `body(state)` where `condition` holds, else `state`."""
        before, inside = self.b.block, self.b.append_basic_block("change")
        after = self.b.append_basic_block("changed")
        self.b.cbranch(condition.v, inside, after)
        self.b.position_at_end(inside)
        ends, bottom = body(state), self.b.block
        self.b.branch(after)
        self.b.position_at_end(after)
        results = [self.b.phi(s.v.type) for s in state]
        for phi, start, end in zip(results, state, ends, strict=True):
            phi.add_incoming(start.v, before)
            phi.add_incoming(end.v, bottom)
        return [Value(self.b, phi) for phi in results]

    def either(self, condition: Value) -> Any:
        """A context that gives two contexts: one for the code where `condition` holds, one for the code where it does
        not."""
        return self.b.if_else(condition.v)

    def exit(self, where: Value) -> None:
        """End threads for which a condition holds; no barrier waits for a whole block that has ended."""
        self.asm("{ .reg .pred p; setp.ne.b32 p, $0, 0; @p exit; }", [], [self.flag(where)], effect=True)

    def barrier(self, number: Value | None = None, threads: int = 0) -> None:
        """Wait for all threads of the block; or, at the barrier with a given number, for that many threads."""
        if number is None:
            self.asm("bar.sync 0;", [], [], effect=True)
        else:
            self.asm(f"bar.sync $0, {threads};", [], [number], effect=True)

    def wait_for_previous(self) -> None:
        """Wait for the kernels before this one, where launches overlap."""
        self.asm("griddepcontrol.wait;", [], [], effect=True)

    # ---- memory

    def shared_memory(self) -> Value:
        """The address of the block's dynamic shared memory, on a multiple of 1024."""
        name = "ggpy_shared"
        memory = self.b.module.globals.get(name)
        if memory is None:
            memory = ir.GlobalVariable(self.b.module, ir.ArrayType(ir.IntType(8), 0), name, 3)
            memory.linkage, memory.align = "external", 1024
        return Value(self.b, self.b.ptrtoint(memory, i32))

    def load(self, address: Value, kind: ir.Type = i32, count: int = 1) -> Any:
        """Load one 32-bit value, or 2 or 4 side by side; from shared memory if the address has 32 bits."""
        where = "shared" if address.v.type == i32 else "global"
        letter = "f32" if kind == f32 else "b32"
        if count == 1:
            return self.asm(f"ld.{where}.{letter} $0, [$1];", [kind], [address], effect=True)
        registers = ", ".join(f"${k}" for k in range(count))
        text = f"ld.{where}.v{count}.{letter} {{{registers}}}, [${count}];"
        return self.asm(text, [kind] * count, [address], effect=True)

    def load4_where(self, condition: Value, address: Value, otherwise: float) -> list[Value]:
        """Load four floats side by side from global memory, on a multiple of 16, where a condition holds."""
        text = "{ .reg .pred p; setp.ne.b32 p, $4, 0; @p ld.global.v4.f32 {$0, $1, $2, $3}, [$5]; }"
        ins = [self.flag(condition), address]
        return self.asm(text, [f32] * 4, ins, tied=[self.real(otherwise)] * 4, effect=True)  # type: ignore[no-any-return]

    def load_where(self, condition: Value, address: Value, otherwise: Value) -> Value:
        """Load a 32-bit value from global memory where a condition holds; else `otherwise`."""
        letter = "f32" if otherwise.v.type == f32 else "b32"
        text = f"{{ .reg .pred p; setp.ne.b32 p, $1, 0; @p ld.global.{letter} $0, [$2]; }}"
        kind = otherwise.v.type
        return self.asm(text, [kind], [self.flag(condition), address], tied=[otherwise], effect=True)  # type: ignore[no-any-return]

    def store(self, value: Value, address: Value, where: Value | None = None) -> None:
        """Store a 32-bit value; with `where`, only where that condition holds."""
        letter = "f32" if value.v.type == f32 else "b32"
        space = "shared" if address.v.type == i32 else "global"
        if where is None:
            self.asm(f"st.{space}.{letter} [$0], $1;", [], [address, value], effect=True)
            return
        text = f"{{ .reg .pred p; setp.ne.b32 p, $2, 0; @p st.{space}.{letter} [$0], $1; }}"
        self.asm(text, [], [address, value, self.flag(where)], effect=True)

    def store4(self, values: Sequence[Value], address: Value) -> None:
        """Store four 32-bit values side by side, on a multiple of 16."""
        space = "shared" if address.v.type == i32 else "global"
        self.asm(f"st.{space}.v4.b32 [$0], {{$1, $2, $3, $4}};", [], [address, *values], effect=True)

    def store2(self, first: Value, second: Value, address: Value, where: Value) -> None:
        """Store two floats side by side to global memory, on a multiple of 8, where a condition holds."""
        text = "{ .reg .pred p; setp.ne.b32 p, $3, 0; @p st.global.v2.f32 [$0], {$1, $2}; }"
        self.asm(text, [], [address, first, second, self.flag(where)], effect=True)

    def add_to(self, address: Value, value: Value, where: Value | None = None) -> None:
        """Add a float to one in global memory; with `where`, only where that condition holds."""
        if where is None:
            self.asm("red.global.add.f32 [$0], $1;", [], [address, value], effect=True)
            return
        text = "{ .reg .pred p; setp.ne.b32 p, $2, 0; @p red.global.add.f32 [$0], $1; }"
        self.asm(text, [], [address, value, self.flag(where)], effect=True)

    def flag(self, condition: Value) -> Value:
        return Value(self.b, self.b.zext(condition.v, i32))

    def copy(self, shared: Value, source: Value, size: int, valid: Value) -> None:
        """Start an asynchronous copy of 4, 8 or 16 bytes to shared memory; `valid` of them are read, the rest is 0."""
        kind = "cg" if size == 16 else "ca"
        text = f"cp.async.{kind}.shared.global [$0], [$1], {size}, $2;"
        self.asm(text, [], [shared, source, valid], effect=True)

    def commit_copies(self) -> None:
        self.asm("cp.async.commit_group;", [], [], effect=True)

    def wait_copies(self, pending: int) -> None:
        """Wait until at most `pending` committed groups of copies are in flight."""
        self.asm(f"cp.async.wait_group {pending};", [], [], effect=True)

    def matrices(self, shared: Value, transposed: bool = False) -> list[Value]:
        """Four 8 x 8 matrices of halves from shared memory, a register each: lane l gives the address of row l % 8 of
        matrix l / 8 and receives of each matrix the elements 2 * (l % 4) and the next of row l / 4."""
        form = ".trans" if transposed else ""
        text = f"ldmatrix.sync.aligned.m8n8.x4{form}.shared.b16 {{$0, $1, $2, $3}}, [$4];"
        return self.asm(text, [i32] * 4, [shared], effect=True)  # type: ignore[no-any-return]

    # ---- packed halves and floats

    def permute(self, a: Value, b: Value | int, selector: int) -> Value:
        """Four of the eight bytes of b:a, each named by a nibble of the selector, the lowest first."""
        other = self.word(b) if isinstance(b, int) else b
        return self.asm(f"prmt.b32 $0, $1, $2, 0x{selector:04x};", [i32], [a, other])  # type: ignore[no-any-return]

    def bytes_at(self, a: Value, b: Value, places: Value) -> Value:
        """Four of the eight bytes of b:a, as `permute`, but named at run time by the lowest four nibbles of
        `places`."""
        return self.asm("prmt.b32 $0, $1, $2, $3;", [i32], [a, b, places])  # type: ignore[no-any-return]

    def mask_or(self, a: Value, mask: int, b: int) -> Value:
        """The value a & mask | b in one instruction; LLVM alone might make two."""
        return self.asm(f"lop3.b32 $0, $1, {mask:#x}, {b:#x}, 0xea;", [i32], [a])  # type: ignore[no-any-return]

    def twice(self, halves: Value, which: int) -> Value:
        """One half of a pair, repeated in both places."""
        return self.permute(halves, 0, 0x3232 if which else 0x1010)

    def half2_sub(self, a: Value, b: Value) -> Value:
        return self.asm("sub.f16x2 $0, $1, $2;", [i32], [a, b])  # type: ignore[no-any-return]

    def half2_mul(self, a: Value, b: Value) -> Value:
        return self.asm("mul.rn.f16x2 $0, $1, $2;", [i32], [a, b])  # type: ignore[no-any-return]

    def half2_fma(self, a: Value, b: Value, c: Value) -> Value:
        return self.asm("fma.rn.f16x2 $0, $1, $2, $3;", [i32], [a, b, c])  # type: ignore[no-any-return]

    def halves(self, low: Value, high: Value) -> Value:
        """Two floats, rounded to a pair of halves."""
        return self.asm("cvt.rn.f16x2.f32 $0, $1, $2;", [i32], [high, low])  # type: ignore[no-any-return]

    def as_float(self, bits: Value) -> Value:
        return Value(self.b, self.b.bitcast(bits.v, f32))

    def as_bits(self, value: Value) -> Value:
        return Value(self.b, self.b.bitcast(value.v, i32))

    def float_of(self, value: Value) -> Value:
        """The float value of an unsigned integer."""
        return Value(self.b, self.b.uitofp(value.v, f32))

    def fma(self, a: Value, b: Value, c: Value) -> Value:
        return self.asm("fma.rn.f32 $0, $1, $2, $3;", [f32], [a, b, c])  # type: ignore[no-any-return]

    def max(self, a: Value, b: Value) -> Value:
        return self.asm("max.f32 $0, $1, $2;", [f32], [a, b])  # type: ignore[no-any-return]

    def exp2(self, a: Value) -> Value:
        return self.asm("ex2.approx.ftz.f32 $0, $1;", [f32], [a])  # type: ignore[no-any-return]

    def function(self, name: str, a: Value) -> Value:
        """An approximate PTX function of one float, such as `rcp.approx.ftz` or `rsqrt.approx.ftz`."""
        return self.asm(f"{name}.f32 $0, $1;", [f32], [a])  # type: ignore[no-any-return]

    def from_lane(self, value: Value, distance: int) -> Value:
        """The value of the lane whose number differs from this one's in the bits of `distance`."""
        text = f"shfl.sync.bfly.b32 $0, $1, {distance}, 31, 0xffffffff;"
        return self.asm(text, [value.v.type], [value], effect=True)  # type: ignore[no-any-return]

    # ---- tensor cores

    def mma(self, sums: Sequence[Value], a: Sequence[Value], b: Sequence[Value]) -> list[Value]:
        """sums + A B for A [16, 16] and B [16, 8] of halves. With g = lane / 4 and t = lane % 4, A's registers hold the
        columns 2t, 2t + 1 of the rows g and g + 8, then 2t + 8, 2t + 9 of both; B's the rows 2t, 2t + 1 of column g,
        then 2t + 8, 2t + 9; the sums the columns 2t, 2t + 1 of row g, then of g + 8."""
        text = "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {$0,$1,$2,$3}, {$4,$5,$6,$7}, {$8,$9}, {$0,$1,$2,$3};"
        return self.asm(text, [f32] * 4, [*a, *b], tied=sums, effect=True)  # type: ignore[no-any-return]

    def group_mma(self, sums: Sequence[Value], a: Sequence[Value], b: Value) -> list[Value]:
        """Start sums + A B on a Hopper warp group: A [64, 16] of halves, each of the four warps holding 16 rows as in
        `mma`; B [16, 2 * len(sums)] in shared memory, its descriptor `b` by `tile_descriptor`."""
        n = len(sums)
        text = (
            f"wgmma.mma_async.sync.aligned.m64n{2 * n}k16.f32.f16.f16 {{{', '.join(f'${k}' for k in range(n))}}}, "
            f"{{${n}, ${n + 1}, ${n + 2}, ${n + 3}}}, ${n + 4}, 1, 1, 1, 0;"
        )
        return self.asm(text, [f32] * n, [*a, b], tied=sums, effect=True)  # type: ignore[no-any-return]

    def tile_descriptor(self, shared: Value) -> Value:
        """Descriptor of 128-byte rows at a multiple of 1024, 16-byte pieces exchanged by `piece ^ row % 8`."""
        return ((shared & 0x3FFFF) >> 4).wide() | (1 << 62 | 64 << 32 | 1 << 16)

    def group_fence(self) -> None:
        """Fence between writing registers and passing them to `group_mma`."""
        self.asm("wgmma.fence.sync.aligned;", [], [], effect=True)

    def group_commit(self) -> None:
        self.asm("wgmma.commit_group.sync.aligned;", [], [], effect=True)

    def group_wait(self, pending: int, sums: Sequence[Value]) -> list[Value]:
        """Wait until at most `pending` committed groups are in flight; returns the sums."""
        text = f"wgmma.wait_group.sync.aligned {pending};"
        return self.asm(text, [f32] * len(sums), [], tied=sums, effect=True)  # type: ignore[no-any-return]

    def shared_fence(self) -> None:
        """Make copies that have arrived visible to `group_mma`."""
        self.asm("fence.proxy.async.shared::cta;", [], [], effect=True)


def kernel(name: str, kinds: str, emit: Callable[..., None]) -> Any:
    """A function for numba whose code is what `emit(warp, *parameters)` emits. `kinds`: "u64 u32 f32", the types of its
    parameters, all unsigned or float."""
    numba = {"u64": types.uint64, "u32": types.uint32, "f32": types.float32}
    signature = types.void(*(numba[kind] for kind in kinds.split()))

    def codegen(context: Any, builder: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        emit(Warp(builder), *(Value(builder, a) for a in args))
        return context.get_dummy_value()

    # numba reads the number of parameters off a function's Python signature, so both are written for it
    names = ", ".join(f"a{k}" for k in range(len(kinds.split())))
    scope: dict[str, Any] = {"answer": (signature, codegen)}
    exec(f"def body(typingctx, {names}):\n    return answer\n", scope)
    scope["body"] = intrinsic(scope["body"])
    exec(f"def {name}({names}):\n    body({names})\n", scope)
    return scope[name]
