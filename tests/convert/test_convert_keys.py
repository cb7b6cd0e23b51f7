"""The table of keys of config.json is whole, true to transformers, and says what happens."""

from __future__ import annotations

import math
import warnings
from contextlib import suppress
from typing import Any

import pytest

from ggpy.convert.writer import encode_header
from ggpy.errors import GGPYError
from ggpy.models import by_gguf_name, by_hf_name
from ggpy.models.hf_config import Config
from ggpy.models.hf_families import FAMILIES, Family
from ggpy.models.hf_families_encoders import ENCODERS
from ggpy.models.hf_keys import IGNORED, REFUSED, known_config
from tests.support.config_changes import CHANGES, CLASSES, OWN_CHANGES, PUBLISHED, RECORDED, WINDOW, YARN
from tests.support.families import CONFIGS

#: Names of settings in the code that comes with Nomic's models.
_NOMICS_OWN = (
    "n_embd", "n_layer", "n_head", "n_inner", "n_positions", "layer_norm_epsilon", "rotary_emb_base",
    "max_trained_positions", "activation_function", "qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias",
    "moe_every_n_layers", "num_experts", "moe_top_k",
)  # fmt: skip


def outcome(kind: str, settings: dict[str, Any]) -> tuple[str, list[str]]:
    """All of the layout that a config leads to, as a text, and the notes on its keys."""
    model_class, config, notes = known_config(Config(settings))
    layout = by_hf_name(model_class, config).hf_layout(config)
    generated = {name: values.tolist() for name, values in layout.generated.items()}
    return repr((layout.metadata, layout.tensors, layout.tied, layout.notes, generated)), notes


@pytest.mark.parametrize("family", CLASSES)
def test_the_table_holds_every_key_of_transformers(family: str) -> None:
    followed, own = FAMILIES[family].followed, FAMILIES[family].ignored.keys() | FAMILIES[family].permitted.keys()
    fields = RECORDED[CLASSES[family]]
    for key, default in fields.items():
        inside = FAMILIES[family].text and key == "text_config"
        assert key in followed or key in own or key in IGNORED or key in REFUSED or inside, key
        if key in followed:
            assert followed[key] == default, key
    # What is followed and no field: read by the base class, or by the model's code where the config has it.
    assert set(followed) - set(fields) <= {
        "rope_scaling", "partial_rotary_factor", "original_max_position_embeddings", "head_dim", "layer_types",
        *(("rope_theta", "rope_local_base_freq", "sliding_window_pattern") if family == "gemma3_text" else ()),
        *(("rope_theta", "rope_local_base_freq") if family == "gemma3n_text" else ()),
        *(("full_attention_interval",) if family.startswith(("qwen3_5", "qwen3_next")) else ()),
        *(("tie_embedding", "block_ff_dim") if family.startswith("lfm2") else ()),
        *(("num_local_experts",) if family in ("qwen3_moe", "qwen3_vl_moe_text") else ()),
        *(("tie_word_embeddings",) if family in ("qwen2_vl_text", "qwen2_5_vl_text", "qwen3_vl_text") else ()),
        *(("quantization_config",) if family == "gpt_oss" else ()),
        *(("sliding_window_pattern",) if family == "cohere2" else ()),
        *(("rotary_emb_base", "rotary_pct") if family == "gpt_neox" else ()),
        *(("n_embed", "seq_length") if family == "bloom" else ()),
        *(("intermediate_size",) if family in ("mamba", "falcon_mamba") else ()),
        *(("hybrid_override_pattern", "mamba_n_groups", "mamba_d_conv", "mamba_conv_bias")
          if family == "nemotron_h" else ()),
        *(("layers_block_type",) if family == "granitemoehybrid" else ()),
        *(("position_embedding_type", "feed_forward_type") if family == "bert" else ()),
        *(_NOMICS_OWN if family == "nomic_bert" else ()),
        *(("global_rope_theta", "local_rope_theta", "global_attn_every_n_layers") if family == "modernbert" else ()),
        *(("global_head_dim", "num_global_key_value_heads", "per_layer_config") if family == "gemma4_text" else ()),
    }  # fmt: skip
    assert set(RECORDED["PreTrainedConfig"]) <= IGNORED.keys() | REFUSED.keys()


