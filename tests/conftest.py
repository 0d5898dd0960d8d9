"""Fixtures that many tests share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from edgellm.bundle import cache_dir

REAL_MODELS = {
    "smollm2": "SmolLM2-135M-Instruct.Q4_1.gguf",
    "qwen2.5": "qwen2.5-0.5b.gguf",
    "gemma3": "gemma-3-270m-q4_k_m.gguf",
}


@pytest.fixture(scope="session")
def models() -> Callable[[str], Path]:
    """Path of a real model by short name; the test is skipped where it has not been fetched (`make models`)."""
    folder = cache_dir() / "models"

    def path(name: str) -> Path:
        file = folder / REAL_MODELS[name]
        if not file.is_file():
            pytest.skip(f"{file.name} is not in {folder}: run 'make models'")
        return file

    return path
