"""Constants that host and kernels share for choosing tokens (`ggpy.cuda.ops.sample`). Free of numba and of any
device."""

from __future__ import annotations

from ggpy.sampling.sample_spec import BANNED, SAMPLE_SPEC

MAX_TOP_K = 128  # of top-k
SEGMENTS = 1024  # that the vocabulary is cut into
LANES = 8  # that look through a segment together
PEAK_THREADS = 256
PEAK_BLOCKS = SEGMENTS * LANES // PEAK_THREADS
PICK_THREADS = SEGMENTS
SPEC_WORDS = SAMPLE_SPEC.itemsize // 4
BANNED_AT = SAMPLE_SPEC.fields["banned"][1] // 4  # type: ignore[index]
# Instead of a token: the largest logit is NaN, or infinite, or there is none.
BAD_NAN, BAD_INFINITE, BAD_NOTHING = -1, -2, -3
LOADS = 4  # logits of a thread of `pick` on their way at a time
LISTED = LOADS * PICK_THREADS + MAX_TOP_K  # tokens that may be among the best
PICK_SHARED = 4 * (2 * LISTED + 2 * MAX_TOP_K + SEGMENTS + 2)

assert SEGMENTS == PICK_THREADS
assert BANNED + BANNED_AT == SPEC_WORDS


def segment_length(n_vocab: int) -> int:
    """Tokens of a segment, a multiple of 4; the last segments may have fewer, or none."""
    return -(-n_vocab // (4 * SEGMENTS)) * 4
