"""Finding an adapter by the name of a bundle's graph."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edgellm.bundle import Bundle
from edgellm.errors import BundleError, RuntimeUnavailable, UsageError
from edgellm.runtimes import open_runtime


def test_defaults(tiny_bundle: Path) -> None:
    with_defaults = open_runtime(Bundle.open(tiny_bundle))
    assert (with_defaults.name, with_defaults.max_context) == ("onnx", 4096)
    assert with_defaults.threads >= 1
    chosen = open_runtime(Bundle.open(tiny_bundle), name="onnx", threads=1, max_context=7)
    assert (chosen.threads, chosen.max_context, chosen.session().max_context) == (1, 7, 7)


@pytest.mark.parametrize("name", ["tflite", "session", "", "os", "../onnx", "ONNX"])
def test_a_graph_that_the_bundle_has_not(tiny_bundle: Path, name: str) -> None:
    with pytest.raises(UsageError, match=r"no graph for the runtime .*it has: onnx"):
        open_runtime(Bundle.open(tiny_bundle), name=name)


@pytest.mark.parametrize("name", ["future", "session", "sampling"])
def test_a_graph_that_this_version_has_no_adapter_for(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    """Names come from the manifest: a module that is no adapter is none."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "copy")
    manifest = json.loads((folder / "edgellm.json").read_text(encoding="utf-8"))
    manifest["graphs"] = {name: manifest["graphs"]["onnx"]}
    (folder / "edgellm.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(RuntimeUnavailable, match=f"no adapter for '{name}'"):
        open_runtime(Bundle.open(folder))


def test_hyphens_are_underscores(tiny_bundle: Path, tmp_path: Path) -> None:
    """As people write them: the graph is found, and only then there is no adapter for it."""
    folder = shutil.copytree(tiny_bundle, tmp_path / "copy")
    manifest = json.loads((folder / "edgellm.json").read_text(encoding="utf-8"))
    manifest["graphs"]["on_device"] = manifest["graphs"]["onnx"]
    (folder / "edgellm.json").write_text(json.dumps(manifest), encoding="utf-8")
    for name in ("on-device", "on_device"):
        with pytest.raises(RuntimeUnavailable, match="no adapter for 'on_device'"):
            open_runtime(Bundle.open(folder), name=name)
    assert open_runtime(Bundle.open(folder)).name == "onnx", "of the graphs that something can run"


@pytest.mark.parametrize("name", ["../onnx", "on-nx", "", "a\x1b[2Jb"])
def test_a_graph_whose_name_is_none(tiny_bundle: Path, tmp_path: Path, name: str) -> None:
    folder = shutil.copytree(tiny_bundle, tmp_path / "copy")
    manifest = json.loads((folder / "edgellm.json").read_text(encoding="utf-8"))
    manifest["graphs"][name] = manifest["graphs"]["onnx"]
    (folder / "edgellm.json").write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(BundleError, match="no runtime's name"):
        Bundle.open(folder)


@pytest.mark.parametrize("numbers", [{"threads": 0}, {"max_context": 0}, {"max_context": 4097}])
def test_numbers_out_of_range(tiny_bundle: Path, numbers: dict[str, int]) -> None:
    with pytest.raises(UsageError, match=next(iter(numbers))):
        open_runtime(Bundle.open(tiny_bundle), **numbers)  # type: ignore[arg-type]
