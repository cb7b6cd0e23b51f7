"""Compiling in several processes at once: numba compiles one kernel at a time in a process, and a model needs a dozen.

Not `multiprocessing`, which would run the caller's main module again in every process.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, Queue

from ggpy.paths import cache_dir


def compiled_by_others(serve: str, names: Sequence[str], workers: int) -> Iterator[str]:
    """Have `workers` processes compile kernels, each the next one of `names`; yields the names as they are done.

    serve: what a process runs, Python code that reads names from standard input and writes each back once it is on
    disk. Raises OSError where processes do not start or end early.
    """
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "GGPY_CACHE": str(cache_dir()), "PYTHONPATH": path}
    waiting, done = list(reversed(names)), Queue[str]()

    def work() -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", serve]
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
            assert process.stdin
            assert process.stdout
            assert process.stderr
            while waiting:
                try:
                    name = waiting.pop()
                except IndexError:
                    break
                try:
                    process.stdin.write(name + "\n")
                    process.stdin.flush()
                    answer = process.stdout.readline().strip()
                except OSError:
                    answer = ""
                if answer != name:
                    said = process.stderr.read().strip().splitlines()
                    raise OSError(f"compiling {name} failed: {said[-1] if said else 'the process ended'}")
                done.put(name)
            process.stdin.close()

    with ThreadPoolExecutor(workers) as pool:
        jobs = [pool.submit(work) for _ in range(workers)]
        left = len(names)
        try:
            while left:
                try:
                    yield done.get(timeout=0.2)
                    left -= 1
                except Empty:
                    for job in jobs:
                        if job.done():
                            job.result()  # raises what stopped it
        finally:
            waiting.clear()
