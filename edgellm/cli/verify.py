"""`edgellm verify`: is every byte of a bundle the one that was converted?"""

from __future__ import annotations

from pathlib import Path

import click

from edgellm.cli._options import readable


@click.command(short_help="Check that a bundle is whole.")
@click.argument("bundle", type=click.Path(path_type=Path))
def command(bundle: Path) -> None:
    """Hash every file of BUNDLE and compare with what was converted."""
    from edgellm.bundle import Bundle

    opened = Bundle.open(bundle)
    opened.verify()
    click.echo(f"{bundle}: {len(opened.files)} files, {readable(opened.size())}, all as converted")
