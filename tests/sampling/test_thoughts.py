"""Thoughts watched by their tokens: when they begin and end, and that they end when their budget is spent."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ggpy.sampling.thoughts import ThoughtWatch

CLOSING = [*b"\n</think>\n\n"]


def watch(budget: int | None = None, inside: bool = False, anywhere: bool = False, **options: object) -> ThoughtWatch:
    """Over tokens that are bytes."""
    return ThoughtWatch(
        b"<think>", b"</think>", CLOSING, lambda token: bytes([token]), inside, anywhere, budget, **options
    )  # type: ignore[arg-type]


def say(watch: ThoughtWatch, text: str | bytes) -> str:
    """Let a model say a text, as far as nothing is forced; returns what came."""
    said = b""
    for token in text.encode() if isinstance(text, str) else text:
        while (forced := watch.forced()) is not None:
            said += bytes([forced])
            watch.accept(forced)
        said += bytes([token])
        watch.accept(token)
    while (forced := watch.forced()) is not None:
        said += bytes([forced])
        watch.accept(forced)
    return said.decode()


def test_thoughts_are_counted_and_end() -> None:
    seen = watch()
    assert say(seen, "<think>Hm.</think>Yes <think>") == "<think>Hm.</think>Yes <think>"
    assert (seen.n_tokens, seen.inside, seen.cut) == (3 + len("</think>"), False, False)
    assert not seen.chooses


def test_the_budget_ends_them_once() -> None:
    for prompt, before in (("", "<think>"), ("…<think>", "")):
        seen = watch(4, inside=bool(prompt))
        assert say(seen, f"{before}Hmmmmm") == f"{before}Hmmm\n</think>\n\nmm"
        assert seen.cut
        assert not seen.chooses
    seen = watch(0, inside=True)
    assert say(seen, "Yes") == "\n</think>\n\nYes"
    seen = watch(9, inside=True)
    assert say(seen, "</think>Yes, of course") == "</think>Yes, of course"
    assert not seen.cut


def test_a_text_before_them_is_none() -> None:
    seen = watch(0)
    assert say(seen, "So: <think>Hm") == "So: <think>Hm"
    seen = watch(1, anywhere=True)
    assert say(seen, "So: <think>Hm") == "So: <think>H\n</think>\n\nm"
    assert say(seen, "<think>m") == "<think>\n</think>\n\nm"  # the budget is of all thoughts


@given(st.integers(0, 8), st.text(alphabet="aé東😀", max_size=8))
def test_no_character_is_cut(budget: int, text: str) -> None:
    said = say(watch(budget, inside=True), text.encode() + b"!")
    assert "�" not in said
    assert said.replace("\n</think>\n\n", "") == f"{text}!"


def test_a_grammar_waits_for_an_end_that_then_is_made() -> None:
    seen = watch(inside=True, ends=(0,))
    assert seen.instead_of(5) == 5
    assert seen.instead_of(0) == CLOSING[0]
    assert say(seen, "!") == "\n</think>\n\n!"
    assert seen.instead_of(0) == 0
