"""Where a prompt's and a step's time goes, by operator: onnxruntime's own profiler over the sessions that `LLM` uses.

    python -m edgellm.benchmarks.operators BUNDLE --threads 1

Profiling makes a step about a third slower, so the shares are what counts.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.benchmarks import script
from edgellm.bundle import Bundle
from edgellm.runtimes import onnx

PROMPT, DEPTH, STEPS = 512, 32, 64
KERNEL = "_kernel_time"


@dataclass(frozen=True)
class Share:
    """An operator, its milliseconds in one prompt or step, and its part of all operators' time."""

    operator: str
    ms: float
    part: float


def profile(path: Path, threads: int) -> dict[str, list[Share]]:
    """Shares of a prompt of PROMPT tokens and of a step after DEPTH, largest first; the bundle has an ONNX graph."""
    bundle = Bundle.open(path)
    bundle.ensure_verified()
    onnx.load(bundle, threads=threads, max_context=1).close()  # telemetry off, and the manifest checked
    import onnxruntime  # type: ignore[import-untyped]

    graph = bundle.graphs[onnx.NAME]
    with tempfile.TemporaryDirectory(prefix="edgellm-operators-") as folder:
        options = onnx.session_options(onnxruntime, threads)
        options.enable_profiling, options.profile_file_prefix = True, str(Path(folder) / "profile")
        inference = onnxruntime.InferenceSession(str(bundle.file(graph.file)), options, providers=["CPUExecutionProvider"])
        vocab = bundle.spec.vocab_size
        room = min(bundle.spec.max_context, PROMPT + 1)
        runtime = onnx.OnnxRuntime(inference, graph, vocab=vocab, threads=threads, max_context=room)
        ids = np.random.default_rng(0).integers(0, vocab, room - 1).tolist()
        session = runtime.session()
        runs = []  # of which phase each run of the graph was, in order
        for trial in range(3):  # the first one allocates
            session.rewind(0)
            session.prefill(ids)
            runs += ["prompt" if trial else ""] * -(-len(ids) // onnx.CHUNK)
        session.rewind(0)
        session.prefill(ids[:DEPTH])
        for token in ids[:STEPS]:
            session.decode(token)
        runs += ["", *["step"] * min(STEPS, len(ids))]
        events = json.loads(Path(inference.end_profiling()).read_text(encoding="utf-8"))
    return {phase: _shares(events, runs, phase, times) for phase, times in (("prompt", 2), ("step", runs.count("step")))}


def _shares(events: Sequence[Mapping[str, Any]], runs: Sequence[str], phase: str, times: int) -> list[Share]:
    whole = sorted((event["ts"], event["ts"] + event["dur"]) for event in events if event["name"] == "model_run")
    wanted = [span for span, name in zip(whole, runs, strict=True) if name == phase]
    starts = [start for start, _ in wanted]
    spent: dict[str, float] = {}
    for event in events:
        if event.get("cat") != "Node" or not event["name"].endswith(KERNEL):
            continue
        place = bisect_right(starts, event["ts"]) - 1
        if place >= 0 and event["ts"] < wanted[place][1]:
            name = _operator(event["args"])
            spent[name] = spent.get(name, 0.0) + event["dur"]
    total = sum(spent.values())
    return [Share(name, us / times / 1000, us / total) for name, us in sorted(spent.items(), key=lambda each: -each[1])]


def _operator(arguments: Mapping[str, Any]) -> str:
    """Its type and, for a product, what comes out last: products of one kind of layer are told apart by it."""
    name = str(arguments["op_name"])
    shapes = [shape for entry in arguments.get("output_type_shape", []) for shape in entry.values()]
    return f"{name} to {shapes[0][-1]}" if name in ("MatMulNBits", "FusedMatMul") and shapes else name


@script.ends
def main() -> None:
    """The command: a Markdown table for each."""
    parser = argparse.ArgumentParser(prog="python -m edgellm.benchmarks.operators", description=__doc__)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    titles = {"prompt": f"a prompt of up to {PROMPT} tokens", "step": f"a step after {DEPTH} to {DEPTH + STEPS} tokens"}
    for phase, shares in profile(arguments.bundle, arguments.threads).items():
        print(f"{titles[phase]}, {arguments.threads} threads, {sum(share.ms for share in shares):.2f} ms in operators\n")
        print("| operator | ms | share |\n|---|---|---|")
        print("\n".join(f"| {share.operator} | {share.ms:.3f} | {share.part:.1%} |" for share in shares[:12]), end="\n\n")


if __name__ == "__main__":
    sys.exit(main())
