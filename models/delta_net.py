"""The sizes of gated delta nets (arXiv 2412.06464), from a file's metadata, and the orders of their heads."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.gguf.metadata import TypedMetadata


@dataclass(frozen=True)
class DeltaNet:
    """The sizes of the delta nets."""

    n_k_head: int
    n_v_head: int
    k_dim: int  # of a head
    v_dim: int
    width: int  # tokens that the convolution takes

    @classmethod
    def read(cls, m: TypedMetadata) -> DeltaNet:
        n_v_head, inner = m.integer("{arch}.ssm.time_step_rank"), m.integer("{arch}.ssm.inner_size")
        sizes = cls(
            n_k_head=m.integer("{arch}.ssm.group_count"),
            n_v_head=n_v_head,
            k_dim=m.integer("{arch}.ssm.state_size"),
            v_dim=inner // max(1, n_v_head),
            width=m.integer("{arch}.ssm.conv_kernel"),
        )
        sound = all(0 < size < 1 << 24 for size in (sizes.n_k_head, n_v_head, sizes.k_dim, sizes.v_dim))
        if not sound or inner % n_v_head or n_v_head % sizes.n_k_head or not 1 < sizes.width < 1 << 10:
            raise GGPYError(
                f"The metadata gives delta nets of {sizes.n_k_head} key heads, {n_v_head} value heads, {sizes.k_dim}"
                f" dimensions a key head, {inner} in all value heads and convolutions of {sizes.width} tokens, which is"
                " impossible."
            )
        return sizes

    @property
    def n_k(self) -> int:
        return self.n_k_head * self.k_dim

    @property
    def n_v(self) -> int:
        return self.n_v_head * self.v_dim

    @property
    def tiled_order(self) -> list[int]:
        """The grouped value heads in tiled order."""
        n = self.n_v_head // self.n_k_head
        return [key * n + place for place in range(n) for key in range(self.n_k_head)]
