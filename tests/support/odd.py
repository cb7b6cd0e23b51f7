"""Models of sizes that fit no vector, written straight to GGUF."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ggpy.convert.writer import OutputTensor, write_gguf
from ggpy.quant import FORMATS


@dataclass(frozen=True)
class Sizes:
    """The sizes of one model of two layers."""

    arch: str
    n_embd: int
    n_head: int
    n_head_kv: int
    head_dim: int
    n_rot: int
    n_ff: int
    n_vocab: int

    def __str__(self) -> str:
        return f"{self.arch}-{self.n_embd}-{self.n_head}x{self.head_dim}-{self.n_ff}-{self.n_vocab}"


# Widths of a hidden state, of heads, of feed-forwards, vocabularies: none a multiple of 8.
MODELS = (
    Sizes("llama", 12, 3, 1, 4, 4, 14, 97),
    Sizes("qwen3", 54, 3, 3, 18, 10, 70, 1001),
    Sizes("qwen2", 66, 5, 1, 12, 12, 33, 131),
    Sizes("llama", 100, 2, 1, 50, 36, 70, 97),
    Sizes("qwen", 60, 3, 3, 20, 20, 35, 97),
    Sizes("qwen3", 44, 4, 2, 36, 36, 21, 97),
)


def shapes(m: Sizes) -> dict[str, tuple[int, ...]]:
    n_q, n_kv = m.n_head * m.head_dim, m.n_head_kv * m.head_dim
    found: dict[str, tuple[int, ...]] = {"token_embd": (m.n_vocab, m.n_embd), "output_norm": (m.n_embd,)}
    if m.arch != "qwen2":
        found["output"] = (m.n_vocab, m.n_embd)
    for layer in range(2):
        names: dict[str, tuple[int, ...]] = {
            "attn_norm": (m.n_embd,),
            "ffn_norm": (m.n_embd,),
            "attn_output": (m.n_embd, n_q),
            "ffn_gate": (m.n_ff, m.n_embd),
            "ffn_up": (m.n_ff, m.n_embd),
            "ffn_down": (m.n_embd, m.n_ff),
        }
        if m.arch == "qwen":
            names["attn_qkv"] = (n_q + 2 * n_kv, m.n_embd)
        else:
            names |= {"attn_q": (n_q, m.n_embd), "attn_k": (n_kv, m.n_embd), "attn_v": (n_kv, m.n_embd)}
        if m.arch == "qwen3":
            names |= {"attn_q_norm": (m.head_dim,), "attn_k_norm": (m.head_dim,)}
        found |= {f"blk.{layer}.{name}": shape for name, shape in names.items()}
    return found


def tensors(m: Sizes, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights, float32, by their names in the file."""
    rng, found = np.random.default_rng(seed), {}
    for name, shape in shapes(m).items():
        values = rng.standard_normal(shape).astype(np.float32)
        values = (
            1 + 0.1 * values if len(shape) == 1 else values * (1 if name == "token_embd" else 1.5 / shape[1] ** 0.5)
        )
        found[name + ".weight"] = values
        with_bias = {"qwen": ("attn_qkv",), "qwen2": ("attn_q", "attn_k", "attn_v")}.get(m.arch, ())
        if name.endswith(with_bias) and with_bias:
            found[name + ".bias"] = 0.1 * rng.standard_normal(shape[0]).astype(np.float32)
    return found


def write(path: Path, m: Sizes, file_type: str = "F32", weights: dict[str, np.ndarray] | None = None) -> Path:
    """The model as a file whose matrices are of that type; `weights` replace the random ones."""
    values = {**tensors(m), **(weights or {})}
    keys = {
        "context_length": 512,
        "block_count": 2,
        "embedding_length": m.n_embd,
        "feed_forward_length": 2 * m.n_ff if m.arch == "qwen" else m.n_ff,
        "attention.head_count": m.n_head,
        "attention.head_count_kv": m.n_head_kv,
        "attention.key_length": m.head_dim,
        "attention.value_length": m.head_dim,
        "attention.layer_norm_rms_epsilon": 1e-5,
        "rope.dimension_count": m.n_rot,
    }
    metadata = {"general.architecture": m.arch, **{f"{m.arch}.{key}": value for key, value in keys.items()}}
    outputs = [OutputTensor(name, x.shape, FORMATS[file_type if x.ndim == 2 else "F32"]) for name, x in values.items()]
    with write_gguf(path, metadata, outputs) as writer:
        for output, x in zip(outputs, values.values(), strict=True):
            writer.write(output.format.quantize(x.reshape(output.n_rows, -1)))
    return path
