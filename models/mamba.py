"""Mamba (arXiv 2312.00752), with Falcon-Mamba, and Mamba-2 (arXiv 2405.21060): a state-space layer after each norm, and
nothing else."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, ClassVar

from ggpy.errors import GGPYError
from ggpy.models.base import MAX_LAYERS, Architecture
from ggpy.models.state_space import StateSpace, mamba2_mixer

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout, MetadataValue, TensorRule
    from ggpy.models.hf_config import Config
    from ggpy.models.hf_parts import Sizes

#: Names of embeddings, layers, last norm and output matrix in checkpoints.
NAMES = ("backbone.embeddings", "backbone.layers", "backbone.norm_f", "lm_head")


class _StateSpaceModel(Architecture):
    attends = False

    def build(self, g: Graph) -> Value:
        hp, x = self.hparams, g.embed(self.hparams.n_embd)
        for layer in g.layers(hp.n_layer):
            x = g.add(x, self.mixer(g, g.norm(x, f"blk.{layer}.attn_norm", hp.norm_eps), layer))
        return g.output(g.norm(g.select_outputs(x), "output_norm", hp.norm_eps), hp.n_vocab)

    def mixer(self, g: Graph, x: Value, layer: int) -> Value:
        raise NotImplementedError

    @classmethod
    def _layout(cls, config: Config) -> Layout:
        """The layout of both: layers of `mixer_rules`, keys of their sizes from `mixer_keys`."""
        from ggpy.models.hf import Layout, TensorRule
        from ggpy.models.hf_parts import Sizes, decoder_rules
        from ggpy.models.hf_state_space import ANY_CONTEXT

        arch, n_layer = cls.name, config.integer("num_hidden_layers", most=MAX_LAYERS)
        sizes = Sizes(n_layer, config.integer("hidden_size"), 0, 0, 0, config.integer("vocab_size"))
        mixer_keys = cls.mixer_keys(config, sizes)

        def block(layer: int, to: str, of: str) -> list[TensorRule]:
            norm = TensorRule(to + "attn_norm.weight", of + "norm.weight", (sizes.n_embd,))
            return [norm, *cls.mixer_rules(config, sizes, to, of + "mixer.")]

        tied = config.flag("tie_word_embeddings", default=True)
        metadata = {
            f"{arch}.block_count": n_layer,
            f"{arch}.context_length": ANY_CONTEXT,
            f"{arch}.embedding_length": sizes.n_embd,
            f"{arch}.feed_forward_length": 0,
            f"{arch}.attention.head_count": 0,
            f"{arch}.attention.layer_norm_rms_epsilon": config.number("layer_norm_epsilon"),
            f"{arch}.vocab_size": sizes.n_vocab,
            **mixer_keys,
        }
        rules = decoder_rules(sizes, block, tied=tied, names=NAMES)
        renames = ((r"^backbone\.embedding\.", "backbone.embeddings."), (r"^model\.(backbone|lm_head)\.", r"\1."))
        return Layout(arch, metadata, rules, sizes.n_vocab, "backbone.", tied, renames=renames)

    @classmethod
    def mixer_keys(cls, config: Config, sizes: Sizes) -> dict[str, MetadataValue]:
        raise NotImplementedError

    @classmethod
    def mixer_rules(cls, config: Config, sizes: Sizes, to: str, of: str) -> list[TensorRule]:
        raise NotImplementedError


class Mamba(_StateSpaceModel):
    """Each channel has decays of its own; B, C and dt come from what the convolution gives. Falcon-Mamba normalises
    these three (`ssm.dt_b_c_rms`)."""

    name = "mamba"
    hf_names: ClassVar[tuple[str, ...]] = ("MambaForCausalLM", "FalconMambaForCausalLM")

    def mixer(self, g: Graph, x: Value, layer: int) -> Value:
        at, m = f"blk.{layer}.", self.metadata
        n_inner, d_state = m.integer("{arch}.ssm.inner_size"), m.integer("{arch}.ssm.state_size")
        n_rank, width = m.integer("{arch}.ssm.time_step_rank"), m.integer("{arch}.ssm.conv_kernel")
        StateSpace(n_inner, d_state, n_inner, 1, width)
        if not 0 < n_rank < 1 << 24:
            raise GGPYError(f"The metadata gives {m.arch}.ssm.time_step_rank = {n_rank}, which no model can have.")
        given = g.linear(x, at + "ssm_in", 2 * n_inner)
        u = g.conv_state(given.columns(0, n_inner), at + "ssm_conv1d", width, layer, "silu")
        chosen = g.linear(u, at + "ssm_x", n_rank + 2 * d_state)
        dt, b, c = (chosen.columns(*at) for at in ((0, n_rank), (n_rank, d_state), (n_rank + d_state, d_state)))
        if m.find("{arch}.ssm.dt_b_c_rms", bool):
            eps = m.number("{arch}.ssm.dt_b_c_rms_epsilon", self.hparams.norm_eps)
            dt, b, c = (g.norm(part, None, eps) for part in (dt, b, c))
        dt = g.linear(dt, at + "ssm_dt", n_inner)
        y = g.ssm_scan(u, dt, b, c, layer=layer, n_head=n_inner, n_groups=1, a=at + "ssm_a", d=at + "ssm_d")
        gated = g.glu(given.columns(n_inner, n_inner), y, "silu")
        return g.linear(gated, at + "ssm_out", self.hparams.n_embd)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        layout = cls._layout(config)
        if config.defaults.get("mixer_rms_eps") is not None:
            eps = config.number("mixer_rms_eps")
            layout.metadata["mamba.ssm.dt_b_c_rms"] = True
            if eps != config.number("layer_norm_epsilon"):
                layout.metadata["mamba.ssm.dt_b_c_rms_epsilon"] = eps
                layout.notes.append(
                    f"the file gives the norms of B, C and dt an epsilon of {eps}; other engines take that of all norms"
                    " in mamba."
                )
        return layout

    @staticmethod
    def _sizes(config: Config, n_embd: int) -> tuple[StateSpace, int]:
        """The layers' sizes, and the width that dt comes from."""
        n_inner = config.integer("intermediate_size", default=int(config.number("expand") * n_embd))
        state = StateSpace(n_inner, config.integer("state_size"), n_inner, 1, config.integer("conv_kernel"))
        automatic = config.get("time_step_rank") == "auto"
        return state, math.ceil(n_embd / 16) if automatic else config.integer("time_step_rank")

    @classmethod
    def mixer_keys(cls, config: Config, sizes: Sizes) -> dict[str, MetadataValue]:
        state, n_rank = cls._sizes(config, sizes.n_embd)
        return {
            "mamba.ssm.conv_kernel": state.width,
            "mamba.ssm.inner_size": state.n_inner,
            "mamba.ssm.state_size": state.d_state,
            "mamba.ssm.time_step_rank": n_rank,
        }

    @classmethod
    def mixer_rules(cls, config: Config, sizes: Sizes, to: str, of: str) -> list[TensorRule]:
        from ggpy.models.hf import TensorRule
        from ggpy.models.hf_parts import linear_rules
        from ggpy.models.hf_sources import Stored
        from ggpy.models.hf_state_space import conv_rules

        state, n_rank = cls._sizes(config, sizes.n_embd)
        n_inner, d_state, n_embd = state.n_inner, state.d_state, sizes.n_embd
        bias = config.flag("use_bias", default=False)
        given, out = of + "in_proj", of + "out_proj"
        return [
            *linear_rules(to + "ssm_in", given + ".weight", (2 * n_inner, n_embd), given + ".bias" if bias else ""),
            *conv_rules(to, of, n_inner, state.width, bias=config.flag("use_conv_bias", default=True)),
            TensorRule(to + "ssm_x.weight", of + "x_proj.weight", (n_rank + 2 * d_state, n_inner)),
            *linear_rules(to + "ssm_dt", of + "dt_proj.weight", (n_inner, n_rank), of + "dt_proj.bias"),
            TensorRule(to + "ssm_a", Stored(of + "A_log", (n_inner, d_state)).neg_exp()),
            TensorRule(to + "ssm_d", of + "D", (n_inner,)),
            *linear_rules(to + "ssm_out", out + ".weight", (n_embd, n_inner), out + ".bias" if bias else ""),
        ]


