"""`edgellm sign`: a bundle gets a signature that devices can check."""

from __future__ import annotations

from pathlib import Path

import click

from edgellm.errors import UsageError


@click.command(short_help="Sign a bundle with a private key.")
@click.argument("bundle", type=click.Path(path_type=Path))
@click.option(
    "--key",
    required=True,
    type=click.Path(path_type=Path),
    metavar="PEM",
    help="The private key, on the curve P-256, P-384 or P-521; a password is asked for where it has one.",
)
def command(bundle: Path, key: Path) -> None:
    """Sign every file of BUNDLE: model.sig in its folder, as OpenSSF model signing writes it.

    'edgellm verify --key', 'edgellm bundle apply --key' and edgellm.load(require_signature=) check it with the public key.
    """
    from edgellm.signing import sign

    made = sign(bundle, key, password=_password(key))
    click.echo(f"{made}: signed")


def _password(key: Path) -> str | None:
    try:
        encrypted = b"ENCRYPTED" in key.read_bytes()
    except OSError as error:
        raise UsageError(f"the key cannot be read: {error.strerror or error}", where=key, fix="check the path") from error
    return click.prompt(f"password of {key}", hide_input=True, err=True) if encrypted else None
