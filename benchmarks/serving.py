"""Answers to requests that arrive in time, as a server sees them: waits for the first token and between tokens.

python benchmarks/serving.py model-q4_0.gguf --rates 0.5,1,2 --requests 40 --parallel 8
python benchmarks/serving.py model-q4_0.gguf --repeat 4096 -c 8192

Arrivals are Poisson's, at each of the rates. Of the prompts some are long and most short, and half begin with the same
text. All of it follows from --seed. The engine is asked in this process, so that no connection is measured. --repeat
measures another thing: the first token of one prompt, and of the same prompt again.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ggpy import LLM, AsyncLLM, SamplingParams
from ggpy.engine.request import Request

TEXT = (
    "the river runs through a city of old stone and new glass where people read write trade and sing until late in the"
    " evening while boats carry bread salt wine letters and news from one bank to the other under seven bridges"
)
PERCENTILES = (50, 90, 99)
HEADER = (
    "| requests/s | done/s | prompt tok/s | reused | answer tok/s | first token p50 / p90 / p99, ms |"
    " between tokens p50 / p90 / p99, ms | longest, ms | a chunk, ms | longest in chunks | longest step, ms |"
)


@dataclass(frozen=True)
class Arrival:
    """A request: when it comes, in seconds from the start, its prompt's token ids, and how many tokens it wants."""

    at: float
    prompt: list[int]
    n_tokens: int


@dataclass
class Stream:
    """One answer as its caller saw it, in seconds: the wait for the first text, and each wait after that."""

    first: float
    waits: list[float]
    n_prompt: int
    n_reused: int
    n_tokens: int


@dataclass(frozen=True)
class Result:
    """All of one rate. Times in milliseconds; chunk_ms: a full chunk of a prompt alone, measured just before; chunks:
    the longest wait between tokens, in such chunks; step_ms: the longest step of the engine during the run, which tells
    a wait through several steps from one through a slow one."""

    rate: float
    requests: int
    seconds: float
    prompt_tok_s: float
    reused_share: float
    answer_tok_s: float
    first_ms: list[float]
    between_ms: list[float]
    longest_ms: float
    chunk_ms: float
    chunks: float
    step_ms: float


def text_ids(llm: LLM, rng: np.random.Generator, n: int) -> list[int]:
    """n token ids of a text that no other call gives."""
    words = TEXT.split()
    text = " ".join(words[i] for i in rng.integers(0, len(words), n + 8))
    return llm.tokenize(text)[:n]


def arrivals(llm: LLM, rate: float, n: int, seed: int) -> list[Arrival]:
    """n requests at a rate a second: three of ten have 256 to 768 tokens of their own, the others 16 to 64; before that
    half of them have 256 tokens in common."""
    rng = np.random.default_rng(seed)
    shared = text_ids(llm, rng, 256)
    at, found = 0.0, []
    for _ in range(n):
        at += rng.exponential(1 / rate)
        low, high = (256, 769) if rng.random() < 0.3 else (16, 65)
        own = text_ids(llm, rng, int(rng.integers(low, high)))
        found.append(Arrival(at, shared + own if rng.random() < 0.5 else own, int(rng.integers(16, 65))))
    return found


async def ask(llm: AsyncLLM, arrival: Arrival, start: float) -> Stream:
    """Wait for the moment, ask, and note when text comes."""
    await asyncio.sleep(max(0.0, start + arrival.at - time.perf_counter()))
    last = start + arrival.at  # a loop that wakes late keeps the caller waiting, too
    params = SamplingParams(temperature=0, max_tokens=arrival.n_tokens, ignore_eos=True)
    waits = []
    async for output in llm.generate(arrival.prompt, params):
        now = time.perf_counter()
        waits.append(now - last)
        last, answer = now, output.outputs[0]
    timings = answer.timings
    return Stream(waits[0], waits[1:], len(arrival.prompt), timings.n_reused, timings.n_decode)


async def measure(llm: AsyncLLM, rate: float, requests: Sequence[Arrival], chunk: float) -> Result:
    """Send requests as they arrive, and sum up what their callers saw. chunk: seconds of a full chunk of a prompt."""
    steps, step = [], llm.llm.engine.step

    def timed() -> list[Request]:
        begun = time.perf_counter()
        advanced = step()
        steps.append(time.perf_counter() - begun)
        return advanced

    llm.llm.engine.step = timed  # type: ignore[method-assign]
    start = time.perf_counter()
    streams = await asyncio.gather(*(ask(llm, arrival, start) for arrival in requests))
    seconds = time.perf_counter() - start
    llm.llm.engine.step = step  # type: ignore[method-assign]
    waits = [wait for stream in streams for wait in stream.waits]
    n_prompt = sum(stream.n_prompt for stream in streams)
    return Result(
        rate,
        len(streams),
        round(seconds, 2),
        round(n_prompt / seconds, 1),
        round(sum(stream.n_reused for stream in streams) / n_prompt, 3),
        round(sum(stream.n_tokens for stream in streams) / seconds, 1),
        [round(float(p) * 1e3, 1) for p in np.percentile([stream.first for stream in streams], PERCENTILES)],
        [round(float(p) * 1e3, 1) for p in np.percentile(waits, PERCENTILES)],
        round(max(waits) * 1e3, 1),
        round(chunk * 1e3, 1),
        round(max(waits) / chunk, 2),
        round(max(steps) * 1e3, 1),
    )


