"""Mixtures of experts as architectures share them: their hyper-parameters, the feed-forward in the words of
`ggpy.graph.language`, and their place in a checkpoint.

A router's logits choose some of the experts for each token; each is a gated linear unit of its own, and the token's sum
is weighted. GGUF keeps a layer's experts in one tensor [n_expert, rows, columns] for each of gate, up and down.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.gguf.metadata import TypedMetadata
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config

#: The names of gate, up and down in most experts.
PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

#: Experts believed in all layers of a checkpoint; the largest models have some 30,000.
_MAX_EXPERTS = 1 << 18

#: `expert_gating_func` by number, as GGUF has it (llama.cpp's `llama_expert_gating_func_type`).
_GATINGS = {1: "softmax", 2: "sigmoid", 3: "softmax_topk"}


@dataclass(frozen=True)
class Experts:
    """The sizes of a mixture and the way its weights come about: see `operations.Route`."""

    n_expert: int
    n_used: int  # experts that a token takes
    n_ff: int  # of one expert
    gating: str
    normalize: bool
    scale: float
    activation: str = "silu"
    gated: bool = True  # the activation is a gate
    n_groups: int = 0  # of experts, of which each token's best are chosen from; 0: all
    n_groups_used: int = 0
    group_best: int = 2  # experts of a group that its choice goes by
    weighs_inputs: bool = False  # weights multiply what experts are given, not what they give

    @classmethod
    def read(
        cls,
        m: TypedMetadata,
        *,
        gating: str = "softmax",
        normalize: bool = True,
        activation: str = "silu",
        gated: bool = True,
        whole: bool = False,
    ) -> Experts:
        """As the metadata says; `gating` and `normalize` are what absent keys mean in this architecture. `whole`: each
        expert is as wide as the metadata's feed-forward, where it does not say more; else all that a token uses are."""
        n_expert = m.integer("{arch}.expert_count")
        n_used = m.integer("{arch}.expert_used_count")
        n_ff = m.integer("{arch}.expert_feed_forward_length", 0)
        n_ff = n_ff or m.integer("{arch}.feed_forward_length") // (1 if whole else max(1, n_used))
        number = m.integer("{arch}.expert_gating_func", 0)
        # llama.cpp takes a scale of 0 for none.
        scale = m.number("{arch}.expert_weights_scale", 1.0) or 1.0
        if not 0 < n_used <= n_expert < 1 << 16 or not 0 < n_ff < 1 << 31:
            raise GGPYError(
                f"The metadata gives {n_used} of {n_expert} experts with a width of {n_ff} to each token, which no"
                " model can have."
            )
        if number and number not in _GATINGS:
            raise GGPYError(
                f"The metadata key '{m.arch}.expert_gating_func' is {number}; ggpy knows"
                f" {', '.join(f'{key} ({name})' for key, name in _GATINGS.items())}."
            )
        summing = m.find("{arch}.expert_weights_norm", bool)
        normalize = normalize if summing is None else summing
        gating, n_groups = _GATINGS.get(number, gating), m.integer("{arch}.expert_group_count", 0)
        n_groups = n_groups if n_groups > 1 else 0
        used = m.integer("{arch}.expert_group_used_count") if n_groups else 0
        return cls(n_expert, n_used, n_ff, gating, normalize, scale, activation, gated, n_groups, used)


def expert_ffn(g: Graph, x: Value, layer: int, n_embd: int, experts: Experts, read: Value | None = None) -> Value:
    """The weighted sum of the chosen experts: x [n_tokens, n_embd] to [n_tokens, n_embd]. Gate and up come from two
    tensors or, where the file has `ffn_gate_up_exps`, from one whose rows stand in that order. Where the file has
    `ffn_down_exps.scale`, a number an expert, weights are multiplied by it. `read`: what experts take in the place of
    x, which the router reads, as wide as `n_embd`."""
    at = f"blk.{layer}."
    bias, each = at + "exp_probs_b.bias", at + "ffn_down_exps.scale"
    route = g.route(
        g.linear(x, at + "ffn_gate_inp", experts.n_expert),
        experts.n_used,
        gating=experts.gating,
        bias=bias if g.has(bias) else None,
        normalize=experts.normalize,
        scale=experts.scale,
        n_groups=experts.n_groups,
        n_groups_used=experts.n_groups_used,
        group_best=experts.group_best,
        expert_scale=each if g.has(each) else None,
    )
    n_ff, x = experts.n_ff, x if read is None else read
    if experts.weighs_inputs:
        x = g.weigh(x, route)

    def down(made: Value) -> Value:
        given = g.expert_linear(made, at + "ffn_down_exps", n_embd, route)
        return g.combine(given, route, weighted=not experts.weighs_inputs)

    if not experts.gated:
        return down(g.activation(g.expert_linear(x, at + "ffn_up_exps", n_ff, route), experts.activation))
    if g.has(at + "ffn_gate_up_exps.weight"):
        both = g.expert_linear(x, at + "ffn_gate_up_exps", 2 * n_ff, route)
        gate, up = both.columns(0, n_ff), both.columns(n_ff, n_ff)
    else:
        gate = g.expert_linear(x, at + "ffn_gate_exps", n_ff, route)
        up = g.expert_linear(x, at + "ffn_up_exps", n_ff, route)
    return down(g.glu(gate, up, experts.activation))


