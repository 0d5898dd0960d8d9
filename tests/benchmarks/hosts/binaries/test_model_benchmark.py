"""What model_benchmark prints is read as it means it."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from edgellm.benchmarks.hosts.binaries import model_benchmark
from edgellm.bundle import Bundle
from edgellm.conversion import convert
from edgellm.errors import BundleError

# AMD's documentation of Ryzen AI 1.6 (model_benchmark of Phi-3.5 on Linux), with the tabs that the source prints.
PRINTED = """ -----------------------------
 Prompt Number of Tokens: 128

Batch size: 1, prompt tokens: 128, tokens to generate: 128
Prompt processing (time to first token):
\tavg (us):       416591
\tavg (tokens/s): 307.256
\tp50 (us):       413180
\tstddev (us):    7532.87
\tn:              5 * 128 token(s)
Token generation:
\tavg (us):       90500.9
\tavg (tokens/s): 11.0496
\tp50 (us):       89802.8
\tstddev (us):    7364.33
\tn:              635 * 1 token(s)
Token sampling:
\tavg (us):       30.0704
\tavg (tokens/s): 33255.3
\tp50 (us):       27.752
\tstddev (us):    5.21835
\tn:              5 * 1 token(s)
E2E generation (entire generation loop):
\tavg (ms):       11910.3
\tp50 (ms):       11898.2
\tstddev (ms):    22.1976
\tn:              5
Peak working set size (bytes): 6483783680
"""


def once(printed: str) -> str:
    """The same of one repetition, as it is asked for."""
    return printed.replace("5 * 128", "1 * 128").replace("635 * 1", "127 * 1").replace("5 * 1 ", "1 * 1 ")


def test_times_of_one_repetition() -> None:
    told = model_benchmark.parse(once(PRINTED))
    assert (told.prompt, told.steps) == (128, 127)
    assert told.prefill == pytest.approx(0.416591)
    assert told.first == pytest.approx(0.416591 + 30.0704e-6)
    assert told.decode == pytest.approx(127 * 90500.9e-6)
    assert told.rss == 6483783680
    assert told.load is None


def test_its_speeds_are_its_own() -> None:
    told = model_benchmark.parse(once(PRINTED))
    assert told.prompt / told.prefill == pytest.approx(307.256, rel=1e-5)
    assert told.steps / told.decode == pytest.approx(11.0496, rel=1e-5)


def test_long_times_have_an_exponent() -> None:
    told = model_benchmark.parse(once(PRINTED).replace("416591", "1.00924e+07"))
    assert told.prefill == pytest.approx(10.0924)


def test_the_newer_words_for_memory() -> None:
    newer = PRINTED.replace("size (bytes): 6483783680", "size: 6483783680 bytes (6.04 GB)")
    assert model_benchmark.parse(once(newer)).rss == 6483783680


@pytest.mark.parametrize("missing", ["Prompt processing", "Token generation", "Token sampling", "avg (us)", "n:  "])
def test_what_it_does_not_know_is_no_result(missing: str) -> None:
    with pytest.raises(ValueError, match="no section"):
        model_benchmark.parse(PRINTED.replace(missing, "Something"))


def test_a_section_takes_no_number_of_the_next() -> None:
    with pytest.raises(ValueError, match="no section 'Token generation'"):
        model_benchmark.parse(PRINTED.replace("\tavg (us):       90500.9\n", ""))


def test_one_repetition_of_exactly_so_many_tokens() -> None:
    line = model_benchmark.arguments(prompt=96, steps=32, threads=4)
    pairs = dict(itertools.pairwise(line))
    assert (pairs["-l"], pairs["-g"], pairs["-r"], pairs["-w"], pairs["-i"]) == ("96", "33", "1", "0", ".")
    assert "--use_random_tokens" in line


def test_threads_go_into_its_settings(tiny_bundle: Path, tmp_path: Path) -> None:
    bundle = Bundle.open(tiny_bundle)
    files = model_benchmark.files(bundle, tmp_path, threads=3)
    assert {name for name, file in files.items() if file.parent == tmp_path} == {"genai_config.json"}
    made = json.loads(files["genai_config.json"].read_text(encoding="utf-8"))
    own = json.loads(bundle.file("genai_config.json").read_text(encoding="utf-8"))
    assert made["model"]["decoder"]["session_options"].pop("intra_op_num_threads") == 3
    assert made["search"]["do_sample"] is False
    own["search"]["do_sample"] = False
    assert made == own
    assert files["model.onnx"] == tiny_bundle / "model.onnx"


def test_the_files_of_another_graph_stay(tiny_source: Path, tmp_path: Path) -> None:
    bundle = convert(tiny_source, tmp_path / "both", target="both", quant="int4")
    names = model_benchmark.files(bundle, tmp_path, threads=1).keys()
    assert {"model.onnx", "tokenizer.json"} <= names
    assert "model.tflite" not in names


def test_a_bundle_that_genai_does_not_run(tiny_source: Path, tmp_path: Path) -> None:
    bundle = convert(tiny_source, tmp_path / "tflite", target="tflite", quant="int8")
    with pytest.raises(BundleError, match=r"no genai_config\.json; convert it with"):
        model_benchmark.files(bundle, tmp_path, threads=1)
