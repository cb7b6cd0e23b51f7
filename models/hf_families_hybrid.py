"""More families of checkpoints, as in `ggpy.models.hf_families`: state-space models and their hybrids with attention.

Sources: the configuration classes of transformers 5.24 and the code that reads them.
"""

from __future__ import annotations

import math
from typing import Any

from ggpy.models.hf_family import UNREAD, Family, without

_MAMBA: dict[str, Any] = {
    "vocab_size": 50280, "hidden_size": 768, "intermediate_size": None, "state_size": 16, "num_hidden_layers": 32,
    "layer_norm_epsilon": 1e-5, "expand": 2, "conv_kernel": 4, "use_bias": False, "use_conv_bias": True,
    "time_step_rank": "auto", "tie_word_embeddings": True,
}  # fmt: skip
_FALCON_MAMBA = {**_MAMBA, "mixer_rms_eps": 1e-6}
_MAMBA2 = {
    **without(_MAMBA, "intermediate_size", "time_step_rank"), "num_heads": 128, "head_dim": 64, "vocab_size": 32768,
    "hidden_size": 4096, "state_size": 128, "num_hidden_layers": 64, "n_groups": 8, "tie_word_embeddings": False,
}  # fmt: skip

#: Keys beside a state-space layer's sizes.
_BESIDE = {
    **dict.fromkeys(
        (
            "time_step_scale", "time_step_min", "time_step_max", "time_step_init_scheme", "time_step_floor",
            "rescale_prenorm_residual",
        ),
        "training alone",
    ),
    **dict.fromkeys(
        ("residual_in_fp32", "use_mambapy", "use_falcon_mambapy", "use_associative_scan", "chunk_size"),
        "how the original is run, not what it computes",
    ),
    **dict.fromkeys(
        ("d_model", "d_inner", "fused_add_norm", "pad_vocab_size_multiple", "rms_norm", "ssm_cfg"), UNREAD
    ),
}  # fmt: skip
#: No limit of the time step, as JSON and as transformers writes it.
UNLIMITED: tuple[Any, ...] = ([0.0, math.inf], [0.0, {"__float__": "Infinity"}], None)

#: By the config's "model_type".
HYBRID: dict[str, Family] = {
    "mamba": Family(("MambaForCausalLM", "MambaModel"), _MAMBA, ignored=_BESIDE),
    "falcon_mamba": Family(("FalconMambaForCausalLM", "FalconMambaModel"), _FALCON_MAMBA, ignored=_BESIDE),
    "mamba2": Family(
        ("Mamba2ForCausalLM", "Mamba2Model"),
        _MAMBA2,
        {"time_step_limit": UNLIMITED},
        {**_BESIDE, "time_step_rank": UNREAD},
    ),
}
