"""Latent attention in checkpoints: its sizes, tensors and keys."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.models.hf import TensorRule
from ggpy.models.hf_config import Config
from ggpy.models.hf_parts import Sizes, linear_rules
from ggpy.models.hf_sources import Stored
from ggpy.models.latent_attention import LatentAttention

if TYPE_CHECKING:
    from ggpy.models.hf import MetadataValue


def latent_sizes(config: Config) -> tuple[Sizes, LatentAttention]:
    """The sizes of a model and of its attention. All of its heads have keys of their own, whatever the config says."""
    n_plain, n_rot = config.integer("qk_nope_head_dim"), config.integer("qk_rope_head_dim")
    n_head = config.integer("num_attention_heads")
    if config.integer("num_key_value_heads", default=n_head) != n_head:
        raise GGPYError(
            f"{config.where} gives {config.integer('num_key_value_heads')} 'num_key_value_heads'; latent attention has"
            f" as many as 'num_attention_heads', {n_head}."
        )
    values = {**config.values, "head_dim": n_plain + n_rot, "num_key_value_heads": n_head}
    sizes = Sizes.read(Config(values, config.where, config.defaults))
    return sizes, LatentAttention(
        n_head=n_head,
        n_plain=n_plain,
        n_rot=n_rot,
        n_value=config.integer("v_head_dim", default=max(1, sizes.n_embd // n_head)),
        rank=config.integer("kv_lora_rank"),
        q_rank=0 if config.get("q_lora_rank") is None else config.integer("q_lora_rank"),
    )


def latent_keys(arch: str, s: LatentAttention, *, by_head: bool) -> dict[str, MetadataValue]:
    """`by_head`: the file has a matrix a head, so that its attention is one of a single key, which is cached."""
    keys = {
        f"{arch}.attention.key_length": s.head_dim,
        f"{arch}.attention.value_length": s.n_value,
        f"{arch}.attention.kv_lora_rank": s.rank,
        f"{arch}.rope.dimension_count": s.n_rot,
    }
    if by_head:
        keys |= {
            f"{arch}.attention.head_count_kv": 1,
            f"{arch}.attention.key_length": s.rank + s.n_rot,
            f"{arch}.attention.value_length": s.rank,
            f"{arch}.attention.key_length_mla": s.head_dim,
            f"{arch}.attention.value_length_mla": s.n_value,
        }
    return keys | ({f"{arch}.attention.q_lora_rank": s.q_rank} if s.q_rank else {})


def latent_rules(to: str, of: str, s: LatentAttention, n_embd: int, *, bias: bool, by_head: bool) -> list[TensorRule]:
    """The tensors of a layer's attention."""
    n_q, rules = s.n_head * s.head_dim, []
    if s.q_rank:
        rules += linear_rules(
            to + "attn_q_a", of + "q_a_proj.weight", (s.q_rank, n_embd), of + "q_a_proj.bias" if bias else ""
        )
        rules.append(TensorRule(to + "attn_q_a_norm.weight", of + "q_a_layernorm.weight", (s.q_rank,)))
        rules.append(TensorRule(to + "attn_q_b.weight", of + "q_b_proj.weight", (n_q, s.q_rank)))
    else:
        rules.append(TensorRule(to + "attn_q.weight", of + "q_proj.weight", (n_q, n_embd)))
    down = of + "kv_a_proj_with_mqa"
    rules += linear_rules(
        to + "attn_kv_a_mqa", down + ".weight", (s.rank + s.n_rot, n_embd), down + ".bias" if bias else ""
    )
    rules.append(TensorRule(to + "attn_kv_a_norm.weight", of + "kv_a_layernorm.weight", (s.rank,)))
    n = s.n_plain + s.n_value
    both = Stored(of + "kv_b_proj.weight", (s.n_head * n, s.rank))
    if by_head:
        heads = both.reshape(s.n_head, n, s.rank)
        rules.append(TensorRule(to + "attn_k_b.weight", heads.slice(0, s.n_plain, axis=1).transpose()))
        rules.append(TensorRule(to + "attn_v_b.weight", heads.slice(s.n_plain, s.n_value, axis=1)))
    else:
        rules.append(TensorRule(to + "attn_kv_b.weight", both))
    return rules + linear_rules(
        to + "attn_output", of + "o_proj.weight", (n_embd, s.n_head * s.n_value), of + "o_proj.bias" if bias else ""
    )
