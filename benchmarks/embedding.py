"""Sentences embedded a second, by ggpy and by sentence-transformers on PyTorch, and how near their vectors are.

Both embed the same sentences of 5 to 40 words drawn from the checkpoint's own vocabulary, with the same number of
threads, in pieces by turns, so that what else the machine does is the same for both. The other side is
sentence-transformers where `--python` has it; else transformers with the same steps: texts sorted by length, batches of
32, the mean of rows, length 1.

    ggpy convert -i all-MiniLM-L6-v2 -t f16 -o minilm.gguf
    python benchmarks/embedding.py minilm.gguf --folder all-MiniLM-L6-v2 --python /path/to/python-with-torch
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np

from ggpy import LLM

OTHER = """
import sys, time, json, numpy as np, torch
folder, texts, out, threads = sys.argv[1], json.load(open(sys.argv[2])), sys.argv[3], int(sys.argv[4])
torch.set_num_threads(threads); torch.set_grad_enabled(False)
try:
    from sentence_transformers import SentenceTransformer
    name, model = "sentence-transformers", SentenceTransformer(folder, device="cpu")
    embed = lambda some: model.encode(some, batch_size=32, normalize_embeddings=True)
except ImportError:
    import transformers
    name = f"transformers {transformers.__version__}"
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    model = transformers.AutoModel.from_pretrained(folder, dtype=torch.float32).eval()
    def embed(some):
        order = sorted(range(len(some)), key=lambda i: -len(some[i]))
        found = [None] * len(some)
        for first in range(0, len(some), 32):
            places = order[first : first + 32]
            batch = tokenizer([some[i] for i in places], padding=True, truncation=True, return_tensors="pt")
            mask = batch["attention_mask"][..., None].float()
            rows = (model(**batch).last_hidden_state * mask).sum(1) / mask.sum(1)
            for i, row in zip(places, torch.nn.functional.normalize(rows).numpy()):
                found[i] = row
        return np.stack(found)
embed(texts[:64]); vectors = []
print(json.dumps(name), flush=True)
for line in sys.stdin:
    first, end = map(int, line.split())
    began = time.perf_counter(); vectors.append(embed(texts[first:end])); print(time.perf_counter() - began, flush=True)
np.save(out, np.concatenate(vectors))
"""


def sentences(folder: Path, n: int) -> list[str]:
    """Sentences of words of the checkpoint's vocabulary, the same each time."""
    vocabulary = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]["vocab"]
    words = [word for word in vocabulary if word.isascii() and word.isalpha() and len(word) > 2]
    rng = np.random.default_rng(0)
    return [" ".join(rng.choice(words, rng.integers(5, 41))) + "." for _ in range(n)]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="+", help="GGUF files of one checkpoint")
    parser.add_argument("--folder", type=Path, required=True, help="the checkpoint itself")
    parser.add_argument("--python", default=sys.executable, help="a Python that has torch")
    parser.add_argument("-n", type=int, default=10_000, help="sentences")
    parser.add_argument("-t", "--threads", type=int, default=1)
    parser.add_argument("--piece", type=int, default=1000, metavar="N", help="sentences before the other's turn")
    arguments = parser.parse_args()
    texts = sentences(arguments.folder, arguments.n)
    pieces = [(first, min(arguments.n, first + arguments.piece)) for first in range(0, arguments.n, arguments.piece)]
    with ExitStack() as stack:
        place = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        given, out = place / "texts.json", place / "vectors.npy"
        given.write_text(json.dumps(texts))
        words = [arguments.python, "-c", OTHER, arguments.folder, given, out, arguments.threads]
        other = subprocess.Popen(
            list(map(str, words)), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
        )
        stack.enter_context(other)
        assert other.stdin is not None
        assert other.stdout is not None
        name = json.loads(other.stdout.readline())
        models = {
            model: stack.enter_context(LLM(model, n_threads=arguments.threads, n_parallel=1))
            for model in arguments.model
        }
        took: dict[str, list[float]] = {which: [] for which in (name, *models)}
        vectors: dict[str, list[np.ndarray]] = {model: [] for model in models}
        for llm in models.values():
            llm.embed(texts[:64])
        for first, end in pieces:
            print(first, end, file=other.stdin, flush=True)
            took[name].append(float(other.stdout.readline()))
            for model, llm in models.items():
                began = time.perf_counter()
                vectors[model] += [output.outputs.embedding for output in llm.embed(texts[first:end])]
                took[model].append(time.perf_counter() - began)
        other.stdin.close()
        other.wait()
        theirs = np.load(out)
        n_tokens, tokenizing = _tokenizing(next(iter(models.values())), texts)
    print(f"{name:28}  {arguments.n / sum(took[name]):8.0f} sentences/s  {arguments.threads} threads")
    for model in arguments.model:
        seconds = sum(took[model])
        times = statistics.median(a / b for a, b in zip(took[name], took[model], strict=True))
        least = (np.stack(vectors[model]) * theirs).sum(1).min()
        print(
            f"ggpy {Path(model).name:23}  {arguments.n / seconds:8.0f} sentences/s  {times:5.2f} times  "
            f"{n_tokens / seconds:8.0f} tok/s  tokenizing {tokenizing / seconds:.1%}  least cosine {least:.6f}"
        )


def _tokenizing(llm: LLM, texts: list[str]) -> tuple[int, float]:
    """Tokens of texts, and the seconds that finding them takes one thread."""
    began = time.perf_counter()
    n_tokens = sum(len(llm.tokenize(text)) for text in texts)
    return n_tokens, time.perf_counter() - began


if __name__ == "__main__":
    main()
