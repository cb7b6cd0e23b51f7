"""The cost of speed: how far ggpy's and llama.cpp's probabilities stray, type by type, on the same files and text.

Each type's file is made from one F16, BF16 or F32 file by llama.cpp's own quantizer, and kept for the next time. Both
engines read the same English, Chinese and code, and English about Python out of Python itself, and their logits are
held against two references, which the plain numpy model of the tests computes:

    same file   the quantized weights, computed exactly: what the engine alone adds (8-bit activations, half-precision
                cache, float32 sums)
    original    the file that the types were made from: what quantizing and computing cost together

    pip install llama-cpp-python
    python benchmarks/quality.py model-f16.gguf --files /tmp/types --types Q4_0,Q8_0,Q4_K_M,Q6_K --json quality.json
"""

from __future__ import annotations

import argparse
import json
import math
import os
import platform
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from ggpy import GGUFFile
from ggpy.cli.terminal import note
from ggpy.errors import GGPYError
from ggpy.runtime.runtime import Runtime
from ggpy.text.tokenizer import Tokenizer

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from tests.support.reference import ReferenceModel

PIECE = 512  # tokens of a long text read as one
TYPES = ("F16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K_M", "Q5_K_M", "Q6_K")
Logits = Callable[[list[int]], np.ndarray]  # tokens, read from position 0, to float32 [n, n_vocab]
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


def compared(
    reference: np.ndarray, found: list[np.ndarray], tokens: list[int], rows: int = 16
) -> dict[str, np.ndarray]:
    """Compare a text's logits [n, n_vocab] with a reference, as many rows at a time as stay in the CPU's cache:

    kl        [found, n]          Kullback-Leibler divergence of each from the reference, nats
    same      [found, n]          whether both find the same token likeliest
    text      [1 + found, n - 1]  log-probability of the token that follows, by the reference and by each
    """
    n = len(reference)
    kl, same, text = np.empty((len(found), n)), np.empty((len(found), n), bool), np.empty((1 + len(found), n))
    following = np.array([*tokens[1:], 0])
    for start in range(0, n, rows):
        piece = slice(start, start + rows)
        place = np.arange(len(following[piece])), following[piece]
        log_p = log_softmax(reference[piece])
        p = np.exp(log_p)
        text[0, piece] = log_p[place]
        for i, logits in enumerate(found):
            log_q = log_softmax(logits[piece])
            kl[i, piece] = (p * (log_p - log_q)).sum(-1)
            same[i, piece] = log_p.argmax(-1) == log_q.argmax(-1)
            text[1 + i, piece] = log_q[place]
    return {"kl": kl, "same": same, "text": text[:, :-1]}


def mean(samples: np.ndarray) -> tuple[float, float]:
    """The mean and its standard error."""
    return float(samples.mean()), float(samples.std() / len(samples) ** 0.5)


