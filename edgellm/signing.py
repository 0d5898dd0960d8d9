"""Signing a bundle with OpenSSF model signing and a plain private key; `edgellm.signature` checks what this writes.

from edgellm.signing import sign

sign("bundle", "private.pem")
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

from edgellm import signature
from edgellm.bundle import MANIFEST, Bundle
from edgellm.errors import BundleError, UsageError
from edgellm.partial import make_partial, remove_partial, write_error

OPTION = "BUNDLE"
GIT = (".git", ".gitattributes", ".github", ".gitignore")  # which the package leaves out too


def sign(bundle: str | os.PathLike[str], key: str | os.PathLike[str], *, password: str | None = None) -> Path:
    """Sign every file of a bundle. A signature that is there is replaced.

    Args:
        key: file of the private key, PEM, on the curve P-256, P-384 or P-521. It is only read; none is ever made.
        password: of the key, where it has one.

    Returns:
        The signature's path: `model.sig` in the bundle's folder.

    Raises:
        BundleError: the bundle is damaged, has files or links that its manifest knows nothing of, or cannot be written.
        UsageError: the key cannot be used.
    """
    from model_signing import hashing, signing

    opened = Bundle.open(bundle)
    opened.ensure_verified()
    _check_extra(opened)
    target = opened.path / signature.FILE
    secret: Any = None if password is None else password.encode()  # the package says it takes a text, and takes bytes
    try:
        signer = signing.Config().use_elliptic_key_signer(private_key=Path(key), password=secret)
    except OSError as error:
        raise UsageError(f"the key cannot be read: {error.strerror or error}", where=key, fix="check the path") from error
    except (ValueError, TypeError) as error:  # not PEM, another kind of key, a password that is wrong or missing
        raise UsageError(f"the private key cannot be used: {error}", where=key, fix="see docs/updates.md") from error
    signer.set_hashing_config(hashing.Config().set_ignored_paths(paths=[signature.FILE]))
    work = make_partial(opened.path.resolve(), OPTION)
    try:
        signer.sign(opened.path.resolve(), work / signature.FILE)
        (work / signature.FILE).replace(target)
    except OSError as error:
        raise write_error(error, target, OPTION) from error
    finally:
        remove_partial(work)
    return target


def _check_extra(bundle: Bundle) -> None:
    """What is signed is the bundle, and nothing that happens to lie beside it."""
    for file in sorted(bundle.path.rglob("*")):
        name = file.relative_to(bundle.path).as_posix()
        if file.is_symlink():
            raise BundleError("a link cannot be signed", where=file, fix="put the file itself there")
        known = name in bundle.files or name in (MANIFEST, signature.FILE) or name.partition("/")[0] in GIT
        if not known and not file.is_dir():
            raise BundleError(f"{MANIFEST} does not list it, so it cannot be signed", where=file, fix="remove it")
