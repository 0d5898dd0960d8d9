"""Machines laid out in a folder, as Linux shows them below /proc and /sys."""

from __future__ import annotations

from pathlib import Path


def machine(root: Path, *, siblings: list[str] | None = None, capacity: list[int] | None = None) -> Path:
    for cpu, names in enumerate(siblings or []):
        write(root, f"sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list", f"{names}\n")
    for cpu, value in enumerate(capacity or []):
        write(root, f"sys/devices/system/cpu/cpu{cpu}/cpu_capacity", f"{value}\n")
    return root


def write(root: Path, name: str, text: str) -> None:
    (root / name).parent.mkdir(parents=True, exist_ok=True)
    (root / name).write_text(text, encoding="utf-8")
