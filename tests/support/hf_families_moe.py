"""Tiny checkpoints of mixtures of experts and hybrids, whose logits transformers has computed.

`tests/data/hf_families_moe.npz` is as `tests.support.recorded` says, without shapes; where experts are MXFP4 blocks,
transformers was given `quantization_config=Mxfp4Config(dequantize=True)`.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import recorded
from tests.support.recorded import ABSENT, Refusal, present, write_folder

#: Longer than two chunks of the delta rule and than every window.
TOKENS = [(7 * i * i + 3 * i) % 456 for i in range(150)]
POSITIONS = [1, 20, 63, 64, 100, 128, 149]
COLUMNS = range(0, 461, 20)
DATA = Path(__file__).parents[1] / "data" / "hf_families_moe.npz"

_SHARED: dict[str, Any] = {
    "vocab_size": 461, "hidden_size": 60, "num_hidden_layers": 4, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 512, "hidden_act": "silu", "rope_theta": 500.0, "torch_dtype": "float32",
    "tie_word_embeddings": False,
}  # fmt: skip
_EXPERTS: dict[str, Any] = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 46}
_DELTA: dict[str, Any] = {
    "head_dim": 24, "rms_norm_eps": 1e-6, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 10,
    "linear_value_head_dim": 10, "linear_num_key_heads": 2, "linear_num_value_heads": 6,
    "layer_types": ["linear_attention", "full_attention"] * 2,
}  # fmt: skip
_YARN = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 32,
}  # fmt: skip

#: Each family's config.json.
CONFIGS: dict[str, dict[str, Any]] = {
    "qwen3_moe": {
        **_SHARED, **_EXPERTS, "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe", "head_dim": 24,
        "intermediate_size": 90, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
        "rms_norm_eps": 1e-6, "attention_bias": False, "use_sliding_window": False,
    },
    "gpt_oss": {
        **_SHARED, "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "head_dim": 24,
        "intermediate_size": 46, "num_local_experts": 8, "num_experts_per_tok": 4, "sliding_window": 16,
        "layer_types": ["sliding_attention", "full_attention"] * 2, "attention_bias": True, "rms_norm_eps": 1e-5,
        "rope_scaling": _YARN, "swiglu_limit": 7.0,
    },
    "qwen3_5_text": {
        **_SHARED, **_DELTA, "architectures": ["Qwen3_5ForCausalLM"], "model_type": "qwen3_5_text",
        "intermediate_size": 90, "rope_theta": ABSENT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25,
                            "mrope_section": [1, 1, 1], "mrope_interleaved": True},
    },
    "qwen3_5_moe_text": {
        **_SHARED, **_DELTA, **_EXPERTS, "architectures": ["Qwen3_5MoeForCausalLM"], "model_type": "qwen3_5_moe_text",
        "shared_expert_intermediate_size": 38, "rope_theta": ABSENT,
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.25,
                            "mrope_section": [1, 1, 1], "mrope_interleaved": True},
    },
    "qwen3_next": {
        **_SHARED, **_DELTA, **_EXPERTS, "architectures": ["Qwen3NextForCausalLM"], "model_type": "qwen3_next",
        "shared_expert_intermediate_size": 38, "intermediate_size": 90, "partial_rotary_factor": 0.25,
        "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": [],
    },
    "lfm2": {
        **_SHARED, "architectures": ["Lfm2ForCausalLM"], "model_type": "lfm2", "intermediate_size": 100,
        "norm_eps": 1e-5, "conv_L_cache": 3, "conv_bias": False, "block_multiple_of": 14, "hidden_act": ABSENT,
        "block_ffn_dim_multiplier": 1.0, "block_auto_adjust_ff_dim": True, "tie_word_embeddings": ABSENT,
        "layer_types": ["conv", "conv", "full_attention", "conv", "full_attention"], "num_hidden_layers": 5,
        "hidden_size": 64,
    },
    "lfm2_moe": {
        **_SHARED, **_EXPERTS, "architectures": ["Lfm2MoeForCausalLM"], "model_type": "lfm2_moe",
        "intermediate_size": 90, "norm_eps": 1e-5, "conv_L_cache": 3, "conv_bias": False, "hidden_act": ABSENT,
        "num_dense_layers": 1, "use_expert_bias": True, "norm_topk_prob": True, "routed_scaling_factor": 1.0,
        "layer_types": ["conv", "full_attention", "conv", "full_attention"], "tie_word_embeddings": ABSENT,
        "hidden_size": 64,
    },
}  # fmt: skip

CONFIGS = {kind: present(config) for kind, config in CONFIGS.items()}
for _kind in ("qwen3_5", "qwen3_5_moe"):  # the models that see, and their text models inside
    _text = {key: value for key, value in CONFIGS[_kind + "_text"].items() if key != "architectures"}
    _classes = [CONFIGS[_kind + "_text"]["architectures"][0].replace("CausalLM", "ConditionalGeneration")]
    CONFIGS[_kind] = {
        "architectures": _classes, "model_type": _kind, "tie_word_embeddings": False, "image_token_id": 457,
        "vision_config": {"model_type": _kind}, "text_config": _text,
    }  # fmt: skip

#: Widths that are whole blocks of 32, for quantized files.
_BLOCKS: dict[str, Any] = {"hidden_size": 64, "intermediate_size": 96, "moe_intermediate_size": 64, "head_dim": 32}


@dataclass(frozen=True)
class Case(recorded.Case):
    """`fused`: the experts of a layer are one tensor. `mxfp4`: they are MXFP4 blocks. `nested`: the text model of a
    model that sees, which also predicts further tokens."""

    configs = CONFIGS
    fused: bool = False
    mxfp4: bool = False
    nested: bool = False

    def write(self, folder: Path) -> None:
        write(folder, self)


CASES: dict[str, Case] = {
    "qwen3moe": Case("qwen3_moe"),
    "qwen3moe, whole blocks": Case("qwen3_moe", _BLOCKS),
    "qwen3moe, four used": Case("qwen3_moe", {"num_experts_per_tok": 4}),
    "qwen3moe, weights as they are": Case("qwen3_moe", {"norm_topk_prob": False}),
    "qwen3moe, a dense layer": Case("qwen3_moe", {"mlp_only_layers": [2]}),
    "qwen3moe, every other layer": Case("qwen3_moe", {"decoder_sparse_step": 2}),
    "qwen3moe, window": Case("qwen3_moe", {"use_sliding_window": True, "sliding_window": 16}),
    "qwen3moe, tied": Case("qwen3_moe", {"tie_word_embeddings": True}),
    "qwen3moe, head width absent": Case("qwen3_moe", {"head_dim": ABSENT, "hidden_size": 64}),
    "qwen3moe, fused": Case("qwen3_moe", fused=True),
    "gpt-oss": Case("gpt_oss"),
    "gpt-oss, mxfp4": Case("gpt_oss", {"hidden_size": 64, "intermediate_size": 96}, mxfp4=True),
    "gpt-oss, whole blocks": Case("gpt_oss", {**_BLOCKS, "moe_intermediate_size": ABSENT}),
    "gpt-oss, two used": Case("gpt_oss", {"num_experts_per_tok": 2}),
    "gpt-oss, layer types absent": Case("gpt_oss", {"layer_types": ABSENT}),
    "gpt-oss, other layers": Case("gpt_oss", {"layer_types": ["full_attention"] + ["sliding_attention"] * 3}),
    "gpt-oss, rope absent": Case("gpt_oss", {"rope_theta": ABSENT, "rope_scaling": ABSENT}),
    "gpt-oss, truncated": Case("gpt_oss", {"rope_scaling": {**_YARN, "truncate": True}}),
    "qwen35": Case("qwen3_5_text"),
    "qwen35, whole blocks": Case("qwen3_5_text", {
        **_BLOCKS, "moe_intermediate_size": ABSENT, "linear_key_head_dim": 16, "linear_value_head_dim": 16,
    }),
    "qwen35, as many heads": Case("qwen3_5_text", {"linear_num_value_heads": 2}),
    "qwen35, interval": Case("qwen3_5_text", {"layer_types": ABSENT, "full_attention_interval": 3}),
    "qwen35, interval absent": Case("qwen3_5_text", {"layer_types": ABSENT, "num_hidden_layers": 5}),
    "qwen35, other layers": Case("qwen3_5_text", {
        "layer_types": ["full_attention", "linear_attention", "linear_attention", "full_attention"],
    }),
    "qwen35, tied": Case("qwen3_5_text", {"tie_word_embeddings": True}),
    "qwen35, three taps": Case("qwen3_5_text", {"linear_conv_kernel_dim": 3}),
    "qwen35moe": Case("qwen3_5_moe_text", fused=True),
    "qwen35moe, an expert a tensor": Case("qwen3_5_moe_text", {"num_experts_per_tok": 4}),
    "qwen3next": Case("qwen3_next"),
    "lfm2": Case("lfm2"),
    "lfm2, whole blocks": Case("lfm2", {"block_multiple_of": 32, "intermediate_size": 96}),
    "lfm2, width as it is": Case("lfm2", {"block_auto_adjust_ff_dim": False, "intermediate_size": 90}),
    "lfm2, multiplier": Case("lfm2", {"block_ffn_dim_multiplier": 1.3}),
    "lfm2, attention listed": Case("lfm2", {"layer_types": ABSENT, "full_attn_idxs": [1, 4]}),
    "lfm2, older keys": Case("lfm2", {"tie_embedding": False, "block_ff_dim": 80, "rope_theta": ABSENT}),
    "lfm2, four taps": Case("lfm2", {"conv_L_cache": 4}),
    "lfm2moe": Case("lfm2_moe"),
    "lfm2moe, without bias": Case("lfm2_moe", {"use_expert_bias": False, "num_experts_per_tok": 4}),
    "lfm2moe, weights as they are": Case("lfm2_moe", {"norm_topk_prob": False}),
}  # fmt: skip


#: One of each architecture, and one with a form of its own.
CUT = ("qwen3moe", "gpt-oss", "gpt-oss, mxfp4", "qwen35", "qwen35moe", "qwen3next", "lfm2", "lfm2moe")
#: Metadata that no model can have.
ABSURD: list[Refusal] = [
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
#: Settings of a config.json that are not followed.
REFUSED: list[Refusal] = [
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
    ("lfm2", {"layer_types": ABSENT, "full_attn_idxs": "all"}, "'full_attn_idxs' as 'all'"),
]


def logits(name: str) -> np.ndarray:
    return recorded.recorded(DATA)[name][0]


def _attention(config: dict[str, Any], *, gated: bool = False, bias: bool = False) -> dict[str, tuple[int, ...]]:
    n_embd, n_head = config["hidden_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim", n_embd // n_head)
    n_q, n_kv = n_head * head_dim, config["num_key_value_heads"] * head_dim
    shapes: dict[str, tuple[int, ...]] = {}
    for name, rows, columns in (
        ("q", n_q * (1 + gated), n_embd), ("k", n_kv, n_embd), ("v", n_kv, n_embd), ("o", n_embd, n_q),
    ):  # fmt: skip
        shapes[f"self_attn.{name}_proj.weight"] = (rows, columns)
        if bias:
            shapes[f"self_attn.{name}_proj.bias"] = (rows,)
    return shapes


def _glu(at: str, names: tuple[str, str, str], n_embd: int, n_ff: int) -> dict[str, tuple[int, ...]]:
    gate, up, down = (f"{at}{name}.weight" for name in names)
    return {gate: (n_ff, n_embd), up: (n_ff, n_embd), down: (n_embd, n_ff)}


_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")


def _experts(
    config: dict[str, Any], at: str, names: tuple[str, str, str] = _PROJECTIONS, *, fused: bool = False
) -> dict[str, tuple[int, ...]]:
    n_embd, n_ff, n_expert = config["hidden_size"], config["moe_intermediate_size"], config["num_experts"]
    shapes: dict[str, tuple[int, ...]] = {f"{at}gate.weight": (n_expert, n_embd)}
    if fused:
        shapes[f"{at}experts.gate_up_proj"] = (n_expert, 2 * n_ff, n_embd)
        shapes[f"{at}experts.down_proj"] = (n_expert, n_embd, n_ff)
    else:
        for expert in range(n_expert):
            shapes.update(_glu(f"{at}experts.{expert}.", names, n_embd, n_ff))
    return shapes


def _qwen3_moe_layer(case: Case, config: dict[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    head_dim = config.get("head_dim", config["hidden_size"] // config["num_attention_heads"])
    shapes = {**_attention(config), "self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}
    sparse = layer not in config["mlp_only_layers"] and (layer + 1) % config["decoder_sparse_step"] == 0
    if sparse:
        return shapes | _experts(config, "mlp.", fused=case.fused)
    return shapes | _glu("mlp.", _PROJECTIONS, config["hidden_size"], config["intermediate_size"])


def _gpt_oss_layer(case: Case, config: dict[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    n_embd, n_ff, n_expert = config["hidden_size"], config["intermediate_size"], config["num_local_experts"]
    shapes = {
        **_attention(config, bias=True),
        "self_attn.sinks": (config["num_attention_heads"],),
        "mlp.router.weight": (n_expert, n_embd),
        "mlp.router.bias": (n_expert,),
        "mlp.experts.gate_up_proj_bias": (n_expert, 2 * n_ff),
        "mlp.experts.down_proj_bias": (n_expert, n_embd),
    }
    if case.mxfp4:  # of the transposed matrices, 16 bytes and a scale for 32 columns
        shapes["mlp.experts.gate_up_proj_blocks"] = (n_expert, 2 * n_ff, n_embd // 32, 16)
        shapes["mlp.experts.gate_up_proj_scales"] = (n_expert, 2 * n_ff, n_embd // 32)
        shapes["mlp.experts.down_proj_blocks"] = (n_expert, n_embd, n_ff // 32, 16)
        shapes["mlp.experts.down_proj_scales"] = (n_expert, n_embd, n_ff // 32)
    else:
        shapes["mlp.experts.gate_up_proj"] = (n_expert, n_embd, 2 * n_ff)
        shapes["mlp.experts.down_proj"] = (n_expert, n_ff, n_embd)
    return shapes


def _layer_types(config: dict[str, Any]) -> list[str]:
    interval = config.get("full_attention_interval", 4)
    kinds = ["full_attention" if (i + 1) % interval == 0 else "" for i in range(config["num_hidden_layers"])]
    return config.get("layer_types", kinds)


def _delta_layer(case: Case, config: dict[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    n_embd, head_dim = config["hidden_size"], config["head_dim"]
    n_k, n_v = config["linear_num_key_heads"], config["linear_num_value_heads"]
    d_k, d_v = config["linear_key_head_dim"], config["linear_value_head_dim"]
    shapes: dict[str, tuple[int, ...]]
    if _layer_types(config)[layer] == "full_attention":
        shapes = _attention(config, gated=True)
        shapes |= {"self_attn.q_norm.weight": (head_dim,), "self_attn.k_norm.weight": (head_dim,)}
    else:
        shapes = {
            "linear_attn.conv1d.weight": (2 * n_k * d_k + n_v * d_v, 1, config["linear_conv_kernel_dim"]),
            "linear_attn.A_log": (n_v,),
            "linear_attn.dt_bias": (n_v,),
            "linear_attn.norm.weight": (d_v,),
            "linear_attn.out_proj.weight": (n_embd, n_v * d_v),
        }
        if case.kind == "qwen3_next":
            shapes["linear_attn.in_proj_qkvz.weight"] = (2 * n_k * d_k + 2 * n_v * d_v, n_embd)
            shapes["linear_attn.in_proj_ba.weight"] = (2 * n_v, n_embd)
        else:
            shapes["linear_attn.in_proj_qkv.weight"] = (2 * n_k * d_k + n_v * d_v, n_embd)
            shapes["linear_attn.in_proj_z.weight"] = (n_v * d_v, n_embd)
            shapes["linear_attn.in_proj_a.weight"] = shapes["linear_attn.in_proj_b.weight"] = (n_v, n_embd)
    if "num_experts" not in config:
        return shapes | _glu("mlp.", _PROJECTIONS, n_embd, config["intermediate_size"])
    shapes |= _experts(config, "mlp.", fused=case.fused)
    shapes |= _glu("mlp.shared_expert.", _PROJECTIONS, n_embd, config["shared_expert_intermediate_size"])
    return shapes | {"mlp.shared_expert_gate.weight": (1, n_embd)}


def lfm2_width(config: dict[str, Any]) -> int:
    """The feed-forward width of a dense LFM2."""
    n_ff = int(config.get("block_ff_dim", config["intermediate_size"]))
    if config["block_auto_adjust_ff_dim"]:
        multiple = config["block_multiple_of"]
        n_ff = int(config["block_ffn_dim_multiplier"] * int(2 * n_ff / 3))
        n_ff = (n_ff + multiple - 1) // multiple * multiple
    return n_ff


def _lfm2_layer(case: Case, config: dict[str, Any], layer: int) -> dict[str, tuple[int, ...]]:
    n_embd = config["hidden_size"]
    head_dim = n_embd // config["num_attention_heads"]
    full = [layer in config["full_attn_idxs"]] if "full_attn_idxs" in config else [
        config["layer_types"][layer] == "full_attention"
    ]  # fmt: skip
    if full[0]:
        shapes = {name.replace("o_proj", "out_proj"): shape for name, shape in _attention(config).items()}
        shapes |= {"self_attn.q_layernorm.weight": (head_dim,), "self_attn.k_layernorm.weight": (head_dim,)}
    else:
        shapes = {
            "conv.conv.weight": (n_embd, 1, config["conv_L_cache"]),
            "conv.in_proj.weight": (3 * n_embd, n_embd),
            "conv.out_proj.weight": (n_embd, n_embd),
        }
    names = ("w1", "w3", "w2")
    if case.kind == "lfm2":
        return shapes | _glu("feed_forward.", names, n_embd, lfm2_width(config))
    if layer < config["num_dense_layers"]:
        return shapes | _glu("feed_forward.", names, n_embd, config["intermediate_size"])
    shapes |= _experts(config, "feed_forward.", names)
    if config["use_expert_bias"]:
        shapes["feed_forward.expert_bias"] = (config["num_experts"],)
    return shapes


_LAYERS = {
    "qwen3_moe": _qwen3_moe_layer, "gpt_oss": _gpt_oss_layer, "qwen3_5_text": _delta_layer,
    "qwen3_5_moe_text": _delta_layer, "qwen3_next": _delta_layer, "lfm2": _lfm2_layer, "lfm2_moe": _lfm2_layer,
}  # fmt: skip


def tensor_shapes(case: Case) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a case's checkpoint, as published ones have them."""
    config = case.config
    n_embd = config["hidden_size"]
    liquid = case.kind.startswith("lfm2")
    norms = ("operator_norm", "ffn_norm") if liquid else ("input_layernorm", "post_attention_layernorm")
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (config["vocab_size"], n_embd)}
    for layer in range(config["num_hidden_layers"]):
        of_layer = _LAYERS[case.kind](case, config, layer) | {f"{name}.weight": (n_embd,) for name in norms}
        shapes |= {f"model.layers.{layer}.{name}": shape for name, shape in of_layer.items()}
    shapes["model.embedding_norm.weight" if liquid else "model.norm.weight"] = (n_embd,)
    if not config.get("tie_embedding", config.get("tie_word_embeddings", liquid)):
        shapes["lm_head.weight"] = (config["vocab_size"], n_embd)
    return shapes


