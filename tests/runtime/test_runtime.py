"""Whole models: every architecture and type against the plain numpy model,
and every way to cut the same tokens into batches."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

import ggpy.runtime.cache_types
import ggpy.runtime.load
from ggpy.convert.pipeline import convert
from ggpy.cpu.packed_weights import PackedWeights
from ggpy.cpu.sizes import slot_bytes
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.graph.state import KVState, LatentState
from ggpy.runtime.cache_types import cache_type
from ggpy.runtime.load import load_model
from ggpy.runtime.planned import planned
from ggpy.runtime.runtime import Runtime
from tests.support.reference import ReferenceModel
from tests.support.tiny import CONFIGS, tiny_checkpoint

N_TOKENS = 45
QUANTIZED = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")


def tokens(n: int = N_TOKENS, n_vocab: int = 456) -> np.ndarray:
    return np.random.default_rng(1).integers(0, n_vocab, n).astype(np.int32)


@pytest.fixture(scope="session")
def model(tmp_path_factory: pytest.TempPathFactory) -> object:
    made: dict[tuple[str, str], Path] = {}

    def make(kind: str, file_type: str) -> Path:
        if (kind, file_type) not in made:
            folder = tmp_path_factory.mktemp("models")
            out = folder / f"{kind}-{file_type}.gguf"
            convert(tiny_checkpoint(folder, kind, dtype="f32"), file_type, out)
            made[kind, file_type] = out
        return made[kind, file_type]

    return make


@contextmanager
def running(path: Path, n_ctx: int = 64, **options: int | str | None) -> Iterator[Runtime]:
    with GGUFFile(path) as file:
        runtime = Runtime(file, n_ctx, **options)
        try:
            yield runtime
        finally:
            runtime.close()
            del runtime


def prefill(runtime: Runtime, ids: np.ndarray, slot: int = 0) -> np.ndarray:
    n = len(ids)
    return runtime.step(ids, np.full(n, slot), np.arange(n), np.arange(n)).copy()


def decode(runtime: Runtime, ids: np.ndarray, slot: int = 0) -> np.ndarray:
    return np.array([runtime.step([t], [slot], [i], [0])[0].copy() for i, t in enumerate(ids)])


def error(ours: np.ndarray, theirs: np.ndarray) -> float:
    return float(np.linalg.norm(ours - theirs) / np.linalg.norm(theirs))


def errors(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    """The relative error of each token's logits."""
    return np.linalg.norm(ours - theirs, axis=1) / np.linalg.norm(theirs, axis=1)


@pytest.mark.parametrize("kind", CONFIGS)
def test_logits_equal_the_numpy_model(model, kind):
    path = model(kind, "f32")
    expected = ReferenceModel(path).logits(tokens())
    with running(path, n_threads=2) as runtime:
        assert error(prefill(runtime, tokens()), expected) < 1e-4
        assert error(decode(runtime, tokens()), expected) < 1e-4


@pytest.mark.parametrize("file_type", ["f16", "bf16"])
@pytest.mark.parametrize("kind", ["llama", "qwen"])
def test_half_precision_weights_are_exact(model, kind, file_type):
    path = model(kind, file_type)
    with running(path, n_threads=2) as runtime:
        assert error(prefill(runtime, tokens()), ReferenceModel(path, half_cache=True).logits(tokens())) < 1e-4


@pytest.mark.parametrize("file_type", QUANTIZED)
@pytest.mark.parametrize("kind", ["llama3", "qwen", "qwen2", "qwen3", "smollm2"])
def test_quantized_weights_err_only_by_rounded_activations(model, kind, file_type):
    path = model(kind, file_type)
    exact = ReferenceModel(path).logits(tokens())
    rounded = ReferenceModel(path, int8_activations=True, half_cache=True).logits(tokens())
    with running(path, n_threads=2) as runtime:
        ours = prefill(runtime, tokens())
    # an activation on the edge of a rounding step may fall to the other side, which moves that token as much as any
    # rounding does; tokens without one agree to float32's own precision
    assert errors(ours, rounded).min() < 1e-5
    assert error(ours, exact) < 1.5 * error(rounded, exact)


