"""Tiny checkpoints with a block that predicts further tokens, whose logits torch has computed.

`tests/data/hf_predictors.npz` holds for each case float32 `logits` [n, COLUMNS] of the head at POSITIONS, its inputs
being the hidden rows of TOKENS (transformers' `last_hidden_state`) and the token after each, and at last those of the
position behind, where the head goes on from its own row and the token FURTHER. They are from transformers 5.24's
decoder layer of the family (`Qwen3_5DecoderLayer`, `Qwen3_5MoeDecoderLayer`, `Glm4MoeDecoderLayer`, eager attention,
float32) between the projection of the two normed inputs and the norm and matrix behind it, as vLLM composes them
(qwen3_next_mtp.py, glm4_moe_mtp.py).
"""

from __future__ import annotations

from pathlib import Path

import numpy as np

from tests.support import hf_families_dense as dense
from tests.support import hf_families_moe as moe
from tests.support.recorded import recorded, unpack, write_folder

TOKENS = dense.TOKENS
POSITIONS = [0, 1, 15, 40, 63, 64, 94]  # the last token has none after it
FURTHER = 77
COLUMNS = range(0, 461, 20)
DATA = Path(__file__).parents[1] / "data" / "hf_predictors.npz"
CASES = ("qwen3_5_text", "qwen3_5_moe_text", "glm4_moe", "glm4_moe, own matrices")


def tensors(case: str) -> dict[str, np.ndarray]:
    """The checkpoint's tensors by name."""
    rng = np.random.RandomState(2)
    if case.startswith("qwen"):
        of = moe.Case(case)
        shapes = moe.tensor_shapes(of)
        n_embd = of.config["hidden_size"]
        layer = {name.removeprefix("model.layers.3."): s for name, s in shapes.items() if ".layers.3." in name}
        shapes |= {f"mtp.layers.0.{name}": shape for name, shape in layer.items()}
        shapes |= {f"mtp.{name}.weight": (n_embd,) for name in ("pre_fc_norm_embedding", "pre_fc_norm_hidden", "norm")}
        shapes["mtp.fc.weight"] = (n_embd, 2 * n_embd)
        return {name: moe.values(rng, of, name, shape) for name, shape in shapes.items()}
    kind, _, own = case.partition(", ")
    shapes = unpack(recorded(dense.DATA)[kind][1])
    n_embd, n_vocab = dense.CONFIGS[kind]["hidden_size"], dense.CONFIGS[kind]["vocab_size"]
    layer = {name.removeprefix("model.layers.3."): s for name, s in shapes.items() if ".layers.3." in name}
    layer |= {f"{name}.weight": (n_embd,) for name in ("enorm", "hnorm", "shared_head.norm")}
    layer["eh_proj.weight"] = (n_embd, 2 * n_embd)
    if own:
        layer |= {"embed_tokens.weight": (n_vocab, n_embd), "shared_head.head.weight": (n_vocab, n_embd)}
    shapes |= {f"model.layers.4.{name}": shape for name, shape in layer.items()}
    return {name: dense.values(rng, name, shape) for name, shape in shapes.items()}


def write(folder: Path, case: str) -> None:
    """The checkpoint of a case."""
    folder.mkdir(parents=True, exist_ok=True)
    kind = case.partition(",")[0]
    config = moe.CONFIGS[kind] if kind.startswith("qwen") else dense.CONFIGS[kind]
    write_folder(folder, config, tensors(case))
