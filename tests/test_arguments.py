"""Whatever a caller passes: a value of another kind is one GGPYError that names the parameter, and what comes next
works as if nothing had been."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import ggpy.llm
from ggpy import LLM, GGPYError, GGUFFile, SamplingParams, Tokenizer
from ggpy.cli.chat_session import ChatSession
from ggpy.cli.options import SAMPLING_NAMES
from ggpy.conversation import Conversation
from ggpy.runtime.load import Model, find_device, find_gpu_layers
from ggpy.text.chat_template import CHATML, ChatTemplate
from tests.cli.test_cli_values import NUMBERS, TEXTS
from tests.support.doubles import EOS, ByteTokenizer, FakeFile, FakeRuntime, saying
from tests.support.vocabularies import bpe_metadata, spm_metadata, write_gguf

GREEDY = SamplingParams(temperature=0, max_tokens=4)


class Hostile:
    """An object that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no")


ODD: list[Any] = [
    None, True, False, 0, -1, 5, 2**63, -(2**70), 10**5000, 0.5, -0.5, 1e300, math.nan, math.inf, -math.inf, 1j,
    Decimal(1), "", "x", "5", "\x1b[2J\x00\ud800", "long " * 1000, b"", b"ab", bytearray(b"ab"), memoryview(b"ab"),
    [], [[]], [None], [True], ["x"], ["5"], [b"x"], [5], [-1], [2**70], [0.5], [math.nan], [1, "x"], [[1], "x", None],
    (), (1,), {}, {"a": 1}, {1: "x"}, {1: 1e300}, {"1": 1.0}, {True: 1.0}, {1: math.nan}, set(), {1}, frozenset({"x"}),
    range(3), iter([1]), np.zeros(0), np.array(3), np.array(True), np.array([1.5]), np.array([[1]]), np.array(["x"]),
    np.bool_(True), np.float64(math.nan), np.int64(-5), object(), Hostile(), [Hostile()], int, len, ..., NotImplemented,
]  # fmt: skip


def unbroken(call: Callable[[Any], Any], good: Callable[[], Any] = lambda: None, odd: list[Any] = ODD) -> int:
    """Call with every odd value: it works or raises one sentence, and the good call works after it. Returns how many
    were refused."""
    refused = 0
    for value in odd:
        try:
            result = call(value)
            if isinstance(result, Iterator):
                list(result)
        except GGPYError as error:
            refused += 1
            sentence = str(error)
            assert len(sentence) <= 300, sentence
            assert sentence.endswith("."), sentence
            assert sentence.isprintable(), sentence
        except BaseException as error:
            raise AssertionError(f"{kind_of(value)} raises {error!r}") from error
        good()
    return refused


def kind_of(value: Any) -> str:
    try:
        return f"{type(value).__name__} {value!r:.80}"
    except Exception:
        return type(value).__name__


@pytest.fixture
def llm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> LLM:
    def load(path: Path, *args: Any, n_slots: int = 1, **placing: Any) -> Model:
        fake = FakeRuntime(n_ctx=128, n_slots=min(n_slots, 4), script=saying("Hi"))
        template = ChatTemplate(CHATML.replace("<|im_start|>", "<|begin|>").replace("<|im_end|>", "<|end|>"))
        return Model(FakeFile(), ByteTokenizer(), template, fake)  # type: ignore[arg-type]

    monkeypatch.setattr(ggpy.llm, "load_model", load)
    return LLM("fake.gguf")


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_gguf(tmp_path_factory.mktemp("file") / "m.gguf", bpe_metadata("qwen2"))


@pytest.mark.parametrize("name", [name for name in SamplingParams.__dataclass_fields__ if not name.startswith("_")])
def test_sampling_params(name: str, llm: LLM) -> None:
    def call(value: Any) -> None:
        params = SamplingParams(**{name: value}, **({} if name == "max_tokens" else {"max_tokens": 2}))
        if params.n <= 4:
            llm.generate("a", params)

    def good() -> None:
        assert llm.generate("a\0", GREEDY)[0].outputs[0].text == "Hi"

    assert unbroken(call, good) > len(ODD) // 2


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ({"stop": 5}, "stop is 5, but it must be a text or a list of texts"),
        ({"stop": [b"x"]}, r"stop is \[b'x'\], but"),
        ({"stop_token_ids": ["x"]}, r"stop_token_ids is \['x'\], but it must be a list of token ids"),
        ({"stop_token_ids": {5}}, r"stop_token_ids is \{5\}, but it must be a list of token ids"),
        ({"stop_token_ids": b"ab"}, "stop_token_ids is b'ab', but it must be a list of token ids"),
        ({"stop_token_ids": [True]}, r"stop_token_ids is \[True\], but it must be a list of token ids"),
        ({"logit_bias": {1: 1e300}}, r"logit_bias is \{1: 1e\+300\}, but it must be a dict of token ids to numbers"),
        ({"top_k": 10**400}, "top_k is a value of the type int|top_k is 1000000.*…, but it must be a whole number"),
        ({"ignore_eos": 1}, "ignore_eos is 1, but it must be True or False"),
        ({"seed": True}, "seed is True, but it must be a whole number"),
    ],
)
def test_sampling_params_say_what_they_must_be(value: dict[str, Any], message: str) -> None:
    with pytest.raises(GGPYError, match=message):
        SamplingParams(**value)


