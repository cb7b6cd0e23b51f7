"""What speed costs: how far ggpy's and llama.cpp's probabilities stray, type by type, on the same files and text.

Each type's file is made from one F16, BF16 or F32 file by llama.cpp's own quantizer, and kept for the next time. Both
engines read the same English, Chinese and code, and their logits are held against two references, which the plain
numpy model of the tests computes:

    original    the file that the types were made from: what quantizing and computing cost together
    same file   the quantized weights, computed exactly: what the engine alone adds (8-bit activations, half-precision
                cache, float32 sums)

    pip install llama-cpp-python
    python benchmarks/quality.py model-f16.gguf --files /tmp/types --types Q4_0,Q8_0,Q4_K_M,Q6_K --json quality.json
"""

from __future__ import annotations

import argparse
import json
import os
import sys
from pathlib import Path
from typing import Any

import numpy as np

from ggpy import GGUFFile
from ggpy.cli.terminal import note
from ggpy.errors import GGPYError
from ggpy.runtime import Runtime
from ggpy.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "tests"))
from reference import ReferenceModel

PIECE = 512  # tokens of a file's text read as one
TYPES = ("F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K_M", "Q5_K_M", "Q6_K")
TEXTS = {
    "english": """The harbour was quiet that morning. A thin fog lay over the water, and the boats that usually left
before sunrise were still tied to the pier. Old Martin sat on an upturned crate and mended a net, as he had done every
spring for forty years. "The weather will turn by noon," he said, without looking up. Nobody answered. In the village
behind him the bakery had just opened its doors, and the smell of warm bread drifted down the narrow street. A girl
with a red scarf came running along the quay, waving a letter. It had taken eleven days to cross the sea, and the ink
on the envelope had faded, but the name was still easy to read. Water boils at a lower temperature on a high mountain,
because the pressure of the air decreases with height; this is why cooking takes longer there.""",
    "chinese": """北京是中国的首都，也是一座有三千多年历史的城市。春天的时候，公园里的桃花和海棠都开了，
许多人带着孩子去散步。图书馆里很安静，学生们坐在窗边看书，偶尔抬起头来望一望外面的天空。科学家们发现，经常运动的人睡得更好，学习新知识也更快。
机器学习是人工智能的一个分支，它让计算机从数据中找出规律。晚上，奶奶给我们讲了一个关于月亮和兔子的故事。""",
    "code": '''from collections import Counter


def most_common_words(path: str, n: int = 10) -> list[tuple[str, int]]:
    """Return the n most frequent words of a text file, ignoring case."""
    counts: Counter[str] = Counter()
    with open(path, encoding="utf-8") as file:
        for line in file:
            for word in line.lower().split():
                word = word.strip(".,;:!?")
                if word:
                    counts[word] += 1
    return counts.most_common(n)


class Stack:
    def __init__(self):
        self.items = []

    def push(self, item):
        self.items.append(item)

    def pop(self):
        if not self.items:
            raise IndexError("pop from an empty stack")
        return self.items.pop()
''',
}


def log_softmax(logits: np.ndarray) -> np.ndarray:
    """float64 [n, n_vocab] from logits of any float type."""
    x = logits.astype(np.float64)
    x -= x.max(-1, keepdims=True)
    return x - np.log(np.exp(x).sum(-1, keepdims=True))


def divergence(reference: np.ndarray, found: list[np.ndarray], rows: int = 16) -> np.ndarray:
    """Kullback-Leibler divergence of each of `found` from `reference`, nats: float64 [len(found), n], from logits
    [n, n_vocab]; so many rows at a time as stay in the CPU's cache."""
    out = np.empty((len(found), len(reference)))
    for start in range(0, len(reference), rows):
        piece = slice(start, start + rows)
        log_p = log_softmax(reference[piece])
        p = np.exp(log_p)
        for i, logits in enumerate(found):
            out[i, piece] = (p * (log_p - log_softmax(logits[piece]))).sum(-1)
    return out


