"""The options that several commands share, and what they make: a model, sampling parameters."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any

import click

from ggpy.errors import quoted

if TYPE_CHECKING:
    from ggpy.llm import LLM
    from ggpy.sampling.sampling_params import SamplingParams

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

MODEL_HELP = (
    "GGUF file; checkpoint folder, which is converted once and kept; a name that `ggpy pull` lists; hf:user/repo or "
    "modelscope:user/repo. Default: a small chat model."
)

#: The types of `quant.recipes.FILE_TYPES`, which imports more than a help text is worth.
FILE_TYPES = ("f32", "f16", "bf16", "q8_0", "q4_0", "q4_1", "q5_0", "q5_1")


def together(argument: str, *options: Decorator) -> Decorator:
    """Several options as one decorator, in the order of the help text. The command gets their values as one dictionary,
    as the argument of this name."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def collecting(**values: Any) -> Any:
            collected = {name: values.pop(name) for name in names}
            return command(**{argument: collected}, **values)

        return every_option(collecting)

    def every_option(command: Callable[..., Any]) -> Callable[..., Any]:
        for option in reversed(options):
            command = option(command)
        return command

    names = [option.name for option in click.command(every_option(lambda: None)).params]
    return decorate


class FileName(click.ParamType):
    """The name of something to read or write. An empty one, as from an unset shell variable, is refused: it would be
    taken for the current folder."""

    name = "file"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value:
            self.fail("it is empty; give a name.", param, ctx)
        if "\0" in value:
            self.fail("it holds a NUL character, which no name can.", param, ctx)
        return str(value)


FILE_NAME = FileName()


class JsonObject(click.ParamType):
    """A JSON object on the command line."""

    name = "json"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> dict[str, Any]:
        import json

        try:
            found = json.loads(value)
        except (ValueError, RecursionError) as error:
            self.fail(f"it is no JSON: {str(error) or 'nested too deeply'}.", param, ctx)
        if not isinstance(found, dict):
            self.fail('it must be an object, such as {"enable_thinking": false}.', param, ctx)
        return found


# Of the commands that take a model. It has no short form: -t is threads in `run`, `chat` and `bench`, as in llama.cpp.
type_option = click.option(
    "--type",
    "file_type",
    type=click.Choice(FILE_TYPES, case_sensitive=False),
    help="Type that a checkpoint folder given as MODEL is converted to.  [default: q8_0]",
)

# Who drafts tokens; parameters of LLM.
DRAFTING: tuple[Decorator, ...] = (
    click.option(
        "--spec",
        "speculative",
        type=click.Choice(["ngram", "mtp"]),
        help="Foresee tokens, from what the text says earlier (ngram) or by the model's own prediction head (mtp): the"
        " same answers, sooner.",
    ),
    click.option(
        "--draft",
        "--model-draft",
        "draft_model",
        type=FILE_NAME,
        metavar="MODEL",
        help="A second, much smaller model of the same vocabulary foresees tokens: the same answers, sooner.",
    ),
)

# Of the commands that answer; parameters of LLM, as those of `model_options`.
answer_options = together(
    "answering",
    *DRAFTING,
    click.option(
        "--chat-template",
        metavar="NAME|FILE",
        help="Another chat template than the model's: one that its file has by this name, chatml, or a Jinja file.",
    ),
    click.option(
        "--context-shift",
        is_flag=True,
        help="An answer that has filled the context goes on without the oldest half of what follows the first message.",
    ),
    click.option(
        "--keep", "n_keep", type=click.IntRange(min=0), metavar="N", help="With that: the prompt's first N tokens stay."
    ),
)

# Of the commands that make a prompt of a conversation.
template_kwargs_option = click.option(
    "--template-kwargs",
    type=JsonObject(),
    metavar="JSON",
    help="More values for the chat template: '{\"enable_thinking\": false}'.",
)

# Parameters of LLM by their names. Cache types are spelt as llama.cpp does.
PLACING: tuple[Decorator, ...] = (
    type_option,
    click.option("-c", "--ctx-size", "n_ctx", type=click.IntRange(min=1), metavar="N", help="Context in tokens."),
    click.option("-t", "--threads", "n_threads", type=click.IntRange(min=1), metavar="N", help="CPU threads."),
    click.option(
        "--device", metavar="NAME", default="cpu", show_default=True, help="cpu, cuda, cuda:1, cuda:0,1 or auto."
    ),
    click.option(
        "-ngl",
        "--gpu-layers",
        "--n-gpu-layers",
        "n_gpu_layers",
        metavar="N",
        default="auto",
        show_default=True,
        help="Of the last layers, how many run on the GPU, the CPU running the others; auto: as many as fit; all.",
    ),
    click.option(
        "-sm",
        "--split-mode",
        type=click.Choice(["layer", "row"]),
        default="layer",
        show_default=True,
        help="What several GPUs share: the layers, or the rows of every matrix, which is faster for one user.",
    ),
    click.option(
        "--batch-invariant",
        is_flag=True,
        help="On a GPU too, no answer depends on what is evaluated with it; slower with many.",
    ),
    click.option(
        "-ctk",
        "--cache-type-k",
        type=click.Choice(["f32", "f16", "bf16", "q8_0"]),
        help="Type of cached keys; on a GPU f16 or q8_0. Default: f16, on the CPU f32 for a float32 model.",
    ),
    click.option(
        "-ctv",
        "--cache-type-v",
        type=click.Choice(["f32", "f16", "bf16", "q8_0"]),
        help="Type of cached values, likewise.",
    ),
    click.option(
        "--kv-memory",
        metavar="BYTES|SHARE",
        help="Most memory for keys, values and other state, from which the context is chosen without -c: 2G, or 50% of "
        "what all else leaves of 95% of the free memory.  [default: 100%]",
    ),
    click.option(
        "--cache-ram",
        metavar="BYTES",
        help="Host memory for conversations whose place another takes: 1G, or 0.  [default: a tenth of what weights "
        "and working memory leave, at most 2G; with a GPU 0]",
    ),
)


