"""Unigram vocabularies beside the `tokenizers` package and SentencePiece, at random texts."""

from __future__ import annotations

import json
import random
from typing import Any

import numpy as np
import pytest
import tokenizers
from tokenizers import pre_tokenizers

from ggpy import GGPYError, Tokenizer
from ggpy.convert.sentencepiece_model import read_sentencepiece_model
from ggpy.convert.tokenizer_json import read_tokenizer_json
from tests.support.vocabularies import CORPUS, random_texts

SPECIALS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")


def trained(pre: Any, normalizer: Any = None) -> tokenizers.Tokenizer:
    tokenizer = tokenizers.Tokenizer(tokenizers.models.Unigram())
    if normalizer is not None:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre
    tokenizer.decoder = tokenizers.decoders.Metaspace()
    trainer = tokenizers.trainers.UnigramTrainer(
        vocab_size=400, special_tokens=list(SPECIALS), unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = tokenizers.processors.TemplateProcessing(
        single="<s> $A </s>", pair="<s> $A </s> </s> $B </s>", special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    # Trained on so little, pieces have scores that differ by less than the float32 of any file holds.
    parts, rng = json.loads(tokenizer.to_str()), random.Random(1)
    parts["model"]["vocab"] = [
        [text, float(np.float32(score - rng.random())) if score else 0.0] for text, score in parts["model"]["vocab"]
    ]
    return tokenizers.Tokenizer.from_str(json.dumps(parts))


def read(tokenizer: tokenizers.Tokenizer) -> Tokenizer:
    """The same tokenizer by the keys of a converted file."""
    vocabulary = read_tokenizer_json(json.loads(tokenizer.to_str()), {}, "tokenizer.json")
    vocabulary.fit(tokenizer.get_vocab_size())
    ids = {"bos": 0, "eos": 2, "unknown": 3}
    keys = {f"tokenizer.ggml.{name}_token_id": id for name, id in ids.items()}
    return Tokenizer({**vocabulary.metadata(), **keys, "tokenizer.ggml.add_bos_token": True})


PRE = {
    "spaces split and dropped": pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.Metaspace(prepend_scheme="always")]
    ),
    "spaces kept": pre_tokenizers.Metaspace(prepend_scheme="always", split=True),
    "not cut": pre_tokenizers.Metaspace(prepend_scheme="first", split=False),
}


@pytest.mark.parametrize("name", PRE)
def test_tokens_are_those_of_the_tokenizers_package(name: str) -> None:
    theirs = trained(PRE[name])
    ours = read(theirs)
    rng = random.Random(3)
    words = [text for text, _ in json.loads(theirs.to_str())["model"]["vocab"]]
    texts = [" ".join(rng.choices(words, k=8)).replace("\u2581", " ") for _ in range(60)]
    texts += ["".join(rng.choices(words, k=8)).replace("\u2581", " ") for _ in range(60)]
    texts += [text.replace("\u2581", "").replace("\n", " ").replace("\t", " ") for text in random_texts(150, 5)]
    for text in [*texts, "a", " a  b ", "<mask> a<mask>b", "\u2603\u2603 \u2603", ""]:
        if name == "spaces split and dropped":
            text = " ".join(text.split())
        assert ours.tokenize(text, parse_special=True) == theirs.encode(text).ids, text


def test_two_texts_stand_apart_by_two_ends() -> None:
    theirs = trained(PRE["spaces kept"])
    ids, second = read(theirs).tokenize_pair("one two", "three")
    assert ids == theirs.encode("one two", "three").ids
    assert ids[second - 2 : second] == [2, 2]


def test_a_vocabulary_without_an_unknown_token() -> None:
    keys = {"tokenizer.ggml.model": "t5", "tokenizer.ggml.tokens": ["a", "b"], "tokenizer.ggml.scores": [0.0, -1.0]}
    with pytest.raises(GGPYError, match="needs its unknown token"):
        Tokenizer(keys)


def test_sentencepieces_own_tokens_and_map_of_characters() -> None:
    """A model of SentencePiece's own trainer, whose map of characters is NFKC with lower case."""
    import io

    import sentencepiece

    file = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(CORPUS), model_writer=file, vocab_size=300, model_type="unigram",
        character_coverage=0.98, normalization_rule_name="nmt_nfkc_cf", hard_vocab_limit=False, minloglevel=2,
    )  # fmt: skip
    theirs = sentencepiece.SentencePieceProcessor(model_proto=file.getvalue())
    vocabulary = read_sentencepiece_model(file.getvalue(), "tokenizer.model")
    assert vocabulary.model == "t5"
    vocabulary.fit(theirs.vocab_size())
    ours = Tokenizer({**vocabulary.metadata(), "tokenizer.ggml.unknown_token_id": 0})
    for text in [*random_texts(150, 6), "\uff21\ufb01 \u2167 \u33a1", "  \tA  B\u3000C "]:
        text = text.replace("\u2581", "")
        assert ours.tokenize(text, add_special=False) == theirs.encode(text), text
