"""Speed on an NVIDIA GPU, at the shapes of real models: decoding, prompts, and each kernel by itself.

    python benchmarks/cuda_speed.py qwen-7b -c 4352 --parallel 1,8,32

Writes a GGUF file of random Q4_0 blocks in the shape of Qwen-1.8B or Qwen-7B (no weights need be fetched), and runs it.
Decoding goes through the engine, with everything it does: scheduling, tokens chosen (greedily, or with the sampler's
defaults), text. Kernels are timed in graphs of their own, over every layer's weights, with 1024 tokens in the cache;
the share is of what the card's memory reads in a second.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np

from ggpy.convert.writer import OutputTensor, write_gguf
from ggpy.cuda.driver import Kernel
from ggpy.engine import Engine
from ggpy.gguf_file import GGUFFile
from ggpy.quant import FORMATS
from ggpy.runtime import Runtime
from ggpy.sampler import SamplingParams

# Columns, layers, heads, columns of the feed-forward, vocabulary.
SHAPES = {"qwen-1.8b": (2048, 24, 16, 5504, 151936), "qwen-7b": (4096, 32, 32, 11008, 151936)}


def write_random(out: Path, shape: str) -> None:
    n, layers, heads, ff, vocab = SHAPES[shape]
    metadata = {
        "general.architecture": "qwen", "qwen.block_count": layers, "qwen.context_length": 8192,
        "qwen.embedding_length": n, "qwen.feed_forward_length": 2 * ff, "qwen.attention.head_count": heads,
        "qwen.attention.layer_norm_rms_epsilon": 1e-6, "qwen.vocab_size": vocab,
        "qwen.rope.dimension_count": n // heads, "qwen.rope.freq_base": 10000.0,
    }  # fmt: skip
    q4, f32 = FORMATS["Q4_0"], FORMATS["F32"]
    tensors = [OutputTensor("token_embd.weight", (vocab, n), q4)]
    for layer in range(layers):
        at = f"blk.{layer}."
        tensors += [
            OutputTensor(at + "attn_norm.weight", (n,), f32),
            OutputTensor(at + "attn_qkv.weight", (3 * n, n), q4),
            OutputTensor(at + "attn_qkv.bias", (3 * n,), f32),
            OutputTensor(at + "attn_output.weight", (n, n), q4),
            OutputTensor(at + "ffn_norm.weight", (n,), f32),
            OutputTensor(at + "ffn_gate.weight", (ff, n), q4),
            OutputTensor(at + "ffn_up.weight", (ff, n), q4),
            OutputTensor(at + "ffn_down.weight", (n, ff), q4),
        ]
    tensors += [OutputTensor("output_norm.weight", (n,), f32), OutputTensor("output.weight", (vocab, n), q4)]
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 256, (1 << 20, q4.type_size), dtype=np.uint8)
    scales = (0.004 * rng.uniform(0.7, 1.3, len(blocks))).astype(np.float16)
    blocks[:, :2] = scales.view(np.uint8).reshape(-1, 2)
    with write_gguf(out, metadata, tensors) as writer:
        for tensor in tensors:
            if tensor.format is f32:
                writer.write((rng.normal(size=tensor.shape) * 0.01 + ("norm" in tensor.name)).astype(np.float32))
                continue
            left = tensor.nbytes // q4.type_size
            while left:
                piece = blocks[: min(left, len(blocks))]
                writer.write(piece)
                left -= len(piece)


class Letters:
    """A tokenizer for the engine: every token is a letter, and none ends a text."""

    eog: frozenset[int] = frozenset()

    def token_bytes(self, id: int, special: bool = True) -> bytes:
        return b"abcdefgh"[id % 8 : id % 8 + 1]

    def is_control(self, id: int) -> bool:
        return False


def decode(engine: Engine, n: int, depth: int, steps: int, **sampling: float) -> float:
    """Seconds a step of n sequences after `depth` tokens each, all that the engine does counted. What they have read
    before is in the cache from the second time on."""
    params = SamplingParams(max_tokens=steps, seed=0, **sampling).resolved()  # type: ignore[arg-type]
    ids = np.random.default_rng(0).integers(0, engine.runtime.n_vocab, depth).tolist()
    for i in range(n):
        engine.add(engine.sequence([i, *ids], params))
    started = time.perf_counter()
    while engine.has_work:
        engine.step()
    return (time.perf_counter() - started) / steps


def prompt(runtime: Runtime, n: int) -> float:
    """Seconds for a prompt of n tokens, logits of the last."""
    ids = np.random.default_rng(0).integers(0, runtime.n_vocab, n).astype(np.int32)
    started = time.perf_counter()
    for start in range(0, n, runtime.n_batch):
        end = min(n, start + runtime.n_batch)
        outputs = np.array([end - start - 1] if end == n else [], np.int32)
        positions = np.arange(start, end, dtype=np.int32)
        runtime.step(ids[start:end], np.zeros(end - start, np.int32), positions, outputs)
    return time.perf_counter() - started


def kernels(engine: Engine, runtime: Runtime, bandwidth: float) -> None:
    """Each kernel of a step of one token, greedily chosen."""
    executor: Any = runtime.executor
    device, queue = executor.device, executor._queue
    decode(engine, 1, min(1024, runtime.n_ctx - 1), 1, temperature=0.0)  # its inputs stay where they are
    calls: dict[Any, list[Any]] = defaultdict(list)
    launch = Kernel.launch

    def record(kernel: Kernel, grid: Any, *arguments: Any, **options: Any) -> None:
        calls[kernel, grid].append((arguments, options.get("shared", 0)))

    Kernel.launch = record  # type: ignore[method-assign, assignment]
    try:
        executor._record(1, "tokens", "apart")
    finally:
        Kernel.launch = launch  # type: ignore[method-assign]
    sizes = {m.planes[0]: m.layout.n_bytes for m in queue.weights._matrices.values()}
    weights = sum(sizes.get(arguments[0], 0) for made in calls.values() for arguments, _ in made)
    whole = executor._graphs[1, "tokens", "apart"]
    whole.launch()
    elapsed = device.timer()
    for _ in range(50):
        whole.launch()
    print(f"A step keeps the GPU busy for {elapsed() / 50 * 1e6:.0f} us; to read its weights takes", end=" ")
    print(f"{weights / bandwidth * 1e6:.0f}.\n")
    print("| kernel | blocks | launches | us each | us at the limit | share |\n|---|---|---|---|---|---|")
    for (kernel, grid), made in calls.items():
        rounds = -(-48 // len(made))

        def again(kernel: Kernel = kernel, grid: Any = grid, made: Any = made, rounds: int = rounds) -> None:
            for arguments, shared in made * rounds:
                launch(kernel, grid, *arguments, shared=shared, dependent=True)

        graph = device.capture(again)
        graph.launch()
        device.synchronize()
        elapsed = device.timer()
        graph.launch()
        seconds = elapsed() / (rounds * len(made))
        limit = sum(sizes.get(arguments[0], 0) for arguments, _ in made) / len(made) / bandwidth
        share = f"{limit * 1e6:.2f} | {limit / seconds:.0%}" if limit else " | "
        print(f"| {kernel.name} | {grid} | {len(made)} | {seconds * 1e6:.2f} | {share} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("-c", "--ctx-size", type=int, default=4352)
    parser.add_argument("--parallel", default="1", help="sequences that generate together, as in 1,8,32")
    options = parser.parse_args()
    sizes = [int(n) for n in options.parallel.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gguf"
        write_random(path, options.shape)
        with GGUFFile(path) as file:
            started = time.perf_counter()
            runtime = Runtime(file, options.ctx_size, n_slots=max(sizes), notify=print, device="cuda")
            executor: Any = runtime.executor
            bandwidth = executor.device.bandwidth()
            print(
                f"{executor.device.name}, {bandwidth / 1e12:.2f} TB/s; ready in {time.perf_counter() - started:.2f} s"
            )
            engine = Engine(runtime, Letters())  # type: ignore[arg-type]
            print("\n| test | tok/s |\n|---|---|")
            ways: list[tuple[str, dict[str, float], int]] = [
                ("greedy", {"temperature": 0.0}, runtime.most_chosen),
                ("sampled", {}, runtime.most_chosen),
                ("greedy, chosen on the host", {"temperature": 0.0}, 0),
            ]
            for depth in (depth for depth in (0, 1024, 4096) if depth + 70 < options.ctx_size):
                for n in sizes:
                    for name, sampling, runtime.most_chosen in ways[: 3 if n == sizes[0] else 2]:
                        decode(engine, n, depth, 8, **sampling)
                        median = sorted(decode(engine, n, depth, 64, **sampling) for _ in range(3))[1]
                        print(f"| {n} together after {depth}, {name} | {n / median:.0f} |", flush=True)
            runtime.most_chosen = ways[0][2]
            for n in (n for n in (512, 4096) if n <= options.ctx_size):
                prompt(runtime, n)
                print(f"| prompt {n} | {n / sorted(prompt(runtime, n) for _ in range(5))[2]:.0f} |")
            print()
            kernels(engine, runtime, bandwidth)
            runtime.close()


if __name__ == "__main__":
    main()
