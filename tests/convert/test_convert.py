"""A checkpoint folder in, a GGUF file out: read back with the gguf package, weight by weight; and what stops it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from ggpy.cli import options
from ggpy.cli.convert import convert as command
from ggpy.convert import pipeline
from ggpy.convert.pipeline import convert, size_label
from ggpy.convert.writer import OutputTensor, encode_value, write_gguf
from ggpy.errors import GGPYError
from ggpy.quant import FORMATS
from ggpy.quant.recipes import FILE_TYPES
from tests.support.tiny import CONFIGS, random_tensors, stored, tiny_checkpoint, to_float32, write_safetensors

QUANTIZED = ("q8_0", "q4_0", "q4_1", "q5_0", "q5_1")


def read(path: Path) -> tuple[dict[str, object], dict[str, gguf.ReaderTensor]]:
    reader = gguf.GGUFReader(path)
    fields = {name: field.contents() for name, field in reader.fields.items() if not name.startswith("GGUF.")}
    return fields, {t.name: t for t in reader.tensors}


def interleaved(values: np.ndarray, n_head: int) -> np.ndarray:
    """Rows in the order that GGUF's llama wants: row 2i of a head is the checkpoint's row i, 2i + 1 is i + d/2."""
    head_dim = len(values) // n_head
    order = np.arange(head_dim).reshape(2, head_dim // 2).T.reshape(-1)
    return values.reshape(n_head, head_dim, -1)[:, order].reshape(values.shape)


def expected_tensors(config: dict, tensors: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """The file's tensors by name in float32, from the checkpoint's, written down apart from the converter."""
    parts = {
        "model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output",
        "transformer.wte": "token_embd", "transformer.ln_f": "output_norm",
        "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm", "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v", "self_attn.o_proj": "attn_output",
        "self_attn.q_norm": "attn_q_norm", "self_attn.k_norm": "attn_k_norm", "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down", "ln_1": "attn_norm", "ln_2": "ffn_norm",
        "attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.w2": "ffn_gate", "mlp.w1": "ffn_up",
        "mlp.c_proj": "ffn_down",
    }  # fmt: skip
    result = {}
    for name, values in tensors.items():
        stem, _, kind = name.rpartition(".")
        layer = next((p for p in stem.split(".") if p.isdecimal()), None)
        target = parts[stem if layer is None else stem.split(f".{layer}.", 1)[1]]
        values = to_float32(values)
        if config["model_type"] in ("llama", "mistral") and target in ("attn_q", "attn_k"):
            values = interleaved(values, config["num_attention_heads" if target == "attn_q" else "num_key_value_heads"])
        result[f"{target}.{kind}" if layer is None else f"blk.{layer}.{target}.{kind}"] = values
    return result


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize("dtype", ["bf16", "f16", "f32"])
def test_every_tensor_arrives(tmp_path: Path, kind: str, dtype: str) -> None:
    folder = tiny_checkpoint(tmp_path, kind, dtype=dtype)
    out = tmp_path / "模型.gguf"
    summary = convert(folder, "f32", out)
    fields, tensors = read(out)
    expected = expected_tensors(CONFIGS[kind], random_tensors(CONFIGS[kind], dtype=dtype))
    assert set(tensors) - {"rope_freqs.weight"} == set(expected)
    for name, values in expected.items():
        assert list(tensors[name].shape[::-1]) == list(values.shape), name
        np.testing.assert_array_equal(tensors[name].data.reshape(values.shape), values, err_msg=name)
    assert out.stat().st_size == summary.n_bytes
    assert fields["general.architecture"] == {"llama3": "llama", "mistral": "llama", "smollm2": "llama"}.get(kind, kind)
    assert all(t.data_offset % fields["general.alignment"] == 0 for t in tensors.values())


@pytest.mark.parametrize("file_type", QUANTIZED)
@pytest.mark.parametrize("kind", ["llama", "qwen", "qwen2"])
def test_quantized_bytes_are_those_of_the_gguf_package(tmp_path: Path, kind: str, file_type: str) -> None:
    folder = tiny_checkpoint(tmp_path, kind, shards=3)
    out = tmp_path / "out.gguf"
    convert(folder, file_type, out, n_threads=3)
    fields, tensors = read(out)
    assert fields["general.file_type"] == FILE_TYPES[file_type]
    checked = 0
    for name, values in expected_tensors(CONFIGS[kind], random_tensors(CONFIGS[kind])).items():
        t = tensors[name]
        if t.tensor_type.name.lower() == file_type:
            assert t.data.tobytes() == gguf.quants.quantize(values, t.tensor_type).tobytes(), name
            checked += 1
        elif values.ndim == 1:
            assert t.tensor_type.name == "F32"
        else:
            assert name in ("output.weight", "token_embd.weight")
    assert checked >= 2 * 5


def test_pure_gives_every_matrix_the_type(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    convert(folder, "q4_0", tmp_path / "recipe.gguf")
    convert(folder, "q4_0", tmp_path / "pure.gguf", pure=True)
    assert read(tmp_path / "recipe.gguf")[1]["output.weight"].tensor_type.name == "Q6_K"
    kinds = {t.tensor_type.name for t in read(tmp_path / "pure.gguf")[1].values() if len(t.shape) > 1}
    assert kinds == {"Q4_0"}


def test_chunks_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoint(tmp_path, "llama3")
    convert(folder, "q5_1", tmp_path / "whole.gguf", n_threads=1)
    monkeypatch.setattr(pipeline, "_CHUNK_WEIGHTS", 1000)  # less than a head's rows
    convert(folder, "q5_1", tmp_path / "pieces.gguf", n_threads=4)
    assert (tmp_path / "whole.gguf").read_bytes() == (tmp_path / "pieces.gguf").read_bytes()


def test_llama_metadata(tmp_path: Path) -> None:
    convert(tiny_checkpoint(tmp_path, "llama", attention_bias=True), "f16", tmp_path / "out.gguf")
    fields, tensors = read(tmp_path / "out.gguf")
    wanted = {
        "general.type": "model", "general.name": "tiny-llama", "general.size_label": "1.4M", "general.file_type": 1,
        "general.quantization_version": 2, "llama.block_count": 2, "llama.context_length": 512,
        "llama.embedding_length": 256, "llama.feed_forward_length": 512, "llama.attention.head_count": 4,
        "llama.attention.head_count_kv": 2, "llama.rope.freq_base": 10000.0, "llama.rope.dimension_count": 64,
        "llama.vocab_size": 512,
    }  # fmt: skip
    assert {key: fields[key] for key in wanted} == wanted
    assert fields["llama.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-5)
    assert "llama.attention.sliding_window" not in fields
    assert "llama.attention.key_length" not in fields
    assert "blk.0.attn_output.bias" in tensors
    assert tensors["blk.0.attn_q.bias"].tensor_type.name == "F32"


def test_qwen_metadata(tmp_path: Path) -> None:
    convert(tiny_checkpoint(tmp_path, "qwen", seq_length=256), "q8_0", tmp_path / "out.gguf")
    fields, tensors = read(tmp_path / "out.gguf")
    # Readers of qwen halve the feed-forward length: it counts gate and up together.
    assert fields["qwen.feed_forward_length"] == 512
    assert list(tensors["blk.0.ffn_up.weight"].shape) == [128, 256]
    assert fields["qwen.attention.layer_norm_rms_epsilon"] == pytest.approx(1e-6)
    assert fields["qwen.context_length"] == 256
    assert fields["general.sampling.top_k"] == 0
    assert fields["general.sampling.top_p"] == pytest.approx(0.8)
    assert fields["general.sampling.penalty_repeat"] == pytest.approx(1.1)


def test_sliding_windows(tmp_path: Path) -> None:
    convert(tiny_checkpoint(tmp_path, "mistral"), "f16", tmp_path / "out.gguf")
    assert read(tmp_path / "out.gguf")[0]["llama.attention.sliding_window"] == 16
    folder = tiny_checkpoint(tmp_path, "qwen2", use_sliding_window=True, max_window_layers=1)
    convert(folder, "f16", tmp_path / "out.gguf")
    fields = read(tmp_path / "out.gguf")[0]
    assert fields["qwen2.attention.sliding_window"] == 512
    assert fields["qwen2.attention.sliding_window_pattern"] == [False, True]
    folder = tiny_checkpoint(tmp_path, "mistral", layer_types=["sliding_attention", "full_attention"])
    convert(folder, "f16", tmp_path / "out.gguf")
    assert read(tmp_path / "out.gguf")[0]["llama.attention.sliding_window_pattern"] == [True, False]
    folder = tiny_checkpoint(tmp_path, "qwen2", use_sliding_window=True, max_window_layers=0)
    convert(folder, "f16", tmp_path / "out.gguf")
    fields = read(tmp_path / "out.gguf")[0]
    assert fields["qwen2.attention.sliding_window"] == 512
    assert "qwen2.attention.sliding_window_pattern" not in fields
    folder = tiny_checkpoint(tmp_path, "qwen2", use_sliding_window=False, max_window_layers=0)
    convert(folder, "f16", tmp_path / "out.gguf")
    assert "qwen2.attention.sliding_window" not in read(tmp_path / "out.gguf")[0]


def test_rope_scaling(tmp_path: Path) -> None:
    scaled = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "attention_factor": 1.0}
    convert(tiny_checkpoint(tmp_path, "qwen2", rope_scaling=scaled), "f16", tmp_path / "out.gguf")
    fields = read(tmp_path / "out.gguf")[0]
    assert fields["qwen2.rope.scaling.type"] == "yarn"
    assert fields["qwen2.rope.scaling.factor"] == 4.0
    assert fields["qwen2.rope.scaling.original_context_length"] == 128
    assert fields["qwen2.rope.scaling.attn_factor"] == pytest.approx(1 / (0.1 * np.log(4) + 1))
    linear = {"rope_theta": 5000.0, "type": "linear", "factor": 2}
    convert(tiny_checkpoint(tmp_path, "llama", rope_parameters=linear), "f16", tmp_path / "out.gguf")
    fields = read(tmp_path / "out.gguf")[0]
    assert (fields["llama.rope.scaling.type"], fields["llama.rope.scaling.factor"]) == ("linear", 2.0)
    assert fields["llama.rope.freq_base"] == 5000.0
    with pytest.raises(GGPYError, match="longrope"):
        convert(tiny_checkpoint(tmp_path, "llama", rope_scaling={"type": "longrope"}), "f16", tmp_path / "o.gguf")


def test_llama3_rope_divisors(tmp_path: Path) -> None:
    convert(tiny_checkpoint(tmp_path, "llama3"), "q4_0", tmp_path / "out.gguf")
    tensor = read(tmp_path / "out.gguf")[1]["rope_freqs.weight"]
    assert tensor.tensor_type.name == "F32"
    base, dim, factor, low, high, n_ctx = 500000.0, 64, 8.0, 1.0, 4.0, 128
    for i, divisor in enumerate(tensor.data):
        wavelength = 2 * np.pi * base ** (2 * i / dim)
        if wavelength < n_ctx / high:
            expected = 1.0
        elif wavelength > n_ctx / low:
            expected = factor
        else:
            smooth = (n_ctx / wavelength - low) / (high - low)
            expected = 1 / ((1 - smooth) / factor + smooth)
        assert divisor == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("dtype", ["bf16", "f32"])
def test_tied_embeddings_are_compared(tmp_path: Path, dtype: str) -> None:
    """A stored head that repeats the embeddings, in whatever type, is left away; one that differs is kept."""
    folder = tiny_checkpoint(tmp_path, "qwen2", tie_word_embeddings=True)
    tensors = random_tensors({**CONFIGS["qwen2"], "tie_word_embeddings": False})
    notes: list[str] = []
    for last, kept in ((0.0, False), (1.0, True)):
        head = to_float32(tensors["model.embed_tokens.weight"]).copy()
        head[-1, -1] += last
        tensors["lm_head.weight"] = stored(head, dtype)
        write_safetensors(folder / "model.safetensors", tensors)
        notes.clear()
        convert(folder, "f16", tmp_path / "out.gguf", note=notes.append)
        assert ("output.weight" in read(tmp_path / "out.gguf")[1]) == kept
        assert any("'lm_head.weight' that differs" in text for text in notes) == kept


def test_names_without_the_prefix(tmp_path: Path) -> None:
    """A base model's tensors lack `model.`; the file is the same. Two names for one part are refused."""
    folder = tiny_checkpoint(tmp_path, "smollm2")
    convert(folder, "f16", tmp_path / "full.gguf")
    config = {**CONFIGS["smollm2"], "architectures": ["LlamaModel"]}
    (folder / "config.json").write_text(json.dumps(config))
    tensors = random_tensors(config)
    bare = {name.removeprefix("model."): values for name, values in tensors.items()}
    write_safetensors(folder / "model.safetensors", bare)
    convert(folder, "f16", tmp_path / "bare.gguf")
    assert (tmp_path / "bare.gguf").read_bytes() == (tmp_path / "full.gguf").read_bytes()
    write_safetensors(folder / "model.safetensors", {**tensors, "norm.weight": bare["norm.weight"]})
    with pytest.raises(GGPYError, match=r"both 'model\.norm\.weight' and 'norm\.weight'"):
        convert(folder, "f16", tmp_path / "bare.gguf")
    qwen = tiny_checkpoint(tmp_path, "qwen", architectures=["QWenModel"])
    tensors = random_tensors(CONFIGS["qwen"])
    write_safetensors(qwen / "model.safetensors", {n.removeprefix("transformer."): v for n, v in tensors.items()})
    convert(qwen, "f16", tmp_path / "bare.gguf")