def summary(parts: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Means over all tokens of what `compared` found in every text, with their standard errors: for each engine the
    divergence and how much likelier the text is to it than to the reference (`gain`, nats a token: negative is a higher
    perplexity); and the ratio of the first engine's divergence to the second's."""
    whole = {key: np.concatenate([part[key] for part in parts.values()], axis=1) for key in ("kl", "same", "text")}
    result: dict[str, Any] = {"perplexity": math.exp(-whole["text"][0].mean())}
    for i, engine in enumerate(ENGINES):
        kl, kl_error = mean(whole["kl"][i])
        gain, gain_error = mean(whole["text"][1 + i] - whole["text"][0])
        result[engine] = {
            "perplexity": math.exp(-whole["text"][1 + i].mean()),
            "gain": gain,
            "gain_error": gain_error,
            "kl": kl,
            "kl_error": kl_error,
            "top1": float(whole["same"][i].mean()),
            "kl_by_text": {name: float(part["kl"][i].mean()) for name, part in parts.items()},
        }
    ours, theirs = whole["kl"]
    ratio = ours.mean() / theirs.mean()
    return {**result, "kl_ratio": float(ratio), "kl_ratio_error": mean(ours - ratio * theirs)[1] / float(theirs.mean())}


# ---- logits of every token of a text


class Exact(ReferenceModel):
    """The reference with float32 weights: this rounding is a thousandth of any type's, and halves the time."""

    def _dequantize(self, name: str) -> np.ndarray:
        return super()._dequantize(name).astype(np.float32)


def exact(path: Path) -> Logits:
    model = Exact(path)
    return lambda tokens: model.logits(tokens).astype(np.float32)


@contextmanager
def ggpy(path: Path, n_ctx: int, n_threads: int | None, k: str | None = None, v: str | None = None) -> Iterator[Logits]:
    """ggpy's logits of a text, valid until the next text's."""
    with GGUFFile(path) as file:
        runtime = Runtime(file, n_ctx, n_threads=n_threads, n_batch=n_ctx, notify=note, cache_type_k=k, cache_type_v=v)

        def logits(tokens: list[int]) -> np.ndarray:
            n = len(tokens)
            return runtime.step(np.array(tokens), np.zeros(n, int), np.arange(n), np.arange(n))

        try:
            yield logits
        finally:
            runtime.close()


@contextmanager
def llama_cpp(path: Path, n_ctx: int, n_threads: int | None) -> Iterator[Logits]:
    from llama_cpp import Llama

    sizes = {"n_ctx": n_ctx, "n_batch": n_ctx, "n_ubatch": n_ctx}
    threads = {"n_threads": n_threads, "n_threads_batch": n_threads}
    model = Llama(str(path), **sizes, **threads, logits_all=True, verbose=False)

    def logits(tokens: list[int]) -> np.ndarray:
        model.reset()
        model.eval(tokens)
        return model.scores[: len(tokens)]

    try:
        yield logits
    finally:
        model.close()


def without_extra_buffers() -> None:
    """Have llama.cpp repack no weights; it rounds activations alike either way."""
    from llama_cpp import llama_cpp as api

    defaults = api.llama_model_default_params

    def changed() -> Any:
        params = defaults()
        params.use_extra_bufts = False
        return params

    api.llama_model_default_params = changed


ENGINES = {"ggpy": ggpy, "llama.cpp": llama_cpp}


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
    path: Path, file_type: str, original: dict[str, np.ndarray], named: dict[str, list[int]], n_threads: int | None
) -> dict[str, Any]:
    n_ctx = max(map(len, named.values()))
    same_file: dict[str, dict[str, np.ndarray]] = {}
    from_original: dict[str, dict[str, np.ndarray]] = {}
    of_file = exact(path)
    with ggpy(path, n_ctx, n_threads) as ours, llama_cpp(path, n_ctx, n_threads) as theirs:
        for name, tokens in named.items():
            found = [ours(tokens), theirs(tokens)]
            same_file[name] = compared(of_file(tokens), found, tokens)
            from_original[name] = compared(original[name], found, tokens)
    result = {"type": file_type, "file": path.name}
    return {**result, "same_file": summary(same_file), "original": summary(from_original)}


def about_python() -> str:
    """The language reference's texts that Python brings for `help()`: English with some code, 0.4 MB."""
    from pydoc_data.topics import topics

    return "\n".join(topics[name] for name in sorted(topics))


def tokenized(source: Path, n_long: int, more: list[Path]) -> dict[str, list[int]]:
    """Token ids by name: of the texts above, and of long ones as pieces: n_long tokens about Python, and files."""
    with GGUFFile(source) as file:
        tokenizer = Tokenizer.from_gguf(file)
    found = {name: tokenizer.tokenize(text) for name, text in TEXTS.items()}
    about = tokenizer.tokenize(about_python(), add_special=False)[:n_long]
    long = {"Python": about} | {path.name: tokenizer.tokenize(path.read_text(encoding="utf-8"), False) for path in more}
    for name, tokens in long.items():
        pieces = [tokens[at : at + PIECE] for at in range(0, len(tokens), PIECE)]
        found |= {f"{name}, {i * PIECE}": piece for i, piece in enumerate(pieces) if len(piece) > 1}
    return found


def print_caches(source: Path, named: dict[str, list[int]], n_threads: int | None) -> None:
    """Print the cost of a q8_0 cache compared with one of half precision, on the original model."""
    n_ctx = max(map(len, named.values()))
    with ggpy(source, n_ctx, n_threads, "f16", "f16") as logits:
        half = {name: logits(tokens).copy() for name, tokens in named.items()}
    print("| keys | values | KL, nats a token | same likeliest token |\n|---|---|---|---|")
    for k, v in (("q8_0", "q8_0"), ("q8_0", "f16"), ("f16", "q8_0")):
        with ggpy(source, n_ctx, n_threads, k, v) as logits:
            parts = [compared(half[name], [logits(tokens)], tokens) for name, tokens in named.items()]
        kl, same = (np.concatenate([part[key][0] for part in parts]) for key in ("kl", "same"))
        print(f"| {k} | {v} | {kl.mean():.2g} | {same.mean():.1%} |", flush=True)


