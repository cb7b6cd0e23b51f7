"""Nomic's BERT (arXiv 2402.01613): rope and a gated feed-forward in BERT's encoder; and its mixture of experts (arXiv
2502.07972), where every second layer chooses two experts without a gate."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from ggpy.errors import GGPYError
from ggpy.models.encoder import Encoder
from ggpy.models.layers import glu_ffn, plain_ffn

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config


class NomicBert(Encoder):
    name = "nomic-bert"
    hf_names: ClassVar[tuple[str, ...]] = ("NomicBertModel",)
    turns = True

    def feed_forward(self, g: Graph, x: Value, layer: int) -> Value:
        return glu_ffn(g, x, layer, self.hparams, "silu")

    @classmethod
    def converts(cls, config: Config) -> bool:
        return not config.get("moe_every_n_layers")

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import TensorRule
        from ggpy.models.hf_config import Config as Settings
        from ggpy.models.hf_encoder import EncoderSizes, encoder_layout, named_rules
        from ggpy.models.hf_rope import add_rope

        # The code that comes with the models has GPT-2's names of sizes.
        old = {
            "n_embd": "hidden_size", "n_layer": "num_hidden_layers", "n_head": "num_attention_heads",
            "n_inner": "intermediate_size", "layer_norm_epsilon": "layer_norm_eps",
            "n_positions": "max_position_embeddings", "rotary_emb_base": "rope_theta",
        }  # fmt: skip
        renamed = {old[key]: value for key, value in config.values.items() if key in old and value is not None}
        config = Settings({**config.values, **renamed}, config.where, config.defaults)
        sizes = EncoderSizes.read(config)
        experts = cls is NomicBertMoe
        wanted: dict[str, Any] = dict.fromkeys(("qkv_proj_bias", "mlp_fc1_bias", "mlp_fc2_bias"), experts)
        wanted["activation_function"] = "gelu" if experts else "swiglu"
        for key, value in wanted.items():
            given = config.get(key)
            if given != value and (given is not None or "n_embd" in config.values):
                raise GGPYError(f"{config.where} gives {key!r} as {given!r:.40}; ggpy converts {value!r}.")
        n_ctx = config.integer("max_position_embeddings")
        if "n_positions" in config.values and config.get("max_trained_positions") is not None:
            n_ctx = min(n_ctx, config.integer("max_trained_positions"))  # further ones need a stretched rope
        layout = encoder_layout(cls, config, sizes, n_ctx, "nomic_bert.")
        add_rope(layout, config, sizes.n_embd // sizes.n_head)
        n_embd = sizes.n_embd
        layout.tensors += [
            TensorRule("token_embd.weight", "embeddings.word_embeddings.weight", (sizes.n_vocab, n_embd)),
            TensorRule(
                "token_types.weight", "embeddings.token_type_embeddings.weight", (sizes.n_types, n_embd), required=False
            ),
            *named_rules("", "", {"token_embd_norm": "embeddings.LayerNorm"}, n_embd),
        ]
        norms = {"attn_output_norm": "post_attention_layernorm", "layer_output_norm": "post_mlp_layernorm"}
        for layer in range(sizes.n_layer):
            to, of = f"blk.{layer}.", f"layers.{layer}."
            layout.tensors += named_rules(to, of, norms, n_embd)
            layout.tensors += named_rules(
                to, of + "self_attn.", {"attn_output": "o_proj"}, n_embd, n_embd, bias=experts
            )
            layout.tensors += cls.qkv_rules(to, of + "self_attn.", n_embd, bias=experts)
            layout.tensors += cls._ffn(config, layer, to, of + "mlp.", sizes.n_ff, n_embd)
        # As transformers renames what the models' own code saves.
        layout.renames = (
            (r"^encoder\.layers\.", "layers."),
            (r"^emb_ln\.", "embeddings.LayerNorm."),
            (r"\.attn\.out_proj\.", ".self_attn.o_proj."),
            (r"\.attn\.Wqkv\.", ".self_attn.Wqkv."),
            (r"\.mlp\.fc11\.", ".mlp.up_proj."),
            (r"\.mlp\.fc12\.", ".mlp.gate_proj."),
            (r"\.mlp\.fc2\.", ".mlp.down_proj."),
            (r"\.norm1\.", ".post_attention_layernorm."),
            (r"\.norm2\.", ".post_mlp_layernorm."),
        )
        return layout

    @staticmethod
    def qkv_rules(to: str, of: str, n_embd: int, *, bias: bool) -> list[TensorRule]:
        """Query, key and value as one matrix, from one or, as transformers saves them, from three."""
        from ggpy.models.hf import TensorRule
        from ggpy.models.hf_sources import Stored, concat

        rules = []
        for part, shape in (("weight", (n_embd, n_embd)), *((("bias", (n_embd,)),) if bias else ())):
            three = concat([Stored(f"{of}{name}_proj.{part}", shape) for name in "qkv"])
            one = Stored(f"{of}Wqkv.{part}", (3 * n_embd, *shape[1:]))
            rules.append(TensorRule(f"{to}attn_qkv.{part}", three, alternative=one))
        return rules

    @classmethod
    def _ffn(cls, config: Config, layer: int, to: str, of: str, n_ff: int, n_embd: int) -> list[TensorRule]:
        from ggpy.models.hf_parts import glu_rules

        return glu_rules(to, of, n_ff, n_embd)


class NomicBertMoe(NomicBert):
    name = "nomic-bert-moe"

    def check(self, freq_factors: Any = None, long_factors: Any = None) -> None:
        super().check(freq_factors, long_factors)
        if not self.hparams.n_expert:
            raise GGPYError(f"{self.metadata.where} gives no number of experts ('{self.name}.expert_count').")

    def feed_forward(self, g: Graph, x: Value, layer: int) -> Value:
        """The sum of the chosen experts, each down(gelu(up(x))) times its share of a softmax over all of them; in
        other layers one such unit."""
        at, hp = f"blk.{layer}.", self.hparams
        if not g.has(at + "ffn_gate_inp.weight"):
            return plain_ffn(g, x, layer, hp, "gelu_erf")
        route = g.route(g.linear(x, at + "ffn_gate_inp", hp.n_expert), hp.n_expert_used)
        y = g.activation(g.expert_linear(x, at + "ffn_up_exps", hp.layers[layer].n_ff, route), "gelu_erf")
        y = g.combine(g.expert_linear(y, at + "ffn_down_exps", hp.n_embd, route), route)
        return g.shift_columns(y, at + "ffn_down.bias") if g.has(at + "ffn_down.bias") else y

    @classmethod
    def converts(cls, config: Config) -> bool:
        return not super().converts(config)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        layout = super().hf_layout(config)
        every, arch = config.integer("moe_every_n_layers"), cls.name
        if every < 2:
            raise GGPYError(f"{config.where} gives 'moe_every_n_layers' as {every}; ggpy knows 2 and more.")
        layout.metadata[f"{arch}.moe_every_n_layers"] = every
        layout.metadata[f"{arch}.expert_count"] = n_expert = config.integer("num_experts", most=(1 << 16) - 1)
        layout.metadata[f"{arch}.expert_used_count"] = config.integer("moe_top_k", most=n_expert)
        layout.notes.append(
            "the file has the bias behind each layer's experts, which llama.cpp leaves out: it does not load files"
            " with tensors that it does not know."
        )
        return layout

    @classmethod
    def _ffn(cls, config: Config, layer: int, to: str, of: str, n_ff: int, n_embd: int) -> list[TensorRule]:
        from ggpy.models.hf import TensorRule
        from ggpy.models.hf_encoder import named_rules
        from ggpy.models.hf_sources import Stored

        if layer % config.integer("moe_every_n_layers") != 1:
            return [
                *named_rules(to, of, {"ffn_up": "fc1"}, n_ff, n_embd),
                *named_rules(to, of, {"ffn_down": "down_proj"}, n_embd, n_ff),
            ]
        n_expert = config.integer("num_experts", most=(1 << 16) - 1)
        up, down = (Stored(f"{of}experts.mlp.{name}", (n_expert * n_ff, n_embd)) for name in ("w1", "w2"))
        return [
            TensorRule(to + "ffn_gate_inp.weight", of + "router.layer.weight", (n_expert, n_embd)),
            TensorRule(to + "ffn_up_exps.weight", up.reshape(n_expert, n_ff, n_embd)),
            TensorRule(to + "ffn_down_exps.weight", down.reshape(n_expert, n_ff, n_embd).transpose()),
            TensorRule(to + "ffn_down.bias", of + "experts.bias", (n_embd,)),
        ]
