"""What importing and loading bring with them, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import edgellm
from edgellm.errors import BundleError

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
    import shutil

    folder = Path(shutil.copytree(tiny_bundle, tmp_path / "copy"))
    data = bytearray((folder / "model.onnx.data").read_bytes())
    data[len(data) // 2] ^= 1
    (folder / "model.onnx.data").write_bytes(data)
    with pytest.raises(BundleError, match="sha256"):
        edgellm.load(folder)
