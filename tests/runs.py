"""Runs as a machine could have made them, for tests that need one and measure nothing.

    a_run()                                              # smollm2 in onnx with two threads, five rounds and the warm-up
    a_run([a_lane(), a_lane(runtime="tflite")], trials=8, noise=0.04, outliers=0.05, seed=3)
    a_run(slow=1.3)                                      # all of it takes 1.3 times as long; its probes do not
    a_run(slow={"decode": 1.3, "smollm2 onnx 2": 2.0})   # by kind of case, by id of lane; both together are 2.6
    a_run(machine_slow=1.1)                              # cases and probes alike
    a_run(sustained=60.0, energy=None)                   # a minute of decoding that gets hot; no counter of energy

a_run(lanes=(a_lane(),), *, trials=5, noise=0.03, outliers=0.0, slow=1.0, machine_slow=1.0, seed=0, prompts=(128, 512),
      depths=(0, 1024), decode=64, sustained=0.0, energy="rapl", chain=True) -> Run
a_lane(*, model="smollm2", variant="int4", runtime="onnx", threads=2, engine="edgellm", **fields of Lane) -> Lane

Times follow from the lane's bytes and products and the machine's limits: a decode step reads its bytes at 70 % of BANDWIDTH, a
prefill multiplies at 60 % of INT8. On top comes log-normal noise of each sample (its standard deviation is `noise`); with a
chance of `outliers` a sample takes 1.2 to 1.6 times as long. The same arguments give the same run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from edgellm.benchmarks.machine import Machine
from edgellm.benchmarks.result import Case, Lane, Moment, Probe, Quality, Run, Sample, Settings
from edgellm.card import Gap, GraphCard

MACHINE = Machine("Linux-6.6-aarch64", "aarch64", "Cortex-A76", ("dotprod", "fp16", "neon"), 4, 8 << 30, "CPython 3.11.7")
BANDWIDTH = {1: 9e9, 2: 14e9, 4: 17e9}  # bytes a second
INT8 = {1: 60e9, 2: 120e9, 4: 230e9}  # multiply-adds a second
DECODE_SHARE, PREFILL_SHARE = 0.7, 0.6
WATTS = 6.0
WARM_UP = 1.3


def a_lane(
    *,
    model: str = "smollm2",
    variant: str = "int4",
    runtime: str = "onnx",
    threads: int = 2,
    engine: str = "edgellm",
    **fields: Any,
) -> Lane:
    """A lane of SmolLM2-135M's size; its id is "model runtime threads", or "model engine threads" of a peer."""
    name = runtime if engine == "edgellm" else engine
    lane = Lane(
        id=f"{model} {name} {threads}",
        engine=engine,
        model=model,
        source="HuggingFaceTB/SmolLM2-135M-Instruct",
        variant=variant,
        runtime=runtime if engine == "edgellm" else "",
        threads=threads,
        digest=np.random.default_rng(sum(map(ord, model + variant + name))).bytes(32).hex(),
        size=98_000_000,
        bits=4.64,
        weight_bytes=92_000_000,
        cache_bytes=23_040,
        products=134_000_000,
        versions={"edgellm": "0.1.0", name: "1.32.0"},
        fidelity=GraphCard("passed", "KL .083 is below .15", run=Gap(0.083, 0.003, 0.61, 0.874, 2048)),
        quality=Quality("ab" * 32, 0.081, 0.0041, 0.871, (0.05, 0.11, 0.083)),
        agreement=1.0,
    )
    return dataclasses.replace(lane, **fields)


