"""The block formats by name and by number, drawn from the classes that define them, a file a family.

Importing this module imports neither numpy nor numba.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.quant import floats, fp4, iq1, iq2, iq3, iq4, k_quants, low_bit, q4, q5, q8, ternary
from ggpy.quant.block_format import BlockFormat
from ggpy.quant.packed import Packed

if TYPE_CHECKING:
    from ggpy.gguf.file import TensorInfo

FAMILIES = (floats, q4, q5, q8, k_quants, iq1, iq2, iq3, iq4, ternary, fp4, low_bit)

#: Every format that a GGUF file may name, by name.
FORMATS: dict[str, BlockFormat] = dict(sorted(BlockFormat.types.items(), key=lambda named: named[1].id))

#: The packed layout of every format that has kernels.
PACKED: dict[str, Packed] = {name: form.packed for name, form in FORMATS.items() if form.packed}

# Ids that once stood for a format and are refused by name: the data cannot be read any more by anyone.
_REMOVED = {
    4: "Q4_2", 5: "Q4_3", 31: "Q4_0_4_4", 32: "Q4_0_4_8", 33: "Q4_0_8_8",
    36: "IQ4_NL_4_4", 37: "IQ4_NL_4_8", 38: "IQ4_NL_8_8",
}  # fmt: skip

_BY_ID = {form.id: form for form in FORMATS.values()}


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


def packed_format(info: TensorInfo) -> Packed:
    """The format that a weight runs in: its own, or half precision for types that have no packed form."""
    return PACKED.get(info.type_name, PACKED["F16"])


def packed_bytes(info: TensorInfo) -> int:
    """Bytes that a matrix, or a stack of matrices of the same shape, takes when packed."""
    *stack, n_rows, n_cols = info.shape
    return prod(stack) * packed_format(info).matrix_bytes(n_rows, n_cols)


def activation_dtype(info: TensorInfo, gives_logits: bool) -> str:
    """The form in which a product with this weight reads activations, be it the one that gives logits or not: "q8" or
    "f32"."""
    return packed_format(info).activation_dtype
