"""LFM2: short convolutions between gates in most layers, attention in the others; and its mixtures of experts."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.models.base import Architecture
from ggpy.models.experts import Experts, add_expert_keys, expert_count, expert_ffn, expert_rules
from ggpy.models.layers import glu_ffn, self_attention

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config
    from ggpy.models.hf_parts import Sizes

#: The names of gate, up and down in a feed-forward.
_NAMES = ("w1", "w3", "w2")


class Lfm2(Architecture):
    """Layers without heads for keys and values (`head_count_kv` by layer) are convolutions."""

    name = "lfm2"
    hf_names = ("Lfm2ForCausalLM",)
    rope_style = "neox"

    def build(self, g: Graph) -> Value:
        hp, rope = self.hparams, self.rope(g.vector("rope_freqs.weight"))
        x = g.embed(hp.n_embd)
        for layer in g.layers(hp.n_layer):
            at = f"blk.{layer}."
            normed = g.norm(x, at + "attn_norm", hp.norm_eps)
            if hp.layers[layer].n_head_kv:
                x = g.add(x, self_attention(g, normed, layer, hp, rope))
            else:
                x = g.add(x, self._short_convolution(g, normed, layer))
            x = g.add(x, self._feed_forward(g, g.norm(x, at + "ffn_norm", hp.norm_eps), layer))
        # The norm of the last layer's result; in files it has the name of one of embeddings.
        return g.output(g.norm(g.select_outputs(x), "token_embd_norm", hp.norm_eps), hp.n_vocab)

    def _short_convolution(self, g: Graph, x: Value, layer: int) -> Value:
        """out(c * convolution(b * u)), where b, c and u are thirds of one product."""
        at, n_embd = f"blk.{layer}.shortconv.", self.hparams.n_embd
        both = g.linear(x, at + "in_proj", 3 * n_embd)
        b, c, u = (both.columns(third * n_embd, n_embd) for third in range(3))
        width = self.metadata.integer("{arch}.shortconv.l_cache")
        if width < 2:
            raise GGPYError(f"The metadata gives convolutions of {width} tokens; they take at least 2.")
        return g.linear(g.mul(c, g.conv_state(g.mul(b, u), at + "conv", width, layer)), at + "out_proj", n_embd)

    def _feed_forward(self, g: Graph, x: Value, layer: int) -> Value:
        return glu_ffn(g, x, layer, self.hparams)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        import numpy as np

        from ggpy.models.hf import Layout, TensorRule
        from ggpy.models.hf_parts import Sizes, head_rule
        from ggpy.models.hf_rope import add_rope

        arch, sizes = cls.name, Sizes.read(config)
        n_embd, n_ff, width = sizes.n_embd, cls._width(config), config.integer("conv_L_cache", least=2)
        tensors = [TensorRule("token_embd.weight", "model.embed_tokens.weight", (sizes.n_vocab, n_embd))]
        full = cls._attention_layers(config, sizes.n_layer)
        for layer in range(sizes.n_layer):
            to, of = f"blk.{layer}.", f"model.layers.{layer}."
            tensors.append(TensorRule(to + "attn_norm.weight", of + "operator_norm.weight", (n_embd,)))
            tensors += cls._attention_rules(to, of, sizes) if full[layer] else cls._conv_rules(to, of, n_embd, width)
            tensors.append(TensorRule(to + "ffn_norm.weight", of + "ffn_norm.weight", (n_embd,)))
            tensors += cls._ffn_rules(config, layer, to, of + "feed_forward.", n_ff, n_embd)
        tensors.append(TensorRule("token_embd_norm.weight", "model.embedding_norm.weight", (n_embd,)))
        tied = config.flag("tie_embedding", "tie_word_embeddings", default=True)  # the older key goes before the newer
        tensors.append(head_rule(sizes, tied=tied))
        metadata = sizes.keys(arch, config, eps="norm_eps") | {
            f"{arch}.feed_forward_length": n_ff,
            f"{arch}.attention.head_count_kv": np.array(full, np.int32) * sizes.n_head_kv,
            f"{arch}.shortconv.l_cache": width,
        }
        layout = Layout(arch, metadata, tensors, sizes.n_vocab, "model.", tied)
        add_rope(layout, config, sizes.head_dim)
        cls._add_keys(layout, config)
        return layout

    @classmethod
    def _add_keys(cls, layout: Layout, config: Config) -> None:
        """Add keys that only a relative has."""

    @staticmethod
    def _width(config: Config) -> int:
        """The width of feed-forwards, which transformers' class computes from several keys."""
        n_ff = config.integer("block_ff_dim", "intermediate_size")
        if config.flag("block_auto_adjust_ff_dim", default=True):
            n_ff = int(2 * n_ff / 3)
            if config.get("block_ffn_dim_multiplier") is not None:
                multiple = config.integer("block_multiple_of")
                n_ff = int(config.number("block_ffn_dim_multiplier") * n_ff)
                n_ff = multiple * ((n_ff + multiple - 1) // multiple)
        if not 0 < n_ff < 1 << 31:
            raise GGPYError(f"{config.where} gives feed-forwards a width of {n_ff}, which no model can have.")
        return n_ff

    @staticmethod
    def _attention_layers(config: Config, n_layer: int) -> list[bool]:
        """Which layers are attention: by 'layer_types', else those in 'full_attn_idxs', else all."""
        full = config.layer_kinds(n_layer, {"conv": False, "full_attention": True})
        listed = config.get("full_attn_idxs")
        if full is None:
            if listed is None:
                return [True] * n_layer
            if not isinstance(listed, list) or not all(type(layer) is int for layer in listed):
                raise GGPYError(f"{config.where} gives 'full_attn_idxs' as {listed!r:.60}; it must list layers.")
            return [layer in listed for layer in range(n_layer)]
        if True not in full:
            raise GGPYError(f"{config.where} names no layer of 'full_attention' in 'layer_types'; ggpy needs one.")
        return full

    @staticmethod
    def _attention_rules(to: str, of: str, sizes: Sizes) -> list[TensorRule]:
        from ggpy.models.hf import TensorRule

        of += "self_attn."
        return [
            TensorRule(to + "attn_q.weight", of + "q_proj.weight", (sizes.n_q, sizes.n_embd)),
            TensorRule(to + "attn_k.weight", of + "k_proj.weight", (sizes.n_kv, sizes.n_embd)),
            TensorRule(to + "attn_v.weight", of + "v_proj.weight", (sizes.n_kv, sizes.n_embd)),
            TensorRule(to + "attn_output.weight", of + "out_proj.weight", (sizes.n_embd, sizes.n_q)),
            TensorRule(to + "attn_q_norm.weight", of + "q_layernorm.weight", (sizes.head_dim,)),
            TensorRule(to + "attn_k_norm.weight", of + "k_layernorm.weight", (sizes.head_dim,)),
        ]

    @staticmethod
    def _conv_rules(to: str, of: str, n_embd: int, width: int) -> list[TensorRule]:
        from ggpy.models.hf import TensorRule
        from ggpy.models.hf_sources import Stored

        conv = Stored(of + "conv.conv.weight", (n_embd, 1, width)).reshape(n_embd, width)
        return [
            TensorRule(to + "shortconv.conv.weight", conv),
            TensorRule(to + "shortconv.in_proj.weight", of + "conv.in_proj.weight", (3 * n_embd, n_embd)),
            TensorRule(to + "shortconv.out_proj.weight", of + "conv.out_proj.weight", (n_embd, n_embd)),
        ]

    @classmethod
    def _ffn_rules(cls, config: Config, layer: int, to: str, of: str, n_ff: int, n_embd: int) -> list[TensorRule]:
        from ggpy.models.hf_parts import glu_rules

        return glu_rules(to, of, n_ff, n_embd, names=_NAMES)


class Lfm2Moe(Lfm2):
    """The first layers are dense; experts are weighted by sigmoids, and chosen with a bias."""

    name = "lfm2moe"
    hf_names = ("Lfm2MoeForCausalLM",)

    def _feed_forward(self, g: Graph, x: Value, layer: int) -> Value:
        if layer < self.metadata.integer("{arch}.leading_dense_block_count", 0):
            return glu_ffn(g, x, layer, self.hparams)
        return expert_ffn(g, x, layer, self.hparams.n_embd, Experts.read(self.metadata, gating="sigmoid"))

    @staticmethod
    def _width(config: Config) -> int:
        return config.integer("intermediate_size")

    @classmethod
    def _add_keys(cls, layout: Layout, config: Config) -> None:
        import numpy as np

        n_layer, n_dense = config.integer("num_hidden_layers"), config.integer("num_dense_layers", least=0)
        layout.metadata[f"{cls.name}.leading_dense_block_count"] = n_dense
        layout.metadata[f"{cls.name}.expert_gating_func"] = 2  # sigmoid
        add_expert_keys(
            layout,
            config,
            config.integer("moe_intermediate_size"),
            normalize=config.flag("norm_topk_prob", default=True),
            scale=config.number("routed_scaling_factor", default=1.0),
        )
        if not config.flag("use_expert_bias", default=True):  # other readers look for one
            for layer in range(n_dense, n_layer):
                n_expert = layout.metadata[f"{cls.name}.expert_count"]
                layout.generated[f"blk.{layer}.exp_probs_b.bias"] = np.zeros(n_expert, np.float32)

    @classmethod
    def _ffn_rules(cls, config: Config, layer: int, to: str, of: str, n_ff: int, n_embd: int) -> list[TensorRule]:
        from ggpy.models.hf import TensorRule

        if layer < config.integer("num_dense_layers", least=0):
            return super()._ffn_rules(config, layer, to, of, n_ff, n_embd)
        n_expert = expert_count(config, config.integer("num_hidden_layers"))
        rules = expert_rules(to, of, n_expert, config.integer("moe_intermediate_size"), n_embd, _NAMES)
        if config.flag("use_expert_bias", default=True):
            rules.append(TensorRule(to + "exp_probs_b.bias", of + "expert_bias", (n_expert,)))
        return [TensorRule(to + "ffn_gate_inp.weight", of + "gate.weight", (n_expert, n_embd)), *rules]
