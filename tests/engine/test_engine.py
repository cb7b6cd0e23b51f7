"""Scheduling, prefix reuse, stopping and streaming, over a runtime whose logits betray a mix-up of cells."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ggpy.engine.engine import Engine
from ggpy.engine.request import Request
from ggpy.errors import GGPYError
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.text.text_stream import TextStream
from tests.support.doubles import BOS, EOS, N_VOCAB, ByteTokenizer, FakeRuntime, PassingRuntime, saying

GREEDY = SamplingParams(temperature=0, max_tokens=8).resolved()


def run(engine: Engine, *requests: Request) -> None:
    for request in requests:
        engine.add(request)
    while engine.has_work:
        engine.step()


def one(engine: Engine, prompt: list[int], params: SamplingParams = GREEDY) -> Request:
    request = engine.request(prompt, params)
    run(engine, request)
    return request


RUNTIME: dict[str, object] = {}
CARRIED = False


@pytest.fixture(
    autouse=True,
    params=[(0, False, False), (8, False, False), (0, True, False), (8, True, False), (8, False, True)],
    ids=["logits", "tokens", "logits by kind", "tokens by kind", "tokens, carried"],
)
def what_the_runtime_gives(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run every test with runtimes that give logits and with those that choose tokens by themselves, each also in the
    variant where a token's result depends on whether it was generated, and with one that carries state on."""
    max_sampled, by_kind, carried = request.param
    monkeypatch.setattr("test_engine.RUNTIME", {"max_sampled": max_sampled, "by_kind": by_kind})
    monkeypatch.setattr("test_engine.CARRIED", carried)


def engine_of(**kwargs: object) -> Engine:
    make = partial(PassingRuntime, True) if CARRIED else FakeRuntime
    return Engine(make(**RUNTIME | kwargs), ByteTokenizer())  # type: ignore[arg-type, operator]


def prompts(*sizes: int) -> list[list[int]]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, size).tolist() for size in sizes]


def test_batched_sequences_equal_lonely_ones() -> None:
    asked = prompts(1, 3, 40, 17, 16, 5, 100)
    lonely = [one(engine_of(), prompt).token_ids for prompt in asked]
    engine = engine_of(n_slots=3)
    requests = [engine.request(prompt, GREEDY) for prompt in asked]
    run(engine, *requests)
    assert [s.token_ids for s in requests] == lonely
    assert all(s.finish_reason == "length" for s in requests)
    assert not engine.scheduler.running
    assert all(slot.request is None for slot in engine.slots)


def test_prompts_share_batches_with_generating_sequences() -> None:
    engine = engine_of(n_slots=2, n_batch=16)
    short, long = (engine.request(prompt, GREEDY) for prompt in prompts(2, 40))
    run(engine, short, long)
    # 2 + 14 of the long prompt, then the short one's next token and 15 more, and so on.
    assert engine.runtime.batches[:4] == [16, 16, 1 + 11, 2]  # type: ignore[attr-defined]


def test_only_new_tokens_are_evaluated() -> None:
    engine = engine_of(n_slots=1)
    first = one(engine, prompts(30)[0])
    assert engine.n_evaluated == 30 + 7
    following = [*first.prompt, *first.token_ids, 1, 2, 3]
    second = one(engine, following)
    answered = 0 if RUNTIME["by_kind"] else 7  # an answer is now part of a prompt, and would be evaluated as such
    assert second.timings.n_reused == 30 + answered
    assert second.timings.n_prompt == 8 - answered + 3  # the answer's last token had not been evaluated
    assert second.token_ids == one(engine_of(), following).token_ids
    if CARRIED:
        return  # cannot be cut back
    again = one(engine, following)
    assert again.timings.n_prompt == 1  # the last token gives the logits
    assert again.token_ids == second.token_ids
    other = [*first.prompt[:10], 9, 9]
    third = one(engine, other)
    assert third.timings.n_reused == 10
    assert third.token_ids == one(engine_of(), other).token_ids


def test_a_sequence_takes_the_slot_that_begins_like_it() -> None:
    engine = engine_of(n_slots=2)
    a, b = prompts(20, 25)
    one(engine, a)
    one(engine, b)
    assert one(engine, [*a, 1]).timings.n_reused == 20
    assert one(engine, [*b, 1]).timings.n_reused == 25


def test_stop_token() -> None:
    request = one(engine_of(script=saying("Hello")), [0])
    assert (request.text, request.finish_reason, request.stop_reason) == ("Hello", "stop", EOS)
    assert request.token_ids == [*b"Hello", EOS]
    params = SamplingParams(temperature=0, stop_token_ids=[ord("l")]).resolved()
    request = one(engine_of(script=saying("Hello")), [0], params)
    assert (request.text, request.stop_reason) == ("He", ord("l"))


