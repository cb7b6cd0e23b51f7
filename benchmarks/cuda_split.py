"""Speed of a model whose layers are shared by devices: one GPU, several, or GPUs and the CPU.

    python benchmarks/cuda_split.py qwen-7b cuda:0 cuda:0,1 cuda:0=16 cuda:0=31

After `=` stands how many of the last layers the GPUs run. The model is the random one of `cuda_speed.py`. Counted is
everything from inputs to logits on the host: the median of three rounds.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import numpy as np
from cuda_speed import SHAPES, prompt, write_random

from ggpy.gguf_file import GGUFFile
from ggpy.runtime import Runtime

TOGETHER = (1, 8)  # sequences
ROUND = 32  # tokens of each


def decode(runtime: Runtime, n: int, depth: int) -> float:
    """Tokens a second of n sequences together, with `depth` tokens before."""
    every = np.arange(n, dtype=np.int32)
    rounds = []
    for _ in range(4):  # the first is a warm-up
        started = time.perf_counter()
        for i in range(ROUND):
            runtime.step(every, every, np.full(n, depth + i, np.int32), every)
        rounds.append(n * ROUND / (time.perf_counter() - started))
    return sorted(rounds[1:])[1]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("ways", nargs="+", metavar="DEVICE[=LAYERS]")
    parser.add_argument("-c", "--ctx-size", type=int, default=4352)
    options = parser.parse_args()
    prompts = [n for n in (512, 4096) if n <= options.ctx_size]
    depths = [depth for depth in (0, 1024) if depth + ROUND <= options.ctx_size]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gguf"
        write_random(path, options.shape)
        columns = [f"tg x{n} @ {depth}" for n in TOGETHER for depth in depths] + [f"pp{n}" for n in prompts]
        print("| layers | tokens a step | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 2) + "|")
        for way in options.ways:
            device, _, layers = way.partition("=")
            with GGUFFile(path) as file:
                runtime = Runtime(
                    file,
                    options.ctx_size,
                    n_slots=max(TOGETHER),
                    device=device,
                    n_gpu_layers=int(layers) if layers else None,
                )
                speeds = [decode(runtime, n, depth) for n in TOGETHER for depth in depths]
                for n in prompts:
                    prompt(runtime, n)
                    speeds.append(n / sorted(prompt(runtime, n) for _ in range(3))[1])
                places = ", ".join(f"{part.n_layers} on {part.device}" for part in runtime.parts)
                runtime.close()
            cells = [places, str(runtime.n_batch), *(f"{speed:.0f}" for speed in speeds)]
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
