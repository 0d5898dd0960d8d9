"""Which reader a source goes to, and what is said when none fits."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from edgellm.converters.checkpoints import open_checkpoint
from edgellm.errors import SourceError, UsageError
from tests import tiny_folder


def write_gguf(path: Path, value: float) -> Path:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_tensor("token_embd.weight", np.full((4, 32), value, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def first(source: str | Path) -> float:
    with open_checkpoint(source) as checkpoint:
        assert checkpoint.naming == "gguf"
        return float(checkpoint.tensor("token_embd.weight").rows(0, 1)[0, 0])


def test_a_folder_goes_to_the_folder_reader(tmp_path: Path) -> None:
    folder = tiny_folder.write(tmp_path / "tiny")
    write_gguf(folder / "beside.gguf", 1)  # a folder with config.json is a Hugging Face folder whatever else lies there
    for source in (folder, str(folder), f"{folder}/"):
        with open_checkpoint(source) as checkpoint:
            assert checkpoint.naming == "hf"
            assert checkpoint.architecture == "llama"
            assert checkpoint.provenance.source == "tiny"


def test_gguf_files_and_folders_of_them(tmp_path: Path) -> None:
    one = write_gguf(tmp_path / "one.gguf", 1)
    assert first(one) == first(str(one)) == first(tmp_path) == 1
    write_gguf(tmp_path / "Two.GGUF", 2)
    assert first(tmp_path / "Two.GGUF") == 2
    with pytest.raises(SourceError, match=r"2 GGUF models; name one of them: Two\.GGUF, one\.gguf"):
        open_checkpoint(tmp_path)


def test_a_split_gguf_is_one_model(tmp_path: Path) -> None:
    gguf = pytest.importorskip("gguf")
    writer = gguf.GGUFWriter(tmp_path / "m.gguf", "llama", split_max_tensors=1)
    for name in ("token_embd.weight", "output.weight"):
        writer.add_tensor(name, np.full((4, 32), 3, np.float32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    assert len(list(tmp_path.glob("*.gguf"))) == 2
    with open_checkpoint(tmp_path) as checkpoint:
        assert checkpoint.names() == {"token_embd.weight", "output.weight"}


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("no/such/folder", "no such file or folder, check|no such file or folder; check the path, or give a Hugging Face id"),
        ("nothing.gguf", "no such file or folder"),
        ("", "not a Hugging Face model folder|no such file"),
        ("https://huggingface.co/org/name", "no such file or folder"),
        ("../x/y", "no such file or folder"),
        ("org/name:notgguf.bin", "no such file or folder"),
    ],
)
def test_what_is_nowhere_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, source: str, message: str) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SourceError, match=message) as raised:
        open_checkpoint(source)
    assert "\n" not in str(raised.value)


def test_other_files_and_folders_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "model.safetensors"
    file.write_bytes(b"x")
    with pytest.raises(SourceError, match=r"neither a \.gguf file nor a folder; give a GGUF file, or the folder"):
        open_checkpoint(file)
    with pytest.raises(SourceError, match=r"not a Hugging Face model folder \(no config\.json\)"):
        open_checkpoint(tmp_path)


def test_readers_are_imported_only_when_used(tmp_path: Path) -> None:
    folder = tiny_folder.write(tmp_path / "tiny")
    code = f"""
import sys
from edgellm.converters.checkpoints import open_checkpoint
loaded = lambda: {{name.rsplit(".", 1)[1] for name in sys.modules if name.startswith("edgellm.converters.checkpoints.")}}
assert loaded() == {{"base"}}, loaded()
with open_checkpoint({str(folder)!r}) as checkpoint:
    checkpoint.text()
assert loaded() == {{"base", "mapping", "safetensors", "folder", "packed"}}, loaded()
heavy = {{"torch", "transformers", "huggingface_hub", "safetensors", "peft", "onnx", "onnxruntime"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])


def test_a_gguf_is_known_by_its_content(tmp_path: Path) -> None:
    assert first(write_gguf(tmp_path / "x.gguf", 4).rename(tmp_path / "sha256-4f2a")) == 4


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="FIFOs are POSIX's")
def test_a_fifo_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(SourceError, match=r"neither a \.gguf file nor a folder"):
        open_checkpoint(tmp_path / "pipe")


def test_a_bundle_is_no_source(tiny_bundle: Path) -> None:
    with pytest.raises(SourceError, match="this is a bundle already; run it, or convert the model it was made from"):
        open_checkpoint(tiny_bundle)


def test_a_revision_belongs_to_the_hub(tiny_source: Path) -> None:
    with pytest.raises(UsageError, match="--revision: only hub models have revisions"):
        open_checkpoint(tiny_source, revision="main")


@pytest.mark.parametrize("source", ["x" * 5000, "nul\0l"])
def test_what_cannot_be_a_path_is_not_there(source: str) -> None:
    with pytest.raises(SourceError, match="no such file or folder"):
        open_checkpoint(source)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is locked to root")
def test_a_locked_folder(tmp_path: Path) -> None:
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    with pytest.raises(SourceError, match="locked: cannot be read: Permission denied; check its permissions"):
        open_checkpoint(locked)