def compare(names: list[str], reference: list[np.ndarray], found: dict[str, list[np.ndarray]]) -> dict[str, Any]:
    """For each engine its divergence from the reference and how often both find the same token likeliest, as means over
    all tokens and for each text; and the ratio of the first engine's divergence to the second's, with its standard
    error. Logits [n, n_vocab], one array for each text."""
    by_text = [divergence(logits, [found[engine][i] for engine in found]) for i, logits in enumerate(reference)]
    ours, theirs = np.concatenate(by_text, axis=1)
    ratio = ours.mean() / theirs.mean()
    error = (ours - ratio * theirs).std() / len(ours) ** 0.5 / theirs.mean()
    result: dict[str, Any] = {"kl_ratio": float(ratio), "kl_ratio_error": float(error)}
    for place, engine in enumerate(found):
        same = [a.argmax(-1) == b.argmax(-1) for a, b in zip(reference, found[engine], strict=True)]
        result[engine] = {
            "kl": float((ours, theirs)[place].mean()),
            "top1": float(np.concatenate(same).mean()),
            "kl_by_text": {name: float(d[place].mean()) for name, d in zip(names, by_text, strict=True)},
        }
    return result


# ---- logits of every token, text by text


class Exact(ReferenceModel):
    """Weights as float32: what that rounds is a thousandth of what any of the types does, in half the time."""

    def _dequantize(self, name: str) -> np.ndarray:
        return super()._dequantize(name).astype(np.float32)


def exact(path: Path, texts: list[list[int]]) -> list[np.ndarray]:
    model = Exact(path)
    return [model.logits(tokens).astype(np.float32) for tokens in texts]


def of_ggpy(
    path: Path, texts: list[list[int]], n_threads: int | None, cache_k: str | None = None, cache_v: str | None = None
) -> list[np.ndarray]:
    n_ctx = max(map(len, texts))
    cache = {"cache_type_k": cache_k, "cache_type_v": cache_v}
    with GGUFFile(path) as file:
        runtime = Runtime(file, n_ctx, n_threads=n_threads, n_batch=n_ctx, notify=note, **cache)
        try:
            return [
                runtime.step(np.array(tokens), np.zeros(n, int), np.arange(n), np.arange(n)).copy()
                for tokens in texts
                for n in [len(tokens)]
            ]
        finally:
            runtime.close()


def of_llama_cpp(path: Path, texts: list[list[int]], n_threads: int | None) -> list[np.ndarray]:
    import llama_cpp

    n_ctx = max(map(len, texts))
    model = llama_cpp.Llama(
        str(path),
        n_ctx=n_ctx,
        n_batch=n_ctx,
        n_ubatch=n_ctx,
        n_threads=n_threads,
        n_threads_batch=n_threads,
        logits_all=True,
        verbose=False,
    )
    found = []
    for tokens in texts:
        model.reset()
        model.eval(tokens)
        found.append(model.scores[: len(tokens)].copy())
    model.close()
    return found


def quantized(source: Path, file_type: str, folder: Path) -> Path:
    """The file of a type, made by llama.cpp's quantizer where it is not there yet."""
    import llama_cpp

    out = folder / f"{source.stem}.{file_type}.gguf"
    if out.exists():
        return out
    note(f"making {out}")
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype = getattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{file_type}")
    partial = out.with_suffix(".partial")
    if llama_cpp.llama_model_quantize(os.fsencode(source), os.fsencode(partial), params) != 0:
        partial.unlink(missing_ok=True)
        raise GGPYError(f"llama.cpp cannot make a {file_type} file of {source}.")
    partial.rename(out)
    return out


# ---- the table


def measure(
    path: Path, file_type: str, original: list[np.ndarray], named: dict[str, list[int]], n: int | None
) -> dict[str, Any]:
    names, texts = list(named), list(named.values())
    engines = {"ggpy": of_ggpy(path, texts, n), "llama.cpp": of_llama_cpp(path, texts, n)}
    result: dict[str, Any] = {"type": file_type, "file": path.name}
    result["original"] = compare(names, original, engines)
    result["same_file"] = compare(names, exact(path, texts), engines)
    return result


