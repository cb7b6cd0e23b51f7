"""`ggpy run`: one prompt, one answer."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import click

from ggpy.cli.options import (
    FILE_NAME,
    answer_options,
    default_model_sampling,
    model_options,
    open_model,
    sampling_options,
    sampling_params,
    template_kwargs_option,
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
      ggpy run -m ./Qwen3-0.6B --template-kwargs '{"enable_thinking": false}' -p 你好
      ggpy run -m model.gguf --raw -p "def fib(n):" -n 64
      ggpy run -m model.gguf --prompt-cache talk.state -f long.txt
      ggpy run -m model.gguf --num-beams 4 -n 100 -p "Translate: 你好"
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
@template_kwargs_option
@click.option(
    "--prompt-cache", type=FILE_NAME, metavar="FILE",
    help="Go on from the evaluated state in this file, if it is there, and save it afterwards: a prompt that begins"
    " alike is not evaluated again.",
)  # fmt: skip
@click.option(
    "--num-beams", type=click.IntRange(1, 1024), default=1, metavar="N",
    help="Search for the likeliest answer, following N at a time; it is shown when it is whole.",
)  # fmt: skip
@answer_options
@sampling_options
@click.option(
    "--json-schema", type=FILE_NAME, metavar="FILE", help="The answer is JSON that follows the schema in this file."
)
@click.option(
    "--grammar", type=FILE_NAME, metavar="FILE", help="The answer follows the grammar in this file: GBNF or Lark."
)
@click.option("-v", "--verbose", is_flag=True, help="Say more about the model and the run.")
def run(
    model_options: dict[str, Any],
    sampling: dict[str, Any],
    prompt: str | None,
    prompt_file: str | None,
    system: str | None,
    raw: bool,
    template_kwargs: dict[str, Any] | None,
    prompt_cache: str | None,
    num_beams: int,
    answering: dict[str, Any],
    json_schema: str | None,
    grammar: str | None,
    verbose: bool,
) -> int:
    """Answer a prompt: the text goes to stdout, timing and notes to stderr.

    A model with a chat template answers as an assistant; other models, and --raw, continue the text.
    """
    model = model_options["model"]
    # What the user may have got wrong is said before anything is loaded.
    params = sampling_params(sampling if model else default_model_sampling(sampling))
    text = _prompt_text(prompt, prompt_file)
    params = _structured(params, json_schema, grammar)
    if num_beams > 1:
        _check_beams(sampling | answering | {"json_schema": json_schema, "grammar": grammar})
    for option, value in (
        ("-s/--system", system), ("--template-kwargs", template_kwargs), ("--chat-template", answering["chat_template"])
    ):  # fmt: skip
        if raw and value is not None:
            raise GGPYError(
                f"--raw completes the prompt as it stands, so {option} has no place; leave one of them out."
            )
    if not model and not raw and system is None:
        from ggpy.hub.default_model import DEFAULT

        system = DEFAULT.system
    started = time.perf_counter()
    with open_model(model_options | answering, num_beams) as llm:
        if prompt_cache is not None:
            _load_state(llm, prompt_cache)
        prompt_ids = _prompt_ids(llm, text, system, raw, template_kwargs)
        if verbose:
            _describe(llm, None if num_beams > 1 else params, len(prompt_ids), time.perf_counter() - started)
        status = _search(llm, prompt_ids, params, num_beams) if num_beams > 1 else _answer(llm, prompt_ids, params)
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


def _structured(params: SamplingParams, json_schema: str | None, grammar: str | None) -> SamplingParams:
    """The parameters, with the form that an answer has to have. Raises GGPYError."""
    from dataclasses import replace

    from ggpy.cli.terminal import read_text
    from ggpy.sampling.structured import StructuredOutputsParams

    if json_schema is not None and grammar is not None:
        raise GGPYError("--json-schema and --grammar both give the answer's form; leave one of them out.")
    if json_schema is not None:
        return replace(params, structured_outputs=StructuredOutputsParams(json=read_text(json_schema)))
    if grammar is not None:
        return replace(params, structured_outputs=StructuredOutputsParams(grammar=read_text(grammar)))
    return params


def _prompt_ids(
    llm: LLM, text: str, system: str | None, raw: bool, template_kwargs: dict[str, Any] | None
) -> list[int]:
    if raw or (llm.template is None and system is None and template_kwargs is None):
        return llm.tokenize(text, add_special=True, parse_special=True)
    messages = [{"role": "system", "content": system}] if system is not None else []
    messages = [*messages, {"role": "user", "content": text}]
    return llm.tokenize_chat(llm.render_chat(messages, template_kwargs=template_kwargs))


def _check_beams(sampling: dict[str, Any]) -> None:
    """Refuse options that a beam search, which draws no tokens, would not follow."""
    from ggpy.cli.options import SAMPLING_NAMES

    options = {parameter: option for option, parameter in SAMPLING_NAMES.items()}
    options |= {"speculative": "spec", "draft_model": "draft", "n_keep": "keep"}
    followed = ("max_tokens", "ignore_eos", "chat_template")
    given = [name for name, value in sampling.items() if value and name not in followed]  # 0 turns a choice off
    if given:
        named = options.get(given[0], given[0].replace("_", "-"))
        raise GGPYError(
            f"--num-beams looks for the likeliest text and draws no tokens, so --{named} has no place; leave one of"
            " them out."
        )


def _search(llm: LLM, prompt_ids: list[int], params: SamplingParams, num_beams: int) -> int:
    """Show the best text of a beam search on stdout; the exit status."""
    from ggpy.cli.interrupts import INTERRUPTED, raise_interrupts
    from ggpy.cli.terminal import note, show
    from ggpy.engine.beam_search import BeamSearchParams

    max_tokens = params.max_tokens or llm.n_ctx  # at most what the context has room for
    started = time.perf_counter()
    try:
        raise_interrupts()
        searched = BeamSearchParams(num_beams, max_tokens, ignore_eos=params.ignore_eos)
        best = llm.beam_search([prompt_ids], searched)[0].sequences[0]
    except KeyboardInterrupt:
        note("stopped before the search ended")
        return INTERRUPTED
    show(best.output_text + ("" if best.output_text.endswith("\n") else "\n"))
    n, seconds = len(best.token_ids), time.perf_counter() - started
    note(f"{num_beams} beams · {n} tok in {seconds:.2f} s · log-probability {best.cum_logprob:.3f}")
    return 0


def _answer(llm: LLM, prompt_ids: list[int], params: SamplingParams) -> int:
    """Stream the answer to stdout; the exit status."""
    from ggpy.cli.interrupts import INTERRUPTED, raise_interrupts
    from ggpy.cli.terminal import note, show, timing_line

    request = llm.request(prompt_ids, params)
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


def _describe(llm: LLM, params: SamplingParams | None, n_prompt: int, seconds: float) -> None:
    from ggpy.cli.options import described
    from ggpy.cli.terminal import note

    hparams = llm.runtime.hparams
    note(
        f"{llm.path}: {hparams.arch}, {hparams.n_layer} layers of {hparams.n_embd}, "
        f"vocabulary {llm.n_vocab}, opened in {seconds:.2f} s"
    )
    where = f"{llm.runtime.n_threads} threads" if llm.runtime.device == "cpu" else llm.runtime.device
    note(f"{where}, context {llm.n_ctx} tokens, prompt {n_prompt} tokens")
    if params is None:
        return
    params = params.resolved(llm.sampling_defaults)
    note(f"sampling: {described(params)}")
