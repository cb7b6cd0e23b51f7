"""ggpy beside llama.cpp: tokens per second, both engines in one process on the same file, taking turns.

Taking turns is the point: a machine's speed drifts with its temperature and its neighbours, and what drifts then drifts
for both. Each round measures every test once with each engine; the engine that goes first alternates. A warm-up round
is thrown away. The same arbitrary tokens go through both, without tokenizer and sampler.

    pip install llama-cpp-python            builds llama.cpp for this machine
    python benchmarks/vs_llama_cpp.py model-q4_0.gguf other.gguf -p 512 -n 64 -t 2 -r 5 --json result.json
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from ggpy import GGUFFile
from ggpy.runtime import Runtime

N_BATCH = 512


class Ggpy:
    name = "ggpy"

    def __init__(self, path: Path, n_ctx: int, n_threads: int | None) -> None:
        self.file = GGUFFile(path)
        notify = lambda text: print(f"ggpy: {text}", file=sys.stderr)  # noqa: E731
        self.runtime = Runtime(self.file, n_ctx, n_threads=n_threads, n_batch=N_BATCH, notify=notify)

    def evaluate(self, tokens: np.ndarray, n_past: int) -> None:
        """tokens [n] as one text at positions n_past …, in batches; logits of the last one alone."""
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
        """As above. `eval` first drops the cells from `n_tokens` on, so that a position can be taken again."""
        self.model.n_tokens = n_past
        self.model.eval(tokens.tolist())

    def close(self) -> None:
        self.model.close()


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
    engines = [ggpy, LlamaCpp(path, n_ctx, n_threads, args.flash_attention)]
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
            "ratio": statistics.median(found["ggpy"]) / statistics.median(found["llama.cpp"]),
            "engines": {
                name: {"tok_s": statistics.median(values), "min": min(values), "max": max(values), "samples": values}
                for name, values in found.items()
            },
        }
        for test, found in samples.items()
    ]


def machine() -> dict[str, Any]:
    """What ran, on what."""
    from ggpy.native import isa

    cpu = platform.processor()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model n")]
        cpu = names[0] if names else cpu
    return {
        "cpu": cpu,
        "isa": isa(),
        "python": platform.python_version(),
        **{name: version(name) for name in ("ggpy", "numba", "llvmlite", "llama-cpp-python")},
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
    parser.add_argument("-fa", "--flash-attention", action="store_true", help="llama.cpp with flash attention")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write samples and machine there")
    args = parser.parse_args()
    if args.n_prompt <= 0 and args.n_gen <= 0 and args.depth <= 0:
        parser.error("-p 0 and -n 0 leave nothing to measure")
    if args.rounds < 1 or args.fills < 1:
        parser.error("-r and --fills must be at least 1")
    try:
        import llama_cpp  # noqa: F401
    except ImportError:
        sys.exit("error: llama-cpp-python is not installed; build it for this machine: pip install llama-cpp-python")

    results = []
    print("Tokens per second: the median of the rounds (smallest–largest).\n")
    print("| file | test | threads | ggpy | llama.cpp | ratio |")
    print("|---|---|---|---|---|---|")
    for path in args.files:
        for result in measure(path, args):
            results.append(result)
            print(row(result), flush=True)
    about = machine()
    print("\n" + ", ".join(f"{name} {value}" for name, value in about.items()))
    if args.json:
        args.json.write_text(json.dumps({"machine": about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
