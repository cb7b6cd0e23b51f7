"""State-space layers in checkpoints: Mamba-2's tensors and keys, which several families share."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.models.hf import TensorRule
from ggpy.models.hf_parts import linear_rules
from ggpy.models.hf_sources import Source, Stored, concat

if TYPE_CHECKING:
    from ggpy.models.hf import MetadataValue
    from ggpy.models.state_space import StateSpace

#: What llama.cpp's converter writes as the context of models whose state holds any text.
ANY_CONTEXT = 1 << 20


def state_space_keys(arch: str, s: StateSpace) -> dict[str, MetadataValue]:
    return {
        f"{arch}.ssm.conv_kernel": s.width,
        f"{arch}.ssm.inner_size": s.n_inner,
        f"{arch}.ssm.state_size": s.d_state,
        f"{arch}.ssm.time_step_rank": s.n_head,
        f"{arch}.ssm.group_count": s.n_group,
    }


def conv_rules(to: str, of: str, n: int, width: int, *, bias: bool) -> list[TensorRule]:
    """The convolution of `n` columns; torch keeps an axis of one between."""
    rules = [TensorRule(to + "ssm_conv1d.weight", Stored(of + "conv1d.weight", (n, 1, width)).reshape(n, width))]
    return [*rules, TensorRule(to + "ssm_conv1d.bias", of + "conv1d.bias", (n,))] if bias else rules


def mamba2_rules(
    to: str, of: str, s: StateSpace, n_embd: int, *, bias: bool, conv_bias: bool, out_bias: bool, norm: bool = True,
    factors: tuple[float, ...] = (1.0,) * 5, in_factor: float = 1.0,
) -> list[TensorRule]:  # fmt: skip
    """The tensors of one mixer. `factors`: of what the input matrix gives for the gate, x, B, C and dt; `in_factor`: of
    what it takes."""

    def given(source: Source, factor: float) -> Source:
        parts, first = [], 0
        for n, own in zip((s.n_inner, s.n_inner, s.n_shared, s.n_shared, s.n_head), factors, strict=True):
            parts.append(source.slice(first, n).times(own * factor))
            first += n
        return concat(parts) if {factor, *factors} != {1.0} else source

    n_given = s.n_inner + s.n_mixed + s.n_head
    return [
        *linear_rules(
            to + "ssm_in",
            given(Stored(of + "in_proj.weight", (n_given, n_embd)), in_factor),
            (n_given, n_embd),
            given(Stored(of + "in_proj.bias", (n_given,)), 1.0) if bias else "",
        ),
        *conv_rules(to, of, s.n_mixed, s.width, bias=conv_bias),
        TensorRule(to + "ssm_dt.bias", of + "dt_bias", (s.n_head,)),
        TensorRule(to + "ssm_a", Stored(of + "A_log", (s.n_head,)).neg_exp().reshape(s.n_head, 1)),
        TensorRule(to + "ssm_d", Stored(of + "D", (s.n_head,)).reshape(s.n_head, 1)),
        *([_norm(to, of, s)] if norm else []),
        *linear_rules(
            to + "ssm_out",
            of + "out_proj.weight",
            (n_embd, s.n_inner),
            of + "out_proj.bias" if out_bias else "",
        ),
    ]


def _norm(to: str, of: str, s: StateSpace) -> TensorRule:
    weight = Stored(of + "norm.weight", (s.n_inner,)).reshape(s.n_group, s.n_inner // s.n_group)
    return TensorRule(to + "ssm_norm.weight", weight)
