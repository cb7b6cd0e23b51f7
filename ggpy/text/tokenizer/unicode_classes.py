"""The character classes that pre-tokenizers are written in: \\p{L} by case, \\p{N}, \\p{M}, \\p{P}, \\p{S} and spaces.

They are Unicode 15.1's, the version GGUF tokenizers are matched against in llama.cpp. They are kept here because the
same text must give the same tokens whatever Unicode version the running Python, or the `regex` package, knows.

`collapse` writes a text with every character beyond ASCII replaced by one letter for its class, so that plain `re`
patterns over Latin-1 do all the matching; offsets stay those of the original text.
"""

from __future__ import annotations

import re
import unicodedata
from bisect import bisect_right

#: What `collapse` writes for a character beyond ASCII of each class; white space becomes a vertical tab.
NUMBER, LETTER, PUNCTUATION, MARK, SYMBOL, OTHER, SPACE = "\xd1", "\xd2", "\xd3", "\xd4", "\xd5", "\xd0", "\x0b"
HAN_LETTER, HAN_NUMBER, HAN_SIGN = "\xc0", "\xc1", "\xc2"  # of the Han script, where it is told
UPPER, LOWER = "\xd6", "\xd8"  # letters with a case, title case with the upper; LETTER is all others

_CLASSES = {
    "N": NUMBER, "U": UPPER, "W": LOWER, "L": LETTER, "P": PUNCTUATION, "M": MARK, "S": SYMBOL, "-": OTHER, "Z": SPACE
}  # fmt: skip

