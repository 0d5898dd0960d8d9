"""Which runtime a bundle with two graphs is loaded with, by what was measured here and what is installed."""

from __future__ import annotations

import importlib.metadata
import json
import os
import shutil
import sys
from pathlib import Path

import pytest

import edgellm
from edgellm.bundle import Bundle
from edgellm.conversion import convert
from edgellm.errors import RuntimeUnavailable
from edgellm.runtimes import adapters, open_runtime, processor, tuned
from edgellm.runtimes.preference import Choice, choose, remember
from edgellm.runtimes.threads import default_threads
from edgellm.runtimes.tuned import How

PACKAGES = {"onnx": "onnxruntime", "tflite": "ai_edge_litert"}
NOT_MEASURED = "none is measured here, 'edgellm bench' finds the fastest"
TFLITE_IS_FASTER = {"onnx": 100.0, "tflite": 150.0}


@pytest.fixture(scope="module")
def path(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return convert(tiny_source, tmp_path_factory.mktemp("both") / "tiny", target="both").path


@pytest.fixture
def both(path: Path) -> Bundle:
    return Bundle.open(path)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("EDGELLM_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def opened(bundle: Bundle, name: str | None = None) -> str:
    runtime = open_runtime(bundle, name=name, threads=1)
    runtime.close()
    return runtime.name


def test_onnx_where_nothing_was_measured(both: Bundle) -> None:
    assert choose(both) == Choice(How("onnx"), NOT_MEASURED)
    assert opened(both) == "onnx"


@pytest.mark.parametrize(
    ("rates", "best", "reason"),
    [
        (TFLITE_IS_FASTER, "tflite", "it decodes 150.0 tokens/s here, onnx 100.0 ('edgellm bench')"),
        ({"tflite": 20.0, "onnx": 20.5}, "onnx", "it decodes 20.5 tokens/s here, tflite 20.0 ('edgellm bench')"),
    ],
)
def test_the_fastest_that_was_measured(both: Bundle, rates: dict[str, float], best: str, reason: str) -> None:
    remember(both, rates)
    assert choose(both) == Choice(How(best), reason)
    assert opened(both) == best
    with edgellm.load(both.path) as llm:
        assert llm.runtime.name == best
    other = "onnx" if best == "tflite" else "tflite"
    assert opened(both, other) == other, "what is asked for comes first"


def test_a_later_measurement_replaces_an_earlier_one(both: Bundle, cache: Path) -> None:
    remember(both, TFLITE_IS_FASTER)
    remember(both, {"onnx": 2.0, "tflite": 1.0})
    assert choose(both).name == "onnx"
    assert [file.suffix for file in (cache / "tuned").iterdir()] == [".json"]


def test_it_is_of_the_content_and_not_of_the_place(both: Bundle, tiny_source: Path, tmp_path: Path) -> None:
    remember(both, TFLITE_IS_FASTER)
    assert choose(Bundle.open(shutil.copytree(both.path, tmp_path / "copy"))).name == "tflite"
    other = convert(tiny_source, tmp_path / "other", target="both", quant="int8")
    assert choose(other) == Choice(How("onnx"), NOT_MEASURED)


@pytest.mark.parametrize("package", ["onnxruntime", "ai-edge-litert"])
def test_an_upgrade_of_either_runtime_asks_for_a_new_measurement(
    both: Bundle, monkeypatch: pytest.MonkeyPatch, package: str
) -> None:
    remember(both, TFLITE_IS_FASTER)
    version = importlib.metadata.version
    monkeypatch.setattr(importlib.metadata, "version", lambda name: "99" if name == package else version(name))
    assert choose(both) == Choice(How("onnx"), NOT_MEASURED)
    monkeypatch.undo()


def test_an_upgrade_of_edgellm_too(both: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(both, TFLITE_IS_FASTER)
    monkeypatch.setattr(tuned, "__version__", "99")
    assert choose(both).name == "onnx"


def test_another_processor_measures_for_itself(both: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    remember(both, TFLITE_IS_FASTER)
    monkeypatch.setattr(tuned, "processor", lambda: "another one")
    assert choose(both).name == "onnx"


@pytest.mark.skipif(sys.platform != "linux", reason="changes the affinity")
def test_another_number_of_threads_too(both: Bundle) -> None:
    before = os.sched_getaffinity(0)
    if default_threads() < 2:
        pytest.skip("one core has one number of threads")
    remember(both, TFLITE_IS_FASTER)
    try:
        os.sched_setaffinity(0, {min(before)})
        assert choose(both).name == "onnx"
    finally:
        os.sched_setaffinity(0, before)
    assert choose(both).name == "tflite"


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_the_processor_is_what_the_system_says() -> None:
    told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    assert processor.processor().startswith(os.uname().machine)
    for key in ("model name", "flags", "Features"):
        line = next((line for line in told.splitlines() if line.startswith(key)), "")
        assert line in processor.processor()


@pytest.mark.parametrize(("missing", "left"), [("onnx", "tflite"), ("tflite", "onnx")])
def test_the_one_that_is_installed(both: Bundle, monkeypatch: pytest.MonkeyPatch, missing: str, left: str) -> None:
    """Whatever was measured when both were."""
    remember(both, {missing: 9.0, left: 1.0})
    with monkeypatch.context() as without:
        without.setitem(sys.modules, PACKAGES[missing], None)
        assert adapters.installed(both).keys() == {left}
        assert choose(both) == Choice(How(left), "the only one of the bundle's that is installed")
        assert opened(both) == left
        remember(both, {left: 1.0})
    assert choose(both).name == missing


def test_a_package_that_comes_under_another_name(both: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime-openvino and others provide the module: it can be imported, and there is no such distribution."""
    version = importlib.metadata.version

    def unknown(name: str) -> str:
        if name == "onnxruntime":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", unknown)
    assert adapters.installed(both) == {"onnx": "", "tflite": version("ai-edge-litert")}
    assert opened(both) == "onnx"


@pytest.mark.parametrize("name", ["session", "sampling", "adapters", "nothing", "../onnx", "on-nx", ""])
def test_a_module_that_is_no_adapter(name: str) -> None:
    assert adapters.find(name) is None


def test_where_none_is_installed_the_error_says_what_to_install(both: Bundle, monkeypatch: pytest.MonkeyPatch) -> None:
    for package in PACKAGES.values():
        monkeypatch.setitem(sys.modules, package, None)
    assert choose(both) == Choice(How("onnx"), "none of the bundle's runtimes is installed")
    with pytest.raises(RuntimeUnavailable, match=r"pip install edgellm\[onnx\]"):
        open_runtime(both)


def test_a_bundle_with_one_graph(tiny_bundle: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    assert choose(bundle) == Choice(How("onnx"), "the only one in the bundle")
    remember(bundle, {"onnx": 1.0})
    assert choose(bundle) == Choice(How("onnx"), "the only one in the bundle")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff\xfe",
        b"[]",
        b"null",
        b"[" * 100_000,
        b'{"decode": []}',
        b'{"decode": {}}',
        b'{"decode": {"tflite": 150.0}}',
        b'{"decode": {"onnx": 100.0, "tflite": "fast"}}',
        b'{"decode": {"onnx": 100.0, "tflite": true}}',
        b'{"decode": {"onnx": 100.0, "tflite": NaN}}',
        b'{"decode": {"onnx": 100.0, "tflite": Infinity}}',
        b'{"decode": {"onnx": -100.0, "tflite": 150.0}}',
        b'{"decode": {"onnx": 100.0, "tflite": 1' + b"0" * 400 + b"}}",
        b'{"decode": {"onnx": 100.0, "coreml": 150.0}}',
        b'{"decode": {"onnx": 100.0, "tflite": 150.0, "coreml": 200.0}}',
    ],
)
def test_a_damaged_record_is_none(both: Bundle, cache: Path, content: bytes) -> None:
    remember(both, TFLITE_IS_FASTER)
    (record,) = (cache / "tuned").iterdir()
    record.write_bytes(content)
    assert choose(both) == Choice(How("onnx"), NOT_MEASURED)
    assert opened(both) == "onnx"
    remember(both, TFLITE_IS_FASTER)
    assert choose(both).name == "tflite"


@pytest.mark.parametrize(
    "rates",
    [{}, {"tflite": 1.0}, {"onnx": 1.0, "coreml": 2.0}, {"onnx": 1.0, "tflite": float("inf")}, {"onnx": 1.0, "tflite": 0.0}],
)
def test_what_says_nothing_is_not_kept(both: Bundle, cache: Path, rates: dict[str, float]) -> None:
    remember(both, rates)
    assert not (cache / "tuned").exists()


def test_a_cache_that_cannot_be_written(both: Bundle, cache: Path) -> None:
    cache.write_text("in the way", encoding="utf-8")
    remember(both, TFLITE_IS_FASTER)
    assert choose(both) == Choice(How("onnx"), NOT_MEASURED)


def test_the_record_can_be_read_by_people(both: Bundle, cache: Path) -> None:
    remember(both, TFLITE_IS_FASTER)
    (record,) = (cache / "tuned").iterdir()
    assert json.loads(record.read_text(encoding="utf-8")) == {"decode": TFLITE_IS_FASTER, "tuned": None}
