"""Signatures: ours and OpenSSF model signing say yes and no to the same bundles."""

from __future__ import annotations

import base64
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

import edgellm
from edgellm import signature
from edgellm.bundle import Bundle
from edgellm.errors import BundleError, RuntimeUnavailable, UsageError
from edgellm.signing import sign
from edgellm.update_apply import apply
from edgellm.update_diff import diff
from tests.bundles import content, variant
from tests.keys import write_keys


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    return write_keys(tmp_path_factory.mktemp("keys"), ec.SECP256R1())


@pytest.fixture
def signed(tiny_bundle: Path, keys: tuple[Path, Path], tmp_path: Path) -> Path:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "signed"))
    assert sign(bundle, keys[0]) == bundle / "model.sig"
    return bundle


def theirs(bundle: Path, public: Path) -> bool:
    """What the package itself says."""
    from model_signing import verifying

    try:
        verifying.Config().use_elliptic_key_verifier(public_key=public).verify(bundle, bundle / "model.sig")
    except Exception:
        return False
    return True


def ours(bundle: Path, public: Path) -> bool:
    try:
        opened = Bundle.open(bundle)
        signature.check(opened, public)
        opened.verify()
    except BundleError:
        return False
    return True


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()], ids=lambda curve: str(curve.name))
def test_both_accept_what_was_signed(tiny_bundle: Path, tmp_path: Path, curve: ec.EllipticCurve) -> None:
    bundle = Path(shutil.copytree(tiny_bundle, tmp_path / "bundle"))
    private, public = write_keys(tmp_path / "keys", curve)
    sign(bundle, private)
    assert theirs(bundle, public)
    assert ours(bundle, public)
    with edgellm.load(bundle, require_signature=public) as llm:
        llm.generate("Hi", max_tokens=2)


def test_both_refuse_another_key(signed: Path, tmp_path: Path) -> None:
    _, other = write_keys(tmp_path / "other", ec.SECP256R1())
    assert not theirs(signed, other)
    with pytest.raises(BundleError, match=r"model\.sig: the signature is not one of this key"):
        edgellm.load(signed, require_signature=other)


def damaged(name: str) -> Callable[[Path, dict[str, Any]], None]:
    def change(bundle: Path, _: dict[str, Any]) -> None:
        data = bytearray((bundle / name).read_bytes())
        data[len(data) // 2] ^= 1
        (bundle / name).write_bytes(data)

    return change


def with_its_sha256(bundle: Path, _: dict[str, Any]) -> None:
    """Someone who changes a file can change the manifest too."""
    text = b'{"changed": 1}'
    other = variant(bundle, bundle.with_name("other"), {"tokenizer_config.json": text})
    shutil.rmtree(bundle)
    other.rename(bundle)


def payload(change: Callable[[Any], object]) -> Callable[[Path, dict[str, Any]], None]:
    def apply_it(_: Path, value: dict[str, Any]) -> None:
        statement = json.loads(base64.b64decode(value["dsseEnvelope"]["payload"]))
        change(statement)
        value["dsseEnvelope"]["payload"] = base64.b64encode(json.dumps(statement).encode()).decode()

    return apply_it


@pytest.mark.parametrize(
    "change",
    [
        damaged("model.onnx.data"),
        damaged("tokenizer.json"),
        with_its_sha256,
        lambda bundle, _: (bundle / "tokenizer_config.json").unlink(),
        payload(lambda statement: statement["predicate"]["resources"].pop()),
        payload(lambda statement: statement["predicate"]["resources"][0].update(digest="0" * 64)),
        payload(lambda statement: statement.update(predicateType="another")),
        lambda _, value: value.update(mediaType="another"),
        lambda _, value: value["dsseEnvelope"].update(payload="AAAA"),
        lambda _, value: value["dsseEnvelope"].update(payloadType="text/plain"),
        lambda _, value: value["dsseEnvelope"].update(signatures=[]),
        lambda _, value: value["dsseEnvelope"]["signatures"][0].update(sig="AAAA"),
        lambda _, value: value["dsseEnvelope"]["signatures"][0].update(sig=""),
        lambda _, value: value.pop("dsseEnvelope"),
    ],
)
def test_both_refuse_what_was_changed(
    signed: Path, keys: tuple[Path, Path], change: Callable[[Path, dict[str, Any]], object]
) -> None:
    value = json.loads((signed / "model.sig").read_text(encoding="utf-8"))
    change(signed, value)
    (signed / "model.sig").write_text(json.dumps(value), encoding="utf-8")
    assert not theirs(signed, keys[1])
    with pytest.raises(BundleError) as error:
        edgellm.load(signed, require_signature=keys[1])
    assert "\n" not in str(error.value)


def test_a_changed_manifest_is_named(signed: Path, keys: tuple[Path, Path]) -> None:
    with_its_sha256(signed, {})
    Bundle.open(signed).verify()  # it is whole
    with pytest.raises(BundleError, match=r"edgellm\.json: differs from what was signed; do not use the bundle"):
        signature.check(Bundle.open(signed), keys[1])


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"null", b"\xff", b"[" * 100_000, b'{"mediaType": 1}'])
def test_a_signature_that_is_none(signed: Path, keys: tuple[Path, Path], content: bytes) -> None:
    (signed / "model.sig").write_bytes(content)
    with pytest.raises(BundleError, match=r"model\.sig: not a signature of OpenSSF model signing; sign the bundle again"):
        signature.check(Bundle.open(signed), keys[1])


