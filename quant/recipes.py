"""Which format each tensor takes in a file of a given type: llama-quantize's choices, so that files are like for like.

The rules are those of `llama_tensor_get_type` in llama.cpp (llama-quant.cpp), for the types that ggpy writes: norms,
biases, routers and small or positional matrices stay F32; the output matrix, or the token embedding that serves as one,
is kept at Q6_K in files of 4 and 5 bits; of models with 8 experts, keys and values are kept at Q8_0.
"""

from __future__ import annotations

from collections.abc import Sequence

from ggpy.errors import GGPYError
from ggpy.quant.formats import FORMATS, BlockFormat

#: File type → the number that `general.file_type` states, in the order of these.
FILE_TYPES: dict[str, int] = {
    form.name.lower(): form.file_type
    for form in sorted(FORMATS.values(), key=lambda form: form.file_type or 0)
    if form.file_type is not None
}

#: What `general.quantization_version` states beside a quantized file type.
QUANTIZATION_VERSION = 2

# Parts of names of matrices that are small or delicate, and so never quantized.
_KEPT = (
    "_norm.weight", "ffn_gate_inp.weight", "ssm_conv1d", "shortconv.conv.weight", "altup", "laurel",
    "per_layer_model_proj", "attn_rel_b.weight", ".position_embd", ".rel_pos", ".patch_embd",
)  # fmt: skip
_KEYS_AND_VALUES = ("attn_k.weight", "attn_v.weight", "attn_qkv.weight", "attn_kv_b.weight")
_KEPT_NAMES = frozenset({"position_embd.weight", "token_types.weight"})


def tensor_type(
    file_type: str,
    name: str,
    shape: Sequence[int],
    *,
    tied: bool,
    n_layer: int = 0,
    n_expert: int = 0,
    pure: bool = False,
) -> BlockFormat:
    """The format of the tensor `name` of `shape` (rows before columns, the experts' axis first) in a file of
    `file_type` (a key of FILE_TYPES), of a model with `n_expert` experts.

    `tied`: the file has no output.weight, and token_embd.weight serves as the output matrix. `pure`: every matrix is of
    the file's own type. A row that is no whole number of blocks takes Q8_0 in place of Q6_K, and else F16.
    `n_layer` is part of the recipe's input for the types that vary by layer; none of today's does.
    """
    if file_type not in FILE_TYPES:
        raise GGPYError(f"{file_type!r} is not a file type that ggpy writes; choose one of {', '.join(FILE_TYPES)}.")
    if not _is_matrix(name, shape):
        return FORMATS["F32"]
    form = FORMATS[file_type.upper()]
    if form.block_size == 1:
        return form
    is_output = name == "output.weight" or (tied and name in ("token_embd.weight", "per_layer_token_embd.weight"))
    if is_output and not pure:
        # A row that is no whole number of the file's own blocks is asked for as Q8_0, and then falls back as any other.
        form = FORMATS["Q8_0" if form.name == "Q8_0" or shape[-1] % form.block_size else "Q6_K"]
    elif n_expert == 8 and not pure and any(part in name for part in _KEYS_AND_VALUES):
        form = FORMATS["Q8_0"]  # such models' keys and values are small beside their experts
    if shape[-1] % form.block_size and form.name == "Q6_K":
        form = FORMATS["Q8_0"]
    return FORMATS["F16"] if shape[-1] % form.block_size else form


def _is_matrix(name: str, shape: Sequence[int]) -> bool:
    """True where the tensor takes the file's type rather than F32."""
    if len(shape) < 2 or not name.endswith("weight") or name in _KEPT_NAMES:
        return False
    return not any(part in name for part in _KEPT)