class _Replicas(click.ParamType):
    name = "replicas"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> tuple[int, int | None]:
        least, colon, most = str(value).partition(":")
        if not all(n.isascii() and n.isdecimal() and len(n) < 7 for n in (least, most or "1")):
            words = "is no number of replicas, such as 2, 1:4, or 1: for as many as there is room for."
            self.fail(f"{quoted(str(value), 40)} {words}")
        found = int(least), int(most) if most else None if colon else int(least)
        if not 1 <= found[0] <= (found[1] or found[0]):
            words = "begins with less than 1, or ends with less than it begins with."
            self.fail(f"{quoted(str(value), 40)} {words}", param, ctx)
        return found


# Of the commands that answer on several machines.
ray_options = together(
    "cluster",
    click.option("--ray", is_flag=True, help="Run replicas of each model on the machines of the Ray cluster."),
    click.option(
        "--ray-replicas",
        "replicas",
        type=_Replicas(),
        metavar="MIN:MAX",
        help="With that: the fewest and the most replicas of a model, or one number for both; more are started when "
        "all are busy.  [default: 1 to as many as there is room for]",
    ),
)

# What `open_model` takes: "model", and those.
model_options = together(
    "model_options", click.option("-m", "--model", type=FILE_NAME, metavar="MODEL", help=MODEL_HELP), *PLACING
)

# Option name → parameter of SamplingParams; also what `/set` understands in a chat.
SAMPLING_NAMES = {
    "n": "max_tokens",
    "temp": "temperature",
    "top-k": "top_k",
    "top-p": "top_p",
    "min-p": "min_p",
    "typical-p": "typical_p",
    "top-nsigma": "top_n_sigma",
    "xtc-probability": "xtc_probability",
    "xtc-threshold": "xtc_threshold",
    "dynatemp-range": "dynatemp_range",
    "dynatemp-exp": "dynatemp_exponent",
    "mirostat": "mirostat",
    "mirostat-ent": "mirostat_tau",
    "mirostat-lr": "mirostat_eta",
    "repeat-penalty": "repetition_penalty",
    "repeat-last-n": "repeat_last_n",
    "presence-penalty": "presence_penalty",
    "frequency-penalty": "frequency_penalty",
    "dry-multiplier": "dry_multiplier",
    "dry-base": "dry_base",
    "dry-allowed-length": "dry_allowed_length",
    "dry-penalty-last-n": "dry_penalty_last_n",
    "samplers": "samplers",
    "min-tokens": "min_tokens",
    "seed": "seed",
}

# Of these, the ones that are shown even where nobody changed them.
_SHOWN = ("temp", "top-k", "top-p", "min-p", "repeat-penalty", "seed")

