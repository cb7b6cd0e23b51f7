"""The Python API over stand-ins for the model, and the choice of the context."""

from __future__ import annotations

import gc
import weakref
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

import ggpy.llm
from ggpy.errors import GGPYError
from ggpy.host.memory import MemoryUse, _control_groups, available_memory, choose_context
from ggpy.llm import LLM
from ggpy.runtime.load import Model, check_rows
from ggpy.sampling.sampling_params import SamplingParams
from ggpy.text.chat_template import ChatTemplate
from tests.support.doubles import BOS, EOS, N_VOCAB, ByteTokenizer, FakeFile, FakeRuntime, FakeTemplate, saying

GREEDY = SamplingParams(temperature=0, max_tokens=6)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(script: Any = None, template: bool = True, metadata: dict[str, Any] | None = None, **runtime: Any) -> LLM:
        model = Model(
            FakeFile(metadata),  # type: ignore[arg-type]
            ByteTokenizer(),  # type: ignore[arg-type]
            FakeTemplate() if template else None,  # type: ignore[arg-type]
            FakeRuntime(script=script, **runtime),  # type: ignore[arg-type]
        )
        monkeypatch.setattr(ggpy.llm, "load_model", lambda *args, **placing: model)
        return LLM("fake.gguf")

    return make


def test_every_way_to_say_a_prompt(make: Any) -> None:
    llm = make()
    ids = [BOS, *b"abc"]
    expected = llm.generate("abc", GREEDY)[0]
    assert (expected.prompt, expected.prompt_token_ids) == ("abc", ids)
    assert len(expected.outputs[0].token_ids) == 6
    for prompts, keywords in [
        (["abc"], {}),
        (ids, {}),
        ([ids], {}),
        (np.array(ids), {}),
        ({"prompt": "abc"}, {}),
        ({"prompt_token_ids": ids}, {}),
        ([{"prompt_token_ids": ids}], {}),
        (None, {"prompt_token_ids": ids}),
        (None, {"prompt_token_ids": [ids]}),
    ]:
        (got,) = llm.generate(prompts, GREEDY, **keywords)
        assert got.outputs[0].token_ids == expected.outputs[0].token_ids
        assert got.prompt_token_ids == ids
    assert llm.generate([], GREEDY) == []


def test_a_vocabulary_of_another_model_is_refused() -> None:
    embedding = SimpleNamespace(shape=(N_VOCAB + 1, 8))
    file: Any = SimpleNamespace(path="a.gguf", tensors={"token_embd.weight": embedding})
    with pytest.raises(GGPYError, match=rf"{N_VOCAB + 1} rows, but the vocabulary has {N_VOCAB} tokens"):
        check_rows(file, SimpleNamespace(n_vocab=N_VOCAB))  # type: ignore[arg-type]
    check_rows(file, SimpleNamespace(n_vocab=N_VOCAB + 1))  # type: ignore[arg-type]


def test_many_prompts_come_back_in_order(make: Any) -> None:
    llm = make(n_slots=2)
    texts = [f"prompt {i}" for i in range(7)]
    outputs = llm.generate(texts, GREEDY)
    assert [o.prompt for o in outputs] == texts
    assert [o.outputs[0].token_ids for o in outputs] == [llm.generate(t, GREEDY)[0].outputs[0].token_ids for t in texts]
    different = llm.generate(["a", "b"], [GREEDY, SamplingParams(temperature=0, max_tokens=2)])
    assert [len(o.outputs[0].token_ids) for o in different] == [6, 2]


def test_of_thousands_few_are_requests_at_a_time(make: Any) -> None:
    llm = make(n_slots=2)
    alive: weakref.WeakSet[Any] = weakref.WeakSet()
    most, request = 0, llm.engine.request

    def counting(*args: Any) -> Any:
        nonlocal most
        alive.add(made := request(*args))
        most = max(most, len(alive))
        return made

    llm.engine.request = counting
    texts = [f"prompt {i}" for i in range(2000)]
    outputs = llm.generate(texts, SamplingParams(temperature=0, max_tokens=1 + len(texts) % 3, n=2))
    assert [o.prompt for o in outputs] == texts
    assert all(len(o.outputs) == 2 for o in outputs)
    assert most < 20


