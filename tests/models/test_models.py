"""Hyper-parameters and rope out of metadata that nobody has checked: every absurd value is one sentence."""

from __future__ import annotations

import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggpy.models
from ggpy.errors import GGPYError
from ggpy.models import HOMES, architectures, by_gguf_name

PLAIN: dict[str, Any] = {
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "llama.attention.layer_norm_rms_epsilon": 1e-5,
    "llama.block_count": 2,
    "llama.context_length": 512,
    "llama.embedding_length": 256,
    "llama.feed_forward_length": 512,
}
YARN = {"rope.scaling.type": "yarn", "rope.scaling.factor": 4.0, "rope.scaling.original_context_length": 128}


def test_each_architecture_is_at_home_under_its_name() -> None:
    assert [architecture.name for architecture in architectures()] == list(HOMES)
    files = {path.stem for path in Path(ggpy.models.__file__).parent.glob("*.py")}
    named = {home.partition(".")[0] for home in HOMES.values()}
    shared = {
        "__init__", "base", "decoder", "delta_net", "encoder", "experts", "latent_attention", "layers", "nearest",
        "next_token", "pooled", "state_space",
    }  # fmt: skip
    assert {name for name in files - shared if not name.startswith("hf_") and name != "hf"} == named


def test_a_model_imports_its_own_family_alone() -> None:
    code = "import sys; from ggpy.models import by_gguf_name; by_gguf_name('llama'); print(*sys.modules)"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    families = {f"ggpy.models.{home.partition('.')[0]}" for home in HOMES.values()}
    assert families & {*result.stdout.split()} == {"ggpy.models.llama"}


def rope_of(freq_factors: Any = None, **changes: Any) -> Any:
    values = {f"llama.{key}": value for key, value in changes.items()}
    return by_gguf_name("llama")(PLAIN | values, n_vocab=100).rope(freq_factors)


ABSURD: list[tuple[dict[str, Any], str]] = [
    ({"attention.head_count": 0}, "head_count"),
    ({"attention.head_count": -1}, "n_head = -1"),
    ({"attention.head_count": 4.0}, "whole number"),
    ({"attention.head_count": ["a", "b"]}, "whole number"),
    ({"attention.head_count": np.array([math.nan], np.float32)}, "whole number"),
    ({"attention.head_count_kv": 3}, "one must divide the other"),
    ({"attention.head_count_kv": np.array([2, 1, 1], np.uint32)}, "one whole number for each of 2 layers"),
    ({"attention.head_count_kv": np.array([2, 3], np.uint32)}, "one must divide the other"),
    ({"attention.head_count": np.array([0, 0], np.uint32)}, "head_count' is 0"),
    ({"feed_forward_length": np.array([512, -1], np.int32)}, "n_ff = -1"),
    ({"feed_forward_length": np.array([0.5, 1.0], np.float32)}, "whole number"),
    ({"attention.layer_norm_rms_epsilon": math.nan}, "finite number"),
    ({"attention.value_length": 32}, "values of 32"),
    ({"attention.sliding_window": -1}, "sliding window"),
    ({"attention.sliding_window": 1 << 63}, "sliding window"),
    ({"attention.sliding_window_pattern": -6}, "every -6th layer"),
    ({"attention.sliding_window_pattern": 6.0}, "list of booleans"),
    ({"attention.sliding_window_pattern": np.array([1, 0], np.uint32)}, "list of booleans"),
    ({"attention.sliding_window_pattern": np.array([True])}, "says of 1 layers"),
    ({"rope.scaling.attn_factor": 0.0}, "attn_factor 0.0"),
    ({"rope.scaling.attn_factor": 1e38}, "attn_factor 1e\\+38"),
    ({"block_count": 1 << 60}, "n_layer"),
    ({"block_count": 1 << 20}, "n_layer"),
    ({"expert_count": 1 << 20}, "experts"),
    ({"expert_count": 8, "expert_used_count": 9}, "8 experts of which a token uses 9"),
    ({"expert_count": 8}, "8 experts of which a token uses 0"),
    ({"context_length": 0}, "n_ctx_train"),
    ({"rope.dimension_count": 63}, "63 of 64"),
    ({"rope.freq_base": 0.0}, "base 0.0"),
    ({"rope.scaling.type": 3}, "must be a text"),
    ({"rope.scaling.type": "linear", "rope.scaling.factor": -2.0}, "factor of -2.0"),
    ({"rope.scaling.type": "linear", "rope.scaling.factor": 1e-38}, "factor of 1e-38"),
    (YARN | {"rope.freq_base": 1.0}, "YaRN"),
    (YARN | {"rope.scaling.original_context_length": 0}, "YaRN from 0 tokens"),
    (YARN | {"rope.scaling.yarn_beta_fast": 0.0}, "beta_fast 0.0"),
    (YARN | {"rope.scaling.yarn_beta_slow": -1.0}, "beta_slow -1.0"),
    (YARN | {"rope.scaling.attn_factor": -1.0}, "attn_factor -1.0"),
]


