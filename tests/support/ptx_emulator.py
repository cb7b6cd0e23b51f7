"""Runs PTX on the CPU, exactly and slowly: what kernels compute can so be tested where there is no GPU.

All threads of a block are numpy vectors. Of the threads that can go on, those at the lowest instruction take a step
together, so they meet again behind branches; barriers wait for the block, and what a warp does together (shuffles,
matrix units) must find its lanes together. Memory is numpy arrays at their own addresses; an access outside them, or
off its alignment, is an error. Sources: the PTX ISA manual.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tests.support.ptx_memory import Memory
from tests.support.ptx_text import Entry, Instruction
from tests.support.ptx_together import Together

Array = np.ndarray
UINT = {8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
SINT = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
FLOAT = {16: np.float16, 32: np.float32, 64: np.float64}


class Trap(Exception):
    """A kernel has ended itself."""


class Block(Together):
    """One block on its way through a kernel."""

    def __init__(
        self, entry: Entry, memory: Memory, values: list[int], threads: int, place: Any, grid: Any, dynamic: int
    ):
        self.e, self.memory, self.n = entry, memory, threads
        self.regs = {name: np.zeros(threads, bool if bits == 1 else UINT[bits]) for name, bits in entry.bits.items()}
        self.params = {name: value for (name, _), value in zip(entry.params, values, strict=True)}
        self.shared = np.frombuffer(np.random.default_rng(0).bytes(entry.shared_bytes + dynamic), np.uint8).copy()
        self.results: dict[int, tuple[Array, Array]] = {}  # of a matrix product, while its warps are gone through
        self.special = {
            "%tid.x": np.arange(threads, dtype=np.uint32), "%tid.y": 0, "%tid.z": 0,
            "%ntid.x": threads, "%ntid.y": 1, "%ntid.z": 1, "%laneid": np.arange(threads, dtype=np.uint32) % 32,
            **{f"%ctaid.{c}": p for c, p in zip("xyz", place, strict=True)},
            **{f"%nctaid.{c}": p for c, p in zip("xyz", grid, strict=True)},
        }  # fmt: skip

    # ---- operands

    def get(self, arg: Any, bits: int, kind: str = "u") -> Array:
        """An operand as a vector of the wanted type."""
        table = {"u": UINT, "b": UINT, "s": SINT, "f": FLOAT}[kind]
        if isinstance(arg, str):
            if arg in self.regs:
                value = self.regs[arg]
                if value.dtype == bool:
                    return value
                if value.dtype.itemsize * 8 != bits:
                    value = value.astype(UINT[bits])
                return value.view(table[bits])
            if arg in self.special:
                return np.broadcast_to(np.asarray(self.special[arg], UINT[bits]), self.n).view(table[bits])
            if arg in self.e.constants:
                return np.full(self.n, self.e.constants[arg].ctypes.data, UINT[bits])
            if arg in self.e.shared:
                return np.full(self.n, self.e.shared[arg], UINT[bits])
            if arg[:2].lower() in ("0f", "0d"):
                return np.full(self.n, int(arg[2:], 16), UINT[bits]).view(table[bits])
            number = int(arg, 0)
            return np.full(self.n, number & ((1 << bits) - 1), UINT[bits]).view(table[bits])
        raise NotImplementedError(arg)

    def put(self, arg: str, value: Array, mask: Array) -> None:
        if arg == "_":
            return
        reg = self.regs[arg]
        if reg.dtype == bool:
            reg[mask] = value[mask]
            return
        value = np.ascontiguousarray(np.broadcast_to(value, self.n))
        raw = value.view(UINT[value.dtype.itemsize * 8])
        if raw.dtype != reg.dtype:  # into a wider register by the sign of what it is
            raw = (value.astype(SINT[reg.dtype.itemsize * 8]) if value.dtype.kind == "i" else raw).astype(reg.dtype)
        reg[mask] = raw[mask]

    # ---- memory

    def address(self, arg: Any) -> Array:
        _, base, offset = arg
        return self.get(base, 64) + np.uint64(offset & (1 << 64) - 1)

    def read(self, shared: bool, address: Array, n: int, mask: Array) -> Array:
        """n bytes for each thread of the mask: uint8 [threads, n]."""
        out = np.zeros((self.n, n), np.uint8)
        where = address[mask]
        if (where % np.uint64(n)).any():
            raise MemoryError(f"a read of {n} bytes off its alignment")
        if shared:
            if (where + np.uint64(n) > self.shared.size).any():
                raise MemoryError("a read outside shared memory")
            out[mask] = self.shared[where.astype(np.int64)[:, None] + np.arange(n)]
            return out
        rows = np.flatnonzero(mask)
        for array, which, offset in self.memory.find(where, n):
            out[rows[which]] = array[offset[:, None] + np.arange(n)]
        return out

    def write(self, shared: bool, address: Array, data: Array, mask: Array) -> None:
        n = data.shape[1]
        where = address[mask]
        if (where % np.uint64(n)).any():
            raise MemoryError(f"a write of {n} bytes off its alignment")
        rows = np.flatnonzero(mask)
        if shared:
            if (where + np.uint64(n) > self.shared.size).any():
                raise MemoryError("a write outside shared memory")
            self.shared[where.astype(np.int64)[:, None] + np.arange(n)] = data[mask]
            return
        for array, which, offset in self.memory.find(where, n):
            array[offset[:, None] + np.arange(n)] = data[rows[which]]

    # ---- running

    def run(self) -> None:
        n, code = self.n, self.e.code
        pc, done, waiting = np.zeros(n, np.int64), np.zeros(n, bool), np.zeros(n, bool)
        counting: list[tuple[Instruction, Array]] = []  # barriers that also count, and who came to them
        with np.errstate(all="ignore"):
            while True:
                ready = ~done & ~waiting
                if not ready.any():
                    if done.all():
                        return
                    self._count(counting)
                    counting.clear()
                    waiting[:] = False
                    continue
                here = int(pc[ready].min())
                mask = ready & (pc == here)
                if here >= len(code):
                    done |= mask
                    continue
                ins = code[here]
                full = mask
                if ins.guard:
                    mask = mask & (self.regs[ins.guard[0]] != ins.guard[1])
                pc[full] += 1
                if ins.op == "bra":
                    pc[mask] = self.e.labels[ins.args[0]]
                elif ins.op in ("ret", "exit"):
                    done |= mask
                elif ins.op in ("bar", "barrier") and "warp" not in ins.parts:
                    waiting |= mask
                    if "red" in ins.parts:
                        counting.append((ins, mask))
                elif mask.any():
                    try:
                        getattr(self, "_" + ins.op)(ins, mask)
                    except Exception as error:
                        raise type(error)(f"{error} in {self.e.name[:60]}: {ins.text}") from error

    def _count(self, counting: list[tuple[Instruction, Array]]) -> None:
        """Give the threads that a barrier lets go the number of those whose predicate holds."""
        total = sum(int((self.regs[ins.args[2]] & mask).sum()) for ins, mask in counting)
        for ins, mask in counting:
            self.put(ins.args[0], np.full(self.n, total, np.uint32), mask)

    @staticmethod
    def _type(word: str) -> tuple[str, int]:
        if word == "pred":
            return "pred", 1
        return word[0], int(word[1:])

    def _trap(self, i: Instruction, mask: Array) -> None:
        raise Trap

    def _mov(self, i: Instruction, mask: Array) -> None:
        kind, bits = self._type(i.parts[-1])
        dst, src = i.args
        if isinstance(dst, list):
            value, part = self.get(src, bits), bits // len(dst)
            for k, d in enumerate(dst):
                self.put(d, (value >> UINT[bits](part * k)).astype(UINT[part]), mask)
        elif isinstance(src, list):
            part = bits // len(src)
            value = np.zeros(self.n, UINT[bits])
            for k, s in enumerate(src):
                value |= self.get(s, part).astype(UINT[bits]) << UINT[bits](part * k)
            self.put(dst, value, mask)
        elif kind == "pred":
            self.put(dst, self.regs[src] if src in self.regs else np.full(self.n, bool(int(src))), mask)
        else:
            self.put(dst, self.get(src, bits, "u"), mask)

    def _cvta(self, i: Instruction, mask: Array) -> None:
        self.put(i.args[0], self.get(i.args[1], 64), mask)

    def _cvt(self, i: Instruction, mask: Array) -> None:
        to, frm = i.parts[-2], i.parts[-1]
        if to == "f16x2":
            low, high = self.get(i.args[2], 32, "f"), self.get(i.args[1], 32, "f")
            both = np.stack([low.astype(np.float16), high.astype(np.float16)], 1).view(np.uint32).reshape(-1)
            self.put(i.args[0], both, mask)
            return
        (tk, tb), (fk, fb) = self._type(to), self._type(frm)
        value = self.get(i.args[1], fb, fk)
        if tk == "f":
            result = value.astype(FLOAT[tb])
        elif fk == "f":
            rounded = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[
                next(p for p in i.parts if p in ("rni", "rzi", "rmi", "rpi"))
            ](value.astype(np.float64))
            info = np.iinfo((SINT if tk == "s" else UINT)[tb])
            result = np.nan_to_num(np.clip(rounded, info.min, info.max)).astype((SINT if tk == "s" else UINT)[tb])
        else:
            result = value.astype((SINT if tk == "s" else UINT)[tb])
        self.put(i.args[0], result, mask)

    def _ld(self, i: Instruction, mask: Array) -> None:
        kind, bits = self._type(i.parts[-1])
        dst = i.args[0] if isinstance(i.args[0], list) else [i.args[0]]
        if "param" in i.parts:
            _, name, offset = i.args[1]
            assert not offset
            value = self.params[name]
            raw = np.float32(value).view(np.uint32) if kind == "f" else value & (1 << bits) - 1
            self.put(dst[0], np.full(self.n, raw, UINT[bits]), mask)
            return
        data = self.read("shared" in i.parts, self.address(i.args[1]), bits // 8 * len(dst), mask)
        words = data.view((SINT if kind == "s" else UINT)[bits])
        for k, d in enumerate(dst):
            self.put(d, words[:, k], mask)

    def _st(self, i: Instruction, mask: Array) -> None:
        _, bits = self._type(i.parts[-1])
        src = i.args[1] if isinstance(i.args[1], list) else [i.args[1]]
        data = np.stack([self.get(s, bits) for s in src], 1)
        self.write("shared" in i.parts, self.address(i.args[0]), np.ascontiguousarray(data).view(np.uint8), mask)

    def _binary(self, i: Instruction, mask: Array, f: Callable[[Array, Array], Array]) -> None:
        kind, bits = self._type(i.parts[-1])
        if bits == 1:
            one, other = (self.regs[x] if x in self.regs else np.full(self.n, x != "0") for x in i.args[1:3])
            self.put(i.args[0], f(one, other), mask)
            return
        self.put(i.args[0], f(self.get(i.args[1], bits, kind), self.get(i.args[2], bits, kind)), mask)

    def _halves(self, arg: Any) -> Array:
        return np.ascontiguousarray(self.get(arg, 32)).view(np.float16).reshape(-1, 2)

    def _add(self, i: Instruction, mask: Array) -> None:
        self._arith(i, mask, lambda a, b: a + b)

    def _sub(self, i: Instruction, mask: Array) -> None:
        self._arith(i, mask, lambda a, b: a - b)

    def _arith(self, i: Instruction, mask: Array, f: Callable[[Array, Array], Array]) -> None:
        if i.parts[-1] == "f16x2":
            result = f(self._halves(i.args[1]), self._halves(i.args[2]))
            self.put(i.args[0], np.ascontiguousarray(result).view(np.uint32).reshape(-1), mask)
        else:
            self._binary(i, mask, f)

    def _mul(self, i: Instruction, mask: Array) -> None:
        if i.parts[-1] == "f16x2":
            self._arith(i, mask, lambda a, b: a * b)
            return
        kind, bits = self._type(i.parts[-1])
        a, b = self.get(i.args[1], bits, kind), self.get(i.args[2], bits, kind)
        self.put(i.args[0], self._product(i, a, b, kind, bits), mask)

    @staticmethod
    def _product(i: Instruction, a: Array, b: Array, kind: str, bits: int) -> Array:
        if "wide" in i.parts:
            wide = (SINT if kind == "s" else UINT)[2 * bits]
            return a.astype(wide) * b.astype(wide)
        if "hi" in i.parts:
            table = SINT if kind == "s" else UINT
            if bits == 64:
                both = [int(x) * int(y) >> 64 for x, y in zip(a, b, strict=True)]
                return np.array([v & (1 << 64) - 1 for v in both], np.uint64)
            return ((a.astype(table[64]) * b.astype(table[64])) >> table[64](bits)).astype(table[bits])
        return a * b

    def _mad(self, i: Instruction, mask: Array) -> None:
        kind, bits = self._type(i.parts[-1])
        a, b = self.get(i.args[1], bits, kind), self.get(i.args[2], bits, kind)
        total = bits * 2 if "wide" in i.parts else bits
        self.put(i.args[0], self._product(i, a, b, kind, bits) + self.get(i.args[3], total, kind), mask)

    def _fma(self, i: Instruction, mask: Array) -> None:
        if i.parts[-1] == "f16x2":
            a, b, c = (self._halves(x).astype(np.float64) for x in i.args[1:4])
            self.put(i.args[0], (a * b + c).astype(np.float16).view(np.uint32).reshape(-1), mask)
            return
        kind, bits = self._type(i.parts[-1])
        a, b, c = (self.get(x, bits, kind).astype(np.float64) for x in i.args[1:4])
        self.put(i.args[0], (a * b + c).astype(FLOAT[bits]), mask)

    def _div(self, i: Instruction, mask: Array) -> None:
        kind, bits = self._type(i.parts[-1])
        a, b = self.get(i.args[1], bits, kind), self.get(i.args[2], bits, kind)
        if kind == "f":
            self.put(i.args[0], a / b, mask)
        else:
            safe = np.where(b == 0, 1, b).astype(b.dtype)
            quotient = a // safe
            if kind == "s":
                quotient = np.where((a % safe != 0) & ((a < 0) != (safe < 0)), quotient + 1, quotient).astype(a.dtype)
            self.put(i.args[0], quotient, mask)

    def _rem(self, i: Instruction, mask: Array) -> None:
        kind, bits = self._type(i.parts[-1])
        a, b = self.get(i.args[1], bits, kind), self.get(i.args[2], bits, kind)
        self.put(i.args[0], np.fmod(a, np.where(b == 0, 1, b).astype(b.dtype)), mask)

    def _and(self, i: Instruction, mask: Array) -> None:
        self._binary(i, mask, lambda a, b: a & b)

    def _or(self, i: Instruction, mask: Array) -> None:
        self._binary(i, mask, lambda a, b: a | b)

    def _xor(self, i: Instruction, mask: Array) -> None:
        self._binary(i, mask, lambda a, b: a ^ b)

    def _min(self, i: Instruction, mask: Array) -> None:
        self._binary(i, mask, lambda a, b: np.fmin(a, b))

    def _max(self, i: Instruction, mask: Array) -> None:
        self._binary(i, mask, lambda a, b: np.fmax(a, b))

    def _not(self, i: Instruction, mask: Array) -> None:
        _, bits = self._type(i.parts[-1])
        self.put(i.args[0], ~(self.regs[i.args[1]] if bits == 1 else self.get(i.args[1], bits)), mask)

    def _neg(self, i: Instruction, mask: Array) -> None:
        kind, bits = self._type(i.parts[-1])
        self.put(i.args[0], -self.get(i.args[1], bits, kind), mask)

    def _abs(self, i: Instruction, mask: Array) -> None:
        kind, bits = self._type(i.parts[-1])
        self.put(i.args[0], np.abs(self.get(i.args[1], bits, kind)), mask)

    def _shl(self, i: Instruction, mask: Array) -> None:
        _, bits = self._type(i.parts[-1])
        a, n = self.get(i.args[1], bits), self.get(i.args[2], 32)
        self.put(i.args[0], np.where(n >= bits, 0, a << np.minimum(n, bits - 1).astype(a.dtype)).astype(a.dtype), mask)

    def _shr(self, i: Instruction, mask: Array) -> None:
        kind, bits = self._type(i.parts[-1])
        a, n = self.get(i.args[1], bits, kind), self.get(i.args[2], 32)
        shifted = a >> np.minimum(n, bits - 1).astype(a.dtype)
        if kind != "s":
            shifted = np.where(n >= bits, 0, shifted).astype(a.dtype)
        self.put(i.args[0], shifted, mask)

    def _shf(self, i: Instruction, mask: Array) -> None:
        low, high, n = (self.get(x, 32).astype(np.uint64) for x in i.args[1:4])
        both, n = low | high << np.uint64(32), np.minimum(n & 31 if "wrap" in i.parts else n, 32).astype(np.uint64)
        result = both >> n if i.parts[0] == "r" else (both << n) >> np.uint64(32)
        self.put(i.args[0], result.astype(np.uint32), mask)

    def _bfe(self, i: Instruction, mask: Array) -> None:
        kind, bits = self._type(i.parts[-1])
        a, at, n = self.get(i.args[1], bits), self.get(i.args[2], 32) & 255, self.get(i.args[3], 32) & 255
        value = (a >> at.astype(a.dtype)) & ((UINT[64](1) << n.astype(np.uint64)) - UINT[64](1)).astype(a.dtype)
        if kind == "s":
            drop = (bits - n).astype(a.dtype)
            value = ((value << drop).view(SINT[bits]) >> drop.view(SINT[bits])).view(UINT[bits])
        self.put(i.args[0], value, mask)

    def _bfi(self, i: Instruction, mask: Array) -> None:
        _, bits = self._type(i.parts[-1])
        a, b = self.get(i.args[1], bits), self.get(i.args[2], bits)
        at, n = (self.get(x, 32).astype(a.dtype) & a.dtype.type(255) for x in i.args[3:5])
        field = ((a.dtype.type(1) << n) - a.dtype.type(1)) << at
        self.put(i.args[0], (b & ~field) | (a << at & field), mask)

    def _popc(self, i: Instruction, mask: Array) -> None:
        self.put(i.args[0], np.bitwise_count(self.get(i.args[1], 32)).astype(np.uint32), mask)

    def _setp(self, i: Instruction, mask: Array) -> None:
        kind, bits = self._type(i.parts[-1])
        a, b = self.get(i.args[-2], bits, kind), self.get(i.args[-1], bits, kind)
        if len(i.parts) > 2 and i.parts[1] in ("and", "or", "xor"):
            a, b = self.get(i.args[1], bits, kind), self.get(i.args[2], bits, kind)
        compare = i.parts[0]
        unordered = (kind == "f" and compare.endswith("u") and compare != "neu") or compare == "neu"
        base = compare[:2] if kind == "f" or len(compare) == 2 else compare
        result = {
            "eq": lambda: a == b, "ne": lambda: a != b, "lt": lambda: a < b, "le": lambda: a <= b, "gt": lambda: a > b,
            "ge": lambda: a >= b, "lo": lambda: a < b, "ls": lambda: a <= b, "hi": lambda: a > b, "hs": lambda: a >= b,
            "na": lambda: np.isnan(a) | np.isnan(b), "nu": lambda: ~(np.isnan(a) | np.isnan(b)),
        }[base]()  # fmt: skip
        if compare == "nan":
            result = np.isnan(a) | np.isnan(b)
        elif compare == "num":
            result = ~(np.isnan(a) | np.isnan(b))
        elif kind == "f":
            nan = np.isnan(a) | np.isnan(b)
            result = result | nan if unordered else result & ~nan
        if len(i.parts) > 2 and i.parts[1] in ("and", "or", "xor"):
            other = self.regs[i.args[3].lstrip("!")] != i.args[3].startswith("!")
            result = {"and": result & other, "or": result | other, "xor": result ^ other}[i.parts[1]]
        self.put(i.args[0], result, mask)

    def _selp(self, i: Instruction, mask: Array) -> None:
        _, bits = self._type(i.parts[-1])
        a, b = self.get(i.args[1], bits), self.get(i.args[2], bits)
        self.put(i.args[0], np.where(self.regs[i.args[3]], a, b), mask)

    def _float(self, i: Instruction, mask: Array, f: Callable[[Array], Array]) -> None:
        kind, bits = self._type(i.parts[-1])
        self.put(i.args[0], f(self.get(i.args[1], bits, kind)).astype(FLOAT[bits]), mask)

    def _ex2(self, i: Instruction, mask: Array) -> None:
        self._float(i, mask, np.exp2)

    def _lg2(self, i: Instruction, mask: Array) -> None:
        self._float(i, mask, np.log2)

    def _rcp(self, i: Instruction, mask: Array) -> None:
        self._float(i, mask, lambda x: 1 / x)

    def _sqrt(self, i: Instruction, mask: Array) -> None:
        self._float(i, mask, np.sqrt)

    def _rsqrt(self, i: Instruction, mask: Array) -> None:
        self._float(i, mask, lambda x: 1 / np.sqrt(x))

    def _sin(self, i: Instruction, mask: Array) -> None:
        self._float(i, mask, np.sin)

    def _cos(self, i: Instruction, mask: Array) -> None:
        self._float(i, mask, np.cos)

    def _dp4a(self, i: Instruction, mask: Array) -> None:
        kinds = [SINT[8] if p[0] == "s" else UINT[8] for p in i.parts[-2:]]
        a, b = (
            np.ascontiguousarray(self.get(x, 32)).view(kind).reshape(-1, 4).astype(np.int32)
            for x, kind in zip(i.args[1:3], kinds, strict=True)
        )
        self.put(i.args[0], (a * b).sum(1, dtype=np.int32) + self.get(i.args[3], 32, "s"), mask)

    def _prmt(self, i: Instruction, mask: Array) -> None:
        a, b, select = (self.get(x, 32) for x in i.args[1:4])
        bytes_ = np.concatenate([x.view(np.uint8).reshape(-1, 4) for x in map(np.ascontiguousarray, (a, b))], 1)
        out = np.zeros((self.n, 4), np.uint8)
        for k in range(4):
            pick = (select >> np.uint32(4 * k)) & 15
            byte = np.take_along_axis(bytes_, (pick & 7)[:, None].astype(np.int64), 1)[:, 0]
            out[:, k] = np.where(pick & 8, np.where(byte & 128, 255, 0), byte)
        self.put(i.args[0], out.view(np.uint32).reshape(-1), mask)

    def _lop3(self, i: Instruction, mask: Array) -> None:
        a, b, c = (self.get(x, 32) for x in i.args[1:4])
        table, out = int(i.args[4], 0), np.zeros(self.n, np.uint32)
        for k in range(8):
            if table >> k & 1:
                out |= (a if k & 4 else ~a) & (b if k & 2 else ~b) & (c if k & 1 else ~c)
        self.put(i.args[0], out, mask)


def launch(
    entry: Entry, memory: Memory, grid: tuple[int, ...], threads: int, arguments: list[Any], shared: int = 0
) -> None:
    """Run all blocks of a launch, one after the other."""
    x, y, z = (*grid, 1, 1)[:3]
    memory = Memory(list(memory.arrays))
    for array in entry.constants.values():
        memory.add(array)
    for place in np.ndindex(z, y, x):
        Block(entry, memory, arguments, threads, place[::-1], (x, y, z), shared).run()
