"""Bundles: what is written is read back, and damage is one clear line before native code sees it."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edgellm.bundle import MANIFEST, Bundle
from edgellm.conversion import convert
from edgellm.errors import BundleError, EdgeError
from tests import tiny_folder

Manifest = dict[str, Any]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("made")
    return convert(tiny_folder.write(folder / "tiny"), folder / "bundle").path


@pytest.fixture
def bundle(made: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "bundle"))


def edit(bundle: Path, change: Callable[[Manifest], object]) -> None:
    manifest = json.loads((bundle / MANIFEST).read_text(encoding="utf-8"))
    change(manifest)
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")


def test_a_copied_bundle_opens_and_verifies(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    opened.verify()
    assert opened.size() == sum((bundle / name).stat().st_size for name in opened.files)


def test_no_such_folder(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"nowhere: no such folder; check the path"):
        Bundle.open(tmp_path / "nowhere")


def test_a_folder_that_is_no_bundle(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"not a bundle \(no edgellm.json\); make one with 'edgellm convert'"):
        Bundle.open(tmp_path)


@pytest.mark.parametrize("content", ["", "{", "[]", "null", "[" * 200_000, '{"format": 1}', '{"format": true}', "\xff"])
def test_a_manifest_that_is_not_one(bundle: Path, content: str) -> None:
    (bundle / MANIFEST).write_bytes(content.encode("latin-1"))
    with pytest.raises(BundleError):
        Bundle.open(bundle)


def test_a_later_format_asks_for_a_newer_edgellm(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest.update(format=2))
    with pytest.raises(BundleError, match=r"bundle format 2 is newer than this edgellm reads \(1\); upgrade edgellm"):
        Bundle.open(bundle)


@pytest.mark.parametrize("field", ["spec", "recipe", "provenance", "text", "generation", "graphs", "files", "producer"])
def test_a_missing_field_is_named(bundle: Path, field: str) -> None:
    edit(bundle, lambda manifest: manifest.pop(field))
    with pytest.raises(BundleError, match=rf"damaged manifest: missing field '{field}'"):
        Bundle.open(bundle)


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "a/../../b", "C:\\x", "a\\b", "./model.onnx", "a\0b", ""])
def test_a_path_that_leaves_the_folder(bundle: Path, name: str) -> None:
    (bundle.parent / "secret").write_text("")
    edit(bundle, lambda manifest: manifest["files"].update({name: {"size": 0, "sha256": ""}}))
    with pytest.raises(BundleError, match="not a plain relative path"):
        Bundle.open(bundle)


def test_a_link_that_leaves_the_folder(bundle: Path) -> None:
    outside = shutil.move(bundle / "model.onnx", bundle.parent / "elsewhere")
    (bundle / "model.onnx").symlink_to(outside)
    with pytest.raises(BundleError, match="outside the bundle"):
        Bundle.open(bundle)


def test_a_link_to_itself(bundle: Path) -> None:
    (bundle / "model.onnx").unlink()
    (bundle / "model.onnx").symlink_to("model.onnx")
    with pytest.raises(BundleError, match=r"model\.onnx: file is missing; copy the bundle again"):
        Bundle.open(bundle)
    bundle.with_name("circle").symlink_to("circle")
    with pytest.raises(BundleError, match="circle: no such folder"):
        Bundle.open(bundle.with_name("circle"))


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("\ud800", "is not a name of a file"),
        (chr(0xDC80), "is not a name of a file"),
        ("a/" * 16 + "a", "deeper than 16 folders"),
        ("ä" * 513, "longer than 1024 bytes"),
    ],
)
def test_a_name_that_no_disk_has(bundle: Path, name: str, message: str) -> None:
    edit(bundle, lambda manifest: manifest["files"].update({name: manifest["files"]["model.onnx"]}))
    with pytest.raises(BundleError, match=message) as error:
        Bundle.open(bundle)
    str(error.value).encode()  # it can be printed


def test_a_missing_file(bundle: Path) -> None:
    (bundle / "tokenizer.json").unlink()
    with pytest.raises(BundleError, match=r"tokenizer\.json: file is missing; copy the bundle again"):
        Bundle.open(bundle)


def test_a_truncated_file(bundle: Path) -> None:
    data = (bundle / "model.onnx.data").read_bytes()
    (bundle / "model.onnx.data").write_bytes(data[:-1])
    with pytest.raises(BundleError, match=rf"size is {len(data) - 1} bytes, the manifest says {len(data)}"):
        Bundle.open(bundle)


@pytest.mark.parametrize("graph", ["model.onnx", "nothing.onnx", "../model.onnx"])
def test_a_graph_that_the_files_do_not_list(bundle: Path, graph: str) -> None:
    def change(manifest: Manifest) -> None:
        manifest["graphs"]["onnx"] |= {"file": graph, "files": [graph]}
        manifest["files"].pop("model.onnx")

    edit(bundle, change)
    with pytest.raises(BundleError, match="the manifest does not list"):
        Bundle.open(bundle)


def test_a_part_of_a_graph_that_the_files_do_not_list(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["graphs"]["onnx"]["files"].append("../secret"))
    with pytest.raises(BundleError, match=r"the manifest does not list '\.\./secret'"):
        Bundle.open(bundle)


def test_a_graph_without_its_own_file(bundle: Path) -> None:
    edit(bundle, lambda manifest: manifest["graphs"]["onnx"].update(files=["model.onnx.data"]))
    with pytest.raises(BundleError, match=r"'graphs\.onnx\.files' does not have 'model\.onnx'"):
        Bundle.open(bundle)


def flip_last_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(content)


def test_a_wrong_byte_is_found_by_verify(bundle: Path) -> None:
    flip_last_byte(bundle / "model.onnx.data")
    opened = Bundle.open(bundle)
    with pytest.raises(BundleError, match=r"model\.onnx\.data: content differs from what was converted"):
        opened.verify()


def test_the_first_load_hashes_and_later_ones_remember(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    opened = Bundle.open(bundle)
    opened.ensure_verified()
    assert len(list((tmp_path / "cache" / "verified").iterdir())) == 1
    data = bundle / "model.onnx.data"
    before = data.stat()
    flip_last_byte(data)
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns))
    opened.ensure_verified()  # nothing is hashed again: only that could tell
    os.utime(data, ns=(before.st_atime_ns, before.st_mtime_ns + 1_000_000_000))
    with pytest.raises(BundleError, match="content differs"):
        opened.ensure_verified()


def test_a_read_only_cache_costs_nothing_but_time(bundle: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cache").touch()  # a file: no folder can be made below it
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    Bundle.open(bundle).ensure_verified()


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=5,
)


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.data())
def test_any_other_value_anywhere_is_an_edge_error_or_harmless(made: Path, bundle: Path, data: st.DataObject) -> None:
    """One value of the manifest, picked at random, becomes something else."""
    manifest = json.loads((made / MANIFEST).read_text(encoding="utf-8"))
    parent: Any = manifest
    while True:
        keys = sorted(parent) if isinstance(parent, dict) else list(range(len(parent)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(parent[key], dict | list) and parent[key] and data.draw(st.booleans()):
            parent = parent[key]
        else:
            break
    parent[key] = data.draw(JSON)
    (bundle / MANIFEST).write_text(json.dumps(manifest), encoding="utf-8")
    with contextlib.suppress(EdgeError):
        Bundle.open(bundle).verify()


@pytest.mark.parametrize("kind", ["folder", "fifo"])
def test_only_regular_files(bundle: Path, kind: str) -> None:
    odd = bundle / "odd"
    if kind == "folder":
        odd.mkdir()
    elif not hasattr(os, "mkfifo"):
        pytest.skip("FIFOs are POSIX's")
    else:
        os.mkfifo(odd)  # reading it would wait for ever
    edit(bundle, lambda manifest: manifest["files"].update({"odd": {"size": odd.stat().st_size, "sha256": ""}}))
    with pytest.raises(BundleError, match="odd: not a regular file"):
        Bundle.open(bundle)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("dtype", "object", "has the dtype 'object'"),
        ("dtype", "no such type", "has the dtype 'no such type'"),
        ("past_key", "{layer.__class__}", "no tensor name"),
        ("past_key", "{layer:>99999999999}", "no tensor name"),
        ("past_key", "{", "no tensor name"),
        ("past_key", "past.0.key", "two tensors one name"),
        ("present_value", "present.{layer}.key", "two tensors one name"),
    ],
)
def test_kv_tensors_that_cannot_be_bound(bundle: Path, field: str, value: str, message: str) -> None:
    def change(manifest: Manifest) -> None:
        for layout in manifest["graphs"]["onnx"]["kv"]:
            layout["present_key"] = "present.{layer}.key"
            layout[field] = value

    edit(bundle, change)
    with pytest.raises(BundleError, match=message):
        Bundle.open(bundle)


def test_a_file_that_cannot_be_read_is_named(bundle: Path) -> None:
    opened = Bundle.open(bundle)
    (bundle / "tokenizer.json").unlink()
    (bundle / "tokenizer.json").mkdir()
    with pytest.raises(BundleError, match=r"tokenizer\.json: cannot be read: .*; check its permissions"):
        opened.verify()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="nothing is locked to root")
def test_a_locked_bundle_is_no_missing_one(bundle: Path) -> None:
    bundle.chmod(0)
    try:
        with pytest.raises(BundleError, match="cannot be read: Permission denied"):
            Bundle.open(bundle)
    finally:
        bundle.chmod(0o700)
