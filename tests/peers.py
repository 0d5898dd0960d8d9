"""What tests of the comparison with other engines share."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np

from edgellm.benchmarks.peers import engine as peers
from edgellm.benchmarks.peers import quality

ROOT = Path(__file__).parents[1]


def command_line(*arguments: object, cache: Path, module: str = "peers") -> subprocess.CompletedProcess[str]:
    """One of the commands of `benchmarks`, in a process and a cache of its own."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache)}
    command = [sys.executable, "-m", f"edgellm.benchmarks.{module}", *map(str, arguments)]
    return subprocess.run(command, env=environment, capture_output=True, text=True, check=False)


def consistent(engine: peers.Engine, ids: list[int]) -> None:
    """Prefill, steps and all positions are one model, and a reset forgets."""
    every = engine.logits(ids)
    for _ in range(2):
        engine.reset()
        first = engine.prefill(ids[:-3]).copy()
        steps = [engine.step(token).copy() for token in ids[-3:]]
        assert first.shape == every.shape[1:]
        # a pass of one token and of several round their activations differently
        assert quality.compare(every[-4:], np.stack([first, *steps])).kl < 0.02
