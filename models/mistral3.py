"""Ministral 3: Llama with YaRN that leaves the scale of scores alone, and queries that grow with the position."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.graph.operations import Temperature
from ggpy.models.decoder import Decoder

if TYPE_CHECKING:
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config

#: Rope where a config does not say it.
_USUAL_ROPE = {
    "rope_type": "yarn", "rope_theta": 1e6, "factor": 16.0, "original_max_position_embeddings": 16384,
    "beta_fast": 32.0, "beta_slow": 1.0, "mscale_all_dim": 1.0, "mscale": 1.0, "llama_4_scaling_beta": 0.1,
}  # fmt: skip


class Mistral3(Decoder):
    name = "mistral3"
    hf_names = ("Ministral3ForCausalLM",)
    rope_style = "interleaved"
    yarn_log_multiplier = True

    def temperature(self) -> Temperature | None:
        m = self.metadata
        beta = m.number("{arch}.attention.temperature_scale", 0.0)
        length = m.integer("{arch}.rope.scaling.original_context_length", self.hparams.n_ctx_train)
        if not 0 <= beta < 1e3 or length < 1:
            raise GGPYError(
                f"The metadata has queries grow by {beta} for every {length} positions, which is impossible."
            )
        return Temperature(beta, length) if beta else None

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import decoder_layout
        from ggpy.models.hf_config import Config

        absent = config.get("rope_scaling") is None and config.get("rope_parameters") is None
        section = config.section("rope_scaling") if config.get("rope_scaling") else config.section("rope_parameters")
        rope = Config(_USUAL_ROPE, config.where) if absent else section
        layout = decoder_layout(config, cls.name, interleaved=True, rope=rope)
        key = f"{cls.name}.rope.scaling."
        if layout.metadata.get(key + "type") == "yarn" and rope.get("mscale") == 1 and rope.get("mscale_all_dim"):
            layout.metadata.pop(key + "attn_factor", None)  # the same, as readers of this architecture have it
            layout.metadata[key + "yarn_log_multiplier"] = rope.number("mscale_all_dim")
        if rope.get("llama_4_scaling_beta"):
            layout.metadata[f"{cls.name}.attention.temperature_scale"] = rope.number("llama_4_scaling_beta")
        return layout
