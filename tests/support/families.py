"""Tiny checkpoints of every family that is converted, by the "model_type" of its config.json."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.support import (
    hf_families_bert,
    hf_families_dense,
    hf_families_encoders,
    hf_families_gemma,
    hf_families_hybrid,
    hf_families_moe,
    hf_families_multimodal,
    plain_decoders,
    tiny,
)

#: Each family's config.json, and those of other kinds of the same families in `tiny`.
CONFIGS: dict[str, dict[str, Any]] = {
    **tiny.CONFIGS, **hf_families_gemma.CONFIGS, **hf_families_bert.CONFIGS, **hf_families_moe.CONFIGS,
    **hf_families_dense.CONFIGS, **hf_families_hybrid.CONFIGS, **hf_families_encoders.CONFIGS,
    **hf_families_multimodal.CONFIGS, **plain_decoders.CONFIGS,
}  # fmt: skip

_WRITERS: dict[str, Callable[[Path, dict[str, Any]], None]] = {
    **dict.fromkeys(hf_families_gemma.CONFIGS, hf_families_gemma.write_checkpoint),
    **dict.fromkeys(hf_families_bert.CONFIGS, hf_families_bert.write_checkpoint),
    **dict.fromkeys(hf_families_moe.CONFIGS, hf_families_moe.write_checkpoint),
    **dict.fromkeys(hf_families_dense.CONFIGS, hf_families_dense.write_checkpoint),
    **dict.fromkeys(hf_families_hybrid.CONFIGS, hf_families_hybrid.write_checkpoint),
    **dict.fromkeys(hf_families_encoders.CONFIGS, hf_families_encoders.write_checkpoint),
    **dict.fromkeys(hf_families_multimodal.CONFIGS, hf_families_multimodal.write_checkpoint),
    **dict.fromkeys(plain_decoders.CONFIGS, plain_decoders.write_checkpoint),
}


def family_checkpoint(tmp_path: Path, kind: str, **overrides: Any) -> Path:
    """A tiny random checkpoint folder; `overrides` replace entries of its config.json."""
    if kind in tiny.CONFIGS:
        return tiny.tiny_checkpoint(tmp_path, kind, **overrides)
    folder = tmp_path / f"tiny-{kind}"
    folder.mkdir(parents=True, exist_ok=True)
    _WRITERS[kind](folder, {**CONFIGS[kind], **overrides})
    return folder