def test_the_table_holds_what_published_files_carry() -> None:
    followed = {key for family in FAMILIES.values() for key in family.followed}
    assert [key for key in PUBLISHED if key not in followed | IGNORED.keys() | REFUSED.keys()] == []
    for kind, config in CONFIGS.items():
        assert outcome(kind, config)[1] == [], kind


@pytest.mark.parametrize(
    ("family", "settings"),
    [
        ("gemma2", {"sliding_window_size": 4096, "hidden_act": "gelu_pytorch_tanh", "cache_implementation": "hybrid"}),
        ("gemma3_text", {"_sliding_window_pattern": 6, "use_bidirectional_attention": False, "dtype": "bfloat16"}),
        ("gemma3", {"transformers_version": "4.50.0.dev0", "initializer_range": 0.02}),
        ("bert", {"id2label": {"0": "LABEL_0"}, "gradient_checkpointing": False, "classifier_dropout": None,
                  "directionality": "bidi", "pooler_type": "first_token_transform", "_name_or_path": "x"}),
    ],
)  # fmt: skip
def test_published_keys_of_a_family_change_nothing(family: str, settings: dict[str, Any]) -> None:
    assert outcome(family, {**CONFIGS[family], **settings}) == outcome(family, CONFIGS[family])
    assert outcome(family, {**CONFIGS[family], **settings})[1] == []


def test_no_key_stands_twice() -> None:
    """A family may follow what others refuse, and permit values of its own; what it follows is not ignored."""
    assert not IGNORED.keys() & REFUSED.keys()
    for family in FAMILIES.values():
        assert not family.followed.keys() & (IGNORED.keys() | family.permitted.keys() | family.ignored.keys())
        assert not family.permitted.keys() & family.ignored.keys()


@pytest.mark.parametrize("family", FAMILIES)
def test_followed_keys_change_the_file(family: str) -> None:
    for key in FAMILIES[family].followed:
        beside, value = OWN_CHANGES.get((family, key), CHANGES[key])
        base = {**CONFIGS[family], **{k: v for k, v in beside.items() if k in FAMILIES[family].followed}}
        before, _ = outcome(family, base)
        try:
            after, _ = outcome(family, {**base, key: value})
        except GGPYError:
            continue
        assert before != after, key


@pytest.mark.parametrize("family", FAMILIES)
def test_ignored_keys_change_nothing(family: str) -> None:
    before = outcome(family, CONFIGS[family])
    elsewhere = {"architectures", "model_type", "auto_map", *FAMILIES[family].permitted}
    if family in ENCODERS:  # read beside the tables: where RoBERTa's positions begin, a classifier's labels
        elsewhere |= {"pad_token_id", "num_labels", "id2label"}
    ignored = (IGNORED.keys() | FAMILIES[family].ignored.keys()) - elsewhere
    assert outcome(family, {**CONFIGS[family], **dict.fromkeys(ignored, 7)}) == before
    others = {key for other in FAMILIES if other != "qwen" for key in FAMILIES[other].followed} - REFUSED.keys()
    own = FAMILIES[family].followed.keys() | FAMILIES[family].permitted.keys()
    for key in others - own - elsewhere if family != "qwen" else ():
        beside, value = OWN_CHANGES.get((family, key), CHANGES[key])
        beside = {k: v for k, v in beside.items() if (family, k) != ("modernbert", "rope_scaling")}  # which it refuses
        assert outcome(family, {**CONFIGS[family], **beside, key: value}) == outcome(
            family, {**CONFIGS[family], **beside}
        )


