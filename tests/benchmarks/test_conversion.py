from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.benchmarks import conversion
from edgellm.bundle import Bundle
from edgellm.errors import SourceError
from tests import tiny_folder

MIB = 1 << 20


@pytest.mark.parametrize("step", conversion.STEPS)
def test_every_step_runs_in_a_process_of_its_own(step: str, tmp_path: Path) -> None:
    source, output = tiny_folder.write(tmp_path / "source"), tmp_path / "bundle"
    cost = conversion.measure(step, source, output)
    assert 0 < cost.seconds < 60
    assert cost.rss is None or 20 * MIB < cost.rss < 400 * MIB, "a Python process and a tiny model"
    assert output.exists() == step.startswith("convert")
    if output.exists():
        assert Bundle.open(output).recipe.name == step.split()[-1]


def test_a_step_that_fails_is_no_figure(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"nothing\.gguf"):
        conversion.measure("open", tmp_path / "nothing.gguf", tmp_path / "bundle")
