"""Keys and values beyond the range of a cache type: kept finite and reported, or cached in a type that holds them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ggpy.convert.pipeline import convert
from ggpy.convert.writer import OutputTensor, write_gguf
from ggpy.cpu.isa.layout import CACHE_TYPES, cell_bytes
from ggpy.cpu.sizes import slot_bytes
from ggpy.errors import GGPYError
from ggpy.gguf.file import GGUFFile
from ggpy.quant import FORMATS
from ggpy.runtime.planned import planned
from ggpy.runtime.runtime import Runtime
from tests.cpu.test_kernels import TIERS, call, records
from tests.runtime.test_runtime import decode, error, prefill, running
from tests.support import odd
from tests.support.reference import ReferenceModel, bf16, f16
from tests.support.tiny import CONFIGS, random_tensors, tiny_checkpoint, write_safetensors

INFINITY = np.inf
EXTREMES = [65504, 65519, 65520, -65520, 1e6, -3e38, 3.4e38, 0, -0.0, 1e-9, INFINITY, -INFINITY, np.nan]
MODEL = odd.Sizes("qwen2", 66, 2, 1, 32, 32, 33, 131)


def stored(tier: str, cache: str, x: np.ndarray) -> tuple[np.ndarray, list[bool]]:
    """The bytes that a cache holds of one head [dims], as key and as value at the first position of a slot, and the
    cuts that the step reports."""
    dims = len(x)
    op, step = records()
    zero, other, start = np.zeros(1, np.int32), np.ones(dims, np.float32), np.zeros(1, np.int64)
    caches = np.zeros((2, 16 * cell_bytes(cache, dims)), np.uint8)
    step["n_tokens"], step["positions"], step["slots"] = 1, zero.ctypes.data, zero.ctypes.data
    op["cache_k"], op["cache_v"], op["n_ctx"] = caches[0].ctypes.data, caches[1].ctypes.data, 16
    op["starts"], op["head_cells"] = start.ctypes.data, 16
    op["n_head_kv"], op["head_dim"], op["v_dim"], op["head_pad"] = 1, dims, dims, dims
    said = []
    for k, v in ((x, other), (other, x), (other, other)):
        step["cut_keys"] = step["cut_values"] = 0
        op["src2"], op["src3"] = k.ctypes.data, v.ctypes.data
        call(f"rope_store.{cache}", tier, op, step)
        if k is x:
            keys = caches[0].copy()
        elif v is x:
            values = caches[1].copy()
        said.append((bool(step["cut_keys"][0]), bool(step["cut_values"][0])))
    assert said[2] == (False, False)
    assert said[0] == said[1][::-1] == (said[0][0], False)
    size = {"f32": 4, "f16": 2, "bf16": 2}.get(cache)
    if size:
        by_position = keys.reshape(dims, 16, size)[:, 0].reshape(-1)
        assert np.array_equal(by_position, values[: dims * size])  # values are kept as keys are
    return values, [said[0][0]]


@pytest.mark.parametrize("tier", ["plain", *TIERS])
def test_halves_are_cut_to_the_largest(tier: str) -> None:
    x = np.array([*EXTREMES, 1, 2, 3], np.float32)
    data, said = stored(tier, "f16", x)
    found = data[:32].view(np.float16)
    assert np.array_equal(found, f16(x), equal_nan=True)
    assert np.isfinite(found[:10]).all()
    assert np.isinf(found[10:12]).all()  # what is infinite already is no matter of the cache
    assert said == [True]
    assert stored(tier, "f16", np.array([65519, -65519, INFINITY, np.nan] * 4, np.float32))[1] == [False]


@pytest.mark.parametrize("tier", ["plain", *TIERS[:1]])
def test_bfloat16_rounds_to_even(tier: str) -> None:
    x = np.array([*EXTREMES[:10], 1.00390625, 1.01171875, -1e-40, 3.3961775e38, 3.39617752e38, 65504], np.float32)
    data, said = stored(tier, "bf16", x)
    found = (data[:32].view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(found, bf16(x))
    assert said == [True]
    x = np.array([INFINITY, -INFINITY, np.nan, 3e38] * 4, np.float32)
    x.view(np.uint32)[2] = 0x7F800001  # whose upper half alone would be infinite
    data, said = stored(tier, "bf16", x)
    found = (data[:32].view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(np.isnan(found), np.isnan(x))
    assert np.array_equal(np.isinf(found), np.isinf(x))
    assert said == [False]


@pytest.mark.parametrize("tier", ["plain", *TIERS[:1]])
def test_a_scale_is_cut_to_the_largest(tier: str) -> None:
    x = np.zeros(64, np.float32)
    x[[0, 1, 2, 32]] = 1e7, -1e38, 4e6, 8e6
    data, said = stored(tier, "q8_0", x)
    scales = data[16 * 64 :].view(np.float16).reshape(2, 16)[:, 0].astype(np.float32)
    assert scales[0] == 65504
    codes = data[:64].view(np.int8)
    assert codes[:3].tolist() == [127, -127, 61]
    assert abs(codes[32] * scales[1] - 8e6) < 4e4
    assert said == [True]
    x[:3] = 8e6
    assert stored(tier, "q8_0", x)[1] == [False]
    for worst in (np.nan, INFINITY):  # is not lost: an infinite scale makes NaN of the block's zeros
        x[2] = worst
        data, said = stored(tier, "q8_0", x)
        scales = data[16 * 64 :].view(np.float16).reshape(2, 16)[:, 0]
        assert np.isinf(scales).tolist() == [True, False]
        assert said == [False]


@pytest.fixture(scope="module")
def beyond(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model with keys up to a million in one pair of dimensions, where queries are zero: the right logits do not
    depend on them."""
    weights = odd.tensors(MODEL)
    for layer in range(2):
        at = f"blk.{layer}.attn_"
        weights[at + "k.bias"][0] = 1e6
        for head in range(2):
            for d in (0, 16):
                weights[at + "q.weight"][32 * head + d] = weights[at + "q.bias"][32 * head + d] = 0
    return odd.write(tmp_path_factory.mktemp("beyond") / "beyond.gguf", MODEL, "F16", weights)


