"""Tiny checkpoints of BERT, whose embeddings transformers has computed.

`tests/data/hf_families_bert.npz` holds float32 embeddings [case, text, n_embd] of TEXTS, `embeddings[i]` of the case
`names[i]`, from `AutoModel.from_pretrained(folder, attn_implementation="eager", dtype=torch.float32)` of transformers
5.24 on the folder that `write` makes: of each text's last hidden states the mean, the first or the last row, as
sentence-transformers pools them. Weights come from numpy's frozen generator, so both sides make the same ones.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from tests.support.tiny import write_safetensors
from tests.support.vocabularies import BERT_SPECIALS, hf_wordpiece

N_VOCAB = 461
#: Tokens of texts of several lengths, [CLS] and [SEP] included.
TEXTS = [[2, *((7 * i * i + 3 * i + n) % 391 + 5 for i in range(n)), 3] for n in (1, 5, 30, 94)]

_BERT: dict[str, Any] = {
    "architectures": ["BertModel"], "model_type": "bert", "vocab_size": N_VOCAB, "hidden_size": 60,
    "num_hidden_layers": 3, "num_attention_heads": 6, "intermediate_size": 90, "max_position_embeddings": 100,
    "type_vocab_size": 2, "layer_norm_eps": 1e-12, "hidden_act": "gelu", "position_embedding_type": "absolute",
    "pad_token_id": 0, "hidden_dropout_prob": 0.1, "attention_probs_dropout_prob": 0.1, "torch_dtype": "float32",
}  # fmt: skip
CONFIGS: dict[str, dict[str, Any]] = {"bert": _BERT}

_FLAGS = {"mean": "pooling_mode_mean_tokens", "cls": "pooling_mode_cls_token", "last": "pooling_mode_lasttoken"}

#: Each case: changes of the config, and how to pool ("": the folder does not say, which means "mean").
CASES: dict[str, tuple[dict[str, Any], str]] = {
    "mean": ({}, "mean"),
    "cls": ({}, "cls"),
    "last": ({}, "last"),
    "pooling not said": ({}, ""),
    "masked words": ({"architectures": ["BertForMaskedLM"]}, "mean"),
    "old names": ({"architectures": ["BertForPreTraining"]}, "cls"),
    "one type, epsilon": ({"type_vocab_size": 1, "layer_norm_eps": 0.1}, "mean"),
}


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes that transformers saves of a BertModel."""
    n_embd, n_ff = config["hidden_size"], config["intermediate_size"]
    shapes: dict[str, tuple[int, ...]] = {
        "embeddings.word_embeddings.weight": (config["vocab_size"], n_embd),
        "embeddings.position_embeddings.weight": (config["max_position_embeddings"], n_embd),
        "embeddings.token_type_embeddings.weight": (config["type_vocab_size"], n_embd),
    }
    norms = ["embeddings.LayerNorm"]
    products = [("pooler.dense", n_embd, n_embd)]
    for i in range(config["num_hidden_layers"]):
        at = f"encoder.layer.{i}."
        norms += [at + "attention.output.LayerNorm", at + "output.LayerNorm"]
        products += [(f"{at}attention.self.{name}", n_embd, n_embd) for name in ("query", "key", "value")]
        products += [
            (at + "attention.output.dense", n_embd, n_embd),
            (at + "intermediate.dense", n_ff, n_embd),
            (at + "output.dense", n_embd, n_ff),
        ]
    for name, rows, columns in products:
        shapes |= {f"{name}.weight": (rows, columns), f"{name}.bias": (rows,)}
    for name in norms:
        shapes |= {f"{name}.weight": (n_embd,), f"{name}.bias": (n_embd,)}
    return shapes


def random_tensors(config: dict[str, Any]) -> dict[str, np.ndarray]:
    """Weights of a BertModel, the same everywhere."""
    rng = np.random.RandomState(4)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = rng.standard_normal(shape).astype(np.float32)
        if len(shape) == 1:
            values = 1 + 0.3 * values if name.endswith("LayerNorm.weight") else 0.3 * values
        elif "embeddings" not in name:
            values *= 1.5 / np.sqrt(np.float32(shape[-1]))
        tensors[name] = values
    return tensors


def write(folder: Path, name: str) -> None:
    """The checkpoint of a case, with what sentence-transformers adds."""
    changes, pooling = CASES[name]
    write_checkpoint(folder, {**_BERT, **changes}, old_names=name == "old names")
    if pooling:
        kinds = (("", "Transformer"), ("1_Pooling", "Pooling"), ("2_Normalize", "Normalize"))
        _put(
            folder / "modules.json",
            [{"idx": i, "name": str(i), "path": path, "type": f"sentence_transformers.models.{kind}"}
             for i, (path, kind) in enumerate(kinds)],
        )  # fmt: skip
        _put(folder / "1_Pooling" / "config.json", {flag: mode == pooling for mode, flag in _FLAGS.items()})


def write_checkpoint(folder: Path, config: dict[str, Any], *, old_names: bool = False) -> None:
    """The checkpoint of a config.json: that, model.safetensors, and a tokenizer."""
    _put(folder / "config.json", config)
    _put(folder / "tokenizer.json", json.loads(hf_wordpiece(size=400).to_str()))
    roles = {f"{text[1:-1].lower()}_token": text for text in BERT_SPECIALS}
    _put(folder / "tokenizer_config.json", {**roles, "tokenizer_class": "BertTokenizer", "do_lower_case": True})
    tensors = random_tensors(config)
    if config["architectures"] != ["BertModel"]:
        tensors = {f"bert.{key}": values for key, values in tensors.items()}
        tensors["cls.predictions.bias"] = np.ones(N_VOCAB, np.float32)
    if old_names:
        for new, before in (("LayerNorm.weight", "LayerNorm.gamma"), ("LayerNorm.bias", "LayerNorm.beta")):
            tensors = {key.replace(new, before): values for key, values in tensors.items()}
    write_safetensors(folder / "model.safetensors", tensors)


def _put(path: Path, value: Any) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