def shared_expert(g: Graph, x: Value, layer: int, n_embd: int, n_ff: int) -> Value:
    """The expert that every token takes, weighted by a sigmoid of its own: a mixture of one.
    x [n_tokens, n_embd] to [n_tokens, n_embd]."""
    at = f"blk.{layer}."
    route = g.route(g.linear(x, at + "ffn_gate_inp_shexp", 1), 1, gating="sigmoid")
    gate, up = (g.expert_linear(x, f"{at}ffn_{part}_shexp", n_ff, route) for part in ("gate", "up"))
    return g.combine(g.expert_linear(g.glu(gate, up, "silu"), at + "ffn_down_shexp", n_embd, route), route)


def plain_shared_expert(
    g: Graph, x: Value, layer: int, n_embd: int, activation: str = "silu", *, gated: bool = True
) -> Value:
    """The expert that every token takes, with a weight of 1: x [n_tokens, n_embd] to [n_tokens, n_embd]."""
    at = f"blk.{layer}.ffn_"
    n_ff = g.file.tensors[at + "up_shexp.weight"].shape[0]
    up = g.linear(x, at + "up_shexp", n_ff)
    made = g.glu(g.linear(x, at + "gate_shexp", n_ff), up, activation) if gated else g.activation(up, activation)
    return g.linear(made, at + "down_shexp", n_embd)


# ---- checkpoints


def expert_count(config: Config, n_layer: int, *keys: str) -> int:
    """The number of experts of a layer, under one of `keys` or the usual ones. GGPYError for more in all layers than
    any model has: a layout lists each."""
    n_expert = config.integer(*(keys or ("num_local_experts", "num_experts")), most=(1 << 16) - 1)
    if n_layer * n_expert > _MAX_EXPERTS:
        raise GGPYError(f"{config.where} gives {n_expert} experts in {n_layer} layers, which no model can have.")
    return n_expert


def sparse_layers(config: Config, n_layer: int) -> list[bool]:
    """Which layers have experts, as Qwen's configs say it: every 'decoder_sparse_step'th, except those listed."""
    step, dense = config.integer("decoder_sparse_step", default=1, least=0), config.get("mlp_only_layers") or []
    if not isinstance(dense, list) or not all(type(layer) is int for layer in dense):
        raise GGPYError(f"{config.where} gives 'mlp_only_layers' as {dense!r:.60}; it must list layers.")
    if not step:
        raise GGPYError(f"{config.where} gives 'decoder_sparse_step' as 0; it must be 1 at least.")
    return [(layer + 1) % step == 0 and layer not in dense for layer in range(n_layer)]


def add_expert_keys(
    layout: Layout,
    config: Config,
    n_ff: int = 0,
    *,
    normalize: bool = True,
    usual: bool = True,
    scale: float = 1.0,
    sparse: Sequence[bool] = (),
) -> None:
    """The mixture's sizes as GGUF's keys; `n_ff` is the width of experts, where it is not that of feed-forwards. Where
    other engines take for granted that weights are normalised or not (`usual`), not scaled, or that every layer is
    `sparse`, the user is told."""
    arch = layout.arch
    n_expert = expert_count(config, layout.metadata[f"{arch}.block_count"])
    layout.metadata[f"{arch}.expert_count"] = n_expert
    layout.metadata[f"{arch}.expert_used_count"] = config.integer("num_experts_per_tok", most=n_expert)
    if n_ff:
        layout.metadata[f"{arch}.expert_feed_forward_length"] = n_ff
    beyond = []
    if scale != 1.0:
        layout.metadata[f"{arch}.expert_weights_scale"] = scale
        beyond.append(f"that the weights of experts are multiplied by {scale}")
    if normalize != usual:
        layout.metadata[f"{arch}.expert_weights_norm"] = normalize
        beyond.append(f"that the weights of a token's experts {'' if normalize else 'do not '}sum up to 1")
    if not all(sparse):
        beyond.append("that some layers have no experts")
    if beyond:
        layout.notes.append(f"the file says {', and '.join(beyond)}; other engines may pass over it in {arch}.")


def group_keys(arch: str, config: Config, n_expert: int) -> dict[str, int]:
    """The groups that experts stand in, and how many of them a token's experts are chosen from."""
    n_groups = config.integer("n_group", default=1)
    if n_expert % n_groups:
        raise GGPYError(
            f"{config.where} gives {n_expert} experts in {n_groups} groups ('n_group'); they must be alike."
        )
    return {
        f"{arch}.expert_group_count": n_groups,
        f"{arch}.expert_group_used_count": config.integer("topk_group", default=1, most=n_groups),
    }


def expert_rules(
    to: str, of: str, n_expert: int, n_ff: int, n_embd: int, names: tuple[str, str, str] = PROJECTIONS
) -> list[TensorRule]:
    """A layer's experts from a matrix for each or, as some checkpoints have them, from one tensor of gate and up and
    one of down. `of`: the name up to the mixture; `names`: of gate, up and down in an expert."""
    from ggpy.models.hf import TensorRule
    from ggpy.models.hf_sources import Stored, stack

    at = of + "experts."
    gate, up, down = (
        stack([Stored(f"{at}{i}.{name}.weight", shape) for i in range(n_expert)])
        for name, shape in zip(names, ((n_ff, n_embd), (n_ff, n_embd), (n_embd, n_ff)), strict=True)
    )
    both = Stored(at + "gate_up_proj", (n_expert, 2 * n_ff, n_embd))
    return [
        TensorRule(to + "ffn_gate_exps.weight", gate, alternative=both.slice(0, n_ff, axis=1)),
        TensorRule(to + "ffn_up_exps.weight", up, alternative=both.slice(n_ff, n_ff, axis=1)),
        TensorRule(to + "ffn_down_exps.weight", down, alternative=Stored(at + "down_proj", (n_expert, n_embd, n_ff))),
    ]