@pytest.mark.parametrize("key", REFUSED)
def test_refused_keys_are_named(key: str) -> None:
    before = outcome("llama", CONFIGS["llama"])
    for neutral in REFUSED[key]:
        assert outcome("llama", {**CONFIGS["llama"], key: neutral}) == before
    for value in ("other", 0.123, not REFUSED[key][0], 0 if key == "is_causal" else 2):
        with pytest.raises(GGPYError, match=f"gives '{key}' as "):
            outcome("llama", {**CONFIGS["llama"], key: value})


def test_unknown_keys_are_named() -> None:
    config = {**CONFIGS["llama"], "attention_magic": 1, **{f"key{i}": i for i in range(20)}}
    (note,) = outcome("llama", config)[1]
    assert "keys that ggpy does not know" in note
    assert "'attention_magic', 'key0'" in note
    assert note.endswith(" and 13 more.")
    assert "rope_theta" in outcome("qwen", {**CONFIGS["qwen"], "rope_theta": 5.0})[1][0]  # its code reads another


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rope_scaling": {"rope_type": "longrope", "short_factor": [1.0], "long_factor": [1.0]}}, "'longrope'"),
        ({"rope_scaling": {"type": "mrope", "mrope_section": [2, 1, 1]}}, "'mrope'"),
        ({"rope_scaling": {"type": "ntk", "factor": 2.0}}, "'ntk'"),
        ({"rope_scaling": {"type": "linear"}}, "lacks 'factor'"),
        ({"rope_scaling": {"type": "linear", "factor": 2, "partial_rotary_factor": 0.5}}, "'partial_rotary_factor'"),
        ({"partial_rotary_factor": 1.5}, "'partial_rotary_factor' as 1.5"),
        ({"rope_parameters": {"full_attention": {"rope_theta": 5.0}}}, "rope for 'full_attention' alone"),
        ({"rope_scaling": {**YARN, "truncate": "no"}}, "'truncate' as 'no'"),
        ({"rope_scaling": YARN, "rope_theta": 1.0}, "'rope_theta' as 1.0"),
        ({"rope_scaling": {"type": "llama3", "factor": 2, "low_freq_factor": 4, "high_freq_factor": 1}}, "the greater"),
        ({"layer_types": ["full_attention"]}, "must list 2 layers"),
        ({"layer_types": ["full_attention", "chunked_attention"]}, "'chunked_attention' in 'layer_types'"),
        ({"layer_types": ["full_attention", "sliding_attention"]}, "no window for them"),
        ({"use_sliding_window": 1}, "must be true or false"),
        ({"use_sliding_window": True, "max_window_layers": 0, "sliding_window": 0}, "'sliding_window' as 0"),
    ],
)
def test_what_cannot_be_followed_is_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(GGPYError, match=message):
        outcome("qwen2", {**CONFIGS["qwen2"], **settings})


def test_what_is_not_followed_is_noted() -> None:
    def notes(kind: str, **settings: Any) -> str:
        return outcome(kind, {**CONFIGS[kind], **settings})[0]

    assert "does not read: rope turns whole heads" in notes("llama", partial_rotary_factor=0.5)
    assert "'dynamic' has no place in GGUF" in notes("llama", rope_scaling={"type": "dynamic", "factor": 2.0})
    assert "the first is followed" in notes("llama", rope_scaling=YARN, rope_parameters={"rope_theta": 5.0})
    assert "they play no part: 'swing'" in notes("llama", rope_scaling={**YARN, "swing": 1})
    assert "beyond 512 tokens" in notes("qwen")
    assert "beyond" not in notes("qwen", use_logn_attn=False, use_dynamic_ntk=False)


