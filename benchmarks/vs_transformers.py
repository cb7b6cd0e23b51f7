"""ggpy beside transformers on one GGUF file: greedy text, and the logits of every step.

transformers loads the same file (`gguf_file=`), dequantized to float32, and continues each prompt greedily. ggpy then
reads that same sequence of tokens, and its logits are compared step by step: what remains is the engine's own rounding
(8-bit activations and a half-precision cache, where the file is quantized). ggpy's own greedy answer is shown beside.

    pip install torch transformers
    python benchmarks/vs_transformers.py model.gguf -n 48 --json result.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ggpy import LLM, SamplingParams

# (name, text, whether it is a message to answer rather than a text to continue)
PROMPTS = [
    ("english", "The capital of France is", False),
    ("english", "Once upon a time, in a small village by the sea,", False),
    ("chinese", "中国的首都是北京，法国的首都是", False),
    ("code", "def fibonacci(n):\n    ", False),
    ("numbers", "1, 2, 3, 4,", False),
    ("chat", "What is the capital of France?", True),
    ("chat", "Write one sentence about the sea.", True),
    ("chat", "用一句话介绍北京。", True),
    ("chat", "Write a Python function that reverses a string.", True),
]


@dataclass
class Comparison:
    """One prompt. Steps are the tokens that transformers generated; both engines saw the same ones before each."""

    name: str
    prompt: str
    n_prompt: int
    n_steps: int
    same_greedy_tokens: int  # how many of ggpy's own greedy tokens come before the first that differs
    same_argmax: int  # steps with the same likeliest token
    top5_common: float  # of the five likeliest tokens, how many both name; the mean over steps
    largest_margin: float  # where the likeliest differs: how much more transformers gave to its own, in logits
    rms_error: float  # root mean square of the difference of centred logits over that of the logits themselves
    kl: float  # Kullback-Leibler divergence of ggpy from transformers, nats a step
    text: str
    reference_text: str


def compare(llm: LLM, model: Any, name: str, prompt: str, chat: bool, n: int) -> Comparison:
    import torch

    if chat:
        ids = llm.tokenize_chat(llm.render_chat([{"role": "user", "content": prompt}]))
    else:
        ids = llm.tokenize(prompt)
    end = sorted(llm.tokenizer.eog)
    with torch.inference_mode():
        answer = model.generate(
            torch.tensor([ids]),
            attention_mask=torch.ones(1, len(ids), dtype=torch.long),
            do_sample=False,
            max_new_tokens=n,
            eos_token_id=end,
            pad_token_id=end[0],
            repetition_penalty=1.0,
        )[0].tolist()
        theirs = model(torch.tensor([answer])).logits[0].float().numpy()
    steps = slice(len(ids) - 1, len(answer) - 1)  # the logits that chose each generated token
    theirs, ours = theirs[steps], llm.logits(answer)[steps].copy()
    # Files may pad the vocabulary to different lengths.
    width = min(theirs.shape[1], ours.shape[1])
    theirs, ours = theirs[:, :width].astype(np.float64), ours[:, :width].astype(np.float64)

    centred = [x - x.mean(axis=1, keepdims=True) for x in (theirs, ours)]
    logp, logq = (x - np.log(np.exp(x - x.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True)) for x in centred)
    logp, logq = logp - centred[0].max(axis=1, keepdims=True), logq - centred[1].max(axis=1, keepdims=True)
    best, chosen = theirs.argmax(axis=1), ours.argmax(axis=1)
    rows = np.arange(len(best))
    top = [np.argpartition(x, -5, axis=1)[:, -5:] for x in (theirs, ours)]
    common = [len(set(a) & set(b)) for a, b in zip(*top, strict=True)]

    own = llm.generate(prompt_token_ids=ids, sampling_params=SamplingParams(temperature=0, max_tokens=n))[0].outputs[0]
    reference = answer[len(ids) :]
    same = next((i for i, (a, b) in enumerate(zip(own.token_ids, reference, strict=False)) if a != b), None)
    return Comparison(
        name=name,
        prompt=prompt,
        n_prompt=len(ids),
        n_steps=len(best),
        same_greedy_tokens=min(len(own.token_ids), len(reference)) if same is None else same,
        same_argmax=int((best == chosen).sum()),
        top5_common=float(np.mean(common)),
        largest_margin=float((theirs[rows, best] - theirs[rows, chosen]).max()),
        rms_error=float(np.sqrt(((centred[1] - centred[0]) ** 2).mean() / (centred[0] ** 2).mean())),
        kl=float((np.exp(logp) * (logp - logq)).sum(axis=1).mean()),
        text=own.text,
        reference_text=llm.detokenize(reference, skip_special=True),
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("file", type=Path, help="GGUF file of an architecture that transformers can load from GGUF")
    parser.add_argument("-n", type=int, default=32, metavar="N", help="tokens to generate for each prompt")
    parser.add_argument("-t", "--threads", type=int, metavar="N")
    parser.add_argument("-p", "--prompt", action="append", metavar="TEXT", help="a text to continue, in place of ours")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there")
    args = parser.parse_args()

    os.environ.setdefault("HF_HUB_OFFLINE", "1")  # everything is in the file
    try:
        import torch
        from transformers import AutoModelForCausalLM
    except ImportError as error:
        sys.exit(f"error: {error.name} is not installed; run: pip install torch transformers")
    if args.threads:
        torch.set_num_threads(args.threads)
    path = args.file.resolve()
    model = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name, dtype=torch.float32).eval()

    prompts = [("text", text, False) for text in args.prompt] if args.prompt else PROMPTS
    results = []
    with LLM(path, n_ctx=1024, n_threads=args.threads, n_parallel=1) as llm:
        if llm.template is None:
            prompts = [p for p in prompts if not p[2]]
        print("| prompt | steps | same greedy | same argmax | top-5 in common | largest margin | rms error | KL |")
        print("|---|---|---|---|---|---|---|---|")
        for name, prompt, chat in prompts:
            r = compare(llm, model, name, prompt, chat, args.n)
            results.append(r)
            print(
                f"| {name}: {prompt[:24]!r} | {r.n_steps} | {r.same_greedy_tokens} | {r.same_argmax} "
                f"| {r.top5_common:.2f} | {r.largest_margin:.3f} | {r.rms_error:.4f} | {r.kl:.5f} |",
                flush=True,
            )
    for r in results:
        print(f"\n{r.name}: {r.prompt!r}\n  ggpy          {r.text!r}\n  transformers  {r.reference_text!r}")
    steps = sum(r.n_steps for r in results)
    print(f"\nsame argmax in {sum(r.same_argmax for r in results)} of {steps} steps of {path.name}")
    if args.json:
        args.json.write_text(json.dumps([asdict(r) for r in results], indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
