"""The instructions that kernels are made of: loads and stores at plain addresses, dot products, matrix units, copies to
shared memory, warp shuffles, and what orders dependent launches.

Addresses of global memory are uint64, of shared memory uint32 (as PTX wants them): kernels take, add and pass numbers.
Everything here is emitted as inline PTX or as plain LLVM loads; nothing is called. Names with `shared_` take shared
addresses. Sources: the PTX ISA manual.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from llvmlite import ir
from numba.cuda import types
from numba.cuda.extending import intrinsic

_LLVM = {
    "i16": ir.IntType(16), "u16": ir.IntType(16), "i32": ir.IntType(32), "u32": ir.IntType(32),
    "u64": ir.IntType(64), "f32": ir.FloatType(),
}  # fmt: skip
_NUMBA = {
    "i16": types.int16, "u16": types.uint16, "i32": types.int32, "u32": types.uint32, "u64": types.uint64,
    "f32": types.float32,
}  # fmt: skip
_LETTER = {"i16": "h", "u16": "h", "i32": "r", "u32": "r", "u64": "l", "f32": "f"}


def ptx(name: str, outs: str, ins: str, text: str, *, ordered: bool = False, memory: bool = False) -> Any:
    """An intrinsic that is one piece of PTX: `outs` and `ins` name the types of its results and operands.

    ordered: must not be moved or dropped (barriers, stores, loads of what others write). memory: other memory accesses
    must not move across it.
    """
    out_types, in_types = outs.split(), ins.split()
    constraint = ",".join(["=" + _LETTER[o] for o in out_types] + [_LETTER[i] for i in in_types])
    if memory:
        constraint += ",~{memory}" if constraint else "~{memory}"
    arguments = [_LLVM[i] for i in in_types]
    if not out_types:
        result, llvm_result = types.void, ir.VoidType()
    elif len(out_types) == 1:
        result, llvm_result = _NUMBA[outs], _LLVM[outs]
    else:
        result = types.UniTuple(_NUMBA[out_types[0]], len(out_types))
        llvm_result = ir.LiteralStructType([_LLVM[o] for o in out_types])
    signature = result(*(_NUMBA[i] for i in in_types))

    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        function = ir.InlineAsm(ir.FunctionType(llvm_result, arguments), text, constraint, side_effect=ordered)
        value = b.call(function, args)
        if not out_types:
            return context.get_dummy_value()
        if len(out_types) == 1:
            return value
        return context.make_tuple(b, result, [b.extract_value(value, k) for k in range(len(out_types))])

    return _intrinsic(name, len(in_types), signature, codegen)


def _intrinsic(name: str, n_args: int, signature: Any, codegen: Any) -> Any:
    """A numba intrinsic with a Python signature written for it, off which numba reads its parameters."""
    names = "".join(f", a{i}" for i in range(n_args))
    scope: dict[str, Any] = {"answer": (signature, codegen)}
    exec(f"def {name}(typingctx{names}):\n    return answer", scope)
    return intrinsic(scope[name])


def _pointer(b: ir.IRBuilder, address: ir.Value, element: ir.Type, space: int) -> ir.Value:
    return b.inttoptr(address, ir.PointerType(element, space))


def _load(name: str, stored: ir.Type, result: str, space: int, convert: str | None = None) -> Any:
    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        value = b.load(_pointer(b, args[0], stored, space), align=stored.width // 8 if hasattr(stored, "width") else 4)
        return getattr(b, convert)(value, _LLVM[result]) if convert else value

    return _intrinsic(name, 1, _NUMBA[result](types.uint32 if space == 3 else types.uint64), codegen)


def _store(name: str, stored: ir.Type, given: str, space: int, convert: str | None = None) -> Any:
    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        value = getattr(b, convert)(args[1], stored) if convert else args[1]
        b.store(value, _pointer(b, args[0], stored, space), align=stored.width // 8 if hasattr(stored, "width") else 4)
        return context.get_dummy_value()

    return _intrinsic(name, 2, types.void(types.uint32 if space == 3 else types.uint64, _NUMBA[given]), codegen)


_i8, _i16, _i32, _f32 = ir.IntType(8), ir.IntType(16), ir.IntType(32), ir.FloatType()

# ---- memory, one value at a time; bytes and halves come widened to 32 bits

load_f32 = _load("load_f32", _f32, "f32", 1)
load_i32 = _load("load_i32", _i32, "i32", 1)
load_u32 = _load("load_u32", _i32, "u32", 1)
load_u16 = _load("load_u16", _i16, "u32", 1, "zext")
load_u8 = _load("load_u8", _i8, "u32", 1, "zext")
load_i8 = _load("load_i8", _i8, "i32", 1, "sext")
store_f32 = _store("store_f32", _f32, "f32", 1)
store_i32 = _store("store_i32", _i32, "i32", 1)
store_u32 = _store("store_u32", _i32, "u32", 1)
store_u16 = _store("store_u16", _i16, "u32", 1, "trunc")
store_u8 = _store("store_u8", _i8, "u32", 1, "trunc")

shared_load_f32 = _load("shared_load_f32", _f32, "f32", 3)
shared_load_u32 = _load("shared_load_u32", _i32, "u32", 3)
shared_load_u8 = _load("shared_load_u8", _i8, "u32", 3, "zext")
shared_load_u16 = _load("shared_load_u16", _i16, "u32", 3, "zext")
shared_store_f32 = _store("shared_store_f32", _f32, "f32", 3)
shared_store_u32 = _store("shared_store_u32", _i32, "u32", 3)


def constants(name: str, values: Sequence[int]) -> Any:
    """An intrinsic that returns the i-th of some 16-bit numbers, which are a constant array in the kernel."""

    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        kind = ir.ArrayType(_i16, len(values))
        table = b.module.globals.get(name)
        if table is None:
            table = ir.GlobalVariable(b.module, kind, name, addrspace=1)
            table.linkage, table.global_constant, table.align = "internal", True, 16
            table.initializer = ir.Constant(kind, [int(v) for v in values])
        return b.zext(b.load(b.gep(table, [ir.Constant(_i32, 0), args[0]]), align=2), _i32)

    return _intrinsic(name, 1, types.uint32(types.int32), codegen)


# ---- memory, 8 and 16 bytes at a time

# Weights pass once: past the first cache, so that it keeps the activations.
stream_128 = ptx("stream_128", "u32 u32 u32 u32", "u64", "ld.global.nc.L1::no_allocate.v4.u32 {$0,$1,$2,$3}, [$4];")
stream_64 = ptx("stream_64", "u32 u32", "u64", "ld.global.nc.L1::no_allocate.v2.u32 {$0,$1}, [$2];")
stream_32 = ptx("stream_32", "u32", "u64", "ld.global.nc.L1::no_allocate.u32 $0, [$1];")
stream_u16 = ptx("stream_u16", "u32", "u64", "{.reg .u16 t; ld.global.nc.u16 t, [$1]; cvt.u32.u16 $0, t;}")
# Past the first cache, which may hold what was there before: for what is read before `wait_for_previous`.
fresh_i32 = ptx("fresh_i32", "i32", "u64", "ld.global.cg.s32 $0, [$1];", ordered=True)
fresh_f32 = ptx("fresh_f32", "f32", "u64", "ld.global.cg.f32 $0, [$1];", ordered=True)
# What an earlier kernel, perhaps not long ended, has written: never through the read-only path, never moved.
load_128 = ptx("load_128", "u32 u32 u32 u32", "u64", "ld.global.v4.u32 {$0,$1,$2,$3}, [$4];", ordered=True)
load_64 = ptx("load_64", "u32 u32", "u64", "ld.global.v2.u32 {$0,$1}, [$2];", ordered=True)
load_4f32 = ptx("load_4f32", "f32 f32 f32 f32", "u64", "ld.global.v4.f32 {$0,$1,$2,$3}, [$4];", ordered=True)
load_2f32 = ptx("load_2f32", "f32 f32", "u64", "ld.global.v2.f32 {$0,$1}, [$2];", ordered=True)
store_4f32 = ptx(
    "store_4f32", "", "u64 f32 f32 f32 f32", "st.global.v4.f32 [$0], {$1,$2,$3,$4};", ordered=True, memory=True
)
store_128 = ptx(
    "store_128", "", "u64 u32 u32 u32 u32", "st.global.v4.u32 [$0], {$1,$2,$3,$4};", ordered=True, memory=True
)
store_64 = ptx("store_64", "", "u64 u32 u32", "st.global.v2.u32 [$0], {$1,$2};", ordered=True, memory=True)
shared_load_128 = ptx(
    "shared_load_128", "u32 u32 u32 u32", "u32", "ld.shared.v4.u32 {$0,$1,$2,$3}, [$4];", ordered=True, memory=True
)
shared_load_64 = ptx("shared_load_64", "u32 u32", "u32", "ld.shared.v2.u32 {$0,$1}, [$2];", ordered=True, memory=True)
shared_store_4f32 = ptx(
    "shared_store_4f32", "", "u32 f32 f32 f32 f32", "st.shared.v4.f32 [$0], {$1,$2,$3,$4};", ordered=True, memory=True
)
shared_store_128 = ptx(
    "shared_store_128", "", "u32 u32 u32 u32 u32", "st.shared.v4.u32 [$0], {$1,$2,$3,$4};", ordered=True, memory=True
)

# ---- shared memory


@intrinsic
def dynamic_shared(typingctx: Any) -> Any:
    """The shared address of the block's dynamic memory, whose size the launch gives."""

    def codegen(context: Any, b: ir.IRBuilder, sig: Any, args: Any) -> ir.Value:
        name = "ggpy_dynamic_shared"
        memory = b.module.globals.get(name)
        if memory is None:
            memory = ir.GlobalVariable(b.module, ir.ArrayType(_i8, 0), name, addrspace=3)
            memory.linkage, memory.align = "external", 128
        return b.ptrtoint(memory, _i32)

    return types.uint32(), codegen


