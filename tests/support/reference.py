"""A plain numpy forward pass of every architecture, written from the papers: the oracle of the whole engine.

It shares nothing with `ggpy.graph.language`, `ggpy.graph.program` and the kernels: weights are dequantized to float32
whole, attention is a full matrix, and everything is computed in float64."""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ggpy.gguf.file import GGUFFile
from ggpy.quant import by_id


def q8_0(x: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """x [..., dims] as int8 codes, their scales [..., dims / 32] in half precision, and the numbers that these stand
    for. Codes are of the scale as it is kept."""
    blocks = x.reshape(*x.shape[:-1], -1, 32).astype(np.float32)
    scales = (np.abs(blocks).max(-1) / np.float32(127)).astype(np.float16)
    wide = scales.astype(np.float32)[..., None]
    inverse = np.divide(np.float32(1), wide, out=np.zeros_like(wide), where=wide > 0)
    codes = np.rint(blocks * inverse).clip(-127, 127).astype(np.int8)
    return codes.reshape(x.shape), scales, (codes * wide).reshape(x.shape)


def f16(x: np.ndarray) -> np.ndarray:
    """x in half precision; finite numbers beyond its range become the largest that it holds."""
    with np.errstate(over="ignore"):
        halves = x.astype(np.float16)
    return np.where(np.isinf(halves) & np.isfinite(x), np.copysign(np.float16(65504), x), halves).astype(np.float16)


def bf16(x: np.ndarray) -> np.ndarray:
    """x, finite float32 numbers, rounded to bfloat16, ties to even, as float32."""
    bits = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    magnitude = np.minimum((bits & 0x7FFFFFFF) + 0x7FFF + (bits >> 16 & 1), 0x7F7FFFFF)
    return (magnitude & 0xFFFF0000 | bits & 0x80000000).astype(np.uint32).view(np.float32)


def int8(x: np.ndarray) -> np.ndarray:
    """x [n, columns] rounded to 8 bits in blocks of 32."""
    blocks = x.reshape(len(x), -1, 32)
    scale = np.abs(blocks).max(-1, keepdims=True) / 127
    return (np.rint(blocks / np.where(scale > 0, scale, 1)) * scale).reshape(x.shape)


class ReferenceModel:
    """`logits(tokens)` gives float64 [n_tokens, n_vocab] for one sequence from position 0.

    With `int8_activations`, what enters a product with quantized weights is first rounded as the engine rounds it, to 8
    bits in blocks of 32 with one scale, and before the product that gives the logits to 8 bits and, for what they
    leave, 8 more (on a GPU to 8 there too: `int8_logits`); with `half_cache`, `bf16_cache` or `q8_cache`, keys and
    values are rounded to half precision, to bfloat16 or to q8_0: what then remains is the engine's own error.
    """

    def __init__(
        self,
        path: Any,
        int8_activations: bool = False,
        half_cache: bool = False,
        q8_cache: bool = False,
        bf16_cache: bool = False,
        int8_logits: bool = False,
    ) -> None:
        self.int8_activations, self.half_cache, self.q8_cache = int8_activations, half_cache, q8_cache
        self.bf16_cache, self.int8_logits = bf16_cache, int8_logits
        self.file = GGUFFile(path)
        self.arch = self.file.metadata["general.architecture"]
        self.w = {name: self._dequantize(name) for name in self.file.tensors}

    def _dequantize(self, name: str) -> np.ndarray:
        info = self.file.tensors[name]
        raw = self.file.data(name).reshape(int(np.prod(info.shape[:-1])), -1)
        return by_id(info.type).dequantize(raw).reshape(info.shape).astype(np.float64)

    def key(self, name: str, default: Any = None) -> Any:
        return self.file.metadata.get(f"{self.arch}.{name}", default)

    def inverse_frequencies(self, n_rot: int) -> tuple[np.ndarray, float]:
        base = self.key("rope.freq_base", 10000.0)
        freq = base ** (-np.arange(0, n_rot, 2) / n_rot)
        if "rope_freqs.weight" in self.w:
            freq = freq / self.w["rope_freqs.weight"]
        kind, factor = self.key("rope.scaling.type", "none"), self.key("rope.scaling.factor", 1.0)
        if kind == "linear":
            return freq / factor, 1.0
        if kind == "yarn":
            original = self.key("rope.scaling.original_context_length")

            def dim(turns: float) -> float:
                return n_rot * math.log(original / (turns * 2 * math.pi)) / (2 * math.log(base))

            low, high = max(math.floor(dim(32)), 0), min(math.ceil(dim(1)), n_rot - 1)
            keep = 1 - np.clip((np.arange(n_rot // 2) - low) / max(high - low, 0.001), 0, 1)
            return freq / factor * (1 - keep) + freq * keep, 0.1 * math.log(factor) + 1
        return freq, 1.0

    def rope(self, x: np.ndarray, n_rot: int) -> np.ndarray:
        """x [n, heads, head_dim]."""
        freq, magnitude = self.inverse_frequencies(n_rot)
        angle = np.arange(len(x))[:, None, None] * freq
        c, s = np.cos(angle) * magnitude, np.sin(angle) * magnitude
        out = x.copy()
        if self.arch == "llama":
            a, b = x[..., 0:n_rot:2], x[..., 1:n_rot:2]
            out[..., 0:n_rot:2], out[..., 1:n_rot:2] = a * c - b * s, a * s + b * c
        else:
            half = n_rot // 2
            a, b = x[..., :half], x[..., half:n_rot]
            out[..., :half], out[..., half:n_rot] = a * c - b * s, a * s + b * c
        return out

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        eps = self.key("attention.layer_norm_rms_epsilon")
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + eps) * self.w[name + ".weight"]

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        if self.int8_activations and self.file.tensors[name + ".weight"].type_name not in ("F32", "F16", "BF16"):
            logits = name in ("output", "token_embd")
            x = int8(x) + int8(x - int8(x)) if logits and not self.int8_logits else int8(x)
        return x @ self.w[name + ".weight"].T + self.w.get(name + ".bias", 0.0)

    def attention(self, x: np.ndarray, at: str) -> np.ndarray:
        n = len(x)
        n_head = self.key("attention.head_count")
        n_kv = self.key("attention.head_count_kv", n_head)
        dim = self.key("attention.key_length", x.shape[1] // n_head)
        if at + "attn_qkv.weight" in self.w:
            q, k, v = np.split(self.linear(x, at + "attn_qkv"), [n_head * dim, (n_head + n_kv) * dim], axis=1)
        else:
            q, k, v = (self.linear(x, at + f"attn_{c}") for c in "qkv")
        q, k, v = q.reshape(n, n_head, dim), k.reshape(n, n_kv, dim), v.reshape(n, n_kv, dim)
        if at + "attn_q_norm.weight" in self.w:
            q, k = self.norm(q, at + "attn_q_norm"), self.norm(k, at + "attn_k_norm")
        n_rot = self.key("rope.dimension_count", dim)
        q, k = self.rope(q, n_rot), self.rope(k, n_rot)
        if self.half_cache:
            k, v = (f16(t).astype(np.float64) for t in (k, v))
        if self.bf16_cache:
            k, v = (bf16(t).astype(np.float64) for t in (k, v))
        if self.q8_cache:
            k, v = (q8_0(t)[2].astype(np.float64) for t in (k, v))
        k, v = (np.repeat(t, n_head // n_kv, axis=1) for t in (k, v))
        q, k, v = (t.swapaxes(0, 1) for t in (q, k, v))
        scores = q @ k.swapaxes(1, 2) / math.sqrt(dim)
        i, j = np.arange(n)[:, None], np.arange(n)[None, :]
        window = self.key("attention.sliding_window", 0) or n
        scores = np.where((j <= i) & (j > i - window), scores, -np.inf)
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        weights /= weights.sum(-1, keepdims=True)
        return self.linear((weights @ v).swapaxes(0, 1).reshape(n, -1), at + "attn_output")

    def feed_forward(self, x: np.ndarray, at: str) -> np.ndarray:
        gate, up = self.linear(x, at + "ffn_gate"), self.linear(x, at + "ffn_up")
        return self.linear(gate / (1 + np.exp(-gate)) * up, at + "ffn_down")

    def logits(self, tokens: list[int]) -> np.ndarray:
        x = self.w["token_embd.weight"][tokens]
        for layer in range(self.key("block_count")):
            at = f"blk.{layer}."
            x = x + self.attention(self.norm(x, at + "attn_norm"), at)
            x = x + self.feed_forward(self.norm(x, at + "ffn_norm"), at)
        return self.linear(self.norm(x, "output_norm"), "output" if "output.weight" in self.w else "token_embd")
