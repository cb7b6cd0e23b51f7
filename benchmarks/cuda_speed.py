"""Speed on an NVIDIA GPU, at the shapes of real models: decoding, prompts, and each kernel by itself.

    python benchmarks/cuda_speed.py qwen-7b -c 4352 --parallel 1,8,32
    python benchmarks/cuda_speed.py qwen-1.8b --type Q6_K --cache-type q8_0
    python benchmarks/cuda_speed.py qwen-7b --batch-invariant --parallel 1,8,16,32
    python benchmarks/cuda_speed.py qwen3-30b-a3b

    python benchmarks/cuda_speed.py qwen3.5-4b --parallel 1,8,32

Writes a GGUF file of random blocks in the shape of Qwen-1.8B, Qwen-7B, Qwen3.5-4B or Qwen3-30B-A3B (no weights need be
fetched), and runs it. Decoding goes through the engine, with everything it does: scheduling, tokens chosen (greedily,
or with the sampler's defaults), text. Kernels are timed in graphs of their own, over every layer's weights: for a step
of one token with 1024 in the cache, as a share of how fast the card reads as many bytes as those weights, again and
again (of a mixture, those of the experts that a token takes); and for a prompt's step of 2048, as a share of what its
matrix units do with operands at hand (`ggpy.cuda.ops.matrix_rate`). With `--batch-invariant` a usual model and a
batch-invariant one take turns instead, and each one's texts are compared with those it gives alone.
"""

from __future__ import annotations

import argparse
import math
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ggpy.convert.writer import OutputTensor, write_gguf
from ggpy.cuda.driver import Device, Kernel
from ggpy.cuda.ops.matrix_rate import THREADS, operations, shared_bytes
from ggpy.engine.engine import Engine
from ggpy.gguf.file import GGUFFile
from ggpy.quant import FORMATS, BlockFormat
from ggpy.runtime.runtime import Runtime
from ggpy.sampling.sampler import SamplingParams

# Columns, layers, heads, columns of the feed-forward (or of an expert's), vocabulary.
SHAPES = {
    "qwen-1.8b": (2048, 24, 16, 5504, 151936), "qwen-7b": (4096, 32, 32, 11008, 151936),
    "qwen3.5-4b": (2560, 32, 16, 9216, 248320), "qwen3-30b-a3b": (2048, 48, 32, 768, 151936),
}  # fmt: skip
# Of Qwen3.5's delta nets: heads of keys and of values, dimensions of each; of its attention: heads of keys and values,
# dimensions of a head, of which rope turns some.
DELTA, ATTENTION = (16, 32, 128), (4, 256, 64)
# Of Qwen3's mixture: experts, those that a token takes, heads of keys and values, dimensions of a head.
MIXTURE = (128, 8, 4, 128)
# Where a block of a type keeps its half-precision scales.
HALVES = {
    "Q4_0": (0,), "Q4_1": (0, 2), "Q5_0": (0,), "Q5_1": (0, 2), "Q8_0": (0,), "Q2_K": (80, 82), "Q3_K": (108,),
    "Q4_K": (0, 2), "Q5_K": (0, 2), "Q6_K": (208,), "IQ4_NL": (0,), "IQ4_XS": (0,), "TQ2_0": (64,),
}  # fmt: skip
TYPES = ("F16", "BF16", *HALVES)
SPREAD = 0.02  # of the weights, about
N_BLOCKS = 1 << 18  # random ones, again and again
PROMPT = 2048  # tokens of the step whose kernels are timed


def random_blocks(form: BlockFormat) -> np.ndarray:
    """uint8 [n, type_size]: any codes, with scales that give weights as large as a model's."""
    rng = np.random.default_rng(0)
    if form.name not in HALVES:
        weights = (SPREAD * rng.standard_normal((1, N_BLOCKS))).astype(np.float32)
        return form.quantize(weights).reshape(-1, form.type_size)
    blocks = rng.integers(0, 256, (N_BLOCKS, form.type_size), dtype=np.uint8)

    def scale(by: float | np.ndarray) -> None:
        for at in HALVES[form.name]:
            blocks[:, at : at + 2] = (by * np.ones(len(blocks))).astype(np.float16).view(np.uint8).reshape(-1, 2)

    scale(1.0)
    spread = float(form.dequantize(blocks[:256].reshape(1, -1)).std())
    scale(SPREAD / spread * rng.uniform(0.7, 1.3, len(blocks)))
    return blocks