@pytest.mark.parametrize("n_threads", [1, 2, 3, 5])
def test_any_number_of_threads_gives_the_same_logits(model, n_threads):
    path = model("smollm2", "q4_0")
    with running(path, n_threads=1) as runtime:
        expected = prefill(runtime, tokens())
    with running(path, n_threads=n_threads) as runtime:
        assert np.array_equal(prefill(runtime, tokens()), expected)


@pytest.mark.parametrize(
    ("kind", "file_type", "cache"),
    [
        ("mistral", "f32", None),
        ("llama3", "f16", None),
        ("smollm2", "q4_0", None),
        ("qwen3", "q8_0", None),
        ("smollm2", "q4_0", "q8_0"),
    ],
)
def test_a_token_has_the_same_logits_in_every_batch(model, kind, file_type, cache):
    path = model(kind, file_type)
    ids = tokens(300)
    types = {"cache_type_k": cache, "cache_type_v": cache}
    with running(path, n_ctx=320, n_slots=3, n_threads=2, **types) as runtime:
        whole = prefill(runtime, ids)
        assert np.array_equal(decode(runtime, ids, slot=1), whole)
        for cut in (1, 2, 5, 16, 17, 255, 299):
            first = runtime.step(ids[:cut], np.full(cut, 2), np.arange(cut), [])
            assert first.shape == (0, runtime.n_vocab)
            rest = np.arange(cut, 300)
            got = runtime.step(ids[cut:], np.full(len(rest), 2), rest, np.arange(len(rest)))
            assert np.array_equal(got, whole[cut:])


def test_a_q8_0_cache_errs_only_by_its_rounding(model):
    path = model("smollm2", "f16")
    rounded = ReferenceModel(path, q8_cache=True).logits(tokens())
    with running(path, n_threads=2, cache_type_k="q8_0", cache_type_v="q8_0") as runtime:
        ours = prefill(runtime, tokens())
    # what is on the edge of a rounding step may fall to the other side; other tokens agree to float32's precision
    assert errors(ours, rounded).min() < 1e-5
    assert error(ours, rounded) < 0.1 * error(rounded, ReferenceModel(path).logits(tokens()))