# Ranges are checked by SamplingParams, which knows them.
sampling_options = together(
    "sampling",
    click.option("-n", "--predict", "max_tokens", type=int, metavar="N", help="Most tokens to generate."),
    click.option("--temp", "temperature", type=float, metavar="X", help="Temperature; 0 always takes the likeliest."),
    click.option("--top-k", type=int, metavar="N", help="Only the N likeliest tokens; 0: all."),
    click.option("--top-p", type=float, metavar="X", help="Only the likeliest tokens up to this mass; 1: all."),
    click.option("--min-p", type=float, metavar="X", help="Only tokens this likely relative to the likeliest."),
    click.option("--typical-p", type=float, metavar="X", help="Locally typical sampling; 1: off."),
    click.option(
        "--top-nsigma",
        "--top-n-sigma",
        "top_n_sigma",
        type=float,
        metavar="X",
        help="Only logits within X standard deviations of the largest; -1: all.",
    ),
    click.option(
        "--xtc-probability", type=float, metavar="X", help="How often the likeliest tokens are left out; 0: never."
    ),
    click.option("--xtc-threshold", type=float, metavar="X", help="How likely a token is that XTC may leave out."),
    click.option(
        "--dynatemp-range", type=float, metavar="X", help="The entropy moves the temperature by up to X; 0: off."
    ),
    click.option("--dynatemp-exp", "dynatemp_exponent", type=float, metavar="X", help="Exponent of that entropy."),
    click.option("--mirostat", type=int, metavar="N", help="Version 1 or 2 of Mirostat; 0: off."),
    click.option("--mirostat-ent", "mirostat_tau", type=float, metavar="X", help="Mirostat's target, tau, in bits."),
    click.option("--mirostat-lr", "mirostat_eta", type=float, metavar="X", help="Mirostat's learning rate, eta."),
    click.option(
        "--repeat-penalty", "repetition_penalty", type=float, metavar="X", help="Penalty for repeats; 1: off."
    ),
    click.option("--repeat-last-n", type=int, metavar="N", help="Tokens that penalties look back; -1: all."),
    click.option("--presence-penalty", type=float, metavar="X", help="Off a token's logit once it was used."),
    click.option("--frequency-penalty", type=float, metavar="X", help="Off a token's logit for each use."),
    click.option("--dry-multiplier", type=float, metavar="X", help="Penalty for prolonged repetitions; 0: off."),
    click.option("--dry-base", type=float, metavar="X", help="Factor of that penalty for each further token."),
    click.option("--dry-allowed-length", type=int, metavar="N", help="Repetitions as long as that are not penalized."),
    click.option("--dry-penalty-last-n", type=int, metavar="N", help="Tokens that DRY looks back; -1: all."),
    click.option(
        "--dry-sequence-breaker",
        multiple=True,
        metavar="TEXT",
        help="Text that no repetition reaches across; none: nothing is. May be repeated.",
    ),
    click.option("--samplers", metavar="NAMES", help="The stages in their order, as top_k;top_p;temperature."),
    click.option("--min-tokens", type=int, default=0, metavar="N", help="No end before so many tokens."),
    click.option("--bad-words", multiple=True, metavar="TEXT", help="Never write this. May be repeated."),
    click.option("--special", is_flag=True, help="Show control tokens."),
    click.option("--seed", type=int, metavar="N", help="The same seed gives the same text; -1: a new one."),
    click.option("--stop", multiple=True, metavar="TEXT", help="End the answer at this text. May be repeated."),
    click.option("--ignore-eos", is_flag=True, help="Never end by an end token."),
)


def sampling_params(options: dict[str, Any]) -> SamplingParams:
    """SamplingParams from the options that `sampling_options` collected. Raises GGPYError on a value out of range."""
    from ggpy.sampling.sampling_params import SamplingParams

    options = dict(options)
    if options.get("max_tokens") == -1:  # "no limit", as hands know it
        options["max_tokens"] = None
    breakers = options.pop("dry_sequence_breaker", ())
    if breakers:
        options["dry_sequence_breakers"] = () if breakers == ("none",) else breakers
    options["skip_special_tokens"] = not options.pop("special", False)
    return SamplingParams(**options)


def described(params: SamplingParams) -> str:
    """How tokens are chosen, by the options' names: the common ones, and those that are not as by default."""
    from ggpy.sampling.sampling_params import DEFAULTS

    words = []
    for name, field in SAMPLING_NAMES.items():
        value = getattr(params, field)
        if value is None or not (name in _SHOWN or value != DEFAULTS.get(field, 0)):
            continue
        shown = f"{value:g}" if isinstance(value, float) else ";".join(value) if isinstance(value, tuple) else value
        words.append(f"{name}={shown}")
    return " ".join(words)


def default_model_sampling(options: dict[str, Any]) -> dict[str, Any]:
    """The options that `sampling_options` collected, with the default model's own values where the user gave none."""
    from ggpy.hub.default_model import DEFAULT

    own = {"temperature": DEFAULT.temperature, "top_p": DEFAULT.top_p}
    return {**options, **{name: value for name, value in own.items() if options.get(name) is None}}


def open_model(model_options: dict[str, Any], n_parallel: int = 1) -> LLM:
    """The model that `model_options` collected, fetched or converted first where it has to be, for so many sequences at
    a time."""
    from ggpy.cli.find_model import find_model
    from ggpy.cli.terminal import note
    from ggpy.llm import LLM

    options = dict(model_options)
    check_placing(options)  # what the user may have got wrong comes before anything is fetched
    path = find_model(options.pop("model"), file_type := options.pop("file_type"))
    if options.get("draft_model") is not None:
        options["draft_model"] = find_model(options["draft_model"], file_type)
    return LLM(path, n_parallel=n_parallel, notify=note, **options)


def check_cluster(cluster: dict[str, Any]) -> None:
    """Check what `ray_options` collected."""
    if cluster["replicas"] is not None and not cluster["ray"]:
        raise click.UsageError("--ray-replicas is for a Ray cluster; add --ray, or leave it out.")


def check_placing(options: dict[str, Any]) -> None:
    """Check the options whose texts say where a model runs, and in which memory. Raises GGPYError."""
    from ggpy.runtime.load import find_cache_ram, find_device, find_gpu_layers, find_kv_memory

    find_device(options["device"])
    find_gpu_layers(options["n_gpu_layers"])
    find_kv_memory(options["kv_memory"])
    find_cache_ram(options["cache_ram"])
