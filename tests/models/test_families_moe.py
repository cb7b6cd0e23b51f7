"""Mixtures of experts and hybrids: converted and run, they give the logits that transformers gives, however a text is
cut, in every kind of file; and their files say what other engines read."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggpy import LLM, SamplingParams
from ggpy.convert.pipeline import convert
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.graph.language import Graph
from ggpy.models import architecture_of, by_gguf_name
from ggpy.runtime.runtime import Runtime
from tests.support import hf_families_moe as families
from tests.support.evaluate import evaluate
from tests.support.gguf_names import unknown_names
from tests.support.hf_families_moe import CASES, COLUMNS, POSITIONS, TOKENS, Case

with np.load(Path(__file__).parents[1] / "data" / "hf_families_moe.npz") as recorded:
    LOGITS = dict(zip(recorded["names"].tolist(), recorded["logits"], strict=True))

#: One case of each architecture, and those with a form of their own.
EACH = ("qwen3moe", "gpt-oss", "qwen35", "qwen35moe", "qwen3next", "lfm2", "lfm2moe")
QUANTIZED = (
    "qwen3moe, whole blocks", "gpt-oss, whole blocks", "gpt-oss, mxfp4", "qwen35, whole blocks", "lfm2, whole blocks",
    "lfm2moe",
)  # fmt: skip

Make = Callable[..., Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """The GGUF file of a case."""

    def made(case: Case, file_type: str = "f32", note: Callable[[str], None] = lambda text: None) -> Path:
        families.write(tmp_path, case)
        convert(tmp_path, file_type, tmp_path / "out.gguf", n_threads=1, note=note)
        return tmp_path / "out.gguf"

    return made


def logits(path: Path) -> np.ndarray:
    with LLM(path, n_ctx=192, n_threads=1, n_parallel=1) as llm:
        return llm.logits(TOKENS)


def exact(path: Path) -> np.ndarray:
    """The logits of the file's own weights in float64."""
    with GGUFFile(path) as file:
        graph = Graph(file)
        result = architecture_of(file).build(graph)
        return evaluate(graph, result, np.array(TOKENS), np.arange(len(TOKENS)))


def metadata(path: Path) -> dict[str, Any]:
    with GGUFFile(path) as file:
        return dict(file.metadata)


# Blocks that are quantized already run in 8-bit activations, in files of any type.
@pytest.mark.parametrize("name", [name for name in CASES if not CASES[name].mxfp4])
def test_logits_are_those_of_transformers(make: Make, name: str) -> None:
    ours, theirs = logits(make(CASES[name]))[POSITIONS][:, list(COLUMNS)], LOGITS[name]
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def test_mxfp4_blocks_are_taken_over(make: Make) -> None:
    """The same numbers, in files of any type; of these the float64 logits are transformers'."""
    path, theirs = make(CASES["gpt-oss, mxfp4"]), LOGITS["gpt-oss, mxfp4"]
    with GGUFFile(path) as file:
        types = {name: info.type_name for name, info in file.tensors.items() if "_exps.weight" in name}
    assert len(types) == 12
    assert set(types.values()) == {"MXFP4"}
    assert np.abs(exact(path)[POSITIONS][:, list(COLUMNS)] - theirs).max() <= 1e-4 * np.abs(theirs).max()


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantized_files_stay_close(make: Make, name: str) -> None:
    """8-bit activations are all that is between the file's weights and the result. Another choice of experts makes some
    tokens another result altogether, so it is the median that is looked at."""
    path = make(CASES[name], "q8_0")
    ours, theirs = logits(path), exact(path)
    errors = np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)
    assert np.median(errors) < 0.1


@pytest.mark.parametrize(("name", "file_type"), [*((name, "f32") for name in EACH), ("gpt-oss, mxfp4", "q8_0")])
def test_a_text_may_be_cut_anywhere(make: Make, name: str, file_type: str) -> None:
    n, ids = len(TOKENS), np.array(TOKENS, np.int32)
    with GGUFFile(make(CASES[name], file_type)) as file:
        runtime = Runtime(file, 192, n_threads=1)

        def run(cuts: list[int]) -> Iterator[np.ndarray]:
            at = 0
            for size in cuts:
                part = slice(at, at + size)
                yield runtime.step(ids[part], np.zeros(size, int), np.arange(n)[part], np.arange(size)).copy()
                at += size

        whole = np.concatenate([*run([n])])
        for cuts in ([1] * n, [7, 64, 1, 40, n - 112]):
            assert np.array_equal(np.concatenate([*run(cuts)]), whole)
        runtime.close()


