"""Decoding with more threads than there are CPUs, and beside other busy processes: how soon a thread that waits for the
others gives its CPU away.

python benchmarks/busy_threads.py model-q4_0.gguf -t 1 2 4 8 --busy 0 1 -r 7

Every number of threads has a process of its own, and they take turns: a round decodes with each once. Busy processes
count, which takes all the time they get. Printed are medians of tokens a second, and their share of the median with as
many threads as there are CPUs. `Runtime` runs as many threads as it is asked for; `ggpy run` no more than there are
CPUs.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from pathlib import Path

DECODE = """
import sys, time
from ggpy.gguf.file import GGUFFile
from ggpy.runtime.runtime import Runtime

path, n_threads, n_tokens = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
with GGUFFile(path) as file:
    runtime = Runtime(file, n_tokens + 8, n_threads)
    try:
        for _ in sys.stdin:
            for position in range(n_tokens + 4):
                if position == 4:  # which wakes the threads
                    began = time.perf_counter()
                runtime.step([position + 20], [0], [position], [0])
            print(n_tokens / (time.perf_counter() - began), flush=True)
    finally:
        runtime.close()
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="a GGUF file")
    parser.add_argument("-n", "--n-gen", type=int, default=16, metavar="N", help="generated tokens of a round")
    parser.add_argument("-t", "--threads", type=int, nargs="+", default=[1, 2, 4, 8], metavar="N")
    parser.add_argument("--busy", type=int, nargs="+", default=[0, 1], metavar="N", help="busy processes beside it")
    parser.add_argument("-r", "--rounds", type=int, default=5, metavar="N")
    parser.add_argument("--pythonpath", nargs="+", metavar="FOLDER", help="compare checkouts of ggpy")
    args = parser.parse_args()
    kinds = [(path, n) for n in args.threads for path in args.pythonpath or [""]]
    workers = []
    for path, n in kinds:
        command = [sys.executable, "-c", DECODE, str(args.file), str(n), str(args.n_gen)]
        environment = {**os.environ, **({"PYTHONPATH": path} if path else {})}
        pipe = subprocess.PIPE
        workers.append(subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True, env=environment))
    print("| busy processes | threads | tok/s | smallest – largest | of the median with as many threads as CPUs |")
    print("|---|---|---|---|---|")
    usual = min(args.threads, key=lambda n: abs(n - len(os.sched_getaffinity(0))))
    for n_busy in args.busy:
        busy = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(n_busy)]
        found: list[list[float]] = [[] for _ in kinds]
        try:
            for turn in range(args.rounds + 1):
                for worker, speeds in zip(workers, found, strict=True):
                    assert worker.stdin
                    assert worker.stdout
                    worker.stdin.write("\n")
                    worker.stdin.flush()
                    speed = float(worker.stdout.readline())
                    if turn:  # the first round packs the weights, and warms up
                        speeds.append(speed)
        finally:
            for process in busy:
                process.kill()
                process.wait()
        medians = [statistics.median(speeds) for speeds in found]
        for (path, n), speeds, median in zip(kinds, found, medians, strict=True):
            share = median / medians[kinds.index((path, usual))]
            cells = (
                n_busy,
                f"{n} {path}".strip(),
                f"{median:.1f}",
                f"{min(speeds):.1f} – {max(speeds):.1f}",
                f"{share:.2f}",
            )
            print("| " + " | ".join(map(str, cells)) + " |", flush=True)
    for worker in workers:
        assert worker.stdin
        worker.stdin.close()
        worker.wait()


if __name__ == "__main__":
    main()
