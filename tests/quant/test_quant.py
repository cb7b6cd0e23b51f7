"""The block formats: bytes and weights equal ggml's own, by way of the gguf package and of plain references."""

from __future__ import annotations

import platform
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import gguf
import numpy as np
import pytest

from ggpy.errors import GGPYError
from ggpy.quant import FORMATS, by_id
from ggpy.quant.fields import Codebook, Numbers, Ternary

WRITTEN = ("F32", "F16", "BF16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1")
READ = [
    name
    for name in (
        *WRITTEN, "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ1_S", "IQ1_M", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ3_XXS",
        "IQ3_S", "IQ4_NL", "IQ4_XS", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4",
    )
    if name in gguf.GGMLQuantizationType.__members__  # the newest are not in every version of the package
]  # fmt: skip


def theirs(x: np.ndarray, name: str) -> np.ndarray:
    """The gguf package's quantization: uint8 [n_rows, row_bytes]."""
    with np.errstate(all="ignore"):
        return gguf.quants.quantize(x, gguf.GGMLQuantizationType[name]).view(np.uint8).reshape(len(x), -1)


def sources() -> dict[str, np.ndarray]:
    """float32 [n_rows, 256·k] of many kinds; all of them fit fp16 scales."""
    rng = np.random.default_rng(0)
    blocks = rng.standard_normal((2048, 32))
    kinds = {
        "weights": 0.02 * rng.standard_normal((24, 1024)),
        "every magnitude": blocks * 10.0 ** rng.uniform(-44, 4, (2048, 1)),
        "mixed magnitudes": blocks * 10.0 ** rng.uniform(-12, 4, (2048, 32)),
        "outliers": 0.01 * rng.standard_t(2, (64, 512)),
        "ties": rng.integers(-8, 8, (64, 512)) / 8,
        "few values": rng.choice([1, -1, 0.5, 0.25, -0.25], (64, 512)),
        "halves": rng.integers(-127, 128, (64, 512)) / 2,
        "one sign": np.abs(blocks),
        "constant": np.repeat(rng.standard_normal((64, 1)), 256, axis=1),
        "zero": np.zeros((4, 256)),
        "sparse": np.abs(blocks) * (rng.random((2048, 32)) < 0.05),
        "huge": 1e4 * np.clip(blocks, -3, 3),
        "tiny": 1e-40 * blocks,
        "denormal": rng.integers(0, 1 << 23, (64, 256), dtype=np.uint32).view(np.float32),
    }
    return {name: x.astype(np.float32).reshape(-1, 256) for name, x in kinds.items()}


SOURCES = sources()


# The registry


def test_registry_equals_the_gguf_package():
    for kind, (block_size, type_size) in gguf.GGML_QUANT_SIZES.items():
        if kind.name not in FORMATS:
            continue  # newer than ggpy
        form = FORMATS[kind.name]
        assert by_id(int(kind)) is form
        if kind.name != "Q8_1":  # the package counts its two halves as floats
            assert (form.block_size, form.type_size) == (block_size, type_size)


def test_unknown_and_removed_types_are_named():
    with pytest.raises(GGPYError, match="type number 77"):
        by_id(77)
    with pytest.raises(GGPYError, match="Q4_0_4_8 was removed"):
        by_id(32)


def test_row_bytes():
    assert FORMATS["Q4_0"].row_bytes(64) == 36
    with pytest.raises(GGPYError, match=r"row of 48 .* Q4_0"):
        FORMATS["Q4_0"].row_bytes(48)


def test_import_is_light():
    heavy = "{'numpy', 'gguf', 'numba', 'llvmlite'} & set(sys.modules)"
    code = f"import sys, ggpy.quant, ggpy.quant.recipes; assert not {heavy}, {heavy}"
    subprocess.run([sys.executable, "-c", code], check=True)


# Reading


@pytest.mark.parametrize("name", READ)
def test_dequantize_equals_the_gguf_package(name):
    form = FORMATS[name]
    raw = np.random.default_rng(1).integers(0, 256, (3, 5, 4 * form.type_size), dtype=np.uint8)
    with np.errstate(all="ignore"):
        want = gguf.quants.dequantize(raw.reshape(15, -1), gguf.GGMLQuantizationType[name])
        got = form.dequantize(raw)
    assert got.shape == (3, 5, 4 * form.block_size)
    assert got.dtype == np.float32
    np.testing.assert_array_equal(got.reshape(15, -1).view(np.uint32), want.view(np.uint32))


def test_dequantize_in_steps_is_the_same_as_at_once():
    raw = np.random.default_rng(2).integers(0, 64, (700, 20 * 18), dtype=np.uint8)  # 448,000 weights: two steps
    want = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType.Q4_0)
    np.testing.assert_array_equal(FORMATS["Q4_0"].dequantize(raw), want)


