"""`ggpy models`: the architectures that run, made from the code."""

from __future__ import annotations

import json

import click


@click.command(
    epilog="""
    \b
    Examples:
      ggpy models
      ggpy models --json
    """
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: a list of classes for each architecture.")
def models(as_json: bool) -> None:
    """List what runs: each architecture as GGUF files name it, and the model classes of checkpoints that convert to
    it."""
    from ggpy.models import architectures

    known = {architecture.name: list(architecture.hf_names) for architecture in architectures()}
    if as_json:
        click.echo(json.dumps(known, indent=2))
        return
    width = max(map(len, known))
    for name, classes in known.items():
        click.echo(f"{name.ljust(width)}  {', '.join(classes)}")
