"""How peers and their variants are found."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from edgellm.benchmarks.peers import engine as peers
from edgellm.benchmarks.peers.engine import EngineId
from edgellm.errors import RuntimeUnavailable, UsageError


def test_peers_are_found_by_their_files() -> None:
    theirs = ("litert_lm", "llama_cpp", "onnxruntime_genai", "openvino_genai")
    assert peers.available() == ("edgellm_onnx", "edgellm_tflite", *theirs)
    chosen = peers.choose(["llama_cpp:q8_0", "llama_cpp"])
    assert chosen == [EngineId("llama_cpp", name) for name in ("q8_0", "q4_0", "q4_0-noflash")]


@pytest.mark.parametrize(
    ("name", "module"),
    [
        ("llama.cpp", "llama_cpp"),
        ("llama_cpp", "llama_cpp"),
        ("onnxruntime-genai", "onnxruntime_genai"),
        ("openvino", "openvino_genai"),
        ("litert-lm", "litert_lm"),
        ("edgellm-onnx", "edgellm_onnx"),
    ],
)
def test_names_as_users_write_them_mean_modules_by_one_rule(name: str, module: str) -> None:
    assert peers.module_of(name) == module


def test_what_tables_call_a_peer_is_a_name_of_it() -> None:
    for module in peers.available():
        assert peers.module_of(peers.peer(module).NAME) == module


def test_a_pattern_means_all_variants_that_it_matches() -> None:
    """Also those that are there for a question of their own, which a bare name leaves out."""
    found = peers.choose(["llama_cpp:q5_0*", "llama_cpp:*_k_s-imatrix"])
    names = ("q5_0", "q5_0-noflash", "q5_0-imatrix", "q5_0-imatrix-noflash", "q4_k_s-imatrix")
    assert found == [EngineId("llama_cpp", name) for name in names]
    assert len(peers.choose(["llama_cpp:*"])) == len(peers.peer("llama_cpp").VARIANTS)
    assert EngineId("edgellm_onnx", "int4-b32-rtn") in peers.choose(["edgellm_onnx:*"])
    assert EngineId("edgellm_onnx", "int4-b32-rtn") not in peers.choose(["edgellm_onnx"])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("tea", "no peer is called 'tea'"),
        ("edgellm", "no peer is called 'edgellm'"),
        ("", "no peer is called ''"),
        ("llama_cpp:q9", "has no 'q9'"),
        ("llama_cpp:z*", r"has no 'z\*'"),
    ],
)
def test_unknown_peers_are_errors(name: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        peers.choose([name])


def test_a_missing_package_is_said_with_how_to_get_it() -> None:
    absent: Any = SimpleNamespace(PACKAGES=("edgellm-test-nowhere",), INSTALL="pip install it")
    with pytest.raises(RuntimeUnavailable, match="edgellm-test-nowhere is not installed; pip install it"):
        peers.versions(absent)
