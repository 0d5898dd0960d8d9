"""A machine's /proc and /sys as a test lays them out."""

from __future__ import annotations

from pathlib import Path


def lay(root: Path, files: dict[str, object]) -> Path:
    """Write files below `root`, by path; None takes one away."""
    for name, value in files.items():
        file = root / name
        if value is None:
            file.unlink()
            continue
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(f"{value}\n", encoding="utf-8")
    return root


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now
