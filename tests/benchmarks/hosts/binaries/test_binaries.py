"""Binaries are found by their names, and any that is there keeps to the contract."""

from __future__ import annotations

import pytest

from edgellm.benchmarks.hosts import binaries
from edgellm.errors import UsageError


@pytest.mark.parametrize(
    ("file", "engine"),
    [
        ("model_benchmark", "onnxruntime-genai"),
        ("model_benchmark-0.15-arm64", "onnxruntime-genai"),
        ("litert_lm_advanced_main", "litert-lm"),
        ("litert_lm_advanced_main.android_arm64", "litert-lm"),
    ],
)
def test_a_name_says_whose_it_is(file: str, engine: str) -> None:
    found = binaries.find(file)
    assert engine == found.ENGINE


@pytest.mark.parametrize("file", ["", "llama-bench", "my_model_benchmark", "benchmark_model"])
def test_whose_output_nobody_reads(file: str) -> None:
    with pytest.raises(UsageError, match=r"is not known; one of: .*model_benchmark"):
        binaries.find(file)


@pytest.mark.parametrize("name", binaries.available())
def test_nothing_that_was_printed_is_no_result(name: str) -> None:
    binary = binaries.find({"model_benchmark": "model_benchmark", "litert_lm": "litert_lm_advanced_main"}[name])
    with pytest.raises(ValueError, match=r"^no "):
        binary.parse("")