def test_a_cache_of_q8_0_takes_little_more_than_half(model):
    with GGUFFile(model("smollm2", "f16")) as file:
        half, q8, mixed = (slot_bytes(planned(file).states, 64, 64, name) for name in ("f16", "q8_0", "q8_0-f16"))
        assert (q8, mixed) == (half * 17 // 32, half * 49 // 64)


def test_a_cache_type_that_does_not_suit_is_an_error(model):
    with GGUFFile(model("smollm2", "f16")) as file:
        with pytest.raises(GGPYError, match=r"cache_type_k is 'q3'.*f32, f16, bf16, q8_0"):
            Runtime(file, 64, cache_type_k="q3")
        with pytest.raises(GGPYError, match=r"heads of 80 dimensions.*take f16"):
            cache_type(file, [KVState(0, 1, 64, 64), KVState(1, 1, 80, 80)], None, "q8_0")
        latent = [LatentState(0, 1, 96, 64)]
        assert cache_type(file, latent, "q8_0") == "q8_0"
        with pytest.raises(GGPYError, match="leave cache_type_v out"):
            cache_type(file, latent, "f16", "q8_0")


def test_slots_do_not_see_each_other(model):
    path = model("llama", "f32")
    a, b = tokens(), tokens()[::-1].copy()
    with running(path, n_slots=3, n_threads=2) as runtime:
        alone = [prefill(runtime, a), prefill(runtime, b)]
        mixed_tokens = np.stack([a, b], axis=1).reshape(-1)
        slots = np.tile([2, 1], N_TOKENS)
        positions = np.repeat(np.arange(N_TOKENS), 2)
        parts = []
        for i in range(0, 2 * N_TOKENS, 30):
            at = slice(i, i + 30)
            parts.append(runtime.step(mixed_tokens[at], slots[at], positions[at], np.arange(30)).copy())
        mixed = np.concatenate(parts)
        assert np.array_equal(mixed[0::2], alone[0])
        assert np.array_equal(mixed[1::2], alone[1])


def test_a_slot_can_be_rewound(model):
    path = model("qwen2", "f32")
    ids = tokens()
    with running(path, n_threads=2) as runtime:
        expected = prefill(runtime, ids)
        prefill(runtime, ids[::-1].copy())
        runtime.step(ids[:20], np.zeros(20), np.arange(20), [])
        assert np.array_equal(runtime.step(ids[20:21], [0], [20], [0]), expected[20:21])


def test_only_wanted_outputs_come_back(model):
    path = model("qwen3", "f32")
    with running(path, n_threads=2) as runtime:
        everything = prefill(runtime, tokens())
        some = runtime.step(tokens(), np.zeros(N_TOKENS), np.arange(N_TOKENS), [44, 3])
        assert np.array_equal(some, everything[[44, 3]])


def test_a_sleeping_team_wakes(model):
    import time

    path = model("llama", "f32")
    with running(path, n_threads=3) as runtime:
        before = prefill(runtime, tokens())
        for _ in range(3):
            time.sleep(0.1)
            assert np.array_equal(prefill(runtime, tokens()), before)


@pytest.mark.parametrize(
    "batch",
    [
        ([], [], [], []),
        ([10**6], [0], [0], []),
        ([-1], [0], [0], []),
        ([1], [1], [0], []),
        ([1], [0], [64], []),
        ([1], [0], [-1], []),
        ([1], [0], [0], [1]),
        ([1, 2], [0], [0], []),
        ([1] * 65, [0] * 65, list(range(65)), []),
    ],
)
def test_a_batch_out_of_range_never_reaches_the_kernels(model, batch):
    with running(model("llama", "f32"), n_threads=1) as runtime, pytest.raises(ValueError, match=r"batch|outside"):
        runtime.step(*(np.array(part, np.int32) for part in batch))


def test_missing_and_misshapen_tensors_are_named(model, tmp_path):
    data = model("llama", "f32").read_bytes()
    broken = tmp_path / "broken.gguf"
    broken.write_bytes(data.replace(b"blk.1.ffn_up.weight", b"blk.1.ffn_xx.weight"))
    with GGUFFile(broken) as file, pytest.raises(GGPYError, match=r"blk\.1\.ffn_up\.weight.*missing"):
        Runtime(file, 64)
    swapped = data.replace(b"blk.1.attn_k.weight", b"blk.1.attn_?.weight").replace(
        b"blk.1.attn_q.weight", b"blk.1.attn_k.weight"
    )
    broken.write_bytes(swapped.replace(b"blk.1.attn_?.weight", b"blk.1.attn_q.weight"))
    with GGUFFile(broken) as file, pytest.raises(GGPYError, match=r"blk\.1\.attn_q\.weight"):
        Runtime(file, 64)


def test_an_unknown_architecture_is_named(model, tmp_path):
    broken = tmp_path / "broken.gguf"
    name = b"general.architecture\x08\0\0\0\x05\0\0\0\0\0\0\0llam"
    broken.write_bytes(model("llama", "f32").read_bytes().replace(name + b"a", name + b"b"))
    with GGUFFile(broken) as file, pytest.raises(GGPYError, match="llamb"):
        Runtime(file, 64)


def test_a_step_never_runs_on_half_the_weights(model, monkeypatch):
    def broken(self, *piece):
        raise OSError("no page")

    monkeypatch.setattr(PackedWeights, "_pack", broken)
    with running(model("llama", "q4_0")) as runtime:
        for _ in range(2):  # the first failure must not be taken for the end of packing
            with pytest.raises(OSError, match="no page"):
                prefill(runtime, tokens(3))


def test_no_more_threads_than_cpus_run(model, monkeypatch):
    monkeypatch.setattr(ggpy.runtime.load, "cpus", lambda: 2)
    for asked in (None, 1, 2, 7):
        notes: list[str] = []
        loaded = load_model(model("llama", "f32"), 64, asked, notes.append)
        said = [note for note in notes if "threads" in note]
        assert said == (["2 threads run, not 7: on 2 CPUs more would only take turns"] if asked == 7 else [])
        assert asked is None or loaded.runtime.n_threads == min(asked, 2)
        loaded.runtime.close()
        loaded.file.close()


@pytest.mark.parametrize("n_threads", [2, 3])
def test_more_threads_than_cpus_are_noted(model, monkeypatch, n_threads):
    monkeypatch.setattr(ggpy.runtime.runtime, "usable_cpus", lambda: 2)
    notes: list[str] = []
    with running(model("llama", "f32"), n_threads=n_threads, notify=notes.append):
        said = [note for note in notes if "threads" in note]
        assert said == ["3 threads share the 2 CPUs that this process may use, and run slower"][: n_threads - 2]
