"""What an installation takes: room on the disk, and wheels that pip finds for other machines and Pythons."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.utils import parse_wheel_filename

from tests import wheels

pytestmark = pytest.mark.slow

LIMIT = 110e6  # bytes of numpy, tokenizers, Jinja2, click, rich, what these need, and edgellm itself


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This checkout's."""
    return wheels.build(tmp_path_factory.mktemp("wheel"))


def test_without_a_runtime_it_is_small(wheel: Path, tmp_path: Path) -> None:
    """In blocks of the disk. Python's bytecode is not in it: that is a third more, and Python runs without."""
    folder = tmp_path / "installed"
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-input",
        "--no-compile",
        "--target",
        str(folder),
        str(wheel),
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    sizes: dict[str, int] = {}
    for file in folder.rglob("*"):
        if file.is_file():
            top = file.relative_to(folder).parts[0]
            sizes[top] = sizes.get(top, 0) + file.stat().st_blocks * 512
    largest = sorted(sizes.items(), key=lambda each: -each[1])[:8]
    assert {"numpy", "tokenizers", "jinja2", "click", "rich"} <= sizes.keys()
    assert {"torch", "onnxruntime", "ai_edge_litert", "onnx", "transformers"} & sizes.keys() == set()
    assert sum(sizes.values()) < LIMIT, largest


@pytest.mark.parametrize("machine", ["x86_64", "aarch64"])
@pytest.mark.parametrize("python", ["3.11", "3.12", "3.13"])
def test_there_are_wheels_of_everything(wheel: Path, machine: str, python: str, tmp_path: Path) -> None:
    """Both runtimes together, so that they agree on one numpy, and what checks signatures; no compiler is needed."""
    report = tmp_path / "report.json"
    command = [*wheels.pip(machine, python), "--dry-run", "--ignore-installed", f"--report={report}", f"--target={tmp_path}"]
    done = subprocess.run([*command, f"{wheel}[onnx,tflite,verify]"], capture_output=True, text=True, check=False, timeout=280)
    assert done.returncode == 0, done.stderr
    found = {}
    for item in json.loads(report.read_text(encoding="utf-8"))["install"]:
        name, version, _, tags = parse_wheel_filename(item["download_info"]["url"].rsplit("/", maxsplit=1)[-1])
        found[name] = tags
        assert all(tag.platform == "any" or tag.platform.endswith(machine) for tag in tags), (name, version, tags)
    assert {"edgellm", "numpy", "tokenizers", "jinja2", "onnxruntime", "ai-edge-litert", "cryptography"} <= found.keys()
    compiled = {name for name, tags in found.items() if all(tag.platform != "any" for tag in tags)}
    assert {"numpy", "tokenizers", "onnxruntime", "ai-edge-litert", "cryptography"} <= compiled
