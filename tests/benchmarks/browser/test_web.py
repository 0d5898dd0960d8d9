"""The page as it is in the repository is what its sources make, by the compiler that its lock file pins."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

from edgellm.benchmarks.browser import libraries
from edgellm.errors import RuntimeUnavailable

BUILT = ("page.js", "worker.js")
SOURCES = ("package.json", "package-lock.json", "tsconfig.json", "build.mjs", "src")


@pytest.mark.slow
def test_it_is_built_of_its_sources(tmp_path: Path) -> None:
    for name in SOURCES:
        source = libraries.WEB / name
        shutil.copytree(source, tmp_path / name) if source.is_dir() else shutil.copyfile(source, tmp_path / name)
    try:
        said = libraries.npm(tmp_path, "ci", "--no-audit", "--no-fund")
    except RuntimeUnavailable as error:
        pytest.skip(str(error))
    if said:
        pytest.skip(f"npm cannot bring the compiler: {said.strip().splitlines()[0]}")
    assert libraries.npm(tmp_path, "run", "check") == ""
    assert libraries.npm(tmp_path, "run", "build", "--", "made") == ""
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
