"""How a sequence's next token is to be chosen, as numbers that a device can be given with a batch.

`ggpy.sampler.Sampler.choice` makes one where the sampler's chain is top-k, top-p, min-p, temperature and draw with few
candidates and nothing that looks at earlier tokens; whatever else is asked for, the sampler does with the logits.
"""

from __future__ import annotations

from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

BANNED = 10  # tokens that a choice can forbid

CHOICE = np.dtype(
    [
        ("candidates", np.int32),  # top-k; 1 where the likeliest token is wanted
        ("n_banned", np.int32),
        ("temperature", np.float32),
        ("top_p", np.float32),  # 2 where it is off
        ("least", np.float32),  # min-p: a logit under the largest one plus this is out
        ("uniform", np.float32),  # from 0 to 1: where to draw
        ("banned", np.int32, BANNED),
    ]
)

Choices = NDArray[Any]  # of CHOICE


def chosen_by_last_step(slot: int) -> int:
    """Stands in a batch for the token that the step before chose for this slot, which the host may not know yet."""
    return -1 - slot


class Chosen(Protocol):
    """Tokens that a device chooses, or has chosen."""

    def tokens(self) -> list[int]:
        """One for each row, once they are there. Instead of a token -1, -2 or -3 where the largest logit is NaN,
        infinite, or minus infinity."""
        ...


class Choosing(Protocol):
    """An executor that chooses tokens by itself."""

    most_chosen: int  # tokens of a step
    most_candidates: int  # for each of them

    def choose(self, n: int, choices: Choices) -> Chosen:
        """Start a step of n tokens in slots of their own, as the executor's arrays describe it, and the choice of the
        token after each."""
        ...
