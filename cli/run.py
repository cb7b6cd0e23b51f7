"""`ggpy run`: one prompt, one answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from ggpy.cli.options import (
    FILE_NAME,
    default_model_sampling,
    model_options,
    open_model,
    sampling_options,
    sampling_params,
)
from ggpy.errors import GGPYError

if TYPE_CHECKING:
    from ggpy.llm import LLM
    from ggpy.sampling.sampling_params import SamplingParams


@click.command(
    epilog="""
    \b
    Examples:
      ggpy run -p "What is the capital of France?"
      ggpy run -m model.gguf -s "Answer in Chinese." -p 你好 --temp 0
      ggpy run -m ./Qwen3-0.6B --type q4_0 -p "Why is the sky blue?"
      ggpy run -m model.gguf --raw -p "def fib(n):" -n 64
      ggpy run -m model.gguf --prompt-cache talk.state -f long.txt
      git diff | ggpy run -m model.gguf -s "Describe this change." -f -
    """
)
@model_options
@click.option("-p", "--prompt", metavar="TEXT", help="The prompt.")
@click.option(
    "-f", "--file", "prompt_file", type=FILE_NAME, metavar="FILE", help="Read the prompt from a file; - is stdin."
)
@click.option("-s", "--system", metavar="TEXT", help="System message.")
@click.option("--raw", is_flag=True, help="Complete the prompt as it stands, without the chat template.")
@click.option(
    "--prompt-cache", type=FILE_NAME, metavar="FILE",
    help="Go on from the evaluated state in this file, if it is there, and save it afterwards: a prompt that begins"
    " alike is not evaluated again.",
)  # fmt: skip
@sampling_options
@click.option("-v", "--verbose", is_flag=True, help="Say more about the model and the run.")
def run(
    model_options: dict[str, Any],
    sampling: dict[str, Any],
    prompt: str | None,
    prompt_file: str | None,
    system: str | None,
    raw: bool,
    prompt_cache: str | None,
    verbose: bool,
) -> int:
    """Answer a prompt: the text goes to stdout, timing and notes to stderr.

    A model with a chat template answers as an assistant; other models, and --raw, continue the text.
    """
    model = model_options["model"]
    # What the user may have got wrong is said before anything is loaded.
    params = sampling_params(sampling if model else default_model_sampling(sampling))
    text = _prompt_text(prompt, prompt_file)
    if raw and system is not None:
        raise GGPYError("--raw completes the prompt as it stands, so -s/--system has no place; leave one of them out.")
    if not model and not raw and system is None:
        from ggpy.hub.default_model import DEFAULT

        system = DEFAULT.system
    started = time.perf_counter()
    with open_model(model_options) as llm:
        if prompt_cache is not None:
            _load_state(llm, prompt_cache)
        status = _answer(llm, text, system, raw, params, verbose, started)
        if prompt_cache is not None and not status:
            llm.save_state(prompt_cache)
        return status


def _load_state(llm: LLM, path: str) -> None:
    """Go on from a saved state where there is one; that it is of no use must be known before an answer replaces it."""
    from pathlib import Path

    if Path(path).exists():
        llm.load_state(path)


def _prompt_text(prompt: str | None, prompt_file: str | None) -> str:
    from ggpy.cli.terminal import read_text

    if prompt is not None and prompt_file is not None:
        raise GGPYError("-p and -f both give the prompt; leave one of them out.")
    if prompt_file is not None:
        text = read_text(prompt_file).removesuffix("\n").removesuffix("\r")
    elif prompt is not None:
        text = prompt
    else:
        raise GGPYError("There is no prompt; give one with -p TEXT, or -f FILE (- for stdin).")
    if not text:
        raise GGPYError("The prompt is empty; give it some text.")
    return text


def _answer(
    llm: LLM, text: str, system: str | None, raw: bool, params: SamplingParams, verbose: bool, started: float
) -> int:
    """Stream the answer to stdout; the exit status."""
    from ggpy.cli.interrupts import INTERRUPTED, raise_interrupts
    from ggpy.cli.terminal import note, show, timing_line

    if raw or (llm.template is None and system is None):
        prompt_ids = llm.tokenize(text, add_special=True, parse_special=True)
    else:
        messages = [{"role": "system", "content": system}] if system is not None else []
        prompt_ids = llm.tokenize_chat(llm.render_chat([*messages, {"role": "user", "content": text}]))
    request = llm.request(prompt_ids, params)
    if verbose:
        _describe(llm, request.params, len(prompt_ids), time.perf_counter() - started)
    status, last = 0, "\n"
    try:
        raise_interrupts()
        for _, delta in llm.follow([request]):
            show(delta)
            last = delta
    except KeyboardInterrupt:
        status = INTERRUPTED
    if status or not last.endswith("\n"):
        show("\n")
    if request.reached_context:
        note(f"stopped: the context of {llm.n_ctx} tokens is full")
    note(timing_line(request.timings) if request.n_chosen else "stopped before the first token")
    return status


def _describe(llm: LLM, params: SamplingParams, n_prompt: int, seconds: float) -> None:
    from ggpy.cli.options import SAMPLING_NAMES
    from ggpy.cli.terminal import note

    hparams = llm.runtime.hparams
    note(
        f"{llm.path}: {hparams.arch}, {hparams.n_layer} layers of {hparams.n_embd}, "
        f"vocabulary {llm.n_vocab}, opened in {seconds:.2f} s"
    )
    where = f"{llm.runtime.n_threads} threads" if llm.runtime.device == "cpu" else llm.runtime.device
    note(f"{where}, context {llm.n_ctx} tokens, prompt {n_prompt} tokens")
    values = ((name, getattr(params, field)) for name, field in SAMPLING_NAMES.items())
    note("sampling: " + ", ".join(f"{name} {value}" for name, value in values if value is not None))
