"""The interface between executor and kernels: their records, and the layout of working memory. Imports no numba.

One kind of fixed-size record describes an operation, another a step. Addresses are plain integers, checked before they
are written.
"""

from __future__ import annotations

import numpy as np

from ggpy.graph.state import PART
from ggpy.quant.packed import BLOCK

OP = np.dtype(
    [
        ("kernel", np.uint64),
        ("barrier", np.int64),  # bit 0: all threads meet before this operation in a small step, bit 1: in a large one
        ("dst", np.uint64),  # float32 rows, `dst_stride` bytes apart; for activations the tile buffer
        ("src", np.uint64),
        ("src2", np.uint64),
        ("src3", np.uint64),
        ("src4", np.uint64),
        ("src5", np.uint64),
        ("weight", np.uint64),
        ("weight_stride", np.int64),  # bytes from row to row of a matrix in the file's own form
        ("weight2", np.uint64),
        ("bias", np.uint64),
        ("cache_k", np.uint64),  # of this layer
        ("cache_v", np.uint64),
        ("state", np.uint64),  # of this layer, float32, `state_stride` bytes a slot
        ("state_stride", np.int64),
        ("next", np.uint64),  # int64: the next unit of work that a large step's threads take; 0: they share alike
        ("scratch", np.uint64),
        ("scratch_stride", np.int64),  # bytes a thread
        ("dst_stride", np.int64),
        ("src_stride", np.int64),
        ("src2_stride", np.int64),
        ("src3_stride", np.int64),
        ("src4_stride", np.int64),
        ("src5_stride", np.int64),
        ("token_bytes", np.int64),  # of one token's activations
        ("private_stride", np.int64),  # bytes from one thread's own activations to the next one's, in a small step
        ("stripe_bytes", np.int64),
        ("n_stripes", np.int64),
        ("n_cols", np.int64),
        ("n_used", np.int64),  # rows for each token, or each output: of its experts
        ("n_head", np.int64),
        ("n_head_kv", np.int64),
        ("head_dim", np.int64),
        ("v_dim", np.int64),  # of a head's values
        ("head_pad", np.int64),  # v_dim rounded up to 16
        ("key_pad", np.int64),  # dimensions that a key takes in the cache: head_dim, in a latent one rounded up to 16
        ("n_rot", np.int64),
        ("angles", np.uint64),  # float32 [position][n_rot / 2][2]: cosine and sine
        ("neox", np.int64),
        ("rope_first", np.int64),  # of a head's dimensions
        ("norm", np.int64),  # of heads: 0 none, 1 before rope, 2 after it
        ("causal", np.int64),  # a token sees the positions up to its own, or the whole sequence
        ("window", np.int64),  # positions a token sees, or sees to either side; 0: all
        ("chunk", np.int64),  # positions that see each other; 0: all
        ("sinks", np.uint64),  # float32 [n_head]: scores without a value; 0: none
        ("slopes", np.uint64),  # float32 [n_head]: ALiBi's; 0: none
        ("max_parts", np.int64),  # of a head's positions: n_ctx / PART, rounded up
        (
            "n_ctx",
            np.int64,
        ),  # most cells of a slot in this layer, a multiple of 64; position p is in cell p % n_ctx
        ("starts", np.uint64),  # int64 [n_slots]: where each slot's cells begin among a key/value head's
        ("head_cells", np.int64),  # cells of a key/value head, of all slots together
        ("groups", np.uint64),  # int32 of chosen experts' rows, see `GROUP_WORDS`
        ("pairs", np.uint64),
        ("places", np.uint64),
        ("n_experts", np.int64),
        ("expert_bytes", np.int64),  # from one expert's stripes to the next one's
        ("bias_stride", np.int64),  # bytes from one expert's bias to the next one's
        ("n_groups", np.int64),  # runs of columns, or groups of experts
        ("n_chosen_groups", np.int64),
        ("group_best", np.int64),  # experts of a group whose sum counts
        ("gating", np.int64),  # of experts: its place in operations.GATINGS
        ("spread", np.int64),  # rows for chosen experts are made of their token's row, else of their own
        ("flag", np.int64),  # of the operation
        ("outputs_only", np.int64),  # rows are the wanted outputs, not the batch
        ("select", np.int64),  # src has the batch's rows still: row i of the outputs is row outputs[i] there
        ("accumulate", np.int64),  # add to dst instead of setting it
        ("combine", np.int64),  # in a small step src is attention's parts, still to be joined
        ("eps", np.float32),
        ("scale", np.float32),
        ("softcap", np.float32),  # 0: none
        ("temperature", np.float32),  # of queries, by position; 0: none
        ("temperature_length", np.int64),
        ("temperature_offset", np.int64),
    ],
    align=True,
)