# ---- halves

half_to_f32 = ptx("half_to_f32", "f32", "u32", "{.reg .b16 h, x; mov.b32 {h, x}, $1; cvt.f32.f16 $0, h;}")
halves_to_f32 = ptx(
    "halves_to_f32", "f32 f32", "u32",
    "{.reg .b16 l, h; mov.b32 {l, h}, $2; cvt.f32.f16 $0, l; cvt.f32.f16 $1, h;}",
)  # fmt: skip
f32_to_half = ptx("f32_to_half", "u32", "f32", "{.reg .b16 h; cvt.rn.f16.f32 h, $1; cvt.u32.u16 $0, h;}")
half2_sub = ptx("half2_sub", "u32", "u32 u32", "sub.rn.f16x2 $0, $1, $2;")
half2_mul = ptx("half2_mul", "u32", "u32 u32", "mul.rn.f16x2 $0, $1, $2;")
half2_fma = ptx("half2_fma", "u32", "u32 u32 u32", "fma.rn.f16x2 $0, $1, $2, $3;")
bits_to_f32 = ptx("bits_to_f32", "f32", "u32", "mov.b32 $0, $1;")
f32_to_bits = ptx("f32_to_bits", "u32", "f32", "mov.b32 $0, $1;")

# ---- arithmetic

