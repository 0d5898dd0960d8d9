"""What is asked in each runtime on every board that it runs on: the same text as here, as close to the source, by the right
kernels.

    RUNTIME, KERNELS = "onnx", {"cortex-a76": {DOTPROD}}       # of the module; the fixtures `here` and `there` read them

    class TestSame(Same): ...

Integer kernels round in ways of their own on each class of processors, so tokens of real weights may differ where two are
nearly as likely: what counts there is the distance from the source, and that hardly any token changes.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

from tests.arm import learned
from tests.arm.asking import Answer, Job, Run, agreement, divergence

OTHERS = {"onnxruntime", "ai_edge_litert", "onnx", "torch", "click", "rich"}


@dataclass(frozen=True)
class Here:
    """The jobs, this machine's answers, and what the trimmed model says at float32."""

    jobs: dict[str, Job]
    answers: dict[str, Answer]
    source: Answer


@dataclass(frozen=True)
class There:
    """A board's answers to the same."""

    kind: str
    run: Run


class Same:
    """Tests of a module."""

    @pytest.mark.parametrize("quant", ["fp32", "int8", "int4"])
    def test_the_text_is_the_same(self, here: Here, there: There, quant: str) -> None:
        ours, theirs = here.answers[quant], there.run.answers[quant]
        assert there.run.machine == "aarch64"
        assert len(ours.tokens) == len(learned.TEXT) - len(learned.PROMPT)
        assert theirs.tokens == ours.tokens
        if quant == "fp32":
            np.testing.assert_allclose(theirs.logits, ours.logits, atol=1e-3)
        assert agreement(ours.logits, theirs.logits) >= 0.99
        assert divergence(ours.logits, theirs.logits) < 1e-4

    def test_real_weights_of_4_bits_are_as_close_to_their_source(self, here: Here, there: There) -> None:
        ours, theirs = here.answers["smollm2"].logits, there.run.answers["smollm2"].logits
        assert agreement(ours, theirs) >= 0.95
        assert divergence(here.source.logits, theirs) < 1.1 * divergence(here.source.logits, ours)

    def test_the_kernels_are_this_processor_s(self, there: There, request: Any) -> None:
        assert {extension for extension, _ in there.run.instructions} == request.module.KERNELS[there.kind]
        assert all(request.module.LIBRARY in file.lower() for _, file in there.run.instructions), there.run.instructions
        assert there.run.blocks > 10_000

    def test_little_is_imported(self, there: There, request: Any) -> None:
        assert there.run.modules >= {request.module.PACKAGE, "numpy", "tokenizers"}
        assert there.run.modules & (OTHERS - {request.module.PACKAGE}) == set()
