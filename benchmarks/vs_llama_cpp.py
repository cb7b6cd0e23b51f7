"""ggpy beside llama.cpp: tokens per second, both engines in one process on the same file, taking turns.

Taking turns is the point: a machine's speed drifts with its temperature and its neighbours, and what drifts then drifts
for both. Each round measures every test once with each engine; the engine that goes first alternates. A warm-up round
is thrown away. The same arbitrary tokens go through both, without tokenizer and sampler.

    pip install llama-cpp-python            builds llama.cpp for this machine
    python benchmarks/vs_llama_cpp.py model-q4_0.gguf other.gguf -p 512 -n 64 -t 2 -r 5 --json result.json

With --peer ik_llama.cpp it is that fork, through the package ik-llama-cpp-python, weights repacked at load. Both forks
have libraries of the same names, so a process takes one of them.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np

from ggpy import GGUFFile
from ggpy.runtime.runtime import Runtime

N_BATCH = 512


class Ggpy:
    name = "ggpy"

    def __init__(self, path: Path, n_ctx: int, n_threads: int | None) -> None:
        self.file = GGUFFile(path)
        notify = lambda text: print(f"ggpy: {text}", file=sys.stderr)  # noqa: E731
        self.runtime = Runtime(self.file, n_ctx, n_threads=n_threads, n_batch=N_BATCH, notify=notify)

    def evaluate(self, tokens: np.ndarray, n_past: int) -> None:
        """Evaluate tokens [n] as one text at positions n_past …, in batches; logits of the last one alone."""
        for start in range(0, len(tokens), N_BATCH):
            piece = tokens[start : start + N_BATCH]
            n = len(piece)
            last = start + n == len(tokens)
            positions = np.arange(n_past + start, n_past + start + n, dtype=np.int32)
            outputs = np.array([n - 1] if last else [], np.int32)
            self.runtime.step(piece, np.zeros(n, np.int32), positions, outputs)

    def close(self) -> None:
        self.runtime.close()
        self.file.close()


class LlamaCpp:
    name = "llama.cpp"

    def __init__(self, path: Path, n_ctx: int, n_threads: int, flash_attention: bool) -> None:
        import llama_cpp

        self.model = llama_cpp.Llama(
            str(path),
            n_ctx=n_ctx,
            n_threads=n_threads,
            n_threads_batch=n_threads,
            n_batch=N_BATCH,
            n_ubatch=N_BATCH,
            flash_attn=flash_attention,
            verbose=False,
        )

    def evaluate(self, tokens: np.ndarray, n_past: int) -> None:
        """Evaluate as `Ggpy.evaluate` does. `eval` first drops the cells from `n_tokens` on, so that a position can be
        taken again."""
        self.model.n_tokens = n_past
        self.model.eval(tokens.tolist())

    def close(self) -> None:
        self.model.close()


class IkLlamaCpp:
    name = "ik_llama.cpp"

    def __init__(self, path: Path, n_ctx: int, n_threads: int, flash_attention: bool) -> None:
        from ik_llama_cpp import _ctypes_api as api
        from ik_llama_cpp import _internals

        self.api = api
        api.llama_backend_init()
        model = api.llama_model_default_params()
        model.n_gpu_layers, model.use_mmap, model.repack_tensors = 0, False, True
        self.model = api.llama_model_load_from_file(str(path).encode(), model)
        context = api.llama_context_default_params()
        context.n_ctx, context.n_batch, context.n_ubatch, context.flash_attn = n_ctx, N_BATCH, N_BATCH, flash_attention
        context.n_threads = context.n_threads_batch = n_threads
        self.context = api.llama_init_from_model(self.model, context)
        if not self.model or not self.context:
            sys.exit(f"error: ik_llama.cpp cannot load {path}")
        self.batch = _internals.make_batch([0] * N_BATCH)
        self.remove = next(
            value for value in vars(api).values() if isinstance(value, ctypes.CDLL)
        ).llama_kv_cache_seq_rm
        self.remove.argtypes = [ctypes.c_void_p, ctypes.c_int32, ctypes.c_int32, ctypes.c_int32]
        self.remove.restype = ctypes.c_bool

    def evaluate(self, tokens: np.ndarray, n_past: int) -> None:
        """Evaluate as `Ggpy.evaluate` does; first drops the cells from n_past on, so that a position can be taken
        again."""
        self.remove(self.context, 0, n_past, -1)
        for start in range(0, len(tokens), N_BATCH):
            piece = tokens[start : start + N_BATCH].tolist()
            self.batch.n_tokens = len(piece)
            for i, token in enumerate(piece):
                self.batch.token[i], self.batch.pos[i] = token, n_past + start + i
                self.batch.logits[i] = start + i == len(tokens) - 1
            if self.api.llama_decode(self.context, self.batch):
                sys.exit("error: ik_llama.cpp failed to evaluate a batch")

    def close(self) -> None:
        self.api.llama_free(self.context)


PEERS: dict[str, tuple[type[Any], str, str]] = {  # the engine, its module and its package
    peer.name: (peer, module, module.replace("_", "-") + "-python")
    for peer, module in ((LlamaCpp, "llama_cpp"), (IkLlamaCpp, "ik_llama_cpp"))
}


def prefill(engine: Any, tokens: np.ndarray, depth: int) -> float:
    """Tokens per second of reading `tokens` as one text after `depth` others."""
    started = time.perf_counter()
    engine.evaluate(tokens, depth)
    return len(tokens) / (time.perf_counter() - started)


def decode(engine: Any, tokens: np.ndarray, depth: int) -> float:
    """Tokens per second of one token after the other, after `depth` others."""
    started = time.perf_counter()
    for i in range(len(tokens)):
        engine.evaluate(tokens[i : i + 1], depth + i)
    return len(tokens) / (time.perf_counter() - started)


def measure(path: Path, args: argparse.Namespace) -> list[dict[str, Any]]:
    n_ctx = args.depth + max(args.n_prompt, args.n_gen) + 16
    ggpy = Ggpy(path, n_ctx, args.threads)
    n_threads = ggpy.runtime.n_threads
    engines = [ggpy, PEERS[args.peer][0](path, n_ctx, n_threads, args.flash_attention)]
    rng = np.random.default_rng(0)
    text = rng.integers(0, ggpy.runtime.n_vocab, n_ctx).astype(np.int32)
    tests: dict[str, tuple[Callable[[Any, np.ndarray, int], float], int]] = {}
    if args.n_prompt:
        tests[f"pp{args.n_prompt}"] = (prefill, args.n_prompt)
    if args.n_gen:
        tests[f"tg{args.n_gen}"] = (decode, args.n_gen)
    filling = f"pp{args.depth}"
    names = [filling, *tests] if args.depth else list(tests)
    samples: dict[str, dict[str, list[float]]] = {test: {e.name: [] for e in engines} for test in names}
    for turn in range(args.fills if args.depth else 0):  # a prompt so long needs no warm-up
        for engine in engines if turn % 2 else reversed(engines):
            time.sleep(0.05)
            samples[filling][engine.name].append(prefill(engine, text[: args.depth], 0))
    for turn in range(args.rounds + 1):
        for test, (run, n) in tests.items():
            for engine in engines if turn % 2 else reversed(engines):
                time.sleep(0.05)  # the other engine's threads spin for a while before they sleep
                speed = run(engine, text[args.depth : args.depth + n], args.depth)
                if turn:
                    samples[test][engine.name].append(speed)
    for engine in engines:
        engine.close()
    return [
        {
            "file": path.name,
            "test": test + (f" @ {args.depth}" if args.depth and test != filling else ""),
            "n_threads": n_threads,
            "ratio": statistics.median(found["ggpy"]) / statistics.median(found[args.peer]),
            "engines": {
                name: {"tok_s": statistics.median(values), "min": min(values), "max": max(values), "samples": values}
                for name, values in found.items()
            },
        }
        for test, found in samples.items()
    ]


def machine(peer: str) -> dict[str, Any]:
    """The CPU, and the versions of the software that ran on it."""
    from ggpy.codegen.native import isa

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model n")]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "isa": isa(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("ggpy", "numba", "llvmlite", PEERS[peer][2])},
    }


def row(result: dict[str, Any]) -> str:
    cells = [result["file"], result["test"], str(result["n_threads"])]
    for engine in result["engines"].values():
        cells.append(f"{engine['tok_s']:.1f} ({engine['min']:.1f}–{engine['max']:.1f})")
    return "| " + " | ".join([*cells, f"{result['ratio']:.2f}"]) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE", help="GGUF files that both engines run")
    parser.add_argument("-p", "--n-prompt", type=int, default=512, metavar="N", help="prompt tokens; 0: none")
    parser.add_argument("-n", "--n-gen", type=int, default=64, metavar="N", help="generated tokens; 0: none")
    parser.add_argument("-d", "--depth", type=int, default=0, metavar="N", help="tokens already in the context")
    parser.add_argument("--fills", type=int, default=2, metavar="N", help="times the depth is read, and timed")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="default: as ggpy chooses")
    parser.add_argument("-r", "--rounds", type=int, default=5, metavar="N", help="samples of each after a warm-up")
    parser.add_argument("--peer", choices=PEERS, default=LlamaCpp.name, help="the engine beside ggpy")
    parser.add_argument("-fa", "--flash-attention", action="store_true", help="the peer with flash attention")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write samples and machine there")
    args = parser.parse_args()
    if args.n_prompt <= 0 and args.n_gen <= 0 and args.depth <= 0:
        parser.error("-p 0 and -n 0 leave nothing to measure")
    if args.rounds < 1 or args.fills < 1:
        parser.error("-r and --fills must be at least 1")
    _, module, package = PEERS[args.peer]
    if not find_spec(module):
        sys.exit(f"error: {package} is not installed; build it for this machine: pip install {package}")

    results = []
    print("Tokens per second: the median of the rounds (smallest–largest).\n")
    print(f"| file | test | threads | ggpy | {args.peer} | ratio |")
    print("|---|---|---|---|---|---|")
    for path in args.files:
        for result in measure(path, args):
            results.append(result)
            print(row(result), flush=True)
    about = machine(args.peer)
    print("\n" + ", ".join(f"{name} {value}" for name, value in about.items()))
    if args.json:
        args.json.write_text(json.dumps({"machine": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
