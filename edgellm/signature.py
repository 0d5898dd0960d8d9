"""The signature of a bundle, checked on the device with a public key and `cryptography`, nothing else.

A signature is what OpenSSF model signing (the package `model-signing`) writes for elliptic curve keys: `model.sig` in the
bundle's folder, a Sigstore bundle 0.3 with a DSSE envelope around an in-toto statement, which lists the sha256 of every file.
https://github.com/sigstore/model-transparency, https://github.com/secure-systems-lab/dsse/blob/v1.0.0/protocol.md
"""

from __future__ import annotations

import base64
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgellm.bundle import MANIFEST, MAX_MANIFEST_BYTES, Bundle
from edgellm.errors import BundleError, RuntimeUnavailable, UsageError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey

FILE = "model.sig"
MEDIA = "application/vnd.dev.sigstore.bundle.v0.3+json"
PAYLOAD = "application/vnd.in-toto+json"
STATEMENT = "https://in-toto.io/Statement/v1"
PREDICATE = "https://model_signing/signature/v1.0"
HASHES = {"secp256r1": "SHA256", "secp384r1": "SHA384", "secp521r1": "SHA512"}  # as the package pairs them
INSTALL = "pip install 'edgellm[verify]'"


def check(bundle: Bundle, key: str | os.PathLike[str]) -> None:
    """Refuse a bundle whose manifest the owner of a key did not sign, or signed for other files.

    With `bundle.verify()`, which hashes the files, this says that every byte is as it was signed. What lies in the folder and
    is not in the manifest is never read, and is not looked at.

    Args:
        key: file of the public key, PEM, on the curve P-256, P-384 or P-521.

    Raises:
        BundleError: there is no signature, another key's, or one of other content.
        RuntimeUnavailable: `cryptography` is not installed.
        UsageError: the key cannot be used.
    """
    public = read_key(key)
    where = bundle.path / FILE
    content = _read(where)
    try:
        envelope = _envelope(json.loads(content))
        payload, mark = (
            base64.b64decode(text, validate=True) for text in (envelope["payload"], envelope["signatures"][0]["sig"])
        )
        kind = envelope["payloadType"]
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise BundleError("not a signature of OpenSSF model signing", where=where, fix="sign the bundle again") from error
    if kind != PAYLOAD or not _is_signed(public, payload, mark):
        raise BundleError(
            "the signature is not one of this key", where=where, fix=f"do not use the bundle, or give another key than {key}"
        )
    try:
        signed = _digests(json.loads(payload))
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        raise BundleError("what was signed is not a model's files", where=where, fix="sign the bundle again") from error
    there = {MANIFEST: bundle.digest(MANIFEST)} | {name: entry.sha256 for name, entry in bundle.files.items()}
    for name, digest in there.items():
        if signed.get(name) != digest:
            what = "differs from what was signed" if name in signed else "is not among what was signed"
            raise BundleError(what, where=bundle.path / name, fix="do not use the bundle, or sign it again")


def read_key(key: str | os.PathLike[str]) -> EllipticCurvePublicKey:
    """The public key in a file.

    Raises:
        RuntimeUnavailable: `cryptography` is not installed.
        UsageError: the key cannot be used.
    """
    try:
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ec import EllipticCurvePublicKey
        from cryptography.hazmat.primitives.serialization import load_pem_public_key
    except ModuleNotFoundError as error:
        raise RuntimeUnavailable("a signature takes the package 'cryptography' to check", where=key, fix=INSTALL) from error
    try:
        public = load_pem_public_key(Path(key).read_bytes())
    except OSError as error:
        raise UsageError(f"the key cannot be read: {error.strerror or error}", where=key, fix="check the path") from error
    except (ValueError, UnsupportedAlgorithm) as error:
        raise UsageError("not a public key in PEM", where=key, fix="give the file that begins with BEGIN PUBLIC KEY") from error
    if not isinstance(public, EllipticCurvePublicKey) or public.curve.name not in HASHES:
        raise UsageError("not a key of the curve P-256, P-384 or P-521", where=key, fix="make one as docs/updates.md says")
    return public


def _read(where: Path) -> bytes:
    try:
        with where.open("rb") as file:
            content = file.read(MAX_MANIFEST_BYTES + 1)
    except FileNotFoundError as error:
        raise BundleError("the bundle is not signed", where=where.parent, fix="sign it with 'edgellm sign'") from error
    except OSError as error:
        raise BundleError(f"cannot be read: {error.strerror or error}", where=where, fix="check its permissions") from error
    if len(content) > MAX_MANIFEST_BYTES:
        raise BundleError(f"larger than {MAX_MANIFEST_BYTES >> 20} MiB", where=where, fix="sign the bundle again")
    return content


def _envelope(value: Any) -> Any:
    if value["mediaType"] != MEDIA or len(value["dsseEnvelope"]["signatures"]) != 1:
        raise ValueError("another kind of signature")
    return value["dsseEnvelope"]


def _is_signed(key: EllipticCurvePublicKey, payload: bytes, mark: bytes) -> bool:
    """Whether the key's owner signed a payload, in DSSE's pre-authentication encoding."""
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives import hashes
    from cryptography.hazmat.primitives.asymmetric.ec import ECDSA

    encoded = f"DSSEv1 {len(PAYLOAD)} {PAYLOAD} {len(payload)} ".encode() + payload
    try:
        key.verify(mark, encoded, ECDSA(getattr(hashes, HASHES[key.curve.name])()))
    except InvalidSignature:
        return False
    return True


def _digests(statement: Any) -> dict[str, str]:
    """sha256 by file name, of a statement that lists whole files."""
    predicate = statement["predicate"]
    if (statement["_type"], statement["predicateType"]) != (STATEMENT, PREDICATE):
        raise ValueError("another kind of statement")
    if predicate["serialization"]["method"] != "files":
        raise ValueError("parts of files")
    resources = predicate["resources"]
    digests = {resource["name"]: resource["digest"] for resource in resources if resource["algorithm"] == "sha256"}
    if len(digests) != len(resources):
        raise ValueError("a name twice, or another hash")
    return digests
