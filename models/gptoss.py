"""gpt-oss: experts with biases and a clamped SwiGLU, attention with sinks, and every other layer with a window."""

from __future__ import annotations

from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.models.base import Architecture
from ggpy.models.experts import Experts, add_expert_keys, expert_count, expert_ffn

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.graph.rope import Rope
    from ggpy.models.hf import Layout, TensorRule
    from ggpy.models.hf_config import Config
    from ggpy.models.hf_sources import Source


#: Rope where a config does not say it.
_USUAL_ROPE = {
    "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": False,
    "original_max_position_embeddings": 4096,
}  # fmt: skip


class GptOss(Architecture):
    name = "gpt-oss"
    hf_names = ("GptOssForCausalLM",)
    rope_style = "neox"
    window_period = 2
    yarn_truncates = False

    def build(self, g: Graph) -> Value:
        hp, rope = self.hparams, self.rope(g.vector("rope_freqs.weight"))
        experts = Experts.read(self.metadata, gating="softmax_topk", normalize=False, activation="swiglu_oai")
        x = g.embed(hp.n_embd)
        for layer in g.layers(hp.n_layer):
            at = f"blk.{layer}."
            x = g.add(x, self._attention(g, g.norm(x, at + "attn_norm", hp.norm_eps), layer, rope))
            normed = g.norm(x, at + "post_attention_norm", hp.norm_eps)  # before the experts, whatever its name says
            x = g.add(x, expert_ffn(g, normed, layer, hp.n_embd, experts))
        return g.output(g.norm(g.select_outputs(x), "output_norm", hp.norm_eps), hp.n_vocab)

    def _attention(self, g: Graph, x: Value, layer: int, rope: Rope) -> Value:
        at, size = f"blk.{layer}.", self.hparams.layers[layer]
        n_kv = size.n_head_kv * size.head_dim
        attended = g.attention(
            g.linear(x, at + "attn_q", size.n_head * size.head_dim),
            g.linear(x, at + "attn_k", n_kv),
            g.linear(x, at + "attn_v", n_kv),
            layer=layer,
            n_head=size.n_head,
            n_head_kv=size.n_head_kv,
            rope=rope,
            window=size.window,
            sinks=at + "attn_sinks.weight",
        )
        return g.linear(attended, at + "attn_output", self.hparams.n_embd)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf import Layout, TensorRule, add_sliding_windows
        from ggpy.models.hf_config import Config
        from ggpy.models.hf_parts import Sizes, head_rule
        from ggpy.models.hf_rope import add_rope

        arch, sizes, n_ff = cls.name, Sizes.read(config), config.integer("intermediate_size")
        n_embd, n_expert = sizes.n_embd, expert_count(config, sizes.n_layer)
        bias = config.flag("attention_bias", default=True)
        tensors = [TensorRule("token_embd.weight", "model.embed_tokens.weight", (sizes.n_vocab, n_embd))]
        for layer in range(sizes.n_layer):
            to, of = f"blk.{layer}.", f"model.layers.{layer}."
            for target, source, rows, columns in (
                ("attn_q", "q_proj", sizes.n_q, n_embd),
                ("attn_k", "k_proj", sizes.n_kv, n_embd),
                ("attn_v", "v_proj", sizes.n_kv, n_embd),
                ("attn_output", "o_proj", n_embd, sizes.n_q),
            ):
                tensors.append(TensorRule(f"{to}{target}.weight", f"{of}self_attn.{source}.weight", (rows, columns)))
                if bias:
                    tensors.append(TensorRule(f"{to}{target}.bias", f"{of}self_attn.{source}.bias", (rows,)))
            tensors += [
                TensorRule(to + "attn_norm.weight", of + "input_layernorm.weight", (n_embd,)),
                TensorRule(to + "attn_sinks.weight", of + "self_attn.sinks", (sizes.n_head,)),
                TensorRule(to + "post_attention_norm.weight", of + "post_attention_layernorm.weight", (n_embd,)),
                *cls._expert_rules(config, to, of + "mlp.", n_expert, n_embd, n_ff),
            ]
        tensors.append(TensorRule("output_norm.weight", "model.norm.weight", (n_embd,)))
        tied = config.flag("tie_word_embeddings", default=False)
        tensors.append(head_rule(sizes, tied=tied))
        metadata = sizes.keys(arch, config) | {f"{arch}.feed_forward_length": n_ff}
        layout = Layout(arch, metadata, tensors, sizes.n_vocab, "model.", tied)
        add_expert_keys(layout, config, n_ff)
        absent = config.get("rope_scaling") is None and config.get("rope_parameters") is None
        rope = Config(_USUAL_ROPE, config.where) if absent else None
        add_rope(layout, config, sizes.head_dim, rope, yarn_truncates=cls.yarn_truncates)
        add_sliding_windows(layout, config, sizes.n_layer, period=cls.window_period, fixed=cls.window_period)
        return layout

    @staticmethod
    def _expert_rules(config: Config, to: str, of: str, n: int, n_embd: int, n_ff: int) -> list[TensorRule]:
        """The router and the experts, whose gate and up alternate: as columns of matrices that stand on their side, or
        as rows of MXFP4 blocks."""
        from ggpy.models.hf import TensorRule
        from ggpy.models.hf_sources import Mxfp4, Stored

        at = of + "experts."

        quantized = config.section("quantization_config")
        gate: Source
        up: Source
        down: Source
        if quantized.values:
            method = quantized.get("quant_method")
            if method != "mxfp4":
                raise GGPYError(
                    f"{quantized.where} gives 'quant_method' as {method!r:.40}; ggpy takes over MXFP4 blocks alone:"
                    " convert the original checkpoint."
                )
            if n_embd % 32 or n_ff % 32:
                raise GGPYError(f"{config.where} gives widths of {n_embd} and {n_ff}; MXFP4 needs multiples of 32.")

            def blocks(name: str, rows: int, columns: int) -> list[Source]:
                shape = (n, rows, columns // 32)
                parts = (("blocks", (*shape, 16)), ("scales", shape))
                return [Stored(f"{at}{name}_{part}", size, raw=True) for part, size in parts]

            both = blocks("gate_up_proj", 2 * n_ff, n_embd)
            gate, up = (Mxfp4(*(part.every(2, first, axis=1) for part in both)) for first in (0, 1))
            down = Mxfp4(*blocks("down_proj", n_embd, n_ff))
        else:
            columns = Stored(at + "gate_up_proj", (n, n_embd, 2 * n_ff))
            gate, up = (columns.every(2, first, axis=2).transpose() for first in (0, 1))
            down = Stored(at + "down_proj", (n, n_ff, n_embd)).transpose()
        biases = Stored(at + "gate_up_proj_bias", (n, 2 * n_ff))
        return [
            TensorRule(to + "ffn_gate_inp.weight", of + "router.weight", (n, n_embd)),
            TensorRule(to + "ffn_gate_inp.bias", of + "router.bias", (n,)),
            TensorRule(to + "ffn_gate_exps.weight", gate),
            TensorRule(to + "ffn_gate_exps.bias", biases.every(2, 0, axis=1)),
            TensorRule(to + "ffn_up_exps.weight", up),
            TensorRule(to + "ffn_up_exps.bias", biases.every(2, 1, axis=1)),
            TensorRule(to + "ffn_down_exps.weight", down),
            TensorRule(to + "ffn_down_exps.bias", at + "down_proj_bias", (n, n_embd)),
        ]
