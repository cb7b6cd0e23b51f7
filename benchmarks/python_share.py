"""How much of generating a token is Python: everything between two steps of machine code, sampler and text included.

python benchmarks/python_share.py model-q4_0.gguf -n 128 -t 2
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path

from ggpy import LLM, SamplingParams


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="a GGUF file")
    parser.add_argument("-n", "--n-gen", type=int, default=128, metavar="N", help="generated tokens")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="default: as ggpy chooses")
    parser.add_argument("-r", "--rounds", type=int, default=5, metavar="N", help="samples of each")
    args = parser.parse_args()
    print("| sampling | machine code, ms a token | Python, ms a token | share |")
    print("|---|---|---|---|")
    with LLM(args.file, n_ctx=args.n_gen + 64, n_threads=args.threads, n_parallel=1) as llm:
        team = llm.runtime.team
        assert team is not None
        inside = 0.0
        run = team.run

        def timed(*program: int) -> None:
            nonlocal inside
            started = time.perf_counter()
            run(*program)
            inside += time.perf_counter() - started

        team.run = timed  # type: ignore[method-assign]
        greedy = SamplingParams(temperature=0.0, max_tokens=args.n_gen)
        default = SamplingParams(max_tokens=args.n_gen, seed=1)
        for name, params in (("greedy", greedy), ("default", default)):
            code, python = [], []
            for turn in range(args.rounds + 1):
                inside, started = 0.0, time.perf_counter()
                answer = llm.generate("Once upon a time", params)[0].outputs[0]
                total, n = time.perf_counter() - started, len(answer.token_ids)
                if turn:
                    code.append(inside / n * 1e3)
                    python.append((total - inside) / n * 1e3)
            share = statistics.median(p / (p + c) for p, c in zip(python, code, strict=True))
            cells = (name, f"{statistics.median(code):.2f}", f"{statistics.median(python):.3f}", f"{share:.1%}")
            print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
