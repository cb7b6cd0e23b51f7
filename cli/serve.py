"""`ggpy serve`: models over HTTP."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from ggpy.cli.options import FILE_NAME, PLACING, check_placing, together

if TYPE_CHECKING:
    from ggpy.server.models import ModelSpec

MODEL_HELP = (
    "GGUF file; checkpoint folder; a name that `ggpy pull` lists; hf:user/repo or modelscope:user/repo; NAME=… to be "
    "offered by that name. May be repeated. Default: a small chat model."
)

_model_options = together(
    "model_options",
    click.option("-m", "--model", "models", type=FILE_NAME, multiple=True, metavar="MODEL", help=MODEL_HELP),
    *PLACING,
)


@click.command(
    context_settings={"auto_envvar_prefix": "GGPY_SERVE"},
    epilog="""
    \b
    Examples:
      ggpy serve
      ggpy serve -m model.gguf --port 8000
      ggpy serve -m small=qwen.gguf -m hf:user/repo
    """,
)
@_model_options
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="Port; 0: a free one.")
@click.option(
    "--parallel",
    type=click.IntRange(1, 512),
    default=4,
    show_default=True,
    metavar="N",
    help="Requests to a model that are answered together, each with a context of its own.",
)
def serve(model_options: dict[str, Any], host: str, port: int, parallel: int) -> None:
    """Answer clients over HTTP: OpenAI's API, at http://127.0.0.1:8080/v1."""
    check_placing(model_options)
    from ggpy.cli.find_model import find_model
    from ggpy.cli.terminal import note
    from ggpy.llm import LLM
    from ggpy.server.app import create_app
    from ggpy.server.models import Models
    from ggpy.server.run import run
    from ggpy.server.service import Service

    names = model_options.pop("models")
    file_type = model_options.pop("file_type")

    def open_model(spec: ModelSpec) -> LLM:
        return LLM(find_model(spec.source, file_type), n_parallel=parallel, notify=note, **spec.options)

    service = Service(Models(model_specs(names, model_options), open_model))
    run(create_app(service), host, port, note)


def model_specs(names: tuple[str, ...], options: dict[str, Any]) -> list[ModelSpec]:
    """The models that a command line names, by names of their own."""
    from pathlib import PurePath

    from ggpy.hub.default_model import DEFAULT
    from ggpy.server.models import ModelSpec

    if not names:
        return [ModelSpec(DEFAULT.name, None, options)]
    found: dict[str, ModelSpec] = {}
    for given in names:
        name, equals, source = given.partition("=")
        if not equals or "/" in name or not source:
            source = given
            name = given if ":" in given else PurePath(given).name.removesuffix(".gguf")
        if name in found:
            raise click.UsageError(f"Two models are named {name}; name one otherwise: -m NAME={source}.")
        found[name] = ModelSpec(name, source, options)
    return list(found.values())