@pytest.mark.parametrize("name", ["gpt-oss", "qwen35moe", "lfm2"])
def test_a_text_is_the_same_after_and_beside_others(make: Make, name: str) -> None:
    """Prompts that share beginnings, one after the other in a cache of one slot and all together, against each alone:
    rings and recurrent states cannot be cut as keys and values are."""
    path, greedy = make(CASES[name]), SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)
    start = "The capital of France is Paris, and the river that runs through the city is the Seine. "
    prompts = [start + "Once", start, start[:40] + "def main", start + "Once upon a time", "The capital"]

    def texts(groups: list[list[str]], n_parallel: int) -> list[list[int]]:
        with LLM(path, n_ctx=192, n_threads=1, n_parallel=n_parallel) as llm:
            return [output.outputs[0].token_ids for group in groups for output in llm.generate(group, greedy)]

    alone = [texts([[prompt]], 1)[0] for prompt in prompts]
    assert texts([[prompt] for prompt in prompts], 1) == alone
    assert texts([prompts], 3) == alone


@pytest.mark.parametrize("name", ["qwen35", "qwen35moe"])
def test_the_text_model_of_one_that_sees(make: Make, name: str) -> None:
    """A checkpoint with pictures and layers that predict further tokens gives the text model's file, and says so."""
    alone = make(CASES[name]).read_bytes()
    notes: list[str] = []
    assert make(replace(CASES[name], nested=True), note=notes.append).read_bytes() == alone
    assert any("sees with is left out" in note for note in notes)
    assert any("('mtp') are left out" in note for note in notes)


@pytest.mark.parametrize("name", CASES)
def test_names_are_those_of_gguf(make: Make, name: str) -> None:
    """Every tensor and key has a name that the gguf package has for the architecture."""
    tensors, keys = unknown_names(make(CASES[name]))
    if name in ("qwen3moe, a dense layer", "qwen3moe, every other layer"):  # other readers want experts in each
        tensors -= {f"blk.{{bid}}.ffn_{part}" for part in ("gate", "up", "down")}
    # The one is newer than the package, the other ggpy's own.
    keys = {key.partition(".")[2] for key in keys} - {"attention.recurrent_layers", "rope.scaling.yarn_truncate"}
    # The name of a tensor that is no weight and no bias ends earlier.
    assert (tensors - {"blk.{bid}"}, keys) == (set(), set())


def test_keys_of_each_architecture(make: Make) -> None:
    def keys(name: str) -> dict[str, Any]:
        found = metadata(make(CASES[name]))
        arch = found["general.architecture"]
        return {
            key.removeprefix(arch + "."): value.tolist() if isinstance(value, np.ndarray) else value
            for key, value in found.items()
            if key.startswith(arch + ".")
        }

    moe = keys("qwen3moe")
    assert (moe["expert_count"], moe["expert_used_count"], moe["expert_feed_forward_length"]) == (8, 2, 46)
    assert "expert_weights_norm" not in moe
    assert keys("qwen3moe, weights as they are")["expert_weights_norm"] is False

    oss = keys("gpt-oss")
    assert oss["attention.sliding_window"] == 16
    assert "attention.sliding_window_pattern" not in oss  # every second layer, which readers know
    assert oss["rope.scaling.type"] == "yarn"
    assert "rope.scaling.yarn_truncate" not in oss  # as these models have it, whatever readers round
    assert keys("gpt-oss, truncated")["rope.scaling.yarn_truncate"] is True
    assert keys("gpt-oss, other layers")["attention.sliding_window_pattern"] == [False, True, True, True]

    hybrid = keys("qwen35, interval")
    assert hybrid["full_attention_interval"] == 3
    assert hybrid["rope.dimension_count"] == 6
    assert hybrid["rope.dimension_sections"] == [1, 1, 1, 0]
    sizes = {"group_count": 2, "time_step_rank": 6, "state_size": 10, "inner_size": 60, "conv_kernel": 4}
    assert {key: hybrid[f"ssm.{key}"] for key in sizes} == sizes
    assert keys("qwen35, other layers")["attention.recurrent_layers"] == [False, True, True, False]

    liquid = keys("lfm2moe")
    assert liquid["attention.head_count_kv"] == [0, 2, 0, 2]
    assert (liquid["leading_dense_block_count"], liquid["expert_gating_func"]) == (1, 2)
    assert keys("lfm2")["feed_forward_length"] == 70


def test_value_heads_are_tiled(make: Make) -> None:
    """Six value heads of two key heads: those of the first place of each, then of the second, then of the third."""
    case = CASES["qwen35"]
    path = make(case)
    rng = np.random.RandomState(1)
    stored = {name: families.values(rng, case, name, shape) for name, shape in families.tensor_shapes(case).items()}
    order = [0, 3, 1, 4, 2, 5]
    with GGUFFile(path) as file:
        decay = np.frombuffer(file.data("blk.0.ssm_a"), np.float32)
        gate = np.frombuffer(file.data("blk.0.attn_gate.weight"), np.float32).reshape(6, 10, 60)
        out = np.frombuffer(file.data("blk.0.ssm_out.weight"), np.float32).reshape(60, 6, 10)
    at = "model.layers.0.linear_attn."
    assert np.allclose(decay, -np.exp(stored[at + "A_log"][order]))
    assert np.array_equal(gate, stored[at + "in_proj_z.weight"].reshape(6, 10, 60)[order])
    assert np.array_equal(out, stored[at + "out_proj.weight"].reshape(60, 6, 10)[:, order])


