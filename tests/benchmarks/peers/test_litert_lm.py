"""LiteRT-LM as a peer, on a tiny model that edgellm packs for it."""

from __future__ import annotations

import importlib.metadata
import importlib.util
import json
import time
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer, processors

from edgellm.benchmarks import result
from edgellm.benchmarks.peers import engine as peers
from edgellm.benchmarks.peers import litert_lm as peer
from edgellm.benchmarks.peers import quality
from edgellm.benchmarks.peers.engine import Engine, OwnLoop
from edgellm.benchmarks.peers.lanes import label
from edgellm.benchmarks.result import Case
from edgellm.errors import InferenceError, RuntimeUnavailable
from tests import tiny_folder
from tests.peers import command_line


@pytest.fixture(scope="module")
def file(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return peer.prepare("int8", tiny_source, tmp_path_factory.mktemp("litert"))


def opened(path: Path) -> peer.LitertLmEngine:
    return peer.open_engine(path, variant="int8", threads=1, context=2000)


def test_it_is_made_once_and_has_the_bundles_weights(file: Path, tiny_source: Path) -> None:
    assert (file.name, file.parent.name.startswith("litert-lm-")) == ("model.litertlm", True)
    stamp = file.stat().st_mtime_ns
    assert peer.prepare("int8", tiny_source, file.parent.parent) == file
    assert file.stat().st_mtime_ns == stamp
    assert [entry.name for entry in file.parent.iterdir() if entry != file and "cache" not in entry.name] == []


def test_it_shows_no_logits_and_says_so(file: Path) -> None:
    engine = opened(file)
    assert isinstance(engine, OwnLoop)
    assert not isinstance(engine, Engine)
    engine.close()


@pytest.mark.parametrize("count", [1, 2, 17, 200, 513])
def test_a_prompt_has_as_many_tokens_as_are_asked_for(count: int, file: Path, tiny_source: Path) -> None:
    engine = opened(file)
    ids = np.resize(quality.text_ids(tiny_source), count).tolist()
    assert engine._answer(ids, 1).last_prefill_token_count == count
    assert engine._answer(ids, 7).last_decode_token_count == 7
    engine.close()


def test_a_start_token_that_it_writes_itself_is_not_read_twice(tmp_path: Path) -> None:
    source = tiny_folder.write(tmp_path / "source")
    tokenizer = Tokenizer.from_file(str(source / "tokenizer.json"))
    tokenizer.post_processor = processors.TemplateProcessing(single="<|start|> $A", special_tokens=[("<|start|>", 1)])
    tokenizer.save(str(source / "tokenizer.json"))
    ids = quality.text_ids(source)[:40]
    assert ids[0] == 1
    engine = opened(peer.prepare("int8", source, tmp_path))
    assert engine._answer(ids, 1).last_prefill_token_count == 40
    engine.close()


def test_it_is_timed_in_seconds_and_a_prompt_is_computed_every_time(file: Path, tiny_source: Path) -> None:
    engine = opened(file)
    prompt = np.resize(quality.text_ids(tiny_source), 1500).tolist()
    spent = []
    for _ in range(3):
        wall = time.perf_counter()
        seconds = engine.time_prefill(prompt)
        assert 0 < seconds < time.perf_counter() - wall
        spent.append(seconds)
    assert min(spent) > 4 * engine.time_prefill(prompt[:8])  # out of a cache, 1500 tokens cost as little as a few
    wall = time.perf_counter()
    written = engine.time_steps(prompt[:16], 9)
    assert 0 < written.seconds < time.perf_counter() - wall
    assert (written.steps, written.tokens) == ((), ()), "it tells of all tokens together, and nothing is made up"
    engine.close()


def test_an_answer_that_ends_early_is_asked_for_again(tiny_source: Path, tmp_path: Path) -> None:
    """Every token that the model says ends its answer: eight tokens are eight answers."""
    source = tiny_folder.write(tmp_path / "source")
    (source / "generation_config.json").write_text(json.dumps({"eos_token_id": list(range(256))}), encoding="utf-8")
    engine = opened(peer.prepare("int8", source, tmp_path))
    ids = quality.text_ids(source)[:30]
    assert engine._answer(ids, 8).last_decode_token_count < 8
    one, many = engine.time_steps(ids, 1), engine.time_steps(ids, 8)
    assert many.seconds > 2 * one.seconds
    engine.close()


def test_more_than_its_context_is_an_error_of_ours(file: Path, tiny_source: Path) -> None:
    engine = opened(file)
    with pytest.raises(InferenceError, match="LiteRT-LM"):
        engine.time_prefill(np.resize(quality.text_ids(tiny_source), 5000).tolist())
    engine.close()


def test_what_it_cannot_load_is_an_error_of_ours(tmp_path: Path) -> None:
    (tmp_path / "model.litertlm").write_bytes(b"nothing" * 100)
    with pytest.raises(InferenceError, match="LiteRT-LM does not load it"):
        opened(tmp_path / "model.litertlm")


def test_what_is_missing_is_said_with_how_to_get_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(RuntimeUnavailable, match=r"litert_lm_builder is not installed; pip install litert-lm, and 'edgellm"):
        peer.prepare("int8", tmp_path, tmp_path)
    monkeypatch.setattr(importlib.metadata, "version", missing)
    with pytest.raises(RuntimeUnavailable, match="litert-lm is not installed; pip install litert-lm"):
        peers.versions(peers.peer("litert-lm"))


@pytest.mark.slow
def test_a_whole_run(tiny_source: Path, tmp_path: Path) -> None:
    sizes = ("--threads", 1, "--trials", 1, "--prefill", 40, "--depths", 8, "--steps", 4, "--positions", 50)
    files = ("--json", tmp_path / "out.json", "--markdown", tmp_path / "out.md")
    wanted = ("edgellm-tflite:int8", "litert-lm:int8")
    done = command_line("--models", tiny_source, "--peers", *wanted, *sizes, *files, "--noisy", cache=tmp_path)
    assert done.returncode == 0, done.stderr
    run = result.read(tmp_path / "out.json")
    ours, theirs = run.lanes
    assert label(theirs) == "litert-lm:int8"
    assert (theirs.failed, theirs.quality, ours.quality is None) == (None, None, False)
    assert f"{theirs.id}: closeness to the source, because it shows no logits" in run.notes
    _, decode = (each for each in run.samples if (each.lane, each.case) == (theirs.id, Case("decode", depth=8, steps=4)))
    assert (decode.steps, decode.tokens) == ((), ())
    assert decode.seconds > 0
    assert {each.case.state for each in run.samples if each.lane == theirs.id} == {"warm"}, "its cache is its own affair"
    text = (tmp_path / "out.md").read_text(encoding="utf-8")
    (line,) = (line for line in text.splitlines() if line.startswith("| litert-lm:int8 |"))
    assert line.count(" - |") == 2, "KL and top-1"
    assert "| tflite:int8 | litert-lm:int8 |" in text
