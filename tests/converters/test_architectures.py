"""Every architecture file against transformers: logits of seeded tiny models, in all the ways a session feeds tokens."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from edgellm.converters.architectures import available, describe
from edgellm.converters.numpy_ops import ReferenceModel
from edgellm.converters.weights import Weight
from tests.tiny_models import CASES, VARIANTS, MemoryCheckpoint, in_style_of_transformers_4, tiny, torch_logits

TOLERANCE = 1e-4
IDS = np.random.default_rng(7).integers(3, 131, 40)
OTHER = np.random.default_rng(8).integers(3, 131, 40)


def reference(config: Any, state: Any, max_context: int | None = None) -> ReferenceModel:
    spec, tensor = describe(MemoryCheckpoint(config, state), max_context)
    return ReferenceModel(spec, lambda name: Weight(name, tensor(name)))


def close(ours: NDArray[np.float32], theirs: NDArray[np.float32]) -> None:
    assert np.abs(theirs).max() > 0.3  # a model that says nothing agrees with everything
    np.testing.assert_allclose(ours, theirs, rtol=0, atol=TOLERANCE)


def test_every_architecture_file_has_tiny_models() -> None:
    assert set(available()) == set(VARIANTS)
    assert all("plain" in variants for variants in VARIANTS.values())


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_logits_equal_transformers(architecture: str, variant: str) -> None:
    model, config, state = tiny(architecture, variant)
    ours = reference(config, state)
    expected = torch_logits(model, IDS)

    close(ours.logits(IDS), expected)

    ours.rewind(0)  # prefill, then decode token by token
    close(ours.prefill(IDS[:20]), expected[19])
    for at in range(20, len(IDS)):
        close(ours.decode(int(IDS[at])), expected[at])

    ours.rewind(0)  # chunks of uneven size
    for start, stop in ((0, 1), (1, 8), (8, 9), (9, 31), (31, 40)):
        close(ours.run(IDS[start:stop], "all"), expected[start:stop])

    ours.rewind(13)  # another continuation of the first 13
    close(ours.run(OTHER[13:], "all"), torch_logits(model, np.concatenate([IDS[:13], OTHER[13:]]))[13:])


@pytest.mark.parametrize(("architecture", "variant"), CASES)
def test_a_config_of_transformers_4_says_the_same(architecture: str, variant: str) -> None:
    _, config, state = tiny(architecture, variant)
    old = in_style_of_transformers_4(config)
    new_spec, _ = describe(MemoryCheckpoint(config, state))
    old_spec, _ = describe(MemoryCheckpoint(old, state))
    if (architecture, variant) == ("gemma3", "mixed"):
        assert old["sliding_window_pattern"] == 2
    assert "rope_parameters" not in old
    assert old_spec == new_spec
