"""A run made by hand: four files of llama.cpp's and one of ours, three rounds, two depths, one and two threads."""

from __future__ import annotations

from dataclasses import replace

from edgellm.benchmarks.machine import Machine
from edgellm.benchmarks.result import Case, Lane, Moment, Quality, Recipe, Run, Sample, Settings

MACHINE = Machine("Linux", "x86_64", "A CPU", (), 2, None, "CPython 3.11")
OURS = "edgellm-onnx:int4"
CLOSER, FINE = "llama.cpp:q8_0", "llama.cpp:q5_0"
TIED, BEST = "llama.cpp:q4_k_m-imatrix", "llama.cpp:q4_0"
PREFILL, SHORT, LONG = Case("prefill", prompt=512), Case("decode", depth=32, steps=4), Case("decode", depth=1024, steps=4)

SPEEDS = {CLOSER: (50, 55), FINE: (40, 35), OURS: (150, 70), TIED: (100, 60), BEST: (110, 50)}  # after 32, after 1024
DIVERGENCES = {
    CLOSER: (0.009, 0.011, 0.012, 0.008),
    FINE: (0.05, 0.05, 0.05, 0.05),
    OURS: (0.05, 0.15, 0.12, 0.08),
    TIED: (0.09, 0.112, 0.11, 0.096),
    BEST: (0.3, 0.3, 0.3, 0.3),
}
STORED = {OURS: (5.125, 4.625), FINE: (5.5, 5.5), TIED: (4.8, 4.8), BEST: (4.5, 4.5)}


def judged(*divergences: float) -> Quality:
    return Quality("", sum(divergences) / len(divergences), 0.01, 0.9, divergences)


def lane(label: str, threads: int = 1, model: str = "tiny") -> Lane:
    """One that tables call so."""
    engine, _, variant = label.partition(":")
    name, _, runtime = engine.partition("-")
    if name != "edgellm":
        name, runtime = engine, ""
    return Lane(f"{model} {label} {threads}", name, model, f"{model}.gguf", variant, runtime, threads, "", 3_000_000)


def decoded(lane: Lane, case: Case, number: int, speed: float) -> Sample:
    """Steps of which one takes twice as long as the others, at so many tokens a second in all."""
    short = case.steps / speed / (case.steps + 1)
    steps = (2 * short, *[short] * (case.steps - 1))
    return Sample(lane.id, case, number, 0.0, sum(steps), steps, others=0.0)


def made() -> Run:
    """All of it."""
    lanes, samples = [], []
    for label, speeds in SPEEDS.items():
        bits, half = STORED.get(label, (None, None))
        for threads in (1, 2):
            found = replace(lane(label, threads), bits=bits, recipe=Recipe(4, 32, bits_half=half))
            lanes.append(replace(found, quality=judged(*DIVERGENCES[label]), versions={"edgellm": "0.1"}))
            for number, more in enumerate((0, -10, 10), start=1):
                samples.append(Sample(found.id, PREFILL, number, 0.0, 512 / (1000 + 10 * more), others=0.0))
                samples += [
                    decoded(found, case, number, threads * (speed + more))
                    for case, speed in zip((SHORT, LONG), speeds, strict=True)
                ]
    return Run(
        started="2026-01-02T03:04:05+00:00",
        command="python -m edgellm.benchmarks.frontier --trials 3",
        version="0.1",
        machine=MACHINE,
        settings=Settings((1, 2), (512,), (32, 1024), 4, 3),
        lanes=tuple(lanes),
        samples=tuple(samples),
        moments=(Moment(0.0, 0.05, 0.0),),
        notes=("tiny, llama.cpp:q6_k: it broke",),
    )
