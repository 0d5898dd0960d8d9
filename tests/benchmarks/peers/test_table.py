"""The comparison's arithmetic on known samples."""

from __future__ import annotations

from typing import Any

import pytest

from edgellm.benchmarks.peers import table

OURS, OURS8, THEIRS, THEIRS8 = "edgellm_onnx:int4-b32", "edgellm_onnx:int8", "llama_cpp:q4_0", "llama_cpp:q8_0"


def sample(engine: str, number: int, decode: float, threads: int = 1, **more: float) -> dict[str, Any]:
    values = {
        "import_ms": 50.0,
        "load_ms": 100.0,
        "prefill_512": 10 * decode,
        "decode_32": decode,
        "rss": 5_000_000,
        "others": 0.01,
    }
    return {"round": number, "model": "tiny", "engine": engine, "threads": threads, **values, **more}


def spread_out(engine: str) -> list[float]:
    """Per position: the 4-bit pair differs by little but steadily, the 8-bit pair by as much as its own noise."""
    return {
        OURS: [0.1, 0.3, 0.5],
        THEIRS: [0.11, 0.309, 0.511],
        OURS8: [0.001, 0.007, 0.004],
        THEIRS8: [0.004, 0.002, 0.003],
    }[engine]


@pytest.fixture
def report() -> dict[str, Any]:
    """Three rounds, of which the second failed for the 8-bit peer; the ratio of medians is not the median of ratios."""
    samples = [sample(OURS, number, decode) for number, decode in enumerate((100.0, 120.0, 110.0))]
    samples += [sample(THEIRS, number, decode, rss=10_000_000) for number, decode in enumerate((50.0, 100.0, 110.0))]
    samples += [sample(OURS8, number, 30.0) for number in range(3)]
    samples += [sample(THEIRS8, 0, 60.0), sample(THEIRS8, 2, 40.0)]
    samples += [{"round": 1, "model": "tiny", "engine": THEIRS8, "threads": 1, "error": "it fell over"}]
    bits = {OURS: 4, OURS8: 8, THEIRS: 4, THEIRS8: 8}
    kls = {OURS: 0.30, OURS8: 0.004, THEIRS: 0.31, THEIRS8: 0.003}
    return {
        "schema": 2,
        "command": "python -m edgellm.benchmarks.peers --trials 3",
        "started": "2026-01-02T03:04:05+00:00",
        "machine": {
            "cpu": "A CPU", "features": ["avx2"], "cores": 2, "memory": 8 << 30, "system": "Linux", "python": "CPython 3.11",
        },
        "quiet": {"load": 0.05, "others": 0.0, "busiest": "", "reasons": []},
        "versions": {"edgellm": "0.1", "llama_cpp_python": "9.9"},
        "settings": {"threads": [1], "trials": 3, "prefill": 512, "depths": [32], "steps": 64},
        "models": [{"name": "tiny", "source": "tiny.gguf"}],
        "engines": [
            {
                "model": "tiny", "engine": each, "bits": bits[each], "block": 0 if each == THEIRS8 else 32, "embedding": 8,
                "head": 4 if each == THEIRS else 8, "kv": "f16", "size": 3_000_000,
            } for each in bits
        ],
        "left_out": [{"model": "tiny", "engine": "openvino:int4", "reason": "openvino is not installed; pip install openvino"}],
        "quality": [
            {
                "model": "tiny", "engine": each, "kl": kls[each], "kl_error": 0.001, "top1": 0.9,
                "divergences": spread_out(each),
            } for each in bits
        ],
        "samples": samples,
    }  # fmt: skip


def row(text: str, *starts: str) -> list[str]:
    """Cells of the one row that starts so."""
    (line,) = [line for line in text.splitlines() if line.startswith("| " + " | ".join(starts) + " |")]
    return [cell.strip() for cell in line.strip("|").split("|")]


