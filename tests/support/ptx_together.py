"""Joint operations of the lanes of a warp or the warps of a block: shuffles, matrix units, copies, barriers, atomics.

A part of `ptx_emulator.Block`, whose operands and memory it uses.
"""

from __future__ import annotations

import re
from typing import Any

import numpy as np

from tests.support.ptx_text import Instruction

Array = np.ndarray


class Together:
    """The instructions, as methods of a block."""

    # ---- what a warp does together

    def _together(self, mask: Array) -> Array:
        """The warps at work: their numbers; all their lanes must be there."""
        lanes = mask.reshape(-1, 32) if self.n % 32 == 0 else np.pad(mask, (0, -self.n % 32)).reshape(-1, 32)
        present = lanes.sum(1)
        whole = np.minimum(32, self.n - 32 * np.arange(len(present)))
        if ((present != 0) & (present != whole)).any():
            raise RuntimeError("a warp came apart")
        return np.flatnonzero(present)

    def _bar(self, i: Instruction, mask: Array) -> None:
        self._together(mask)

    def _shfl(self, i: Instruction, mask: Array) -> None:
        self._together(mask)
        value, other = self.get(i.args[1], 32), self.get(i.args[2], 32).astype(np.int64)
        lane = np.arange(self.n)
        mode = i.parts[1]
        inside = lane % 32
        source = {
            "bfly": inside ^ other, "idx": other,
            "down": np.minimum(inside + other, 31), "up": np.maximum(inside - other, 0),
        }[mode]  # fmt: skip
        self.put(i.args[0], value[np.minimum(lane // 32 * 32 + source, self.n - 1)], mask)

    def _mma(self, i: Instruction, mask: Array) -> None:
        shape = i.parts[2]
        kinds = i.parts[-4:]
        d, a, b, c = i.args
        for w in self._together(mask):
            lanes = slice(32 * w, 32 * w + 32)
            g, t = np.arange(32) // 4, np.arange(32) % 4
            words = [[np.ascontiguousarray(self.get(x, 32)[lanes]) for x in xs] for xs in (a, b)]
            if shape == "m16n8k32":
                per, depth = 4, 32
                view = [np.int8 if k == "s8" else np.uint8 for k in kinds[1:3]]
                out_kind: Any = np.int32
            else:
                per, depth = 2, 16
                view = [np.float16 if k == "f16" else np.uint16 for k in kinds[1:3]]
                out_kind = np.float32
            A, B = np.zeros((16, depth), np.float64), np.zeros((depth, 8), np.float64)

            def values(word: Array, kind: Any, bf16: bool) -> Array:
                v = word.view(kind).reshape(32, -1)
                return (v.astype(np.uint32) << 16).view(np.float32) if bf16 else v

            for r, word in enumerate(words[0]):
                v = values(word, view[0], kinds[1] == "bf16")
                for k in range(per):
                    A[g + 8 * (r % 2), per * t + k + depth // 2 * (r // 2)] = v[:, k]
            for r, word in enumerate(words[1]):
                v = values(word, view[1], kinds[2] == "bf16")
                for k in range(per):
                    B[per * t + k + depth // 2 * r, g] = v[:, k]
            product = A @ B
            for r in range(4):
                row, col = g + 8 * (r // 2), 2 * t + r % 2
                old = self.get(c[r], 32, "s" if out_kind is np.int32 else "f")[lanes]
                new = np.zeros(self.n, out_kind)
                new[lanes] = (product[row, col] + old).astype(out_kind)
                only = np.zeros(self.n, bool)
                only[lanes] = True
                self.results[r] = (new, only) if w == self._first(mask) else self._merge(self.results[r], new, only)
        for r in range(4):
            self.put(d[r], self.results[r][0], mask)

    def _first(self, mask: Array) -> int:
        return int(np.flatnonzero(mask)[0]) // 32

    @staticmethod
    def _merge(old: tuple[Array, Array], new: Array, only: Array) -> tuple[Array, Array]:
        return np.where(only, new, old[0]), old[1] | only

    def _ldmatrix(self, i: Instruction, mask: Array) -> None:
        count = int(next(p for p in i.parts if p in ("x1", "x2", "x4"))[1:])
        data = self.read(True, self.address(i.args[1]), 16, mask)  # every lane's row: of matrix lane / 8, row lane % 8
        dst = i.args[0] if isinstance(i.args[0], list) else [i.args[0]]
        for k in range(count):
            out = np.zeros(self.n, np.uint32)
            for w in self._together(mask):
                rows = data[32 * w + 8 * k : 32 * w + 8 * k + 8].view(np.uint16)  # [8, 8]
                if "trans" in i.parts:
                    rows = rows.T
                out[32 * w : 32 * w + 32] = np.ascontiguousarray(rows).view(np.uint32).reshape(-1)
            self.put(dst[k], out, mask)

    def _cp(self, i: Instruction, mask: Array) -> None:
        if "commit_group" in i.parts or "wait_group" in i.parts or "wait_all" in i.parts:
            return
        if "prefetch" in i.parts:
            for address, size in zip(self.address(i.args[0])[mask], self.get(i.args[1], 32)[mask], strict=True):
                assert address % 16 == size % 16 == 0
                self.memory.find(np.array([address]), int(size))
            return
        n = int(i.args[2])
        take = self.get(i.args[3], 32) if len(i.args) > 3 else np.full(self.n, n, np.uint32)
        where = mask & (take > 0)
        data = self.read(False, self.address(i.args[1]), n, where)
        data[np.arange(n)[None, :] >= take[:, None]] = 0
        self.write(True, self.address(i.args[0]), data, mask)

    def _griddepcontrol(self, i: Instruction, mask: Array) -> None:
        pass

    def _membar(self, i: Instruction, mask: Array) -> None:
        pass

    def _fence(self, i: Instruction, mask: Array) -> None:
        pass

    def _atom(self, i: Instruction, mask: Array) -> None:
        kind, bits = self._type(i.parts[-1])
        address, operand = self.address(i.args[1]), self.get(i.args[2], bits, kind)
        what = next(p for p in i.parts if p in ("add", "max", "min", "exch", "inc"))
        for k in np.flatnonzero(mask):
            only = np.zeros(self.n, bool)
            only[k] = True
            old = self.read("shared" in i.parts, address, bits // 8, only).view(operand.dtype)[:, 0]
            new = {
                "add": old + operand, "max": np.maximum(old, operand), "min": np.minimum(old, operand), "exch": operand,
                "inc": np.where(old >= operand, 0, old + 1),
            }[what].astype(operand.dtype)  # fmt: skip
            self.write("shared" in i.parts, address, np.ascontiguousarray(new)[:, None].view(np.uint8), only)
            if i.args[0] != "_":
                self.put(i.args[0], old, only)

    def _red(self, i: Instruction, mask: Array) -> None:
        self._atom(Instruction("atom", i.parts, ["_", *i.args], None, i.text), mask)

    def _wgmma(self, i: Instruction, mask: Array) -> None:
        """Warp groups of four; what is started is done at once. B: rows of 128 bytes, pieces exchanged by their row."""
        if i.parts[0] != "mma_async":
            return
        d, a, descriptor = i.args[:3]
        n = int(re.match(r"m64n(\d+)k16", i.parts[3])[1])  # type: ignore[index]
        g, t = np.arange(128) % 32 // 4, np.arange(128) % 4
        lane_row = 16 * (np.arange(128) // 32) + g
        groups = self._together(mask)[::4] // 4
        for group in groups:
            lanes = slice(128 * group, 128 * group + 128)
            A = np.zeros((64, 16), np.float64)
            for r, name in enumerate(a):
                pair = np.ascontiguousarray(self.get(name, 32)[lanes]).view(np.float16).reshape(-1, 2)
                for k in range(2):
                    A[lane_row + 8 * (r % 2), 2 * t + k + 8 * (r // 2)] = pair[:, k]
            bits = int(self.get(descriptor, 64)[128 * group])
            assert bits >> 62 == 1
            assert (bits >> 32 & 0x3FFF) == 64
            start = (bits & 0x3FFF) << 4
            row, byte = np.arange(n)[:, None], np.arange(32)[None, :]
            at = start + 128 * row + byte
            at ^= (at >> 7 & 7) << 4
            B = self.shared[at].copy().view(np.float16).astype(np.float64)  # [n, 16]
            product = A @ B.T
            only = np.zeros(self.n, bool)
            only[lanes] = True
            for k, name in enumerate(d):
                new = np.zeros(self.n, np.float32)
                column = 8 * (k // 4) + 2 * t + k % 2
                new[lanes] = product[lane_row + 8 * (k // 2 % 2), column] + self.get(name, 32, "f")[lanes]
                self.put(name, new, only)