def test_ignore_eos_never_chooses_an_end_token() -> None:
    params = SamplingParams(temperature=0, ignore_eos=True, max_tokens=12).resolved()
    request = one(engine_of(script=saying("Hi")), [0], params)
    assert request.n_chosen == 12
    assert EOS not in request.token_ids


@pytest.mark.parametrize("size", [1, 100, 255, 256])
def test_the_end_of_the_context_finishes(size: int) -> None:
    params = SamplingParams(temperature=0).resolved()
    request = one(engine_of(n_ctx=256), prompts(size)[0], params)
    assert request.finish_reason == "length"
    assert request.reached_context
    assert request.n_computed == 256
    assert len(request.tokens) == 257  # the last token needs no cell


def test_prompts_that_cannot_run() -> None:
    engine = engine_of(n_ctx=32)
    with pytest.raises(GGPYError, match=r"33 tokens.*holds 32"):
        engine.request([1] * 33, GREEDY)
    with pytest.raises(GGPYError, match="empty"):
        engine.request([], GREEDY)
    for bad in (-1, N_VOCAB):
        with pytest.raises(GGPYError, match=f"id {bad}"):
            engine.request([1, bad], GREEDY)


def test_an_aborted_sequence_leaves_its_prefix() -> None:
    engine = engine_of(n_slots=1)
    request = engine.request(prompts(20)[0], GREEDY)
    engine.add(request)
    for _ in range(4):
        engine.step()
    engine.abort(request)
    engine.abort(request)
    assert request.finish_reason == "abort"
    assert not engine.has_work
    assert one(engine, request.tokens).timings.n_prompt == (request.n_chosen if RUNTIME["by_kind"] else 1)


def test_an_interrupted_step_claims_no_cells() -> None:
    engine = engine_of(n_slots=1)
    prompt = prompts(40)[0]
    one(engine, prompt)
    other = engine.request([*prompt[:10], *prompts(3)[0]], GREEDY)
    engine.add(other)
    step, engine.runtime.step = engine.runtime.step, _interrupt  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.runtime.step = step  # type: ignore[method-assign]
    engine.abort(other)
    assert engine.slots[0].tokens == ([] if CARRIED else prompt[:10])
    assert one(engine, prompt).token_ids == one(engine_of(), prompt).token_ids


def _interrupt(*args: object) -> np.ndarray:
    raise KeyboardInterrupt


def test_a_sequence_interrupted_before_its_choice_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = engine_of(n_slots=1)
    request = engine.request(prompts(5)[0], GREEDY)
    engine.add(request)
    with monkeypatch.context() as patch:
        patch.setattr(request, "advance", _interrupt)
        with pytest.raises(KeyboardInterrupt):
            engine.step()
    while engine.has_work:
        engine.step()
    assert request.token_ids == one(engine_of(), request.prompt).token_ids


def test_damaged_logits_end_the_sequence_and_its_slot_alone() -> None:
    engine = engine_of(n_slots=1)
    good = engine.runtime.step
    engine.runtime.step = lambda *a: good(*a) * np.nan  # type: ignore[method-assign]
    request = engine.request([1, 2], GREEDY)
    engine.add(request)
    engine.step()
    with pytest.raises(GGPYError, match="no usable logits"):
        raise request.error or AssertionError
    engine.runtime.step = good  # type: ignore[method-assign]
    assert request.finish_reason == "error"
    assert not engine.has_work
    assert one(engine, [1, 2]).timings.n_reused == 0


@pytest.mark.parametrize("n_slots", [1, 2])
def test_logits_disturb_nobody(n_slots: int) -> None:
    tokens = prompts(40)[0]
    engine = engine_of(n_slots=n_slots)
    running = [engine.request(prompt, GREEDY) for prompt in prompts(5, 50)]
    for request in running:
        engine.add(request)
    for _ in range(3):
        engine.step()
    logits = engine.logits(tokens)
    assert logits.shape == (40, N_VOCAB)
    alone = FakeRuntime(n_batch=40)
    arange = np.arange(40, dtype=np.int32)
    np.testing.assert_array_equal(logits, alone.step(np.array(tokens, np.int32), arange * 0, arange, arange))
    while engine.has_work:
        engine.step()
    assert [s.token_ids for s in running] == [one(engine_of(), s.prompt).token_ids for s in running]
    with pytest.raises(GGPYError, match=r"300 tokens.*holds 256"):
        engine.logits([1] * 300)


