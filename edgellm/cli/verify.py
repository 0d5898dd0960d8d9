"""`edgellm verify`: is every byte of a bundle the one that was converted, and did the right one sign it?"""

from __future__ import annotations

from pathlib import Path

import click

from edgellm.cli._options import readable


@click.command(short_help="Check that a bundle is whole, and whose it is.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--key", type=click.Path(path_type=Path), metavar="PEM", help="A public key; the bundle must carry a signature of it."
)
def command(bundle: Path, key: Path | None) -> None:
    """Hash every file of BUNDLE and compare with what was converted, and with what was signed."""
    from edgellm import signature
    from edgellm.bundle import Bundle

    opened = Bundle.open(bundle)
    if key is not None:
        signature.check(opened, key)
    opened.verify()
    signed = "" if key is None else " and signed"
    click.echo(f"{bundle}: {len(opened.files)} files, {readable(opened.size())}, all as converted{signed}")
