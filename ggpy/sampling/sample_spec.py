"""The choice of a sequence's next token, as numbers for samplers other than numpy's: kernels and devices.

`TopKChain` holds the parameters that they can follow; anything else is done by `ggpy.sampling.sampler`, with the
logits. `SAMPLE_SPEC` is that chain for one token, as a device gets it with a batch;
`ggpy.sampling.sampler.Sampler.spec` makes it."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from ggpy.sampling.sampling_params import SamplingParams

COLDEST = 1e-30  # a temperature that can be divided by


class TopKChain(NamedTuple):
    """A chain of top-k, top-p and min-p, then temperature: the candidates to draw from."""

    candidates: int  # top-k; 1 where the likeliest token is wanted
    temperature: float
    top_p: float  # 2 where it is off
    least: float  # min-p: a logit under the largest one plus this is out

    @staticmethod
    def of(params: SamplingParams) -> TopKChain | None:
        """The chain that parameters (resolved) ask for after penalties and biases; None where it is another kind."""
        if not params.temperature:
            return TopKChain(1, 1.0, 2.0, -math.inf)
        names = params.active_samplers()
        while names[:1] in (("penalties",), ("dry",)):
            names = names[1:]
        usual = [name for name in ("top_k", "top_p", "min_p", "temperature") if name in names]
        if params.mirostat or params.dynatemp_range or names[:1] != ("top_k",) or list(names) != usual:
            return None
        return TopKChain(
            params.top_k or 0,
            max(params.temperature, COLDEST) if "temperature" in names else 1.0,
            params.top_p if params.top_p is not None and "top_p" in names else 2.0,
            math.log(params.min_p) if params.min_p and "min_p" in names else -math.inf,
        )


BANNED = 10  # tokens that a choice can forbid

SAMPLE_SPEC = np.dtype(
    [
        ("candidates", np.int32),  # this and the three floats: `TopKChain`
        ("n_banned", np.int32),
        ("temperature", np.float32),
        ("top_p", np.float32),
        ("least", np.float32),
        ("uniform", np.float32),  # from 0 to 1: where to draw
        ("banned", np.int32, BANNED),
    ]
)

SampleSpecs = NDArray[Any]  # of SAMPLE_SPEC


def sampled_by_last_step(slot: int) -> int:
    """A placeholder in a batch for the token that the last step chose for this slot; the host may not know it yet."""
    return -1 - slot


class SampledTokens(Protocol):
    """Tokens that a device chooses, or has chosen."""

    def tokens(self) -> list[int]:
        """Wait for the tokens and return one for each row; in place of a token, -1, -2 or -3 where the largest logit is
        NaN, infinite, or minus infinity."""
        ...


class SamplingExecutor(Protocol):
    """An executor that chooses tokens by itself."""

    max_sampled: int  # tokens of a step
    max_top_k: int  # for each of them

    def sample(self, n: int, specs: SampleSpecs) -> SampledTokens:
        """Start a step of n tokens in slots of their own, as the executor's arrays describe it, and the choice of the
        token after each."""
        ...
