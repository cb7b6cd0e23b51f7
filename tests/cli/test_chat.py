"""Conversations: what is evaluated, dropped, saved; the commands of a chat, piped and typed."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

import ggpy.llm
from ggpy.conversation import Conversation
from ggpy.errors import GGPYError
from ggpy.llm import LLM
from ggpy.runtime.load import Model
from ggpy.sampling.sampling_params import SamplingParams
from tests.support.doubles import BOS, EOS, ByteTokenizer, FakeFile, FakeRuntime, FakeTemplate, saying

GREEDY = SamplingParams(temperature=0, max_tokens=20)


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(script: Any = None, **runtime: Any) -> LLM:
        model = Model(
            FakeFile(),  # type: ignore[arg-type]
            ByteTokenizer(),  # type: ignore[arg-type]
            FakeTemplate(),  # type: ignore[arg-type]
            FakeRuntime(n_slots=1, script=script or saying("Yes."), **runtime),  # type: ignore[arg-type]
        )
        monkeypatch.setattr(ggpy.llm, "load_model", lambda *args, **placing: model)
        return LLM("fake.gguf")

    return make


def say(talk: Conversation, text: str, params: SamplingParams = GREEDY) -> str:
    return "".join(talk.reply(text, params))


def test_only_new_tokens_are_evaluated(make: Any) -> None:
    talk = Conversation(make(), system="Be kind.")
    assert say(talk, "One?") == "Yes."
    before = talk.llm.engine.n_evaluated
    assert say(talk, "Two?") == "Yes."
    # The end token of the first answer, the new message, the head of the answer; then the answer but its end token.
    new = [EOS, BOS, *b"user:Two?", EOS, BOS, *b"assistant:"]
    assert talk.llm.engine.n_evaluated - before == len(new) + 4
    assert talk.messages == [
        {"role": "user", "content": "One?"},
        {"role": "assistant", "content": "Yes."},
        {"role": "user", "content": "Two?"},
        {"role": "assistant", "content": "Yes."},
    ]


def test_tokens_that_the_tokenizer_would_cut_otherwise_are_kept(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tokenizer that now cuts differently: what was evaluated keeps the tokens it had."""
    talk = Conversation(make())
    say(talk, "One?")
    tokenize = talk.llm.tokenizer.tokenize
    monkeypatch.setattr(talk.llm.tokenizer, "tokenize", lambda text, **kw: tokenize(text.replace("Yes", "No!"), **kw))
    say(talk, "Two?")
    assert talk.last is not None
    assert talk.last.timings.n_reused == 1 + 9 + 2 + 10 + 4
    assert b"Yes." in bytes(t for t in talk.last.prompt if t < 256)


@pytest.mark.parametrize("stop", ["<|begin|>", "<|begin|>user"])
def test_a_control_token_that_stops_an_answer_is_no_part_of_it(make: Any, stop: str) -> None:
    head, told = [*b"assistant:"], [*b"Yes", BOS, *b"user:"]  # a model that goes on with the next turn by itself

    def script(prefix: list[int]) -> int:
        return told[next(n for n in range(len(prefix)) if prefix[len(prefix) - n - len(head) :][: len(head)] == head)]

    talk = Conversation(make(script))
    params = SamplingParams(temperature=0, stop=stop)
    assert say(talk, "One?", params) == "Yes"
    assert say(talk, "Two?", params) == "Yes"
    assert talk.last is not None
    rendered = [BOS, *b"user:One?", EOS, BOS, *b"assistant:Yes", EOS, BOS, *b"user:Two?", EOS, BOS, *b"assistant:"]
    assert talk.last.prompt == rendered


def test_interruption_keeps_the_conversation(make: Any) -> None:
    talk = Conversation(make(saying("A long answer")))
    pieces: Any = talk.reply("Go", GREEDY)
    assert [next(pieces) for _ in range(6)] == list("A long")
    pieces.close()
    assert talk.messages[-1] == {"role": "assistant", "content": "A long"}
    assert not talk.llm.engine.has_work
    before = talk.llm.engine.n_evaluated
    say(talk, "On", SamplingParams(temperature=0, max_tokens=1))
    assert talk.llm.engine.n_evaluated - before == 1 + 1 + 1 + 7 + 1 + 1 + 10  # the answer's last letter is new, too