class Mamba2(_StateSpaceModel):
    name = "mamba2"
    hf_names = ("Mamba2ForCausalLM",)

    def mixer(self, g: Graph, x: Value, layer: int) -> Value:
        hp = self.hparams
        return mamba2_mixer(g, x, layer, StateSpace.read(self.metadata), hp.n_embd, hp.norm_eps)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        return cls._layout(config)

    @staticmethod
    def _sizes(config: Config, n_embd: int) -> StateSpace:
        n_head, head_dim = config.integer("num_heads"), config.integer("head_dim")
        if n_head * head_dim != config.number("expand") * n_embd:
            raise GGPYError(
                f"{config.where} gives {n_head} 'num_heads' of 'head_dim' {head_dim}, which must make up"
                f" {config.number('expand')} times the 'hidden_size' {n_embd}."
            )
        return StateSpace(
            n_inner=n_head * head_dim,
            d_state=config.integer("state_size"),
            n_head=n_head,
            n_group=config.integer("n_groups"),
            width=config.integer("conv_kernel"),
        )

    @classmethod
    def mixer_keys(cls, config: Config, sizes: Sizes) -> dict[str, MetadataValue]:
        from ggpy.models.hf_state_space import state_space_keys

        return state_space_keys(cls.name, cls._sizes(config, sizes.n_embd))

    @classmethod
    def mixer_rules(cls, config: Config, sizes: Sizes, to: str, of: str) -> list[TensorRule]:
        from ggpy.models.hf_state_space import mamba2_rules

        bias, conv_bias = config.flag("use_bias", default=False), config.flag("use_conv_bias", default=True)
        state = cls._sizes(config, sizes.n_embd)
        return mamba2_rules(to, of, state, sizes.n_embd, bias=bias, conv_bias=conv_bias, out_bias=bias)
