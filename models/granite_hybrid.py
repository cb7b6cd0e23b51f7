"""IBM's Granite 4 with Mamba-2 layers: Granite whose layers have a state or attention, before a feed-forward or
experts; and the files of its relatives without such layers."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.models.base import MAX_LAYERS
from ggpy.models.experts import add_expert_keys, expert_count
from ggpy.models.granite import FACTORS, Granite, GraniteMoe, mixture_rules
from ggpy.models.state_space import StateSpace, mamba2_mixer

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.graph.rope import Rope
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config

#: Kinds of layers by the names that configs give them.
_KINDS = {"mamba": True, "attention": False, "linear_attention": True, "full_attention": False}


class GraniteHybrid(Granite):
    """Layers without heads for keys and values have a state."""

    name = "granitehybrid"
    hf_names = ("GraniteMoeHybridForCausalLM",)

    def attention(self, g: Graph, x: Value, layer: int, rope: Rope | None) -> Value:
        hp = self.hparams
        if hp.layers[layer].n_head_kv:
            return super().attention(g, x, layer, rope)
        return mamba2_mixer(g, x, layer, StateSpace.read(self.metadata), hp.n_embd, hp.norm_eps)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        """The layout, of `granite` or `granitemoe` where every layer is attention."""
        import numpy as np

        from ggpy.models.hf import Layout
        from ggpy.models.hf_parts import Sizes, attention_rules, decoder_rules, fused_glu_rules, norm_rules
        from ggpy.models.hf_rope import add_rope
        from ggpy.models.hf_sources import Stored
        from ggpy.models.hf_state_space import mamba2_rules, state_space_keys

        sizes, recurrent = Sizes.read(config), _recurrent_layers(config)
        n_embd, n_shared = sizes.n_embd, config.integer("shared_intermediate_size")
        mixed = config.integer("num_local_experts", default=0, least=0) > 0
        n_expert = expert_count(config, sizes.n_layer) if mixed else 0
        n_ff = config.integer("intermediate_size") if mixed else n_shared
        arch = cls.name if any(recurrent) else GraniteMoe.name if mixed else Granite.name
        state = _state_space(config, n_embd) if any(recurrent) else None
        bias, proj_bias = (config.flag(key, default=False) for key in ("attention_bias", "mamba_proj_bias"))
        conv_bias = config.flag("mamba_conv_bias", default=True)
        norms = {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            rules = norm_rules(to, of, n_embd, norms)
            if state and recurrent[layer]:
                rules += mamba2_rules(
                    to, of + "mamba.", state, n_embd, bias=proj_bias, conv_bias=conv_bias, out_bias=proj_bias
                )
            else:
                rules += attention_rules(to, of + "self_attn.", sizes, bias=bias, out_bias=bias, interleaved=True)
            if mixed:
                return rules + mixture_rules(to, of, n_ff, n_expert, n_shared, n_embd)
            both = Stored(of + "shared_mlp.input_linear.weight", (2 * n_ff, n_embd))
            return rules + fused_glu_rules(to, both, of + "shared_mlp.output_linear.weight", n_ff, n_embd)

        tied = config.flag("tie_word_embeddings", default=False)
        metadata = {
            **sizes.keys(arch, config),
            f"{arch}.feed_forward_length": n_ff,
            **{f"{arch}.{key}": config.number(name) for name, key in FACTORS.items()},
        }
        if state:
            heads = np.array([0 if carried else sizes.n_head_kv for carried in recurrent], np.int32)
            metadata |= {f"{arch}.attention.head_count_kv": heads, **state_space_keys(arch, state)}
        layout = Layout(arch, metadata, decoder_rules(sizes, block, tied=tied), sizes.n_vocab, "model.", tied)
        if mixed:
            add_expert_keys(layout, config)
            layout.metadata[f"{arch}.expert_shared_feed_forward_length"] = n_shared
        turns = config.get("position_embedding_type") == "rope"
        layout.metadata[f"{arch}.rope.scaling.finetuned"] = turns  # how llama.cpp says whether there is rope
        if turns:
            add_rope(layout, config, sizes.head_dim)
        return layout


def _recurrent_layers(config: Config) -> list[bool]:
    """Which layers have a state: all, where the config does not say."""
    n_layer = config.integer("num_hidden_layers", most=MAX_LAYERS)
    return config.layer_kinds(n_layer, _KINDS, "layers_block_type") or [True] * n_layer


def _state_space(config: Config, n_embd: int) -> StateSpace:
    n_head, n_inner = config.integer("mamba_n_heads", most=1 << 16), config.integer("mamba_expand") * n_embd
    if config.get("mamba_d_head") != "auto" and config.integer("mamba_d_head") * n_head != n_inner:
        raise GGPYError(
            f"{config.where} gives {n_head} 'mamba_n_heads' of 'mamba_d_head' {config.get('mamba_d_head')}, which must"
            f" make up the {n_inner} columns of 'mamba_expand'."
        )
    return StateSpace(
        n_inner=n_inner,
        d_state=config.integer("mamba_d_state"),
        n_head=n_head,
        n_group=config.integer("mamba_n_groups"),
        width=config.integer("mamba_d_conv"),
    )
