"""Cases of tiny checkpoints and what transformers has computed of them.

A file `tests/data/hf_families_*.npz` holds float32 `logits` [case, POSITIONS, COLUMNS] of TOKENS, `logits[i]` of the
case `names[i]`, from transformers 5.24 on the folder that the case writes. `shapes[i]`, where it has them, is a JSON
object of the names and shapes of the tensors that `save_pretrained` writes of the case's model, the layers' from one
JSON text for each kind of layer. Weights come from numpy's frozen generator, so both sides make the same ones.
`python -m tests.support.recorded hf_families_hybrid "mamba, tied"` records a case (all, where none is named) of a
module whose files have shapes.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from tests.support.tiny import write_safetensors, write_tokenizer

ABSENT = object()

Shapes = dict[str, tuple[int, ...]]

#: A case's name, changes of its file's metadata or of its config.json, and words of the sentence that refuses them.
Refusal = tuple[str, dict[str, Any], str]


@dataclass(frozen=True)
class Case:
    """A `kind` of `configs` with `changes` of its config.json (ABSENT: the key is not there)."""

    configs: ClassVar[dict[str, dict[str, Any]]]
    kind: str
    changes: dict[str, Any] = field(default_factory=dict)

    @property
    def config(self) -> dict[str, Any]:
        return present({**self.configs[self.kind], **self.changes})

    def write(self, folder: Path) -> None:
        """The checkpoint: config.json, model.safetensors, and a tokenizer."""
        raise NotImplementedError


def present(config: dict[str, Any]) -> dict[str, Any]:
    """The keys that are there."""
    return {key: value for key, value in config.items() if value is not ABSENT}


def write_folder(folder: Path, config: dict[str, Any], tensors: dict[str, np.ndarray]) -> None:
    """A checkpoint: config.json, model.safetensors, and a tokenizer."""
    write_tokenizer(folder, "qwen3")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    write_safetensors(folder / "model.safetensors", tensors)


@cache
def recorded(path: Path) -> dict[str, tuple[np.ndarray, str]]:
    """By case: the logits, and the packed shapes of its tensors ("" where the file has none)."""
    with np.load(path) as data:
        shapes = data["shapes"].tolist() if "shapes" in data else [""] * len(data["names"])
        return dict(zip(data["names"].tolist(), zip(data["logits"], shapes, strict=True), strict=True))


def recorded_shapes(path: Path, cases: dict[str, Any], case: Case) -> Shapes:
    """The shapes of the tensors of one of the cases that a file has."""
    return unpack(recorded(path)[next(name for name, other in cases.items() if other == case)][1])


def _layers(name: str) -> str:
    return ".layers." if ".layers." in name else ".h."


def pack(shapes: Shapes) -> str:
    """Names and shapes as JSON, those of alike layers together."""
    layers: dict[str, dict[str, Any]] = {}
    rest: dict[str, Any] = {}
    for name, shape in shapes.items():
        at, dot, key = name.partition(_layers(name))[2].partition(".")
        if dot and at.isdigit():
            layers.setdefault(at, {})[name.partition(_layers(name))[0] + _layers(name) + "{}." + key] = shape
        else:
            rest[name] = shape
    kinds: dict[str, list[int]] = {}
    for at, layer in layers.items():
        kinds.setdefault(json.dumps(dict(sorted(layer.items()))), []).append(int(at))
    return json.dumps([rest, [[sorted(numbers), json.loads(text)] for text, numbers in kinds.items()]])


def unpack(text: str) -> Shapes:
    rest, kinds = json.loads(text)
    shapes = {name: tuple(shape) for name, shape in rest.items()}
    for numbers, layer in kinds:
        shapes |= {name.format(number): tuple(shape) for number in numbers for name, shape in layer.items()}
    return dict(sorted(shapes.items()))


def _record(module: str, only: list[str]) -> None:
    import importlib
    import tempfile

    import torch
    import transformers
    from safetensors.numpy import load_file

    torch.set_grad_enabled(False)
    families = importlib.import_module(f"tests.support.{module}")
    reference = getattr(families, "reference", lambda config: config)
    found = dict(recorded(families.DATA)) if only else {}
    for name in only or families.CASES:
        case = families.CASES[name]
        with tempfile.TemporaryDirectory() as place:
            folder, config = Path(place), json.dumps(reference(case.config))
            (folder / "config.json").write_text(config)
            auto = getattr(transformers, getattr(families, "AUTO_CLASSES", {}).get(case.kind, "AutoModelForCausalLM"))
            auto.from_config(transformers.AutoConfig.from_pretrained(folder)).save_pretrained(folder)
            shapes = {key: values.shape for key, values in load_file(folder / "model.safetensors").items()}
            case.write(folder, shapes)
            (folder / "config.json").write_text(config)
            model, lacking = auto.from_pretrained(
                folder, attn_implementation="eager", experts_implementation="eager", dtype=torch.float32,
                output_loading_info=True,
            )  # fmt: skip
            assert not any(lacking.values()), lacking
            logits = model.eval()(torch.tensor([families.TOKENS])).logits[0].numpy()
        found[name] = (logits[families.POSITIONS][:, list(families.COLUMNS)], pack(shapes))
        print(name, np.abs(logits).max())
    names = [name for name in families.CASES if name in found]
    logits, shapes = zip(*(found[name] for name in names), strict=True)
    np.savez_compressed(families.DATA, names=names, logits=logits, shapes=shapes)


if __name__ == "__main__":
    import sys

    _record(sys.argv[1], sys.argv[2:])
