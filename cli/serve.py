"""`ggpy serve`: models over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ggpy.cli.options import (
    FILE_NAME,
    PLACING,
    FileName,
    answer_options,
    check_cluster,
    check_placing,
    ray_options,
    together,
)

if TYPE_CHECKING:
    from ggpy.llm import LLM
    from ggpy.server.models import ModelSpec

MODEL_HELP = (
    "GGUF file; checkpoint folder; a name that `ggpy pull` lists; hf:user/repo or modelscope:user/repo; NAME=… to be "
    "offered by that name. May be repeated. Default: a small chat model."
)


class _Models(FileName):
    name = "model"
    envvar_list_splitter = ";"  # names have blanks and colons


class _Duration(click.ParamType):
    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float | None:
        from ggpy.server.config import seconds

        try:
            return seconds(str(value))
        except ValueError:
            self.fail(f"{value!r} is no duration, such as 90s, 5m, 2h, or -1 for ever.", param, ctx)


def _read_config(ctx: click.Context, param: click.Parameter, path: str | None) -> dict[str, Any]:
    """Take the file's values for defaults of the other options; returns its models."""
    if path is None:
        return {}
    from ggpy.errors import GGPYError, quoted, shown
    from ggpy.server.config import read_config

    values = read_config(path)
    models = values.pop("models", {})
    options = {(param.name or "").replace("_", "-"): param for param in ctx.command.params}
    options |= {name.lstrip("-"): param for param in ctx.command.params for name in param.opts if name.startswith("--")}
    defaults = {}
    for key, value in values.items():
        option = options.get(key.replace("_", "-"))
        if option is None or option.name in ("config", "models"):
            raise GGPYError(f"{shown(path)}: {quoted(key, 60)} is no option of ggpy serve.")
        defaults[option.name] = value
    ctx.default_map = {**(ctx.default_map or {}), **defaults}
    return {"where": path, "models": models}


_model_options = together(
    "model_options",
    click.option("-m", "--model", "models", type=_Models(), multiple=True, metavar="MODEL", help=MODEL_HELP),
    *PLACING,
    click.option(
        "--parallel",
        "n_parallel",
        type=click.IntRange(1, 512),
        default=4,
        show_default=True,
        metavar="N",
        help="Requests to a model that are answered together; they share its cache.",
    ),
)

_models_options = together(
    "keeping",
    click.option(
        "--max-models", type=click.IntRange(min=1), metavar="N", help="Models in memory at a time.  [default: as fit]"
    ),
    click.option(
        "--keep-alive",
        type=_Duration(),
        default="-1",
        metavar="TIME",
        help="How long an idle model stays in memory: 90s, 5m, 2h; -1: for ever.  [default: -1]",
    ),
)

_binding_options = together(
    "binding",
    click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on."),
    click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port; 0: a free one."),
    click.option("--uds", type=FILE_NAME, metavar="PATH", help="A UNIX socket to listen on instead."),
    click.option("--tls-cert", "ssl_certfile", type=FILE_NAME, metavar="FILE", help="Certificate, PEM, for https."),
    click.option("--tls-key", "ssl_keyfile", type=FILE_NAME, metavar="FILE", help="Its key."),
    click.option(
        "--drain",
        type=click.IntRange(0, 86400),
        default=30,
        show_default=True,
        metavar="SECONDS",
        help="Told to stop (SIGTERM), how long running requests have to end.",
    ),
)

_limit_options = together(
    "limits",
    click.option("--api-key", "api_keys", multiple=True, metavar="KEY", help="Ask for this key. May be repeated."),
    click.option("--api-key-file", type=FILE_NAME, metavar="FILE", help="Keys, one a line."),
    click.option(
        "--max-queue",
        type=click.IntRange(min=0),
        default=256,
        show_default=True,
        metavar="N",
        help="Requests that may wait for a model; more get the status 429.",
    ),
    click.option("--max-prompt-tokens", type=click.IntRange(min=1), metavar="N", help="Longest prompt; more: 400."),
    click.option(
        "--max-body",
        type=click.IntRange(1, 1 << 40),
        default=32 << 20,
        metavar="BYTES",
        help="Largest request; more gets the status 413.  [default: 32 MiB]",
    ),
    click.option(
        "--timeout",
        type=click.FloatRange(min=0, min_open=True),
        default=60,
        show_default=True,
        metavar="SECONDS",
        help="How long a client may take to send its request, or to read a piece of its answer.",
    ),
    click.option("--cors-origin", "cors_origins", multiple=True, metavar="ORIGIN", help="Let its pages ask; *: all."),
    click.option("--log-requests", is_flag=True, help="A line for each request."),
    click.option("--log-json", is_flag=True, help="The log as JSON lines, one for each request as well."),
)