@pytest.mark.parametrize(("changes", "words"), ABSURD, ids=[words for _, words in ABSURD])
def test_absurd_metadata_is_one_sentence(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(GGPYError, match=words):
        rope_of(**changes)


@pytest.mark.parametrize("bad", [0.0, -1.0, math.nan, math.inf])
def test_rope_divisors_are_above_zero(bad: float) -> None:
    with pytest.raises(GGPYError, match=r"rope_freqs\.weight"):
        rope_of(np.array([bad] + [1.0] * 31, np.float32))


def test_one_number_a_layer_will_do_where_all_are_alike() -> None:
    values = {"llama.attention.head_count_kv": np.array([2, 2], np.uint32)}
    assert by_gguf_name("llama")(PLAIN | values, n_vocab=100).hparams.n_head_kv == 2


def test_some_layers_have_the_window() -> None:
    window: dict[str, Any] = {"llama.attention.sliding_window": 16}
    assert [by_gguf_name("llama")(PLAIN | window, n_vocab=100).hparams.window(i) for i in range(2)] == [16, 16]
    window["llama.attention.sliding_window_pattern"] = np.array([False, True])
    assert [by_gguf_name("llama")(PLAIN | window, n_vocab=100).hparams.window(i) for i in range(2)] == [0, 16]


def test_a_period_of_windows_ends_with_a_layer_that_has_none() -> None:
    def windows(period: int) -> list[int]:
        changes = {"block_count": 5, "attention.sliding_window": 16, "attention.sliding_window_pattern": period}
        values = PLAIN | {f"llama.{key}": value for key, value in changes.items()}
        return [layer.window for layer in by_gguf_name("llama")(values, n_vocab=100).hparams.layers]

    assert windows(2) == [16, 0, 16, 0, 16]
    assert windows(3) == [16, 16, 0, 16, 16]
    assert windows(1) == [0] * 5
    assert windows(0) == [16] * 5


def test_sizes_by_layer() -> None:
    """A number is every layer's, a list has one for each; layers without attention have no heads."""
    changes: dict[str, Any] = {
        "block_count": 4, "attention.head_count_kv": np.array([2, 0, 1, 2], np.uint32),
        "feed_forward_length": np.array([512, 256, 256, 0], np.uint32), "attention.sliding_window": 16,
        "attention.sliding_window_pattern": np.array([True, False, True, False]), "attention.key_length": 128,
        "attention.value_length": 128, "attention.key_length_swa": 32, "attention.value_length_swa": 32,
    }  # fmt: skip
    hp = by_gguf_name("llama")(PLAIN | {f"llama.{k}": v for k, v in changes.items()}, n_vocab=100).hparams
    assert [(s.n_head, s.n_head_kv, s.head_dim, s.n_ff, s.window) for s in hp.layers] == [
        (4, 2, 32, 512, 16), (4, 0, 128, 256, 0), (4, 1, 32, 256, 16), (4, 2, 128, 0, 0),
    ]  # fmt: skip
    assert hp.n_head == 4
    with pytest.raises(GGPYError, match=r"n_head_kv by layer \(1, 2\)"):
        _ = hp.n_head_kv
    changes["attention.head_count_kv"] = np.array([2, 0, 0, 2], np.uint32)
    hp = by_gguf_name("llama")(PLAIN | {f"llama.{k}": v for k, v in changes.items()}, n_vocab=100).hparams
    assert hp.n_head_kv == 2


def test_rope_of_layers_that_differ() -> None:
    values = {
        "llama." + key: value for key, value in {"rope.scaling.type": "linear", "rope.scaling.factor": 8.0}.items()
    }
    model = by_gguf_name("llama")(PLAIN | values, n_vocab=100)
    plain = model.rope(base=500.0, scaled=False, n_rot=16)
    assert plain.inv_freq == tuple(500.0 ** (-i / 8) for i in range(8))
    assert model.rope().inv_freq == tuple(10000.0 ** (-i / 32) / 8 for i in range(32))
    assert model.rope(head_dim=128).n_rot == 128
    with pytest.raises(GGPYError, match="rope over 64 of 32"):
        model.rope(n_rot=64, head_dim=32)


def test_attn_factor_holds_without_yarn() -> None:
    assert rope_of(**{"rope.scaling.attn_factor": 0.7}).magnitude == 0.7
    linear = {"rope.scaling.type": "linear", "rope.scaling.factor": 2.0, "rope.scaling.attn_factor": 0.7}
    assert rope_of(**linear).magnitude == 0.7
    assert rope_of().magnitude == 1.0


def test_yarn_that_shortens_does_not_scale_attention() -> None:
    assert rope_of(**(YARN | {"rope.scaling.factor": 0.5})).magnitude == 1.0
    assert rope_of(**YARN).magnitude == pytest.approx(1 + 0.1 * math.log(4))
