"""Sentences embedded a second, by ggpy and by sentence-transformers' way on PyTorch, and how near their vectors are.

Both embed the same sentences of 5 to 40 words drawn from the checkpoint's own vocabulary, one after the other, with the
same number of threads. The other side is sentence-transformers where `--python` has it; else transformers with the same
steps: texts sorted by length, batches of 32, the mean of rows, length 1.

    ggpy convert -i all-MiniLM-L6-v2 -t f16 -o minilm.gguf
    python benchmarks/embedding.py minilm.gguf --folder all-MiniLM-L6-v2 --python /path/to/python-with-torch
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
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
embed(texts[:64])
began = time.perf_counter(); vectors = embed(texts); seconds = time.perf_counter() - began
np.save(out, vectors); print(json.dumps([name, seconds]))
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
    arguments = parser.parse_args()
    texts = sentences(arguments.folder, arguments.n)
    with tempfile.TemporaryDirectory() as place:
        given, out = Path(place) / "texts.json", Path(place) / "vectors.npy"
        given.write_text(json.dumps(texts))
        words = [arguments.python, "-c", OTHER, arguments.folder, given, out, arguments.threads]
        result = subprocess.run(list(map(str, words)), capture_output=True, text=True, check=True)
        name, seconds = json.loads(result.stdout.splitlines()[-1])
        theirs = np.load(out)
    print(f"{name:28}  {len(texts) / seconds:8.0f} sentences/s  {arguments.threads} threads")
    for model in arguments.model:
        with LLM(model, n_threads=arguments.threads) as llm:
            llm.embed(texts[:64])
            began = time.perf_counter()
            ids = [llm.tokenize(text) for text in texts]
            tokenized = time.perf_counter()
            vectors = np.stack([output.outputs.embedding for output in llm.embed(texts)])
            took = time.perf_counter() - tokenized
        cosine = (vectors * theirs).sum(1)
        print(
            f"ggpy {Path(model).name:23}  {len(texts) / took:8.0f} sentences/s  {seconds / took:5.2f} times  "
            f"{sum(map(len, ids)) / took:8.0f} tok/s  tokenizing {100 * (tokenized - began) / took:.1f}%  "
            f"least cosine {cosine.min():.6f}"
        )


if __name__ == "__main__":
    main()
