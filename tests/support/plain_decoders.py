"""Tiny checkpoints of decoders that transformers lacks, and what each computes, in plain numpy: InternLM 2, Baichuan,
ChatGLM, after the code that comes with the models."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from tests.support import recorded
from tests.support.recorded import ABSENT, Refusal, write_folder

TOKENS = [(7 * i * i + 3 * i) % 456 for i in range(60)]
POSITIONS = range(60)
COLUMNS = range(461)

_SHARED: dict[str, Any] = {
    "vocab_size": 461, "hidden_size": 60, "intermediate_size": 90, "num_hidden_layers": 2, "num_attention_heads": 6,
    "max_position_embeddings": 256, "hidden_act": "silu", "rms_norm_eps": 1e-5, "tie_word_embeddings": False,
    "torch_dtype": "float32", "bos_token_id": 456, "eos_token_id": 458, "pad_token_id": 456,
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {
    "internlm2": {
        **_SHARED, "architectures": ["InternLM2ForCausalLM"], "model_type": "internlm2", "num_key_value_heads": 2,
        "bias": False, "rope_theta": 500.0,
    },
    "baichuan": {**_SHARED, "architectures": ["BaichuanForCausalLM"], "model_type": "baichuan"},
    "chatglm": {
        "architectures": ["ChatGLMForConditionalGeneration"], "model_type": "chatglm", "num_layers": 2,
        "padded_vocab_size": 461, "hidden_size": 60, "ffn_hidden_size": 90, "kv_channels": 12,
        "num_attention_heads": 6, "seq_length": 256, "layernorm_epsilon": 1e-5, "add_bias_linear": False,
        "add_qkv_bias": True, "multi_query_attention": True, "multi_query_group_num": 2, "rmsnorm": True,
        "post_layer_norm": True, "original_rope": True, "apply_residual_connection_post_layernorm": False,
        "tie_word_embeddings": False, "torch_dtype": "float32", "eos_token_id": 458, "pad_token_id": 456,
    },
}  # fmt: skip


class Case(recorded.Case):
    configs = CONFIGS

    def write(self, folder: Path) -> None:
        write_checkpoint(folder, self.config)


#: Widths that are whole blocks of 32, for quantized files.
_BLOCKS = {"hidden_size": 64, "intermediate_size": 96}

CASES = {kind: Case(kind) for kind in CONFIGS} | {
    "internlm2, biases": Case("internlm2", {"bias": True, "num_key_value_heads": 6}),
    "baichuan, slopes": Case("baichuan", {"max_position_embeddings": ABSENT}),
    "chatglm, all heads": Case("chatglm", {
        "multi_query_attention": False, "add_bias_linear": True, "rope_ratio": 0.05}),
    "internlm2, whole blocks": Case("internlm2", {**_BLOCKS, "num_attention_heads": 4}),
    "baichuan, whole blocks": Case("baichuan", {**_BLOCKS, "num_attention_heads": 4}),
    "chatglm, whole blocks": Case("chatglm", {"hidden_size": 64, "ffn_hidden_size": 96, "kv_channels": 16}),
}  # fmt: skip
CUT = tuple(CONFIGS)
ABSURD: list[Refusal] = []
REFUSED: list[Refusal] = [
    ("chatglm", {"post_layer_norm": False}, "gives 'post_layer_norm' as False"),
    ("internlm2", {"num_key_value_heads": 4}, "4 'num_key_value_heads'"),
]


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    kind, n = config["model_type"], config["hidden_size"]
    if kind == "chatglm":
        n_ff, n_q = config["ffn_hidden_size"], config["num_attention_heads"] * config["kv_channels"]
        n_kv = config["multi_query_group_num"] * config["kv_channels"] if config["multi_query_attention"] else n_q
        shapes: dict[str, tuple[int, ...]] = {
            "transformer.embedding.word_embeddings.weight": (461, n), "transformer.output_layer.weight": (461, n),
            "transformer.encoder.final_layernorm.weight": (n,),
        }  # fmt: skip
        for i in range(config["num_layers"]):
            at = f"transformer.encoder.layers.{i}."
            shapes |= {at + "input_layernorm.weight": (n,), at + "post_attention_layernorm.weight": (n,)}
            for name, rows, columns, bias in (
                ("self_attention.query_key_value", n_q + 2 * n_kv, n, config["add_qkv_bias"]),
                ("self_attention.dense", n, n_q, False), ("mlp.dense_h_to_4h", 2 * n_ff, n, False),
                ("mlp.dense_4h_to_h", n, n_ff, False),
            ):  # fmt: skip
                shapes[f"{at}{name}.weight"] = (rows, columns)
                if bias or config["add_bias_linear"]:
                    shapes[f"{at}{name}.bias"] = (rows,)
        return shapes
    n_ff, packed = config["intermediate_size"], kind == "baichuan"
    embed, head = ("model.embed_tokens", "lm_head") if packed else ("model.tok_embeddings", "output")
    shapes = {f"{embed}.weight": (461, n), f"{head}.weight": (461, n), "model.norm.weight": (n,)}
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        if packed:
            norms, qkv, out = ("input_layernorm", "post_attention_layernorm"), "self_attn.W_pack", "self_attn.o_proj"
            n_rows, ffn = 3 * n, ("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")
        else:
            norms, qkv, out = ("attention_norm", "ffn_norm"), "attention.wqkv", "attention.wo"
            n_rows = n + 2 * config["num_key_value_heads"] * (n // config["num_attention_heads"])
            ffn = ("feed_forward.w1", "feed_forward.w3", "feed_forward.w2")
        shapes |= {f"{at}{name}.weight": (n,) for name in norms}
        matrices = {qkv: (n_rows, n), out: (n, n), ffn[0]: (n_ff, n), ffn[1]: (n_ff, n), ffn[2]: (n, n_ff)}
        shapes |= {f"{at}{name}.weight": shape for name, shape in matrices.items()}
        if config.get("bias"):
            shapes |= {f"{at}{name}.bias": matrices[name][:1] for name in (qkv, out)}
    return shapes


def tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    rng, found = np.random.RandomState(1), {}
    for name, shape in tensor_shapes(config).items():
        drawn = rng.standard_normal(shape).astype(np.float32)
        if name.endswith("bias"):
            drawn *= np.float32(0.3)
        elif len(shape) == 1:
            drawn = np.float32(0.1) * drawn + np.float32(1)
        else:
            drawn *= np.float32(0.3 if "embed" in name else 1.5 / math.sqrt(shape[-1]))
        found[name] = drawn
    return found


def write_checkpoint(folder: Path, config: dict[str, Any]) -> None:
    """The checkpoint of a config.json that is one of CONFIGS or like one."""
    write_folder(folder, config, tensors(config))


# ---- the models


def logits(name: str) -> np.ndarray:
    """The float64 logits [n, vocab] of TOKENS."""
    config = CASES[name].config
    w = {name: values.astype(np.float64) for name, values in tensors(config).items()}
    return {"internlm2": _internlm2, "baichuan": _baichuan, "chatglm": _chatglm}[config["model_type"]](
        config, w, TOKENS
    )


def _norm(x: np.ndarray, weight: np.ndarray, eps: float) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * weight


def _silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def _linear(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[name + ".weight"].T + w.get(name + ".bias", 0.0)


def _angles(n: int, n_rot: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    angle = np.arange(n)[:, None] * base ** (-np.arange(0, n_rot, 2) / n_rot)
    return np.cos(angle)[:, None], np.sin(angle)[:, None]


def _turn_halves(x: np.ndarray, base: float) -> np.ndarray:
    """Heads [n, heads, d] whose halves are pairs."""
    cos, sin = _angles(len(x), x.shape[-1], base)
    a, b = np.split(x, 2, -1)
    return np.concatenate([a * cos - b * sin, b * cos + a * sin], -1)


def _turn_neighbours(x: np.ndarray, n_rot: int, base: float) -> np.ndarray:
    """Heads whose neighbours are pairs, in the first n_rot dimensions."""
    cos, sin = _angles(len(x), n_rot, base)
    out, a, b = x.copy(), x[..., 0:n_rot:2], x[..., 1:n_rot:2]
    out[..., 0:n_rot:2], out[..., 1:n_rot:2] = a * cos - b * sin, b * cos + a * sin
    return out


def _attend(q: np.ndarray, k: np.ndarray, v: np.ndarray, slopes: np.ndarray | None = None) -> np.ndarray:
    n, group = len(q), q.shape[1] // k.shape[1]
    scores = np.einsum("ihd,jhd->hij", q, k.repeat(group, 1)) / math.sqrt(q.shape[-1])
    if slopes is not None:
        scores = scores + slopes[:, None, None] * np.arange(n)
    scores = np.where(np.tri(n, dtype=bool), scores, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    return np.einsum("hij,jhd->ihd", weights, v.repeat(group, 1)).reshape(n, -1)


def _internlm2(c: dict[str, Any], w: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    x, eps = w["model.tok_embeddings.weight"][tokens], c["rms_norm_eps"]
    n_kv, group = c["num_key_value_heads"], c["num_attention_heads"] // c["num_key_value_heads"]
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        heads = _linear(w, at + "attention.wqkv", _norm(x, w[at + "attention_norm.weight"], eps))
        heads = heads.reshape(len(x), n_kv, group + 2, -1)
        q = heads[:, :, :group].reshape(len(x), n_kv * group, -1)
        q, k = (_turn_halves(part, c["rope_theta"]) for part in (q, heads[:, :, -2]))
        x = x + _linear(w, at + "attention.wo", _attend(q, k, heads[:, :, -1]))
        y = _norm(x, w[at + "ffn_norm.weight"], eps)
        gate, up = (_linear(w, f"{at}feed_forward.{name}", y) for name in ("w1", "w3"))
        x = x + _linear(w, at + "feed_forward.w2", _silu(gate) * up)
    return _linear(w, "output", _norm(x, w["model.norm.weight"], eps))


def _baichuan(c: dict[str, Any], w: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    x, eps, n_head = w["model.embed_tokens.weight"][tokens], c["rms_norm_eps"], c["num_attention_heads"]
    slopes = None
    if "max_position_embeddings" not in c:  # six heads: four of a series, two between
        slopes = np.array([2.0 ** (-2 * (i + 1)) for i in range(4)] + [2.0**-1, 2.0**-3])
    for i in range(c["num_hidden_layers"]):
        at = f"model.layers.{i}."
        packed = _linear(w, at + "self_attn.W_pack", _norm(x, w[at + "input_layernorm.weight"], eps))
        q, k, v = (part.reshape(len(x), n_head, -1) for part in np.split(packed, 3, -1))
        if slopes is None:
            q, k = _turn_halves(q, 10000.0), _turn_halves(k, 10000.0)
        x = x + _linear(w, at + "self_attn.o_proj", _attend(q, k, v, slopes))
        y = _norm(x, w[at + "post_attention_layernorm.weight"], eps)
        gate, up = (_linear(w, f"{at}mlp.{name}_proj", y) for name in ("gate", "up"))
        x = x + _linear(w, at + "mlp.down_proj", _silu(gate) * up)
    return _linear(w, "lm_head", _norm(x, w["model.norm.weight"], eps))


def _chatglm(c: dict[str, Any], w: dict[str, np.ndarray], tokens: list[int]) -> np.ndarray:
    x, eps, d = w["transformer.embedding.word_embeddings.weight"][tokens], c["layernorm_epsilon"], c["kv_channels"]
    n_head, base = c["num_attention_heads"], 10000.0 * c.get("rope_ratio", 1.0)
    n_kv = c["multi_query_group_num"] if c["multi_query_attention"] else n_head
    for i in range(c["num_layers"]):
        at = f"transformer.encoder.layers.{i}."
        y = _linear(w, at + "self_attention.query_key_value", _norm(x, w[at + "input_layernorm.weight"], eps))
        q, k, v = np.split(y.reshape(len(x), -1, d), [n_head, n_head + n_kv], 1)
        q, k = (_turn_neighbours(part, d // 2, base) for part in (q, k))
        x = x + _linear(w, at + "self_attention.dense", _attend(q, k, v))
        y = _linear(w, at + "mlp.dense_h_to_4h", _norm(x, w[at + "post_attention_layernorm.weight"], eps))
        gate, up = np.split(y, 2, -1)
        x = x + _linear(w, at + "mlp.dense_4h_to_h", _silu(gate) * up)
    return _linear(w, "transformer.output_layer", _norm(x, w["transformer.encoder.final_layernorm.weight"], eps))