# Runs from U+0080 on, as `decode_runs` reads them.
_RUNS = (
    "5Z-qZPS5PS2LPS-S4N2SWP2SNLPN3PUnSU7WoSW8UWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUW2UWUWUWUWUWUWUWUW"
    "2UWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWU2WUWUW3U2WUWU2WU3W2U4WU2WU3W3U2WU2WUWUWU2WUW2UWU2WU3WUWU2W2LUW3L"
    "4U2WU2WU2WUWUWUWUWUWUWUWUW2UWUWUWUWUWUWUWUWUW2U2WUWU3WUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUW"
    "7U2WU2W2UWU4WUWUWUWUW1xLWrLiS4LcSeL5S7LSLShM34UWUWLSUW-2LW3PU-4S2UPU3-U-U2WUh-U9WzUW2U3W3UWUWUWUWUWUWUWUWUWUWUWUW"
    "5UWSUWU2W2U1fW1cUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWSM7UWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWU2WUWU"
    "WUWUWUWUW2UWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUW-U12-2L"
    "P6W15P2-2S3-M19PMPM2PM2PM-8Lr-4L4P2-hS3P2SP2S2MbP-P3L17MlNaP4L2ML2rPLM7-SM6L2M2SM4L2NaL3S2LPe-2LMLuMr-2L2hMbL-eN"
    "aLxM9L2SP3L-2MS2LmM4LM9LM3LM5-2Pf-LpM3-2P-Lb-5LoSL6-9M8L16Mo-MxL1iM3LMiLM7LaM2P2NaPLgM3-L8-2L2-2Lm-L7-L-3L4-2MLM"
    "7-2M2-2M3L-8M-4L2-L3M2-2NaL2S2N6S2LPM-2M3-L6-4L2-2Lm-L7-L2-L2-L2-2M-M5-4M2-2M3-3M-7L4-L-7NaM2L3MP-aM3-L9-L3-Lm-L"
    "7-L2-L5-2MLM8-M3-M3-2L-fL2M2-2NaPS-7LM6-M3-L8-2L2-2Lm-L7-L2-L5-2MLM7-2M2-2M3-7M3-4L2-L3M2-2NaSLN6-aML-L6-3L3-L4-"
    "3L2-L-L2-3L2-3L3-3Lc-4M5-3M3-M4-2L-6M-eNdS8-5M5L8-L3-Ln-Lg-2MLM7-M3-M4-7M2-L3-2L-2L2M2-2Na-7PN7SLM3PL8-L3-Ln-La-L"
    "5-2MLM7-M3-M4-7M2-6L2-L2M2-2Na-L2M-cM4L9-L3-L15M2LM7-M3-M4LS-4L3MN7L3M2-2NjSL6-M3-Li-3Lo-L9-L-2L7-3M-4M6-M-M8-6N"
    "a-2M2P-cL1cML2M7-4SL7M8PNaP2-11L2-L-L5-Lo-L-LaML2M9L-2L5-L-M7-Na-2L4-wLS3PfSPS3M2S6NkSMSMSMP4M2L8-L10-4MkPM2L5Mb-"
    "M10-S8MS6-S2P5S4P2-11L17MkLNaP6L6M4L4M3LM3L2M7L3M4LdMcLMNaM4S2U12-U-5U-2W17PLW3L95-L4-2L7-L-L4-2L15-L4-2Lx-L4-2L"
    "7-L-L4-2Lf-L1l-L4-2L1v-2M3P9Nk-3LgSa-6U2e-2W6-2PLh8SPLhZLqP2-3L23P3N3L8-7LiM4-9LjM3P2-9LiM2-cLd-L3-M2-cL1gMwP3LP"
    "3SLM-2Na-6Na-6PbM3-MNa-6L2h-7L5M2LyML-5L1y-aLv-Mc-4Mc-4S-3P2NaLu-2L5-bL18-4Lq-6Nb-3SyLnM5-2P2L1hMa-Mt-2MNa-6Na-6P"
    "7LP6-2Mv-1dM5L1bMhL8-3NaP7SaM9S9P2-M3LuMdL2NaL18Me-8P4L10Mk-3P5Na-3L3NaL10P2W9-7U17-2U3P8-8M3PMlL4ML6ML2M3L-5W18L"
    "1rWdLWyL11M1sUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUW"
    "UWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUW9UWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUW"
    "UWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUW9U8W6-2U6-2W8U8W8U8W6-2U6-2W8-U-U-U-UW8U8We-2W8U8W8U8W8U8W5-W2U5SWS3W3-W2U5S"
    "3W4-2W2U4-S3W8U5S3-2W3-W2U5S2-Zb-5PoZ2-5ZPkSPdSPcZ-gNL-2N6S3P2LNaS3P2-Ld-3Sx-fMx-fS2US4US2WU3W2U3WSUS3U5S6USUSUSU"
    "4SWU4WL4WS2W2U2S5UW4S4WSN1fUWN5S2-4SagP4StP2S70-pSb-lN1oS26NmSh4PeNuS1dP2SvPaSb7PmS1rP4SwP2Sae-2Sw-S2xU1cW1cUWU3W"
    "2UWUWUWU4WUW2UW6L2U3WUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUW"
    "UWUWUW2S6UWUWM3UW-5P4NP2W12-W-5W-2L1k-7LP-eMLn-9L7-L7-L7-L7-L7-L7-L7-L7-MwP1bLPwS2Pc-ySq-S2h-cS5y-qSgZP3SL2NPaS2P"
    "cSN9M6PL5S2N3L2PS2-L2e-2M2S2L3PL2iPL4-5L17-L2m-S2N4SaLwS10-bSLgSv-NaSuN8SNfSwNaS13NfS8wL534S1sLh3h-3S1j-9L1aP2L"
    "7hP3LgNaL2-kUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWLM4PMaPLUWUWUWUWUWUWUWUWUWUWUWUWUWUWL2M2L1yNaM2P6-8SnL"
    "9S2UWUWUWUWUWUWUW3UWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWUWLW8UWUWU2WUWUWUWUWLS2UWUWLUWUW3UW"
    "UWUWUWUWUWUWUWUWUWU5WU5WUWUWUWUWUWUWUWU4WUW-5UW-W-WUWUW-oL3UWL3WL7ML3ML4MLnM5S4M-3N6S4-6L1gP4-8M2L1eMi-8P2Na-6MiL"
    "6P3LPL2MNaLsM8P2LnMd-bPLt-3M4L1bMePd-LNa-4P2L5MLaNaL5-L15Me-9L3ML8M2-2Na-2P4LnS3LM3L1eMLM3L2M2L5M2LML-oL3P2LbM5P"
    "2L3M2-aL6-2L6-2L6-9L7-L7-W17SL4W9LS2-4W28LzM8PM2-2Na-6L8mc-cLn-4L1d-6isLa6-2L2y-12W7-cW5-5LMLaSLd-L5-L-L2-L2-L30S"
    "h-gLa3P2SgL1s-2L1i-7S-wLcS4MgPa-6MgPz-PeSPS3-PSP2-4L5-L3r-4P3SP6SP4NaP2S3P2UqP3SPSWqPSPSP7L2h-3L6-2L6-2L6-2L3-3S"
    "7-S7-dS2-2Lc-Lq-Lj-L2-Lf-2Le-yL3f-5P3-4N19-3S9N1lShN2S3-Sd-3S-1bS19M-3mLt-3L1d-fMNr-4LwN4-9LkNL8N-5L12M5-5Lu-PL"
    "10-4L8PN5-16U14W14L26-2Na-6U10-4W10-4L14-8L1g-bPUb-Uf-U7-U2-Wb-Wf-W7-W2-1vL8n-9Lm-aL8-oL6-L16-L9-1xL6-2L-L18-L2-"
    "3L-2Ln-PN8LnS2N7Lv-8N9-1cLj-L2-5N5LmN6-3PLq-5P-1sL1k-4N2L2Ng-2N1aLM3-M2-5M4L4-L3-Lt-2M3-4MN9-7P9-7LtN2PLtN3-wL8SL"
    "sM2-4N5P7-9L1i-3P7Lm-2N8Lj-5N8Li-7P4-cN7-28L21-1jU1f-dW1f-7N6L10M4-8Na-86Nv-L16-M2P-2L2-23M3LtNaL-8LmMbN4P5-mLiM"
    "4P4-12LlN7-kLn-9M3L1hMfP7-4NuML2M2L-9M4L19MbP2-P4M-dLp-7Na-6M3L10Me-NaP4LM2L-8LzMP2L-9M3L1cMeL4P4M4PM2NaLPLP3-Nk-"
    "bLi-LpMcP6ML2M-1qL7-L-L4-Lf-LaP-6L1bMc-5Na-6M4-L8-2L2-2Lm-L7-L2-L5-M2LM7-2M2-2M3-2L-6M-5L5M2-2M7-3M5-3vL1hMiL4P5N"
    "aP2-PML3-uL1cMkL2PL-8Na-4mL1bM7-2M9PnL4M2-yL1cMhP3L-bNa-6Pd-jL17MdLP-6Na-1iLr-2Mf-4NcP3SL7-55L18MfP-2sUwWwNj-cL8-"
    "2L-2L8-L2-LoM6-M2-2M4LMLM2P3-9Na-1yL8-2L13M7-2M7LPLM-rLMaL14M7LM4P8M-8LMbL1aMgP3LP5-dL21-7Pa-6uL9-L11M8-M8LP5-aN"
    "t-3P2Lu-2Mm-Me-21L7-L2-L12M6-3M-M2-M7LM-8Na-6L6-L2-LwM5-M2-M5L-7Na-8mLjM4P2-7M2LMLd-LyM7-3M5PdNa-2eL-fNlSt-dPLpm-"
    "2uN33-P5-bL5g-218L2pP2-dLts-gML6Mf-33eLg7-6ntLft-7Lv-Na-4P2L27-Na-6Lu-2M5P-aL1cM7P5S4L4PS-aNa-N7-Ll-5Lj-j4UwWwNnP"
    "4-2tL23-4MLM1j-7M4Ld-1sL2PLM-bM2-eL4qg-8Lye-16L9-6w7L4-L7-L2-L83-fL-tL3-2L-eL4-8Lb0-1s4L2z-5Ld-3L9-7La-2SM2P-3moM"
    "1a-2Mn-9S38-1oS6u-aS13-2S1oM5S3M6-8M8S2M7SuM4S1p-lS1uM3S-3eNk-cNk-cS2f-9Np-3rUqWqUqW7-WiUqWqU-U2-2U-2U2-2U4-U8W4-"
    "W-W7-WbUqWqU2-U4-2U8-U7-WqU2-U4-U5-U-3U7-WqUqWqUqWqUqWqUqWqUqWqUqWs-2UpSWpSW6UpSWpSW6UpSWpSW6UpSWpSW6UpSWpSW6UW-"
    "2N1eSe8M1jS4M1eS8MSeMS2P5-fM5-Mf-uoWaLWk-6W6-5xM7-Mh-2M7-M2-M5-5L1q-xM-34L19-3M7L7-2Na-4LS-8wLuM-hL18M4Na-5S-cwL"
    "sM4Na-kmL7-L4-L2-Lf-L5h-2N9M7-15UyWyM7L-4Na-4P2-ltN1nSN3SN4-24N19SNf-5eL4-Lr-L2-L-2L-La-L4-L-L-6L-4L-L-L-L3-L2-L-"
    "2L-L-L-L-L-L2-L-2L4-L7-L4-L4-L-La-Lh-5L3-L5-Lh-1gS2-7iS18-4S2s-cSf-2Sf-Sf-S11-aNdS4h-1kSt-dS18-4S9-7S2-eS6-4aSrc-"
    "4Sh-3Sd-3S3b-4S2n-6Sc-4S-fSc-4S1k-8Sa-6S14-8Su-2S2-26S9g-cSe-2Sd-3S9-7S1a-S7-8Se-4S9-7S9-7S43-S1j-11Na-smLwyo-wL"
    "37e-6L66-2L4g2-eL5rl-fLha-1wiLf2-15uL3t7-5L38g-f9e8M6o-"
)


