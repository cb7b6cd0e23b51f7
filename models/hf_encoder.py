"""Parts that layouts of encoders' checkpoints are made of: BERT's names, classifiers, heads that are left out."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError
from ggpy.models.base import MAX_LAYERS, POOLINGS
from ggpy.models.hf import Layout, TensorRule

if TYPE_CHECKING:
    from ggpy.models.base import Architecture
    from ggpy.models.hf_config import Config

#: Which rows of a text a classifier reads, where readers of the architecture take others.
CLASSIFIED_ROWS = "ggpy.classifier.pooling"

HEADS_LEFT_OUT = (
    (
        r"((bert|roberta)\.)?pooler\.",
        "the pooler is left out: it feeds classifiers, and embeddings are made without it.",
    ),
    (r"(cls|lm_head|head|decoder)\.", "the head that predicts words is left out: the file embeds texts."),
)


@dataclass(frozen=True)
class EncoderSizes:
    """The sizes that a config gives for all layers of an encoder."""

    n_layer: int
    n_embd: int
    n_head: int
    n_ff: int
    n_vocab: int
    n_types: int  # of tokens; 0: no table of them

    @classmethod
    def read(cls, config: Config, *, types: bool = True) -> EncoderSizes:
        n_embd, n_head = config.integer("hidden_size"), config.integer("num_attention_heads")
        if n_embd % n_head or n_embd // n_head % 2:
            raise GGPYError(
                f"{config.where} gives a 'hidden_size' of {n_embd} for {n_head} 'num_attention_heads'; ggpy needs heads"
                " of an even number of dimensions."
            )
        return cls(
            n_layer=config.integer("num_hidden_layers", most=MAX_LAYERS),
            n_embd=n_embd,
            n_head=n_head,
            n_ff=config.integer("intermediate_size"),
            n_vocab=config.integer("vocab_size"),
            n_types=config.integer("type_vocab_size", least=0) if types else 0,
        )


def encoder_layout(
    architecture: type[Architecture],
    config: Config,
    sizes: EncoderSizes,
    n_ctx: int,
    prefix: str,
    eps: str = "layer_norm_eps",
) -> Layout:
    """The layout of an encoder, without tensors yet. `eps`: the config's name of the norms' epsilon."""
    arch = architecture.name
    metadata = {
        f"{arch}.block_count": sizes.n_layer,
        f"{arch}.context_length": n_ctx,
        f"{arch}.embedding_length": sizes.n_embd,
        f"{arch}.feed_forward_length": sizes.n_ff,
        f"{arch}.attention.head_count": sizes.n_head,
        f"{arch}.attention.{architecture.norm_eps_key}": config.number(eps),
        f"{arch}.attention.causal": False,
    }
    return Layout(arch, metadata, [], sizes.n_vocab, prefix, tied=True, left_out=HEADS_LEFT_OUT)


def named_rules(to: str, of: str, names: Mapping[str, str], *shape: int, bias: bool = True) -> list[TensorRule]:
    """Weights of one shape with their biases: `names` gives the checkpoint's of each of the file's."""
    rules = []
    for target, name in names.items():
        rules.append(TensorRule(f"{to}{target}.weight", f"{of}{name}.weight", shape))
        if bias:
            rules.append(TensorRule(f"{to}{target}.bias", f"{of}{name}.bias", shape[:1]))
    return rules


def classifies(config: Config) -> bool:
    """True for a model with a classifier of texts, as rerankers are."""
    return any("ForSequenceClassification" in name for name in config.classes)


def score_rules(layout: Layout, config: Config, n_embd: int) -> list[TensorRule]:
    """The one matrix of a decoder's classifier, which reads the last row."""
    _say_that_it_ranks(layout, config)
    return [TensorRule("cls.output.weight", "score.weight", (len(config.labels), n_embd))]


def classifier_rules(
    layout: Layout, config: Config, n_embd: int, dense: str, out: str, *, dense_bias: bool = True
) -> list[TensorRule]:
    """The classifier's tensors, and the keys that say there is one; none for a model without it. `dense` and `out`: the
    names of its two matrices."""
    if not classifies(config):
        return []
    _say_that_it_ranks(layout, config)
    return [
        *named_rules("", "", {"cls": dense}, n_embd, n_embd, bias=dense_bias),
        *named_rules("", "", {"cls.output": out}, len(config.labels), n_embd),
    ]


def _say_that_it_ranks(layout: Layout, config: Config) -> None:
    layout.metadata[f"{layout.arch}.pooling_type"] = POOLINGS.index("rank")
    if not config.labels[0].startswith("LABEL_"):
        layout.metadata[f"{layout.arch}.classifier.output_labels"] = list(config.labels)