def chunk_time(llm: LLM, seed: int) -> float:
    """Seconds that a full step of a prompt takes, as nothing else runs: the median of three."""
    rng = np.random.default_rng(seed)
    once = SamplingParams(temperature=0, max_tokens=1)
    # The first token is another each time, so that the cache holds nothing of them.
    prompts = [[(seed + i) % llm.n_vocab, *text_ids(llm, rng, llm.runtime.n_batch - 1)] for i in range(4)]
    return statistics.median([llm.generate([ids], once)[0].outputs[0].timings.prompt_s for ids in prompts][1:])


@dataclass(frozen=True)
class Repeated:
    """The wait for the first token of a prompt, and of the same prompt again, in milliseconds; evaluated: how many
    tokens of the prompt were evaluated then."""

    n_prompt: int
    cold_ms: float
    again_ms: float
    evaluated: int

    @property
    def share(self) -> float:
        return self.again_ms / self.cold_ms


def repeated(llm: LLM, n: int, seed: int) -> Repeated:
    """A prompt of n tokens twice, each with an answer of 16; the medians of three such prompts, after one more."""
    params = SamplingParams(temperature=0, max_tokens=16, ignore_eos=True)
    waits = []
    for i in range(4):
        ids = [(seed + i) % llm.n_vocab, *text_ids(llm, np.random.default_rng(seed + i), n - 1)]
        pair = [llm.generate([ids], params)[0].outputs[0].timings for _ in range(2)]
        waits.append([timings.first_token_s for timings in pair])
    cold, again = np.median(waits[1:], 0) * 1e3
    return Repeated(n, round(float(cold), 1), round(float(again), 2), pair[1].n_prompt)


def said(found: Repeated) -> str:
    return (
        f"{found.n_prompt} tokens: the first token after {found.cold_ms:.0f} ms, again after {found.again_ms:.1f} ms "
        f"({found.share:.2%}), {found.evaluated} evaluated"
    )


def row(result: Result) -> str:
    cells = [
        f"{result.rate:g}",
        f"{result.requests / result.seconds:.2f}",
        f"{result.prompt_tok_s:.0f}",
        f"{result.reused_share:.0%}",
        f"{result.answer_tok_s:.0f}",
        " / ".join(f"{ms:.0f}" for ms in result.first_ms),
        " / ".join(f"{ms:.0f}" for ms in result.between_ms),
        f"{result.longest_ms:.0f}",
        f"{result.chunk_ms:.0f}",
        f"{result.chunks:.2f}",
        f"{result.step_ms:.0f}",
    ]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="a GGUF file")
    parser.add_argument("--rates", default="0.5,1,2", metavar="X,…", help="requests a second, one run each")
    parser.add_argument("--requests", type=int, default=40, metavar="N", help="of each rate")
    parser.add_argument("--parallel", type=int, default=8, metavar="N", help="answered together")
    parser.add_argument("-c", "--ctx-size", type=int, default=2048, metavar="N", help="context of each")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="default: as ggpy chooses")
    parser.add_argument("--device", default="cpu", metavar="NAME")
    parser.add_argument("--seed", type=int, default=1, metavar="N")
    parser.add_argument("--repeat", type=int, metavar="N", help="a prompt of N tokens twice, and nothing else")
    parser.add_argument("--json", action="store_true", help="results as JSON")
    args = parser.parse_args()
    rates = [float(rate) for rate in args.rates.split(",")]
    options: dict[str, Any] = {"n_ctx": args.ctx_size, "n_threads": args.threads, "n_parallel": args.parallel}
    with LLM(args.file, device=args.device, **options) as llm:
        if args.repeat:
            found = repeated(llm, args.repeat, args.seed)
            print(json.dumps(asdict(found)) if args.json else said(found))
            return
        if not args.json:
            print(f"{args.parallel} together, chunks of {llm.runtime.n_batch} tokens\n")
            print(HEADER)
            print("|" + "---|" * 11)
        results = []
        served = AsyncLLM(llm=llm)
        for i, rate in enumerate(rates):
            # Texts of its own for each rate: the cache still holds those of the one before.
            requests = arrivals(llm, rate, args.requests, args.seed + i)
            chunk = chunk_time(llm, args.seed + 1000 + i)
            results.append(asyncio.run(measure(served, rate, requests, chunk)))
            if not args.json:
                print(row(results[-1]), flush=True)
        served.close()
        if args.json:
            about = {"file": args.file.name, "parallel": args.parallel, "n_batch": llm.runtime.n_batch}
            print(json.dumps({**about, "results": [asdict(r) for r in results]}, indent=1))


if __name__ == "__main__":
    main()
