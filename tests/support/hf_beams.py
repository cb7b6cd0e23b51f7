"""Beam searches that transformers has done on tiny checkpoints.

`tests/data/hf_beams.json` holds, for each search, its checkpoint and settings, and the continuations found with their
scores, best first. They are from transformers 5.24 on the folders that `write` makes, opened by `AutoModelForCausalLM`
with attn_implementation="eager" and dtype=torch.float32: `generate` of PROMPT, an attention mask of ones, and
GenerationConfig(num_beams, num_return_sequences=num_beams, max_new_tokens, length_penalty, early_stopping,
eos_token_id=ENDS, pad_token_id=0). What follows a sequence's end token is cut off.
"""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import families, hf_cases, hf_families_gemma, hf_families_moe

PROMPT = hf_cases.TOKENS[:24]
ENDS = list(range(3, 456, 9))  # many, so that beams end

WRITERS: dict[str, Callable[[Path], Any]] = {
    "llama": lambda folder: hf_cases.write(folder, hf_cases.Case("llama")),
    "qwen3": lambda folder: hf_cases.write(folder, hf_cases.Case("qwen3")),
    "gemma3": lambda folder: hf_families_gemma.write_checkpoint(folder, families.CONFIGS["gemma3_text"]),
    "qwen35": lambda folder: hf_families_moe.write_checkpoint(folder, families.CONFIGS["qwen3_5_text"]),
    "lfm2": lambda folder: hf_families_moe.write_checkpoint(folder, families.CONFIGS["lfm2"]),
}

#: Settings: num_beams, max_new_tokens, length_penalty, early_stopping.
SETTINGS: list[tuple[int, int, float, bool | str]] = [
    (2, 12, 1.0, False), (3, 12, 1.0, True), (4, 16, 0.0, "never"), (4, 16, 2.0, "never"),
    (3, 12, 2.0, False), (4, 12, -1.0, False), (2, 1, 1.0, False), (5, 20, 0.5, False),
]  # fmt: skip


def write(folder: Path, kind: str) -> None:
    """The checkpoint of a kind."""
    folder.mkdir(parents=True, exist_ok=True)
    WRITERS[kind](folder)


def recorded() -> list[dict[str, Any]]:
    """The searches that transformers has done."""
    return json.loads((Path(__file__).parents[1] / "data" / "hf_beams.json").read_text(encoding="utf-8"))