def test_progress_counts_prompts_and_tokens(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    @contextmanager
    def bar(total: int) -> Any:
        assert total == 5
        yield seen.append

    monkeypatch.setattr("ggpy.answers.requests_bar", bar)
    llm = make(n_slots=2)
    llm.generate([f"prompt {i}" for i in range(5)], SamplingParams(n=2, temperature=0, max_tokens=6), progress=True)
    assert seen == [12] * 5
    with pytest.raises(GGPYError, match="progress is for answers"):
        llm.generate("a", GREEDY, stream=True, progress=True)
    with pytest.raises(GGPYError, match="progress is 3"):
        llm.chat([{"role": "user", "content": "a"}], GREEDY, progress=3)


@pytest.mark.parametrize(
    ("args", "keywords", "message"),
    [
        ((), {}, "not both"),
        (("a",), {"prompt_token_ids": [1]}, "not both"),
        (("",), {}, "prompt is empty"),
        (([[]],), {}, "empty"),
        ((["a", "b"], [GREEDY]), {}, "2 prompts, but 1 sets"),
        (([1.5, None],), {}, "must be a text"),
        (([None],), {}, "must be a text"),
        (([3, N_VOCAB],), {}, f"id {N_VOCAB}"),
        ((["x" * 300],), {}, r"301 tokens.*holds 256"),
    ],
)
def test_bad_prompts(make: Any, args: tuple[Any, ...], keywords: dict[str, Any], message: str) -> None:
    llm = make()
    for stream in (False, True):  # a stream complains when it is asked for, not when it is read
        with pytest.raises(GGPYError, match=message):
            llm.generate(*args, stream=stream, **keywords)
    assert not llm.engine.has_work


def test_streamed_pieces_are_the_text(make: Any) -> None:
    llm = make(script=saying("你好 🙂"))
    pieces = list(llm.generate("\0", GREEDY, stream=True))
    assert pieces == ["你", "好"]
    params = SamplingParams(temperature=0)
    assert "".join(llm.generate("\0", params, stream=True)) == "你好 🙂"
    pieces = list(llm.generate(["\0", "\0"], params, stream=True))
    assert "".join(p for p in pieces if p.prompt_index == 1) == "你好 🙂"
    assert pieces[0].text == "你"


def test_an_abandoned_stream_frees_its_slot(make: Any) -> None:
    llm = make(n_slots=1)
    stream = llm.generate("abc", SamplingParams(temperature=0), stream=True)
    next(stream)
    stream.close()
    assert not llm.engine.has_work
    llm.generate("never read", GREEDY, stream=True)
    assert not llm.engine.has_work


def test_two_streams_read_in_turns(make: Any) -> None:
    llm = make(n_slots=2)
    whole = [llm.generate(t, GREEDY)[0].outputs[0].text for t in ("ab", "cd")]
    a, b = (llm.generate(t, GREEDY, stream=True) for t in ("ab", "cd"))
    first = next(a)
    assert "".join(b) == whole[1]
    llm.logits([1, 2, 3])
    assert first + "".join(a) == whole[0]


def test_several_answers(make: Any) -> None:
    llm = make()
    (output,) = llm.generate("abc", SamplingParams(n=3, seed=5, max_tokens=4))
    assert [o.index for o in output.outputs] == [0, 1, 2]
    assert len({tuple(o.token_ids) for o in output.outputs}) == 3
    (again,) = llm.generate("abc", SamplingParams(n=3, seed=5, max_tokens=4))
    assert [o.text for o in again.outputs] == [o.text for o in output.outputs]


def test_chat(make: Any) -> None:
    llm = make(script=saying("Hi!"))
    messages = [{"role": "user", "content": "Hello"}]
    (output,) = llm.chat(messages, SamplingParams(temperature=0))
    answer = output.outputs[0]
    assert (answer.text, answer.finish_reason) == ("Hi!", "stop")
    assert output.prompt_token_ids == [BOS, *b"user:Hello", EOS, BOS, *b"assistant:"]
    assert [o.outputs[0].text for o in llm.chat([messages, messages], SamplingParams(temperature=0))] == ["Hi!", "Hi!"]
    assert "".join(llm.chat(messages, SamplingParams(temperature=0), stream=True)) == "Hi!"
    with pytest.raises(GGPYError, match="no tools"):
        llm.chat([{"role": "tool", "content": "x"}])
    with pytest.raises(GGPYError, match="conversation is empty"):
        llm.chat([])
    with pytest.raises(GGPYError, match="no chat template"):
        make(template=False).chat(messages)


def test_values_for_the_template(make: Any) -> None:
    llm = make(script=saying("Hi!"))
    llm.template = ChatTemplate("{{ tools | length }}{{ mood }}{{ messages[0].content }}assistant:")
    messages = [{"role": "user", "content": "Hello"}]
    both = {"tools": [{}, {}], "template_kwargs": {"mood": "glad"}}
    assert llm.render_chat(messages, **both) == "2gladHelloassistant:"
    (output,) = llm.chat(messages, SamplingParams(temperature=0), **both)
    assert output.prompt_token_ids == [BOS, *b"2gladHelloassistant:"]
    assert output.outputs[0].text == "Hi!"
    assert llm.choose(messages, ["a", "b"], **both).prompt == "2gladHelloassistant:"
    with pytest.raises(GGPYError, match="does not read 'temprature'"):
        llm.chat(messages, temprature=0)
    with pytest.raises(GGPYError, match="cannot hold 'messages'"):
        llm.chat(messages, template_kwargs={"messages": []})


def test_logits_tokenize_close(make: Any) -> None:
    with make() as llm:
        assert llm.logits([1, 2, 3]).shape == (3, N_VOCAB)
        assert llm.logits([1, 2, 3]).dtype == np.float32
        assert llm.tokenize("<|end|>", parse_special=True) == [BOS, EOS]
        assert llm.detokenize([BOS, *b"hi"], skip_special=True) == "hi"
    llm.close()
    assert llm.runtime.closed
    with pytest.raises(GGPYError, match="was closed"):
        llm.generate("a")


def test_a_model_that_nobody_closes_is_closed(make: Any) -> None:
    llm = make()
    runtime = llm.runtime
    del llm
    gc.collect()
    assert runtime.closed


def test_what_is_no_prompt_and_no_conversation(make: Any) -> None:
    llm = make()
    for prompts in (5, [None], [1.5], ["a", 5]):
        with pytest.raises(GGPYError, match="token ids"):
            llm.generate(prompts)
    for messages in ("hi", 5, ["hi"], [["hi"]]):
        with pytest.raises(GGPYError, match="messages"):
            llm.chat(messages)
    for token in (-1, N_VOCAB):
        with pytest.raises(GGPYError, match=f"logit_bias names the token id {token}"):
            llm.generate("a", SamplingParams(logit_bias={token: 1.0}))


def test_sampling_defaults_come_from_the_file(make: Any) -> None:
    llm = make(metadata={"general.sampling.temp": 0.0})
    first = [llm.generate("abc", SamplingParams(max_tokens=8))[0].outputs[0].text for _ in range(3)]
    assert len(set(first)) == 1


@pytest.mark.parametrize("name", ["n_ctx", "n_threads", "n_parallel"])
@pytest.mark.parametrize("value", [0, -1, 1.5, True])
def test_numbers_out_of_range(name: str, value: Any) -> None:
    with pytest.raises(GGPYError, match=name):
        LLM("fake.gguf", **{name: value})


def test_threads_beyond_reason() -> None:
    with pytest.raises(GGPYError, match="n_threads is 100000"):
        LLM("fake.gguf", n_threads=100000)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(GGPYError, match=r"nothing\.gguf"):
        LLM(tmp_path / "nothing.gguf")


GIB = 1 << 30


def context(
    asked: int | None, available: float, notes: list[str], kv_memory: int | float | None = None, trained: int = 8192
) -> int:
    """A model of 1 GiB whose cache takes 1 MiB a token."""

    def uses(n: int) -> list[MemoryUse]:
        return [MemoryUse("cpu", int(available * GIB), weights=GIB, working=0, state=n << 20)]

    return choose_context(asked, trained, uses, notes.append, kv_memory)


def test_context() -> None:
    notes: list[str] = []
    assert context(None, 16, notes) == 8192
    assert notes == ["context 8192 tokens"]
    assert context(None, 4, notes) == 2816
    assert "2816" in notes[-1]
    assert "8192" in notes[-1]
    assert len(notes) == 2
    assert context(1000, 4, notes) == 1000
    assert len(notes) == 2
    assert context(10000, 100, notes) == 10000
    assert "more than the 8192" in notes[-1]
    with pytest.raises(GGPYError, match=r"4096 tokens needs 4\.00 GiB .* 1\.00 GiB .* 4\.00 GiB .* \(-c 2816\)"):
        context(4096, 4, notes)
    with pytest.raises(GGPYError, match=r"256 tokens needs 256\.00 MiB .*, 1\.00 GiB for the weights"):
        context(None, 1, notes)
    with pytest.raises(GGPYError, match="not even"):
        context(100, 0.5, notes)


def test_a_budget_for_keys_and_values() -> None:
    notes: list[str] = []
    assert context(None, 16, notes, GIB) == 1024
    assert "--kv-memory holds no more" in notes[-1]
    assert context(None, 4, notes, 0.5) == 1408 // 256 * 256  # of the 2.8 GiB that weights leave
    assert context(None, 4, notes, 64 * GIB) == 2816  # what is not there cannot be taken
    assert context(1000, 4, notes, GIB) == 1000
    with pytest.raises(GGPYError, match=r"2000 tokens needs 1\.95 GiB .* --kv-memory allows 1\.00 GiB; 1024 tokens"):
        context(2000, 16, notes, GIB)
    with pytest.raises(GGPYError, match=r"2000 tokens needs 1\.95 GiB .* 1\.00 GiB for the weights .* are free"):
        context(2000, 2, notes, GIB)
    with pytest.raises(GGPYError, match=r"256 tokens needs 256\.00 MiB .* --kv-memory allows 1\.00 KiB"):
        context(None, 16, notes, 1024)


def test_available_memory(tmp_path: Path) -> None:
    assert 0 < available_memory() < 1 << 50
    mount, membership = tmp_path / "mount", tmp_path / "cgroup"
    inner = mount / "a" / "b"
    inner.mkdir(parents=True)
    membership.write_text("0::/a/b\n")
    assert _control_groups(membership, mount) == []
    for folder, limit, used in ((mount / "a", "1000", "400"), (inner, "max", "300")):
        (folder / "memory.max").write_text(limit)
        (folder / "memory.current").write_text(used)
        (folder / "memory.stat").write_text("anon 3\ninactive_file 50\n")
    assert _control_groups(membership, mount) == [650]
    assert _control_groups(tmp_path / "none", mount) == []


def test_logprobs_and_their_sum(make: Any) -> None:
    params = SamplingParams(seed=1, max_tokens=4, logprobs=2, prompt_logprobs=1)
    (output,) = make().generate("abc", params)
    (one,) = output.outputs
    assert [next(iter(found)) for found in one.logprobs] == one.token_ids
    total = sum(found[token].logprob for found, token in zip(one.logprobs, one.token_ids, strict=True))
    assert one.cumulative_logprob == pytest.approx(total)
    assert output.prompt_logprobs[0] is None
    assert [next(iter(found)) for found in output.prompt_logprobs[1:]] == output.prompt_token_ids[1:]
    (plain,) = make().generate("abc", SamplingParams(seed=1, max_tokens=4))
    assert plain.outputs[0].token_ids == one.token_ids
    assert (plain.outputs[0].logprobs, plain.outputs[0].cumulative_logprob, plain.prompt_logprobs) == (None, None, None)


def test_several_answers_score_their_prompt_once(make: Any) -> None:
    llm = make()
    (output,) = llm.generate("abcdefgh", SamplingParams(seed=1, max_tokens=4, n=3, prompt_logprobs=0))
    assert len(output.outputs) == 3
    assert len(output.prompt_logprobs) == len(output.prompt_token_ids)


def test_best_of_returns_the_likeliest_answers(make: Any) -> None:
    asked = {"max_tokens": 4, "seed": 7, "temperature": 5.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0}
    (every,) = make().generate("abc", SamplingParams(**asked, n=6, logprobs=0))
    means = [one.cumulative_logprob / len(one.token_ids) for one in every.outputs]
    order = sorted(range(6), key=lambda i: -means[i])
    assert order[:2] != [0, 1]
    (best,) = make().generate("abc", SamplingParams(**asked, n=2, best_of=6))
    assert [one.token_ids for one in best.outputs] == [every.outputs[i].token_ids for i in order[:2]]
    assert [one.index for one in best.outputs] == [0, 1]
    assert best.outputs[0].logprobs is best.outputs[0].cumulative_logprob is None  # compared by, but not asked for
    with pytest.raises(GGPYError, match="none can be streamed"):
        make().generate("abc", SamplingParams(**asked, best_of=2), stream=True)


def test_a_prompt_is_cut_to_its_last_tokens(make: Any) -> None:
    llm = make(n_ctx=16)
    (output,) = llm.generate("a" * 30 + "xyz", SamplingParams(max_tokens=1, truncate_prompt_tokens=3))
    assert output.prompt_token_ids == list(b"xyz")
    (output,) = llm.generate("a" * 30 + "xyz", SamplingParams(max_tokens=1, truncate_prompt_tokens=-1))
    assert output.prompt_token_ids == list(b"a" * 13 + b"xyz")
    with pytest.raises(GGPYError, match="context holds 16"):
        llm.generate("a" * 30, SamplingParams(max_tokens=1))