def test_an_unsigned_bundle(tiny_bundle: Path, keys: tuple[Path, Path]) -> None:
    with pytest.raises(BundleError, match="the bundle is not signed; sign it with 'edgellm sign'"):
        edgellm.load(tiny_bundle, require_signature=keys[1])


def test_a_stamp_is_no_signature(signed: Path, keys: tuple[Path, Path]) -> None:
    """Whoever changes a file on purpose can set its times back; a plain load would not see it, this one hashes."""
    import os

    with edgellm.load(signed):
        pass
    data = signed / "model.onnx.data"
    before = data.stat()
    damaged("model.onnx.data")(signed, {})
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    with edgellm.load(signed):
        pass
    with pytest.raises(BundleError, match="content differs"):
        edgellm.load(signed, require_signature=keys[1])


def test_nothing_native_is_loaded_before(signed: Path, keys: tuple[Path, Path]) -> None:
    damaged("model.onnx.data")(signed, {})
    program = """
import edgellm, sys
try:
    edgellm.load(sys.argv[1], require_signature=sys.argv[2])
except edgellm.BundleError:
    print(*sys.modules)
"""
    command = [sys.executable, "-W", "error", "-c", program, str(signed), str(keys[1])]
    loaded = set(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split())
    assert "cryptography" in loaded
    assert not {"onnxruntime", "model_signing", "sigstore"} & loaded


def test_without_the_package(signed: Path, keys: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("cryptography")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "cryptography", None)
    with pytest.raises(RuntimeUnavailable, match=r"takes the package 'cryptography' to check; pip install 'edgellm\[verify\]'"):
        edgellm.load(signed, require_signature=keys[1])


def test_keys_that_cannot_be_used(signed: Path, keys: tuple[Path, Path], tmp_path: Path) -> None:
    curve = write_keys(tmp_path / "other", ec.SECP256K1())[1]
    edwards = tmp_path / "edwards.pem"
    edwards.write_bytes(
        ed25519.Ed25519PrivateKey.generate()
        .public_key()
        .public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo)
    )
    for key, message in (
        (tmp_path / "nothing.pem", "nothing.pem: the key cannot be read: No such file"),
        (signed / "tokenizer.json", "not a public key in PEM"),
        (keys[0], "private.pem: not a public key in PEM"),
        (curve, "not a key of the curve P-256, P-384 or P-521"),
        (edwards, "not a key of the curve P-256, P-384 or P-521"),
    ):
        with pytest.raises(UsageError, match=message):
            edgellm.load(signed, require_signature=key)


def test_an_update_carries_the_signature(signed: Path, keys: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path) -> None:
    old = variant(tiny_bundle, tmp_path / "old", {"weights": b"old" * 1000})
    apply(diff(old, signed, tmp_path / "update").path, old, key=keys[1])
    assert content(old) == content(signed)
    with edgellm.load(old, require_signature=keys[1]):
        pass


def test_an_update_that_only_signs(signed: Path, keys: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path) -> None:
    old = Path(shutil.copytree(tiny_bundle, tmp_path / "old"))
    apply(diff(old, signed, tmp_path / "update").path, old, key=keys[1])
    signature.check(Bundle.open(old), keys[1])


@pytest.mark.parametrize("state", ["not signed", "another key's"])
def test_an_update_without_the_signature_is_not_applied(
    signed: Path, keys: tuple[Path, Path], tiny_bundle: Path, tmp_path: Path, state: str
) -> None:
    new = variant(tiny_bundle, tmp_path / "new", {"weights": b"new" * 1000})
    if state == "another key's":
        sign(new, write_keys(tmp_path / "other", ec.SECP256R1())[0])
    before = content(signed)
    update = diff(signed, new, tmp_path / "update").path
    with pytest.raises(BundleError, match="is not signed" if state == "not signed" else "is not one of this key"):
        apply(update, signed, key=keys[1])
    assert content(signed) == before
    assert not signed.with_name("signed.previous").exists()


def test_packed_weights_that_nobody_signed_are_not_run(
    tiny_source: Path, keys: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What LiteRT keeps in the user's cache is trusted by size and time only."""
    from edgellm.conversion import convert

    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    bundle = convert(tiny_source, tmp_path / "bundle", target="tflite", quant="fp32").path
    sign(bundle, keys[0])
    with edgellm.load(bundle, require_signature=keys[1]) as llm:
        expected = llm.generate("Hi", max_tokens=8, temperature=0).ids
    assert not (tmp_path / "cache" / "packed").exists()
    with edgellm.load(bundle):
        pass
    (packed,) = (file for file in (tmp_path / "cache" / "packed").iterdir() if not file.suffix)
    status, data = packed.stat(), bytearray(packed.read_bytes())
    values = np.frombuffer(data, np.float32)[1000:-4000]
    values[np.abs(values) < 1] *= -1  # weights, and none of what says where they lie
    packed.write_bytes(data)
    os.utime(packed, ns=(status.st_atime_ns, status.st_mtime_ns))
    with edgellm.load(bundle) as llm:
        assert llm.generate("Hi", max_tokens=8, temperature=0).ids != expected, "else this shows nothing"
    with edgellm.load(bundle, require_signature=keys[1]) as llm:
        assert llm.generate("Hi", max_tokens=8, temperature=0).ids == expected