def decode_runs(runs: str) -> tuple[list[int], list[str]]:
    """The first code point and the class of every run, in order, from U+0080 on; the first is of class "-".

    `runs` are distances from the run before (base 36; none means 1), each followed by a run's class: a capital or "-".
    """
    starts, classes = [128], ["-"]
    position, distance = 128, ""
    for char in runs:
        if char.isupper() or char == "-":
            position += int(distance, 36) if distance else 1
            starts.append(position)
            classes.append(char)
            distance = ""
        else:
            distance += char
    return starts, classes


class _ClassOf(dict[int, str]):
    """Code point → class letter, filled as characters are met."""

    def __init__(self) -> None:
        super().__init__((c, chr(c)) for c in range(128))
        self._runs: tuple[list[int], list[str]] | None = None

    def __missing__(self, code: int) -> str:
        if self._runs is None:
            self._runs = decode_runs(_RUNS)
        starts, classes = self._runs
        self[code] = letter = _CLASSES[classes[bisect_right(starts, code) - 1]]
        return letter


_class_of = _ClassOf()


def collapse(text: str) -> str:
    """`text` with each character beyond ASCII replaced by its class letter. Same length."""
    return text if text.isascii() else text.translate(_class_of)


#: The Han script of Unicode 15.1, first and last characters.
_HAN = (
    (0x2E80, 0x2E99), (0x2E9B, 0x2EF3), (0x2F00, 0x2FD5), (0x3005, 0x3005), (0x3007, 0x3007), (0x3021, 0x3029),
    (0x3038, 0x303B), (0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFA6D), (0xFA70, 0xFAD9), (0x16FE2, 0x16FE3),
    (0x16FF0, 0x16FF1), (0x20000, 0x2A6DF), (0x2A700, 0x2B739), (0x2B740, 0x2B81D), (0x2B820, 0x2CEA1),
    (0x2CEB0, 0x2EBE0), (0x2EBF0, 0x2EE5D), (0x2F800, 0x2FA1D), (0x30000, 0x3134A), (0x31350, 0x323AF),
)  # fmt: skip
_HAN_RUNS = re.compile("[" + "".join([f"{chr(a)}-{chr(z)}" for a, z in _HAN]) + "]+")
_AS_HAN = {ord(LETTER): HAN_LETTER, ord(NUMBER): HAN_NUMBER}


def collapse_with_han(text: str) -> str:
    """As `collapse`, with letters of their own for characters of the Han script."""
    if text.isascii():
        return text
    collapsed, parts, at = collapse(text), [], 0
    for match in _HAN_RUNS.finditer(text):
        start, end = match.span()
        parts += [collapsed[at:start], *(_AS_HAN.get(ord(c), HAN_SIGN) for c in collapsed[start:end])]
        at = end
    return "".join(parts) + collapsed[at:]


def in_word(char: str) -> bool:
    r"""True where a character is one of Unicode's \w; False for the empty text beyond an end."""
    if not char:
        return False
    category = unicodedata.category(char)
    return (
        category[0] in "LM" or category in ("Nd", "Nl", "Pc") or char in "\u200c\u200d" or "\u24b6" <= char <= "\u24e9"
    )


def with_ascii_spaces(text: str) -> str:
    """`text` with white space beyond ASCII replaced by a vertical tab, which ASCII patterns match as white space."""
    if text.isascii():
        return text
    return "".join([c if c < "\x80" or _class_of[ord(c)] != SPACE else SPACE for c in text])
