"""Pre-tokenizers: how byte-level BPE vocabularies cut a text into the pieces that merges never cross.

`tokenizer.ggml.pre` names one. Each is a list of patterns; every pattern in turn cuts the pieces so far into its
matches and the stretches between them. The names are llama.cpp's (src/llama-vocab.cpp), and so are the patterns, but
where those of the models' own tokenizer.json cut otherwise: gpt-4o and tekken tell upper and lower case apart in all
scripts and keep marks with their letters (llama.cpp has case in ASCII alone, and cuts Hindi at each vowel sign), and
`composes`. The models were trained on the originals' tokens.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

from ggpy.errors import quoted
from ggpy.text.tokenizer.unicode_classes import (
    HAN_LETTER,
    HAN_NUMBER,
    HAN_SIGN,
    LETTER,
    LOWER,
    MARK,
    NUMBER,
    PUNCTUATION,
    SYMBOL,
    UPPER,
    collapse,
    collapse_with_han,
    in_word,
    with_ascii_spaces,
)

# The insides of character sets over a collapsed text.
_L, _N, _M = f"A-Za-z{UPPER}{LOWER}{LETTER}", f"0-9{NUMBER}", MARK
_P = r"!-#%-*,-/:;?@\[-\]_{}" + PUNCTUATION
_S = r"$+<->^`|~" + SYMBOL
_UPPER, _LOWER = f"A-Z{UPPER}{LETTER}{MARK}", f"a-z{LOWER}{LETTER}{MARK}"

_CONTRACTION = "'(?:[sS]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])"
_SPACES = r"\s*[\r\n]+|\s+(?!\S)|\s+"

_GPT2 = rf"'s|'t|'re|'ve|'m|'ll|'d| ?[{_L}]+| ?[{_N}]+| ?[^\s{_L}{_N}]+|\s+(?!\S)|\s+"
_WORDS = rf"[^\r\n{_L}{_N}]?[{_L}]+"
_SIGNS = rf" ?[^\s{_L}{_N}]+[\r\n]*"
_LLAMA3 = rf"{_CONTRACTION}|{_WORDS}|[{_N}]{{1,3}}|{_SIGNS}|{_SPACES}"
_QWEN2 = rf"{_CONTRACTION}|{_WORDS}|[{_N}]|{_SIGNS}|{_SPACES}"
_QWEN35 = rf"{_CONTRACTION}|[^\r\n{_L}{_N}]?[{_L}{_M}]+|[{_N}]| ?[^\s{_L}{_M}{_N}]+[\r\n]*|{_SPACES}"
_CASED = (
    rf"[^\r\n{_L}{_N}]?[{_UPPER}]*[{_LOWER}]+{{suffix}}|[^\r\n{_L}{_N}]?[{_UPPER}]+[{_LOWER}]*{{suffix}}"
    rf"|[{_N}]{{digits}}| ?[^\s{_L}{_N}]+[\r\n/]*|{_SPACES}"
)
_TEKKEN = _CASED.replace("{suffix}", "").replace("{digits}", "")
_GPT4O = _CASED.replace("{suffix}", f"(?:{_CONTRACTION})?").replace("{digits}", "{1,3}")
_DEEPSEEK3 = rf"[!-/:-@\[-`{{-~][A-Za-z]+|[^\r\n{_L}{_P}{_S}]?[{_L}{_M}]+| ?[{_P}{_S}]+[\r\n]*|{_SPACES}"
_HAN = HAN_LETTER + HAN_NUMBER + HAN_SIGN
_KIMI = rf"[{_HAN}]+|" + _GPT4O.replace(f"[^\\r\\n{_L}{_N}]?", f"[^\\r\\n{_L}{_N}{_HAN}]?").replace(
    f"[{_N}]{{1,3}}", f"[{_N}{HAN_NUMBER}]{{1,3}}"
).replace(rf" ?[^\s{_L}{_N}]+[\r\n/]*", rf" ?[^\s{_L}{_N}{HAN_LETTER}{HAN_NUMBER}]+[\r\n]*")
_MINICPM5 = rf"{_CONTRACTION}|{_WORDS}|[{_N}]+|{_SIGNS}|{_SPACES}"
_SEED_CODER = rf"{_CONTRACTION}|{_WORDS}|[{_N}]| ?[^\s{_L}{_N}\r\n]+|{_SPACES}"
_BAILING = rf"'(?:[sSdDmMtT]|[lL][lL]|[vV][eE]|[rR][eE])|{_WORDS}|[{_N}]|{_SIGNS}|\s*[\r\n]|\s+(?!\S)|\s+"
_SPARK = _DEEPSEEK3.replace(rf" ?[{_P}{_S}]+[\r\n]*|\s*[\r\n]+", rf" ?[{_P}{_S}]+|[\r\n]")
_EXAONE_MOE = (
    rf"{_CONTRACTION}|[^\r\n{_L}{_N}]?(?:[{_L}][{_M}]*(?: [{_L}][{_M}]*)*)+|[{_N}]| ?[^\s{_L}{_N}]+[\r\n/]?|\s*[\r\n]"
    r"|\s+(?!\S)|\s+"
)
_JAIS2 = (
    rf"{_CONTRACTION}|{_WORDS}|[{_N}]{{1,3}}|{_SIGNS}|\s*[\r\n]+|"
    + "|".join([rf"\s{{{n}}}(?!\S)" for n in (512, 256, 128, 64, 32, 16, 8, 4)])
    + r"|\s{1,2}(?!\S)|\s"
)
_BLOOM = " ?[^(\\s|.,!?\u2026\u3002\uff0c\u3001\u0964\u06d4\u060c)]+"

# DeepSeek's own list of alphabetic letters, which is narrower than \p{L}.
_DEEPSEEK_LETTERS = (
    r"A-Za-z\u00b5\u00c0-\u00d6\u00d8-\u00f6\u00f8-\u01ba\u01bc-\u01bf\u01c4-\u0293\u0295-\u02af\u0370-\u0373"
    r"\u0376\u0377\u037b-\u037d\u037f\u0386\u0388-\u038a\u038c\u038e-\u03a1\u03a3-\u03f5\u03f7-\u0481\u048a-\u052f"
    r"\u0531-\u0556\u10a0-\u10c5\u13a0-\u13f5\u13f8-\u13fd\u1c90-\u1cba\u1cbd-\u1cbf\u1d00-\u1d2b\u1d6b-\u1d77"
    r"\u1d79-\u1d9a\u1e00-\u1f15\u1f18-\u1f1d\u1f20-\u1f45\u1f48-\u1f4d\u1f50-\u1f57\u1f59\u1f5b\u1f5d"
    r"\u1f5f-\u1f7d\u1f80-\u1fb4\u1fb6-\u1fbc\u1fbe\u1fc2-\u1fc4\u1fc6-\u1fcc\u1fd0-\u1fd3\u1fd6-\u1fdb"
    r"\u1fe0-\u1fec\u1ff2-\u1ff4\u1ff6-\u1ffc\u2102\u2107\u210a-\u2113\u2115\u2119-\u211d\u2124\u2126\u2128"
    r"\u212a-\u212d\u212f-\u2134\u2139\u213c-\u213f\u2145-\u2149\u214e\u2183\u2184\u2c00-\u2c7b\u2c7e-\u2ce4"
    r"\u2ceb-\u2cee\u2cf2\u2cf3\ua640-\ua66d\ua680-\ua69b\ua722-\ua76f\ua771-\ua787\ua78b-\ua78e\uab70-\uabbf"
    r"\ufb00-\ufb06\ufb13-\ufb17\uff21-\uff3a\uff41-\uff5a\U00010400-\U0001044f\U000104b0-\U000104d3"
    r"\U000104d8-\U000104fb\U00010c80-\U00010cb2\U00010cc0-\U00010cf2\U000118a0-\U000118df\U0001e900-\U0001e943"
)
_DEEPSEEK_CJK = "[\u4e00-\u9fa5\u0800-\u4e00\uac00-\ud7ff]+"


@dataclass(frozen=True)
class _Step:
    """One cut: a pattern over the collapsed text, or, where it names characters beyond ASCII, over the text itself.

    `threes`: matches are cut into runs of three from the right, by hand, as a pattern that looks ahead for each is
    quadratic; `between`: and nowhere else. `ends`: only matches that no word goes on behind count."""

    pattern: str
    raw: bool = False
    threes: bool = False
    between: bool = False
    ends: bool = False

    def compiled(self) -> re.Pattern[str]:
        return re.compile(self.pattern, re.ASCII)


def _trailing_space(text: str, start: int, end: int) -> int:
    r"""The start of a match of `\s+$` in text[start:end], or `end`: by hand, as a backtracking search is quadratic."""
    return start + len(text[start:end].rstrip(" \t\n\v\f\r"))


_TRAILING_SPACE = _Step("")  # stands for the function above

_DEEPSEEK_LLM = (
    _Step("[\r\n]", raw=True),
    _Step(rf"\s?[{_DEEPSEEK_LETTERS}]+", raw=True),
    _Step("\\s?[!-/:-~\uff01-\uff0f\uff1a-\uff5e\u2018-\u201f\u3000-\u3002]+", raw=True),
    _TRAILING_SPACE,
    _Step(_DEEPSEEK_CJK, raw=True),
    _Step(f"[{_N}]+"),
)
_DEEPSEEK_CODER = (
    _Step("[\r\n]", raw=True),
    _Step(rf"\s?[{_L}]+"),
    _Step(rf"\s?[{_P}]+"),
    _Step(_DEEPSEEK_CJK, raw=True),
    _Step(f"[{_N}]"),
)
_DEEPSEEK_V3 = (
    _Step(f"[{_N}]{{1,3}}"),
    _Step("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+", raw=True),
    _Step(_DEEPSEEK3),
)
_THREES = _Step(f"[{_N}]+", threes=True)
_DIGITS = r"(?u:\d+)"
_LINES = _Step("[^\n]+|\n+", raw=True)
_YOUTU = (
    _Step(
        "[\uac00-\ud7a3\u3131-\u318e]+"
        "|[\uff01\u2026\u201c\u201d\u2018\u2019\u2014\uff1a\uff1b\uff0c\u3001-\u303f\ufe30-\ufe4f]+"
        "|[\u3105-\u312f]+|[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+",
        raw=True,
    ),
    _Step(_GPT4O.replace("{1,3}", "")),
)
_AFMOE = (
    _THREES,
    _Step(
        "[\u4e00-\u9fff\u3400-\u4dbf\u8c48-\ufaff\u3040-\u309f\u30a0-\u30ff\uff65-\uff9f\u2f00-\u2fdf\u0e40-"
        "\u0e7f\u0e80-\u0eff\u1780-\u17ff\u1000-\u109f\uaa60-\uaa7f\ua9e0-\ua9ff\uac00-\ud7af\u1100-\u11ff]+",
        raw=True,
    ),
    _Step(_DEEPSEEK3),
)
_CHAMELEON = (
    _Step("<sentinel:[0-9]+>"),
    _Step("IMGIMG[A-I]{1,4}Z"),
    _Step("[\t\n]|    |  "),
    _Step(f"[{_N}]"),
    _Step(rf"[{_P}!-/:-@\[-`{{-~]"),
    _Step(_GPT2),
)
_DEFAULT = (
    _Step(rf"[{_P}$+<=>^~|]+"),
    _Step(_GPT2),
    _Step(f"[{_N}]+"),
    _Step("[0-9][0-9][0-9]"),
)
_FALCON = (_Step(rf"[{_P}$+<=>^~|`]+"), _Step(_GPT2), _Step("[0-9][0-9][0-9]"))
_DIGITS_APART = (_Step(f"[{_N}]"), _Step(_GPT2))


@dataclass(frozen=True)
class PreTokenizer:
    """A named way to cut text, with the settings that llama.cpp infers from the name for the rest of the tokenizer."""

    steps: tuple[_Step, ...]
    ignore_merges: bool = False  # a piece that is a token is that token, whatever the merges say
    add_bos: bool = False  # where the file does not say
    composes: bool = False  # the models' own tokenizers bring text to NFC first, which llama.cpp does not
    tells_han: bool = False  # the pattern tells characters of the Han script from others

    def splitter(self) -> Callable[[str], list[str]]:
        """The function that cuts a text into pieces; joined they are the text again."""
        if len(self.steps) == 1 and not self.steps[0].raw:
            return _one_pass(self.steps[0].compiled(), collapse_with_han if self.tells_han else collapse)
        return _many_passes(self.steps)


def _one_pass(pattern: re.Pattern[str], collapse: Callable[[str], str]) -> Callable[[str], list[str]]:
    """The splitter of a pattern whose matches cover any text: its matches are the pieces."""
    matches = pattern.findall

    def split(text: str) -> list[str]:
        if text.isascii():
            return matches(text)
        pieces, start = [], 0
        for match in matches(collapse(text)):
            end = start + len(match)
            pieces.append(text[start:end])
            start = end
        return pieces

    return split


def _many_passes(steps: tuple[_Step, ...]) -> Callable[[str], list[str]]:
    compiled = [(step, step.compiled()) for step in steps]

    def split(text: str) -> list[str]:
        collapsed, raw = collapse(text), with_ascii_spaces(text)
        bounds = [0, len(text)]
        for step, pattern in compiled:
            source = raw if step.raw else collapsed
            cut = [0]
            for start, end in pairwise(bounds):
                if step is _TRAILING_SPACE:
                    at = _trailing_space(raw, start, end)
                    if start < at < end:
                        cut.append(at)
                else:
                    for match in pattern.finditer(source, start, end):
                        at = match.start()
                        if step.ends and in_word(text[match.end() : match.end() + 1]):
                            continue
                        if at > cut[-1] and not step.between:
                            cut.append(at)
                        if step.threes:
                            first = match.end() - (match.end() - max(at, cut[-1] + 1)) // 3 * 3
                            cut += range(first, match.end(), 3)
                        if not step.between:
                            cut.append(match.end())
                if cut[-1] < end:
                    cut.append(end)
            bounds = cut
        return [text[start:end] for start, end in pairwise(bounds)]

    return split


def _one(pattern: str, **flags: bool) -> PreTokenizer:
    return PreTokenizer((_Step(pattern),), **flags)


_KINDS: tuple[tuple[str, PreTokenizer], ...] = (
    ("default", PreTokenizer(_DEFAULT)),
    ("llama-bpe llama3 llama-v3 falcon3 falcon-h1 pixtral midm-2.0 lfm2 jina-v5-nano",
     _one(_LLAMA3, ignore_merges=True, add_bos=True)),
    ("dbrx smaug-bpe chatglm-bpe", _one(_LLAMA3)),
    ("glm4 glm5", _one(_LLAMA3, ignore_merges=True)),
    ("deepseek-llm", PreTokenizer(_DEEPSEEK_LLM)),
    ("deepseek-coder", PreTokenizer(_DEEPSEEK_CODER)),
    ("deepseek-v3 hunyuan-dense joyai-llm hy_v4", PreTokenizer(_DEEPSEEK_V3)),
    ("falcon", PreTokenizer(_FALCON)),
    ("gpt-2 phi-2 jina-es jina-de gigachat jina-v2-es jina-v2-de a.x-4.0 mellum modern-bert jais exaone4 jina-v1-en "
     "jina-v2-code roberta-bpe trillion granite-docling", _one(_GPT2)),
    ("mpt olmo", _one(_GPT2, composes=True)),
    ("starcoder refact codeshell exaone minerva-7b mellum2 smollm", PreTokenizer(_DIGITS_APART)),
    ("command-r", PreTokenizer(_DIGITS_APART, composes=True)),
    ("qwen2", _one(_QWEN2, composes=True)),
    ("deepseek-r1-qwen kormo f2llmv2 hunyuan solar-open grok-2 stablelm2 megrez", _one(_QWEN2)),
    ("qwen35", _one(_QWEN35, composes=True)),
    ("tekken", _one(_TEKKEN, ignore_merges=True, add_bos=True)),
    ("gpt-4o llama4 kanana2 talkie minimax-m2", _one(_GPT4O)),
    ("seed-coder", _one(_SEED_CODER)),
    ("bailingmoe bailingmoe2 llada-moe", _one(_BAILING)),
    ("bloom gpt3-finnish poro-chat", PreTokenizer((_Step(_BLOOM, raw=True),))),
    ("viking", PreTokenizer((_Step(_BLOOM, raw=True), _Step(f"[{_N}]")))),
    ("jais-2", _one(_JAIS2)),
    ("spark2_5", PreTokenizer((_DEEPSEEK_V3[0], _DEEPSEEK_V3[1], _Step(_SPARK), _Step(f"[{_N}]")))),
    ("youtu", PreTokenizer(_YOUTU, ignore_merges=True)),
    ("chameleon", PreTokenizer(_CHAMELEON, add_bos=True)),
    ("granite-embed-multi-97m", _one(_GPT4O, ignore_merges=True)),
    ("tiny_aya cohere2moe", PreTokenizer((_Step(_DIGITS, raw=True, threes=True, ends=True), _Step(_GPT4O)))),
    ("kimi-k2", PreTokenizer((_Step(_KIMI),), tells_han=True)),
    ("superbpe", PreTokenizer((_Step(f"[{_N}]+"), _Step(_DIGITS, raw=True, threes=True, between=True)))),
    ("ufakzeka", _one(rf"{_WORDS}|[{_N}]|{_SIGNS}|{_SPACES}")),
    ("afmoe", PreTokenizer(_AFMOE, ignore_merges=True)),
    ("laguna", PreTokenizer((_LINES, _Step(_QWEN2)))),
    ("exaone-moe", _one(_EXAONE_MOE)),
    ("minicpm5", PreTokenizer((_Step(f"[{_N}]{{1,3}}"), _Step(_MINICPM5)), ignore_merges=True)),
)  # fmt: skip

#: Names of merges of the text itself, not of its bytes: spaces are written as ▁ or, for the last, cut at. They need no
#: pre-tokenizer: llama.cpp cuts them at the ends of lines, which the models' own tokenizers do not.
TEXT_MERGES = ("gemma4", "granite-embed-multi-311m", "sarvam-moe", "whitespace")

#: Every name that `tokenizer.ggml.pre` may hold beside these.
PRE_TOKENIZERS = {name: kind for names, kind in _KINDS for name in names.split()}


def pre_tokenizer(name: str, where: str) -> tuple[PreTokenizer, str | None]:
    """The pre-tokenizer of that name and, where it is none that is known, a note: llama.cpp's default then stands in,
    as llama.cpp has it where a file names none. `where` names the file in the note."""
    known = PRE_TOKENIZERS.get(name)
    if known is not None:
        return known, None
    said = f"the pre-tokenizer {quoted(name, 60)} is none that ggpy knows" if name else "no pre-tokenizer is named"
    note = f"{where}: {said} (key tokenizer.ggml.pre); text is cut by the default one, maybe not as the model learnt it"
    return PRE_TOKENIZERS["default"], note
