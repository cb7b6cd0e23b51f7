"""The recipes: which type llama-quantize gives each tensor, as it gave them to models of these shapes."""

from __future__ import annotations

import pytest

from ggpy.errors import GGPYError
from ggpy.quant.recipes import FILE_TYPES, tensor_type

QUANTIZED = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")
MATRICES = ("blk.0.attn_q.weight", "blk.0.attn_qkv.weight", "blk.29.attn_v.weight", "blk.3.ffn_down.weight")


def named(file_type, name, shape, tied=False, pure=False, n_expert=0):
    return tensor_type(file_type, name, shape, tied=tied, n_layer=30, n_expert=n_expert, pure=pure).name


def test_file_type_numbers_are_those_of_the_gguf_package():
    import gguf

    names = {"f32": "ALL_F32"} | {name: f"MOSTLY_{name.upper()}" for name in FILE_TYPES if name != "f32"}
    assert {name: int(gguf.LlamaFileType[theirs]) for name, theirs in names.items()} == FILE_TYPES


@pytest.mark.parametrize("file_type", FILE_TYPES)
@pytest.mark.parametrize("pure", [False, True])
def test_vectors_and_delicate_matrices_stay_f32(file_type, pure):
    assert named(file_type, "output_norm.weight", (512,), pure=pure) == "F32"
    assert named(file_type, "blk.0.attn_qkv.bias", (512,), pure=pure) == "F32"
    assert named(file_type, "blk.0.attn_q_norm.weight", (8, 64), pure=pure) == "F32"
    assert named(file_type, "position_embd.weight", (64, 512), pure=pure) == "F32"
    assert named(file_type, "rope_freqs.weight", (64,), pure=pure) == "F32"


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_matrices_take_the_named_type(file_type):
    for name in MATRICES:
        assert named(file_type, name, (512, 512)) == file_type.upper()
    assert named(file_type, "token_embd.weight", (1000, 512)) == file_type.upper()


@pytest.mark.parametrize("file_type", FILE_TYPES)
def test_experts_take_the_named_type_and_their_router_stays_f32(file_type):
    assert named(file_type, "blk.0.ffn_gate_exps.weight", (8, 512, 256), n_expert=8) == file_type.upper()
    assert named(file_type, "blk.0.ffn_down_exps.bias", (8, 512), n_expert=8) == "F32"
    assert named(file_type, "blk.0.ffn_gate_inp.weight", (8, 256), n_expert=8) == "F32"
    assert named(file_type, "blk.0.shortconv.conv.weight", (256, 3)) == "F32"


@pytest.mark.parametrize("file_type", QUANTIZED)
def test_keys_and_values_beside_eight_experts_are_kept_finer(file_type):
    for name in ("blk.0.attn_k.weight", "blk.0.attn_v.weight"):
        assert named(file_type, name, (512, 256), n_expert=8) == "Q8_0"
        assert named(file_type, name, (512, 256), n_expert=16) == file_type.upper()
        assert named(file_type, name, (512, 256), n_expert=8, pure=True) == file_type.upper()
    assert named(file_type, "blk.0.attn_q.weight", (512, 256), n_expert=8) == file_type.upper()


@pytest.mark.parametrize("file_type", QUANTIZED)
def test_the_output_matrix_is_kept_finer(file_type):
    finer = "Q8_0" if file_type == "q8_0" else "Q6_K"
    assert named(file_type, "output.weight", (1000, 512)) == finer
    assert named(file_type, "token_embd.weight", (1000, 512), tied=True) == finer
    assert named(file_type, "output.weight", (1000, 576)) == "Q8_0"  # no whole number of Q6_K's blocks of 256
    assert named(file_type, "token_embd.weight", (1000, 576), tied=True) == "Q8_0"
    assert named(file_type, "output.weight", (1000, 512), pure=True) == file_type.upper()
    assert named(file_type, "token_embd.weight", (1000, 512), tied=True, pure=True) == file_type.upper()


@pytest.mark.parametrize("file_type", QUANTIZED)
def test_a_row_of_no_whole_blocks_falls_back_to_f16(file_type):
    for name in (*MATRICES, "token_embd.weight", "output.weight"):
        assert named(file_type, name, (64, 48)) == "F16"


def test_floats_take_any_row():
    assert [named(t, "output.weight", (64, 7)) for t in ("f32", "f16", "bf16")] == ["F32", "F16", "BF16"]


def test_an_unknown_file_type_is_named():
    with pytest.raises(GGPYError, match=r"'q4_k_m' is not a file type that ggpy writes; choose one of f32, f16"):
        named("q4_k_m", "output.weight", (64, 256))
