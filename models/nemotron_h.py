"""NVIDIA's Nemotron-H and Nemotron 3: each layer is one of a state-space layer, attention without positions, a
feed-forward, or experts; and the files of those with experts."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from ggpy.errors import GGPYError
from ggpy.models.base import MAX_LAYERS, Architecture
from ggpy.models.experts import Experts, expert_count, expert_ffn, group_keys, plain_shared_expert
from ggpy.models.layers import plain_ffn, self_attention
from ggpy.models.state_space import StateSpace, mamba2_mixer

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout, MetadataValue, TensorRule
    from ggpy.models.hf_config import Config
    from ggpy.models.hf_parts import Sizes

#: Kinds of layers by their letter in 'hybrid_override_pattern' and by their names in 'layers_block_type'.
_LETTERS = {"M": "mamba", "*": "attention", "-": "mlp", "E": "moe"}
_KINDS = {kind: kind for kind in _LETTERS.values()} | {"linear_attention": "mamba", "full_attention": "attention"}


class NemotronH(Architecture):
    """Layers with neither heads for keys and values nor a feed-forward's width have a state."""

    name = "nemotron_h"
    hf_names: ClassVar[tuple[str, ...]] = ("NemotronHForCausalLM",)

    def build(self, g: Graph) -> Value:
        hp, state = self.hparams, StateSpace.read(self.metadata)
        x = g.embed(hp.n_embd)
        for layer in g.layers(hp.n_layer):
            size, normed = hp.layers[layer], g.norm(x, f"blk.{layer}.attn_norm", hp.norm_eps)
            if size.n_ff:
                y = self.feed_forward(g, normed, layer)
            elif size.n_head_kv:
                y = self_attention(g, normed, layer, hp, None)
            else:
                y = mamba2_mixer(g, normed, layer, state, hp.n_embd, hp.norm_eps)
            x = g.add(x, y)
        return g.output(g.norm(g.select_outputs(x), "output_norm", hp.norm_eps), hp.n_vocab)

    def feed_forward(self, g: Graph, x: Value, layer: int) -> Value:
        return plain_ffn(g, x, layer, self.hparams, "relu2")

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        """The layout, of `nemotron_h_moe` where a layer has experts."""
        import numpy as np

        from ggpy.models.hf import Layout, TensorRule
        from ggpy.models.hf_config import Config
        from ggpy.models.hf_parts import Sizes, decoder_rules
        from ggpy.models.hf_state_space import state_space_keys

        kinds = _kinds(config)
        sizes = Sizes.read(Config({**config.values, "num_hidden_layers": len(kinds)}, config.where, config.defaults))
        mixed, state = "moe" in kinds, _state_space(config)
        arch, rules_of = (NemotronHMoe.name if mixed else cls.name), _Mixers(config, sizes, state)
        n_expert = expert_count(config, sizes.n_layer, "n_routed_experts") if mixed else 0
        widths = {
            "mlp": config.integer("intermediate_size"),
            "moe": config.integer("moe_intermediate_size") if mixed else 0,
        }

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            norm = TensorRule(to + "attn_norm.weight", of + "norm.weight", (sizes.n_embd,))
            return [norm, *rules_of.rules(kinds[layer], to, of + "mixer.", n_expert)]

        tied = config.flag("tie_word_embeddings", default=False)
        metadata: dict[str, MetadataValue] = {
            **sizes.keys(arch, config, eps="layer_norm_epsilon"),
            f"{arch}.feed_forward_length": np.array([widths.get(kind, 0) for kind in kinds], np.int32),
            f"{arch}.attention.head_count_kv": np.array(
                [sizes.n_head_kv * (kind == "attention") for kind in kinds], np.int32
            ),
            **state_space_keys(arch, state),
            **(_expert_keys(arch, config, n_expert) if mixed else {}),
        }
        del metadata[f"{arch}.rope.dimension_count"]
        names = ("backbone.embeddings", "backbone.layers", "backbone.norm_f", "lm_head")
        rules = decoder_rules(sizes, block, tied=tied, names=names)
        further = "the layers that predict further tokens ('mtp') are left out: the text is the same without."
        return Layout(
            arch, metadata, rules, sizes.n_vocab, "backbone.", tied,
            renames=((r"^model\.", "backbone."),), left_out=((r"^mtp\.", further),),
        )  # fmt: skip


class NemotronHMoe(NemotronH):
    """Experts without a gate in some layers, chosen by sigmoid and a bias, and one that every token takes; where the
    file says so, the chosen ones work in a narrower space."""

    name = "nemotron_h_moe"
    hf_names = ()  # NemotronH's layout decides

    def feed_forward(self, g: Graph, x: Value, layer: int) -> Value:
        at, n_embd = f"blk.{layer}.", self.hparams.n_embd
        if not g.has(at + "ffn_gate_inp.weight"):
            return super().feed_forward(g, x, layer)
        experts = Experts.read(self.metadata, gating="sigmoid", activation="relu2", gated=False)
        n_latent = self.metadata.integer("{arch}.moe_latent_size", 0)
        if n_latent:
            latent = expert_ffn(g, x, layer, n_latent, experts, g.linear(x, at + "ffn_latent_down", n_latent))
            y = g.linear(latent, at + "ffn_latent_up", n_embd)
        else:
            y = expert_ffn(g, x, layer, n_embd, experts)
        return g.add(y, plain_shared_expert(g, x, layer, n_embd, "relu2", gated=False))


