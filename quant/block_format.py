"""The base class of ggml's block formats: what a type declares, and what every type can do.

A row of weights is cut into blocks of `block_size`; each block is stored in `type_size` bytes. The numbers are ggml's
(`ggml.h`, `ggml-common.h`) and never change for a published id. Importing this module imports neither numpy nor numba:
the arithmetic of a format loads when it is first used.
"""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any, ClassVar

from ggpy.errors import GGPYError

if TYPE_CHECKING:
    import numpy as np

    from ggpy.quant.fields import Codebook, Numbers, Ternary
    from ggpy.quant.packed import Packed

# Bytes of float32 made per step of a dequantization: temporaries stay in cache and out of the memory bill.
_DEQUANTIZE_STEP = 1 << 20


class BlockFormat:
    """One way ggml stores weights. A subclass with an `id` is a type, which the class is named after; `FORMATS` in
    `ggpy.quant.formats` has an instance of each.

    A type that has kernels declares `packed`, what they make of its weights, and unless it is of floats where a block
    keeps its numbers: `codes`; `scales` and `mins` of its groups of columns; `d` and `dmin`, which those are multiples
    of in super-blocks. Dequantizing, and packing and embedding on every device, follow from that. A type that is
    written has an `encoder`. A type that declares nothing but its sizes is read through the gguf package.
    """

    types: ClassVar[dict[str, BlockFormat]] = {}  # every one defined so far, by name

    id: ClassVar[int]  # the tensor type number in a GGUF file
    block_size: ClassVar[int]
    type_size: ClassVar[int]
    file_type: ClassVar[int | None] = None  # what `general.file_type` states, of files of this type that ggpy writes
    packed: ClassVar[Packed | None] = None
    codes: ClassVar[Numbers | Codebook | Ternary | None] = None
    scales: ClassVar[Numbers | None] = None
    mins: ClassVar[Numbers | None] = None
    d: ClassVar[Numbers | None] = None
    dmin: ClassVar[Numbers | None] = None

    def __init_subclass__(cls) -> None:
        if cls.packed is not None and "packed" in vars(cls):
            cls.packed = replace(cls.packed, name=cls.__name__)
        if "id" in vars(cls):
            BlockFormat.types[cls.__name__] = cls()

    @property
    def name(self) -> str:
        return type(self).__name__

    def __repr__(self) -> str:
        return self.name

    @property
    def can_quantize(self) -> bool:
        """True where `quantize` writes this format."""
        return type(self).encoder is not BlockFormat.encoder

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
        step = max(1, _DEQUANTIZE_STEP // (4 * self.block_size))
        for start in range(0, len(blocks), step):
            out[start : start + step] = self.dequantize_blocks(blocks[start : start + step])
        return out.reshape(*raw.shape[:-1], n_cols)

    def dequantize_blocks(self, blocks: np.ndarray) -> np.ndarray:
        """uint8 [n, type_size], contiguous → float32 [n, block_size]."""
        if self.codes is None:
            from ggpy.quant import gguf_fallback

            return gguf_fallback.dequantize_blocks(self.name, blocks)
        from ggpy.quant import dequantize

        return dequantize.dequantize_blocks(self, blocks)

    def quantize(self, x: np.ndarray, out: np.ndarray | None = None) -> np.ndarray:
        """Rows of weights → uint8 [n_rows, row_bytes].

        `x` is [n_rows, n_cols] float32, float16, or uint16 holding bfloat16 bits. `out`, when given, is filled
        and returned.
        Runs without the GIL, so that several threads can each take a share of the rows.
        GGPYError when the format is not one ggpy writes, the row does not fit, or a weight is NaN or infinite.
        """
        if not self.can_quantize:
            written = sorted(form.name for form in BlockFormat.types.values() if form.can_quantize)
            raise GGPYError(f"ggpy reads {self.name} but does not write it; choose one of {', '.join(written)}.")
        from ggpy.quant import quantize

        return quantize.quantize_rows(self, x, out)

    def encoder(self) -> Any:
        """The function that writes blocks, for numba to compile: (float32 blocks, output, number of blocks, scratch
        memory of `ggpy.quant.quantize.SCRATCH` bytes), addresses all but the number → the first block that cannot be
        stored (a NaN, an infinity, or a scale beyond fp16), or -1."""
        raise NotImplementedError
