"""A run as a file: every sample, and all that it takes to understand them. docs/bench-result.md is its description.

    run = read("run.json")
    write(run, "copy.json")

Tables, plots and comparisons are drawn from a run and from nothing else, so that a file that was sent by mail says as much as
the machine on which it was made.
"""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from edgellm._typed import build
from edgellm.benchmarks.machine import Machine
from edgellm.card import GraphCard
from edgellm.errors import ResourceError, UsageError

SCHEMA = 1
KIND = "edgellm benchmark run"
MOST = 1 << 53  # what a whole number is below, as a float is that came as one

Kind = Literal["load", "prefill", "decode", "first token", "chain", "sustained"]
State = Literal["cold", "warm", "cached"]


@dataclass(frozen=True)
class Case:
    """What was timed.

    Attributes:
        kind: load: from the call to an engine that can run. prefill: a prompt into an empty cache, up to the logits of its
            last token. decode: greedy steps, one token each. first token: from a prompt to the first token, the load before it
            included where it is cold. chain: the same way as a user's text goes: template, tokenize, prefill, then sampling,
            decode and detokenize for each token. sustained: decode for minutes.
        prompt: tokens that are taken in.
        depth: tokens in the cache before the first step.
        steps: tokens decoded; 0 where there are none, or where time and not their number ends it.
        state: cold: its files were not in memory. cached: the prompt's beginning was in the KV cache.
    """

    kind: Kind
    prompt: int = 0
    depth: int = 0
    steps: int = 0
    state: State = "warm"

    @property
    def name(self) -> str:
        """As tables call it: "prefill 512", "decode after 1024", "load, cold"."""
        count = {"decode": f" after {self.depth}", "prefill": f" {self.prompt}", "load": "", "sustained": ""}
        words = self.kind + count.get(self.kind, f" after {self.prompt}")
        return words if self.state == "warm" else f"{words}, {self.state}"


@dataclass(frozen=True)
class Sample:
    """One case, timed once.

    Attributes:
        lane: id of its lane.
        round: 0 is the warm-up, which is kept to be looked at and counts in no statistic.
        at: seconds from the run's start to the sample's.
        seconds: wall time.
        steps: seconds of each token, of decode, sustained and chain; empty where an engine tells of all of them together.
        parts: seconds by part, of a chain: "template", "tokenize", "prefill", "sample", "decode", "detokenize"; of a load:
            "import", of the packages that it needs, which comes before it.
        cpu: CPU seconds of the process, all threads together.
        rss, pss: bytes: peak resident during the case, and proportional share at its end.
        joules: by the run's counter, of what that counts.
        celsius, mhz: at its end: the hottest sensor, and the mean clock of the processors in use.
        others: processors that other processes kept busy meanwhile.
        tokens: ids that were found, where tokens were asked for.
    """

    lane: str
    case: Case
    round: int
    at: float
    seconds: float
    steps: tuple[float, ...] = ()
    parts: Mapping[str, float] = field(default_factory=dict)
    cpu: float | None = None
    rss: int | None = None
    pss: int | None = None
    joules: float | None = None
    celsius: float | None = None
    mhz: float | None = None
    others: float | None = None
    tokens: tuple[int, ...] = ()


@dataclass(frozen=True)
class Quality:
    """How close a lane's next-token distributions are to the source's at float32, on the text that all lanes were judged by.

    Attributes:
        text: sha256 of the text's token ids.
        kl, kl_error: mean of KL(source || lane) over positions in nats, and its standard error.
        top1: share of positions where both find the same token likeliest.
        divergences: KL of every position, so that two lanes can be compared position by position.
    """

    text: str
    kl: float
    kl_error: float
    top1: float
    divergences: tuple[float, ...] = ()


@dataclass(frozen=True)
class Recipe:
    """What a file is made of, as who made it says.

    Attributes:
        bits: of a weight of the linears, by the name of its type: 4 where scales make 4.5 of it.
        block: inputs of a linear that share a scale; 0 is a whole row.
        embedding, head: bits of these; of an embedding as "tied or untied" where that makes a difference.
        kv: element type of the KV cache.
        bits_half: `Lane.bits` if scales that are stored in 32 bits had 16.
    """

    bits: int
    block: int | None = None
    embedding: str | None = None
    head: int | None = None
    kv: str | None = None
    bits_half: float | None = None


