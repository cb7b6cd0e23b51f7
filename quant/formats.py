"""The block formats of ggml: one table of names, ids and sizes, and one class to use them through.

A row of weights is cut into blocks of `block_size`; each block is stored in `type_size` bytes. The numbers are ggml's
(`ggml.h`, `ggml-common.h`) and never change for a published id. Importing this module imports neither numpy nor numba:
the arithmetic of a format loads when it is first used.
"""

from __future__ import annotations

from dataclasses import dataclass
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ggpy.errors import GGPYError

if TYPE_CHECKING:
    import numpy as np

# Where each family's own numpy arithmetic lives; every other format goes through the gguf package (gguf_fallback.py).
_DEQUANTIZE_HOMES = {
    "F32": "floats", "F16": "floats", "BF16": "floats", "F64": "floats",
    "I8": "floats", "I16": "floats", "I32": "floats", "I64": "floats",
    "Q4_0": "q4", "Q4_1": "q4", "Q5_0": "q5", "Q5_1": "q5", "Q8_0": "q8",
    "Q4_K": "k_quants", "Q5_K": "k_quants", "Q6_K": "k_quants",
}  # fmt: skip

_WRITABLE = frozenset({"F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q6_K"})

# Bytes of float32 made per step of a dequantization: temporaries stay in cache and out of the memory bill.
_DEQUANTIZE_STEP = 1 << 20


@dataclass(frozen=True)
class BlockFormat:
    """One way ggml stores weights. `id` is the tensor type number in a GGUF file."""

    name: str
    id: int
    block_size: int
    type_size: int

    @property
    def can_quantize(self) -> bool:
        """True where `quantize` writes this format."""
        return self.name in _WRITABLE

    @property
    def bits_per_weight(self) -> float:
        return 8 * self.type_size / self.block_size

    def row_bytes(self, n_cols: int) -> int:
        """Bytes of a row of `n_cols` weights. GGPYError when the row is not a whole number of blocks."""
        if n_cols % self.block_size:
            raise GGPYError(
                f"A row of {n_cols} weights cannot be stored as {self.name}"
                f", whose blocks hold {self.block_size} weights; choose another type for this tensor."
            )
        return n_cols // self.block_size * self.type_size

    def dequantize(self, raw: np.ndarray) -> np.ndarray:
        """uint8 [..., row_bytes] → float32 [..., n_cols], in plain numpy. GGPYError when the format cannot be read."""
        import numpy as np

        raw = np.ascontiguousarray(raw)
        if raw.dtype != np.uint8:
            raw = raw.view(np.uint8)
        if raw.shape[-1] % self.type_size:
            raise GGPYError(
                f"{raw.shape[-1]} bytes are not a whole number of {self.name} blocks of {self.type_size} bytes."
            )
        n_cols = raw.shape[-1] // self.type_size * self.block_size
        blocks = raw.reshape(-1, self.type_size)  # [n_blocks, type_size]
        out = np.empty((len(blocks), self.block_size), np.float32)
        family = import_module(f"ggpy.quant.{_DEQUANTIZE_HOMES.get(self.name, 'gguf_fallback')}")
        step = max(1, _DEQUANTIZE_STEP // (4 * self.block_size))
        for start in range(0, len(blocks), step):
            out[start : start + step] = family.dequantize_blocks(self.name, blocks[start : start + step])
        return out.reshape(*raw.shape[:-1], n_cols)

    def quantize(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Rows of weights → uint8 [n_rows, row_bytes].

        `x` is [n_rows, n_cols] float32, float16, or uint16 holding bfloat16 bits. `out`, when given, is filled
        and returned.
        Runs without the GIL, so that several threads can each take a share of the rows.
        GGPYError when the format is not one ggpy writes, the row does not fit, or a weight is NaN or infinite.
        """
        if not self.can_quantize:
            raise GGPYError(
                f"ggpy reads {self.name} but does not write it; choose one of {', '.join(sorted(_WRITABLE))}."
            )
        quantizer: Any = import_module("ggpy.quant.quantize")
        result: np.ndarray = quantizer.quantize_rows(self, x, out)
        return result


def _table(*rows: tuple[str, int, int, int]) -> dict[str, BlockFormat]:
    return {row[0]: BlockFormat(*row) for row in rows}


#: Every format a GGUF file may name, by name: (name, id, weights a block, bytes a block).
FORMATS: dict[str, BlockFormat] = _table(
    ("F32", 0, 1, 4),
    ("F16", 1, 1, 2),
    ("Q4_0", 2, 32, 18),
    ("Q4_1", 3, 32, 20),
    ("Q5_0", 6, 32, 22),
    ("Q5_1", 7, 32, 24),
    ("Q8_0", 8, 32, 34),
    ("Q8_1", 9, 32, 36),
    ("Q2_K", 10, 256, 84),
    ("Q3_K", 11, 256, 110),
    ("Q4_K", 12, 256, 144),
    ("Q5_K", 13, 256, 176),
    ("Q6_K", 14, 256, 210),
    ("Q8_K", 15, 256, 292),
    ("IQ2_XXS", 16, 256, 66),
    ("IQ2_XS", 17, 256, 74),
    ("IQ3_XXS", 18, 256, 98),
    ("IQ1_S", 19, 256, 50),
    ("IQ4_NL", 20, 32, 18),
    ("IQ3_S", 21, 256, 110),
    ("IQ2_S", 22, 256, 82),
    ("IQ4_XS", 23, 256, 136),
    ("I8", 24, 1, 1),
    ("I16", 25, 1, 2),
    ("I32", 26, 1, 4),
    ("I64", 27, 1, 8),
    ("F64", 28, 1, 8),
    ("IQ1_M", 29, 256, 56),
    ("BF16", 30, 1, 2),
    ("TQ1_0", 34, 256, 54),
    ("TQ2_0", 35, 256, 66),
    ("MXFP4", 39, 32, 17),
    ("NVFP4", 40, 64, 36),
    ("Q1_0", 41, 128, 18),
    ("Q2_0", 42, 64, 18),
)

_BY_ID = {form.id: form for form in FORMATS.values()}

# Ids that once stood for a format and are refused by name: the data cannot be read any more by anyone.
_REMOVED = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip


def by_id(type_id: int) -> BlockFormat:
    """The format with this ggml type number. GGPYError when there is none."""
    form = _BY_ID.get(type_id)
    if form is None:
        if type_id in _REMOVED:
            raise GGPYError(
                f"The type {_REMOVED[type_id]} was removed from GGUF; convert the model again to a current type."
            )
        raise GGPYError(
            f"The type number {type_id} is not one that ggpy knows; the file is damaged or newer than this ggpy."
        )
    return form
