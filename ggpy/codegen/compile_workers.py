"""Compiling in several processes at once: numba compiles one kernel at a time in a process, and a model needs a dozen.

Not `multiprocessing`, which would run the caller's main module again in every process.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from queue import Empty, Queue

from ggpy.codegen.kernel_files import is_kept, temporary, why_not_kept
from ggpy.notes import Notify, Passing
from ggpy.paths import cache_dir


def compile_all(
    names: Sequence[str],
    target: str,
    obtain: Callable[[str], object],
    serve: str,
    workers: int,
    cache: Path,
    notify: Notify,
) -> None:
    """Compile kernels for `target`, and say so: with `workers` processes that run `serve` (`compiled_by_others`), or
    here by `obtain` where one worker is enough or processes cannot be had. cache: the folder they go to
    (`kernel_files.folder`), a temporary one if it must be."""
    start, n = time.perf_counter(), len(names)
    kept = is_kept(cache)
    again = "this happens once" if kept else f"every run does, as {why_not_kept(cache)}"
    notify(f"compiling {n} kernel{'s' * (n > 1)} for {target}; {again}")
    done = 0
    if workers > 1:
        with contextlib.suppress(OSError):
            for name in compiled_by_others(serve, names, workers, cache_dir() if kept else temporary()):
                done += 1
                notify(Passing(f"compiled kernel {done} of {n}: {name}"))
    if done < n:
        for place, name in enumerate(names, 1):
            notify(Passing(f"compiling kernel {place} of {n}: {name}"))
            obtain(name)
    notify(f"compiled in {time.perf_counter() - start:.1f} s")


def compiled_by_others(serve: str, names: Sequence[str], workers: int, cache: Path) -> Generator[str, None, None]:
    """Have `workers` processes compile kernels, each the next one of `names`; yields the names as they are done.

    serve: what a process runs, Python code that reads names from standard input and writes each back once it is on
    disk; cache: what is its GGPY_CACHE. Raises OSError where processes do not start or end early. None outlives the
    iteration, whatever ends it.
    """
    path = os.pathsep.join(p for p in sys.path if p)
    environment = {**os.environ, "GGPY_CACHE": str(cache), "PYTHONPATH": path}
    waiting, done = deque(names), Queue[str]()
    processes: list[subprocess.Popen[str]] = []

    def work() -> None:
        pipe = subprocess.PIPE
        command = [sys.executable, "-c", serve]
        with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True, env=environment) as process:
            processes.append(process)
            assert process.stdin
            assert process.stdout
            assert process.stderr
            while True:
                try:
                    name = waiting.popleft()
                except IndexError:
                    process.stdin.close()
                    return
                answer = ""
                with contextlib.suppress(OSError):
                    process.stdin.write(name + "\n")
                    process.stdin.flush()
                    answer = process.stdout.readline().strip()
                if answer != name:
                    said = process.stderr.read().strip().splitlines()
                    raise OSError(f"compiling {name} failed: {said[-1] if said else 'the process ended'}")
                done.put(name)

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
            if left:  # interrupted: Ctrl-C must not wait for what is being compiled
                waiting.clear()
                for process in processes:
                    process.kill()