@pytest.mark.parametrize("architecture", ["LlamaModel", "LlamaForCausalLM"])
def test_a_model_without_a_head_is_refused(tmp_path: Path, architecture: str) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", architectures=[architecture])
    tensors = random_tensors(CONFIGS["llama"])
    del tensors["lm_head.weight"]
    write_safetensors(folder / "model.safetensors", tensors)
    with pytest.raises(GGPYError, match=r"lacks 'lm_head\.weight'.* a model without a head"):
        convert(folder, "f16", tmp_path / "out.gguf")


def test_biases_that_the_config_does_not_ask_for(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama", attention_bias=True)
    (folder / "config.json").write_text(json.dumps(CONFIGS["llama"]))
    with pytest.raises(GGPYError, match=r"'model\.layers\.0\.self_attn\.q_proj\.bias' and 7 more"):
        convert(folder, "f16", tmp_path / "out.gguf")
    folder = tiny_checkpoint(tmp_path, "llama")
    (folder / "config.json").write_text(json.dumps({**CONFIGS["llama"], "attention_bias": True}))
    with pytest.raises(GGPYError, match=r"lacks the tensor 'model\.layers\.0\.self_attn\.q_proj\.bias'"):
        convert(folder, "f16", tmp_path / "out.gguf")


# What goes wrong


def rewrite(folder: Path, **changes: np.ndarray | None) -> None:
    """Replace, add or remove (None) tensors of a tiny llama folder; dots are written as two underscores."""
    tensors = random_tensors(CONFIGS["llama"])
    for name, values in changes.items():
        name = name.replace("__", ".")
        tensors.pop(name, None)
        if values is not None:
            tensors[name] = values
    write_safetensors(folder / "model.safetensors", tensors)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model__norm__weight": None}, "lacks the tensor 'model.norm.weight'"),
        ({"model__norm__weight": stored(np.ones(255), "bf16")}, r"'model.norm.weight' .*\[255\].*\[256\]"),
        ({"lora__weight": stored(np.ones((2, 2)), "bf16")}, "'lora.weight'.*has no place"),
        ({"lm_head__weight": np.zeros((512, 256), np.int8)}, "'lm_head.weight' .*I8"),
        ({"lm_head__weight": np.full((512, 256), np.nan, np.float32)}, "'output.weight'"),
    ],
)
def test_wrong_tensors_are_named(tmp_path: Path, changes: dict, message: str) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    rewrite(folder, **changes)
    with pytest.raises(GGPYError, match=message):
        convert(folder, "q4_0", tmp_path / "out.gguf")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["tiny-llama"]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"architectures": ["GPTJForCausalLM"]}, "'GPTJForCausalLM'.*GPTNeoXForCausalLM"),
        ({"architectures": ["LlamaForCausalLM", "LlamaForSequenceClassification"]}, "SequenceClassification', which"),
        ({"architectures": "LlamaForCausalLM"}, "must list the names of classes"),
        ({"architectures": None, "model_type": "gptj"}, "names no model that ggpy converts"),
        ({"hidden_size": None}, "lacks 'hidden_size'"),
        ({"hidden_size": "wide"}, "'hidden_size' as 'wide'"),
        ({"num_hidden_layers": 0}, "'num_hidden_layers' as 0"),
        ({"num_attention_heads": 3}, "must be a multiple"),
        ({"num_key_value_heads": 3}, "must divide"),
        ({"rms_norm_eps": float("nan")}, "'rms_norm_eps' as nan"),
        ({"hidden_act": "gelu"}, "'hidden_act' as 'gelu'"),
        ({"rope_scaling": "yes"}, "must be an object"),
        ({"vocab_size": 500}, r"\[512, 256\].*\[500, 256\]"),
        ({"vocab_size": 100}, r"tokens up to id 461, but the model's vocab_size is 100"),
        ({"quantization_config": {"quant_method": "awq"}}, "'awq'}: the weights are already quantized"),
    ],
)
def test_wrong_configs_are_named(tmp_path: Path, changes: dict, message: str) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    (folder / "config.json").write_text(json.dumps({**CONFIGS["llama"], **changes}))
    with pytest.raises(GGPYError, match=message):
        convert(folder, "q8_0", tmp_path / "out.gguf")
    assert not (tmp_path / "out.gguf").exists()


