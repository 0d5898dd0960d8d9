"""The search on simulated machines: a speed model that knows what is best, and noise over it."""

from __future__ import annotations

import itertools
import json
import random
import statistics
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import pytest

from edgellm.benchmarks.tune import DECISION, Tuning, placements, tune
from edgellm.benchmarks.turn import Turn
from edgellm.bundle import Bundle
from edgellm.conversion import convert
from edgellm.errors import InferenceError, RuntimeUnavailable
from edgellm.runtimes import preference
from edgellm.runtimes.threads import Topology, topology
from edgellm.runtimes.tuned import How
from tests.boards import machine, write

CHUNKS = {"onnx": (32, 64, 128, 256), "tflite": (8, 128)}
OWN_CHUNK = 128


@pytest.fixture(scope="module")
def bundle(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tiny_source, tmp_path_factory.mktemp("both") / "tiny", target="both").path


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))


@dataclass
class Board:
    """A machine whose speed is known: every step waits for its slowest thread.

    Attributes:
        capacity: of each CPU, 1024 the strongest.
        siblings: of each CPU the hardware threads of its core, where two share one.
        runtimes: how fast each is.
        overhead: milliseconds of a step that each thread adds.
        astray: what it costs where the scheduler may move threads between kinds of cores.
        chunks: how fast a prompt goes in such chunks, 1 where it is not said.
        noise: standard deviation of a measurement's logarithm; one in twenty takes half as long again.
        drift: times that everything takes after a hundred measurements.
    """

    capacity: list[int]
    siblings: list[str] = field(default_factory=list)
    quota: float | None = None
    runtimes: Mapping[str, float] = field(default_factory=lambda: {"onnx": 1.0, "tflite": 0.85})
    decode: float = 10.0  # seconds of a single thread on the strongest core
    prefill: float = 8.0
    overhead: float = 0.05
    astray: float = 1.2
    chunks: Mapping[int, float] = field(default_factory=dict)
    noise: float = 0.02
    drift: float = 1.0

    def topology(self, root: Path) -> Topology:
        tells = len(set(self.capacity)) > 1
        machine(root, siblings=self.siblings or None, capacity=self.capacity if tells else None)
        if self.quota is not None:
            write(root, "proc/self/cgroup", "0::/\n")
            write(root, "sys/fs/cgroup/cpu.max", f"{int(self.quota * 100_000)} 100000\n")
        return topology(range(len(self.capacity)), root)

    def true(self, how: How, threads: int) -> tuple[float, float]:
        """Seconds of the prompt and of the steps."""
        count = how.threads or threads
        cpus = sorted(how.cpus or range(len(self.capacity)), key=lambda cpu: -self.capacity[cpu])
        used, shared = cpus[:count], 1.0
        if self.siblings and len({self.siblings[cpu] for cpu in cpus}) < count:
            shared = 2.0  # two threads of a core, each at half its speed
        slowest = min(self.capacity[cpu] for cpu in used) / 1024 / shared
        waits = 1.0 if self.quota is None else max(1.0, count / self.quota) ** 3
        if not how.cpus and len(set(self.capacity)) > 1 and count > 1:
            waits *= self.astray
        speed = self.runtimes[how.runtime]
        parallel = waits / (count * slowest * speed)
        chunk = self.chunks.get(how.chunk or OWN_CHUNK, 1.0)
        return self.prefill * parallel / chunk + self.overhead * count, self.decode * parallel + self.overhead * count

    def clock(self, seed: int, threads: int) -> Callable[[How], Turn]:
        """Measurements of this board."""
        draw, taken = random.Random(seed), itertools.count()

        def measure(how: How) -> Turn:
            slow = draw.lognormvariate(0, self.noise) * (1.5 if draw.random() < 0.05 else 1.0)
            slow *= self.drift ** (next(taken) / 100)
            prefill, decode = (part * slow * draw.lognormvariate(0, self.noise / 2) for part in self.true(how, threads))
            return Turn(prefill, decode, CHUNKS[how.runtime], OWN_CHUNK if how.chunk is None else how.chunk)

        return measure

    def tuned(self, bundle: Path, root: Path, seed: int = 0) -> Tuning:
        place = self.topology(root)
        return tune(bundle, measure=self.clock(seed, place.threads), machine=place, seed=seed)

    def every(self, place: Topology) -> list[How]:
        """All ways there are, whatever tune thinks of trying."""
        sets = [
            (),
            *(
                tuple(c for c, value in enumerate(self.capacity) if value >= least)
                for least in set(self.capacity) - {min(self.capacity)}
            ),
        ]
        ways = itertools.product(self.runtimes, range(1, len(self.capacity) + 1), sets)
        hows = [How(name, count, cpus) for name, count, cpus in ways if not cpus or count <= len(cpus)]
        return [replace(how, chunk=chunk) for how in hows for chunk in CHUNKS[how.runtime]]