def qwen(n: int, heads: int) -> tuple[str, dict[str, Any], Callable[[int], dict[str, tuple[int, ...]]]]:
    """Name, metadata and shapes of a layer's tensors beside the feed-forward."""
    shapes = {
        "attn_norm.weight": (n,), "attn_qkv.weight": (3 * n, n), "attn_qkv.bias": (3 * n,),
        "attn_output.weight": (n, n), "ffn_norm.weight": (n,),
    }  # fmt: skip
    return "qwen", {"rope.dimension_count": n // heads}, lambda layer: shapes


def qwen35(n: int, heads: int) -> tuple[str, dict[str, Any], Callable[[int], dict[str, tuple[int, ...]]]]:
    (n_k, n_v, dim), (heads_kv, head_dim, n_rot) = DELTA, ATTENTION
    norms: dict[str, tuple[int, ...]] = {"attn_norm.weight": (n,), "post_attention_norm.weight": (n,)}
    mixed, inner = (2 * n_k + n_v) * dim, n_v * dim
    delta = {
        "attn_qkv.weight": (mixed, n), "attn_gate.weight": (inner, n), "ssm_alpha.weight": (n_v, n),
        "ssm_beta.weight": (n_v, n), "ssm_conv1d.weight": (mixed, 4), "ssm_a": (n_v,), "ssm_dt.bias": (n_v,),
        "ssm_norm.weight": (dim,), "ssm_out.weight": (n, inner),
    }  # fmt: skip
    full = {
        "attn_q.weight": (2 * heads * head_dim, n), "attn_k.weight": (heads_kv * head_dim, n),
        "attn_v.weight": (heads_kv * head_dim, n), "attn_q_norm.weight": (head_dim,),
        "attn_k_norm.weight": (head_dim,), "attn_output.weight": (n, heads * head_dim),
    }  # fmt: skip
    metadata = {
        "attention.head_count_kv": heads_kv, "attention.key_length": head_dim, "attention.value_length": head_dim,
        "rope.dimension_count": n_rot, "full_attention_interval": 4, "ssm.conv_kernel": 4, "ssm.state_size": dim,
        "ssm.group_count": n_k, "ssm.time_step_rank": n_v, "ssm.inner_size": inner,
    }  # fmt: skip
    return "qwen35", metadata, lambda layer: {**norms, **(full if layer % 4 == 3 else delta)}


def qwen3moe(n: int, heads: int) -> tuple[str, dict[str, Any], Callable[[int], dict[str, tuple[int, ...]]]]:
    n_experts, n_used, heads_kv, head_dim = MIXTURE
    shapes = {
        "attn_norm.weight": (n,), "attn_q.weight": (heads * head_dim, n), "attn_k.weight": (heads_kv * head_dim, n),
        "attn_v.weight": (heads_kv * head_dim, n), "attn_q_norm.weight": (head_dim,),
        "attn_k_norm.weight": (head_dim,), "attn_output.weight": (n, heads * head_dim), "ffn_norm.weight": (n,),
        "ffn_gate_inp.weight": (n_experts, n),
    }  # fmt: skip
    metadata = {
        "attention.head_count_kv": heads_kv, "attention.key_length": head_dim, "attention.value_length": head_dim,
        "rope.dimension_count": head_dim, "expert_count": n_experts, "expert_used_count": n_used,
    }  # fmt: skip
    return "qwen3moe", metadata, lambda layer: shapes


def feed_forward(arch: str, n: int, ff: int) -> dict[str, tuple[int, ...]]:
    """Shapes of the tensors of a feed-forward, or of a layer's experts."""
    kind, stack = ("_exps", MIXTURE[:1]) if arch == "qwen3moe" else ("", ())
    sizes = {"gate": (ff, n), "up": (ff, n), "down": (n, ff)}
    return {f"ffn_{part}{kind}.weight": (*stack, *size) for part, size in sizes.items()}


def write_random(out: Path, shape: str, type_name: str = "Q4_0") -> None:
    n, layers, heads, ff, vocab = SHAPES[shape]
    form, f32 = FORMATS[type_name], FORMATS["F32"]
    ff = -(-ff // form.block_size) * form.block_size
    arch, own, shapes_of = {"qwen3.5-4b": qwen35, "qwen3-30b-a3b": qwen3moe}.get(shape, qwen)(n, heads)
    metadata = {
        "block_count": layers, "context_length": 8192, "embedding_length": n,
        "feed_forward_length": 2 * ff if arch == "qwen" else ff, "attention.head_count": heads,
        "attention.layer_norm_rms_epsilon": 1e-6, "vocab_size": vocab, "rope.freq_base": 10000.0,
        **({"expert_feed_forward_length": ff} if arch == "qwen3moe" else {}), **own,
    }  # fmt: skip
    metadata = {"general.architecture": arch} | {f"{arch}.{key}": value for key, value in metadata.items()}
    tensors = [OutputTensor("token_embd.weight", (vocab, n), form)]
    for layer in range(layers):
        for name, size in {**shapes_of(layer), **feed_forward(arch, n, ff)}.items():
            is_matrix = len(size) > 1 and "conv1d" not in name and "gate_inp" not in name
            tensors.append(OutputTensor(f"blk.{layer}.{name}", size, form if is_matrix else f32))
    tensors += [OutputTensor("output_norm.weight", (n,), f32), OutputTensor("output.weight", (vocab, n), form)]
    rng, blocks = np.random.default_rng(0), random_blocks(form)
    with write_gguf(out, metadata, tensors) as writer:
        for tensor in tensors:
            if tensor.format is f32:
                middle = 1.0 if "norm" in tensor.name else -1.0 if tensor.name.endswith("ssm_a") else 0.0
                writer.write((rng.normal(size=tensor.shape) * 0.01 + middle).astype(np.float32))
                continue
            left = tensor.nbytes // form.type_size
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
        engine.add(engine.request([i, *ids], params))
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


Launch = tuple[tuple[float, ...], dict[str, Any]]  # arguments, options
Launches = dict[tuple[Kernel, Any], list[Launch]]  # by kernel and grid


def launches(queue: Callable[[], object]) -> Launches:
    """The kernel launches that `queue` would make."""
    found: Launches = defaultdict(list)
    launch = Kernel.launch

    def record(kernel: Kernel, grid: Any, *arguments: Any, **options: Any) -> None:
        found[kernel, grid].append((arguments, options))

    Kernel.launch = record  # type: ignore[method-assign, assignment]
    try:
        queue()
    finally:
        Kernel.launch = launch  # type: ignore[method-assign]
    return found


def seconds_each(device: Device, kernel: Kernel, grid: Any, made: list[Launch]) -> float:
    """Mean seconds of some launches of a kernel, run by themselves."""
    rounds = -(-48 // len(made))

    def again() -> None:
        for arguments, options in made * rounds:
            kernel.launch(grid, *arguments, **options)

    graph = device.capture(again)
    graph.launch()
    device.synchronize()
    elapsed = device.timer()
    graph.launch()
    return elapsed() / (rounds * len(made))


def decoding_kernels(engine: Engine, runtime: Runtime) -> None:
    """Print the speed of each kernel of a step of one token, greedily chosen."""
    executor: Any = runtime.executor
    device, queue = executor.device, executor._queue
    decode(engine, 1, min(1024, runtime.n_ctx - 1), 1, temperature=0.0)  # its inputs stay where they are
    calls = launches(lambda: executor._record(1, "tokens", "apart"))
    layouts = {m.planes[0]: m.layout for m in queue.weights._matrices.values()}

    def bytes_read(kernel: Kernel, arguments: tuple[Any, ...]) -> int:
        """Bytes of weights that a launch reads: of experts, those of as many as a token takes."""
        layout = layouts.get(arguments[0])
        if layout is None or not kernel.name.startswith("expert_matvec."):
            return layout.n_bytes if layout else 0
        return layout.n_bytes * int(kernel.name.split(".")[3]) * arguments[11] // layout.n_rows

    weights = sum(bytes_read(kernel, arguments) for (kernel, _), made in calls.items() for arguments, _ in made)
    whole = executor._graphs[1, "tokens", "apart"]
    whole.launch()
    elapsed = device.timer()
    for _ in range(50):
        whole.launch()
    print(f"A step keeps the GPU busy for {elapsed() / 50 * 1e6:.0f} us; to read its weights takes", end=" ")
    print(f"{weights / device.bandwidth(weights) * 1e6:.0f}.\n")
    print("| kernel | blocks | launches | us each | us at the limit | share |\n|---|---|---|---|---|---|")
    for (kernel, grid), made in calls.items():
        if kernel.name.startswith(
            ("matvec.", "expert_matvec.", "attention.")
        ):  # nothing of what follows, which is not there
            made = [((*arguments[:-1], 0), options) for arguments, options in made]
        seconds = seconds_each(device, kernel, grid, made)
        read = sum(bytes_read(kernel, arguments) for arguments, _ in made)
        limit = read / len(made) / device.bandwidth(read) if read else 0.0
        share = f"{limit * 1e6:.2f} | {limit / seconds:.0%}" if limit else " | "
        print(f"| {kernel.name} | {grid} | {len(made)} | {seconds * 1e6:.2f} | {share} |", flush=True)


def matrix_rate(device: Device) -> float:
    """Operations a second of the card's matrix units."""
    instruction = "group" if device.cc == (9, 0) else "warp"
    kernel, rounds, out = device.kernel(f"matrix_rate.{instruction}"), 4000, device.allocate(4 * THREADS)
    best = 0.0
    for _ in range(5):
        elapsed = device.timer()
        kernel.launch(device.n_multiprocessors, rounds, out, shared=shared_bytes(instruction))
        best = max(best, device.n_multiprocessors * rounds * operations(instruction) / elapsed())
    device.free(out)
    return best


def prompt_kernels(runtime: Runtime) -> None:
    """Print the speed of each kernel of a step of many tokens, but those of its logits."""
    executor: Any = runtime.executor
    device, shape = executor.device, next(iter(executor.shapes.values()))  # the same for every layer of these models
    n, best = min(PROMPT, runtime.n_batch), matrix_rate(device)
    prompt(runtime, n)  # its inputs stay where they are
    calls = launches(lambda: executor._queue.queue(n, "prompt"))
    print(f"\nA prompt's step of {n} tokens; the matrix units do {best / 1e12:.0f} TFLOP/s.\n")
    print("| kernel | blocks | launches | us each | TFLOP/s | share |\n|---|---|---|---|---|---|")
    time_spent = work = 0.0
    for (kernel, grid), made in calls.items():
        seconds = seconds_each(device, kernel, grid, made)
        done = 0.0
        if kernel.name.startswith("matmul."):
            done = sum(2.0 * math.prod(arguments[6:9]) for arguments, _ in made) / len(made)
        elif kernel.name.startswith("flash."):  # every token sees those before it
            done = 4.0 * shape.n_head * shape.cache.head_dim * n * (n + 1) / 2
        time_spent, work = time_spent + seconds * len(made), work + done * len(made)
        share = f"{done / seconds / 1e12:.0f} | {done / seconds / best:.0%}" if done else " | "
        print(f"| {kernel.name} | {grid} | {len(made)} | {seconds * 1e6:.2f} | {share} |", flush=True)
    print(f"\nAll of them: {time_spent * 1e3:.2f} ms, {work / time_spent / 1e12:.0f} TFLOP/s.")


@contextmanager
def usual_and_invariant(path: Path, n_ctx: int, n_slots: int, **caches: str) -> Iterator[list[Runtime]]:
    with ExitStack() as undo:
        made = []
        for invariant in (False, True):
            file = undo.enter_context(GGUFFile(path))
            options: dict[str, Any] = {"n_slots": n_slots, "device": "cuda", "batch_invariant": invariant, **caches}
            made.append(Runtime(file, n_ctx, notify=print, **options))
            undo.callback(made[-1].close)
        yield made


def in_turns(of: list[Callable[[], float]]) -> list[float]:
    """Medians of seconds, measured in turns after a first time each."""
    for measure in of:
        measure()
    samples = [[measure() for measure in of] for _ in range(5)]
    return [sorted(one)[2] for one in zip(*samples, strict=True)]


def invariance(path: Path, sizes: list[int], **caches: str) -> None:
    """Print the speeds of decoding (the steps alone) and of prompts (logits of the last token), then compare texts."""
    few, many = 32, 160  # tokens
    with usual_and_invariant(path, 1280, max(sizes), **caches) as pair:
        engines = [Engine(runtime, Letters()) for runtime in pair]  # type: ignore[arg-type]
        print("\n| test | usual, tok/s | batch-invariant, tok/s | ratio |\n|---|---|---|---|")
        for depth in (0, 1024):
            for n in sizes:

                def step(engine: Engine, n: int = n, depth: int = depth) -> float:
                    short, long = (steps * decode(engine, n, depth, steps, temperature=0.0) for steps in (few, many))
                    return (long - short) / (many - few)

                usual, ours = in_turns([lambda engine=engine: step(engine) for engine in engines])  # type: ignore[misc]
                row = f"| {n} together after {depth}, greedy | {n / usual:.0f} | {n / ours:.0f} | {usual / ours:.3f} |"
                print(row, flush=True)
        same = [as_alone(engine, max(sizes)) for engine in engines]
    with usual_and_invariant(path, 4352, 1, **caches) as pair:
        for n in (32, 128, 512, 4096):
            usual, ours = in_turns([lambda runtime=runtime: prompt(runtime, n) for runtime in pair])  # type: ignore[misc]  # noqa: B023
            print(f"| prompt {n} | {n / usual:.0f} | {n / ours:.0f} | {usual / ours:.3f} |", flush=True)
    print(f"| greedy texts of {max(sizes)} that are as alone | {same[0]} | {same[1]} | |")


def as_alone(engine: Engine, n: int) -> int:
    """The number of n greedy texts of 100 tokens, after prompts of 1 to n, that are the same made together as alone."""
    params = SamplingParams(max_tokens=100, temperature=0.0).resolved()
    rng = np.random.default_rng(0)
    prompts = [rng.integers(0, engine.runtime.n_vocab, 1 + i).tolist() for i in range(n)]
    texts = []
    for groups in ([prompts], [[one] for one in prompts]):
        texts.append([])
        for group in groups:
            sequences = [engine.request(one, params) for one in group]
            for sequence in sequences:
                engine.add(sequence)
            while engine.has_work:
                engine.step()
            texts[-1] += [sequence.token_ids for sequence in sequences]
    return sum(one == other for one, other in zip(*texts, strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("-c", "--ctx-size", type=int, default=4352)
    parser.add_argument("--type", choices=TYPES, default="Q4_0", help="of the weights")
    parser.add_argument("--cache-type", choices=("f16", "q8_0"), default="f16", help="of keys and values")
    parser.add_argument("--parallel", default="1", help="sequences that generate together, as in 1,8,32")
    parser.add_argument("--batch-invariant", action="store_true", help="what it costs, instead of all else")
    options = parser.parse_args()
    sizes = [int(n) for n in options.parallel.split(",")]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gguf"
        write_random(path, options.shape, options.type)
        caches = {f"cache_type_{which}": options.cache_type for which in "kv"}
        if options.batch_invariant:
            invariance(path, sizes, **caches)
            return
        with GGUFFile(path) as file:
            started = time.perf_counter()
            runtime = Runtime(file, options.ctx_size, n_slots=max(sizes), notify=print, device="cuda", **caches)
            executor: Any = runtime.executor
            bandwidth = executor.device.bandwidth(1e12)
            print(
                f"{executor.device.name}, {bandwidth / 1e12:.2f} TB/s; ready in {time.perf_counter() - started:.2f} s"
            )
            engine = Engine(runtime, Letters())  # type: ignore[arg-type]
            print("\n| test | tok/s |\n|---|---|")
            ways: list[tuple[str, dict[str, float], int]] = [
                ("greedy", {"temperature": 0.0}, runtime.max_sampled),
                ("sampled", {}, runtime.max_sampled),
                ("greedy, chosen on the host", {"temperature": 0.0}, 0),
            ]
            for depth in (depth for depth in (0, 1024, 4096) if depth + 70 < options.ctx_size):
                for n in sizes:
                    for name, sampling, runtime.max_sampled in ways[: 3 if n == sizes[0] else 2]:
                        decode(engine, n, depth, 8, **sampling)
                        median = sorted(decode(engine, n, depth, 64, **sampling) for _ in range(3))[1]
                        print(f"| {n} together after {depth}, {name} | {n / median:.0f} |", flush=True)
            runtime.max_sampled = ways[0][2]
            for n in (n for n in (512, 4096) if n <= options.ctx_size):
                prompt(runtime, n)
                print(f"| prompt {n} | {n / sorted(prompt(runtime, n) for _ in range(5))[2]:.0f} |")
            print()
            decoding_kernels(engine, runtime)
            prompt_kernels(runtime)
            runtime.close()


if __name__ == "__main__":
    main()