# The rows for chosen experts, those of one expert side by side, as int32 behind three addresses:
#   groups  n_groups, then from word GROUP_WORDS on [n_groups]: expert, its first row, its rows, unused
#   pairs   [row]: token, the first row and the rows of its expert, unused
#   places  [token][n_used]: the row
GROUP_WORDS = 4

STEP = np.dtype(
    [
        ("n_tokens", np.int64),
        ("n_outputs", np.int64),
        ("small", np.int64),  # every thread prepares its own activations
        ("n_segments", np.int64),
        ("positions", np.uint64),  # int32 [n_tokens]
        ("slots", np.uint64),  # int32 [n_tokens]
        ("outputs", np.uint64),  # int32 [n_outputs], indices into the batch
        ("segments", np.uint64),  # int32 [n_segments][4]: slot, first token, tokens, position of the first
        ("cut_keys", np.int64),  # set, and never reset, where a key was beyond what the cache holds (CACHE_LIMITS)
        ("cut_values", np.int64),
        ("unpooled", np.int64),  # each wanted output is a row by itself, not one for its sequence
    ],
    align=True,
)

# Tokens that one tile of a matrix product may hold, widest first, by tier.
TILE_WIDTHS: dict[str, tuple[int, ...]] = {
    "avx512vnni": (12, 8, 4, 2, 1),
    "avx2vnni": (4, 2, 1),
    "avx2": (4, 2, 1),
    "neon": (4, 2, 1),
    "portable": (4, 2, 1),
    "plain": (1,),
}
FLOAT_TILE_WIDTHS = {**TILE_WIDTHS, "avx512vnni": (6, 4, 2, 1)}  # with weights kept as floats


def tile_widths(tier: str, is_float: bool) -> tuple[int, ...]:
    return (FLOAT_TILE_WIDTHS if is_float else TILE_WIDTHS)[tier]


# Stripes that one call of a tile takes: two where 32 registers hold the sums of both, so that a broadcast activation
# serves both. A tile too wide for that takes them in turn.
TILE_STRIPES = {"avx512vnni": 2, "avx2vnni": 1, "avx2": 1, "neon": 1, "portable": 1, "plain": 1}
# Lanes of the vectors that a product works in: fewer than a stripe's 16 rows where it must say itself which rows are in
# registers at a time.
TILE_LANES = {"avx512vnni": 16, "avx2vnni": 16, "avx2": 16, "neon": 4, "portable": 16, "plain": 16}
# Pairs of token and query head that attention takes at once, reading the cache as it is. A token's query heads of one
# key/value head are a tile of their own when it is decoded: these are the usual ratios of query to key/value heads.
ROW_WIDTHS = {"plain": (2, 1), "portable": (6, 4, 3, 2, 1)}
ROW_WIDTHS |= dict.fromkeys(("avx512vnni", "avx2vnni", "avx2"), ROW_WIDTHS["portable"])
ROW_WIDTHS["neon"] = (4, 3, 2, 1)
# The same where many tiles meet a part of the cache, which is then made float32 for them all.
WIDE_ROWS = {"avx512vnni": 12, "avx2vnni": 6, "avx2": 6, "neon": 4, "portable": 6, "plain": 4}
# Runs of 16 columns of a recurrent state that a scan takes at once, sharing what it loads for them: as many as
# registers hold the sums of.
STATE_RUNS = {"avx512vnni": 4, "avx2vnni": 1, "avx2": 1, "neon": 1, "portable": 1, "plain": 1}
FROM_BIAS, FROM_BOTH, FROM_DST = 0, 1, 2  # what a tile's sums start from: the bias, bias and dst, or what dst holds
# What sums of products start from where codes have an offset: minus the offset times the sum of the activations'
# codes, over all 32 of a block (part 0), the first 16 (1) or the last 16 (2). Offsets that are not here are shifted.
SUM_STARTS = ((8, 0), (16, 0), (128, 0), (32, 1), (32, 2))
TOKEN_BLOCK_BYTES = BLOCK + 4 * (2 + len(SUM_STARTS))  # int8 activations of one token in one block, scale and sums
# What products read: 8-bit codes; codes of two times 8 bits, for logits; floats.
ACTIVATION_DTYPES = ("q8", "q16", "f32")
CACHE_TYPES = ("f32", "f16", "bf16", "q8_0")  # of keys and of values
# The largest number that a type of cache holds, and the least that would be rounded to infinity there: finite ones from
# it on are cut to the largest. For q8_0 these are a block's scale.
CACHE_LIMITS = {"f16": (65504.0, 65520.0), "bf16": (3.3895313892515355e38, 3.3961775292304601e38)}
CACHE_LIMITS |= {"q8_0": CACHE_LIMITS["f16"]}
ROW_STATE_BYTES = 64  # of a row in attention's working memory, before its values and scores
ROW_TILES = 16  # row tiles that meet a part of the cache together

