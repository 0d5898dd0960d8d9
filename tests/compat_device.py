"""Runs in the environment with tflite-runtime: `python compat_device.py FOLDER`; see tests/compat_model.py."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import numpy as np

from edgellm._typed import build
from edgellm.bundle import Graph
from edgellm.runtimes.tflite_compat import open_model


def main(folder: Path) -> None:
    """Every case's calls, one after the other in one session."""
    results: dict[str, Any] = {}
    for number, case in enumerate(json.loads((folder / "cases.json").read_text(encoding="utf-8"))):
        graph = build(Graph, case["graph"])
        path = Path(case["folder"]) / graph.file
        runtime = open_model(path, graph, vocab=case["vocab"], threads=1, max_context=case["max_context"])
        session = runtime.session()
        for index, (call, argument) in enumerate(case["calls"]):
            logits = getattr(session, call)(argument)
            if logits is not None:
                results[f"{number}/{index}"] = np.array(logits)
        runtime.close()
    np.savez(folder / "results.npz", **results)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