def run(path: Path, **types: str) -> tuple[np.ndarray, list[str]]:
    """The logits of some tokens, the same however they are cut into steps, and the notes to the user on cut keys or
    values."""
    notes: list[str] = []
    ids = np.random.default_rng(0).integers(0, MODEL.n_vocab, 23).astype(np.int32)
    with GGUFFile(path) as file:
        runtime = Runtime(file, 64, n_threads=2, n_slots=2, notify=notes.append, **types)
        whole = prefill(runtime, ids)
        assert np.array_equal(decode(runtime, ids, slot=1), whole)
        runtime.close()
    return whole, [note for note in notes if "cut to it" in note]


def exact(path: Path, **rounding: bool) -> np.ndarray:
    ids = np.random.default_rng(0).integers(0, MODEL.n_vocab, 23).astype(np.int32)
    return ReferenceModel(path, **rounding).logits(ids)


def test_large_keys_leave_logits_finite_and_are_told_of_once(beyond: Path) -> None:
    logits, notes = run(beyond)
    assert error(logits, exact(beyond, half_cache=True)) < 1e-4
    assert notes == [
        "beyond.gguf: some keys are beyond the largest number of the f16 cache and were cut to it, "
        "so answers may be off; -ctk bf16 or f32 holds them"
    ]


@pytest.mark.parametrize("kind", CACHE_TYPES)
def test_wider_types_hold_large_keys(beyond: Path, kind: str) -> None:
    logits, notes = run(beyond, cache_type_k=kind, cache_type_v=kind)
    assert np.isfinite(logits).all()
    assert len(notes) == (kind == "f16")
    if kind != "q8_0":  # where a million leaves nothing of the other numbers of its block
        # bfloat16 has 8 bits, half precision 11; queries of zero leave of large keys only what rounding adds
        assert error(logits, exact(beyond)) < {"f32": 1e-4, "f16": 1e-2, "bf16": 5e-2}[kind]


def test_bf16_errs_only_by_its_rounding(beyond: Path) -> None:
    logits, notes = run(beyond, cache_type_k="bf16", cache_type_v="bf16")
    assert error(logits, exact(beyond, bf16_cache=True)) < 1e-4
    assert not notes


@pytest.mark.parametrize(("keys", "values"), [("bf16", "f16"), ("f16", "f32")])
def test_large_values(tmp_path: Path, keys: str, values: str) -> None:
    weights = odd.tensors(MODEL)
    weights["blk.0.attn_v.bias"][3] = -2e5
    path = odd.write(tmp_path / "values.gguf", MODEL, "F16", weights)
    logits, notes = run(path, cache_type_k=keys, cache_type_v=values)
    assert np.isfinite(logits).all()
    assert ["values" in note and "-ctv bf16 or f32" in note for note in notes] == [True] * (values == "f16")
    if values == "f32":
        assert error(logits, exact(path)) < 1e-2


@pytest.mark.parametrize("name", ["blk.1.ffn_down.weight", "token_embd.weight"])
def test_weights_beyond_halves_are_refused_where_they_run_as_such(tmp_path: Path, name: str) -> None:
    """A type without a packed form."""
    model, out = odd.write(tmp_path / "f32.gguf", MODEL), tmp_path / "f64.gguf"
    with GGUFFile(model) as file:
        tensors = [
            OutputTensor(t.name, t.shape, FORMATS["F64" if len(t.shape) == 2 else "F32"]) for t in file.tensors.values()
        ]
        with write_gguf(out, dict(file.metadata), tensors) as writer:
            for tensor in tensors:
                values = np.array(file.data(tensor.name)).view(np.float32)
                if tensor.name == name:
                    values = values * np.float32(1e5)
                writer.write(values.astype(np.float64 if len(tensor.shape) == 2 else np.float32))
    with pytest.raises(GGPYError, match=f"{name}' has weights beyond 65504.*F64; convert"), running(out) as runtime:
        prefill(runtime, np.arange(3))


def test_bfloat16_weights_beyond_halves_are_no_half_precision_file(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "smollm2")
    tensors = random_tensors(CONFIGS["smollm2"])
    tensors["model.layers.0.mlp.up_proj.weight"][3, 5] = 0x4780  # 65536
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(GGPYError, match=r"'blk\.0\.ffn_up\.weight'.*65536 is beyond the range of F16.*bf16 or f32"):
        convert(folder, "f16", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()
    convert(folder, "bf16", tmp_path / "out.gguf")


def test_memory_is_counted(beyond: Path) -> None:
    with GGUFFile(beyond) as file:
        f32, f16, bf16 = (slot_bytes(planned(file).states, 64, 64, kind) for kind in ("f32", "f16", "bf16"))
    assert f32 == 2 * f16 == 2 * bf16
