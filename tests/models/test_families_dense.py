"""Decoders that vary Llama's: converted and run, they give the logits that transformers gives; their files say what
other engines read."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ggpy import LLM, SamplingParams
from ggpy.convert.pipeline import convert
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.graph.language import Graph
from ggpy.graph.operations import Attention
from ggpy.models import architecture_of, by_gguf_name
from ggpy.runtime.runtime import Runtime
from tests.support import hf_families_dense as families
from tests.support.evaluate import evaluate
from tests.support.gguf_names import unknown_names
from tests.support.hf_families_dense import CASES, COLUMNS, POSITIONS, TOKENS, Case

LOGITS = {name: logits for name, (logits, _) in families.recorded().items()}
Make = Callable[[Case], Path]


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """The GGUF file of a case."""

    def made(case: Case) -> Path:
        families.write(tmp_path, case)
        convert(tmp_path, "f32", tmp_path / "out.gguf", n_threads=1)
        return tmp_path / "out.gguf"

    return made


@pytest.mark.parametrize("name", CASES)
def test_logits_are_those_of_transformers(make: Make, name: str) -> None:
    with LLM(make(CASES[name]), n_ctx=128, n_threads=1, n_parallel=1) as llm:
        ours, theirs = llm.logits(TOKENS)[POSITIONS][:, list(COLUMNS)], LOGITS[name]
    assert np.abs(ours - theirs).max() <= 1e-4 * np.abs(theirs).max()


def metadata(path: Path) -> dict[str, Any]:
    with GGUFFile(path) as file:
        found = dict(file.metadata)
    arch = found["general.architecture"]
    return {
        key.removeprefix(arch + "."): value.tolist() if isinstance(value, np.ndarray) else value
        for key, value in found.items()
        if key.startswith(arch + ".")
    }


#: Architectures whose layers differ most from those that others have tests for.
@pytest.mark.parametrize("name", ["smollm3", "phi3, long", "granitemoeshared", "olmo3", "hunyuan_v1_moe", "cohere2"])
def test_a_text_may_be_cut_anywhere(make: Make, name: str) -> None:
    n, ids = len(TOKENS), np.array(TOKENS, np.int32)
    with GGUFFile(make(CASES[name])) as file:
        runtime = Runtime(file, 128, n_threads=1)

        def run(cuts: list[int]) -> Iterator[np.ndarray]:
            at = 0
            for size in cuts:
                part = slice(at, at + size)
                yield runtime.step(ids[part], np.zeros(size, int), np.arange(n)[part], np.arange(size)).copy()
                at += size

        whole = np.concatenate([*run([n])])
        for cuts in ([1] * n, [7, 40, 1, n - 48]):
            assert np.array_equal(np.concatenate([*run(cuts)]), whole)
        runtime.close()


@pytest.mark.parametrize("name", CASES)
def test_names_are_those_of_gguf(make: Make, name: str) -> None:
    """Every tensor and key has a name that the gguf package has for the architecture."""
    tensors, keys = unknown_names(make(CASES[name]))
    keys = {key.partition(".")[2] for key in keys}
    # Newer than the package; a tensor that is no weight and no bias.
    assert (tensors - {"blk.{bid}"}, keys - {"attention.rope_pattern"}) == (set(), set())


def test_keys_of_each_architecture(make: Make) -> None:
    def keys(name: str) -> dict[str, Any]:
        return metadata(make(CASES[name]))

    assert "attention.rope_pattern" not in keys("smollm3")  # as readers have it
    assert keys("smollm3, other layers")["attention.rope_pattern"] == [
        True,
        False,
        True,
        True,
        False,
        False,
        True,
        True,
    ]

    long = keys("phi3, long")
    assert (long["rope.scaling.type"], long["rope.scaling.original_context_length"]) == ("longrope", 48)
    assert long["rope.scaling.attn_factor"] == pytest.approx(math.sqrt(1 + math.log(256 / 48) / math.log(48)))
    assert (long["rope.dimension_count"], long["attention.sliding_window"]) == (8, 0)
    assert keys("phi3")["attention.sliding_window"] == 15

    yarn = keys("ministral3")
    assert yarn["rope.scaling.yarn_log_multiplier"] == 1.0
    assert yarn["attention.temperature_scale"] == pytest.approx(0.3)
    assert "rope.scaling.attn_factor" not in yarn
    assert "rope.scaling.yarn_log_multiplier" not in keys("ministral3, other scales")

    granite = {"embedding_scale": 3.0, "residual_scale": 0.6, "attention.scale": 0.4, "logit_scale": 1.7}
    shared = keys("granitemoeshared")
    assert {key: shared[key] for key in granite} == pytest.approx(granite)
    assert (shared["expert_count"], shared["expert_used_count"], shared["feed_forward_length"]) == (6, 2, 46)
    assert shared["expert_shared_feed_forward_length"] == 38
    scales = {"embedding_scale": 3.0, "residual_scale": 0.6, "logit_scale": 60 / 36}
    small = keys("minicpm")
    assert {key: small[key] for key in scales} == pytest.approx(scales)

    glm = keys("glm4_moe")
    assert (glm["leading_dense_block_count"], glm["expert_gating_func"], glm["expert_shared_count"]) == (2, 2, 1)
    assert glm["expert_weights_scale"] == pytest.approx(1.3)
    assert (glm["block_count"], glm["rope.dimension_count"]) == (4, 8)

    olmo = keys("olmo3")
    assert olmo["attention.sliding_window"] == 15
    assert not {"attention.sliding_window_pattern", "rope.freq_base_swa"} & olmo.keys()  # as readers have it
    assert keys("olmo3, other layers")["rope.freq_base_swa"] == 70.0

    assert keys("hunyuan_v1_dense, alpha")["rope.freq_base"] == pytest.approx(500.0 * 50.0 ** (14 / 12))
    ernie = keys("ernie4_5_moe")
    assert (ernie["interleave_moe_layer_step"], ernie["leading_dense_block_count"]) == (2, 1)
    assert ernie["expert_shared_feed_forward_length"] == 92
    assert keys("exaone4, other layers")["attention.sliding_window_pattern"] == [False, True] * 4
    assert keys("cohere2")["logit_scale"] == pytest.approx(0.7)
    assert "attention.layer_norm_rms_epsilon" not in keys("cohere2")


def test_long_contexts_have_divisors_of_their_own(make: Make) -> None:
    """The context decides, whatever a text's length, as keys in the cache stay as they are."""
    path, ids = make(CASES["phi3, long"]), TOKENS[:40]
    found = []
    for n_ctx in (48, 49):
        with LLM(path, n_ctx=n_ctx, n_threads=1, n_parallel=1) as llm:
            found.append(llm.logits(ids))
    assert np.abs(found[0] - found[1]).max() > 0.1
    state, greedy = path.with_name("state"), SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
    with LLM(path, n_ctx=48, n_threads=1, n_parallel=1) as llm:
        llm.generate(prompt_token_ids=[ids], sampling_params=greedy)
        llm.save_state(state)
        assert llm.load_state(state)
    with LLM(path, n_ctx=49, n_threads=1) as llm, pytest.raises(GGPYError, match="rope turns otherwise"):
        llm.load_state(state)
    with GGUFFile(path) as file:
        graph = Graph(file)
        result = architecture_of(file).build(graph)
        short = evaluate(graph, result, np.array(ids), np.arange(len(ids)))
    assert np.abs(found[0] - short).max() <= 1e-4 * np.abs(short).max()