def test_interruption_before_an_answer_takes_the_message_back(make: Any) -> None:
    def script(prefix: list[int]) -> int:
        raise KeyboardInterrupt

    talk = Conversation(make(script))
    with pytest.raises(KeyboardInterrupt):
        say(talk, "Go")
    assert talk.messages == []
    assert not talk.llm.engine.has_work


def test_errors_take_the_message_back(make: Any) -> None:
    talk = Conversation(make(n_ctx=64))
    say(talk, "One?")
    before = list(talk.messages)
    with pytest.raises(GGPYError, match=r"tokens, but the context holds 64"):
        say(talk, "x" * 200)
    assert talk.messages == before
    assert say(talk, "Two?") == "Yes."


def test_the_oldest_turns_are_dropped_and_said(make: Any) -> None:
    notes: list[str] = []
    talk = Conversation(make(n_ctx=400), system="Be kind.", notify=notes.append)
    for i in range(24):
        assert say(talk, f"Question {i}") == "Yes."
        assert talk.last is not None
        prompt = bytes(t for t in talk.last.prompt if t < 256)
        assert prompt.startswith(b"system:Be kind.user:Question ")
        assert prompt.endswith(b"user:Question %dassistant:" % i)
        assert len(talk.last.tokens) <= 400
    assert len(talk.messages) == 48  # what is saved is the whole conversation
    assert 2 <= len(notes) <= 6
    assert all("outgrew the context of 400 tokens" in note for note in notes)


def test_regenerate(make: Any) -> None:
    talk = Conversation(make())
    with pytest.raises(GGPYError, match="no answer"):
        list(talk.regenerate(GREEDY))
    say(talk, "One?")
    before = talk.llm.engine.n_evaluated
    assert "".join(talk.regenerate(GREEDY)) == "Yes."
    assert talk.llm.engine.n_evaluated - before == 1 + 4
    assert len(talk.messages) == 2


def test_save_and_load(make: Any, tmp_path: Path) -> None:
    talk = Conversation(make(), system="好")
    say(talk, "你好?")
    path = tmp_path / "对话.json"
    path.write_text("old")
    talk.save(path)
    assert list(tmp_path.iterdir()) == [path]
    assert "你好" in path.read_text(encoding="utf-8")
    other = Conversation(make())
    other.load(path)
    assert (other.system, other.messages) == ("好", talk.messages)
    assert say(other, "Two?") == "Yes."


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"[1]",
        b"{}",
        b'{"messages": [{"role": "user"}]}',
        b'{"messages": [{"role": "x", "content": ""}]}',
        b"\xff",
    ],
)
def test_bad_saved_conversations_change_nothing(make: Any, tmp_path: Path, content: bytes) -> None:
    talk = Conversation(make(), system="s")
    say(talk, "One?")
    before = list(talk.messages)
    path = tmp_path / "bad.json"
    path.write_bytes(content)
    with pytest.raises(GGPYError, match=r"bad\.json holds no saved conversation"):
        talk.load(path)
    assert (talk.messages, talk.system) == (before, "s")
    with pytest.raises(GGPYError, match="cannot be read"):
        talk.load(tmp_path / "none.json")


def test_saving_where_nothing_can_be_written(make: Any, tmp_path: Path) -> None:
    talk = Conversation(make())
    with pytest.raises(GGPYError, match="there is no folder"):
        talk.save(tmp_path / "none" / "a.json")
    (tmp_path / "folder").mkdir()
    with pytest.raises(GGPYError, match="it is a folder"):
        talk.save(tmp_path / "folder")
    assert [p.name for p in tmp_path.iterdir()] == ["folder"]


