"""Signing a bundle: what is signed, and what cannot be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from edgellm import signature
from edgellm.bundle import Bundle
from edgellm.errors import BundleError, UsageError
from edgellm.signing import sign
from tests.bundles import content
from tests.keys import write_keys


@pytest.fixture
def bundle(tiny_bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(tiny_bundle, tmp_path / "place" / "bundle"))


def test_one_file_is_added_and_nothing_else_touched(bundle: Path, tmp_path: Path) -> None:
    before = content(bundle)
    private, public = write_keys(tmp_path / "keys", ec.SECP256R1())
    sign(bundle, private)
    after = content(bundle)
    assert after.keys() - before.keys() == {"model.sig"}
    assert {name: after[name] for name in before} == before
    assert [entry.name for entry in bundle.parent.iterdir()] == ["bundle"]
    assert sorted(entry.name for entry in (tmp_path / "keys").iterdir()) == ["private.pem", "public.pem"]
    signature.check(Bundle.open(bundle), public)


def test_a_new_signature_takes_the_place_of_the_old_one(bundle: Path, tmp_path: Path) -> None:
    sign(bundle, write_keys(tmp_path / "old", ec.SECP256R1())[0])
    private, public = write_keys(tmp_path / "new", ec.SECP384R1())
    sign(bundle, private)
    signature.check(Bundle.open(bundle), public)


def test_a_key_with_a_password(bundle: Path, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path / "keys", ec.SECP256R1(), b"secret")
    for wrong in (None, "wrong"):
        with pytest.raises(UsageError, match="the private key cannot be used"):
            sign(bundle, private, password=wrong)
    assert not (bundle / "model.sig").exists()
    for right in ("secret",):
        sign(bundle, private, password=right)
    signature.check(Bundle.open(bundle), public)


def test_keys_that_cannot_be_used(bundle: Path, tmp_path: Path) -> None:
    public = write_keys(tmp_path / "keys", ec.SECP256R1())[1]
    curve = write_keys(tmp_path / "other", ec.SECP256K1())[0]
    for key, message in (
        (tmp_path / "nothing.pem", "nothing.pem: the key cannot be read: No such file"),
        (public, "public.pem: the private key cannot be used"),
        (curve, "the private key cannot be used"),
        (bundle / "tokenizer.json", "the private key cannot be used"),
    ):
        with pytest.raises(UsageError, match=message):
            sign(bundle, key)
    assert not (bundle / "model.sig").exists()


def test_what_the_manifest_does_not_list_is_not_signed(bundle: Path, tmp_path: Path) -> None:
    private, _ = write_keys(tmp_path / "keys", ec.SECP256R1())
    (bundle / "notes.txt").write_text("mine", encoding="utf-8")
    with pytest.raises(BundleError, match=r"notes\.txt: edgellm\.json does not list it, so it cannot be signed; remove it"):
        sign(bundle, private)
    (bundle / "notes.txt").unlink()
    (bundle / ".gitattributes").write_text("*.onnx filter=lfs", encoding="utf-8")  # a hub's repository
    sign(bundle, private)


@pytest.mark.parametrize("name", ["model.onnx", "below", ".gitattributes"])
def test_a_link_is_not_signed(bundle: Path, tmp_path: Path, name: str) -> None:
    """Of a file that the manifest lists, of a folder, of what is left out otherwise: each to where nothing else is wrong."""
    private, _ = write_keys(tmp_path / "keys", ec.SECP256R1())
    if name == "below":
        (tmp_path / "elsewhere").mkdir()
        (bundle / name).symlink_to(tmp_path / "elsewhere", target_is_directory=True)
    elif name == "model.onnx":
        (bundle / ".git").mkdir()  # which a signature leaves out
        (bundle / name).rename(bundle / ".git" / name)
        (bundle / name).symlink_to(Path(".git", name))
    else:
        (bundle / name).symlink_to("model.onnx")
    with pytest.raises(BundleError, match=rf"{name}: a link cannot be signed; put the file itself there"):
        sign(bundle, private)
    assert not (bundle / "model.sig").exists()


def test_a_damaged_bundle_is_not_signed(bundle: Path, tmp_path: Path) -> None:
    private, _ = write_keys(tmp_path / "keys", ec.SECP256R1())
    (bundle / "model.onnx.data").write_bytes(bytes((bundle / "model.onnx.data").stat().st_size))
    with pytest.raises(BundleError, match="content differs"):
        sign(bundle, private)
    assert not (bundle / "model.sig").exists()
