"""The commands over a stand-in for the model: what goes to stdout and stderr, and exit statuses."""

from __future__ import annotations

import errno
import os
import sys
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

import ggpy.llm
from ggpy import __version__
from ggpy.cli.main import COMMANDS, main
from ggpy.errors import GGPYError
from ggpy.runtime.load import Model
from ggpy.text.chat_template import ChatTemplate
from tests.support.doubles import BOS, ByteTokenizer, FakeFile, FakeRuntime, FakeTemplate, saying

MODEL = "fake.gguf"


@pytest.fixture
def call(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """Run a command over a stand-in for the model; `script` says what it answers."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GGPY_CACHE", str(tmp_path / "cache"))
    Path(MODEL).touch()

    def call(*args: str, script: Any = None, template: bool | str = True, input: Any = None, **runtime: Any) -> Result:
        def load(
            path: Path, n_ctx: int | None, n_threads: int | None, notify: Any, n_slots: int, **placing: Any
        ) -> Model:
            call.placing = placing  # type: ignore[attr-defined]
            fake = FakeRuntime(n_ctx=n_ctx or 256, n_slots=n_slots, script=script or saying("Hi 你好!"), **runtime)
            call.runtime = fake  # type: ignore[attr-defined]
            notify("a note")
            made = ChatTemplate(template) if isinstance(template, str) else FakeTemplate() if template else None
            return Model(FakeFile(), ByteTokenizer(), made, fake)  # type: ignore[arg-type]

        monkeypatch.setattr(ggpy.llm, "load_model", load)
        return CliRunner().invoke(main, args, input=input)

    return call


def test_values_for_the_template(call: Any) -> None:
    for command in (["run", "-p", "Hi"], ["chat"]):
        kwargs = ["--template-kwargs", '{"mood": "glad"}']
        moody = "{{ mood }}{{ messages[0].content }}assistant:"
        assert call(*command, "-m", MODEL, *kwargs, input="Hi\n", template=moody).exit_code == 0
        assert call.runtime.cells[:16].tolist() == [BOS, *b"gladHiassistant"]
        fails(call(*command, "-m", MODEL, *kwargs, input="Hi\n", template="{{ messages }}"), "does not read 'mood'")
        fails(call(*command, "-m", MODEL, "--template-kwargs", "[1]"), "must be an object", status=2)
        fails(call(*command, "-m", MODEL, "--template-kwargs", "{a"), "is no JSON", status=2)
        assert call(*command, "-m", MODEL, "--chat-template", "rag", input="Hi\n").exit_code == 0
        assert call.placing["chat_template"] == "rag"
    raw = call("run", "--raw", "-p", "Hi", "-m", MODEL, "--template-kwargs", "{}")
    fails(raw, "so --template-kwargs has no place")
    fails(call("run", "--raw", "-p", "Hi", "-m", MODEL, "--chat-template", "rag"), "so --chat-template has no place")


@pytest.mark.parametrize("command", [["run", "-p", "Hi"], ["chat"]])
def test_the_cache_has_the_types_asked_for(call: Any, command: list[str]) -> None:
    assert call(*command, "-m", MODEL, input="Hi\n").exit_code == 0
    assert (call.placing["cache_type_k"], call.placing["cache_type_v"]) == (None, None)
    assert call(*command, "-m", MODEL, "-ctk", "q8_0", "--cache-type-v", "f16", input="Hi\n").exit_code == 0
    assert (call.placing["cache_type_k"], call.placing["cache_type_v"]) == ("q8_0", "f16")
    fails(call(*command, "-m", MODEL, "-ctv", "q2"), "'q2' is not one of", status=2)


@pytest.mark.parametrize("command", [["run", "-p", "Hi"], ["chat"], ["bench", "-p", "8", "-n", "0", "-r", "1"]])
def test_layers_go_where_they_were_asked_to(call: Any, command: list[str]) -> None:
    command = [*command, "-m", MODEL]
    assert call(*command, input="Hi\n").exit_code == 0
    assert (call.placing["device"], call.placing["n_gpu_layers"]) == ("cpu", None)
    assert call(*command, "--device", "cuda:0,1", "-ngl", "12", input="Hi\n").exit_code == 0
    assert (call.placing["device"], call.placing["n_gpu_layers"]) == ("cuda:0,1", 12)
    assert call(*command, "--device", "cuda", "--n-gpu-layers", "auto", input="Hi\n").exit_code == 0
    assert (call.placing["device"], call.placing["n_gpu_layers"]) == ("cuda", None)
    result = call(*command, "--gpu-layers", "99", input="Hi\n")
    assert result.exit_code == 0
    assert "no effect without a GPU" in result.stderr
    fails(call(*command, "-ngl", "many"), "n_gpu_layers is 'many'")
    fails(call(*command, "--device", "cuda:a"), "device is 'cuda:a'")


def fails(result: Result, message: str, status: int = 1) -> None:
    """One sentence on stderr, nothing on stdout."""
    assert result.exit_code == status, result.stderr
    assert result.stdout == ""
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("error: ")
    assert message in last


def test_help_and_version(call: Any) -> None:
    result = call("--help")
    assert result.exit_code == 0
    assert all(name in result.stdout for name in COMMANDS)
    assert call().stdout == result.stdout
    assert call("--version").stdout == f"ggpy {__version__}\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_with_examples(call: Any, name: str) -> None:
    result = call(name, "--help")
    assert result.exit_code == 0
    assert f"ggpy {name}" in result.stdout.split("Examples:")[1]


def test_run_streams_the_answer_alone_to_stdout(call: Any) -> None:
    result = call("run", "-m", MODEL, "-p", "Hello", "--temp", "0")
    assert result.exit_code == 0
    assert result.stdout == "Hi 你好!\n"
    assert "a note" in result.stderr
    assert "prompt 23 tok, " in result.stderr
    assert " tok/s · decode 11 tok, " in result.stderr
    assert " tok/s · first token 0." in result.stderr
    prompt = bytes(t for t in call.runtime.of(0)[0] if 0 <= t < 256)
    assert prompt.startswith(b"user:Helloassistant:Hi")


def test_run_raw_system_file_and_stdin(call: Any, tmp_path: Path) -> None:
    def prompt() -> bytes:
        return bytes(int(t) for t in call.runtime.of(0)[0] if 0 <= t < 256)

    call("run", "-m", MODEL, "--raw", "-p", "Once", "-n", "1")
    assert prompt() == b"Once"
    call("run", "-m", MODEL, "-p", "Once", "-n", "1", template=False)
    assert prompt() == b"Once"
    call("run", "-m", MODEL, "-s", "Be brief.", "-p", "Hello", "-n", "1")
    assert prompt() == b"system:Be brief.user:Helloassistant:"
    (tmp_path / "问题.txt").write_bytes("\ufeff你好\r\n".encode())
    call("run", "-m", MODEL, "-f", "问题.txt", "-n", "1")
    assert prompt() == "user:你好assistant:".encode()
    call("run", "-m", MODEL, "-f", "-", "-n", "1", input="two\nlines\n")
    assert prompt() == b"user:two\nlinesassistant:"


def test_run_flags_reach_the_sampler(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    request = ggpy.llm.LLM.request

    def watched(self: Any, ids: list[int], params: Any) -> Any:
        seen.append(params)
        return request(self, ids, params)

    monkeypatch.setattr(ggpy.llm.LLM, "request", watched)
    flags = (
        "-n 3 --temp 0.5 --top-k 7 --top-p 0.8 --min-p 0.1 --typical-p 0.9 --repeat-penalty 1.1 --repeat-last-n 32 "
        "--presence-penalty 0.2 --frequency-penalty 0.3 --seed 9 --stop A --stop B --ignore-eos --verbose"
    )
    result = call("run", "-m", MODEL, "-p", "x", "-c", "99", "-t", "1", *flags.split())
    assert result.exit_code == 0, result.stderr
    (p,) = seen
    assert (p.max_tokens, p.temperature, p.top_k, p.top_p, p.min_p, p.typical_p) == (3, 0.5, 7, 0.8, 0.1, 0.9)
    assert (p.repetition_penalty, p.repeat_last_n, p.presence_penalty, p.frequency_penalty) == (1.1, 32, 0.2, 0.3)
    assert (p.seed, p.stop, p.ignore_eos) == (9, ("A", "B"), True)
    assert call.runtime.n_ctx == 99
    assert "seed=9" in result.stderr
    call("run", "-m", MODEL, "-p", "x")
    assert seen[1] == type(p)()


def test_options_of_the_further_samplers(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    request = ggpy.llm.LLM.request

    def watched(self: Any, ids: list[int], params: Any) -> Any:
        seen.append(params)
        return request(self, ids, params)

    monkeypatch.setattr(ggpy.llm.LLM, "request", watched)
    flags = (
        "--top-nsigma 1.5 --xtc-probability 0.2 --xtc-threshold 0.05 --dynatemp-range 0.3 --dynatemp-exp 2 "
        "--mirostat 2 --mirostat-ent 4 --mirostat-lr 0.2 --dry-multiplier 0.8 --dry-base 1.5 --dry-allowed-length 3 "
        "--dry-penalty-last-n 64 --dry-sequence-breaker . --dry-sequence-breaker , --samplers dry;top_k;temp "
        "--min-tokens 2 --bad-words no --special --verbose -n 4"
    )
    result = call("run", "-m", MODEL, "-p", "x", *flags.split())
    assert result.exit_code == 0, result.stderr
    (p,) = seen
    assert (p.top_n_sigma, p.xtc_probability, p.xtc_threshold) == (1.5, 0.2, 0.05)
    assert (p.dynatemp_range, p.dynatemp_exponent) == (0.3, 2.0)
    assert (p.mirostat, p.mirostat_tau, p.mirostat_eta) == (2, 4.0, 0.2)
    assert (p.dry_multiplier, p.dry_base, p.dry_allowed_length, p.dry_penalty_last_n) == (0.8, 1.5, 3, 64)
    assert (p.dry_sequence_breakers, p.samplers) == ((".", ","), ("dry", "top_k", "temperature"))
    assert (p.min_tokens, p.bad_words, p.skip_special_tokens) == (2, ("no",), False)
    assert "mirostat=2 mirostat-ent=4 " in result.stderr
    assert "samplers=dry;top_k;temperature min-tokens=2" in result.stderr
    result = call("run", "-m", MODEL, "-p", "x", "--dry-sequence-breaker", "none", "-n", "1", "--verbose")
    assert seen[1].dry_sequence_breakers == ()
    assert "xtc" not in result.stderr
    fails(call("run", "-m", MODEL, "-p", "x", "--samplers", "top_k;heat"), "samplers names 'heat'")


def test_an_answer_of_a_given_form(call: Any, tmp_path: Path) -> None:
    pytest.importorskip("llguidance")
    schema, grammar = tmp_path / "schema.json", tmp_path / "grammar.gbnf"
    schema.write_text('{"enum": ["red", "green"]}')
    grammar.write_text('root ::= "re" [a-d]\n')
    result = call("run", "-m", MODEL, "-p", "x", "--json-schema", str(schema))
    assert result.stdout in ('"red"\n', '"green"\n')
    assert call("run", "-m", MODEL, "-p", "x", "--grammar", str(grammar)).stdout in ("rea\n", "reb\n", "rec\n", "red\n")
    both = call("run", "-m", MODEL, "-p", "x", "--grammar", str(grammar), "--json-schema", str(schema))
    fails(both, "leave one of them out")
    fails(call("run", "-m", MODEL, "-p", "x", "--grammar", str(schema)), "The grammar cannot be followed")
    schema.write_text('{"type": "array", "uniqueItems": true}')
    fails(call("run", "-m", MODEL, "-p", "x", "--json-schema", str(schema)), "uniqueItems")
    fails(call("run", "-m", MODEL, "-p", "x", "--json-schema", str(tmp_path / "none")), "none")
    fails(call("run", "-m", MODEL, "-p", "x", "--grammar", str(grammar), "--num-beams", "2"), "--grammar has no place")


def test_run_says_that_the_context_is_full(call: Any) -> None:
    result = call("run", "-m", MODEL, "-p", "x", "-c", "40", "--ignore-eos")
    assert result.exit_code == 0
    assert "context of 40 tokens is full" in result.stderr
    fails(call("run", "-m", MODEL, "-p", "x" * 100, "-c", "40"), "118 tokens, but the context holds 40")


def test_run_stopped_by_ctrl_c_keeps_what_was_said(call: Any) -> None:
    calls = []

    def script(prefix: list[int]) -> int:
        calls.append(prefix)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return ord("a")

    result = call("run", "-m", MODEL, "-p", "x", "--temp", "0", script=script)
    assert result.exit_code == 130
    assert result.stdout == "aaa\n"
    assert "decode 3 tok" in result.stderr
    calls[:] = [[]] * 3
    result = call("run", "-m", MODEL, "-p", "x", "--temp", "0", script=script)
    assert (result.exit_code, result.stdout) == (130, "\n")
    assert result.stderr.splitlines()[-1] == "stopped before the first token"  # no speeds: nothing was measured


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-p", ""], "prompt is empty"),
        ([], "no prompt"),
        (["-p", "a", "-f", "b"], "-p and -f"),
        (["-f", "missing.txt"], "missing.txt cannot be read"),
        (["-p", "a", "--raw", "-s", "b"], "--raw"),
        (["-p", "a", "--temp", "-1"], "temperature is -1.0"),
        (["-p", "a", "--temp", "nan"], "temperature is nan"),
        (["-p", "a", "--top-p", "1.5"], "top_p is 1.5"),
        (["-p", "a", "--top-k", "-3"], "top_k is -3"),
        (["-p", "a", "-n", "0"], "max_tokens is 0"),
        (["-p", "a", "--seed", "-7"], "seed is -7"),
        (["-p", "a", "--stop", ""], "stop is ('',), but it must be a text or a list of texts"),
    ],
)
def test_run_errors_come_before_the_model(call: Any, args: list[str], message: str) -> None:
    result = call("run", "-m", MODEL, *args)
    fails(result, message)
    assert "a note" not in result.stderr


def test_usage_errors(call: Any) -> None:
    fails(call("run", "-p", "x", "-t", "0"), "0 is not in the range", 2)
    fails(call("run", "-p", "x", "-c", "0"), "0 is not in the range", 2)
    fails(call("run", "--nonsense"), "--nonsense", 2)
    fails(call("nonsense"), "nonsense", 2)
    fails(call("run", "-p", "a\udcff"), "Argument 3 (a?) is not valid UTF-8")


@pytest.mark.parametrize("command", [["run", "-f", "-"], ["chat"]])
def test_stdin_that_is_no_utf8(call: Any, command: list[str]) -> None:
    fails(call(*command, "-m", MODEL, input=b"ab\xff\n"), "not valid UTF-8: byte 0xFF at offset 2")


def test_a_model_that_is_not_there(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    fails(call("run", "-m", "nosuch", "-p", "x"), "known are SmolLM2-135M-Instruct")
    fails(call("inspect", "a\nb\x1b[2J"), r"no known model is called a\nb\x1b[2J; known are")
    fails(call("inspect", "./a\nb\x1b[2J"), r"a\nb\x1b[2J does not exist")
    fails(call("run", "-m", "hf:user/repo", "-p", "x"), "pip install 'ggpy[hub]'")


def test_unexpected_errors_are_one_sentence(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    def script(prefix: list[int]) -> int:
        raise ZeroDivisionError("by nothing")

    result = call("run", "-m", MODEL, "-p", "x", script=script)
    fails(result, "ZeroDivisionError: by nothing")
    assert "GGPY_DEBUG=1" in result.stderr
    monkeypatch.setenv("GGPY_DEBUG", "1")
    assert "Traceback" in call("run", "-m", MODEL, "-p", "x", script=script).stderr


def test_memory_that_runs_out(call: Any) -> None:
    for error in (MemoryError(), OSError(errno.ENOMEM, os.strerror(errno.ENOMEM))):

        def script(prefix: list[int], error: Exception = error) -> int:
            raise error

        fails(call("run", "-m", MODEL, "-p", "x", script=script), "Memory ran out")


EMPTY = [
    ["run", "-p", "x", "-m", ""], ["run", "-f", ""], ["chat", "-m", ""], ["inspect", ""], ["pull", ""],
    ["convert", "-i", ""], ["convert", "-i", ".", "-o", ""], ["tokenize", "-f", ""],
    ["warmup", "-m", ""], ["bench", "--plot", ""],
]  # fmt: skip


@pytest.mark.parametrize("args", EMPTY)
def test_an_empty_name_is_said_to_be_empty(call: Any, args: list[str]) -> None:
    fails(call(*args), "it is empty; give a name", status=2)


def test_homes_that_are_not_known(call: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    import platformdirs

    from ggpy.paths import cache_dir

    monkeypatch.setenv("GGPY_CACHE", "~no such user/x")
    fails(call("pull"), "GGPY_CACHE: ~no such user/x is no path: the home directory ~no such user is not known.")
    assert "GGPY_CACHE: ~no such" in call("doctor").stdout
    result = call("chat", "-m", MODEL, input="/save ~no such user/x\n")
    assert "the home directory ~no such user is not known" in result.stderr
    monkeypatch.delenv("GGPY_CACHE")
    monkeypatch.setattr(platformdirs, "user_cache_dir", lambda *args, **kwargs: "~/.cache/ggpy")
    with pytest.raises(GGPYError, match="set GGPY_CACHE"):
        cache_dir()
