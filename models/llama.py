"""Llama 1 to 3.x and what shares its form (Mistral, SmolLM2, Yi …), and Mixtral, whose feed-forwards are experts; GGUF
permutes Q and K for interleaved rope."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.decoder import Decoder
from ggpy.models.experts import add_expert_keys, expert_rules

if TYPE_CHECKING:
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config


class Llama(Decoder):
    name = "llama"
    hf_names = ("LlamaForCausalLM", "LLaMAForCausalLM", "MistralForCausalLM", "MixtralForCausalLM")
    pools = True
    rope_style = "interleaved"

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import TensorRule, decoder_layout

        layout = decoder_layout(config, cls.name, interleaved=True)
        if config.get("num_local_experts") is None:
            return layout
        add_expert_keys(layout, config)
        n_expert, n_embd = layout.metadata["llama.expert_count"], config.integer("hidden_size")
        n_ff = config.integer("intermediate_size")
        layout.tensors = [rule for rule in layout.tensors if ".ffn_" not in rule.target or "norm" in rule.target]
        for layer in range(config.integer("num_hidden_layers")):
            to, of = f"blk.{layer}.", f"model.layers.{layer}.block_sparse_moe."
            layout.tensors.append(TensorRule(to + "ffn_gate_inp.weight", of + "gate.weight", (n_expert, n_embd)))
            layout.tensors += expert_rules(to, of, n_expert, n_ff, n_embd, ("w1", "w3", "w2"))
        return layout