BIG_LITTLE = Board([405] * 4 + [1024] * 4)
BOARDS = {
    "big.LITTLE": (BIG_LITTLE, How("onnx", 4, (4, 5, 6, 7))),
    "three kinds": (Board([250] * 4 + [871] * 3 + [1024]), How("onnx", 4, (4, 5, 6, 7))),
    "six and two": (Board([700] * 6 + [1024] * 2, overhead=0.02), How("onnx")),
    "tflite is faster": (Board([405] * 4 + [1024] * 4, runtimes={"onnx": 1.0, "tflite": 1.5}), How("tflite", 4, (4, 5, 6, 7))),
    "four alike": (Board([1024] * 4), How("onnx")),
    "four alike, memory is the limit": (Board([1024] * 4, overhead=0.9, prefill=40.0), How("onnx")),
    "eight alike, threads cost": (Board([1024] * 8, overhead=0.4), How("onnx", 4)),
    "hardware threads": (Board([1024] * 8, ["0,4", "1,5", "2,6", "3,7"] * 2), How("onnx")),
    "a quota": (Board([1024] * 8, quota=2.5, runtimes={"onnx": 1.0, "tflite": 1.3}), How("tflite")),
    "short chunks": (Board([1024] * 4, chunks={32: 1.0, 64: 1.3, 256: 0.9, 8: 0.5}), How("onnx", None, (), 64)),
    "it slows down": (replace(BIG_LITTLE, drift=3.0), How("onnx", 4, (4, 5, 6, 7))),
}


@pytest.mark.parametrize("name", BOARDS)
def test_the_best_way_is_found(name: str, bundle: Path, tmp_path: Path) -> None:
    board, best = BOARDS[name]
    place = board.topology(tmp_path)
    chosen = [board.tuned(bundle, tmp_path, seed).chosen for seed in range(10)]
    assert chosen.count(best) >= 9, chosen
    default = sum(board.true(How("onnx"), place.threads))
    assert all(sum(board.true(how, place.threads)) <= default for how in chosen), "never slower than the default"
    fastest = min(sum(board.true(how, place.threads)) for how in board.every(place) if acceptable(board, how, place))
    assert sum(board.true(best, place.threads)) <= 1.03 * fastest


def acceptable(board: Board, how: How, place: Topology) -> bool:
    """Whether the prompt takes no longer than by default."""
    return board.true(how, place.threads)[0] <= 1.03 * board.true(How("onnx"), place.threads)[0]


def test_the_figures_are_those_of_the_board(bundle: Path, tmp_path: Path) -> None:
    tuning = replace(BIG_LITTLE, noise=0.0).tuned(bundle, tmp_path)
    pinned = 10 / 4 + 8 / 4 + 2 * 4 * 0.05
    default = 1.2 * (10 / 4 + 8 / 4) + 2 * 4 * 0.05
    assert (tuning.turn, tuning.default_turn) == pytest.approx((pinned, default), rel=1e-9)
    placed, *_ = tuning.decisions
    assert (placed.base, placed.candidate, placed.taken) == (How("onnx"), How("onnx", 4, (4, 5, 6, 7)), True)
    rounds = [each.round for each in tuning.samples if each.how == placed.candidate]
    both = [each.turn.seconds for each in tuning.samples if each.how == placed.candidate]
    assert len(rounds) == len(set(rounds)) >= DECISION
    row = next(row for row in tuning.rows if row.how == placed.candidate)
    assert (row.turn, row.rounds, row.outcome) == (statistics.median(both), len(rounds), "chosen")
    assert tuning.reason == placed.text


