"""Tiny random checkpoints in the shape that each architecture ships: config.json, safetensors, tokenizer.

Weights are random, the tokenizer is real: byte-level BPE (or SentencePiece) trained here on a few lines of text.
"""

from __future__ import annotations

import base64
import json
import struct
from collections import Counter
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from ggpy.convert.vocabulary import byte_level_text
from ggpy.text.tokenizer.byte_alphabet import CHARACTER_OF_BYTE

TEXT = (
    "The capital of France is Paris, and the river that runs through the city is the Seine. "
    "Once upon a time there was a little model that learned to read and to write. "
    "def main(argument): return the answer to the question that the user is asking. "
    "你好，世界。你好吗？今天天气很好，我们去公园吧。中国的首都是北京。 "
)

LLAMA3_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
QWEN2_SPLIT = LLAMA3_SPLIT.replace(r"\p{N}{1,3}", r"\p{N}")
CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
LLAMA3_CHAT = (
    "{{ bos_token }}{% for message in messages %}{{ '<|start_header_id|>' + message['role'] + '<|end_header_id|>\n\n'"
    " + message['content'] + '<|eot_id|>' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\n\n' }}{% endif %}"
)
LLAMA3_SPECIALS = (
    "<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eom_id|>", "<|eot_id|>",
)  # fmt: skip
QWEN2_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")


@cache
def tiny_ranks(n_merges: int = 200) -> dict[bytes, int]:
    """A byte-level vocabulary trained on TEXT: the 256 bytes in GPT-2's order, then `n_merges` tokens by rank."""
    alphabet = CHARACTER_OF_BYTE
    ranks = {bytes([b]): i for i, b in enumerate(sorted(range(256), key=lambda b: (ord(alphabet[b]) > 255, b)))}
    words = Counter(tuple(bytes([b]) for b in word.encode()) for word in TEXT.replace(" ", "\0 ").split("\0"))
    while len(ranks) < 256 + n_merges:
        pairs: Counter[tuple[bytes, bytes]] = Counter()
        for word, n in words.items():
            for pair in pairwise(word):
                pairs[pair] += n
        a, b = min(pairs, key=lambda p: (-pairs[p], p))
        ranks.setdefault(a + b, len(ranks))
        merged: Counter[tuple[bytes, ...]] = Counter()
        for word, n in words.items():
            parts, i = [], 0
            while i < len(word):
                step = 2 if word[i : i + 2] == (a, b) else 1
                parts.append(b"".join(word[i : i + step]))
                i += step
            merged[tuple(parts)] += n
        words = merged
    return ranks


def tiny_merges(n_merges: int = 200) -> list[tuple[bytes, bytes]]:
    """The merges of `tiny_ranks`, by the plain way: encode each token with the ranks below its own."""
    ranks = tiny_ranks(n_merges)
    merges = []
    for token, rank in ranks.items():
        if len(token) > 1:
            first, second = slow_encode(ranks, token, rank)
            merges.append((first, second))
    return merges


def slow_encode(ranks: dict[bytes, int], token: bytes, limit: int) -> list[bytes]:
    """Byte-pair encoding as it is defined: merge the pair of the lowest rank below `limit` until there is none."""
    parts = [bytes([b]) for b in token]
    while True:
        candidates = [(ranks.get(a + b, limit), i) for i, (a, b) in enumerate(pairwise(parts))]
        rank, i = min(candidates, default=(limit, 0))
        if rank >= limit:
            return parts
        parts[i : i + 2] = [parts[i] + parts[i + 1]]