LINE = 128  # bytes of the longest cache line, Apple's: what threads write apart lies apart
# The words that a team of threads shares, each group on a cache line of its own; then one line a thread.
ARRIVED, GENERATION, JOB, STOP, STATES = (i * LINE for i in range(5))
BARRIER_SLEEPERS, JOB_SLEEPERS = ARRIVED + 8, JOB + 8  # beside what is written just before they are looked at
PROGRAM = JOB + 16  # of the job: the address of its operations, their number, and the address of its step
MOST_PATIENCE, NAP = STOP + 8, STOP + 16  # how often to spin at most, and for how long to sleep (a timespec)
PATIENCE = 8  # in a thread's line, behind its state: how often it spins at a barrier before it sleeps
AWAKE, ASLEEP = 0, 1

# How long a thread waits awake, in spins of some 40 ns. At a barrier up to 120 us, more than the shares of work between
# two differ by where every thread has a CPU; after waits that were longer it spins less and less, but every PROBE-th
# time as long as ever, to see whether the CPUs are free again. Threads that have to share CPUs sleep at once. Between
# steps a worker waits IDLE times as long, then sleeps a few naps that the next step ends, then until a semaphore wakes
# it.
SPINS, FEWEST_SPINS, MORE_SPINS, PROBE = 3000, 50, 50, 32
IDLE, NAPS, NAP_NS = 20, 4, 2_000_000


def cache_name(cache_k: str, cache_v: str) -> str:
    """The name of a cache with these types of keys and values, as its kernels carry it."""
    return cache_k if cache_k == cache_v else f"{cache_k}-{cache_v}"


def cache_types(name: str) -> tuple[str, str]:
    """The types of keys and values in a name that `cache_name` made."""
    cache_k, _, cache_v = name.partition("-")
    return cache_k, cache_v or cache_k


def planes(form: str) -> int:
    """Tokens of a tile that hold one row of activations of that form. q16 takes two: the codes, and beside them, as a
    token of their own, codes of the rounding error, with a scale of some 250th. Their products are added."""
    return 2 if form == "q16" else 1


def cell_bytes(cache: str, n_dims: int) -> int:
    """Bytes of a position's keys, or values, of one head in a cache of that type; for q8_0, n_dims % 32 == 0."""
    return {"f32": 4 * n_dims, "f16": 2 * n_dims, "bf16": 2 * n_dims, "q8_0": n_dims + n_dims // BLOCK * 2}[cache]


def part_bytes(head_pad: int) -> int:
    """Bytes of a part of a head's attention: largest score, sum of exponentials, from byte 64 on weighted values."""
    return 64 + 4 * head_pad


def attention_scratch_bytes(head_dim: int, head_pad: int) -> int:
    """Bytes of a thread's working memory: one row tile's, the scales of a part's values, the queries and joined states
    of ROW_TILES, and a part's keys and values."""
    rows = max(WIDE_ROWS.values())
    one, key_pad = ROW_STATE_BYTES + 4 * PART + 4 * head_pad, -(-head_dim // 16) * 16
    part = PART * (4 * key_pad + 4 * head_pad + max(key_pad, head_pad) // BLOCK * 4)
    return rows * (one + ROW_TILES * (4 * key_pad + part_bytes(head_pad))) + part + 256