class Stop(Exception):
    pass


@pytest.mark.parametrize("error", [KeyboardInterrupt, Stop, MemoryError])
def test_whatever_ends_it_leaves_the_old_file(tmp_path: Path, error: type[BaseException]) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    out = tmp_path / "out.gguf"
    out.write_bytes(b"old")

    class Watcher:
        def begin(self, path: Path, n_bytes: int, n_weights: int) -> None: ...
        def advance(self, n_weights: int) -> None: ...

        def tensor(self, tensor: OutputTensor) -> None:
            if tensor.name == "blk.1.attn_q.weight":
                raise error

    with pytest.raises(error):
        convert(folder, "q4_0", out, progress=Watcher())
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.gguf", "tiny-llama"]


def test_a_full_disk_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    out = tmp_path / "out.gguf"
    out.write_bytes(b"old")
    monkeypatch.setattr("shutil.disk_usage", lambda path: type("Usage", (), {"free": 1000})())
    with pytest.raises(GGPYError, match=r"out\.gguf will take .* more than is free"):
        convert(folder, "q4_0", out)

    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.undo()
    monkeypatch.setattr("os.fsync", full)
    with pytest.raises(GGPYError, match="No space left"):
        convert(folder, "q4_0", out)
    assert out.read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["out.gguf", "tiny-llama"]