@click.command(
    epilog="""
    \b
    Examples:
      ggpy serve
      ggpy serve -m model.gguf --port 8000
      ggpy serve -m small=qwen.gguf -m hf:user/repo --keep-alive 10m
      GGPY_SERVE_PORT=8000 ggpy serve --config serve.toml
    """,
)
@_model_options
@answer_options
@_models_options
@_binding_options
@_limit_options
@ray_options
@click.option(
    "--config",
    type=FILE_NAME,
    is_eager=True,
    callback=_read_config,
    metavar="FILE",
    help="TOML: these options, and a table [models.NAME] for each model.",
)
def serve(
    model_options: dict[str, Any],
    answering: dict[str, Any],
    keeping: dict[str, Any],
    binding: dict[str, Any],
    limits: dict[str, Any],
    cluster: dict[str, Any],
    config: dict[str, Any],
) -> None:
    """Answer clients over HTTP, by the APIs of OpenAI, Anthropic, Ollama and llama-server, at http://127.0.0.1:8080.

    A model is loaded when it is first asked for; a single one at once. Every option is also an environment variable,
    as GGPY_SERVE_MAX_QUEUE for --max-queue; several models are separated by semicolons.
    """
    check_placing(model_options)
    check_cluster(cluster)
    if cluster["ray"] and keeping != {"max_models": None, "keep_alive": None}:
        raise click.UsageError(
            "--max-models and --keep-alive do not go with --ray: each model has replicas of its own, which stay."
        )
    if cluster["ray"] and not limits["max_queue"]:
        raise click.UsageError("--max-queue 0 does not go with --ray: requests wait until a replica takes them.")
    _need_packages()
    from ggpy.server import config as models_of
    from ggpy.server.app import create_app
    from ggpy.server.models import Models
    from ggpy.server.run import Binding, log_to_stderr, run
    from ggpy.server.service import Service
    from ggpy.server.settings import Settings, read_keys

    names = model_options.pop("models")
    model_options |= answering
    specs = models_of.specs_of_names(names, model_options)
    if config:
        specs += models_of.specs_of_config(config["models"], model_options, config["where"])
    specs = models_of.checked_specs(specs or [_default_spec(model_options)])
    keys, key_file = [*limits.pop("api_keys")], limits.pop("api_key_file")
    keys += read_keys(key_file) if key_file else []
    log_requests = limits.pop("log_requests")
    place = Binding(**binding)
    by_names = place.is_local and place.uds is None and not keys
    settings = Settings(
        tuple(keys), local_names_alone=by_names, preload=len(specs) == 1 and not cluster["ray"], **limits
    )
    log_to_stderr(settings.log_json, log_requests or settings.log_json)
    if not place.is_local and not keys:
        from ggpy.cli.terminal import note

        note(f"{place.host} is reached by other machines, and no key is asked for: anyone there can use the models")

    if not cluster["ray"]:
        run(create_app(Service(Models(specs, _open, _fits, **keeping), settings)), place)
        return
    from ggpy.cli.interrupts import interrupts_raised
    from ggpy.cluster.connect import connect

    connect("ray.serve")
    from ggpy.cluster.deploy import deployed
    from ggpy.cluster.service import RayService

    with (
        interrupts_raised(),
        deployed(specs, _open, settings, cluster["replicas"] or (1, None), place.drain) as handles,
    ):
        run(create_app(RayService(specs, handles, settings)), place)


for option in serve.params:
    name = next(name for name in option.opts if name.startswith("--"))
    option.envvar = f"GGPY_SERVE_{name[2:].replace('-', '_').upper()}"


def _open(spec: ModelSpec) -> LLM:
    from ggpy.cli.find_model import find_model
    from ggpy.cli.terminal import note
    from ggpy.llm import LLM

    options = dict(spec.options)
    return LLM(find_model(spec.source, options.pop("file_type", None)), notify=note, **options)


def _fits(spec: ModelSpec) -> bool:
    from ggpy.server.fitting import fits

    return fits(spec.source, spec.options.get("file_type"), spec.options)


def _default_spec(options: dict[str, Any]) -> ModelSpec:
    from ggpy.hub.default_model import DEFAULT
    from ggpy.server.models import ModelSpec

    sampling = {"temperature": DEFAULT.temperature, "top_p": DEFAULT.top_p}
    return ModelSpec(DEFAULT.name, None, options, sampling)


def _need_packages() -> None:
    from importlib.util import find_spec

    from ggpy.errors import GGPYError

    missing = [name for name in ("starlette", "uvicorn", "prometheus_client") if find_spec(name) is None]
    if missing:
        raise GGPYError(f"The server needs the package {missing[0]}: pip install 'ggpy[serve]'.")
