"""Tiny checkpoints of encoders and other models that embed texts or rank them, with what transformers computes of them.

`tests/data/hf_families_encoders.npz` holds, by case, float32 rows [text, n_cols] of TEXTS from transformers 5.24
(`attn_implementation="eager"`, float32) on the folder that `write` makes: of each text's last hidden states the mean,
the first or the last row, then sentence-transformers' matrices where a case has them; or a classifier's logits, of
texts whose second half is a text of its own to BERT. For
Nomic's experts and Jina's second generation, which transformers lacks, the reference is `numpy_rows`. Weights come from
numpy's frozen generator, so both sides make the same ones. `python -m tests.support.hf_families_encoders` records them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.hf_families_bert import tensor_shapes as bert_shapes
from tests.support.tiny import write_safetensors
from tests.support.vocabularies import BERT_SPECIALS, hf_wordpiece

DATA = Path(__file__).parents[1] / "data" / "hf_families_encoders.npz"
N_VOCAB = 421
#: Tokens of texts of several lengths, [CLS] and [SEP] included.
TEXTS = [[2, *((7 * i * i + 3 * i + n) % 391 + 5 for i in range(n)), 3] for n in (1, 5, 30, 94)]

Shapes = dict[str, tuple[int, ...]]
_SIZES: dict[str, Any] = {
    "vocab_size": N_VOCAB, "hidden_size": 60, "num_hidden_layers": 4, "num_attention_heads": 6,
    "intermediate_size": 90, "max_position_embeddings": 100, "pad_token_id": 0, "bos_token_id": 2, "eos_token_id": 3,
    "torch_dtype": "float32",
}  # fmt: skip
_XLMR: dict[str, Any] = {
    **_SIZES, "model_type": "xlm-roberta", "architectures": ["XLMRobertaModel"], "type_vocab_size": 1,
    "layer_norm_eps": 1e-5, "hidden_act": "gelu", "pad_token_id": 1, "num_hidden_layers": 2,
    "max_position_embeddings": 102, "position_embedding_type": "absolute",
}  # fmt: skip
_NOMIC: dict[str, Any] = {
    **_SIZES, "model_type": "nomic_bert", "architectures": ["NomicBertModel"], "type_vocab_size": 2,
    "layer_norm_eps": 1e-12, "hidden_act": "silu", "num_hidden_layers": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1000.0},
}  # fmt: skip
_NOMIC_MOE: dict[str, Any] = {
    "model_type": "nomic_bert", "architectures": ["NomicBertModel"], "vocab_size": N_VOCAB, "type_vocab_size": 1,
    "n_embd": 60, "n_layer": 4, "n_head": 6, "n_inner": 90, "n_positions": 100, "layer_norm_epsilon": 1e-5,
    "rotary_emb_base": 500.0, "rotary_emb_fraction": 1.0, "rotary_emb_interleaved": False, "causal": False,
    "rotary_emb_scale_base": None, "prenorm": False, "activation_function": "gelu", "qkv_proj_bias": True,
    "mlp_fc1_bias": True, "mlp_fc2_bias": True, "moe_every_n_layers": 2, "num_experts": 5, "moe_top_k": 2,
    "pad_token_id": 0, "torch_dtype": "float32",
}  # fmt: skip
_JINA_V2: dict[str, Any] = {
    **_SIZES, "model_type": "bert", "architectures": ["JinaBertForMaskedLM"], "type_vocab_size": 2,
    "layer_norm_eps": 1e-12, "hidden_act": "gelu", "position_embedding_type": "alibi", "feed_forward_type": "geglu",
    "emb_pooler": "mean", "num_hidden_layers": 2,
}  # fmt: skip
_JINA_V3: dict[str, Any] = {
    **_SIZES, "model_type": "jina_embeddings_v3", "architectures": ["JinaEmbeddingsV3Model"], "type_vocab_size": 1,
    "layer_norm_eps": 1e-5, "hidden_act": "gelu", "num_hidden_layers": 2,
    "rope_parameters": {"rope_type": "default", "rope_theta": 300.0},
}  # fmt: skip
_MODERN: dict[str, Any] = {
    **_SIZES, "model_type": "modernbert", "architectures": ["ModernBertModel"], "norm_eps": 1e-5,
    "hidden_activation": "gelu", "global_rope_theta": 700.0, "local_rope_theta": 90.0, "local_attention": 15,
    "global_attn_every_n_layers": 2, "classifier_pooling": "mean", "cls_token_id": 2, "sep_token_id": 3,
}  # fmt: skip
_EURO: dict[str, Any] = {
    **_SIZES, "model_type": "eurobert", "architectures": ["EuroBertModel"], "num_key_value_heads": 3,
    "rms_norm_eps": 1e-5, "hidden_act": "silu", "num_hidden_layers": 2, "mask_token_id": 4,
    "rope_parameters": {"rope_type": "default", "rope_theta": 400.0},
}  # fmt: skip
_GEMMA: dict[str, Any] = {
    **_SIZES, "model_type": "gemma3_text", "architectures": ["Gemma3TextModel"], "num_attention_heads": 3,
    "num_key_value_heads": 1, "head_dim": 24, "query_pre_attn_scalar": 24, "rms_norm_eps": 1e-6,
    "hidden_activation": "gelu_pytorch_tanh", "use_bidirectional_attention": True, "sliding_window": 14,
    "layer_types": ["sliding_attention", "full_attention"] * 2,
    "rope_parameters": {
        "full_attention": {"rope_type": "default", "rope_theta": 700.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 90.0},
    },
}  # fmt: skip
_QWEN3: dict[str, Any] = {
    **_SIZES, "model_type": "qwen3", "architectures": ["Qwen3ForCausalLM"], "num_key_value_heads": 2, "head_dim": 14,
    "rms_norm_eps": 1e-6, "hidden_act": "silu", "tie_word_embeddings": True, "num_hidden_layers": 2,
    "rope_theta": 5000.0,
}  # fmt: skip
_BERT: dict[str, Any] = {**_XLMR, "model_type": "bert", "type_vocab_size": 2, "max_position_embeddings": 100}
_LABEL = {"id2label": {"0": "LABEL_0"}}
#: By "model_type", and those of further architectures and classes of the same families.
CONFIGS: dict[str, dict[str, Any]] = {
    "xlm-roberta": _XLMR,
    "roberta": {**_XLMR, "model_type": "roberta", "architectures": ["RobertaModel"]},
    "camembert": {**_XLMR, "model_type": "camembert", "architectures": ["CamembertModel"]},
    "nomic_bert": _NOMIC,
    "nomic_bert, experts": _NOMIC_MOE,
    "jina v2": _JINA_V2,
    "jina_embeddings_v3": _JINA_V3,
    "modernbert": {**_MODERN, "architectures": ["ModernBertForSequenceClassification"], **_LABEL},
    "modernbert, embedder": _MODERN,
    "eurobert": _EURO,
    "gemma3, both ways": _GEMMA,
}


def second(text: list[int]) -> int:
    """Where the second of two texts begins, for a classifier of both."""
    return len(text) // 2


@dataclass(frozen=True)
class Case:
    """A checkpoint: its config, how sentence-transformers pools (none: it has no files there), the sizes of its
    matrices behind the pooling, and whether transformers has the model."""

    config: dict[str, Any]
    pooling: str = "mean"
    dense: tuple[int, ...] = ()
    known: bool = True
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def whole(self) -> dict[str, Any]:
        return {**self.config, **self.changes}

    @property
    def ranks(self) -> bool:
        return "ForSequenceClassification" in self.whole["architectures"][0]


def _ranker(name: str, **changes: Any) -> dict[str, Any]:
    return {"architectures": [f"{name}ForSequenceClassification"], **_LABEL, **changes}


CASES = {
    "xlm-roberta": Case(_XLMR, "cls"),
    "roberta": Case(_XLMR, changes={"model_type": "roberta", "architectures": ["RobertaForMaskedLM"]}),
    "bert reranker": Case(_BERT, "", changes=_ranker("Bert")),
    "xlm-roberta reranker": Case(_XLMR, "", changes=_ranker("XLMRoberta")),
    "nomic_bert": Case(_NOMIC),
    "nomic_bert, experts": Case(_NOMIC_MOE, known=False),
    "jina v2": Case(_JINA_V2, known=False),
    "jina v3": Case(_JINA_V3),
    "modernbert": Case(_MODERN, "cls"),
    "modernbert, other layers": Case(
        _MODERN,
        changes={
            "layer_types": ["sliding_attention", "full_attention", "full_attention", "sliding_attention"],
            "norm_bias": True, "attention_bias": True, "mlp_bias": True,
        },
    ),
    "modernbert reranker": Case(_MODERN, "", changes=_ranker("ModernBert")),
    "modernbert reranker, first row": Case(_MODERN, "", changes=_ranker("ModernBert", classifier_pooling="cls")),
    "eurobert": Case(_EURO),
    "gemma": Case(_GEMMA, dense=(132, 44)),
    "gemma, odd window": Case(_GEMMA, "last", changes={"sliding_window": 9}),
    "qwen3": Case(_QWEN3, "last"),
    "qwen3, mean": Case(_QWEN3, "mean"),
}  # fmt: skip


def tensor_shapes(config: dict[str, Any]) -> Shapes:
    """The names and shapes that a checkpoint of the config has."""
    made = _SHAPES[config["model_type"] if "emb_pooler" not in config else "jina"](config)
    if "ForSequenceClassification" not in config["architectures"][0]:
        return made
    n = config["hidden_size"]
    if config["model_type"] == "modernbert":
        head = {
            "head.dense.weight": (n, n),
            "head.norm.weight": (n,),
            "classifier.weight": (1, n),
            "classifier.bias": (1,),
        }
        return {**{f"model.{name}": shape for name, shape in made.items()}, **head}
    if config["model_type"] == "bert":
        made = {f"bert.{name}": shape for name, shape in made.items()}
        return {**made, "classifier.weight": (1, n), "classifier.bias": (1,)}
    made = {f"roberta.{name}": shape for name, shape in made.items() if "pooler" not in name}
    return {**made, **_both(("classifier.dense", n, n), ("classifier.out_proj", 1, n))}


def _both(*products: tuple[Any, ...], norms: tuple[str, ...] = (), n: int = 0) -> Shapes:
    shapes: Shapes = {}
    for name, rows, columns in products:
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    for name in norms:
        shapes |= {f"{name}.weight": (n,), f"{name}.bias": (n,)}
    return shapes


def _plain(*products: tuple[Any, ...], norms: tuple[str, ...] = (), n: int = 0) -> Shapes:
    return {name: shape for name, shape in _both(*products, norms=norms, n=n).items() if name.endswith("weight")}


def _nomic(config: dict[str, Any]) -> Shapes:
    old = "n_embd" in config
    n, n_ff = (config[key] for key in (("n_embd", "n_inner") if old else ("hidden_size", "intermediate_size")))
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], n),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], n),
        **_both(norms=("emb_ln" if old else "embeddings.LayerNorm",), n=n),
    }
    for i in range(config["n_layer" if old else "num_hidden_layers"]):
        if not old:
            at = f"layers.{i}."
            square = [(f"{at}self_attn.{name}_proj", n, n) for name in "qkvo"]
            up, gate, down = (f"{at}mlp.{name}_proj" for name in ("up", "gate", "down"))
            shapes |= _plain(*square, (up, n_ff, n), (gate, n_ff, n), (down, n, n_ff))
            shapes |= _both(norms=(at + "post_attention_layernorm", at + "post_mlp_layernorm"), n=n)
            continue
        at = f"encoder.layers.{i}."
        shapes |= _both(
            (at + "attn.Wqkv", 3 * n, n), (at + "attn.out_proj", n, n), norms=(at + "norm1", at + "norm2"), n=n
        )
        if i % config["moe_every_n_layers"] == 1:
            e, at = config["num_experts"], at + "mlp."
            shapes |= {at + "router.layer.weight": (e, n), at + "experts.bias": (n,)}
            shapes |= {f"{at}experts.mlp.{name}": (e * n_ff, n) for name in ("w1", "w2")}
        else:
            shapes |= _both((at + "mlp.fc1", n_ff, n), (at + "mlp.fc2", n, n_ff))
    return shapes


def _jina_v2(config: dict[str, Any]) -> Shapes:
    n, n_ff = config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], n),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], n),
        **_both(norms=("embeddings.LayerNorm",), n=n),
    }
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        square = [(f"{at}attention.{name}", n, n) for name in ("self.query", "self.key", "self.value", "output.dense")]
        norms = (at + "attention.output.LayerNorm", at + "mlp.layernorm")
        shapes |= _both(*square, (at + "mlp.wo", n, n_ff), norms=norms, n=n)
        shapes |= _plain((at + "mlp.gated_layers", 2 * n_ff, n))
    return shapes


def _jina_v3(config: dict[str, Any]) -> Shapes:
    n, n_ff = config["hidden_size"], config["intermediate_size"]
    shapes: Shapes = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], n),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], n),
        **_both(("pooler.dense", n, n), norms=("embeddings.LayerNorm",), n=n),
    }
    for i in range(config["num_hidden_layers"]):
        at = f"layers.{i}."
        square = [(f"{at}self_attn.{name}_proj", n, n) for name in "qkvo"]
        norms = (at + "post_attention_layernorm", at + "post_mlp_layernorm")
        shapes |= _both(*square, (at + "mlp.fc1", n_ff, n), (at + "mlp.fc2", n, n_ff), norms=norms, n=n)
    return shapes


def _modern(config: dict[str, Any]) -> Shapes:
    n, n_ff = config["hidden_size"], config["intermediate_size"]
    norm, attention, ffn = (_both if config.get(key) else _plain for key in ("norm_bias", "attention_bias", "mlp_bias"))
    shapes: Shapes = {"embeddings.tok_embeddings.weight": (config["vocab_size"], n)}
    shapes |= norm(norms=("embeddings.norm", "final_norm"), n=n)
    for i in range(config["num_hidden_layers"]):
        at = f"layers.{i}."
        shapes |= attention((at + "attn.Wqkv", 3 * n, n), (at + "attn.Wo", n, n))
        shapes |= ffn((at + "mlp.Wi", 2 * n_ff, n), (at + "mlp.Wo", n, n_ff))
        shapes |= norm(norms=((at + "attn_norm",) if i else ()) + (at + "mlp_norm",), n=n)
    return shapes


def _decoder(config: dict[str, Any]) -> Shapes:
    """EuroBERT's, Gemma's and Qwen's, as models without a head have them."""
    n, n_ff, heads = config["hidden_size"], config["intermediate_size"], config["num_attention_heads"]
    width = config.get("head_dim", n // heads)
    n_q, n_kv = heads * width, config["num_key_value_heads"] * width
    gemma, qwen = config["model_type"].startswith("gemma"), config["model_type"] == "qwen3"
    shapes: Shapes = {"embed_tokens.weight": (config["vocab_size"], n), "norm.weight": (n,)}
    for i in range(config["num_hidden_layers"]):
        at = f"layers.{i}."
        shapes |= _plain(
            (at + "self_attn.q_proj", n_q, n), (at + "self_attn.k_proj", n_kv, n), (at + "self_attn.v_proj", n_kv, n),
            (at + "self_attn.o_proj", n, n_q), (at + "mlp.gate_proj", n_ff, n), (at + "mlp.up_proj", n_ff, n),
            (at + "mlp.down_proj", n, n_ff), norms=(at + "input_layernorm", at + "post_attention_layernorm"), n=n,
        )  # fmt: skip
        if gemma or qwen:
            shapes |= _plain(norms=(at + "self_attn.q_norm", at + "self_attn.k_norm"), n=width)
        if gemma:
            shapes |= _plain(norms=(at + "pre_feedforward_layernorm", at + "post_feedforward_layernorm"), n=n)
    return shapes


_SHAPES: dict[str, Callable[[dict[str, Any]], Shapes]] = {
    "bert": bert_shapes, "xlm-roberta": bert_shapes, "roberta": bert_shapes, "camembert": bert_shapes,
    "nomic_bert": _nomic, "jina": _jina_v2,
    "jina_embeddings_v3": _jina_v3, "modernbert": _modern, "eurobert": _decoder, "gemma3_text": _decoder,
    "qwen3": _decoder,
}  # fmt: skip


def random_tensors(shapes: Shapes, less_one: bool = False) -> dict[str, np.ndarray]:
    """Weights of these shapes, the same everywhere. `less_one`: norms are stored less 1."""
    rng = np.random.RandomState(5)
    tensors = {}
    for name, shape in shapes.items():
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            base = 1 if "norm" in name.lower() or "emb_ln" in name else 0
            values = (0 if less_one or name.endswith("bias") else base) + 0.3 * values
        elif "embed" not in name:
            values *= 1.5 / np.sqrt(np.float32(shape[-1]))
        tensors[name] = values.astype(np.float32)
    return tensors


def write(folder: Path, name: str) -> None:
    """The checkpoint of a case, with what sentence-transformers adds."""
    case = CASES[name]
    write_checkpoint(folder, case.whole)
    if not case.pooling:
        return
    kinds = [("", "Transformer"), ("1_Pooling", "Pooling")]
    for i, n in enumerate(case.dense):
        path = f"{i + 2}_Dense"
        kinds.append((path, "Dense"))
        n_in = case.dense[i - 1] if i else case.whole["hidden_size"]
        activation = "torch.nn.modules.linear.Identity"
        _put(
            folder / path / "config.json",
            {"in_features": n_in, "out_features": n, "bias": False, "activation_function": activation},
        )
        weights = np.random.RandomState(i).standard_normal((n, n_in)).astype(np.float32) / 8
        write_safetensors(folder / path / "model.safetensors", {"linear.weight": weights})
    kinds.append((f"{len(kinds)}_Normalize", "Normalize"))
    _put(
        folder / "modules.json",
        [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
         for i, (path, kind) in enumerate(kinds)],
    )  # fmt: skip
    modes = {"mean": "mean_tokens", "cls": "cls_token", "last": "lasttoken"}
    _put(
        folder / "1_Pooling" / "config.json",
        {f"pooling_mode_{flag}": case.pooling == mode for mode, flag in modes.items()},
    )


def write_checkpoint(folder: Path, config: dict[str, Any]) -> None:
    """The checkpoint of a config.json: that, model.safetensors, and a tokenizer."""
    _put(folder / "config.json", config)
    _put(folder / "tokenizer.json", json.loads(hf_wordpiece(size=400).to_str()))
    roles = {f"{text[1:-1].lower()}_token": text for text in BERT_SPECIALS}
    _put(folder / "tokenizer_config.json", {**roles, "tokenizer_class": "BertTokenizer", "do_lower_case": True})
    tensors = random_tensors(tensor_shapes(config), less_one=config["model_type"].startswith("gemma"))
    if config["architectures"][0].endswith("ForMaskedLM") and config["model_type"] == "roberta":
        tensors = {f"roberta.{key}": values for key, values in tensors.items() if "pooler" not in key}
        tensors["lm_head.bias"] = np.ones(N_VOCAB, np.float32)
    write_safetensors(folder / "model.safetensors", tensors)


def _put(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True, parents=True)
    path.write_text(json.dumps(value), encoding="utf-8")


def recorded() -> dict[str, np.ndarray]:
    with np.load(DATA) as data:
        return {name: data[name] for name in data.files}


# ---- what transformers lacks, in plain numpy


def numpy_rows(config: dict[str, Any], tokens: list[int]) -> np.ndarray:
    """The last hidden states [n_tokens, n_embd] in float64, for Nomic's experts and Jina's second generation."""
    w = {name: values.astype(np.float64) for name, values in random_tensors(tensor_shapes(config)).items()}
    jina = "emb_pooler" in config
    n_head = config["num_attention_heads" if jina else "n_head"]
    eps = config["layer_norm_eps" if jina else "layer_norm_epsilon"]
    x = w["embeddings.word_embeddings.weight"][tokens] + w["embeddings.token_type_embeddings.weight"][0]
    x = _layer_norm(w, "embeddings.LayerNorm" if jina else "emb_ln", x, eps)
    for i in range(config["num_hidden_layers" if jina else "n_layer"]):
        at = f"encoder.layer.{i}." if jina else f"encoder.layers.{i}."
        if jina:
            q, k, v = (_linear(w, f"{at}attention.self.{name}", x) for name in ("query", "key", "value"))
        else:
            q, k, v = np.split(_linear(w, at + "attn.Wqkv", x), 3, 1)
        heads = [part.reshape(len(x), n_head, -1) for part in (q, k, v)]
        if not jina:
            heads[:2] = [_turned(part, config["rotary_emb_base"]) for part in heads[:2]]
        scores = np.einsum("ihd,jhd->hij", *heads[:2]) / math.sqrt(heads[0].shape[2])
        if jina:
            distance = np.abs(np.arange(len(x))[:, None] - np.arange(len(x)))
            scores -= np.array(_slopes(n_head))[:, None, None] * distance
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        mixed = np.einsum("hij,jhd->ihd", weights / weights.sum(-1, keepdims=True), heads[2]).reshape(len(x), -1)
        attended = x + _linear(w, at + ("attention.output.dense" if jina else "attn.out_proj"), mixed)
        attended = _layer_norm(w, at + ("attention.output.LayerNorm" if jina else "norm1"), attended, eps)
        if jina:
            gate, up = np.split(attended @ w[at + "mlp.gated_layers.weight"].T, 2, 1)
            y = _linear(w, at + "mlp.wo", _gelu(gate) * up)
        elif i % config["moe_every_n_layers"] == 1:
            y = _experts(w, at + "mlp.", attended, config)
        else:
            y = _linear(w, at + "mlp.fc2", _gelu(_linear(w, at + "mlp.fc1", attended)))
        x = _layer_norm(w, at + ("mlp.layernorm" if jina else "norm2"), attended + y, eps)
    return x


def _linear(w: dict[str, np.ndarray], name: str, x: np.ndarray) -> np.ndarray:
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def _layer_norm(w: dict[str, np.ndarray], name: str, x: np.ndarray, eps: float) -> np.ndarray:
    x = x - x.mean(1, keepdims=True)
    return x / np.sqrt((x * x).mean(1, keepdims=True) + eps) * w[name + ".weight"] + w[name + ".bias"]


def _gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def _slopes(n: int) -> list[float]:
    """The slopes of ALiBi's paper, for any number of heads."""
    power = 1 << (n.bit_length() - 1)
    first = [2 ** (-8 * (i + 1) / power) for i in range(power)]
    return first + ([2 ** (-8 * (i + 1) / (2 * power)) for i in range(2 * power)][0::2])[: n - power]


def _turned(heads: np.ndarray, base: float) -> np.ndarray:
    half = heads.shape[2] // 2
    angles = np.arange(len(heads))[:, None] * base ** (-np.arange(half) / half)
    c, s, a, b = np.cos(angles)[:, None], np.sin(angles)[:, None], heads[..., :half], heads[..., half:]
    return np.concatenate([a * c - b * s, b * c + a * s], 2)


def _experts(w: dict[str, np.ndarray], at: str, x: np.ndarray, config: dict[str, Any]) -> np.ndarray:
    logits = x @ w[at + "router.layer.weight"].T
    shares = np.exp(logits - logits.max(1, keepdims=True))
    shares /= shares.sum(1, keepdims=True)
    up, down = (w[f"{at}experts.mlp.{name}"].reshape(config["num_experts"], -1, x.shape[1]) for name in ("w1", "w2"))
    y = np.zeros_like(x)
    for t in range(len(x)):
        for e in np.argsort(-shares[t])[: config["moe_top_k"]]:
            y[t] += shares[t, e] * (_gelu(x[t] @ up[e].T) @ down[e])
    return y + w[at + "experts.bias"]


def _record() -> None:
    import tempfile

    import torch
    import transformers

    torch.set_grad_enabled(False)
    found = {}
    for name, case in CASES.items():
        with tempfile.TemporaryDirectory() as place:
            write(Path(place), name)
            if case.known:
                kind = transformers.AutoModelForSequenceClassification if case.ranks else transformers.AutoModel
                model = kind.from_pretrained(place, attn_implementation="eager", dtype=torch.float32).eval()
            rows = []
            for text in TEXTS:
                if case.ranks:
                    types = [0] * second(text) + [1] * (len(text) - second(text))
                    typed = {"token_type_ids": torch.tensor([types])} if case.whole.get("type_vocab_size") == 2 else {}
                    rows.append(model(torch.tensor([text]), **typed).logits[0].numpy())
                    continue
                h = (
                    model(torch.tensor([text])).last_hidden_state[0].numpy()
                    if case.known
                    else numpy_rows(case.whole, text)
                )
                row = {"mean": h.mean(0), "cls": h[0], "last": h[-1]}[case.pooling]
                for i in range(len(case.dense)):
                    from safetensors.numpy import load_file

                    row = load_file(f"{place}/{i + 2}_Dense/model.safetensors")["linear.weight"] @ row
                rows.append(row)
            found[name] = np.array(rows, np.float32)
            print(name, type(model).__name__ if case.known else "numpy", found[name].shape, np.abs(found[name]).max())
    np.savez_compressed(DATA, **found)


if __name__ == "__main__":
    _record()