ABSURD: list[tuple[str, dict[str, Any], str]] = [
    ("smollm3", {"attention.rope_pattern": np.array([True])}, "says of 1 layers whether they have rope"),
    ("granite", {"logit_scale": -1.0}, "'granite.logit_scale' as -1.0"),
    ("ministral3", {"rope.scaling.yarn_log_multiplier": -1.0}, "a yarn_log_multiplier of -1.0"),
    ("ministral3", {"attention.temperature_scale": -1.0}, "queries grow by -1.0"),
    ("phi3", {"rope.scaling.type": "longrope"}, "has no tensors 'rope_factors_short.weight'"),
    ("phi3, long", {"rope.dimension_count": 6}, "'rope_factors_short.weight' has 4 entries"),
    ("glm4_moe", {"nextn_predict_layers": 4}, "4 of 4 blocks"),
]


@pytest.mark.parametrize(("name", "changes", "words"), ABSURD, ids=[words for *_, words in ABSURD])
def test_absurd_metadata_is_one_sentence(make: Make, name: str, changes: dict[str, Any], words: str) -> None:
    with GGUFFile(make(CASES[name])) as file:
        found = dict(file.metadata)
        arch = found["general.architecture"]
        found |= {f"{arch}.{key}": value for key, value in changes.items()}
        with pytest.raises(GGPYError, match=words):
            by_gguf_name(arch)(found, 461).build(Graph(file))