def test_unwritable_targets(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "llama")
    with pytest.raises(GGPYError, match="there is no folder"):
        convert(folder, "q4_0", tmp_path / "nowhere" / "out.gguf")
    with pytest.raises(GGPYError, match="it is a folder"):
        convert(folder, "q4_0", tmp_path)
    if os.path.exists("/dev/null"):
        with pytest.raises(GGPYError, match="it is a device"):
            convert(folder, "q4_0", Path("/dev/null"))


def test_a_link_stays_a_link(tmp_path: Path) -> None:
    folder = tiny_checkpoint(tmp_path, "qwen3")
    (tmp_path / "real.gguf").write_bytes(b"old")
    try:
        (tmp_path / "link.gguf").symlink_to("real.gguf")
    except OSError:
        pytest.skip("no symbolic links here")
    convert(folder, "q8_0", tmp_path / "link.gguf")
    assert (tmp_path / "link.gguf").is_symlink()
    assert (tmp_path / "real.gguf").read_bytes()[:4] == b"GGUF"


def test_the_writer_holds_its_caller_to_its_word(tmp_path: Path) -> None:
    tensors = [OutputTensor("a.weight", (2, 32), FORMATS["Q8_0"])]
    with pytest.raises(ValueError, match="not written"), write_gguf(tmp_path / "out.gguf", {}, tensors) as writer:
        writer.write(np.zeros((1, 34), np.uint8))
    with pytest.raises(ValueError, match="bytes for a tensor"), write_gguf(tmp_path / "o.gguf", {}, tensors) as writer:
        writer.write(np.zeros((3, 34), np.uint8))
    assert not list(tmp_path.iterdir())
    with pytest.raises(TypeError):
        encode_value(None)


@pytest.mark.parametrize(
    ("n", "label"), [(134_515_008, "135M"), (1_836_828_672, "1.8B"), (7_721_324_544, "7.7B"), (30_000, "30K")]
)
def test_size_labels(n: int, label: str) -> None:
    assert size_label(n) == label == gguf.size_label(n, 0, 0, 0)


# The command


def test_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert set(options.FILE_TYPES) == set(FILE_TYPES)
    folder = tiny_checkpoint(tmp_path, "smollm2")
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(command, ["-i", str(folder), "-t", "q8_0", "--threads", "2"])
    assert result.exit_code == 0, result.output
    assert result.stdout == ""
    assert "bits per weight" in result.stderr
    assert "100%" in result.stderr
    assert (tmp_path / "tiny-smollm2-Q8_0.gguf").is_file()


def test_command_errors_are_sentences(tmp_path: Path) -> None:
    run = [sys.executable, "-m", "ggpy", "convert", "-i", str(tmp_path / "nothing"), "-o", str(tmp_path / "o.gguf")]
    result = subprocess.run(run, capture_output=True, text=True, timeout=60)
    assert result.returncode == 1
    assert result.stdout == ""
    assert result.stderr.startswith("error: ")
    assert result.stderr.count("\n") == 1