HEADER = (
    "| type | perplexity | ggpy's | llama.cpp's | KL: ggpy | llama.cpp | ratio | same likeliest: ggpy | llama.cpp "
    "| KL from original: ggpy | llama.cpp |"
)


def row(result: dict[str, Any]) -> str:
    found, original = result["same_file"], result["original"]
    each = [found[engine] for engine in ENGINES]
    cells = [result["type"], f"{found['perplexity']:.3f}"]
    # a difference of logarithms is a relative one of perplexities
    cells += [f"{-100 * engine['gain']:+.2f} ± {100 * engine['gain_error']:.2f} %" for engine in each]
    cells += [f"{1000 * engine['kl']:.3f} ± {1000 * engine['kl_error']:.3f}" for engine in each]
    cells += [f"{found['kl_ratio']:.3f} ± {found['kl_ratio_error']:.3f}"]
    cells += [f"{engine['top1']:.2%}" for engine in each]
    cells += [f"{1000 * original[engine]['kl']:.2f}" for engine in ENGINES]
    return "| " + " | ".join(cells) + " |"


def print_types(
    source: Path, named: dict[str, list[int]], types: list[str], args: argparse.Namespace
) -> dict[str, Any]:
    n_tokens = sum(map(len, named.values()))
    print(f"{source.name}, {n_tokens} tokens, Python {platform.python_version()}; KL in thousandths of a nat a token\n")
    print(HEADER)
    print("|" + "---|" * (HEADER.count("|") - 1), flush=True)
    logits = exact(source)
    original = {name: logits(tokens) for name, tokens in named.items()}
    results = []
    for name in types:
        results.append(measure(quantized(source, name, args.files), name, original, named, args.threads))
        print(row(results[-1]), flush=True)
    return {"source": source.name, "tokens": {n: len(tokens) for n, tokens in named.items()}, "results": results}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "sources", type=Path, nargs="+", metavar="FILE", help="GGUF files of F16, BF16 or F32: the originals"
    )
    parser.add_argument("--files", type=Path, required=True, metavar="FOLDER", help="where the types' files are kept")
    parser.add_argument("--types", default=",".join(TYPES), metavar="TYPE,…", help="default: %(default)s")
    parser.add_argument(
        "--tokens", type=int, default=4096, metavar="N", help="of the text about Python (default: %(default)s)"
    )
    parser.add_argument(
        "--text",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help=f"read this too, {PIECE} tokens at a time",
    )
    parser.add_argument("--caches", action="store_true", help="measure q8_0 caches beside f16, and no types")
    parser.add_argument(
        "--no-extra-buffers",
        action="store_true",
        help="keep llama.cpp's weights as they are in the file: its native build crashes where AMX cannot be used",
    )
    parser.add_argument("-t", "--threads", type=int, metavar="N", help="default: as each engine chooses")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything there, text by text too")
    args = parser.parse_args()
    if args.no_extra_buffers:
        without_extra_buffers()
    try:
        import llama_cpp
    except ImportError:
        sys.exit("error: llama-cpp-python is not installed; build it for this machine: pip install llama-cpp-python")
    types = [name.strip().upper() for name in args.types.split(",")]
    if unknown := [name for name in types if not hasattr(llama_cpp, f"LLAMA_FTYPE_MOSTLY_{name}")]:
        parser.error(f"llama.cpp makes no files of type {', '.join(unknown)}")
    args.files.mkdir(parents=True, exist_ok=True)
    made = []
    try:
        for source in args.sources:
            named = tokenized(source, args.tokens, args.text)
            if args.caches:
                print_caches(source, named, args.threads)
            else:
                made.append(print_types(source, named, types, args))
    except GGPYError as error:
        sys.exit(f"error: {error}")
    if args.json and made:
        args.json.write_text(json.dumps(made, indent=2) + "\n")


if __name__ == "__main__":
    main()
