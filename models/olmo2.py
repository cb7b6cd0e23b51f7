"""OLMo 2 and 3, and OLMoE: queries and keys are normalised over all heads together; norms stand after the branches in
the dense models, and before them in the mixture. OLMo 3 has windows in three of four layers, and scales rope in the
others alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar

from ggpy.errors import GGPYError
from ggpy.models.decoder import Decoder
from ggpy.models.experts import add_expert_keys, expert_count, expert_rules

if TYPE_CHECKING:
    from ggpy.graph.language import Graph
    from ggpy.graph.rope import Rope
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config

_KINDS = ("full_attention", "sliding_attention")

#: What the third generation takes where a config does not say it: `default_theta` of its configuration class.
_USUAL_BASE = 500000.0


class Olmo2(Decoder):
    name = "olmo2"
    hf_names: ClassVar[tuple[str, ...]] = ("Olmo2ForCausalLM", "Olmo3ForCausalLM")
    rope_style = "neox"
    norms_before = False
    norms_after = True
    head_norms = "wide"
    window_period = 4

    def ropes(self, g: Graph) -> list[Rope | None]:
        full = self.file_rope(g)
        base = self.metadata.number("{arch}.rope.freq_base", 10000.0)
        sliding = self.rope(base=self.metadata.number("{arch}.rope.freq_base_swa", base), scaled=False)
        return [sliding if layer.window else full for layer in self.hparams.layers]

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout, add_sliding_windows
        from ggpy.models.hf_parts import Sizes, attention_rules, decoder_rules, norm_rules
        from ggpy.models.hf_rope import add_rope

        arch, sizes, n_ff = cls.name, Sizes.read(config), config.integer("intermediate_size")
        bias, norms = config.flag("attention_bias", default=False), cls._norms()

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            return [
                *norm_rules(to, of, sizes.n_embd, norms),
                *attention_rules(
                    to, of + "self_attn.", sizes, bias=bias, out_bias=bias, norms=("q_norm", "k_norm"),
                    norm_shapes=((sizes.n_q,), (sizes.n_kv,)),
                ),
                *cls._ffn_rules(config, to, of + "mlp.", n_ff, sizes.n_embd),
            ]  # fmt: skip

        tied = config.flag("tie_word_embeddings", default=False)
        metadata = sizes.keys(arch, config) | {f"{arch}.feed_forward_length": n_ff}
        layout = Layout(arch, metadata, decoder_rules(sizes, block, tied=tied), sizes.n_vocab, "model.", tied)
        if "layer_types" in config.defaults:  # the third generation's
            add_rope(layout, config, sizes.head_dim, _rope(config, _KINDS[0]))
            add_sliding_windows(layout, config, sizes.n_layer, period=4, fixed=4)
            sliding = _rope(config, _KINDS[1])
            if (sliding.get("rope_type", "type") or "default") != "default":
                raise GGPYError(f"{sliding.where} scales rope of sliding layers; GGUF's olmo2 has no place for that.")
            if sliding.number("rope_theta") != metadata[f"{arch}.rope.freq_base"]:
                metadata[f"{arch}.rope.freq_base_swa"] = sliding.number("rope_theta")
        else:
            add_rope(layout, config, sizes.head_dim)
        return layout

    @classmethod
    def _norms(cls) -> dict[str, str]:
        return {"post_attention_norm": "post_attention_layernorm", "post_ffw_norm": "post_feedforward_layernorm"}

    @classmethod
    def _ffn_rules(cls, config: Config, to: str, of: str, n_ff: int, n_embd: int) -> list[TensorRule]:
        from ggpy.models.hf_parts import glu_rules

        return glu_rules(to, of, n_ff, n_embd)


def _rope(config: Config, kind: str) -> Config:
    """Rope's settings of a kind of layer. A base beside them is that of full layers."""
    from ggpy.models.hf_config import Config

    parameters = config.section("rope_parameters")
    flat = [
        key for key, value in parameters.values.items() if key not in _KINDS or not isinstance(value, Mapping | None)
    ]
    if flat:
        raise GGPYError(f"{parameters.where} has {flat[0]!r:.40}; it must hold rope's settings by kind of layer.")
    values = dict(parameters.section(kind).values)
    if kind == _KINDS[0]:
        values.update(config.section("rope_scaling").values)
        values.setdefault("rope_theta", config.number("rope_theta", default=_USUAL_BASE))
    values.setdefault("rope_theta", _USUAL_BASE)
    return Config(values, f"{config.where}'s rope of {kind!r}")


class Olmoe(Olmo2):
    name = "olmoe"
    hf_names = ("OlmoeForCausalLM",)
    norms_before = True
    norms_after = False
    window_period = 0
    normalizes = False

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        layout = super().hf_layout(config)
        add_expert_keys(layout, config, normalize=config.flag("norm_topk_prob", default=False), usual=False)
        return layout

    @classmethod
    def _norms(cls) -> dict[str, str]:
        return {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}

    @classmethod
    def _ffn_rules(cls, config: Config, to: str, of: str, n_ff: int, n_embd: int) -> list[TensorRule]:
        from ggpy.models.hf import TensorRule

        n_expert = expert_count(config, config.integer("num_hidden_layers"))
        router = TensorRule(to + "ffn_gate_inp.weight", of + "gate.weight", (n_expert, n_embd))
        return [router, *expert_rules(to, of, n_expert, n_ff, n_embd)]
