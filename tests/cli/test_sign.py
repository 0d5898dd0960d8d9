"""`edgellm sign` and `edgellm verify --key`."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric import ec

from tests.bundles import content, variant
from tests.cli.conftest import edgellm
from tests.keys import write_keys


@pytest.fixture
def own(bundle: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle, tmp_path / "own"))


def test_sign_verify_ship_and_load(bundle: Path, own: Path, tmp_path: Path) -> None:
    import edgellm as library

    private, public = write_keys(tmp_path / "keys", ec.SECP256R1())
    signed = edgellm("sign", own, "--key", private)
    assert (signed.exit_code, signed.output) == (0, f"{own / 'model.sig'}: signed\n")
    verified = edgellm("verify", own, "--key", public)
    assert verified.exit_code == 0, verified.output
    assert verified.output.endswith("all as converted and signed\n")
    device = Path(shutil.copytree(bundle, tmp_path / "device"))
    assert edgellm("bundle", "diff", bundle, own, "-o", tmp_path / "update").exit_code == 0
    assert edgellm("bundle", "apply", tmp_path / "update", device, "--key", public).exit_code == 0
    assert content(device) == content(own)
    with library.load(device, require_signature=public) as llm:
        llm.generate("Hi", max_tokens=2)


def test_refusals_are_one_line(own: Path, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path / "keys", ec.SECP256R1())
    _, other = write_keys(tmp_path / "other", ec.SECP256R1())
    for arguments, status, said in (
        (("verify", own, "--key", public), 1, "the bundle is not signed"),
        (("sign", own, "--key", tmp_path / "nothing"), 2, "nothing: the key cannot be read"),
        (("sign", own, "--key", public), 2, "the private key cannot be used"),
    ):
        result = edgellm(*arguments)
        assert result.exit_code == status, result.output
        assert said in result.stderr
        assert result.stderr.count("\n") == 1
    assert edgellm("sign", own, "--key", private).exit_code == 0
    result = edgellm("verify", own, "--key", other)
    assert result.exit_code == 1
    assert "the signature is not one of this key" in result.stderr
    changed = variant(own, tmp_path / "changed", {"tokenizer_config.json": b"{}"})
    assert edgellm("verify", changed).exit_code == 0
    result = edgellm("verify", changed, "--key", public)
    assert result.exit_code == 1
    assert "edgellm.json: differs from what was signed" in result.stderr


def test_a_password_is_asked_for(own: Path, tmp_path: Path) -> None:
    private, public = write_keys(tmp_path / "keys", ec.SECP256R1(), b"secret")
    result = edgellm("sign", own, "--key", private, input="secret\n")
    assert result.exit_code == 0, result.output
    assert "secret" not in result.output
    assert edgellm("verify", own, "--key", public).exit_code == 0


def test_a_key_is_never_made(own: Path, tmp_path: Path) -> None:
    before = sorted(tmp_path.rglob("*"))
    assert edgellm("sign", own, "--key", tmp_path / "private.pem").exit_code == 2
    assert sorted(tmp_path.rglob("*")) == before
