"""`ggpy pull`: fetch a model on purpose."""

from __future__ import annotations

import click

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
    from ggpy.cli.find_model import progress_bar
    from ggpy.cli.interrupts import interrupts_raised
    from ggpy.cli.terminal import note
    from ggpy.hub.default_model import named_model
    from ggpy.hub.find_model import fetch_known
    from ggpy.hub.find_model import pull as pull_from_hub
    from ggpy.hub.hub import parse

    if name is None:
        for model in KNOWN.values():
            where = f"in {model.path}" if model.here else "not fetched"
            click.echo(f"{model.name}  {model.size / 1e6:.0f} MB  {model.licence}  {where}")
        return
    with interrupts_raised():
        if spec := parse(name):
            path = pull_from_hub(spec, note, quiet=False)
            if path.is_dir():
                note(f"a checkpoint folder: run it with ggpy run -m {spec}, which converts it once; or ggpy convert")
        else:
            known = named_model(name)
            if known.here:
                note(f"{known.name} is in {known.path}")
            path = fetch_known(known, note, progress_bar)
    click.echo(path)
