"""The quantizers' vector instructions: one block of 32 weights at a time, as LLVM IR.

numba's loops over so few elements are unrolled into scalars or guarded by alias checks, which costs a factor of five.
The vectors here are 32 wide on every machine; LLVM cuts them to the width that the CPU has. Addresses travel as
uintp. Importing this module imports numba.
"""

from __future__ import annotations

from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

_I1, _I8, _I32, _F32 = ir.IntType(1), ir.IntType(8), ir.IntType(32), ir.FloatType()
_V8, _V32, _VF = ir.VectorType(_I8, 32), ir.VectorType(_I32, 32), ir.VectorType(_F32, 32)
_MAGNITUDE = 0x7FFFFFFF


def splat(builder: ir.IRBuilder, value: Any, vector: ir.VectorType) -> Any:
    """`value` in every lane."""
    one = builder.insert_element(ir.Constant(vector, ir.Undefined), value, _I32(0))
    return builder.shuffle_vector(one, one, ir.Constant(ir.VectorType(_I32, vector.count), None))


def constant(vector: ir.VectorType, value: int | float) -> ir.Constant:
    return ir.Constant(vector, [vector.element(value)] * vector.count)


def load(builder: ir.IRBuilder, address: Any, vector: ir.VectorType) -> Any:
    value = builder.load(builder.inttoptr(address, vector.as_pointer()))
    value.align = 1
    return value


def store(builder: ir.IRBuilder, value: Any, address: Any, offset: int) -> None:
    at = builder.add(address, address.type(offset))
    builder.store(value, builder.inttoptr(at, value.type.as_pointer())).align = 1


def intrinsic_call(builder: ir.IRBuilder, name: str, result: Any, *args: Any) -> Any:
    kind = ir.FunctionType(result, [arg.type for arg in args])
    return builder.call(cgutils.get_or_insert_function(builder.module, kind, name), args)


def _mask(builder: ir.IRBuilder, lanes: Any) -> Any:
    """<32 x i1> → i32 with bit j from lane j."""
    return builder.bitcast(lanes, _I32)


def _sign_of_first(builder: ir.IRBuilder, lanes: Any, bits: Any) -> Any:
    """The sign bit, in its place, of the first lane that is set in `lanes`; lane 0's if none is."""
    first = intrinsic_call(builder, "llvm.cttz.i32", _I32, _mask(builder, lanes), _I1(0))
    first = builder.and_(first, _I32(31))
    negative = _mask(builder, builder.icmp_signed("<", bits, constant(_V32, 0)))
    return builder.shl(builder.lshr(negative, first), _I32(31))


@intrinsic
def largest(typing_context: Any, x: Any) -> Any:
    """The one of largest magnitude among 32 float32 at `x`, the first of equals; not finite if one of them is not."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = load(builder, args[0], _V32)
        size = builder.and_(bits, constant(_V32, _MAGNITUDE))
        top = intrinsic_call(builder, "llvm.vector.reduce.umax.v32i32", _I32, size)
        equal = builder.icmp_unsigned("==", size, splat(builder, top, _V32))
        return builder.bitcast(builder.or_(top, _sign_of_first(builder, equal, bits)), _F32)

    return types.float32(types.uintp), codegen


@intrinsic
def bounds(typing_context: Any, x: Any) -> Any:
    """(smallest, largest) of 32 float32 at `x`; a smallest zero has the sign of the first zero, as in a scan."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        bits = load(builder, args[0], _V32)

        def ascending(
            value: Any,
        ) -> Any:  # negatives' magnitudes flipped: such integers ascend as the floats do, and back
            kind = value.type
            number = (lambda n: constant(kind, n)) if isinstance(kind, ir.VectorType) else kind
            flip = builder.and_(builder.ashr(value, number(31)), number(_MAGNITUDE))
            return builder.xor(value, flip)

        order = ascending(bits)
        low = ascending(intrinsic_call(builder, "llvm.vector.reduce.smin.v32i32", _I32, order))
        high = ascending(intrinsic_call(builder, "llvm.vector.reduce.smax.v32i32", _I32, order))
        zeros = builder.icmp_unsigned("==", builder.and_(bits, constant(_V32, _MAGNITUDE)), constant(_V32, 0))
        is_zero = builder.icmp_unsigned("==", builder.and_(low, _I32(_MAGNITUDE)), _I32(0))
        low = builder.select(is_zero, _sign_of_first(builder, zeros, bits), low)
        pair = [builder.bitcast(low, _F32), builder.bitcast(high, _F32)]
        return context.make_tuple(builder, signature.return_type, pair)

    return types.UniTuple(types.float32, 2)(types.uintp), codegen


