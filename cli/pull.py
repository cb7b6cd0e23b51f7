"""`ggpy pull`: fetch a model on purpose."""

from __future__ import annotations

import click

from ggpy.cli.find_model import fetch_known, named_model
from ggpy.cli.options import FILE_NAME
from ggpy.hub.default_model import KNOWN


@click.command(
    epilog="""
    \b
    Examples:
      ggpy pull
      ggpy pull SmolLM2-135M-Instruct
      ggpy pull hf:user/repo/model-q4_0.gguf
      ggpy pull modelscope:user/repo
    """
)
@click.argument("name", type=FILE_NAME, required=False)
def pull(name: str | None) -> None:
    """Fetch the model NAME into the cache; without NAME, list the models known by name.

    hf:user/repo[/file] and modelscope:user/repo[/file] fetch from the hubs, with the extra `hub` installed.
    """
    from ggpy.cli.interrupts import raise_interrupts
    from ggpy.cli.terminal import note
    from ggpy.hub import hub

    raise_interrupts()
    if name is None:
        for model in KNOWN.values():
            where = f"in {model.path}" if model.here else "not fetched"
            click.echo(f"{model.name}  {model.size / 1e6:.0f} MB  {model.licence}  {where}")
        return
    spec = hub.parse(name)
    if spec is not None:
        path = hub.pull(spec)
        note(f"fetched {spec} to {path}")
        if path.is_dir():
            note(f"a checkpoint: convert it with ggpy convert -i {path} -t q4_0 -o {path.name}.gguf")
    else:
        path = fetch_known(named_model(name))
    click.echo(path)