@pytest.mark.parametrize("name", ["I8", "I16", "I32", "I64", "F64"])
def test_plain_numbers(name):
    values = np.array([[1, -2, 100]]).astype({"F64": "f8"}.get(name, f"i{FORMATS[name].type_size}"))
    assert FORMATS[name].dequantize(values.view(np.uint8)).tolist() == [[1, -2, 100]]


def test_unreadable_types_say_so():
    with pytest.raises(GGPYError, match="Q8_K cannot be read"):
        FORMATS["Q8_K"].dequantize(np.zeros((1, 292), np.uint8))
    with pytest.raises(GGPYError, match="17 bytes are not a whole number of Q4_0 blocks"):
        FORMATS["Q4_0"].dequantize(np.zeros((1, 17), np.uint8))


@pytest.mark.parametrize("name", FORMATS)
def test_what_a_class_declares_lies_in_its_block(name):
    form = FORMATS[name]
    for numbers in (form.d, form.dmin, form.scales, form.mins, form.codes):
        for part in (
            [numbers.signs, *numbers.rows.parts] if isinstance(numbers, Codebook) else getattr(numbers, "parts", ())
        ):
            assert all(n & (n - 1) == 0 for n in part.shape)
            assert all(0 <= part.place(x)[0] <= form.type_size - part.width for x in range(part.count))
            assert all(part.place(x)[1] + part.bits <= 8 * part.width for x in range(part.count))
    if isinstance(form.codes, Numbers):
        assert [part.count for part in form.codes.parts] == [form.block_size] * len(form.codes.parts)
        assert sum(part.bits for part in form.codes.parts) == form.packed.bits
    if isinstance(form.codes, Ternary):
        assert form.codes.count == form.block_size
    if form.scales and form.packed:
        assert form.scales.parts[0].count == form.block_size // form.packed.group


# Writing


@pytest.mark.parametrize("source", SOURCES)
@pytest.mark.parametrize("name", WRITTEN)
def test_quantize_equals_the_gguf_package(name, source):
    x = SOURCES[source]
    if source in ("tiny", "denormal", "every magnitude") and platform.machine() not in ("x86_64", "AMD64"):
        pytest.skip("where a reciprocal overflows the package stores what the CPU makes of an infinity")
    np.testing.assert_array_equal(FORMATS[name].quantize(x), theirs(x, name))


@pytest.mark.parametrize("name", [*WRITTEN, "Q6_K"])
def test_16_bit_sources_need_no_float32_copy_to_be_equal(name):
    form, x = FORMATS[name], 0.02 * np.random.default_rng(3).standard_normal((300, 1024)).astype(np.float32)
    half = x.astype(np.float16)
    half[0, :64] = np.arange(64, dtype=np.uint16).view(np.float16)  # denormals
    brain = (x.view(np.uint32) >> 16).astype(np.uint16)
    widened = (brain.astype(np.uint32) << 16).view(np.float32)
    np.testing.assert_array_equal(form.quantize(half), form.quantize(half.astype(np.float32)))
    np.testing.assert_array_equal(form.quantize(brain), form.quantize(widened))


def test_q4_1_takes_the_sign_of_the_first_zero():
    x = np.ones((2, 32), np.float32)
    x[0, 3:5], x[1, 3:5] = [-0.0, 0.0], [0.0, -0.0]
    minima = FORMATS["Q4_1"].quantize(x)[:, 2:4].copy().view(np.uint16)
    assert minima.tolist() == [[0x8000], [0]]