def _kinds(config: Config) -> list[str]:
    """The kind of each layer."""
    pattern, listed = config.get("hybrid_override_pattern"), config.get("layers_block_type", "layer_types")
    key, value = ("hybrid_override_pattern", pattern) if listed is None else ("layers_block_type", listed)
    if listed is None and isinstance(pattern, str):
        found = [_LETTERS.get(letter, letter) for letter in pattern]
    elif isinstance(listed, list) and all(isinstance(kind, str) for kind in listed):
        found = [_KINDS.get(kind, str(kind)) for kind in listed]
    else:
        raise GGPYError(
            f"{config.where} must say what its layers are, in 'layers_block_type' or 'hybrid_override_pattern'."
        )
    unknown = [kind for kind in found if kind not in _KINDS]
    if unknown or not 0 < len(found) <= MAX_LAYERS:
        raise GGPYError(
            f"{config.where} gives {key!r} as {value!r:.60}; it must name each layer as one of"
            f" {', '.join(f'{kind} ({letter})' for letter, kind in _LETTERS.items())}."
        )
    return found


def _state_space(config: Config) -> StateSpace:
    n_head = config.integer("mamba_num_heads", most=1 << 16)
    return StateSpace(
        n_inner=n_head * config.integer("mamba_head_dim", most=1 << 16),
        d_state=config.integer("ssm_state_size"),
        n_head=n_head,
        n_group=config.integer("mamba_n_groups", "n_groups"),
        width=config.integer("mamba_d_conv", "conv_kernel"),
    )


def _expert_keys(arch: str, config: Config, n_expert: int) -> dict[str, MetadataValue]:
    keys = {
        "expert_count": n_expert,
        "expert_used_count": config.integer("num_experts_per_tok", most=n_expert),
        "expert_feed_forward_length": config.integer("moe_intermediate_size"),
        "expert_shared_feed_forward_length": config.integer("moe_shared_expert_intermediate_size"),
        "expert_shared_count": config.integer("n_shared_experts"),
        "expert_weights_norm": config.flag("norm_topk_prob", default=True),
        "expert_weights_scale": config.number("routed_scaling_factor"),
        "expert_gating_func": 2,
    }
    if config.get("moe_latent_size") is not None:
        keys["moe_latent_size"] = config.integer("moe_latent_size")
    return {f"{arch}.{key}": value for key, value in keys.items()} | group_keys(arch, config, n_expert)


class _Mixers:
    """The tensors of each kind of layer."""

    def __init__(self, config: Config, sizes: Sizes, state: StateSpace) -> None:
        self.config, self.sizes, self.state = config, sizes, state
        self.bias = config.flag("mlp_bias", default=False)

    def rules(self, kind: str, to: str, of: str, n_expert: int) -> list[TensorRule]:
        from ggpy.models.hf_parts import attention_rules, plain_ffn_rules
        from ggpy.models.hf_state_space import mamba2_rules

        config, n_embd = self.config, self.sizes.n_embd
        if kind == "mamba":
            bias, conv_bias = (
                config.flag("use_bias", default=False),
                config.flag("mamba_conv_bias", "use_conv_bias", default=True),
            )
            return mamba2_rules(to, of, self.state, n_embd, bias=bias, conv_bias=conv_bias, out_bias=bias)
        if kind == "attention":
            return attention_rules(to, of, self.sizes)
        if kind == "mlp":
            n_ff = config.integer("intermediate_size")
            return plain_ffn_rules(to, of + "up_proj", of + "down_proj", n_ff, n_embd, bias=self.bias)
        return self._experts(to, of, n_expert)

    def _experts(self, to: str, of: str, n_expert: int) -> list[TensorRule]:
        from ggpy.models.hf import TensorRule
        from ggpy.models.hf_parts import linear_rules
        from ggpy.models.hf_sources import Stored, stack

        config, n_embd, bias = self.config, self.sizes.n_embd, self.bias
        n_ff, n_shared = config.integer("moe_intermediate_size"), config.integer("moe_shared_expert_intermediate_size")
        latent = config.get("moe_latent_size") is not None
        n_wide = config.integer("moe_latent_size") if latent else n_embd
        rules = [
            TensorRule(to + "ffn_gate_inp.weight", of + "gate.weight", (n_expert, n_embd)),
            TensorRule(to + "exp_probs_b.bias", of + "gate.e_score_correction_bias", (n_expert,)),
        ]
        for target, name, shape in (
            ("ffn_up_exps", "up_proj", (n_ff, n_wide)),
            ("ffn_down_exps", "down_proj", (n_wide, n_ff)),
        ):
            each = stack([Stored(f"{of}experts.{i}.{name}.weight", shape) for i in range(n_expert)])
            rules.append(
                TensorRule(f"{to}{target}.weight", each, alternative=Stored(f"{of}experts.{name}", (n_expert, *shape)))
            )
        matrices = [
            ("ffn_up_shexp", "shared_experts.up_proj", (n_shared, n_embd)),
            ("ffn_down_shexp", "shared_experts.down_proj", (n_embd, n_shared)),
        ]
        if latent:
            matrices += [
                ("ffn_latent_down", "fc1_latent_proj", (n_wide, n_embd)),
                ("ffn_latent_up", "fc2_latent_proj", (n_embd, n_wide)),
            ]
        for target, name, shape in matrices:
            rules += linear_rules(to + target, f"{of}{name}.weight", shape, f"{of}{name}.bias" if bias else "")
        return rules
