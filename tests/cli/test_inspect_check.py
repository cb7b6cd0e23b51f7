"""`ggpy inspect --check`: files whose converter went wrong, and files where nothing is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from ggpy.cli.inspect import inspect
from ggpy.gguf.file import GGUFFile
from ggpy.text.check_file import KNOWN, check_file
from ggpy.text.tokenizer.pretokenize import PRE_TOKENIZERS
from tests.support.vocabularies import (
    CONTROL,
    NORMAL,
    bpe_metadata,
    spm_metadata,
    without,
    wordpiece_metadata,
    write_gguf,
)

SPECIALS = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<|start_header_id|>{{ m.role }}<|end_header_id|>\n\n{{ m.content }}"
    "<|eot_id|>{% endfor %}{% if add_generation_prompt %}<|start_header_id|>assistant<|end_header_id|>\n\n{% endif %}"
)
BOS, END = 600, 603


def llama3(template: str | None = TEMPLATE, kinds: dict[str, int] | None = None, **extra: Any) -> dict[str, Any]:
    """The metadata of a file of Llama 3's kind; extra: keys of tokenizer.ggml."""
    specials = dict.fromkeys(SPECIALS, CONTROL) | (kinds or {})
    roles = {"add_bos_token": True, "bos_token_id": BOS, "eos_token_id": END}
    told = {f"tokenizer.ggml.{key}": value for key, value in {**roles, **extra}.items()}
    found = bpe_metadata("llama-bpe", specials) | told
    assert found["tokenizer.ggml.tokens"][BOS] == SPECIALS[0]
    return found | ({} if template is None else {"tokenizer.chat_template": template})


def test_nothing_is_wrong_with_sound_files(tmp_path: Path) -> None:
    sound = [llama3(), llama3(None), spm_metadata(), wordpiece_metadata(), bpe_metadata("gpt-2")]
    for i, metadata in enumerate(sound):
        with GGUFFile(write_gguf(tmp_path / f"{i}.gguf", metadata)) as file:
            assert check_file(file) == []


@pytest.mark.parametrize(
    ("metadata", "said"),
    [
        (without(llama3(), "pre"), ["no pre-tokenizer is named", "'llama-bpe'; the file names none"]),
        (llama3(pre="default"), ["whose text is cut by the pre-tokenizer 'llama-bpe'; the file names 'default'"]),
        (llama3(pre="odd"), ["'odd' is none that ggpy knows", "the file names 'odd'"]),
        (llama3(add_bos_token=False), ["does not begin with the BOS token by this file, and those of Llama 3 do"]),
        (llama3(add_eos_token=True), ["An end token is put after every prompt"]),
        (llama3(kinds={"<|eot_id|>": NORMAL}, eos_token_id=BOS),
         ["'<|eot_id|>' ends a turn, and does not end an answer: the file's end token is '<|begin_of_text|>'",
          "The token '<|eot_id|>' is marked as text"]),
        (llama3(kinds={"<|start_header_id|>": NORMAL}), ["The token '<|start_header_id|>' is marked as text"]),
        (llama3("{{ bos_token }}" + TEMPLATE), ["writes the BOS token twice"]),
        (llama3(TEMPLATE.replace("{{ m.role }}", "<|user|>{{ m.role }}")), ["writes '<|user|>', which is no token"]),
        (llama3("{{ bos_token }}"), ["leaves out what a user says"]),
        (llama3("{% for %}"), ["chat template"]),
        (bpe_metadata("gpt-2", dict.fromkeys(["<|im_sep|>", "<|im_end|>"], CONTROL)) | {"tokenizer.ggml.pre": "dbrx"},
         ["There is no chat template"]),
        (without(bpe_metadata("gpt-2"), "merges"), ["needs its merges"]),
        (without(bpe_metadata("gpt-2", {"<x>": CONTROL}), "eos_token_id"), ["No token ends an answer"]),
    ],
)  # fmt: skip
def test_what_is_wrong_is_a_sentence(tmp_path: Path, metadata: dict[str, Any], said: list[str]) -> None:
    with GGUFFile(write_gguf(tmp_path / "m.gguf", metadata)) as file:
        found = check_file(file)
    assert len(found) == len(said), found
    for sentence, words in zip(found, said, strict=True):
        assert words in sentence
        assert sentence.endswith((".", "learnt it"))


def test_the_exit_status_says_it(tmp_path: Path) -> None:
    good, bad = write_gguf(tmp_path / "good.gguf", llama3()), write_gguf(tmp_path / "bad.gguf", llama3(pre="default"))
    fine = CliRunner().invoke(inspect, [str(good), "--check"])
    assert (fine.exit_code, fine.output.count("\n")) == (0, 1)
    wrong = CliRunner().invoke(inspect, [str(bad), "--check", "--json"])
    assert wrong.exit_code == 1
    assert len(json.loads(wrong.output)["wrong"]) == 1


def test_the_table_names_pre_tokenizers_that_are_known() -> None:
    assert [pre for known in KNOWN for pre in known.pre if pre not in PRE_TOKENIZERS] == []
