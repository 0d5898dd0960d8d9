from __future__ import annotations

import importlib.metadata
import json
import statistics
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

import edgellm
from edgellm.benchmarks import harness
from edgellm.benchmarks.harness import Report, Series, Settings, measure
from edgellm.errors import UsageError
from tests import tiny_folder

SMALL = Settings(prompts=(16, 48), decode=8, trials=3)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("harness")
    edgellm.convert(tiny_folder.write(folder / "source", context=64), folder / "bundle")
    return folder / "bundle"


def by_name(report: Report) -> dict[str, Series]:
    return {series.name: series for series in report.series}


def test_every_case_is_measured_as_often_as_asked(bundle: Path) -> None:
    heard: list[str] = []
    report = measure(bundle, SMALL, threads=1, progress=heard.append)
    series = by_name(report)
    assert list(series) == ["load", "prefill 16", "prefill 48", "time to first token", "decode 8 after 16"]
    assert heard == ["load", "prefill 16", "prefill 48", "decode 8"]
    assert [len(series[name].values) for name in series] == [1, 3, 3, 3, 3]
    assert all(value > 0 for one in report.series for value in one.values)
    assert report.threads == 1
    assert report.runtime == "onnx"
    assert report.notes == ()
    # the time to the first token is the prefill's, in other words
    for rate, ms in zip(series["prefill 16"].values, series["time to first token"].values, strict=True):
        assert rate * ms / 1000 == pytest.approx(16)


def test_the_json_holds_the_machine_the_versions_and_the_settings(bundle: Path) -> None:
    report = measure(bundle, SMALL)
    value = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert value["schema"] == 1
    assert value["settings"] == {"prompts": [16, 48], "decode": 8, "trials": 3, "seed": 0}
    assert value["machine"]["cores"] >= 1
    assert value["versions"]["onnxruntime"] == importlib.metadata.version("onnxruntime")
    assert value["versions"]["edgellm"] == edgellm.__version__
    for one in value["series"]:
        assert one["median"] == statistics.median(one["values"])


def test_what_the_context_has_no_room_for_is_left_out_and_said(bundle: Path) -> None:
    report = measure(bundle, Settings(prompts=(60, 512), decode=64, trials=1))
    assert list(by_name(report)) == ["load", "prefill 60", "time to first token", "decode 4 after 60"]
    assert report.notes == ("prompt of 512 left out: the context is 64 tokens",)
    with pytest.raises(UsageError, match="no case fits a context of 64 tokens"):
        measure(bundle, Settings(prompts=(64,)))


class Clockwork:
    """A runtime and its session whose times are known: the very first call of all is slow, as on a cold machine."""

    name, threads, max_context = "clockwork", 1, 1000
    COLD, PREFILL, STEP = 0.3, 0.02, 0.004

    def __init__(self) -> None:
        self.length = 0
        self.cold = True

    def session(self) -> Clockwork:
        return self

    def prefill(self, ids: Sequence[int]) -> NDArray[np.float32]:
        time.sleep(self.COLD if self.cold else self.PREFILL)
        self.cold, self.length = False, self.length + len(ids)
        return np.zeros(4, np.float32)

    def decode(self, token: int) -> NDArray[np.float32]:
        time.sleep(self.STEP)
        self.length += 1
        return np.zeros(4, np.float32)

    def logits(self, ids: Sequence[int]) -> NDArray[np.float32]:
        raise NotImplementedError

    def rewind(self, length: int) -> None:
        self.length = length

    def close(self) -> None:
        self.length = 0


def test_rates_are_tokens_per_second_and_the_cold_run_does_not_count() -> None:
    """Sleeping takes at least as long as asked, so a rate has a ceiling; the floor is far below for a busy machine."""
    prefill = harness._prefill(Clockwork(), [1] * 100, 3)
    assert (prefill.name, prefill.unit, len(prefill.values)) == ("prefill 100", "tok/s", 3)
    assert all(100 / Clockwork.COLD < rate <= 100 / Clockwork.PREFILL for rate in prefill.values)
    decode = harness._decode(Clockwork(), [1] * 100, 5, 3)
    assert (decode.name, decode.unit, len(decode.values)) == ("decode 5 after 100", "tok/s", 3)
    assert all(0.1 / Clockwork.STEP < rate <= 1 / Clockwork.STEP for rate in decode.values)


@pytest.mark.parametrize("change", [{"runtime": "abacus"}, {"threads": 0}])
def test_a_wrong_runtime_or_thread_count(bundle: Path, change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        measure(bundle, SMALL, **change)  # type: ignore[arg-type]