def tokenized(source: Path, more: list[Path]) -> dict[str, list[int]]:
    """Token ids of the texts above and of the pieces of other files, by name."""
    with GGUFFile(source) as file:
        tokenizer = Tokenizer.from_gguf(file)
    found = {name: tokenizer.tokenize(text) for name, text in TEXTS.items()}
    for path in more:
        tokens = tokenizer.tokenize(path.read_text(encoding="utf-8"), add_special=False)
        found |= {f"{path.name}, {at}": tokens[at : at + PIECE] for at in range(0, len(tokens), PIECE)}
    return found


def print_caches(source: Path, texts: list[list[int]], n_threads: int | None) -> None:
    """What a q8_0 cache costs beside one of half precision, on the original model."""
    half = of_ggpy(source, texts, n_threads, "f16", "f16")
    print("| keys | values | KL, nats a token | same likeliest token |\n|---|---|---|---|")
    for k, v in (("q8_0", "q8_0"), ("q8_0", "f16"), ("f16", "q8_0")):
        found = of_ggpy(source, texts, n_threads, k, v)
        kl = np.concatenate([divergence(a, [b])[0] for a, b in zip(half, found, strict=True)])
        same = np.concatenate([a.argmax(-1) == b.argmax(-1) for a, b in zip(half, found, strict=True)])
        print(f"| {k} | {v} | {kl.mean():.2g} | {same.mean():.1%} |", flush=True)


HEADER = (
    "| type | KL, original: ggpy | llama.cpp | ratio | top-1: ggpy | llama.cpp "
    "| KL, same file: ggpy | llama.cpp | ratio | top-1: ggpy | llama.cpp |"
)


def row(result: dict[str, Any]) -> str:
    cells = [result["type"]]
    for name in ("original", "same_file"):
        found = result[name]
        ours, theirs = found["ggpy"], found["llama.cpp"]
        ratio = f"{found['kl_ratio']:.3f} ± {found['kl_ratio_error']:.3f}"
        cells += [f"{ours['kl']:.3g}", f"{theirs['kl']:.3g}", ratio, f"{ours['top1']:.1%}", f"{theirs['top1']:.1%}"]
    return "| " + " | ".join(cells) + " |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", type=Path, metavar="FILE", help="GGUF file of F16, BF16 or F32: the original")
    parser.add_argument("--files", type=Path, required=True, metavar="FOLDER", help="where the types' files are kept")
    parser.add_argument("--types", default=",".join(TYPES), metavar="TYPE,…", help="default: %(default)s")
    parser.add_argument(
        "--text",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=f"read this too, {PIECE} tokens at a time",
    )
    parser.add_argument("--caches", action="store_true", help="measure q8_0 caches beside f16, and no types")
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="default: as each engine chooses")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, text by text too")
    args = parser.parse_args()
    try:
        import llama_cpp
    except ImportError:
        sys.exit("error: llama-cpp-python is not installed; build it for this machine: pip install llama-cpp-python")
    types = [name.strip().upper() for name in args.types.split(",")]
    if unknown := [name for name in types if not hasattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")]:
        parser.error(f"llama.cpp makes no files of type {', '.join(unknown)}")
    args.files.mkdir(parents=True, exist_ok=True)
    try:
        named = tokenized(args.source, args.text)
        texts = list(named.values())
        if args.caches:
            return print_caches(args.source, texts, args.threads)
        original = exact(args.source, texts)
        n_tokens = sum(map(len, texts))
        print(f"{args.source.name}, {n_tokens} tokens; KL divergence in nats a token, ratio ± standard error\n")
        print(HEADER)
        print("|" + "---|" * (HEADER.count("|") - 1))
        results = []
        for name in types:
            results.append(measure(quantized(args.source, name, args.files), name, original, named, args.threads))
            print(row(results[-1]), flush=True)
    except GGPYError as error:
        sys.exit(f"error: {error}")
    if args.json:
        about = {"source": args.source.name, "tokens": {name: len(tokens) for name, tokens in named.items()}}
        args.json.write_text(json.dumps({**about, "results": results}, indent=2) + "\n")


if __name__ == "__main__":
    main()