def test_numbers_of_numpy_are_numbers() -> None:
    params = SamplingParams(
        top_k=np.int32(7), temperature=np.float32(0.5), seed=np.uint64(2**64 - 1), stop_token_ids=np.array([1, 2]),
        logit_bias={np.int64(3): np.float32(2.0), 4: -math.inf}, ignore_eos=np.bool_(True),
    )  # fmt: skip
    assert (params.top_k, params.temperature, params.seed, params.stop_token_ids) == (7, 0.5, 2**64 - 1, (1, 2))
    assert params.logit_bias == {3: 2.0, 4: -math.inf}
    assert params.ignore_eos is True


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_is_switched_off_by_either_word(top_k: int) -> None:
    from ggpy.cpu.sampler import NativeSampler

    params = SamplingParams(top_k=top_k, temperature=0.5).resolved()
    assert params.top_k == 0
    assert NativeSampler.of(params) is None
    from ggpy.sampling.sampler import Sampler

    logits = np.zeros(300, np.float32)
    assert len({Sampler(params).sample(logits.copy()) for _ in range(200)}) > 40  # of all, not of the usual 40


@pytest.mark.parametrize(
    "name",
    ["path", "n_ctx", "n_threads", "n_parallel", "notify", "cache_type_k", "cache_type_v", "device", "n_gpu_layers",
     "split_mode", "kv_memory", "cache_ram", "context_shift", "n_keep"],
)  # fmt: skip
def test_opening_a_model(name: str, llm: LLM) -> None:
    assert unbroken(lambda value: LLM(**{"path": "fake.gguf", name: value}).generate("a", GREEDY)) > len(ODD) // 2


@pytest.mark.parametrize("find", [find_device, find_gpu_layers])
def test_devices_and_layers(find: Any) -> None:
    texts = ["cuda:" + "9" * 6000, "cuda:0,00", "cuda:-1", "cuda:٣", "9" * 6000, "٣", "-2", "1e3", " 1"]
    assert unbroken(find, odd=[*ODD, *texts]) > len(ODD) // 2
    if find is find_gpu_layers:
        assert find("9" * 6000) > 10**9