dp4a = ptx("dp4a", "i32", "u32 u32 i32", "dp4a.s32.s32 $0, $1, $2, $3;")  # signed bytes by signed bytes
i32_to_f32 = ptx("i32_to_f32", "f32", "i32", "cvt.rn.f32.s32 $0, $1;")
round_to_i32 = ptx("round_to_i32", "i32", "f32", "cvt.rni.s32.f32 $0, $1;")  # ties to even
fma = ptx("fma", "f32", "f32 f32 f32", "fma.rn.f32 $0, $1, $2, $3;")
exp2 = ptx("exp2", "f32", "f32", "ex2.approx.ftz.f32 $0, $1;")
log2 = ptx("log2", "f32", "f32", "lg2.approx.ftz.f32 $0, $1;")
reciprocal = ptx("reciprocal", "f32", "f32", "rcp.approx.ftz.f32 $0, $1;")
divide = ptx("divide", "f32", "f32 f32", "div.rn.f32 $0, $1, $2;")
root = ptx("root", "f32", "f32", "sqrt.rn.f32 $0, $1;")
inverse_root = ptx("inverse_root", "f32", "f32", "rsqrt.approx.ftz.f32 $0, $1;")
larger = ptx("larger", "f32", "f32 f32", "max.f32 $0, $1, $2;")
smaller = ptx("smaller", "f32", "f32 f32", "min.f32 $0, $1, $2;")
magnitude = ptx("magnitude", "f32", "f32", "abs.f32 $0, $1;")
pack_bytes = ptx(  # the low bytes of four numbers, the first lowest
    "pack_bytes", "u32", "i32 i32 i32 i32",
    "{.reg .b32 x, y; prmt.b32 x, $1, $2, 0x0040; prmt.b32 y, $3, $4, 0x0040; prmt.b32 $0, x, y, 0x5410;}",
)  # fmt: skip
permute = ptx("permute", "u32", "u32 u32 u32", "prmt.b32 $0, $1, $2, $3;")
logic_and_or = ptx("logic_and_or", "u32", "u32 u32 u32", "lop3.b32 $0, $1, $2, $3, 0xea;")  # (a & b) | c

# (word xor signs) and mask, in one instruction: nibbles in the high halves of bytes, their offset of 8 taken off
logic_xor_and = ptx("logic_xor_and", "u32", "u32 u32 u32", "lop3.b32 $0, $1, $2, $3, 0x28;")
# Small integers as floats, not converted: a dot product summed onto these bits, read as a float, is 3 * 2^22 more.
FLOAT_BASE_BITS = 0x4B400000
FLOAT_BASE = 12582912.0