def test_the_default_is_in_every_round_and_the_order_is_random(bundle: Path, tmp_path: Path) -> None:
    tuning = BIG_LITTLE.tuned(bundle, tmp_path)
    rounds = [list(group) for _, group in itertools.groupby(tuning.samples, key=lambda each: each.round)][1:]
    places = [[each.how for each in each_round].index(How("onnx")) for each_round in rounds]
    assert len(rounds) > 2 * DECISION
    assert {0, 1} <= set(places)
    assert 0.2 < sum(place == 0 for place in places) / len(places) < 0.8


MACHINES = 200
MOST = 6  # of 200, where each has one chance in a hundred: more are as likely as one in two hundred


@dataclass
class Flat(Board):
    """Where every way is as fast as any other, or slower than the default by a little."""

    loss: float = 0.0

    def true(self, how: How, threads: int) -> tuple[float, float]:
        slower = 1.0 if how == How("onnx") else 1 + self.loss
        return 3.0 * slower, 5.0 * slower


@pytest.mark.slow
@pytest.mark.parametrize(("loss", "noise"), [(0.0, 0.02), (0.0, 0.15), (0.01, 0.05)])
def test_where_nothing_is_faster_the_default_stays(loss: float, noise: float, bundle: Path, tmp_path: Path) -> None:
    """The stated rate: of 200 machines at most about two store something else."""
    board = Flat([405] * 4 + [1024] * 4, loss=loss, noise=noise)
    chosen = [board.tuned(bundle, tmp_path, seed).chosen for seed in range(MACHINES)]
    stored = [how for how in chosen if how != How("onnx")]
    assert len(stored) <= MOST, stored


def test_what_is_surely_slower_is_never_stored(bundle: Path, tmp_path: Path) -> None:
    board = Flat([405] * 4 + [1024] * 4, loss=0.1, noise=0.03)
    assert {board.tuned(bundle, tmp_path, seed).chosen for seed in range(20)} == {How("onnx")}


def test_a_tenth_is_found(bundle: Path, tmp_path: Path) -> None:
    board = Board([1024] * 4, runtimes={"onnx": 1.0, "tflite": 1.1}, overhead=0.0, noise=0.02)
    found = [board.tuned(bundle, tmp_path, seed).chosen for seed in range(20)]
    assert found.count(How("tflite")) >= 18


@pytest.mark.parametrize(("longer", "chosen"), [(1.2, How("onnx")), (1.045, How("onnx")), (1.015, How("onnx", 2))])
def test_steps_may_not_be_bought_with_the_prompt(longer: float, chosen: How, bundle: Path, tmp_path: Path) -> None:
    @dataclass
    class Trade(Board):
        def true(self, how: How, threads: int) -> tuple[float, float]:
            return (2.0 * longer, 10.0 / 1.5) if how == How("onnx", 2) else (2.0, 10.0) if how == How("onnx") else (2.2, 11.0)

    assert Trade([1024] * 4, runtimes={"onnx": 1.0}, noise=0.002).tuned(bundle, tmp_path).chosen == chosen


def test_what_is_refused_does_not_hide_the_next_best(bundle: Path, tmp_path: Path) -> None:
    """Two threads decode best and are slow with prompts; tflite is faster at both."""

    @dataclass
    class Trade(Board):
        def true(self, how: How, threads: int) -> tuple[float, float]:
            if how.threads == 2:
                return 4.0, 5.0
            return (1.8, 9.0) if how == How("tflite") else (2.0, 10.0)

    assert Trade([1024] * 4).tuned(bundle, tmp_path).chosen == How("tflite")