def _codes(builder: ir.IRBuilder, x: Any, base: Any, inverse: Any, shift: Any, most: int) -> Any:
    """⌊(x − base) · inverse + shift⌋, at most `most`, as <32 x i8>. Each operation is rounded by itself."""
    values = load(builder, x, _VF)
    values = builder.fsub(values, splat(builder, base, _VF))
    values = builder.fmul(values, splat(builder, inverse, _VF))
    values = builder.fadd(values, splat(builder, shift, _VF))
    whole = builder.fptosi(values, _V32)
    return builder.trunc(intrinsic_call(builder, "llvm.smin.v32i32", _V32, whole, constant(_V32, most)), _V8)


def _store_nibbles(builder: ir.IRBuilder, codes: Any, out: Any, offset: int) -> None:
    """The low four bits: weights 0..15 in the low nibbles, 16..31 in the high ones."""

    def half(first: int) -> Any:
        lanes = ir.Constant(ir.VectorType(_I32, 16), list(range(first, first + 16)))
        return builder.shuffle_vector(codes, codes, lanes)

    kind = ir.VectorType(_I8, 16)
    low = builder.and_(half(0), constant(kind, 15))
    high = builder.shl(half(16), constant(kind, 4))
    store(builder, builder.or_(low, high), out, offset)


_ENCODER = types.void(types.uintp, types.uintp, types.float32, types.float32, types.float32)


@intrinsic
def encode_4_bits(typing_context: Any, x: Any, out: Any, base: Any, inverse: Any, shift: Any) -> Any:
    """32 float32 at `x` → 16 bytes of nibbles at `out`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, out, base, inverse, shift = args
        _store_nibbles(builder, _codes(builder, x, base, inverse, shift, 15), out, 0)
        return context.get_dummy_value()

    return _ENCODER, codegen


@intrinsic
def encode_5_bits(typing_context: Any, x: Any, out: Any, base: Any, inverse: Any, shift: Any) -> Any:
    """32 float32 at `x` → 4 bytes of fifth bits and 16 bytes of nibbles at `out`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, out, base, inverse, shift = args
        codes = _codes(builder, x, base, inverse, shift, 31)
        fifth = builder.icmp_unsigned(">", codes, constant(_V8, 15))
        store(builder, _mask(builder, fifth), out, 0)
        _store_nibbles(builder, codes, out, 4)
        return context.get_dummy_value()

    return _ENCODER, codegen


@intrinsic
def encode_8_bits(typing_context: Any, x: Any, out: Any, base: Any, inverse: Any, shift: Any) -> Any:
    """32 float32 at `x`, times `inverse`, halves rounded away from zero → 32 signed bytes at `out`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        x, out, _, inverse, _ = args
        values = builder.fmul(load(builder, x, _VF), splat(builder, inverse, _VF))
        whole = builder.fptosi(values, _V32)
        rest = builder.fsub(values, builder.sitofp(whole, _VF))  # exact
        up = builder.zext(builder.fcmp_ordered(">=", rest, constant(_VF, 0.5)), _V32)
        down = builder.zext(builder.fcmp_ordered("<=", rest, constant(_VF, -0.5)), _V32)
        rounded = builder.sub(builder.add(whole, up), down)
        store(builder, builder.trunc(rounded, _V8), out, 0)
        return context.get_dummy_value()

    return _ENCODER, codegen


@intrinsic
def clear(typing_context: Any, out: Any, n_bytes: Any) -> Any:
    """Zero `n_bytes` bytes from `out`."""

    def codegen(context: Any, builder: Any, signature: Any, args: Any) -> Any:
        out, n_bytes = args
        cgutils.memset(builder, builder.inttoptr(out, _I8.as_pointer()), n_bytes, 0)
        return context.get_dummy_value()

    return types.void(types.uintp, types.intp), codegen
