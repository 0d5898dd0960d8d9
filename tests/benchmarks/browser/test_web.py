"""The page as it is in the repository is what its sources make, by the compiler that its lock file pins."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from pathlib import Path

import pytest

from edgellm.benchmarks.browser import libraries

BUILT = ("page.js", "worker.js")
SOURCES = ("package.json", "package-lock.json", "tsconfig.json", "build.mjs", "src")


def run(command: list[str], folder: Path) -> None:
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.slow
def test_it_is_built_of_its_sources(tmp_path: Path) -> None:
    npm = shutil.which("npm")
    if npm is None:
        pytest.skip("there is no npm")
    for name in SOURCES:
        source = libraries.WEB / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copyfile(source, tmp_path / name)
    done = subprocess.run([npm, "ci", "--no-audit", "--no-fund"], cwd=tmp_path, capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"npm cannot bring the compiler: {done.stderr.strip().splitlines()[:1]}")
    run([npm, "run", "check"], tmp_path)
    run([npm, "run", "build", "--", "made"], tmp_path)
    for name in BUILT:
        made, there = (tmp_path / "made" / name).read_text("utf-8"), (libraries.WEB / name).read_text("utf-8")
        assert made == there, f"{name} is old: npm run build"


def test_everything_is_pinned_by_its_hash_and_no_registry_is_named() -> None:
    lock = json.loads((libraries.WEB / "package-lock.json").read_text("utf-8"))
    asked = json.loads((libraries.WEB / "package.json").read_text("utf-8"))
    versions = {**asked["dependencies"], **asked["devDependencies"]}
    assert all(re.fullmatch(r"\d+\.\d+\.\d+", version) for version in versions.values())
    packages = {name: entry for name, entry in lock["packages"].items() if name}
    assert all(entry["integrity"].startswith("sha512-") for entry in packages.values())
    assert [name for name, entry in packages.items() if "resolved" in entry] == []
    assert {name.removeprefix("node_modules/") for name in packages} >= {*versions}
    assert libraries.version(libraries.ONNX) == versions[libraries.ONNX]


@pytest.mark.parametrize("name", ["index.html", "page.css", "page.js", "worker.js"])
def test_it_loads_nothing_from_elsewhere(name: str) -> None:
    text = (libraries.WEB / name).read_text("utf-8")
    assert re.findall(r"(?:src|href|import|fetch|url)\s*[=(]\s*[\"'`](?:https?:)?//", text) == []