def test_what_bench_found_is_the_default_to_beat(bundle: Path, tmp_path: Path) -> None:
    preference.remember(Bundle.open(bundle), {"onnx": 1.0, "tflite": 2.0})
    tuning = Flat([1024] * 4).tuned(bundle, tmp_path)
    assert tuning.default == tuning.chosen == How("tflite")


def test_a_way_that_fails_is_left_out(bundle: Path, tmp_path: Path) -> None:
    board = Board([1024] * 4, runtimes={"onnx": 1.0, "tflite": 2.0})
    place = board.topology(tmp_path)
    clock = board.clock(0, place.threads)

    def measure(how: How) -> Turn:
        if how.runtime == "tflite":
            raise InferenceError("the process that measured it ended with status -9")
        return clock(how)

    tuning = tune(bundle, measure=measure, machine=place)
    assert tuning.chosen == How("onnx")
    assert [how for how, _ in tuning.failed] == [How("tflite")], "not tried again in other ways"
    assert "status -9" in tuning.failed[0][1]


def test_a_winner_that_fails_later_is_not_stored(bundle: Path, tmp_path: Path) -> None:
    board = Board([1024] * 4, runtimes={"onnx": 1.0, "tflite": 2.0})
    place = board.topology(tmp_path)
    clock, calls = board.clock(0, place.threads), itertools.count()

    def measure(how: How) -> Turn:
        if how == How("tflite") and next(calls) == 12:
            raise InferenceError("out of memory")
        return clock(how)

    tuning = tune(bundle, measure=measure, machine=place)
    assert tuning.chosen == How("onnx")
    assert next(row.outcome for row in tuning.rows if row.how == How("tflite")) == "failed"


def test_a_default_that_fails_is_an_error(bundle: Path, tmp_path: Path) -> None:
    def measure(how: How) -> Turn:
        raise RuntimeUnavailable("onnxruntime cannot be imported")

    with pytest.raises(RuntimeUnavailable):
        tune(bundle, measure=measure, machine=BIG_LITTLE.topology(tmp_path))


def counts(board: Board, root: Path, **pins: bool) -> set[tuple[int | None, tuple[int, ...]]]:
    return {(how.threads, how.cpus) for how in placements(board.topology(root), pins or {"onnx": True})}


def test_candidates_are_what_the_machine_has(tmp_path: Path) -> None:
    assert counts(Board([1024]), tmp_path / "one") == {(None, ())}
    assert counts(Board([1024] * 6), tmp_path / "six") == {(1, ()), (2, ()), (4, ()), (None, ())}
    big = (4, 5, 6, 7)
    wanted = {(1, ()), (2, ()), (None, ()), (8, ()), (2, big), (4, big)}
    assert counts(BIG_LITTLE, tmp_path / "big") == wanted
    assert counts(BIG_LITTLE, tmp_path / "big", onnx=False) == {each for each in wanted if not each[1]}
    assert counts(Board([1024] * 8, quota=2.5), tmp_path / "quota") == {(1, ()), (None, ()), (3, ())}
    assert counts(Board([1024] * 8, quota=0.5), tmp_path / "half") == {(None, ())}
    kinds, strong = Board([200] * 4 + [600] * 2 + [1024] * 2), (6, 7)  # by default the four that have half of the strongest
    wanted = {(1, ()), (2, ()), (None, ()), (8, ()), (2, strong), (2, big), (4, big)}
    assert counts(kinds, tmp_path / "kinds") == wanted


def test_all_of_it_is_json(bundle: Path, tmp_path: Path) -> None:
    value = json.loads(json.dumps(asdict(BIG_LITTLE.tuned(bundle, tmp_path)), allow_nan=False))
    assert value["chosen"] == {"runtime": "onnx", "threads": 4, "cpus": [4, 5, 6, 7], "chunk": None}
    assert {"how", "round", "turn"} == value["samples"][0].keys()
