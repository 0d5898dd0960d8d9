"""Bundles that differ from a real one in what a test says, and what lies in a folder, for comparing."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from pathlib import Path


def variant(bundle: Path, target: Path, files: Mapping[str, bytes | None]) -> Path:
    """A copy of a bundle with other files (None: without that one), all of them in its manifest as they are."""
    shutil.copytree(bundle, target)
    manifest = json.loads((target / "edgellm.json").read_text(encoding="utf-8"))
    for name, content in files.items():
        if content is None:
            (target / name).unlink()
            del manifest["files"][name]
        else:
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            (target / name).write_bytes(content)
            manifest["files"][name] = {"size": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (target / "edgellm.json").write_text(json.dumps(manifest), encoding="utf-8")
    return target


def content(folder: Path) -> dict[str, str]:
    """sha256 of every file below a folder."""
    return {
        file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest()
        for file in sorted(folder.rglob("*"))
        if file.is_file()
    }
