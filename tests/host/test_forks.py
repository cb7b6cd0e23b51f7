"""A loaded model in processes made by `os.fork`."""

from __future__ import annotations

import os
import select
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ggpy import LLM, GGPYError, SamplingParams
from ggpy.convert.pipeline import convert
from ggpy.cuda import driver
from tests.support.tiny import tiny_checkpoint

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="cannot fork")
GREEDY = SamplingParams(temperature=0, max_tokens=12)


@pytest.fixture
def llm(tmp_path: Path) -> Iterator[LLM]:
    path = tmp_path / "tiny.gguf"
    convert(tiny_checkpoint(tmp_path, "llama", dtype="f32"), "f32", path)
    with LLM(path, n_ctx=64, n_threads=2) as llm:
        yield llm


def in_child(work: Callable[[], object]) -> Callable[[], str]:
    """Start `work` in a child; calling what is returned gives its result as text, within 20 seconds."""
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        try:
            said = repr(work())
        except BaseException as error:
            said = f"{type(error).__name__}: {error}"
        os.write(writer, said.encode())
        os._exit(0)
    os.close(writer)

    def result() -> str:
        try:
            if not select.select([reader], [], [], 20)[0]:
                os.kill(pid, signal.SIGKILL)
                pytest.fail("the child hangs")
            return os.read(reader, 1 << 16).decode()
        finally:
            os.close(reader)
            os.waitpid(pid, 0)

    return result


def ids(llm: LLM, prompt: list[int]) -> list[int]:
    return list(llm.generate(prompt, GREEDY)[0].outputs[0].token_ids)


def test_children_generate(llm: LLM) -> None:
    prompts = [[5, 6, 7, 8], [9, 10, 11], [300, 2, 1, 4, 6]]
    children = [in_child(lambda prompt=prompt: ids(llm, prompt)) for prompt in prompts]  # weights may not be packed yet
    own = [ids(llm, prompt) for prompt in prompts]
    assert [child() for child in children] == [repr(tokens) for tokens in own]
    # and again with threads that have run, parent and children at the same time, caches apart
    stream = llm.follow([llm.request(prompts[0], GREEDY)])
    next(stream)
    children = [in_child(lambda prompt=prompt: [ids(llm, prompt) for _ in range(20)]) for prompt in prompts]
    for _ in range(20):
        assert [ids(llm, prompt) for prompt in prompts] == own
    assert [child() for child in children] == [repr([tokens] * 20) for tokens in own]
    stream.close()
    assert in_child(lambda: in_child(lambda: ids(llm, prompts[1]))())() == repr(repr(own[1]))
    assert in_child(llm.close)() == "None"
    assert ids(llm, prompts[2]) == own[2]


def test_a_fork_waits_for_the_step_that_another_thread_is_in(llm: LLM) -> None:
    prompt, stop = [5, 6, 7, 8], threading.Event()
    own = ids(llm, prompt)

    def generate() -> None:
        while not stop.is_set():
            ids(llm, prompt)

    other = threading.Thread(target=generate)
    other.start()
    try:
        assert [in_child(lambda: ids(llm, prompt))() for _ in range(10)] == [repr(own)] * 10
    finally:
        stop.set()
        other.join()


def test_a_child_cannot_use_its_parents_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(driver, "_opened_by", os.getpid())
    monkeypatch.setattr(driver.ctypes, "CDLL", lambda name: pytest.fail("opened again"))
    device = driver.Device.__new__(driver.Device)
    with pytest.raises(GGPYError, match="forked from one that had already used the GPU"):
        raise GGPYError(in_child(lambda: driver.check(3, "opening the GPU"))())
    assert in_child(device.close)() == "None"
    assert in_child(driver.device_count)() == "0"