def test_files_of_other_converters(make: Make) -> None:
    """They write what ggpy does not: rope by sections, blocks that predict further tokens, factors left away."""
    with GGUFFile(make(CASES["glm4"])) as file:
        sections = np.array([2, 1, 1, 0], np.int32)
        architecture = by_gguf_name("glm4")({**file.metadata, "glm4.rope.dimension_sections": sections}, 461)
        assert architecture.rope().style == "neox"
        assert by_gguf_name("glm4")(file.metadata, 461).rope().style == "interleaved"
    with GGUFFile(make(CASES["granite"])) as file:
        found = {**file.metadata, "granite.rope.scaling.finetuned": False}
        graph = Graph(file)
        by_gguf_name("granite")(found, 461).build(graph)
        assert {node.operation.rope for node in graph.nodes if isinstance(node.operation, Attention)} == {None}
    with GGUFFile(make(CASES["minicpm"])) as file:
        found = {key: value for key, value in file.metadata.items() if not key.endswith("_scale")}
        old = by_gguf_name("minicpm")(found, 461)
        assert (old.residual_factor(), old.logit_factor()) == (0.7, pytest.approx(256 / 60))


@pytest.mark.parametrize(
    ("name", "changes", "words"),
    [
        ("smollm3", {"no_rope_layers": [1]}, "'no_rope_layers' as"),
        ("phi3", {"rope_scaling": {"type": "longrope", "short_factor": [1.0]}}, "'short_factor' as"),
        ("glm4_moe", {"topk_group": 2}, "'topk_group' as 2"),
        ("glm4_moe", {"n_group": 3}, "8 experts in 3 groups"),
        ("olmoe", {"clip_qkv": 8.0}, "gives 'clip_qkv' as 8.0"),
        ("olmo3", {"rope_parameters": {"rope_theta": 5.0}}, "rope's settings by kind of layer"),
        ("olmo3", {"rope_parameters": {"sliding_attention": {"rope_type": "linear"}}}, "scales rope of sliding layers"),
        ("hunyuan_v1_moe", {"moe_topk": [1, 2, 1, 1]}, "'moe_topk' as"),
        ("hunyuan_v1_dense", {"rope_scaling": {"type": "dynamic", "alpha": 1e300}}, "'alpha' as"),
        ("cohere2", {"use_parallel_block": False}, "gives 'use_parallel_block' as False"),
    ],
)
def test_what_cannot_be_converted_is_said(tmp_path: Path, name: str, changes: dict[str, Any], words: str) -> None:
    families.write(tmp_path, CASES[name])
    config = json.loads((tmp_path / "config.json").read_text()) | changes
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(GGPYError, match=words):
        convert(tmp_path, "f32", tmp_path / "out.gguf")


def test_a_context_beyond_learned_positions_is_refused(make: Make) -> None:
    with pytest.raises(GGPYError, match="knows 4096 positions"):
        LLM(make(CASES["gpt2"]), n_ctx=4160, n_threads=1)