@pytest.fixture
def piped(make: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    from click.testing import CliRunner

    from ggpy.cli.main import main

    monkeypatch.chdir(tmp_path)
    Path("fake.gguf").touch()

    def piped(lines: str, *args: str, script: Any = None) -> Any:
        make(script)
        return CliRunner().invoke(main, ["chat", "-m", "fake.gguf", "--temp", "0", *args], input=lines)

    return piped


def test_numbers_are_shown_as_they_are(piped: Any) -> None:
    result = piped(f"/set seed={2**64 - 1} temp=0.5 n=12345678")
    assert "n=12345678 temp=0.5 top-k=40" in result.stderr
    assert f"seed={2**64 - 1}" in result.stderr


def test_a_line_without_an_end_is_not_waited_for(piped: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ggpy.cli.terminal.MOST_TEXT", 100)
    result = piped("One?\n" + "x" * 1000)
    assert (result.exit_code, result.stdout) == (1, "Yes.\n")
    assert "Line 2 of standard input is longer than 100 B." in result.stderr


def test_piped_lines_are_turns(piped: Any) -> None:
    result = piped("One?\n\n/stats\nTwo?\r\n/stats")
    assert result.exit_code == 0
    assert result.stdout == "Yes.\nYes.\n"
    assert "2 messages, 27 of 256 tokens" in result.stderr
    assert "4 messages" in result.stderr
    assert "(26 kept)" in result.stderr


def test_piped_commands(piped: Any) -> None:
    lines = "/help\n/system Be kind.\nOne?\n/regen\n/save a.json\n/clear\n/load a.json\n"
    result = piped(lines + "/set temp=0.5 n=3 top_k=9\n/exit\nno")
    assert result.exit_code == 0, result.stderr
    assert result.stdout == "Yes.\nYes.\n"
    for name in ("help", "clear", "system", "save", "load", "regen", "set", "stats", "exit"):
        assert f"/{name}" in result.stderr
    assert "n=3 temp=0.5 top-k=9" in result.stderr
    saved = json.loads(Path("a.json").read_text(encoding="utf-8"))
    assert saved["system"] == "Be kind."
    assert [m["content"] for m in saved["messages"]] == ["One?", "Yes."]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/nonsense", "no command /nonsense"),
        ("/set temp=9999", "temperature is 9999"),
        ("/set temp=warm", "no number"),
        ("/set samplers=top_k;heat", "no sampler here"),
        ("/set heat=1", "cannot take heat=1"),
        ("/save", "needs a file name"),
        ("/load nothing.json", "nothing.json cannot be read"),
        ("/regen", "no answer"),
        ("", "held no message"),
    ],
)
def test_piped_mistakes(piped: Any, line: str, message: str) -> None:
    result = piped(line)
    assert result.exit_code == 1
    assert message in result.stderr.splitlines()[-1]


def test_a_path_is_no_command(piped: Any) -> None:
    assert piped("/usr/bin is what?").stdout == "Yes.\n"


def test_a_seed_fixes_the_conversation_but_not_each_answer(piped: Any) -> None:
    def script(prefix: list[int]) -> int:
        return EOS

    args = ("--temp", "5", "--top-k", "0", "--top-p", "1", "--min-p", "0", "--seed", "3", "-n", "9", "--ignore-eos")
    first = piped("One?\n/regen\n", *args, script=script).stdout
    assert piped("One?\n/regen\n", *args, script=script).stdout == first
    answers = first.split("\n")
    assert answers[0] != answers[1]


def typed(keys: str) -> str:
    from prompt_toolkit.input import create_pipe_input
    from prompt_toolkit.output import DummyOutput

    from ggpy.cli.chat_prompt import ChatPrompt

    with create_pipe_input() as pipe:
        pipe.send_text(keys)
        return ChatPrompt(pipe, DummyOutput()).ask()


@pytest.mark.parametrize(
    ("keys", "text"),
    [
        ("你好\r", "你好"),
        ("one\\\rtwo\r", "one\ntwo"),
        ("one\x1b\rtwo\r", "one\ntwo"),
        ('"""one\rtwo"""\r', "one\ntwo"),
        ('"""\rone\r\rtwo\r"""\r', "one\n\ntwo"),
        ('""""""\r', ""),
    ],
)
def test_typed_messages(keys: str, text: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path))
    assert typed(keys) == text


def test_history_lasts_and_keys_end_the_prompt(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path))
    typed("the first\r")
    assert typed("\x1b[A\r") == "the first"
    with pytest.raises(KeyboardInterrupt):
        typed("half\x03")
    with pytest.raises(EOFError):
        typed("\x04")
    assert (tmp_path / "chat_history").stat().st_mode & 0o077 == 0
    monkeypatch.setenv("GGPY_CACHE", "/dev/null/nowhere")
    assert typed("works\r") == "works"
