from __future__ import annotations

import importlib.metadata
import json
import statistics
from pathlib import Path

import pytest

import edgellm
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


def test_the_first_run_of_a_case_does_not_count(bundle: Path) -> None:
    assert [len(series.values) for series in measure(bundle, Settings((8,), decode=2, trials=1)).series] == [1, 1, 1, 1]


@pytest.mark.parametrize("change", [{"runtime": "abacus"}, {"threads": 0}])
def test_a_wrong_runtime_or_thread_count(bundle: Path, change: dict[str, object]) -> None:
    with pytest.raises(UsageError):
        measure(bundle, SMALL, **change)  # type: ignore[arg-type]
