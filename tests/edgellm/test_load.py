"""What importing and loading bring with them, each in a process of its own."""

from __future__ import annotations

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
from cryptography.hazmat.primitives.asymmetric import ec
from safetensors.numpy import load_file, save_file

import edgellm
from edgellm.bundle import Bundle
from edgellm.conversion import convert
from edgellm.errors import BundleError
from edgellm.runtimes import tflite, tflite_file
from edgellm.signing import sign
from edgellm.swap import trade_places
from edgellm.update_apply import apply, roll_back
from edgellm.update_diff import diff
from tests import tiny_folder
from tests.bundles import variant
from tests.keys import write_keys

ROOT = Path(__file__).parents[2]
WORKSTATION = {
    "torch",
    "transformers",
    "onnx",
    "safetensors",
    "gguf",
    "huggingface_hub",
    "edgellm.converters",
    "edgellm.conversion",
}


def modules(program: str, *arguments: object) -> set[str]:
    """Names of the modules that a program has loaded at its end."""
    result = subprocess.run(
        [sys.executable, "-W", "error", "-c", f"import sys\n{program}\nimport json\nprint(json.dumps(list(sys.modules)))"]
        + [str(argument) for argument in arguments],
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    assert result.stderr == ""
    return set(json.loads(result.stdout.splitlines()[-1]))


def test_importing_is_light() -> None:
    loaded = modules("import edgellm; edgellm.__version__, edgellm.EdgeError, dir(edgellm)")
    assert not loaded & {*WORKSTATION, "numpy", "onnxruntime", "tokenizers", "jinja2", "click", "rich", "edgellm.llm"}


def test_the_device_side_imports_no_workstation_package(tiny_bundle: Path) -> None:
    program = """
import edgellm
with edgellm.load(sys.argv[1]) as llm:
    llm.generate("Hello", max_tokens=3)
    llm.chat([{"role": "user", "content": "Hi"}], max_tokens=3, temperature=0.5, top_p=0.9)
"""
    loaded = modules(program, tiny_bundle)
    assert {"onnxruntime", "tokenizers", "jinja2", "numpy"} <= loaded
    assert not loaded & WORKSTATION


@pytest.mark.parametrize(
    ("runtime", "loaded", "not_loaded"),
    [
        (None, "onnxruntime", "ai_edge_litert"),
        ("onnx", "onnxruntime", "ai_edge_litert"),
        ("tflite", "ai_edge_litert", "onnxruntime"),
    ],
)
def test_a_bundle_with_two_graphs_imports_one_runtime(
    tiny_source: Path, tmp_path: Path, runtime: str | None, loaded: str, not_loaded: str
) -> None:
    bundle = edgellm.convert(tiny_source, tmp_path / "both", target="both", quant="fp32")
    program = f"import edgellm\nwith edgellm.load(sys.argv[1], runtime={runtime!r}) as llm: llm.generate('Hello', max_tokens=3)"
    found = modules(program, bundle.path)
    assert loaded in found
    assert not found & {*WORKSTATION, not_loaded}


def test_a_plain_prompt_needs_no_jinja(tiny_bundle: Path) -> None:
    program = "import edgellm\nwith edgellm.load(sys.argv[1]) as llm: llm.generate('Hello', max_tokens=3)"
    assert "jinja2" not in modules(program, tiny_bundle)


def test_every_public_name_is_there() -> None:
    assert set(edgellm.__all__) <= set(dir(edgellm))
    for name in edgellm.__all__:
        assert getattr(edgellm, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        _ = edgellm.nothing  # type: ignore[attr-defined]


def test_convert_stays_a_function() -> None:
    """A module of that name would take its place once it is imported."""
    program = "import edgellm\nedgellm.convert\nimport edgellm.conversion\nassert callable(edgellm.convert)"
    modules(program)


def test_arguments_reach_the_runtime(tiny_bundle: Path) -> None:
    with edgellm.load(tiny_bundle, runtime="onnx", threads=2, max_context=99) as llm:
        assert (llm.runtime.name, llm.runtime.threads, llm.runtime.max_context) == ("onnx", 2, 99)


def test_wrong_bytes_are_found_at_the_first_load(tiny_bundle: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx.data").write_bytes(data)
    with pytest.raises(BundleError, match="sha256"):
        edgellm.load(folder)


def then(patch: pytest.MonkeyPatch, owner: Any, name: str, act: Callable[[], object], *, times: int = 1) -> None:
    """Something happens right behind the first calls of a function."""
    real, left = getattr(owner, name), [times]

    def wrapped(*arguments: Any, **named: Any) -> Any:
        result = real(*arguments, **named)
        if left[0]:
            left[0] -= 1
            act()
        return result

    patch.setattr(owner, name, wrapped)


@pytest.fixture
def chats(tiny_bundle: Path, tmp_path: Path) -> tuple[Path, Path, Path]:
    """A bundle in its place, the one that it is to become, and the update."""
    template = b"new: {{ messages[0].content }}"
    old = variant(tiny_bundle, tmp_path / "place" / "bundle", {"chat_template.jinja": b"old: {{ messages[0].content }}"})
    new = variant(tiny_bundle, tmp_path / "new", {"chat_template.jinja": template, "notes.txt": b"the new one"})
    return old, new, diff(old, new, tmp_path / "update").path


def test_an_unsigned_update_behind_the_check_is_not_loaded(
    chats: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _, update = chats
    private, public = write_keys(tmp_path / "keys", ec.SECP256R1())
    sign(old, private)
    then(monkeypatch, Bundle, "verify", lambda: apply(update, old))
    with pytest.raises(BundleError, match="the bundle is not signed"):
        edgellm.load(old, require_signature=public)


def test_an_update_and_back_while_loading_is_seen(
    chats: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder that was checked has its name again at the end, and what was loaded came from the other one."""
    old, _, update = chats
    private, public = write_keys(tmp_path / "keys", ec.SECP256R1())
    sign(old, private)
    apply(update, old)
    roll_back(old)

    def there_and_back() -> None:
        trade_places(old, tmp_path)
        assert (old / "notes.txt").exists()
        trade_places(old, tmp_path)

    then(monkeypatch, Bundle, "verify", there_and_back)
    attempts: list[int] = []
    then(monkeypatch, edgellm, "_load", lambda: attempts.append(1), times=9)
    with edgellm.load(old, require_signature=public) as llm:
        assert "notes.txt" not in llm.bundle.files
    assert len(attempts) == 2


def test_an_update_while_loading_gives_one_bundle_whole(
    chats: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    old, _, update = chats
    then(monkeypatch, Bundle, "open", lambda: apply(update, old))
    with edgellm.load(old) as llm:
        assert "notes.txt" in llm.bundle.files
        assert llm._template().render([{"role": "user", "content": "Hi"}]) == "new: Hi"


def test_a_link_that_is_turned_while_loading(
    chats: tuple[Path, Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    old, new, _ = chats
    link, private = tmp_path / "current", write_keys(tmp_path / "keys", ec.SECP256R1())
    link.symlink_to(old, target_is_directory=True)
    sign(old, private[0])

    def turn() -> None:
        (tmp_path / "next").symlink_to(new, target_is_directory=True)
        (tmp_path / "next").replace(link)

    then(monkeypatch, Bundle, "verify", turn)
    with pytest.raises(BundleError, match="the bundle is not signed"):
        edgellm.load(link, require_signature=private[1])


def test_a_bundle_that_never_rests_is_an_error(chats: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    old, new, _ = chats
    apply(chats[2], old)
    assert (old / "notes.txt").read_bytes() == (new / "notes.txt").read_bytes()
    then(monkeypatch, Bundle, "ensure_verified", lambda: roll_back(old), times=99)
    with pytest.raises(BundleError, match="it is changed again and again while it is loaded; load it when that is over"):
        edgellm.load(old)


def test_a_loaded_bundle_keeps_its_template(chats: tuple[Path, Path, Path]) -> None:
    old, _, update = chats
    with edgellm.load(old) as llm:
        apply(update, old)
        assert llm._template().render([{"role": "user", "content": "Hi"}]) == "old: Hi"


@pytest.mark.parametrize("behind", [(Bundle, "ensure_verified"), (tflite_file, "check"), (tflite, "sha256_file")])
def test_an_update_while_packing_leaves_no_wrong_weights(
    tiny_source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, behind: tuple[Any, str]
) -> None:
    """LiteRT's packed weights are kept by the old graph's sha256: every later load of that would take the new one's."""
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    place = tmp_path / "place" / "bundle"
    convert(tiny_source, place, target="tflite", quant="fp32")
    other = tiny_folder.write(tmp_path / "other")
    tensors = load_file(other / "model.safetensors")
    save_file({name: np.ascontiguousarray(values[::-1]) for name, values in tensors.items()}, other / "model.safetensors")
    new = convert(other, tmp_path / "new", target="tflite", quant="fp32")
    update = diff(place, new.path, tmp_path / "update").path
    with edgellm.load(shutil.copytree(new.path, tmp_path / "copy")) as llm:
        second = llm.generate("Hi", max_tokens=8, temperature=0).ids
    shutil.rmtree(tmp_path / "cache")
    with monkeypatch.context() as patch:
        then(patch, *behind, lambda: apply(update, place))
        with edgellm.load(place) as llm:
            assert llm.generate("Hi", max_tokens=8, temperature=0).ids == second
    roll_back(place)
    with edgellm.load(place) as llm:
        cached = llm.generate("Hi", max_tokens=8, temperature=0).ids
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "fresh"))
    with edgellm.load(place) as llm:
        assert llm.generate("Hi", max_tokens=8, temperature=0).ids == cached
    assert cached != second
