"""Gemma 3n (E2B, E4B), its text: Gemma 3's layers with the values' norm, shared keys and per-layer embeddings of Gemma
4, in four streams of residuals (AltUp) of which a layer computes one and predicts the others, a second residual of low
rank (Laurel), and in the first layers a feed-forward most of whose gates are 0."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.models.gemma4 import ACTIVATION, Gemma4
from ggpy.models.layers import glu_ffn

if TYPE_CHECKING:
    from ggpy.graph.language import Graph, Value
    from ggpy.models.hf import Layout
    from ggpy.models.hf_config import Config

#: Of the first layers, where a file does not say: 95 % of gates are 0.
_SPARSE_LAYERS, _DEVIATIONS = 10, 1.6448533535003662
#: Layers that have keys and values of their own, where a file does not say.
_LAYERS_WITH_KEYS = 20
_LEAST = math.sqrt(1e-5)  # that a stream's magnitude counts as where it is divided by


class Gemma3n(Gemma4):
    name = "gemma3n"
    hf_names = ("Gemma3nForCausalLM", "Gemma3nForConditionalGeneration")
    window_period = 5
    usual_softcap = 30.0

    def shared_layers(self) -> int:
        usual = max(0, self.hparams.n_layer - _LAYERS_WITH_KEYS)
        return self.metadata.integer("{arch}.attention.shared_kv_layers", usual)

    def streams(self) -> tuple[int, int]:
        """The number of streams, and which of them the layers compute."""
        n, active = (
            self.metadata.integer("{arch}.altup." + key, usual) for key, usual in (("num_inputs", 4), ("active_idx", 0))
        )
        if not 0 <= active < n <= 64 or n < 2:
            raise GGPYError(f"The metadata has layers compute stream {active} of {n}, which is impossible.")
        return n, active

    def deviations(self) -> Sequence[float]:
        """The standard deviations above the mean that gates of each layer are kept from; minus infinity: all are."""
        n_layer, found = self.hparams.n_layer, self.metadata.find("{arch}.activation_sparsity_scale", list)
        if found is None:
            n_sparse = _SPARSE_LAYERS if n_layer > _SPARSE_LAYERS else 0
            return [_DEVIATIONS] * n_sparse + [-math.inf] * (n_layer - n_sparse)
        listed = [float(number) for number in found] if all(isinstance(x, float) or x.real == x for x in found) else []
        if len(listed) != n_layer or not all(number < 100 for number in listed):
            raise GGPYError(
                f"The metadata key '{self.name}.activation_sparsity_scale' must give a number for each of {n_layer}"
                " layers."
            )
        return listed

    def build(self, g: Graph) -> Value:
        hp, eps, (n, active) = self.hparams, self.hparams.norm_eps, self.streams()
        full, sliding = self.ropes(g.vector("rope_freqs.weight"))
        width, deviations = hp.n_embd, self.deviations()
        x = g.scale(g.embed(width), math.sqrt(width))
        n_each = self.metadata.integer("{arch}.embedding_length_per_layer_input")
        each = self.layer_inputs(g, x, n_each)
        streams = self._spread(g, x, n)
        for layer in g.layers(hp.n_layer):
            at = f"blk.{layer}."
            coefficients = g.linear(
                self._modalities(g, streams.columns(active * width, width), layer, n), at + "altup_predict_coef", n * n
            )
            predicted = g.mix_streams(streams, coefficients, n)
            x = predicted.columns(active * width, width)
            normed = g.norm(x, at + "attn_norm", eps)
            low = g.linear(normed, at + "laurel_l", self._rank(g, layer))
            laurel = g.add(normed, g.norm(g.linear(low, at + "laurel_r", width), at + "laurel_post_norm", eps))
            y = self.attention(g, normed, layer, sliding if hp.window(layer) else full)
            y = g.add(x, g.norm(y, at + "post_attention_norm", eps))
            y = g.scale(g.add(y, laurel), 0.5**0.5)
            made = self._gated(g, g.norm(y, at + "ffn_norm", eps), layer, deviations[layer])
            y = g.add(y, g.norm(made, at + "post_ffw_norm", eps))
            corrected = self._correct(g, predicted, y, layer, n, active)
            given = g.scale_columns(corrected.columns(active * width, width), at + "altup_correct_scale.weight")
            given = g.glu(g.linear(given, at + "inp_gate", n_each), each.columns(layer * n_each, n_each), ACTIVATION)
            given = g.norm(g.linear(given, at + "proj", width), at + "post_norm", eps)
            streams = corrected.columns(0, width)
            for other in range(1, n):
                streams = g.concat(streams, g.add(corrected.columns(other * width, width), given))
        logits = g.output(g.norm(g.select_outputs(self._gather(g, streams, n)), "output_norm", eps), hp.n_vocab)
        return g.softcap(logits, self.softcap())

    def _rank(self, g: Graph, layer: int) -> int:
        info = g.file.tensors.get(f"blk.{layer}.laurel_l.weight")
        return info.shape[0] if info and len(info.shape) == 2 else 1

    def _spread(self, g: Graph, x: Value, n: int) -> Value:
        """The streams side by side: the embeddings, and projections of them that have their magnitude."""
        copies = x
        for _ in range(n - 2):
            copies = g.concat(copies, x)
        made, streams, width = g.head_linear(copies, "altup_proj", n - 1, x.n_cols), x, x.n_cols
        for i in range(n - 1):
            streams = g.concat(streams, g.match_magnitude(made.columns(i * width, width), x, _LEAST))
        return streams

    def _gather(self, g: Graph, streams: Value, n: int) -> Value:
        """The mean of the streams, all but the first projected and of the first one's magnitude."""
        width = streams.n_cols // n
        made = g.head_linear(streams.columns(width, (n - 1) * width), "altup_unembd_proj", n - 1, width)
        first = total = streams.columns(0, width)
        for i in range(n - 1):
            total = g.add(total, g.match_magnitude(made.columns(i * width, width), first, _LEAST))
        return g.scale(total, 1 / n)

    def _modalities(self, g: Graph, x: Value, layer: int, n: int) -> Value:
        """Numbers of a stream that decide how streams mix: [n_tokens, n]."""
        at = f"blk.{layer}.altup_router"
        routed = g.linear(g.norm(x, at + "_norm", self.hparams.norm_eps), at, n)
        return g.activation(g.scale(routed, 1 / x.n_cols), "tanh")

    def _correct(self, g: Graph, predicted: Value, y: Value, layer: int, n: int, active: int) -> Value:
        """All streams moved by parts of what the computed one differs from its prediction."""
        width = y.n_cols
        coefficients = g.linear(self._modalities(g, y, layer, n), f"blk.{layer}.altup_correct_coef", n)
        missed = g.add(y, g.scale(predicted.columns(active * width, width), -1.0))
        return g.add(g.mix_streams(missed, coefficients, 1), predicted)

    def _gated(self, g: Graph, x: Value, layer: int, deviations: float) -> Value:
        if deviations == -math.inf:
            return glu_ffn(g, x, layer, self.hparams, ACTIVATION)
        at, n_ff = f"blk.{layer}.", self.hparams.layers[layer].n_ff
        gate = g.gaussian_topk(g.linear(x, at + "ffn_gate", n_ff), deviations)
        return g.linear(g.glu(gate, g.linear(x, at + "ffn_up", n_ff), ACTIVATION), at + "ffn_down", self.hparams.n_embd)

    @classmethod
    def hf_layout(cls, config: Config) -> Layout:
        from ggpy.models.hf_gemma3n import gemma3n_layout

        return gemma3n_layout(config)