ABSURD: list[tuple[str, dict[str, Any], str]] = [
    ("qwen3moe", {"expert_used_count": 9}, "uses 9"),
    ("qwen3moe", {"expert_used_count": 0}, "uses 0"),
    ("qwen3moe", {"expert_gating_func": 7}, "expert_gating_func' is 7"),
    ("qwen3moe", {"expert_feed_forward_length": 1 << 31}, "a width of 2147483648"),
    ("qwen35", {"nextn_predict_layers": 4}, "4 of 4 blocks"),
    ("qwen35", {"full_attention_interval": 0}, "every 0th layer"),
    ("qwen35", {"ssm.time_step_rank": 0}, "0 value heads"),
    ("qwen35", {"ssm.group_count": 4}, "4 key heads, 6 value heads"),
    ("qwen35", {"ssm.conv_kernel": 1}, "convolutions of 1 tokens"),
    ("qwen35", {"attention.recurrent_layers": np.array([True])}, "says of 1 layers"),
    ("lfm2", {"shortconv.l_cache": 1}, "convolutions of 1 tokens"),
]


@pytest.mark.parametrize(("name", "changes", "words"), ABSURD, ids=[words for *_, words in ABSURD])
def test_absurd_metadata_is_one_sentence(make: Make, name: str, changes: dict[str, Any], words: str) -> None:
    with GGUFFile(make(CASES[name])) as file:
        found = dict(file.metadata)
        arch = found["general.architecture"]
        found |= {f"{arch}.{key}": value for key, value in changes.items()}
        with pytest.raises(GGPYError, match=words):
            by_gguf_name(arch)(found, 461).build(Graph(file))


def test_blocks_that_predict_further_tokens_are_passed_over(make: Make) -> None:
    """Files count them among the blocks, behind the model's own."""
    with GGUFFile(make(CASES["qwen35"])) as file:
        found = dict(file.metadata) | {"qwen35.block_count": 5, "qwen35.nextn_predict_layers": 1}
        architecture = by_gguf_name("qwen35")(found, 461)
        graph = Graph(file)
        architecture.build(graph)
    assert architecture.hparams.n_layer == 4
    assert {node.layer for node in graph.nodes if node.layer is not None} == {0, 1, 2, 3}


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("gpt-oss", {"swiglu_limit": 5.0}, "gives 'swiglu_limit' as 5.0"),
        ("gpt-oss", {"quantization_config": {"quant_method": "gptq"}}, "'quant_method' as 'gptq'"),
        ("gpt-oss, mxfp4", {"intermediate_size": 80}, "MXFP4 needs multiples of 32"),
        ("gpt-oss", {"num_local_experts": 1 << 20}, "'num_local_experts' as 1048576"),
        ("qwen3moe", {"num_experts": 60000, "num_hidden_layers": 60}, "60000 experts in 60 layers"),
        ("qwen3moe", {"mlp_only_layers": 3}, "'mlp_only_layers' as 3"),
        ("qwen3moe", {"decoder_sparse_step": 0}, "'decoder_sparse_step' as 0"),
        ("qwen35", {"attn_output_gate": False}, "'attn_output_gate' as False"),
        ("qwen35", {"linear_num_key_heads": 4}, "the second must divide the first"),
        ("qwen35", {"layer_types": ["mamba"] * 4}, "'mamba' in 'layer_types'"),
        ("qwen35", {"rope_parameters": {"partial_rotary_factor": 0.3}}, "would turn 7 dimensions"),
        ("qwen35", {"rope_parameters": {"mrope_section": "x"}}, "'mrope_section' as 'x'"),
        ("lfm2", {"conv_bias": True}, "gives 'conv_bias' as True"),
        ("lfm2", {"layer_types": ["conv"] * 5}, "names no layer of 'full_attention'"),
        ("lfm2", {"layer_types": ["slow"] * 5}, "'slow' in 'layer_types'"),
        ("lfm2", {"layer_types": families.ABSENT, "full_attn_idxs": "all"}, "'full_attn_idxs' as 'all'"),
    ],
)
def test_what_cannot_be_converted_is_said(tmp_path: Path, name: str, changes: dict[str, Any], words: str) -> None:
    families.write(tmp_path, CASES[name])
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    config = {key: value for key, value in config.items() if value is not families.ABSENT}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(GGPYError, match=words):
        convert(tmp_path, "f32", tmp_path / "out.gguf")