# ---- lanes of a warp: the value of the lane whose number differs by `mask`, of lane `lane`

swap_f32 = ptx("swap_f32", "f32", "f32 u32", "shfl.sync.bfly.b32 $0, $1, $2, 31, 0xffffffff;", ordered=True)
swap_i32 = ptx("swap_i32", "i32", "i32 u32", "shfl.sync.bfly.b32 $0, $1, $2, 31, 0xffffffff;", ordered=True)
# the value of the lane `step` below; of the lane itself where there is none
shift_f32 = ptx("shift_f32", "f32", "f32 u32", "shfl.sync.up.b32 $0, $1, $2, 0, 0xffffffff;", ordered=True)
sync_warp = ptx("sync_warp", "", "", "bar.warp.sync 0xffffffff;", ordered=True, memory=True)
sync_block = ptx("sync_block", "", "", "bar.sync 0;", ordered=True, memory=True)
# the same, and of how many threads of the block the word is not 0
count_block = ptx(
    "count_block", "u32", "u32",
    "{.reg .pred p; setp.ne.u32 p, $1, 0; bar.red.popc.u32 $0, 0, p;}", ordered=True, memory=True,
)  # fmt: skip
shared_add = ptx("shared_add", "u32", "u32 u32", "atom.shared.add.u32 $0, [$1], $2;", ordered=True, memory=True)


# ---- copies to shared memory that run on while the warp goes on

copy_16 = ptx("copy_16", "", "u32 u64", "cp.async.cg.shared.global [$0], [$1], 16;", ordered=True, memory=True)
# copies `size` bytes (0 to 16) and fills the rest of the 16 with zeros
copy_16_or_zero = ptx(
    "copy_16_or_zero", "", "u32 u64 u32", "cp.async.cg.shared.global [$0], [$1], 16, $2;", ordered=True, memory=True
)
copy_8_or_zero = ptx(
    "copy_8_or_zero", "", "u32 u64 u32", "cp.async.ca.shared.global [$0], [$1], 8, $2;", ordered=True, memory=True
)
copy_4_or_zero = ptx(
    "copy_4_or_zero", "", "u32 u64 u32", "cp.async.ca.shared.global [$0], [$1], 4, $2;", ordered=True, memory=True
)
copy_commit = ptx("copy_commit", "", "", "cp.async.commit_group;", ordered=True, memory=True)


def copy_wait(n: int) -> Any:
    """An intrinsic that waits until at most `n` groups of copies are pending."""
    return ptx(f"copy_wait_{n}", "", "", f"cp.async.wait_group {n};", ordered=True, memory=True)


# ---- dependent launches: wait for the kernels before (nothing they wrote may be read sooner), let the next one start

wait_for_previous = ptx("wait_for_previous", "", "", "griddepcontrol.wait;", ordered=True, memory=True)
release_next = ptx("release_next", "", "", "griddepcontrol.launch_dependents;", ordered=True, memory=True)

# ---- what another GPU writes, or reads: past every cache of this one

poll_128 = ptx(
    "poll_128", "u32 u32 u32 u32", "u64", "ld.volatile.global.v4.u32 {$0,$1,$2,$3}, [$4];", ordered=True, memory=True
)
store_far_64 = ptx(
    "store_far_64", "", "u64 u32 u32", "st.volatile.global.v2.u32 [$0], {$1,$2};", ordered=True, memory=True
)
load_far_4f32 = ptx(
    "load_far_4f32",
    "f32 f32 f32 f32",
    "u64",
    "ld.volatile.global.v4.f32 {$0,$1,$2,$3}, [$4];",
    ordered=True,
    memory=True,
)
# a mark that is seen only after everything written before it, and the reading of one before everything read after it
store_mark = ptx("store_mark", "", "u64 u32", "st.release.sys.global.u32 [$0], $1;", ordered=True, memory=True)
load_mark = ptx("load_mark", "u32", "u64", "ld.acquire.sys.global.u32 $0, [$1];", ordered=True, memory=True)
# Ends the kernel with an error that the host is told.
trap = ptx("trap", "", "", "trap;", ordered=True, memory=True)

# A hint to bring so many bytes, a multiple of 16 on such a boundary, to the second cache; nothing waits for it. Not
# where launches cannot overlap (`compile.to_ptx`).
bring_near = ptx("bring_near", "", "u64 u32", "cp.async.bulk.prefetch.L2.global [$0], $1;", ordered=True)