MIXED = [
    SamplingParams(temperature=0, max_tokens=9),
    SamplingParams(seed=1, max_tokens=30),
    SamplingParams(seed=2, temperature=1.5, top_k=128, top_p=0.9, max_tokens=14),
    SamplingParams(seed=3, top_k=9, min_p=0.0, ignore_eos=True, max_tokens=20),
    SamplingParams(temperature=0, stop=[chr(c) for c in range(32, 48)]),
    SamplingParams(seed=4, stop_token_ids=list(range(40))),
]


def test_whoever_chooses_the_tokens_are_the_same() -> None:
    asked = list(zip(prompts(1, 30, 7, 18, 40, 2), MIXED, strict=True))
    alone = [one(engine_of(max_sampled=0), prompt, params.resolved()) for prompt, params in asked]
    for n_slots in (1, 3, 6):
        engine = engine_of(n_slots=n_slots)
        requests = [engine.request(prompt, params.resolved()) for prompt, params in asked]
        run(engine, *requests)
        for ours, expected in zip(requests, alone, strict=True):
            assert ours.token_ids == expected.token_ids
            assert (ours.text, ours.finish_reason, ours.stop_reason) == (
                expected.text, expected.finish_reason, expected.stop_reason,
            )  # fmt: skip
        again = one(engine, [*requests[-1].tokens, 5])  # what was evaluated in vain is not taken for anything
        assert again.token_ids == one(engine_of(max_sampled=0), again.prompt).token_ids


def test_a_step_ahead_survives_what_happens_between_steps() -> None:
    params = [p.resolved() for p in MIXED[1:4]]
    asked = prompts(5, 9, 12)
    alone = [one(engine_of(max_sampled=0), prompt, p).token_ids for prompt, p in zip(asked, params, strict=True)]
    engine = engine_of(n_slots=3)
    first, second, third = (engine.request(prompt, p) for prompt, p in zip(asked, params, strict=True))
    for request in (first, second, third):
        engine.add(request)
    for _ in range(6):
        engine.step()
    engine.logits([1, 2, 3])  # displaces the third, which goes on later
    engine.step()
    engine.abort(second)
    engine.step()
    choose, engine.runtime.sample = engine.runtime.sample, _interrupt  # type: ignore[method-assign,assignment]
    step, engine.runtime.step = engine.runtime.step, _interrupt  # type: ignore[method-assign,assignment]
    with pytest.raises(KeyboardInterrupt):
        engine.step()
    engine.runtime.sample, engine.runtime.step = choose, step  # type: ignore[method-assign]
    while engine.has_work:
        engine.step()
    assert [first.token_ids, third.token_ids] == [alone[0], alone[2]]
    assert second.token_ids == alone[1][: second.n_chosen]
    assert second.finish_reason == "abort"


def test_what_a_device_cannot_choose_is_chosen_here() -> None:
    engine = engine_of(n_slots=2)
    params = SamplingParams(seed=3, repetition_penalty=1.2, max_tokens=12).resolved()
    plain = SamplingParams(seed=4, max_tokens=20).resolved()
    prompt, other = prompts(6, 9)
    requests = [engine.request(prompt, params), engine.request(other, plain)]
    run(engine, *requests)
    assert requests[0].token_ids == one(engine_of(max_sampled=0), prompt, params).token_ids
    assert requests[1].token_ids == one(engine_of(max_sampled=0), other, plain).token_ids


def test_a_device_that_chooses_is_kept_a_step_ahead() -> None:
    engine = engine_of(n_slots=1, max_sampled=4)
    order: list[str] = []
    choose = engine.runtime.sample

    def watched(*args: object) -> object:
        order.append("start")
        chosen = choose(*args)  # type: ignore[arg-type]
        ask = chosen.tokens
        chosen.tokens = lambda: order.append("look") or ask()  # type: ignore[method-assign, func-returns-value]
        return chosen

    engine.runtime.sample = watched  # type: ignore[method-assign, assignment]
    request = one(engine, [7])
    assert request.n_chosen == 8
    n = 6 if RUNTIME["by_kind"] else 7  # after the prompt, be it a single token
    assert order == ["start"] + n * ["start", "look"] + ["look"]  # nothing is evaluated in vain


def test_timings() -> None:
    timings = one(engine_of(), prompts(20)[0]).timings
    assert (timings.n_prompt, timings.n_decode) == (20, 8)
    assert timings.first_token_s >= timings.prompt_s > 0
    assert timings.prompt_rate == 20 / timings.prompt_s
    assert timings.decode_rate == 7 / timings.decode_s


def text_stream(stop: list[str] | None = None) -> TextStream:
    return TextStream(ByteTokenizer(), stop or [])  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["plain", "你好，世界", "a🙂b", "é"])
