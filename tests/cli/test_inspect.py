"""`ggpy inspect`: what it prints when piped and as JSON, and that it stays light."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import gguf
import numpy as np
import pytest
from click.testing import CliRunner

from ggpy.cli.inspect import inspect
from ggpy.gguf.file import GGUFFile
from ggpy.units import size_text
from tests.support.shards import split


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("inspect") / "模型.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_string("general.name", "Tiny \x1b[31mred\x1b[0m\nname")
    writer.add_string("tokenizer.chat_template", "{{ x }}" * 100)
    writer.add_float32("llama.rope.freq_base", float("inf"))
    writer.add_array("tokenizer.ggml.tokens", [f"<{i}>" for i in range(300)])
    writer.add_array("tokenizer.ggml.scores", [0.5, 1.5])
    writer.add_tensor("token_embd.weight", np.zeros((3, 64), np.float32))
    raw = gguf.quants.quantize(np.ones((2, 64), np.float32), gguf.GGMLQuantizationType.Q4_0)
    writer.add_tensor("blk.0.ffn_up.weight", raw, raw_dtype=gguf.GGMLQuantizationType.Q4_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def output(*arguments: str) -> str:
    result = CliRunner().invoke(inspect, list(arguments), catch_exceptions=False)
    assert result.exit_code == 0
    return result.output


def test_piped_tables_are_whole_and_plain(model):
    lines = output(str(model)).splitlines()
    assert lines[0].startswith(f"{model}: GGUF version 3, ")
    by_first = {line.split()[0]: line for line in lines if line}
    assert "Tiny \\x1b[31mred\\x1b[0m\\nname" in by_first["general.name"]
    assert "{{ x }}" * 100 in by_first["tokenizer.chat_template"]
    assert "300 values: ['<0>', '<1>'," in by_first["tokenizer.ggml.tokens"]
    assert by_first["tokenizer.ggml.tokens"].endswith(", …]")
    assert by_first["tokenizer.ggml.scores"].endswith("2 values: [0.5, 1.5]")
    assert by_first["token_embd.weight"].split()[1:5] == ["F32", "[3,", "64]", "768"]
    assert by_first["Q4_0"].split() == ["Q4_0", "1", "128", "72", "B", "4.5"]
    assert by_first["all"].split()[:3] == ["all", "2", "320"]


def test_json(model):
    shown = json.loads(output(str(model), "--json"))
    assert shown["version"] == 3
    assert shown["size"] == model.stat().st_size
    assert shown["metadata"]["general.architecture"] == {"type": "string", "value": "llama"}
    assert shown["metadata"]["llama.rope.freq_base"] == {"type": "float32", "value": "inf"}
    tokens = shown["metadata"]["tokenizer.ggml.tokens"]
    assert (tokens["type"], tokens["length"], tokens["head"][:2]) == ("[string]", 300, ["<0>", "<1>"])
    assert [tensor["name"] for tensor in shown["tensors"]] == ["token_embd.weight", "blk.0.ffn_up.weight"]
    assert shown["tensors"][1]["shape"] == [2, 64]
    assert shown["types"] == {
        "F32": {"tensors": 1, "weights": 192, "nbytes": 768},
        "Q4_0": {"tensors": 1, "weights": 128, "nbytes": 72},
    }


def test_shards(model, tmp_path):
    first, second = split(model, tmp_path, 1)
    lines = output(str(second)).splitlines()
    size = first.stat().st_size + second.stat().st_size
    assert lines[0] == f"{first}: GGUF version 3, 2 shards, {size_text(size)}"
    by_first = {line.split()[0]: line.split() for line in lines if line}
    at = [path.stat().st_size - n for path, n in ((first, 768), (second, 96))]  # 72 bytes, padded
    assert by_first["Name"][-3:] == ["Bytes", "Shard", "Offset"]
    assert by_first["token_embd.weight"][-3:] == ["768", "1", str(at[0])]
    assert by_first["blk.0.ffn_up.weight"][-3:] == ["72", "2", str(at[1])]
    shown = json.loads(output(str(first), "--json"))
    assert (shown["path"], shown["size"]) == (str(first), size)
    assert shown["shards"] == [{"path": str(path), "size": path.stat().st_size} for path in (first, second)]
    assert [(tensor["shard"], tensor["offset"]) for tensor in shown["tensors"]] == [(0, at[0]), (1, at[1])]


def test_a_terminal_gets_short_values_and_no_control_characters(model, monkeypatch, capsys):
    module = sys.modules[inspect.callback.__module__]
    monkeypatch.setenv("COLUMNS", "100")
    with GGUFFile(model) as file:
        tables = [module._metadata(file, 160), module._tensors(file), module._types(file)]
    module._print_rich("summary", tables)
    shown = capsys.readouterr().out
    assert max(map(len, shown.splitlines())) <= 100
    assert "(700" in shown
    assert "\x1b[31m" not in shown
    assert "blk.0.ffn_up.weight" in shown


def test_json_imports_nothing_heavy(model):
    code = (
        "import sys; from ggpy.cli.inspect import inspect; "
        f"inspect([{str(model)!r}, '--json'], standalone_mode=False); "
        "heavy = {'numpy', 'gguf', 'numba', 'llvmlite', 'rich'} & set(sys.modules); assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)
