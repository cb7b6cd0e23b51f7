"""Speed of a model whose layers are shared by devices: one GPU, several, or GPUs and the CPU.

    python benchmarks/cuda_split.py qwen-7b cuda:0 cuda:0,1 cuda:0,1=row cuda:0=16 cuda:0=31 cpu

After `=` stands how many of the last layers the GPUs run, or `row` where they share the rows of all. The model is the
random one of `cuda_speed.py`. Counted is everything from inputs to logits on the host: the median of three rounds. With
`--stages` also how long each stage of a step of one token takes by itself, and the rows between stages to cross.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from cuda_speed import SHAPES, prompt, write_random

from ggpy.gguf.file import GGUFFile
from ggpy.runtime.pipeline import PipelineExecutor
from ggpy.runtime.runtime import Runtime

ROUND = 32  # tokens of each sequence


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


def stages(runtime: Runtime) -> str:
    """Microseconds of what a step of one token consists of, each waited for before the next begins."""
    executor = runtime.executor
    if not isinstance(executor, PipelineExecutor):
        return ""
    decode(runtime, 1, 0)  # its last token is every stage's again
    devices = [getattr(stage, "device", None) for stage in executor.stages]
    taken: dict[str, list[float]] = {}

    def timed(name: str, do: Callable[[], object]) -> None:
        started = time.perf_counter()
        do()
        for device in devices:
            if device is not None:
                device.use()
                device.synchronize()
        taken.setdefault(name, []).append(1e6 * (time.perf_counter() - started))

    for _ in range(ROUND):
        for i, (where, stage) in enumerate(zip(runtime.stages, executor.stages, strict=True)):
            if i:
                timed(
                    f"rows to {where.device}", lambda i=i, stage=stage: stage.receive_hidden(executor.stages[i - 1], 1)
                )
            timed(f"{where.n_layers} on {where.device}", lambda stage=stage: stage.run(1, 1))
    return ", ".join(f"{name} {sorted(times)[len(times) // 2]:.0f}" for name, times in taken.items())


def numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("shape", choices=SHAPES)
    parser.add_argument("ways", nargs="+", metavar="DEVICE[=LAYERS|=row]")
    parser.add_argument("-c", "--ctx-size", type=int, default=4352)
    parser.add_argument("-t", "--threads", type=int, help="of the CPU's layers")
    parser.add_argument("--parallel", type=numbers, default=[1, 8], metavar="N,…", help="sequences generating together")
    parser.add_argument("--depths", type=numbers, default=[0, 1024], metavar="N,…", help="tokens in the context before")
    parser.add_argument("--prompts", type=numbers, default=[512, 4096], metavar="N,…", help="tokens of a prompt")
    parser.add_argument("--cache-type", default="f16", metavar="TYPE", help="of keys and values: f16, or q8_0")
    parser.add_argument("--stages", action="store_true", help="time the stages of a step, too")
    options = parser.parse_args()
    prompts = [n for n in options.prompts if n <= options.ctx_size]
    depths = [depth for depth in options.depths if depth + ROUND <= options.ctx_size]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "random.gguf"
        write_random(path, options.shape)
        columns = [f"tg x{n} @ {depth}" for n in options.parallel for depth in depths] + [f"pp{n}" for n in prompts]
        columns += ["stages of a step, µs"] * options.stages
        print("| layers | tokens a step | " + " | ".join(columns) + " |\n" + "|---" * (len(columns) + 2) + "|")
        for way in options.ways:
            device, _, layers = way.partition("=")
            with GGUFFile(path) as file:
                runtime = Runtime(
                    file,
                    options.ctx_size,
                    options.threads,
                    n_slots=max(options.parallel),
                    cache_type_k=options.cache_type,
                    cache_type_v=options.cache_type,
                    device=device,
                    n_gpu_layers=int(layers) if layers.isdecimal() else None,
                    split_mode="row" if layers == "row" else "layer",
                )
                speeds = [decode(runtime, n, depth) for n in options.parallel for depth in depths]
                for n in prompts:
                    prompt(runtime, n)
                    speeds.append(n / sorted(prompt(runtime, n) for _ in range(3))[1])
                places = ", ".join(f"{stage.n_layers} on {stage.device}" for stage in runtime.stages)
                cells = [places, str(runtime.n_batch), *(f"{speed:.0f}" for speed in speeds)]
                cells += [stages(runtime)] * options.stages
                runtime.close()
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