def test_settings_of_a_model_of_more_than_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """The text model's settings stand inside; what is followed beside them is not read there."""
    seeing = Family(
        ("LlamaForConditionalGeneration",), {"tie_word_embeddings": True}, ignored={"vision_config": ""}, text="llama",
        permitted={"hidden_act": ("gelu",)},
    )  # fmt: skip
    monkeypatch.setitem(FAMILIES, "seeing", seeing)
    inside = {key: value for key, value in CONFIGS["llama"].items() if key not in ("architectures", "rope_theta")}
    config = {"model_type": "seeing", "vision_config": {"x": 1}, "text_config": inside, "hidden_act": "gelu"}
    name, settings, notes = known_config(Config(config))
    assert (name, notes) == ("LlamaForConditionalGeneration", [])
    assert settings.flag("tie_word_embeddings", default=False)  # beside the text model's own false
    assert settings.integer("hidden_size") == 256
    assert settings.number("rope_theta") == 10000.0
    with pytest.raises(GGPYError, match="'text_config' gives 'hidden_act' as 'gelu'"):
        known_config(Config({**config, "text_config": {**inside, "hidden_act": "gelu"}}))
    with pytest.raises(GGPYError, match="gives 'hidden_act' as 'silu'"):
        known_config(Config({**config, "hidden_act": "silu"}))
    with pytest.raises(GGPYError, match=r"'model_type' as 'mistral'; ggpy converts a .* text model is a 'llama'"):
        known_config(Config({**config, "text_config": {**inside, "model_type": "mistral"}}))
    assert "'odd'" in known_config(Config({**config, "text_config": {**inside, "odd": 1}}))[2][0]


def test_what_may_be_another_model_is_noted() -> None:
    assert (
        "'smollama', which ggpy does not know" in outcome("llama", {**CONFIGS["llama"], "model_type": "smollama"})[1][0]
    )
    own = {"AutoConfig": "configuration_x.XConfig", "AutoModelForCausalLM": "modeling_x.XForCausalLM"}
    assert "code of the folder" in outcome("qwen2", {**CONFIGS["qwen2"], "auto_map": own})[1][0]
    assert outcome("qwen", {**CONFIGS["qwen"], "auto_map": own})[1] == []  # transformers has no code for it


def test_the_model_type_goes_before_the_class() -> None:
    """The order of transformers' AutoModel: a Mistral whose config names Llama's class has Mistral's window."""
    config = {**CONFIGS["llama"], "model_type": "mistral"}
    layout, notes = outcome("mistral", config)
    assert "'llama.attention.sliding_window': 4096" in layout
    assert "'LlamaForCausalLM' as the class, but 'mistral' as 'model_type'" in notes[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_absurd_values_end_in_a_sentence(family: str) -> None:
    """Absurd values of every followed setting, rope's inner ones included: a layout that a reader takes, or a
    GGPYError."""
    absurd: list[Any] = [
        True, False, -1, 0, 3, 10**400, -(10**400), 1e300, 1e-300, math.inf, math.nan, "x", "", [], {}, [1], [[]],
        {"a": {}}, {"rope_type": []}, ["sliding_attention"] * 2,
    ]  # fmt: skip
    inner = (
        "rope_theta", "factor", "original_max_position_embeddings", "attention_factor", "beta_fast", "beta_slow",
        "low_freq_factor", "high_freq_factor", "mscale", "truncate", "partial_rotary_factor", "rope_type",
    )  # fmt: skip
    settings = [{key: value} for key in FAMILIES[family].followed for value in absurd]
    for kind in ("yarn", "llama3", "linear", "proportional"):
        rope = {"rope_type": kind, "factor": 2.0, "low_freq_factor": 1, "high_freq_factor": 4, "mscale_all_dim": 1}
        settings += [{"rope_scaling": {**rope, key: value}} for key in inner for value in absurd]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for changes in settings:
            with suppress(GGPYError):
                model_class, config, _ = known_config(Config({**CONFIGS[family], **WINDOW, **changes}))
                layout = by_hf_name(model_class, config).hf_layout(config)
                by_gguf_name(layout.arch)(layout.metadata, layout.n_vocab).check(*layout.rope_factors)
                encode_header(layout.metadata, [])
