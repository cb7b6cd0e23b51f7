"""Speculation beside none: tokens a second of answers that repeat their prompt, and of those that do not.

    python benchmarks/speculation.py SmolLM2-135M-Instruct.Q4_1.gguf -n 160 -r 5
    python benchmarks/speculation.py large.gguf --draft small.gguf
    python benchmarks/speculation.py model.gguf --slope 0.085 -r 1

Look-up, or a small model with --draft. Two engines over one model, with and without, answer the same prompt at the same
time in steps by turns, the one that is behind first, so that whatever else the machine does slows both alike. Each
answer is begun by an engine that has seen nothing yet, as `ggpy run` does. The texts must be equal. Rates are those of
all rounds together; the ratio is the median of the rounds', their least and greatest beside it.

With --slope no clock is asked: a step of one token takes 1, and each further token that share more, as if a machine did
nothing else. Rates are then tokens a step of one, and the same wherever the texts are.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

from ggpy import LLM, SamplingParams
from ggpy.engine.drafts import StepTimes
from ggpy.engine.engine import Engine
from ggpy.engine.request import Request
from ggpy.engine.speculative import SpeculativeConfig
from ggpy.runtime.runtime import Runtime

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


class OneSlot:
    """One slot of a runtime, as a runtime that has no other."""

    n_slots = 1

    def __init__(self, runtime: Runtime, slot: int) -> None:
        self._runtime, self._slot = runtime, slot

    def __getattr__(self, name: str) -> Any:
        return getattr(self._runtime, name)

    def step(self, tokens: Any, slots: Any, positions: Any, outputs: Any, n_generated: int = 0) -> Any:
        return self._runtime.step(tokens, [self._slot] * len(slots), positions, outputs, n_generated)

    def checkpoint(self, slot: int, n: int) -> Any:
        return self._runtime.checkpoint(self._slot, n)

    def restore(self, slot: int, kept: Any, n: int) -> None:
        self._runtime.restore(self._slot, kept, n)


class FixedTimes(StepTimes):
    """The times of steps of which each further token costs `slope` of one."""

    known = True  # type: ignore[assignment]

    def __init__(self, slope: float) -> None:
        super().__init__()
        self.slope = slope

    def estimate(self, n_tokens: int) -> float:
        return 1 + self.slope * (n_tokens - 1)


class Writer:
    """An engine that writes one answer, and the seconds that it takes from the first token to the last; or what they
    would be by `times`."""

    def __init__(
        self,
        llm: LLM,
        slot: int,
        config: SpeculativeConfig | None,
        ids: list[int],
        params: Any,
        times: FixedTimes | None,
    ) -> None:
        small: Any = None
        if config is not None and config.method == "draft_model":
            assert llm.engine.speculator is not None
            small = OneSlot(llm.engine.speculator.drafter.runtime, 0)  # type: ignore[attr-defined]
        runtime: Any = OneSlot(llm.runtime, slot)
        self.engine = Engine(runtime, llm.tokenizer, llm.runtime.chain_for, speculative=config, draft=small)
        self.request: Request = self.engine.request(ids, params)
        self.engine.add(self.request)
        self.seconds, self.times = 0.0, times
        if times is not None and self.engine.speculator is not None:
            self.engine.speculator.times = times

    def step(self) -> None:
        writes, before, began = self.request.n_chosen > 0, self.engine.n_evaluated, time.perf_counter()
        self.engine.step()
        seconds, n = time.perf_counter() - began, self.engine.n_evaluated - before
        self.seconds += writes * (seconds if self.times is None else self.times.estimate(n))


def together(
    llm: LLM, config: SpeculativeConfig, ids: list[int], params: Any, first: int, times: FixedTimes | None
) -> list[Writer]:
    """An answer written without and with speculation."""
    writers = [Writer(llm, 0, None, ids, params, times), Writer(llm, 1, config, ids, params, times)]
    while going := [writer for writer in writers if not writer.request.finished]:
        min(going, key=lambda w: (w.request.n_chosen, w is writers[first])).step()
    if writers[0].request.tokens != writers[1].request.tokens:
        raise SystemExit("the texts differ")
    return writers


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, metavar="FILE", help="a GGUF file of a chat model")
    parser.add_argument("--draft", type=Path, metavar="FILE", help="a small model that drafts, instead of look-up")
    parser.add_argument("-n", "--n-gen", type=int, default=160, metavar="N", help="most generated tokens")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="default: as ggpy chooses")
    parser.add_argument("-r", "--rounds", type=int, default=5, metavar="N", help="pairs of each")
    parser.add_argument("--slope", type=float, metavar="X", help="ask no clock: the cost of a further token, in steps")
    parser.add_argument("tasks", nargs="*", metavar="TASK", help=f"behind FILE; default: {', '.join(PROMPTS)}")
    args = parser.parse_args()
    if args.slope is not None and args.draft:
        parser.error("--slope knows no costs of a small model; leave --draft out")
    times = FixedTimes(args.slope) if args.slope is not None else None
    config = SpeculativeConfig("draft_model", model=args.draft) if args.draft else SpeculativeConfig()
    print("| task | sampling | tokens | without, tok/s | with, tok/s | ratio | accepted of drafted |")
    print("|---|---|---|---|---|---|---|")
    options = {"n_ctx": 2048, "n_threads": args.threads, "n_parallel": 2, "cache_ram": 0, "draft_model": args.draft}
    with LLM(args.file, **options) as llm:
        for task in args.tasks or PROMPTS:
            ids = llm.tokenize_chat(llm.render_chat([{"role": "user", "content": PROMPTS[task]}]))
            for sampling, changes in (("greedy", {"temperature": 0.0}), ("default", {"seed": 1})):
                params = SamplingParams(max_tokens=args.n_gen, **changes).resolved(llm.sampling_defaults)
                pairs = [together(llm, config, ids, params, turn % 2, times) for turn in range(args.rounds + 1)][1:]
                n = pairs[0][0].request.n_chosen
                without, using = ((n - 1) * len(pairs) / sum(pair[i].seconds for pair in pairs) for i in (0, 1))
                ratios = [plain.seconds / drafting.seconds for plain, drafting in pairs]
                timings = pairs[-1][1].request.timings
                cells = [
                    task, sampling, str(n), f"{without:.2f}", f"{using:.2f}",
                    f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})",
                    f"{timings.n_accepted} of {timings.n_drafted}",
                ]  # fmt: skip
                print("| " + " | ".join(cells) + " |", flush=True)


if __name__ == "__main__":
    main()