def plain_q6_k(x: np.ndarray) -> np.ndarray:
    """float32 [n, 256] → uint8 [n, 210]: ggml's make_qx_quants and quantize_row_q6_K_ref, step by step in float32."""
    x = x.reshape(-1, 16, 16).astype(np.float32)  # [n, sub-block, weight]
    f = np.float32

    def nearest(value):
        return np.rint(value)  # ties to even, as the reference's addition of 1.5 · 2^23 does

    def moments(inverse):
        codes = np.clip(nearest(inverse[..., None] * x), -32, 31).astype(f)
        weights, sum_xl, sum_ll = x * x, np.zeros(x.shape[:2], f), np.zeros(x.shape[:2], f)
        for i in range(16):
            sum_xl = sum_xl + weights[..., i] * x[..., i] * codes[..., i]
            sum_ll = sum_ll + weights[..., i] * codes[..., i] * codes[..., i]
        return codes, sum_xl, sum_ll

    with np.errstate(all="ignore"):
        largest = np.take_along_axis(x, np.abs(x).argmax(-1)[..., None], -1)[..., 0]
        codes, sum_xl, sum_ll = moments(f(-32) / largest)
        scale = np.where(sum_ll != 0, sum_xl / sum_ll, f(0))
        best = scale * sum_xl
        for k in [*range(-9, 0), *range(1, 10)]:
            trial, sum_xl, sum_ll = moments(-(f(32) + f(0.1) * f(k)) / largest)
            better = (sum_ll > 0) & (sum_xl * sum_xl > best * sum_ll)
            codes = np.where(better[..., None], trial, codes)
            scale = np.where(better, sum_xl / sum_ll, scale)
            best = np.where(better, scale * sum_xl, best)
        negligible = np.abs(largest) < f(1e-15)
        scale = np.where(negligible, f(0), scale)
        codes = np.where(negligible[..., None], f(-32), codes)
        top = np.take_along_axis(scale, np.abs(scale).argmax(-1)[:, None], -1)
        inverse = f(-128) / top
        d = (f(1) / inverse).astype(np.float16)
        steps = np.minimum(nearest(inverse * scale), 127)
        fine = d.astype(f) * steps.astype(f)
        again = np.clip(nearest(x / fine[..., None]), -32, 31)
        codes = np.where(fine[..., None] != 0, again, codes)
    codes = np.nan_to_num(codes + 32).astype(np.uint8).reshape(-1, 2, 4, 32)
    low = (codes[:, :, :2] & 15) | (codes[:, :, 2:] << 4)
    shifts = np.array([0, 2, 4, 6], np.uint8).reshape(1, 1, 4, 1)
    high = np.bitwise_or.reduce((codes >> 4) << shifts, axis=2)
    n = len(codes)
    scales = np.nan_to_num(steps).astype(np.int8).view(np.uint8)
    out = np.concatenate([low.reshape(n, 128), high.reshape(n, 64), scales, d.view(np.uint8).reshape(n, 2)], axis=1)
    out[np.abs(top[:, 0]) < f(1e-15)] = 0
    return out


@pytest.mark.parametrize("source", SOURCES)
def test_q6_k_equals_the_plain_search(source):
    x = SOURCES[source]
    np.testing.assert_array_equal(FORMATS["Q6_K"].quantize(x), plain_q6_k(x))


GGML_Q6_K = (
    "40a80e74da30960e64da3096fc62ca207a14be58f19b15be58f29c35df59f29cda40a70d64da30960d63c92096fc52c9109a"
    "f55fb9107af45fb9137dd43eb8136903ac46d17a04ad47e08a15be48e18bea40a90f85eb40a60f65eb41a60c62cbe06a03ad"
    "47e08a04ae47e18b24ce48e184ea40a90f85ea40a60f65eb40a60c6250430e3ae9a594534f3efae99450430f05d69aab6c70"
    "01c5d69baf7c3001c6dac5165a6bacb0c105165b6fbcf0c1061a9450430e3ae9a594534f3efae9a4904379847b897c877e79"
    "80778477857987798100"
)


def test_q6_k_equals_ggml_on_a_fixed_row():
    """The bytes that quantize_row_q6_K_ref of llama.cpp gave for a row anyone can make again."""
    x = ((np.arange(256) * 7919 + 13) % 1009 - 504).astype(np.float32)[None] / np.float32(16384)
    assert FORMATS["Q6_K"].quantize(x).tobytes().hex() == GGML_Q6_K


def test_threads_may_share_the_rows():
    x = SOURCES["weights"]
    out = np.empty((24, FORMATS["Q5_1"].row_bytes(256) * 4), np.uint8)
    rows = x.reshape(24, 1024)
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda i: FORMATS["Q5_1"].quantize(rows[i : i + 6], out[i : i + 6]), range(0, 24, 6)))
    np.testing.assert_array_equal(out, FORMATS["Q5_1"].quantize(rows))


@pytest.mark.parametrize("name", [*WRITTEN, "Q6_K"])
@pytest.mark.parametrize(("value", "says"), [(np.nan, "is NaN"), (np.inf, "is infinite"), (-np.inf, "is infinite")])
def test_weights_that_are_no_numbers_are_refused(name, value, says):
    for at in (0, 100, 511):
        x = np.ones((2, 256), np.float32)
        x.reshape(-1)[at] = value
        with pytest.raises(GGPYError, match=says):
            FORMATS[name].quantize(x)


@pytest.mark.parametrize("name", ["F16", "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q6_K"])
def test_weights_beyond_the_format_are_refused(name):
    for value in (1e9, 1e25, -3e38):
        with pytest.raises(GGPYError, match=f"beyond the range of {name}"):
            FORMATS[name].quantize(np.full((1, 256), value, np.float32) * np.linspace(0.5, 1, 256, dtype=np.float32))


def test_formats_that_are_only_read_say_so():
    with pytest.raises(GGPYError, match="reads Q4_K but does not write it"):
        FORMATS["Q4_K"].quantize(np.ones((1, 256), np.float32))
