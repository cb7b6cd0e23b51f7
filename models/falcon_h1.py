"""Falcon-H1: attention and a Mamba-2 layer side by side behind one norm, then a feed-forward. Files have the factors of
checkpoints multiplied into their matrices."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.models.decoder import Decoder
from ggpy.models.state_space import StateSpace, mamba2_mixer

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.graph.rope import Rope
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config


class FalconH1(Decoder):
    name = "falcon-h1"
    hf_names = ("FalconH1ForCausalLM",)
    rope_style = "neox"

    def attention(self, g: Graph, x: Value, layer: int, rope: Rope | None) -> Value:
        hp = self.hparams
        scanned = mamba2_mixer(g, x, layer, StateSpace.read(self.metadata), hp.n_embd, hp.norm_eps)
        return g.add(scanned, super().attention(g, x, layer, rope))

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout, TensorRule
        from ggpy.models.hf_parts import Sizes, attention_rules, decoder_rules, glu_rules, norm_rules
        from ggpy.models.hf_rope import add_rope
        from ggpy.models.hf_sources import Stored
        from ggpy.models.hf_state_space import mamba2_rules, state_space_keys

        arch, sizes = cls.name, Sizes.read(config)
        n_embd, n_ff, state = sizes.n_embd, config.integer("intermediate_size"), _state_space(config, sizes.n_embd)
        attention_bias, mlp_bias, out_bias, proj_bias, normed = (
            config.flag(key, default=False)
            for key in ("attention_bias", "mlp_bias", "projectors_bias", "mamba_proj_bias", "mamba_rms_norm")
        )
        if normed and config.flag("mamba_norm_before_gate", default=True):
            raise GGPYError(
                f"{config.where} gives 'mamba_norm_before_gate' as true; files of falcon-h1 normalise behind the gate."
            )
        factors, parts = _factors(config), _numbers(config, "ssm_multipliers", 5)
        in_factor, conv_bias = config.number("ssm_in_multiplier"), config.flag("mamba_conv_bias", default=True)

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            rules = [
                *norm_rules(to, of, n_embd, {"attn_norm": "input_layernorm", "ffn_norm": "pre_ff_layernorm"}),
                *mamba2_rules(
                    to, of + "mamba.", state, n_embd, bias=proj_bias, conv_bias=conv_bias, out_bias=out_bias,
                    norm=normed, factors=parts, in_factor=in_factor,
                ),
                *attention_rules(to, of + "self_attn.", sizes, bias=attention_bias, out_bias=attention_bias),
                *glu_rules(to, of + "feed_forward.", n_ff, n_embd, bias=mlp_bias),
            ]  # fmt: skip
            return [
                TensorRule(rule.target, rule.values.times(factors.get(rule.target.removeprefix(to), 1.0)))
                for rule in rules
            ]

        names = ("model.embed_tokens", "model.layers", "model.final_layernorm", "lm_head")
        rules = decoder_rules(sizes, block, tied=False, names=names)
        tied, table = config.flag("tie_word_embeddings", default=False), (sizes.n_vocab, n_embd)
        into, out = config.number("embedding_multiplier"), config.number("lm_head_multiplier")
        embedding, head = Stored("model.embed_tokens.weight", table), Stored("lm_head.weight", table)
        rules[0] = TensorRule("token_embd.weight", embedding.times(into))
        if not tied:
            rules[-1] = TensorRule("output.weight", head.times(out))
        elif into == out:
            rules[-1] = TensorRule("output.weight", head.times(out), required=False)
        else:  # one matrix in the checkpoint, with two factors
            rules[-1] = TensorRule("output.weight", embedding.times(out), alternative=head.times(out))
        metadata = {
            **sizes.keys(arch, config),
            f"{arch}.attention.key_length": sizes.head_dim,
            f"{arch}.attention.value_length": sizes.head_dim,
            f"{arch}.feed_forward_length": n_ff,
            **state_space_keys(arch, state),
        }
        layout = Layout(arch, metadata, rules, sizes.n_vocab, "model.", tied)
        add_rope(layout, config, sizes.head_dim)
        return layout


def _factors(config: Config) -> dict[str, float]:
    """The factor of each tensor of a layer, but for the state-space layer's input."""
    into, key = config.number("attention_in_multiplier"), config.number("key_multiplier")
    out, scanned = config.number("attention_out_multiplier"), config.number("ssm_out_multiplier")
    gate, down = _numbers(config, "mlp_multipliers", 2)
    factors = {"attn_q.weight": into, "attn_k.weight": into * key, "attn_k.bias": key, "attn_v.weight": into}
    for name, factor in (("attn_output", out), ("ssm_out", scanned), ("ffn_gate", gate), ("ffn_down", down)):
        factors[f"{name}.weight"] = factors[f"{name}.bias"] = factor
    return factors


def _numbers(config: Config, key: str, n: int) -> tuple[float, ...]:
    """`n` factors; all 1 where the config has none."""
    values = config.get(key)
    if values is None:
        return (1.0,) * n
    numbers = isinstance(values, list) and all(type(x) in (int, float) and 0 < x < 3e38 for x in values)
    if not numbers or len(values) != n:
        raise GGPYError(f"{config.where} gives {key!r} as {values!r:.60}; it must list {n} numbers above 0.")
    return tuple(map(float, values))


def _state_space(config: Config, n_embd: int) -> StateSpace:
    n_head = config.integer("mamba_n_heads", most=1 << 16)
    n_inner = config.integer("mamba_d_ssm", default=config.integer("mamba_expand") * n_embd)
    if config.get("mamba_d_head") != "auto" and config.integer("mamba_d_head") * n_head != n_inner:
        raise GGPYError(
            f"{config.where} gives {n_head} 'mamba_n_heads' of 'mamba_d_head' {config.get('mamba_d_head')}, which must"
            f" make up {n_inner} columns."
        )
    return StateSpace(
        n_inner=n_inner,
        d_state=config.integer("mamba_d_state"),
        n_head=n_head,
        n_group=config.integer("mamba_n_groups"),
        width=config.integer("mamba_d_conv"),
    )
