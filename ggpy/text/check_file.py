"""Checks of what a converter wrote about text: whether a file's tokenizer, chat template and end tokens agree with one
another and with those of the vocabularies that most models have.

A vocabulary is known by tokens that no other has, not by a model's name, so that fine-tuned models are checked as their
parents are.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

from ggpy.errors import GGPYError, quoted, shown
from ggpy.gguf.metadata import TypedMetadata
from ggpy.text.chat_template import ChatTemplate
from ggpy.text.tokenizer import Tokenizer

if TYPE_CHECKING:
    from ggpy.gguf.file import GGUFFile


@dataclass(frozen=True)
class Known:
    """A vocabulary that is known: `tokens` that tell it, all of which it has; names of `pre`-tokenizers that cut its
    text rightly, the first being the usual one (none: it needs none); the tokens of which one at least `ends` a turn;
    whether texts begin with `bos`, where that is always so. `size`: the fewest tokens, where another has the same.
    `talks`: all models that have it have a chat template."""

    name: str
    tokens: tuple[str, ...]
    pre: tuple[str, ...]
    ends: tuple[str, ...]
    bos: bool | None = None
    size: int = 0
    talks: bool = False


_LLAMA3 = ("llama-bpe", "llama3", "llama-v3", "falcon3", "pixtral", "midm-2.0")

#: The first that fits counts. Sources: the tokenizer.json and tokenizer_config.json of these models, and the names that
#: llama.cpp's converter gives to their pre-tokenizers.
KNOWN = (
    Known("Qwen 3.5", ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), ("qwen35",), ("<|im_end|>", "<|endoftext|>"),
          False, size=240_000),
    Known("DeepSeek-R1's distilled Qwen", ("<｜User｜>", "<｜Assistant｜>", "<|fim_prefix|>"),
          ("deepseek-r1-qwen", "qwen2"), ("<｜end▁of▁sentence｜>",), True),
    Known("Qwen 2, 2.5 and 3", ("<|im_start|>", "<|im_end|>", "<|endoftext|>"), ("qwen2", "qwen35", "kormo", "f2llmv2"),
          ("<|im_end|>", "<|endoftext|>"), False, size=150_000),
    Known("Llama 3", ("<|begin_of_text|>", "<|start_header_id|>", "<|eot_id|>"), _LLAMA3,
          ("<|eot_id|>", "<|end_of_text|>"), True),
    Known("Llama 4", ("<|begin_of_text|>", "<|header_start|>", "<|eot|>"), ("llama4", "gpt-4o"), ("<|eot|>",), True),
    Known("gpt-oss", ("<|channel|>", "<|message|>", "<|return|>"), ("gpt-4o",), ("<|return|>",), talks=True),
    Known("Mistral's Tekken", ("[INST]", "[/INST]", "[TOOL_CALLS]", "<SPECIAL_20>"), ("tekken",), ("</s>",), True),
    Known("Gemma 4", ("<|turn>", "<turn|>"), (), ("<turn|>",), True),
    Known("Gemma 2 and 3", ("<start_of_turn>", "<end_of_turn>"), (), ("<end_of_turn>",), True),
    Known("Phi-3", ("<|assistant|>", "<|end|>", "<|placeholder1|>"), (), ("<|end|>",), talks=True),
    Known("Phi-4", ("<|im_sep|>", "<|im_end|>"), ("dbrx", "llama-bpe", "smaug-bpe"), ("<|im_end|>",), talks=True),
    Known("Phi-4-mini", ("<|assistant|>", "<|end|>", "<|tool|>"), ("gpt-4o",), ("<|end|>",), size=200_000, talks=True),
    Known("DeepSeek-V3 and R1", ("<｜User｜>", "<｜Assistant｜>"), ("deepseek-v3", "joyai-llm", "hunyuan-dense"),
          ("<｜end▁of▁sentence｜>",), True, size=128_000),
    Known("GLM-4", ("[gMASK]", "<|user|>", "<|observation|>"), ("glm4", "chatglm-bpe", "glm5"), ("<|user|>",)),
    Known("SmolLM2", ("<|im_start|>", "<|im_end|>", "<repo_name>", "<gh_stars>"), ("smollm", "starcoder"),
          ("<|im_end|>",)),
)  # fmt: skip

#: What templates write for a token, within the quotes of their texts.
_MARKER = re.compile(r"<[|｜][A-Za-z_▁]{2,40}[|｜]>|<(?:start|end)_of_turn>|<\|turn>|<turn\|>")
_PROBE = [{"role": "user", "content": "Hello"}]


def check_file(file: GGUFFile) -> list[str]:
    """Sentences about what is wrong in a file, empty where nothing is found. Never raises GGPYError."""
    try:
        return _found(file)
    except GGPYError as error:
        return [shown(error)]


def _found(file: GGUFFile) -> list[str]:
    tokenizer, metadata = Tokenizer.from_gguf(file), TypedMetadata(file.metadata, str(file.path))
    kind = metadata.find("tokenizer.ggml.model", str)
    arch = metadata.find("general.architecture", str)
    encodes = kind in ("bert", "t5") or bool(metadata.find(f"{arch}.pooling_type", int))  # and writes no text
    known = next((one for one in KNOWN if _fits(one, tokenizer)), None)
    found = _tokens(file, tokenizer, metadata, known, encodes=encodes)
    if encodes:
        return found
    source = metadata.find("tokenizer.chat_template", str) or ""
    if known and known.talks and not source.strip():
        found.append(
            f"There is no chat template (key tokenizer.chat_template), where models with the vocabulary of {known.name}"
            " have one."
        )
    return found + _ends(tokenizer, known, source) + _template(file, tokenizer, source)


def _fits(known: Known, tokenizer: Tokenizer) -> bool:
    return tokenizer.n_vocab >= known.size and all(tokenizer.token_id(text) is not None for text in known.tokens)


def _tokens(
    file: GGUFFile, tokenizer: Tokenizer, metadata: TypedMetadata, known: Known | None, *, encodes: bool
) -> list[str]:
    """How text is cut, what stands around it, how many tokens there are."""
    found = [tokenizer.note] if tokenizer.note else []
    pre = metadata.find("tokenizer.ggml.pre", str) or ""
    byte_level = metadata.find("tokenizer.ggml.model", str) == "gpt2"
    if known and known.pre and byte_level and pre not in known.pre:
        named = f"names {quoted(pre, 60)}" if pre else "names none"
        found.append(
            f"The vocabulary is that of {known.name}, whose text is cut by the pre-tokenizer {known.pre[0]!r}; the file"
            f" {named} (key tokenizer.ggml.pre)."
        )
    if known and known.bos is not None and tokenizer.add_bos != known.bos:
        here, there = ("does", "do not") if tokenizer.add_bos else ("does not", "do")
        found.append(
            f"A text {here} begin with the BOS token by this file, and those of {known.name} {there}"
            " (key tokenizer.ggml.add_bos_token)."
        )
    if tokenizer.add_eos and not encodes:
        found.append("An end token is put after every prompt, where answers begin (key tokenizer.ggml.add_eos_token).")
    embedding = file.tensors.get("token_embd.weight")
    if embedding is not None and len(embedding.shape) == 2 and embedding.shape[0] != tokenizer.n_vocab:
        found.append(f"The vocabulary has {tokenizer.n_vocab} tokens, and the embedding {embedding.shape[0]} rows.")
    return found


def _ends(tokenizer: Tokenizer, known: Known | None, template: str) -> list[str]:
    """The tokens that end an answer."""
    if not tokenizer.eog:
        return ["No token ends an answer (key tokenizer.ggml.eos_token_id)."]
    written = [text for text in (known.ends if known else ()) if not template or text in template]
    ends = [i for text in written if (i := tokenizer.token_id(text)) is not None]
    if not ends or tokenizer.eog.intersection(ends):
        return []
    eos = "none" if tokenizer.eos is None else quoted(tokenizer.token_text(tokenizer.eos), 40)
    return [
        f"{quoted(written[0], 40)} ends a turn, and does not end an answer: the file's end token is {eos} (key"
        " tokenizer.ggml.eos_token_id), so that answers run on."
    ]


def _template(file: GGUFFile, tokenizer: Tokenizer, source: str) -> list[str]:
    """The chat template, rendered with one message, and the tokens that it writes."""
    template = ChatTemplate.from_gguf(file, tokenizer) if source.strip() else None
    if template is None:
        return []
    rendered, found = template.render(_PROBE), []
    if _PROBE[0]["content"] not in rendered:
        found.append("The chat template leaves out what a user says.")
    for text in dict.fromkeys(_MARKER.findall(rendered)):
        token = tokenizer.token_id(text)
        if token is None:
            found.append(f"The chat template writes {quoted(text, 40)}, which is no token of this vocabulary.")
        elif tokenizer.tokenize(text, add_special=False, parse_special=True) != [token]:
            found.append(
                f"The token {quoted(text, 40)} is marked as text (key tokenizer.ggml.token_type): where the template"
                " writes it, the model reads its letters."
            )
    ids = tokenizer.tokenize(rendered, add_special=False, parse_special=True)
    if tokenizer.bos is not None and ids[:2] == [tokenizer.bos] * 2:
        found.append("The chat template writes the BOS token twice.")
    return found