def values(rng: np.random.RandomState, case: Case, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """Weights that keep logits lively: routers that choose, decays from a token to hundreds, gates beyond the clamp."""
    if name.endswith("_blocks"):
        return rng.randint(0, 256, shape).astype(np.uint8)
    if name.endswith("_scales"):
        return rng.randint(122, 127, shape).astype(np.uint8)
    drawn = rng.standard_normal(shape).astype(np.float32)
    if name.endswith("A_log"):
        return np.linspace(-6, 0.5, shape[0], dtype=np.float32)
    if name.endswith(("sinks", "dt_bias")):
        return drawn
    if name.endswith("expert_bias"):
        return 0.2 * drawn
    if name.endswith(("_proj_bias", ".bias")):
        return 0.3 * drawn
    if len(shape) == 1:
        centred = case.kind.startswith(("qwen3_5", "qwen3_next")) and not name.endswith("linear_attn.norm.weight")
        return 0.1 * drawn + (0 if centred else 1)
    if "embed" in name:  # small beside what the layers add
        return np.float32(0.3) * drawn
    width = shape[-2] if case.kind == "gpt_oss" and name.endswith(("gate_up_proj", "down_proj")) else shape[-1]
    gain = 4.0 if case.kind == "gpt_oss" and name.endswith("gate_up_proj") else 1.5
    return drawn * np.float32(gain / np.sqrt(width))


def write(folder: Path, case: Case) -> None:
    """The checkpoint of a case: config.json, model.safetensors, and a tokenizer."""
    config = case.config
    if case.mxfp4:
        config["quantization_config"] = {"quant_method": "mxfp4", "modules_to_not_convert": ["lm_head"]}
    rng = np.random.RandomState(1)
    tensors = {name: values(rng, case, name, shape) for name, shape in tensor_shapes(case).items()}
    if case.nested:
        text = "model.language_model."
        tensors = {text + name.removeprefix("model.") if "model." in name else name: t for name, t in tensors.items()}
        tensors["model.visual.patch_embed.proj.bias"] = np.zeros(8, np.float32)
        tensors["mtp.fc.weight"] = np.zeros((config["hidden_size"], 2 * config["hidden_size"]), np.float32)
        config = {**CONFIGS[case.kind.removesuffix("_text")], "text_config": config}
    write_folder(folder, config, tensors)


def write_checkpoint(folder: Path, config: dict[str, Any]) -> None:
    """The checkpoint of a config.json that is one of CONFIGS or like one."""
    text = config.get("text_config", config)
    write(folder, Case(text["model_type"], text, nested=text is not config))