@dataclass(frozen=True)
class Lane:
    """A row: one file in one engine with so many threads.

    Attributes:
        id: unique in the run, such as "smollm2 onnx 2".
        engine: "edgellm", or the peer's name; in a browser the library.
        model: the bundle's name, or that of the model in a comparison.
        source: what it was made of.
        variant: the recipe, or which of the peer's files.
        runtime: adapter of edgellm; "browser" in one; "" of a peer.
        threads: that a step uses.
        digest: sha256 of the bundle's edgellm.json, which has those of all its files, or of the peer's file.
        size: bytes of the graph's files.
        bits: of a weight of the layers' linears, counted in the file.
        weight_bytes: bytes of weights that one decoded token reads; None where the engine does not tell.
        cache_bytes: bytes of KV cache that one position takes.
        products: multiply-adds in linears for each token of a prompt.
        versions: of the packages that ran it.
        fidelity: of the bundle's card, the part of this runtime.
        quality: as measured in this run.
        agreement: share of the decoded tokens that one pass over the same tokens finds likeliest too.
        failed: why it has no result, in a line.
        doubts: what speaks against its figures; empty if nothing does.
        recipe: what it is made of, of files that are made for a comparison.
        device: what runs it where that is not the processors alone, such as "onnxruntime-web on WebGPU: Adreno 740";
            "" where it is.
    """

    id: str
    engine: str
    model: str
    source: str
    variant: str
    runtime: str
    threads: int
    digest: str
    size: int
    bits: float | None = None
    weight_bytes: int | None = None
    cache_bytes: int | None = None
    products: int | None = None
    versions: Mapping[str, str] = field(default_factory=dict)
    fidelity: GraphCard | None = None
    quality: Quality | None = None
    agreement: float | None = None
    failed: str | None = None
    doubts: tuple[str, ...] = ()
    recipe: Recipe | None = None
    device: str = ""


@dataclass(frozen=True)
class Probe:
    """What the machine itself can do, measured between the lanes.

    Attributes:
        what: bandwidth: bytes read from memory in a second. int8: multiply-adds of 8-bit integers in a second.
        threads: that shared the work.
        round: as of samples.
        at: seconds from the run's start.
        value: in the unit of `what`.
    """

    what: Literal["bandwidth", "int8"]
    threads: int
    round: int
    at: float
    value: float


@dataclass(frozen=True)
class Moment:
    """The machine at one moment.

    Attributes:
        at: seconds from the run's start.
        load: load average over a minute.
        others: processors that other processes keep busy.
        busiest: the process that takes the most of them, or "".
        celsius: the hottest sensor.
        mhz: mean clock of the processors in use; `mhz_limit` is what they may reach.
        governor: of the processors in use; several are joined by "/".
        throttled: what the system says of throttling, a reason each.
    """

    at: float
    load: float | None = None
    others: float | None = None
    busiest: str = ""
    celsius: float | None = None
    mhz: float | None = None
    mhz_limit: float | None = None
    governor: str | None = None
    throttled: tuple[str, ...] = ()


@dataclass(frozen=True)
class Settings:
    """What was asked for.

    Attributes:
        threads: thread counts, each a lane of its own; 0 is what suits the machine.
        prompts: lengths in tokens, each a prefill and a first token.
        depths: tokens in the cache before decoding.
        decode: steps after each of them.
        trials: rounds that count; one more is the warm-up.
        sustained: seconds of decoding without a break; 0 is none.
        seed: of the order in the rounds, and of the bootstrap that is made of them.
    """

    threads: tuple[int, ...] = (0,)
    prompts: tuple[int, ...] = (128, 512)
    depths: tuple[int, ...] = (0, 1024)
    decode: int = 64
    trials: int = 5
    sustained: float = 0.0
    seed: int = 0


