"""How much of generating is Python: everything between two steps of machine code, sampler and text included. With
--structured, also where answers follow a form, whose masks are computed while the step runs.

python benchmarks/python_share.py model-q4_0.gguf -n 128 -t 2 --structured
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from ggpy import LLM, SamplingParams, StructuredOutputsParams
from ggpy.sampling.sampling_params import DEFAULTS

#: Forms that a model which says anything follows for long: a list of objects, a count of characters.
FORMS: dict[str, dict[str, Any]] = {
    "JSON schema": {
        "json": {
            "type": "array",
            "minItems": 1000,
            "items": {
                "type": "object",
                "properties": {"name": {"type": "string"}, "age": {"type": "integer"}, "kind": {"enum": ["a", "bc"]}},
                "required": ["name", "age", "kind"],
            },
        }
    },
    "regex": {"regex": "[A-Za-z0-9 ,.]{10000}"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="a GGUF file")
    parser.add_argument("-n", "--n-gen", type=int, default=128, metavar="N", help="generated tokens")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="default: as ggpy chooses")
    parser.add_argument("-r", "--rounds", type=int, default=5, metavar="N", help="samples of each")
    parser.add_argument("--structured", action="store_true", help="also answers that follow a form, 1 and 8 together")
    parser.add_argument(
        "--cpu-time",
        action="store_true",
        help="CPU time of all threads, masks' included, instead of the time that passes: for a machine that others "
        "use, with -t 1, as threads that wait for each other take CPU time too",
    )
    args = parser.parse_args()
    clock = time.process_time if args.cpu_time else time.perf_counter
    default: dict[str, Any] = {"max_tokens": args.n_gen, "seed": 1, "ignore_eos": True} | DEFAULTS
    rows = [
        ("greedy", 1, SamplingParams(temperature=0.0, max_tokens=args.n_gen)),
        ("default", 1, SamplingParams(**default)),
    ]
    if args.structured:
        rows.append(("default", 8, SamplingParams(**default)))
        forms = {name: StructuredOutputsParams(**form) for name, form in FORMS.items()}
        rows += [
            (name, n, SamplingParams(**default, structured_outputs=form))
            for n in (1, 8)
            for name, form in forms.items()
        ]
    print("| sampling | requests | machine code, ms a step | Python, ms a step | share |")
    print("|---|---|---|---|---|")
    with LLM(args.file, n_ctx=args.n_gen + 64, n_threads=args.threads, n_parallel=8 if args.structured else 1) as llm:
        team = llm.runtime.team
        assert team is not None
        inside, n_steps = 0.0, 0
        run = team.run

        def timed(*program: int) -> None:
            nonlocal inside, n_steps
            started = clock()
            run(*program)
            inside, n_steps = inside + clock() - started, n_steps + 1

        team.run = timed  # type: ignore[method-assign]
        samples: list[list[tuple[float, float]]] = [[] for _ in rows]
        for turn in range(args.rounds + 1):
            for (_, n_requests, params), found in zip(rows, samples, strict=True):
                prompts = [f"Once upon a time {i}" for i in range(n_requests)]
                llm.generate(prompts, SamplingParams(max_tokens=1))  # the prompts are no part of it
                inside, n_steps, started = 0.0, 0, clock()
                llm.generate(prompts, params)
                total = clock() - started
                if turn:
                    found.append((inside / n_steps * 1e3, (total - inside) / n_steps * 1e3))
    for (name, n_requests, _), found in zip(rows, samples, strict=True):
        code, python = (statistics.median(times) for times in zip(*found, strict=True))
        share = statistics.median(p / (p + c) for c, p in found)
        print(f"| {name} | {n_requests} | {code:.2f} | {python:.3f} | {share:.1%} |")


if __name__ == "__main__":
    main()