def byte_level_json(
    specials: tuple[str, ...], pre_tokenizer: list[dict[str, Any]], bos: str | None = None, **model: Any
) -> dict[str, Any]:
    """A tokenizer.json over `tiny_ranks` with special tokens after the ranks."""
    ranks = tiny_ranks()
    post: dict[str, Any] = {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": False, "use_regex": True}
    if bos is not None:
        n = len(ranks) + specials.index(bos)
        single = [{"SpecialToken": {"id": bos, "type_id": 0}}, {"Sequence": {"id": "A", "type_id": 0}}]
        template = {
            "type": "TemplateProcessing",
            "single": single,
            "pair": [*single, {"Sequence": {"id": "B", "type_id": 1}}],
            "special_tokens": {bos: {"id": bos, "ids": [n], "tokens": [bos]}},
        }
        post = {"type": "Sequence", "processors": [post, template]}
    return {
        "version": "1.0",
        "truncation": None,
        "padding": None,
        "added_tokens": [
            {"id": len(ranks) + i, "content": text, "single_word": False, "lstrip": False, "rstrip": False,
             "normalized": False, "special": True}
            for i, text in enumerate(specials)
        ],
        "normalizer": None,
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": pre_tokenizer},
        "post_processor": post,
        "decoder": {"type": "ByteLevel", "add_prefix_space": True, "trim_offsets": True, "use_regex": True},
        "model": {
            "type": "BPE", "dropout": None, "unk_token": None, "continuing_subword_prefix": None,
            "end_of_word_suffix": None, "fuse_unk": False, "byte_fallback": False, "ignore_merges": False,
            "vocab": {byte_level_text(token): rank for token, rank in ranks.items()},
            "merges": [f"{byte_level_text(a)} {byte_level_text(b)}" for a, b in tiny_merges()],
            **model,
        },
    }  # fmt: skip


def split_step(regex: str) -> list[dict[str, Any]]:
    """The pre-tokenizer that cuts by a regular expression and writes bytes."""
    return [
        {"type": "Split", "pattern": {"Regex": regex}, "behavior": "Isolated", "invert": False},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": False},
    ]


DIGITS_STEP = [
    {"type": "Digits", "individual_digits": True},
    {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
]


def sentencepiece_pieces() -> list[tuple[str, float, int]]:
    """(piece, score, type) of a small SentencePiece BPE: specials, the bytes, merged pieces, characters."""
    pieces: list[tuple[str, float, int]] = [("<unk>", 0.0, 2), ("<s>", 0.0, 3), ("</s>", 0.0, 3)]
    pieces += [(f"<0x{b:02X}>", 0.0, 6) for b in range(256)]
    merged = []
    for token in tiny_ranks():
        try:
            text = token.decode().replace(" ", "\u2581")
        except UnicodeDecodeError:
            continue
        if len(text) > 1:
            merged.append(text)
    # Every piece must be the sum of two others, or greedy merging never reaches it.
    known = {c for text in merged for c in text} | {c.replace(" ", "\u2581") for c in TEXT}
    kept = []
    for text in merged:
        if any(text[:i] in known and text[i:] in known for i in range(1, len(text))):
            known.add(text)
            kept.append(text)
    singles = sorted(c for c in known if len(c) == 1)
    pieces += [(text, -float(i), 1) for i, text in enumerate([*kept, *singles])]
    return pieces


def _varint(n: int) -> bytes:
    out = bytearray()
    while n > 127:
        out.append(n & 127 | 128)
        n >>= 7
    return bytes([*out, n])


def _message(number: int, data: bytes) -> bytes:
    return _varint(number << 3 | 2) + _varint(len(data)) + data


def sentencepiece_model(pieces: list[tuple[str, float, int]], *, kind: int = 2, dummy_prefix: bool = True) -> bytes:
    """A serialized SentencePiece model; `kind` 2 is BPE, 1 Unigram."""
    data = b"".join(
        _message(1, _message(1, text.encode()) + b"\x15" + struct.pack("<f", score) + b"\x18" + _varint(type))
        for text, score, type in pieces
    )
    trainer = b"\x18" + _varint(kind) + _varint(35 << 3) + b"\x01"
    normalizer = _message(1, b"identity") + b"\x18" + bytes([dummy_prefix]) + b"\x20\x00"
    return data + _message(2, trainer) + _message(3, normalizer)


def write_safetensors(path: Path, tensors: dict[str, np.ndarray]) -> None:
    """A safetensors file; uint16 arrays are bfloat16 bits."""
    names = {"float32": "F32", "float16": "F16", "uint16": "BF16", "float64": "F64", "int8": "I8", "uint8": "U8"}
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    at = 0
    for name, values in tensors.items():
        header[name] = {
            "dtype": names[values.dtype.name],
            "shape": list(values.shape),
            "data_offsets": [at, at + values.nbytes],
        }
        at += values.nbytes
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as f:
        f.write(struct.pack("<Q", len(text)) + text)
        for values in tensors.values():
            f.write(values.tobytes())


def to_float32(values: np.ndarray) -> np.ndarray:
    """Stored weights as float32; uint16 arrays are bfloat16 bits."""
    if values.dtype == np.uint16:
        return (values.astype(np.uint32) << 16).view(np.float32)
    return values.astype(np.float32)


def stored(values: np.ndarray, dtype: str) -> np.ndarray:
    """float32 values as a checkpoint keeps them: "f32", "f16" or "bf16" (its bits, cut off)."""
    if dtype == "bf16":
        return (values.astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    return values.astype({"f32": np.float32, "f16": np.float16}[dtype])


_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": 256, "intermediate_size": 512,
    "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "hidden_act": "silu", "tie_word_embeddings": False,
    "attention_bias": False, "mlp_bias": False, "vocab_size": 512, "torch_dtype": "bfloat16",
}  # fmt: skip

#: Each kind's config.json; dimensions differ so that some rows are multiples of 256 and some of 32 only.
CONFIGS: dict[str, dict[str, Any]] = {
    "llama": _LLAMA,
    "llama3": {
        **_LLAMA, "rope_theta": 500000.0, "tie_word_embeddings": True, "head_dim": 64, "eos_token_id": [457, 460, 461],
        "rope_scaling": {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                         "original_max_position_embeddings": 128},
    },
    "mistral": {
        **_LLAMA, "architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 16,
        "hidden_size": 128, "intermediate_size": 224,
    },
    "smollm2": {
        **_LLAMA, "hidden_size": 96, "intermediate_size": 256, "num_attention_heads": 3, "num_key_value_heads": 1,
        "rope_theta": 100000.0, "tie_word_embeddings": True,
    },
    "qwen": {
        "architectures": ["QWenLMHeadModel"], "model_type": "qwen", "hidden_size": 128, "intermediate_size": 512,
        "num_hidden_layers": 2, "num_attention_heads": 2, "kv_channels": 64, "max_position_embeddings": 512,
        "seq_length": 512, "layer_norm_epsilon": 1e-6, "rotary_emb_base": 10000, "rotary_pct": 1.0, "no_bias": True,
        "use_logn_attn": True, "use_dynamic_ntk": True, "tie_word_embeddings": False, "vocab_size": 704, "bf16": True,
        "tokenizer_class": "QWenTokenizer",
    },
    "qwen2": {
        **_LLAMA, "architectures": ["Qwen2ForCausalLM"], "model_type": "qwen2", "intermediate_size": 480,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "use_sliding_window": False, "sliding_window": 512,
        "max_window_layers": 2, "bos_token_id": 456, "eos_token_id": 458,
    },
    "qwen3": {
        **_LLAMA, "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": 96, "head_dim": 32,
        "intermediate_size": 160, "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "tie_word_embeddings": True,
        "use_sliding_window": False, "bos_token_id": 456, "eos_token_id": 458,
    },
}  # fmt: skip


def tensor_shapes(config: dict[str, Any]) -> dict[str, tuple[int, ...]]:
    """The names and shapes that the original implementation of an architecture saves."""
    n_embd, n_vocab = config["hidden_size"], config["vocab_size"]
    shapes: dict[str, tuple[int, ...]] = {}
    if config["model_type"] == "qwen":
        n_ff = config["intermediate_size"] // 2
        shapes["transformer.wte.weight"] = (n_vocab, n_embd)
        for i in range(config["num_hidden_layers"]):
            at = f"transformer.h.{i}."
            shapes[at + "ln_1.weight"] = (n_embd,)
            shapes[at + "attn.c_attn.weight"] = (3 * n_embd, n_embd)
            shapes[at + "attn.c_attn.bias"] = (3 * n_embd,)
            shapes[at + "attn.c_proj.weight"] = (n_embd, n_embd)
            shapes[at + "ln_2.weight"] = (n_embd,)
            shapes[at + "mlp.w1.weight"] = (n_ff, n_embd)
            shapes[at + "mlp.w2.weight"] = (n_ff, n_embd)
            shapes[at + "mlp.c_proj.weight"] = (n_embd, n_ff)
        shapes["transformer.ln_f.weight"] = (n_embd,)
        shapes["lm_head.weight"] = (n_vocab, n_embd)
        return shapes
    n_ff, n_head = config["intermediate_size"], config["num_attention_heads"]
    head_dim = config.get("head_dim", n_embd // n_head)
    n_q, n_kv = n_head * head_dim, config["num_key_value_heads"] * head_dim
    bias = {"qwen2": ("q", "k", "v")}.get(
        config["model_type"], ("q", "k", "v", "o") if config["attention_bias"] else ()
    )
    shapes["model.embed_tokens.weight"] = (n_vocab, n_embd)
    for i in range(config["num_hidden_layers"]):
        at = f"model.layers.{i}."
        shapes[at + "input_layernorm.weight"] = (n_embd,)
        for name, rows, columns in (("q", n_q, n_embd), ("k", n_kv, n_embd), ("v", n_kv, n_embd), ("o", n_embd, n_q)):
            shapes[f"{at}self_attn.{name}_proj.weight"] = (rows, columns)
            if name in bias:
                shapes[f"{at}self_attn.{name}_proj.bias"] = (rows,)
        if config["model_type"] == "qwen3":
            shapes[at + "self_attn.q_norm.weight"] = (head_dim,)
            shapes[at + "self_attn.k_norm.weight"] = (head_dim,)
        shapes[at + "post_attention_layernorm.weight"] = (n_embd,)
        for name, rows, columns in (("gate", n_ff, n_embd), ("up", n_ff, n_embd), ("down", n_embd, n_ff)):
            shapes[f"{at}mlp.{name}_proj.weight"] = (rows, columns)
            if config.get("mlp_bias"):
                shapes[f"{at}mlp.{name}_proj.bias"] = (rows,)
    shapes["model.norm.weight"] = (n_embd,)
    if not config["tie_word_embeddings"]:
        shapes["lm_head.weight"] = (n_vocab, n_embd)
    return shapes


def random_tensors(config: dict[str, Any], seed: int = 0, dtype: str = "bf16") -> dict[str, np.ndarray]:
    """Random weights in a checkpoint's own names and type, scaled so that logits stay lively."""
    rng = np.random.default_rng(seed)
    tensors = {}
    for name, shape in tensor_shapes(config).items():
        values = rng.standard_normal(shape, np.float32)
        if len(shape) == 1:
            values = 1 + 0.1 * values if name.endswith("weight") else 0.1 * values
        else:
            values *= 1.0 if "embed" in name or "wte" in name else 1.5 / np.sqrt(shape[-1])
        tensors[name] = stored(values, dtype)
    return tensors


def write_tokenizer(folder: Path, kind: str) -> None:
    """The tokenizer files that a kind of model ships."""

    def put(name: str, value: Any) -> None:
        (folder / name).write_text(json.dumps(value, ensure_ascii=False), encoding="utf-8")

    n = len(tiny_ranks())
    if kind == "qwen":
        lines = [base64.b64encode(token) + b" %d\n" % rank for token, rank in tiny_ranks().items()]
        (folder / "qwen.tiktoken").write_bytes(b"".join(lines))
        put("tokenizer_config.json", {"model_max_length": 512, "tokenizer_class": "QWenTokenizer"})
        put(
            "generation_config.json",
            {"chat_format": "chatml", "eos_token_id": n, "pad_token_id": n, "max_new_tokens": 512, "do_sample": True,
             "top_k": 0, "top_p": 0.8, "repetition_penalty": 1.1},
        )  # fmt: skip
    elif kind == "mistral":
        (folder / "tokenizer.model").write_bytes(sentencepiece_model(sentencepiece_pieces()))
        special = {"lstrip": False, "normalized": False, "rstrip": False, "single_word": False, "special": True}
        put(
            "tokenizer_config.json",
            {
                "add_bos_token": True, "add_eos_token": False, "bos_token": "<s>", "eos_token": "</s>",
                "unk_token": "<unk>", "tokenizer_class": "LlamaTokenizer",
                "added_tokens_decoder": {
                    str(i): {"content": text, **special} for i, text in enumerate(("<unk>", "<s>", "</s>"))
                },
            },
        )  # fmt: skip
    elif kind in ("llama", "llama3"):
        steps = split_step(LLAMA3_SPLIT)
        put("tokenizer.json", byte_level_json(LLAMA3_SPECIALS, steps, "<|begin_of_text|>", ignore_merges=True))
        put(
            "tokenizer_config.json",
            {"bos_token": "<|begin_of_text|>", "eos_token": "<|eot_id|>", "chat_template": LLAMA3_CHAT,
             "tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": True},
        )  # fmt: skip
        put(
            "generation_config.json",
            {"bos_token_id": n, "eos_token_id": [n + 1, n + 4, n + 5], "do_sample": True, "temperature": 0.6,
             "top_p": 0.9},
        )  # fmt: skip
    else:
        steps = DIGITS_STEP if kind == "smollm2" else split_step(QWEN2_SPLIT)
        tokenizer = byte_level_json(QWEN2_SPECIALS, steps)
        if kind != "smollm2":
            tokenizer["normalizer"] = {"type": "NFC"}
        put("tokenizer.json", tokenizer)
        put(
            "tokenizer_config.json",
            {"bos_token": "<|im_start|>" if kind == "smollm2" else None, "eos_token": "<|im_end|>",
             "pad_token": "<|endoftext|>", "chat_template": CHATML, "add_prefix_space": False,
             "clean_up_tokenization_spaces": False, "tokenizer_class": "GPT2Tokenizer"},
        )  # fmt: skip
        put("generation_config.json", {"eos_token_id": [n + 2, n], "do_sample": True, "top_k": 20, "top_p": 0.8})


def tiny_checkpoint(
    tmp_path: Path, kind: str, seed: int = 0, *, dtype: str = "bf16", shards: int = 1, **overrides: Any
) -> Path:
    """A tiny random checkpoint folder. `kind` is a key of CONFIGS; `overrides` replace entries of its config.json."""
    folder = tmp_path / f"tiny-{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    config = {**CONFIGS[kind], **overrides}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_tokenizer(folder, kind)
    tensors = random_tensors(config, seed, dtype)
    if shards == 1:
        write_safetensors(folder / "model.safetensors", tensors)
        return folder
    names = list(tensors)
    weight_map = {}
    for i in range(shards):
        part = f"model-{i + 1:05d}-of-{shards:05d}.safetensors"
        chosen = names[i * len(names) // shards : (i + 1) * len(names) // shards]
        write_safetensors(folder / part, {name: tensors[name] for name in chosen})
        weight_map.update(dict.fromkeys(chosen, part))
    index = {"metadata": {"total_size": sum(t.nbytes for t in tensors.values())}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    return folder