def test_characters_appear_whole(text: str) -> None:
    stream = text_stream()
    deltas = [stream.push(byte) for byte in text.encode()]
    assert "".join(deltas) + stream.finish() == text
    assert all("�" not in delta for delta in deltas)
    assert [delta for delta in deltas if delta] == list(text)


def test_broken_bytes_show_once_and_control_tokens_never() -> None:
    stream = text_stream()
    assert "".join(map(stream.push, [BOS, 0xE4, 0xBD, ord("a"), EOS])) == "�a"
    assert stream.push(0xE4) == ""
    assert stream.finish() == ""  # cut in the middle of a character


@pytest.mark.parametrize(
    ("stop", "text", "shown", "stopped"),
    [
        (["END"], "one END two", "one ", "END"),
        (["END"], "one EN", "one EN", None),
        (["END", "ENOUGH"], "ENENOUGH!", "EN", "ENOUGH"),
        (["aab"], "aaab", "a", "aab"),
        (["b", "ab"], "xab", "x", "ab"),
        (["。"], "你好。再见", "你好", "。"),
        (["\n\n"], "a\nb\n\nc", "a\nb", "\n\n"),
    ],
)
def test_stop_strings(stop: list[str], text: str, shown: str, stopped: str | None) -> None:
    stream = text_stream(stop)
    out = ""
    for byte in text.encode():
        delta = stream.push(byte)
        out += delta
        assert shown.startswith(out)  # nothing is shown that has to be taken back
    assert out + stream.finish() == shown
    assert stream.stopped == stopped


@pytest.mark.parametrize(
    ("stop", "shown", "stopped"),
    [
        (["<|begin|>"], "Hi", "<|begin|>"),
        (["<|begin|>user"], "Hi", "<|begin|>user"),
        (["i<|begin|>u"], "H", "i<|begin|>u"),
        (["<|begin|>assistant", "er:"], "Hius", "er:"),
        (["Hiu"], "", "Hiu"),  # in the text that is shown
        (["<|begin|>you", "|>users"], "Hiuser: ", None),
        ([": <|end|>"], "Hiuser", ": <|end|>"),  # ends with the token that ends the text
    ],
)
def test_stop_strings_with_control_tokens(stop: list[str], shown: str, stopped: str | None) -> None:
    stream, out = text_stream(stop), ""
    for token in [*b"Hi", BOS, *b"user: "]:
        out += stream.push(token)
        assert shown.startswith(out)
    out += stream.end(EOS)
    assert (out + stream.finish(), stream.stopped) == (shown, stopped)


@given(
    st.lists(st.sampled_from([BOS, *b"<begin|>", ord("a"), ord("b")]), max_size=12),
    st.lists(st.text("ab<|>begin", min_size=1, max_size=4) | st.sampled_from(["a<|begin|>", "<|begin|>b"]), max_size=3),
)
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_stop_strings_are_found_in_either_text(tokens: list[int], stop: list[str]) -> None:
    tokenizer, expected, stopped = ByteTokenizer(), "", None
    for n in range(1, len(tokens) + 1):
        expected, written = tokenizer.detokenize(tokens[:n], skip_special=True), tokenizer.detokenize(tokens[:n])
        found = [(expected.find(text), text) for text in stop if text in expected]
        for text in stop:
            if text in written:
                before = written[: written.find(text)]
                # A stop string may begin within the name of a control token, of which nothing is shown.
                shows = sum(len(tokenizer.token_bytes(token, False)) for token in tokens[: _tokens_in(tokens, before)])
                found.append((shows, text))
        if found:
            at, stopped = min(found)
            expected = expected[:at]
            break
    stream = text_stream(stop)
    out = "".join(map(stream.push, tokens))
    assert (out + stream.finish(), stream.stopped) == (expected, stopped)


def _tokens_in(tokens: list[int], text: str) -> int:
    """How many tokens lie whole in the beginning `text` of what they are written as."""
    sizes = [len(ByteTokenizer().token_bytes(token)) for token in tokens]
    return next((n for n in range(len(tokens)) if sum(sizes[: n + 1]) > len(text)), len(tokens))


def test_a_stop_string_ends_the_sequence() -> None:
    params = SamplingParams(temperature=0, stop=" wor").resolved()
    request = one(engine_of(script=saying("Hello world")), [0], params)
    assert (request.text, request.finish_reason, request.stop_reason) == ("Hello", "stop", " wor")
    params = SamplingParams(temperature=0, stop="ld<|end|>").resolved()
    request = one(engine_of(script=saying("Hello world")), [0], params)
    assert (request.text, request.finish_reason, request.stop_reason) == ("Hello wor", "stop", "ld<|end|>")
