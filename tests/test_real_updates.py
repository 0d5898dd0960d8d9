"""An update of a real model: a new recipe for one layer ships that layer, and the device says what the workstation does."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

import edgellm
from edgellm.update_apply import apply, roll_back
from edgellm.update_diff import diff
from tests.bundles import content

LAYER_BYTES = 3_540_000  # of one layer of SmolLM2-135M at 8 bits: 576 * (576 * 2 + 192 * 2) + 3 * 576 * 1536 weights


@pytest.mark.slow
def test_a_recipe_ships_its_layer(models: Callable[[str], Path], tmp_path: Path) -> None:
    (tmp_path / "recipe.toml").write_text("[[rule]]\nlayers = 15\nbits = 8\n", encoding="utf-8")
    device = edgellm.convert(models("smollm2"), tmp_path / "device", method="rtn").path
    new = edgellm.convert(models("smollm2"), tmp_path / "new", method="rtn", recipe=tmp_path / "recipe.toml").path
    before = content(device)
    made = diff(device, new, tmp_path / "update")
    assert LAYER_BYTES * 0.9 < made.size < LAYER_BYTES * 1.2
    apply(made.path, device)
    assert content(device) == content(new)
    prompt = "The capital of France is"
    with edgellm.load(new) as theirs, edgellm.load(device) as ours:
        wanted = theirs.generate(prompt, max_tokens=8, temperature=0)
        assert ours.generate(prompt, max_tokens=8, temperature=0).ids == wanted.ids
    assert "Paris" in wanted.text
    roll_back(device)
    assert content(device) == before