CALLS: dict[str, Callable[[LLM, Any], Any]] = {
    "generate prompts": lambda llm, x: llm.generate(x, GREEDY),
    "generate a list": lambda llm, x: llm.generate(["a", x], GREEDY),
    "generate a dict": lambda llm, x: llm.generate({"prompt": x}, GREEDY),
    "generate ids in a dict": lambda llm, x: llm.generate({"prompt_token_ids": x}, GREEDY),
    "generate sampling_params": lambda llm, x: llm.generate("a", x),
    "generate a list of params": lambda llm, x: llm.generate(["a", "b"], [GREEDY, x]),
    "generate prompt_token_ids": lambda llm, x: llm.generate(prompt_token_ids=x, sampling_params=GREEDY),
    "generate stream": lambda llm, x: llm.generate("a", GREEDY, stream=x),
    "stream of prompts": lambda llm, x: llm.generate(x, GREEDY, stream=True),
    "chat messages": lambda llm, x: llm.chat(x, GREEDY),
    "chat a list": lambda llm, x: llm.chat([{"role": "user", "content": "a"}, x], GREEDY),
    "chat conversations": lambda llm, x: llm.chat([[{"role": "user", "content": "a"}], x], GREEDY),
    "chat params": lambda llm, x: llm.chat([{"role": "user", "content": "a"}], x),
    "chat stream": lambda llm, x: llm.chat([{"role": "user", "content": "a"}], GREEDY, stream=x),
    "logits": lambda llm, x: llm.logits(x),
    "tokenize": lambda llm, x: Tokenizer(spm()).tokenize(x),
    "tokenize add_special": lambda llm, x: Tokenizer(spm()).tokenize("a", add_special=x),
    "tokenize parse_special": lambda llm, x: Tokenizer(spm()).tokenize("a", parse_special=x),
    "tokenize continues": lambda llm, x: Tokenizer(spm()).tokenize("a", continues=x),
    "tokenize_chat": lambda llm, x: Tokenizer(spm()).tokenize_chat(x),
    "detokenize": lambda llm, x: Tokenizer(spm()).detokenize(x),
    "detokenize skip_special": lambda llm, x: Tokenizer(spm()).detokenize([1], skip_special=x),
    "token_bytes": lambda llm, x: Tokenizer(spm()).token_bytes(x),
    "token_text": lambda llm, x: Tokenizer(spm()).token_text(x),
    "token_id": lambda llm, x: Tokenizer(spm()).token_id(x),
    "is_control": lambda llm, x: Tokenizer(spm()).is_control(x),
    "Tokenizer": lambda llm, x: Tokenizer(x),
    "from_gguf": lambda llm, x: Tokenizer.from_gguf(x),
    "request": lambda llm, x: llm.follow([llm.request(x, GREEDY)]),
    "request params": lambda llm, x: llm.follow([llm.request([1], x)]),
    "follow": lambda llm, x: llm.follow(x),
    "render_chat": lambda llm, x: llm.render_chat(x),
    "GGUFFile": lambda llm, x: GGUFFile(x),
    "Conversation llm": lambda llm, x: Conversation(x),
    "Conversation system": lambda llm, x: Conversation(llm, x).reply("a", GREEDY),
    "Conversation notify": lambda llm, x: Conversation(llm, notify=x),
    "Conversation messages": lambda llm, x: Conversation(llm, messages=x),
    "set_system": lambda llm, x: Conversation(llm).set_system(x),
    "reply": lambda llm, x: Conversation(llm).reply(x, GREEDY),
    "reply params": lambda llm, x: Conversation(llm).reply("a", x),
    "regenerate": lambda llm, x: Conversation(llm).regenerate(x),
    "load": lambda llm, x: Conversation(llm).load(x),
    "ChatTemplate": lambda llm, x: ChatTemplate(x).render([{"role": "user", "content": "a"}]),
    "ChatTemplate tokens": lambda llm, x: ChatTemplate(CHATML, x).render([{"role": "user", "content": "a"}]),
    "ChatTemplate tools": lambda llm, x: ChatTemplate(CHATML, tool_source=x).render([{"role": "u", "content": "a"}]),
    "render messages": lambda llm, x: ChatTemplate(CHATML).render(x),
    "render role": lambda llm, x: ChatTemplate(CHATML).render([{"role": x, "content": "a"}]),
    "render content": lambda llm, x: ChatTemplate(CHATML).render([{"role": "user", "content": x}]),
    "render prompt": lambda llm, x: ChatTemplate(CHATML).render([{"role": "u", "content": "a"}], x),
    "render continue": lambda llm, x: ChatTemplate(CHATML).render([{"role": "u", "content": "a"}], None, x),
    "render tools": lambda llm, x: ChatTemplate(CHATML).render([{"role": "u", "content": "a"}], tools=x),
    "render documents": lambda llm, x: ChatTemplate(CHATML).render([{"role": "u", "content": "a"}], documents=x),
    "resolved": lambda llm, x: SamplingParams().resolved(x),
    "resolved values": lambda llm, x: SamplingParams().resolved({"top_k": x}),
}
# What is given out whatever it is given: the model's answer, or a value that many kinds of values are.
LENIENT = {"render role", "render content", "render tools", "render documents"}


def spm() -> dict[str, Any]:
    return spm_metadata()


@pytest.mark.parametrize("name", CALLS)
def test_calls(name: str, llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def good() -> None:
        assert llm.generate("a\0", GREEDY)[0].outputs[0].text == "Hi"
        assert not llm.engine.has_work

    refused = unbroken(lambda value: CALLS[name](llm, value), good)
    assert refused > len(ODD) // 2 or name in LENIENT


def test_chat_commands(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    session = ChatSession(llm, None, GREEDY)
    settings = [f"/set {name}={value}" for name in SAMPLING_NAMES for value in NUMBERS]
    commands = [f"/{name} {value}" for name in session.commands if name != "save" for value in TEXTS]
    saves = [f"/save {value}" for value in ("", "\0", "~nobody at all/x", "/dev/full", "none/x", ".", "x" * 70_000)]
    for line in [*settings, *commands, *saves, *TEXTS]:
        params = session.params
        try:
            session.take(line)
        except GGPYError as error:
            sentence = str(error)
            assert len(sentence) <= 400, line
        session.params = params
        assert not llm.engine.has_work
    assert session.ended
    assert not list(tmp_path.iterdir())


def test_saving(llm: LLM, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    odd = [value for value in ODD if not isinstance(value, str) or len(value) > 300 or not value]
    assert unbroken(Conversation(llm).save, odd=odd) == len(odd)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("ids", [b"ab", {1, 2}, [True, False], {1: 2}, "ab", [1.0], np.array([1.0]), np.array([True])])
def test_what_are_no_token_ids(ids: Any, llm: LLM) -> None:
    for call in (llm.logits, llm.request, Tokenizer(spm()).detokenize, lambda x: llm.generate(prompt_token_ids=x)):
        with pytest.raises(GGPYError, match="a list of token ids"):
            call(ids)


@pytest.mark.parametrize("ids", [[5, EOS], (5, EOS), range(5, 7), np.array([5, 6], np.uint16), iter([5, 6])])
def test_what_are_token_ids(ids: Any, llm: LLM) -> None:
    assert llm.generate(prompt_token_ids=ids, sampling_params=GREEDY)[0].prompt_token_ids[0] == 5


def test_a_file_that_was_closed(file: Path) -> None:
    with GGUFFile(file) as opened:
        assert unbroken(opened.data) == len(ODD)
        assert unbroken(lambda value: opened.read(value, 0, 1)) == len(ODD)
