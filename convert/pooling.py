"""How the rows of a text become one vector, as sentence-transformers' files in a folder say, in GGUF's `pooling_type`
and, for EmbeddingGemma, two matrices.

`modules.json` lists what stands behind each other: the transformer, a pooling whose settings are in a folder of its
own, matrices, a normalisation to length 1 (which callers ask for, or do themselves). Anything else there computes what
a GGUF file has no place for. Source: `sentence_transformers` 5, `models/Pooling.py` and `models/Dense.py`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from ggpy.convert.checkpoint import Checkpoint, is_plain_name
from ggpy.errors import GGPYError, quoted
from ggpy.models.base import POOLINGS
from ggpy.models.gemma_embedding import DENSE, GemmaEmbedding
from ggpy.models.hf import Layout, TensorRule
from ggpy.models.hf_config import Config

#: Ways of pooling by the names of their settings: as flags, and as the value of "pooling_mode".
_MODES = {
    "cls": "cls", "pooling_mode_cls_token": "cls", "mean": "mean", "pooling_mode_mean_tokens": "mean",
    "lasttoken": "last", "pooling_mode_lasttoken": "last",
}  # fmt: skip

#: The last is how a reranker that answers in words is scored: see `ggpy.convert.rerankers`.
_WITHOUT_EFFECT = ("Transformer", "Normalize", "LogitScore")


def add_pooling(checkpoint: Checkpoint, layout: Layout) -> None:
    """The key `pooling_type` and the matrices behind it, where the folder has them, and notes for the user.

    GGPYError for modules that GGUF or ggpy has no place for.
    """
    where = str(checkpoint.folder / "modules.json")
    n_dense = 0
    modules = _modules(checkpoint, where)
    for module in modules:
        kind, path = (str(module.get(key) or "") for key in ("type", "path"))
        kind = kind.rpartition(".")[2]
        if kind in ("Pooling", "Dense") and not is_plain_name(path):
            raise GGPYError(f"{where} puts the {kind.lower()} in {path!r:.80}, which is no folder beside it.")
        if kind == "Pooling":
            name = f"{path}/config.json"
            mode = _mode(checkpoint.json(name), str(checkpoint.folder / name))
            layout.metadata[f"{layout.arch}.pooling_type"] = POOLINGS.index(mode)
        elif kind == "Dense" and layout.arch == GemmaEmbedding.name and n_dense < len(DENSE):
            _add_dense(checkpoint, layout, path, DENSE[n_dense])
            n_dense += 1
        elif kind not in _WITHOUT_EFFECT:
            raise GGPYError(
                f"{where} lists {quoted(kind)}, which changes the embeddings; ggpy converts what is made of a"
                " transformer, a pooling and a normalisation."
            )
    if modules:
        layout.notes += _notes(checkpoint)


def _add_dense(checkpoint: Checkpoint, layout: Layout, folder: str, target: str) -> None:
    """A matrix behind the pooling, as the tensor `target`."""
    settings = Config(checkpoint.json(f"{folder}/config.json"), str(checkpoint.folder / folder / "config.json"))
    n_in, n_out = settings.integer("in_features"), settings.integer("out_features")
    activation = str(settings.get("activation_function") or "")
    if settings.flag("bias", default=True) or not activation.endswith(".Identity"):
        raise GGPYError(
            f"{settings.where} has a bias, or the activation {activation!r:.60}; GGUF has a place for plain matrices."
        )
    checkpoint.tensors |= {f"{folder}.{name}": t for name, t in checkpoint.module_tensors(folder).items()}
    layout.tensors.append(TensorRule(target + ".weight", f"{folder}.linear.weight", (n_out, n_in)))
    layout.metadata |= {f"{layout.arch}.{target}_feat_in": n_in, f"{layout.arch}.{target}_feat_out": n_out}


def _modules(checkpoint: Checkpoint, where: str) -> list[Mapping[str, Any]]:
    text = checkpoint.text("modules.json")
    if text is None:
        return []
    try:
        modules = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise GGPYError(f"{where} is not valid JSON: {error}.") from error
    if not isinstance(modules, list) or not all(isinstance(module, Mapping) for module in modules):
        raise GGPYError(f"{where} must hold a list of modules.")
    return modules


def _mode(settings: Mapping[str, Any], where: str) -> str:
    """The one way of pooling that is asked for."""
    asked = [key for key, value in settings.items() if key.startswith("pooling_mode_") and value is True]
    if isinstance(settings.get("pooling_mode"), str):
        asked.append(settings["pooling_mode"])
    modes = {_MODES.get(name) for name in asked}
    if len(modes) != 1 or None in modes:
        raise GGPYError(
            f"{where} pools by {', '.join(map(quoted, asked)) or 'nothing'}; ggpy knows one of cls, mean and lasttoken."
        )
    return str(modes.pop())


def _notes(checkpoint: Checkpoint) -> list[str]:
    """Notes on changes to texts before the model sees them, which a file has no place for."""
    notes = []
    longest = checkpoint.json("sentence_bert_config.json").get("max_seq_length")
    n_ctx = checkpoint.config.values.get("max_position_embeddings")
    if isinstance(longest, int) and isinstance(n_ctx, int) and longest < n_ctx:
        notes.append(
            f"sentence-transformers cuts this model's texts at {longest} tokens; the file takes them up to {n_ctx}."
        )
    prompts = checkpoint.json("config_sentence_transformers.json").get("prompts")
    words = [text for text in prompts.values() if text] if isinstance(prompts, Mapping) else []
    if words:
        notes.append(
            f"sentence-transformers puts words before this model's texts, such as {quoted(words[0])}; whoever embeds"
            " texts has to put them there."
        )
    return notes
