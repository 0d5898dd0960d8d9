"""`edgellm bundle`: updates of bundles that are on devices already."""

from __future__ import annotations

from pathlib import Path

import click

from edgellm.cli._options import readable


@click.group(short_help="Update bundles: ship what changed, apply it, roll it back.")
def command() -> None:
    """Update bundles that are on devices already; docs/updates.md says how it all goes together."""


@command.command(short_help="Make the update from one bundle to another.")
@click.argument("old", type=click.Path(path_type=Path))
@click.argument("new", type=click.Path(path_type=Path))
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="The update to make.")
def diff(old: Path, new: Path, output: Path) -> None:
    """Make the file that turns the bundle OLD, which devices have, into NEW; it holds what OLD has not."""
    from rich.console import Console

    from edgellm import update_diff

    with Console(stderr=True).status("comparing"):
        made = update_diff.diff(old, new, output)
    share = made.size / made.total
    click.echo(f"{output}: {readable(made.size)}, {share:.1%} of the new bundle's {readable(made.total)}")


@command.command(short_help="Apply an update to a bundle.")
@click.argument("update", type=click.Path(path_type=Path))
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option("--key", type=click.Path(path_type=Path), metavar="PEM", help="Only if the new bundle is signed; the public key.")
def apply(update: Path, bundle: Path, key: Path | None) -> None:
    """Make BUNDLE what UPDATE says, at one stroke; what it was is kept as BUNDLE.previous.

    Whatever goes wrong, and whenever, BUNDLE is the old one whole or the new one whole.
    """
    from rich.console import Console

    from edgellm import update_apply

    with Console(stderr=True).status("building the new bundle"):
        updated = update_apply.apply(update, bundle, key=key)
    signed = "" if key is None else ", signature as by the key"
    click.echo(f"{bundle}: up to date, {len(updated.files)} files, {readable(updated.size())}, all as converted{signed}")


@command.command(short_help="Undo the last update.")
@click.argument("bundle", type=click.Path(path_type=Path))
def rollback(bundle: Path) -> None:
    """Exchange BUNDLE and BUNDLE.previous, which the last update left; twice is as it was."""
    from edgellm import update_apply

    update_apply.roll_back(bundle)
    click.echo(f"{bundle}: rolled back; what it was is {bundle}.previous")