def test_medians_with_lowest_and_highest(report: dict[str, Any]) -> None:
    cells = row(table.markdown(report), OURS)
    assert cells[:5] == [OURS, "4, block 32", "8, 8", "f16", "3"]
    assert cells[5:7] == ["50 (50-50)", "100 (100-100)"]
    assert cells[7:] == ["1100 (1000-1200)", "110 (100-120)", "5", "0.3000 ± 0.0010", "0.900"]
    assert row(table.markdown(report), THEIRS8)[1] == "8, row"


def test_ratios_are_median_to_median_with_the_spread_of_the_rounds(report: dict[str, Any]) -> None:
    cells = row(table.markdown(report), "onnx:int4-b32", THEIRS)
    ratio = "1.10 (1.00-2.00)"  # of 110 and 100; in the rounds it is 2.0, 1.2 and 1.0, whose median would be 1.20
    assert cells[2] == "8, 8 / 8, 4"
    assert cells[3:] == [ratio, ratio, "1.00 (1.00-1.00)", "0.50 (0.50-0.50)", "0.3000 / 0.3100", "yes"]


def test_a_failed_round_is_in_no_ratio_and_is_named(report: dict[str, Any]) -> None:
    text = table.markdown(report)
    cells = row(text, "onnx:int8", THEIRS8)
    assert cells[4] == "0.60 (0.50-0.75)"  # 30 to the median of 60 and 40, of rounds 0 and 2
    assert cells[-2:] == ["0.0040 / 0.0030", "tie"]
    assert text.rstrip().partition("Failed:")[2].split("\n") == ["", "", f"- tiny, {THEIRS8}: it fell over"]


def test_a_report_of_the_first_schema_is_still_drawn(report: dict[str, Any]) -> None:
    for each in report["engines"]:
        for name in ("block", "embedding", "head", "kv"):
            del each[name]
    for each in report["samples"]:
        each.pop("import_ms", None)
    text = table.markdown(report)
    assert row(text, OURS)[1:7] == ["4", "-", "-", "3", "-", "100 (100-100)"]
    assert row(text, "onnx:int4-b32", THEIRS)[2:4] == ["- / -", "1.10 (1.00-2.00)"]


def test_a_clearly_higher_kl_is_no_tie(report: dict[str, Any]) -> None:
    (ours,) = (each for each in report["quality"] if each["engine"] == OURS)
    ours["divergences"] = [0.2, 0.39, 0.61]
    assert row(table.markdown(report), "onnx:int4-b32", THEIRS)[-1] == "no"


def test_four_bits_are_not_compared_with_eight(report: dict[str, Any]) -> None:
    lines = table.markdown(report).splitlines()
    assert not [line for line in lines if line.startswith((f"| onnx:int4-b32 | {THEIRS8}", f"| onnx:int8 | {THEIRS} "))]


def test_the_table_names_command_machine_versions_and_what_is_left_out(report: dict[str, Any]) -> None:
    text = table.markdown(report)
    for part in (
        "`python -m edgellm.benchmarks.peers --trials 3`", "A CPU (2 cores, 8 GiB; avx2)", "llama_cpp_python 9.9",
        "- tiny, openvino:int4: openvino is not installed; pip install openvino", "Load average at the start 0.05",
    ):  # fmt: skip
        assert part in text
    assert "Not a quiet machine" not in text


def test_a_run_that_others_disturbed_is_marked(report: dict[str, Any]) -> None:
    report["samples"][0]["others"] = 0.7
    assert "**Not a quiet machine** (others kept up to 0.70 processors busy during 1 of 12 runs)" in table.markdown(report)


def test_an_engine_without_any_figures_keeps_its_row(report: dict[str, Any]) -> None:
    report["samples"] = [each for each in report["samples"] if each["engine"] != THEIRS]
    report["quality"] = [each for each in report["quality"] if each["engine"] != THEIRS]
    text = table.markdown(report)
    assert row(text, THEIRS)[5:] == ["-"] * 7
    assert row(text, "onnx:int4-b32", THEIRS)[3:] == ["-"] * 6
