"""Speculation by look-up beside none: tokens a second of answers that repeat their prompt, and of those that do not.

    python benchmarks/speculation.py SmolLM2-135M-Instruct.Q4_1.gguf -n 160 -r 5

One model with speculation and one without answer the same prompts, taking turns, and every pair of texts is compared:
they must be equal. Ratios are the medians of pairs.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

from ggpy import LLM, SamplingParams

CODE = '''def total(prices, rates):
    """Sum up prices, each converted by its rate."""
    result = 0.0
    for name, price in prices.items():
        if name not in rates:
            raise KeyError(f"no rate for {name}")
        result += price * rates[name]
    return round(result, 2)


def largest(prices, rates):
    """The name with the largest converted price."""
    return max(prices, key=lambda name: prices[name] * rates[name])
'''
TEXT = (
    "The harbour lies on the north side of the island, behind a wall that fishermen built of stones from the old fort."
    " Boats leave at dawn and return before noon, when the wind turns. In winter the wall is closed with beams."
)
#: What is asked, and whether the answer repeats it.
PROMPTS = {
    "repeat code": f"Repeat this code exactly:\n\n```python\n{CODE}```",
    "edit code": "Rename the parameter rates to factors everywhere in this code, and change nothing else:"
    f"\n\n```python\n{CODE}```",
    "repeat text": f"Repeat this text exactly: {TEXT}",
    "free text": "Write a short story about a lighthouse keeper who finds a letter.",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="a GGUF file of a chat model")
    parser.add_argument("-n", "--n-gen", type=int, default=160, metavar="N", help="most generated tokens")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="default: as ggpy chooses")
    parser.add_argument("-r", "--rounds", type=int, default=5, metavar="N", help="pairs of each")
    args = parser.parse_args()
    print("| task | sampling | tokens | without, tok/s | with, tok/s | ratio | accepted of drafted |")
    print("|---|---|---|---|---|---|---|")
    options = {"n_ctx": 2048, "n_threads": args.threads, "n_parallel": 1, "cache_ram": 0}
    with LLM(args.file, **options) as plain, LLM(args.file, speculative="ngram", **options) as drafting:
        for task, prompt in PROMPTS.items():
            for sampling, changes in (("greedy", {"temperature": 0.0}), ("default", {"seed": 1})):
                params = SamplingParams(max_tokens=args.n_gen, **changes)
                rates: dict[str, list[float]] = {"plain": [], "drafting": []}
                for turn in range(args.rounds + 1):
                    found = {}
                    pair = [("plain", plain), ("drafting", drafting)]
                    for name, llm in pair if turn % 2 else pair[::-1]:
                        (output,) = llm.chat([{"role": "user", "content": prompt}], params)
                        found[name] = output.outputs[0]
                        if turn:
                            rates[name].append(output.outputs[0].timings.decode_rate)
                    if found["plain"].token_ids != found["drafting"].token_ids:
                        raise SystemExit(f"{task}: the texts differ")
                ratios = [after / before for before, after in zip(rates["plain"], rates["drafting"], strict=True)]
                timings = found["drafting"].timings
                cells = [
                    task, sampling, str(len(found["plain"].token_ids)), f"{statistics.median(rates['plain']):.1f}",
                    f"{statistics.median(rates['drafting']):.1f}", f"{statistics.median(ratios):.2f}",
                    f"{timings.n_accepted} of {timings.n_drafted}",
                ]  # fmt: skip
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
