"""What litert_lm_advanced_main prints is read as it means it."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from edgellm.benchmarks.hosts.binaries import litert_lm
from edgellm.bundle import Bundle
from edgellm.conversion import convert
from edgellm.runtimes import litertlm_file

# A user's log of version 0.10.2, from the issues of LiteRT-LM; the line about memory is as its source prints it.
PRINTED = """BenchmarkInfo:
  Init Phases (7):
    - Init Conversation: 0.09 ms
    - Init Executor: 577.30 ms
    - Init LLM metadata: 0.15 ms
    - Init Model assets: 0.49 ms
    - Init Tokenizer: 101.68 ms
    - Init Total: 580.10 ms
--------------------------------------------------
  Time to first token: 0.92 s
--------------------------------------------------
  Prefill Turns (Total 1 turns):
    Prefill Turn 1: Processed 16 tokens in 819.9514ms duration.
      Prefill Speed: 19.51 tokens/sec.
--------------------------------------------------
  Decode Turns (Total 1 turns):
    Decode Turn 1: Processed 88 tokens in 8.7038005s duration.
      Decode Speed: 10.11 tokens/sec.
--------------------------------------------------
  TextToTokenIds Turns (Total 2 turns):
    Turn 1: 11.2us, 1 tokens
    Turn 2: 46.1us, 15 tokens
--------------------------------------------------
--------------------------------------------------

I0000 00:00:1781300000.100000   56310 litert_lm_lib.cc:1170] Peak system ram usage: 1382.5MB.
"""

# Its repository's own example of a version of 2025, from cmake/README.md.
OLDER = """BenchmarkInfo:
  Init Phases (2):
    - Executor initialization: 844.54 ms
    - Tokenizer initialization: 66.70 ms
    Total init time: 911.25 ms
--------------------------------------------------
  Time to first token: 2.40 s
--------------------------------------------------
  Prefill Turns (Total 1 turns):
    Prefill Turn 1: Processed 18 tokens in 2.311920273s duration.
      Prefill Speed: 7.79 tokens/sec.
--------------------------------------------------
  Decode Turns (Total 1 turns):
    Decode Turn 1: Processed 62 tokens in 5.53092314s duration.
      Decode Speed: 11.21 tokens/sec.
--------------------------------------------------
"""


def test_times_of_a_turn() -> None:
    told = litert_lm.parse(PRINTED)
    assert (told.prompt, told.steps) == (16, 88)
    assert told.prefill == pytest.approx(0.8199514)
    assert told.decode == pytest.approx(8.7038005)
    assert told.load == pytest.approx(0.5801)
    assert told.rss == round(1382.5 * 1024 * 1024)


@pytest.mark.parametrize("printed", [PRINTED, OLDER])
def test_its_speeds_and_its_first_token_are_its_own(printed: str) -> None:
    told = litert_lm.parse(printed)
    prefill, decode = (float(each) for each in re.findall(r"Speed: ([\d.]+)", printed))
    first = re.search(r"first token: ([\d.]+) s", printed)
    assert first is not None
    assert told.first == pytest.approx(float(first[1]), abs=0.005)
    assert told.prompt / told.prefill == pytest.approx(prefill, abs=0.005)
    assert told.steps / told.decode == pytest.approx(decode, abs=0.005)


def test_an_older_version_says_otherwise_how_long_it_loaded() -> None:
    told = litert_lm.parse(OLDER)
    assert told.load == pytest.approx(0.91125)
    assert told.rss is None


@pytest.mark.parametrize(
    ("duration", "seconds"),
    [("1m2.5s", 62.5), ("1h0m0.25s", 3600.25), ("11.2us", 11.2e-6), ("950ns", 950e-9), ("20ms", 0.02), ("3s", 3.0)],
)
def test_durations_as_abseil_writes_them(duration: str, seconds: float) -> None:
    assert litert_lm.parse(PRINTED.replace("819.9514ms", duration)).prefill == pytest.approx(seconds)


@pytest.mark.parametrize(
    ("old", "new", "fault"),
    [
        ("819.9514ms", "inf", "no duration"),
        ("819.9514ms", "12 parsecs", "no 'Prefill Turn 1'"),
        ("819.9514ms", "3fortnights", "no duration"),
        ("Decode Turn 1", "Decode Turn", "no 'Decode Turn 1'"),
        ("Processed 88", "Processed 0", "no 'Decode Turn 1'"),
    ],
)
def test_what_it_does_not_know_is_no_result(old: str, new: str, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        litert_lm.parse(PRINTED.replace(old, new))


def test_it_is_asked_for_one_turn_on_the_processors() -> None:
    line = litert_lm.arguments(prompt=96, steps=32, threads=4)
    assert {"--benchmark_prefill_tokens=96", "--benchmark_decode_tokens=32", "--num_cpu_threads=4", "--backend=cpu"} <= set(
        line
    )


def test_it_is_given_the_export_which_is_made_once(tiny_source: Path, tmp_path: Path) -> None:
    pytest.importorskip("litert_lm_builder")
    bundle = convert(tiny_source, tmp_path / "tflite", target="tflite", quant="int8")
    (file,) = litert_lm.files(bundle, tmp_path, threads=1).values()
    litertlm_file.check(file)
    made = file.stat().st_mtime_ns
    assert litert_lm.files(Bundle.open(bundle.path), tmp_path, threads=2) == {"model.litertlm": file}
    assert file.stat().st_mtime_ns == made