@dataclass(frozen=True)
class Run:
    """Everything that one call measured.

    Attributes:
        started: UTC, ISO 8601.
        command: as it was called.
        version: of edgellm.
        machine: where.
        energy: the counter that joules come from; None where the host offers none.
        complete: False where it was interrupted: the rounds that were finished are there.
        doubts: what speaks against all of its figures.
        notes: what was left out, and why.
        host: what the user calls the machine, where it is another one; "" is the one that the command ran on.
    """

    started: str
    command: str
    version: str
    machine: Machine
    settings: Settings
    lanes: tuple[Lane, ...]
    samples: tuple[Sample, ...]
    probes: tuple[Probe, ...] = ()
    moments: tuple[Moment, ...] = ()
    energy: str | None = None
    complete: bool = True
    doubts: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    host: str = ""
    schema: int = SCHEMA
    kind: str = KIND


def read(path: str | os.PathLike[str]) -> Run:
    """The run in a file.

    Raises:
        UsageError: no such file, or none of a run, or one of a later schema.
    """
    again = "give a file that 'edgellm bench --json' wrote"
    try:
        value = json.loads(Path(path).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        reason = error.strerror if isinstance(error, OSError) else "no JSON"
        raise UsageError(f"cannot be read: {reason}", where=path, fix=again) from error
    if not isinstance(value, dict) or value.get("kind") != KIND:
        raise UsageError("no benchmark run", where=path, fix=again)
    if value.get("schema") != SCHEMA:
        what = f"a run of schema {value.get('schema')}, and this edgellm reads {SCHEMA}"
        raise UsageError(what, where=path, fix="upgrade edgellm, or measure again")
    try:
        run = build(Run, value)
        _check(run)
    except ValueError as error:
        raise UsageError(f"damaged: {error}", where=path, fix="measure again") from error
    return run


def _check(run: Run) -> None:
    """What the types do not say. Raises ValueError."""
    if any(abs(number) >= MOST for number in _whole(dataclasses.asdict(run))):
        raise ValueError("a number is larger than any that was measured")
    ids = [lane.id for lane in run.lanes]
    if len(set(ids)) < len(ids):
        raise ValueError("two lanes have one id")
    for index, sample in enumerate(run.samples):
        if sample.lane not in ids:
            raise ValueError(f"'samples[{index}]' is of no lane")
        if min(sample.case.prompt, sample.case.depth, sample.case.steps) < 0:
            raise ValueError(f"'samples[{index}]' has fewer tokens than none")
        if sample.seconds <= 0 or sample.round < 0 or any(step <= 0 for step in sample.steps):
            raise ValueError(f"'samples[{index}]' has a time or a round that cannot be")


def _whole(value: object) -> Iterator[int]:
    """The whole numbers in a JSON value."""
    if isinstance(value, int):
        yield value
    elif isinstance(value, Mapping):
        yield from (number for entry in value.values() for number in _whole(entry))
    elif isinstance(value, tuple | list):
        yield from (number for entry in value for number in _whole(entry))


def write(run: Run, path: str | os.PathLike[str]) -> None:
    """Write a run; the file appears whole or not at all.

    Raises:
        ResourceError: it cannot be written.
    """
    path = Path(path)
    if path.exists() and not path.is_file():  # a device or a pipe is written to, and not replaced
        _write_to(path, run)
        return
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        partial.write_text(to_json(run), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise ResourceError(f"cannot write: {error.strerror or error}", where=path, fix="choose another file") from error
    finally:
        partial.unlink(missing_ok=True)


def _write_to(path: Path, run: Run) -> None:
    try:
        path.write_text(to_json(run), encoding="utf-8")
    except OSError as error:
        raise ResourceError(f"cannot write: {error.strerror or error}", where=path, fix="choose another file") from error


def to_json(run: Run) -> str:
    """A run as JSON: a line for each lane, sample and probe, so that it stays readable at thousands of them."""
    value = dataclasses.asdict(run)
    first = {"schema": value.pop("schema"), "kind": value.pop("kind")}
    parts = [f" {json.dumps(name)}: {_lines(entry)}" for name, entry in {**first, **value}.items()]
    return "{\n" + ",\n".join(parts) + "\n}\n"


def _lines(entry: object) -> str:
    if isinstance(entry, tuple | list) and entry and isinstance(entry[0], dict):
        return "[\n  " + ",\n  ".join(_dumps(item) for item in entry) + "\n ]"
    return _dumps(entry)


def _dumps(entry: object) -> str:
    return json.dumps(entry, ensure_ascii=False, allow_nan=False)