def a_run(
    lanes: Sequence[Lane] = (a_lane(),),
    *,
    trials: int = 5,
    noise: float = 0.03,
    outliers: float = 0.0,
    slow: float | Mapping[str, float] = 1.0,
    machine_slow: float = 1.0,
    seed: int = 0,
    prompts: tuple[int, ...] = (128, 512),
    depths: tuple[int, ...] = (0, 1024),
    decode: int = 64,
    sustained: float = 0.0,
    energy: str | None = "rapl",
    chain: bool = True,
) -> Run:
    """See the module."""
    random = np.random.default_rng(seed)
    threads = tuple(dict.fromkeys(lane.threads for lane in lanes))
    settings = Settings(threads, prompts, depths, decode, trials, sustained, seed)
    cases = _cases(settings, chain=chain)
    samples: list[Sample] = []
    probes: list[Probe] = []
    moments = [_moment(0.0, 41.0)]
    at = 1.0
    for number in range(trials + 1):
        for count in threads:
            for what, limits in (("bandwidth", BANDWIDTH), ("int8", INT8)):
                value = limits[count] / machine_slow * min(1.0, float(random.lognormal(-0.02, 0.01)))
                probes.append(Probe(what, count, number, round(at, 3), value))
                at += 0.5
        for index in random.permutation(len(lanes) * len(cases)):
            lane, case = lanes[index // len(cases)], cases[index % len(cases)]
            factor = machine_slow * (WARM_UP if number == 0 else 1.0) * float(random.lognormal(0, noise))
            factor *= slow if isinstance(slow, int | float) else slow.get(case.kind, 1.0) * slow.get(lane.id, 1.0)
            if random.random() < outliers:
                factor *= float(random.uniform(1.2, 1.6))
            sample = _sample(lane, case, settings, random, factor, energy)
            samples.append(dataclasses.replace(sample, round=number, at=round(at, 3)))
            if case.kind == "sustained":
                moments += [_moment(at + second, _heat(second)) for second in np.arange(0, sample.seconds, 1.0)]
            at += sample.seconds + 0.2
        moments.append(_moment(at, 55.0))
    return Run(
        started="2026-11-30T12:00:00+00:00",
        command="edgellm bench smollm2-int4 --json run.json",
        version="0.1.0",
        machine=MACHINE,
        settings=settings,
        lanes=tuple(lanes),
        samples=tuple(samples),
        probes=tuple(probes),
        moments=tuple(moments),
        energy=energy,
        notes=() if energy else ("energy: this host offers no counter",),
    )


def _cases(settings: Settings, *, chain: bool) -> list[Case]:
    cases = [Case("load", state="cold"), Case("load")]
    cases += [Case("prefill", prompt=prompt) for prompt in settings.prompts]
    cases += [Case("decode", depth=depth, steps=settings.decode) for depth in settings.depths]
    cases += [
        Case("first token", prompt=prompt, state=state) for prompt in settings.prompts for state in ("cold", "warm", "cached")
    ]
    cases += [Case("chain", prompt=settings.prompts[0], steps=settings.decode)] if chain and settings.prompts else []
    return cases + ([Case("sustained")] if settings.sustained else [])


def _sample(
    lane: Lane, case: Case, settings: Settings, random: np.random.Generator, factor: float, energy: str | None
) -> Sample:
    """One sample that takes `factor` times what the limits say."""
    load = {"cold": 1.2, "warm": 0.25, "cached": 0.0}[case.state] if case.kind in ("load", "first token") else 0.0
    load = 0.0 if (case.kind, case.state) == ("first token", "warm") else load * factor
    products = (lane.products or 0) * (16 if case.state == "cached" else case.prompt)
    prefill = products / (PREFILL_SHARE * INT8[lane.threads]) * factor
    steps = _steps(lane, case, settings, random, factor)
    parts = {}
    if case.kind == "chain":
        small = {"template": 4e-4, "tokenize": 2e-3, "sample": 6e-3, "detokenize": 3e-3}
        parts = {name: seconds * factor for name, seconds in small.items()} | {"prefill": prefill, "decode": sum(steps)}
        parts = {name: parts[name] for name in ("template", "tokenize", "prefill", "sample", "decode", "detokenize")}
        steps = [step + (parts["sample"] + parts["detokenize"]) / len(steps) for step in steps]
    seconds = load + prefill + sum(steps) + sum(parts.get(name, 0.0) for name in ("template", "tokenize"))
    resident = round(lane.size * 1.4 * float(random.lognormal(0, 0.003))) + (lane.cache_bytes or 0) * (case.prompt + case.depth)
    return Sample(
        lane=lane.id,
        case=case,
        round=0,
        at=0.0,
        seconds=seconds,
        steps=tuple(steps),
        parts=parts,
        cpu=lane.threads * seconds * 0.96,
        rss=resident,
        pss=round(resident * 0.97),
        joules=WATTS * seconds if energy else None,
        celsius=_heat(seconds),
        mhz=2400.0,
        others=0.02,
        tokens=tuple((case.depth + 7919 * index) % 49152 for index in range(len(steps))) if case.kind == "decode" else (),
    )


def _steps(lane: Lane, case: Case, settings: Settings, random: np.random.Generator, factor: float) -> list[float]:
    rate = DECODE_SHARE * BANDWIDTH[lane.threads] / factor
    weights, cache = lane.weight_bytes or lane.size, lane.cache_bytes or 0
    if case.kind == "sustained":
        steps: list[float] = []
        spent = 0.0
        while spent < settings.sustained:  # a fifth slower when it is hot
            steps.append(weights / rate * (1 + 0.2 * (_heat(spent) - 45) / 40) * float(random.lognormal(0, 0.02)))
            spent += steps[-1]
        return steps
    base = [(weights + cache * (case.depth + case.prompt + index)) / rate for index in range(case.steps)]
    return [seconds * float(random.lognormal(0, 0.02)) for seconds in base]


def _heat(seconds: float) -> float:
    """Degrees after so many seconds of work, from 45 towards 85."""
    return round(45 + 40 * (1 - float(np.exp(-seconds / 30))), 1)


def _moment(at: float, celsius: float) -> Moment:
    throttled = ("thermal: the clock is held down",) if celsius > 82 else ()
    return Moment(round(at, 3), 0.3, 0.02, "", celsius, 2400.0, 2400.0, "performance", throttled)
