"""Time of each operation of a layer in a step of a prompt, and its share: layers in the shapes of known models, with
random Q4_0 weights.

python benchmarks/operations.py delta -n 512 -t 2      shapes: delta, experts, mamba, mamba2
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from ctypes import CFUNCTYPE, c_int64, c_uint64
from pathlib import Path
from threading import Barrier, Thread

import numpy as np

from ggpy.convert.writer import OutputTensor, write_gguf
from ggpy.cpu.executor import CpuExecutor
from ggpy.cpu.needed import activation_dtype
from ggpy.gguf.file import GGUFFile
from ggpy.graph.language import Graph, Value
from ggpy.graph.operations import Linear
from ggpy.graph.plan import plan
from ggpy.quant import FORMATS

EPS = 1e-6
N_VOCAB = 64
Shapes = dict[str, tuple[int, ...]]
Build = Callable[[Graph, Value], Value]


def feed_forward(n_embd: int, n_ff: int) -> tuple[Shapes, Build]:
    def build(g: Graph, x: Value) -> Value:
        y = g.norm(x, "ffn_norm", EPS)
        gate, up = g.linear(y, "gate", n_ff), g.linear(y, "up", n_ff)
        return g.add(x, g.linear(g.glu(gate, up, "silu"), "down", n_embd))

    return {
        "ffn_norm.weight": (n_embd,), "gate.weight": (n_ff, n_embd), "up.weight": (n_ff, n_embd),
        "down.weight": (n_embd, n_ff),
    }, build  # fmt: skip


def delta() -> tuple[int, Shapes, Build]:
    """Qwen3.5-0.8B: a layer with the gated delta rule."""
    n_embd, heads, width = 1024, 16, 128
    inner = heads * width
    shapes, forward = feed_forward(n_embd, 3584)
    shapes |= {
        "norm.weight": (n_embd,), "qkv.weight": (3 * inner, n_embd), "z.weight": (inner, n_embd),
        "conv.weight": (3 * inner, 4), "alpha.weight": (heads, n_embd), "beta.weight": (heads, n_embd),
        "dt": (heads,), "a": (heads,), "out_norm.weight": (width,), "out.weight": (n_embd, inner),
    }  # fmt: skip

    def build(g: Graph, x: Value) -> Value:
        y = g.norm(x, "norm", EPS)
        qkv = g.conv_state(g.linear(y, "qkv", 3 * inner), "conv", 4, 0, "silu")
        q, k = (g.norm(qkv.columns(i * inner, inner), None, EPS, "l2", width) for i in range(2))
        steps = g.activation(g.shift_columns(g.linear(y, "alpha", heads), "dt"), "softplus")
        decay, beta = g.scale_columns(steps, "a"), g.activation(g.linear(y, "beta", heads), "sigmoid")
        z, v = g.linear(y, "z", inner), qkv.columns(2 * inner, inner)
        read = g.delta_rule(g.scale(q, width**-0.5), k, v, decay, beta, layer=0, n_k_head=heads, n_v_head=heads)
        gated = g.glu(z, g.norm(read, "out_norm", EPS, width=width), "silu")
        return forward(g, g.add(x, g.linear(gated, "out", n_embd)))

    return n_embd, shapes, build


def experts() -> tuple[int, Shapes, Build]:
    """Qwen3-30B-A3B: the feed-forward, 8 of 128 experts."""
    n_embd, n_ff, n_experts, n_used = 2048, 768, 128, 8
    shapes: Shapes = {
        "norm.weight": (n_embd,), "router.weight": (n_experts, n_embd), "gate.weight": (n_experts, n_ff, n_embd),
        "up.weight": (n_experts, n_ff, n_embd), "down.weight": (n_experts, n_embd, n_ff),
    }  # fmt: skip

    def build(g: Graph, x: Value) -> Value:
        y = g.norm(x, "norm", EPS)
        route = g.route(g.linear(y, "router", n_experts), n_used, normalize=True)
        gate, up = (g.expert_linear(y, name, n_ff, route) for name in ("gate", "up"))
        made = g.expert_linear(g.glu(gate, up, "silu"), "down", n_embd, route)
        return g.add(x, g.combine(made, route))

    return n_embd, shapes, build


def mamba() -> tuple[int, Shapes, Build]:
    """Falcon-Mamba-7B: a layer of Mamba."""
    n_embd, inner, d_state, rank = 4096, 8192, 16, 256
    shapes: Shapes = {
        "norm.weight": (n_embd,), "in.weight": (2 * inner, n_embd), "conv.weight": (inner, 4),
        "x.weight": (rank + 2 * d_state, inner), "dt.weight": (inner, rank), "dt.bias": (inner,),
        "a": (inner, d_state), "d": (inner,), "out.weight": (n_embd, inner),
    }  # fmt: skip

    def build(g: Graph, x: Value) -> Value:
        xz = g.linear(g.norm(x, "norm", EPS), "in", 2 * inner)
        y = g.conv_state(xz.columns(0, inner), "conv", 4, 0, "silu")
        parts = g.linear(y, "x", rank + 2 * d_state)
        b, c = (parts.columns(rank + i * d_state, d_state) for i in range(2))
        dt = g.linear(parts.columns(0, rank), "dt", inner)
        scanned = g.ssm_scan(y, dt, b, c, layer=0, n_head=inner, n_groups=1, a="a", d="d")
        return g.add(x, g.linear(g.glu(xz.columns(inner, inner), scanned, "silu"), "out", n_embd))

    return n_embd, shapes, build


def mamba2() -> tuple[int, Shapes, Build]:
    """Granite-4.0-H-Tiny: a layer of Mamba-2, without the experts."""
    n_embd, heads, width, d_state = 1536, 48, 64, 128
    inner = heads * width
    conv = inner + 2 * d_state
    shapes: Shapes = {
        "norm.weight": (n_embd,), "in.weight": (inner + conv + heads, n_embd), "conv.weight": (conv, 4),
        "dt": (heads,), "a": (heads, 1), "d": (heads, 1), "out_norm.weight": (inner,), "out.weight": (n_embd, inner),
    }  # fmt: skip

    def build(g: Graph, x: Value) -> Value:
        made = g.linear(g.norm(x, "norm", EPS), "in", inner + conv + heads)
        y = g.conv_state(made.columns(inner, conv), "conv", 4, 0, "silu")
        dt = g.shift_columns(made.columns(inner + conv, heads), "dt")
        b, c = (y.columns(inner + i * d_state, d_state) for i in range(2))
        scanned = g.ssm_scan(y.columns(0, inner), dt, b, c, layer=0, n_head=heads, n_groups=1, a="a", d="d")
        gated = g.norm(g.glu(made.columns(0, inner), scanned, "silu"), "out_norm", EPS)
        return g.add(x, g.linear(gated, "out", n_embd))

    return n_embd, shapes, build


MODELS = {"delta": delta, "experts": experts, "mamba": mamba, "mamba2": mamba2}


def write(path: Path, shapes: Shapes) -> None:
    """A file of these tensors: random matrices of whole blocks in Q4_0, what is small in float32."""
    rng = np.random.default_rng(0)
    formats = {
        name: FORMATS["Q4_0" if len(shape) > 1 and shape[-1] % 32 == 0 else "F32"] for name, shape in shapes.items()
    }
    outputs = [OutputTensor(name, shape, formats[name]) for name, shape in shapes.items()]
    with write_gguf(path, {"general.architecture": "none"}, outputs) as writer:
        for name, shape in shapes.items():
            rows = rng.standard_normal((int(np.prod(shape[:-1])), shape[-1]), np.float32) * shape[-1] ** -0.5
            if name == "a":
                rows = -0.1 * np.abs(rows)
            writer.write(formats[name].quantize(rows))


class Timer:
    """Runs an executor's operations one by one on threads of its own, which meet before and after each. An operation's
    time is that which the slowest thread had a CPU for: other programs make a machine slower, not this."""

    def __init__(self, executor: CpuExecutor, n_threads: int) -> None:
        self.executor, self.n_threads = executor, n_threads
        self.times: list[list[float]] = [[] for _ in executor.program.ops]

    def round(self) -> None:
        records, step = self.executor._ops, self.executor._step.ctypes.data
        kind = CFUNCTYPE(None, c_uint64, c_uint64, c_int64, c_int64)
        meeting = Barrier(self.n_threads)
        taken = np.zeros((len(records), self.n_threads))

        def work(thread: int) -> None:
            for index in range(len(records)):
                record = records[index : index + 1]
                kernel = kind(int(record["kernel"][0]))
                meeting.wait()
                started = time.thread_time()
                kernel(record.ctypes.data, step, thread, self.n_threads)
                taken[index, thread] = time.thread_time() - started
                meeting.wait()
                if thread == 0 and record["next"][0]:
                    c_int64.from_address(int(record["next"][0])).value = 0

        threads = [Thread(target=work, args=(thread,)) for thread in range(self.n_threads)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        for times, seconds in zip(self.times, taken.max(1), strict=True):
            times.append(float(seconds))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=MODELS, help="the shape of a layer")
    parser.add_argument("-n", type=int, default=512, metavar="N", help="tokens in a step (default: 512)")
    parser.add_argument("-d", "--depth", type=int, default=0, metavar="N", help="tokens in the slot before them")
    parser.add_argument("-t", "--threads", type=int, default=2, metavar="N")
    parser.add_argument("-r", "--rounds", type=int, default=9, metavar="N")
    args = parser.parse_args()
    n_embd, shapes, build = MODELS[args.shape]()
    shapes |= {"token_embd.weight": (N_VOCAB, n_embd), "output.weight": (N_VOCAB, n_embd)}
    with tempfile.TemporaryDirectory() as folder:
        write(Path(folder) / "layer.gguf", shapes)
        with GGUFFile(Path(folder) / "layer.gguf") as file:
            graph = Graph(file)
            logits = graph.output(graph.select_outputs(build(graph, graph.embed(n_embd))), N_VOCAB)
            executor = CpuExecutor(
                plan(graph, logits, activation_dtype), file, n_ctx=args.depth + args.n, n_slots=1, n_batch=args.n,
                n_threads=args.threads, cache_type="f16", notify=print,
            )  # fmt: skip
            executor.tokens[:] = np.random.default_rng(1).integers(0, N_VOCAB, args.n)
            executor.positions[:], executor.outputs[0] = np.arange(args.depth, args.depth + args.n), args.n - 1
            executor.run(args.n, 1)
            timer = Timer(executor, args.threads)
            for _ in range(args.rounds + 1):
                timer.round()
            executor.close()
    medians = [statistics.median(times[1:]) for times in timer.times]
    print(f"| operation of {args.n} tokens, {args.threads} threads | ms | share |\n|---|---|---|")
    for op, seconds in zip(executor.program.ops, medians, strict=True):
        name = type(op.operation).__name__
        if isinstance(op.operation, Linear):
            name += f" {op.operation.weight.name.removesuffix('.weight')}"
        print(f"| {name} | {seconds * 1e3:.3f} | {seconds / sum(medians):.1%} |")


if __name__ == "__main__":
    main()
