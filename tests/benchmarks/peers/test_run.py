"""Whole runs of the comparison, in processes of their own."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from edgellm.benchmarks import result
from edgellm.benchmarks.peers import quality
from edgellm.benchmarks.peers.lanes import label
from edgellm.benchmarks.result import Case, Run
from edgellm.bundle import sha256_file
from tests.peers import command_line

OURS, OURS8, THEIRS = "edgellm-onnx:int4-b32", "edgellm-onnx:int8", "llama.cpp:q4_0"
LOAD, PREFILL = Case("load"), Case("prefill", prompt=40)
SHORT, LONG = Case("decode", depth=8, steps=4), Case("decode", depth=20, steps=4)


@contextmanager
def busy() -> Iterator[None]:
    """A process that keeps a processor busy."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux says how busy others are")
def test_a_busy_machine_is_refused(tiny_source: Path, tmp_path: Path) -> None:
    with busy():
        done = command_line("--models", tiny_source, "--peers", "edgellm_onnx", "--json", tmp_path / "out.json", cache=tmp_path)
    assert done.returncode == 1
    assert "error: the machine is not quiet" in done.stderr
    assert "processors busy" in done.stderr
    assert not (tmp_path / "out.json").exists()


@pytest.fixture(scope="module")
def made(tiny_source: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Run, Path]:
    """A whole run on the tiny model, and the folder that it wrote into."""
    folder = tmp_path_factory.mktemp("run")
    wanted = ("edgellm_onnx:int4-b32", "edgellm-onnx:int8", "llama.cpp:q4_0")
    sizes = ("--threads", 1, 2, "--trials", 2, "--prefill", 40, "--depths", 8, 20, "--steps", 4, "--positions", 50)
    files = ("--json", folder / "out.json", "--markdown", folder / "out.md")
    done = command_line("--models", tiny_source, "--peers", *wanted, *sizes, *files, "--noisy", cache=folder)
    assert done.returncode == 0, done.stderr
    assert (folder / "out.md").read_text(encoding="utf-8") in done.stdout
    return result.read(folder / "out.json"), folder


def test_every_engine_runs_in_every_round(made: tuple[Run, Path]) -> None:
    run, _ = made
    assert run.command.endswith("--noisy")
    assert [(label(each), each.threads) for each in run.lanes] == [(OURS, 1), (OURS, 2), (OURS8, 1), (OURS8, 2)]
    assert [each.round for each in run.samples] == sorted(each.round for each in run.samples)
    for each in run.lanes:
        for number in (0, 1, 2):
            some = [sample for sample in run.samples if (sample.lane, sample.round) == (each.id, number)]
            wanted = [LOAD, PREFILL, Case("first token", 40), Case("first token", 40, state="cached"), SHORT, LONG]
            assert sorted(sample.case.name for sample in some) == sorted(case.name for case in wanted)
            assert all(len(sample.steps) == sample.case.steps for sample in some)
            assert all(sample.rss and sample.others is not None and sample.cpu is not None for sample in some)
            assert all(sample.parts["import"] > 0 for sample in some if sample.case == LOAD)
        assert each.agreement == 1


def test_a_lane_says_what_it_is(made: tuple[Run, Path], tiny_source: Path) -> None:
    run, folder = made
    found = next(each for each in run.lanes if label(each) == OURS)
    (bundle,) = folder.rglob("edgellm-onnx-int4-b32.*")
    assert found.digest == sha256_file(bundle / "edgellm.json")
    assert found.size == sum(file.stat().st_size for file in bundle.rglob("*"))
    assert (found.engine, found.runtime, found.model, found.source) == ("edgellm", "onnx", tiny_source.stem, tiny_source.name)
    assert found.recipe
    assert (found.recipe.bits, found.recipe.block) == (4, 32)
    assert found.bits
    assert 4.5 < found.bits < 5.5
    assert found.versions.keys() == {"edgellm", "onnxruntime", "numpy"}
    assert run.moments[0].load is not None


def test_what_cannot_run_is_left_out_and_said(made: tuple[Run, Path]) -> None:
    run, folder = made
    (note,) = (note for note in run.notes if THEIRS in note)
    assert "not installed" in note or "not a GGUF file" in note
    assert f"- {note}" in (folder / "out.md").read_text(encoding="utf-8")


def test_closeness_is_to_the_source_itself(made: tuple[Run, Path], tiny_source: Path) -> None:
    run, folder = made
    (found,) = folder.rglob("source-logits-*.npy")
    model = transformers.LlamaForCausalLM.from_pretrained(tiny_source, dtype=torch.float32)
    tokenizer = transformers.AutoTokenizer.from_pretrained(tiny_source)
    ids = tokenizer(quality.TEXT.read_text(encoding="utf-8"))["input_ids"][:50]
    with torch.no_grad():
        expected = model(torch.tensor([ids])).logits[0].numpy()
    np.testing.assert_allclose(np.load(found), expected, atol=1e-4)
    assert {each.quality and each.quality.text for each in run.lanes} == {hashlib.sha256(np.array(ids, "<i8")).hexdigest()}
    kl = {label(each): each.quality.kl for each in run.lanes if each.quality}
    assert 0 < kl[OURS8] < kl[OURS] < 0.5
    assert "Failed:" not in (folder / "out.md").read_text(encoding="utf-8")


def test_tables_are_drawn_from_the_json_alone(made: tuple[Run, Path]) -> None:
    _, folder = made
    done = command_line("--from-json", folder / "out.json", cache=folder / "nothing")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == (folder / "out.md").read_text(encoding="utf-8").strip()


def test_only_a_gguf_is_permuted(tiny_source: Path, tmp_path: Path) -> None:
    done = command_line("--models", f"{tiny_source}-permuted", "--peers", "edgellm_onnx:int8", "--noisy", cache=tmp_path)
    assert done.returncode == 1
    assert "only GGUF sources are permuted" in done.stderr


@pytest.mark.slow
def test_a_permuted_model_is_a_model_of_the_table(models: Callable[[str], Path], tmp_path: Path) -> None:
    sizes = ("--threads", 1, "--trials", 1, "--prefill", 16, "--depths", 4, "--steps", 2, "--positions", 60)
    wanted = ("edgellm_onnx:int4-b32-rtn", "llama_cpp:q8_0", "llama_cpp:q4_0")
    arguments = ("--peers", *wanted, *sizes, "--json", tmp_path / "out.json", "--noisy")
    source = models("smollm2")
    done = command_line("--models", source, f"{source}-permuted", *arguments, cache=tmp_path)
    assert done.returncode == 0, done.stderr
    run = result.read(tmp_path / "out.json")
    plain, moved = dict.fromkeys(each.model for each in run.lanes)
    assert moved == f"{plain}-permuted"
    kl = {(each.model, label(each)): each.quality.kl for each in run.lanes if each.quality}
    assert 0 < kl[moved, "llama.cpp:q8_0"] < 0.02  # both are the same function, so 8 bit is close in either order
    names = {label(each) for each in run.lanes}
    assert all(abs(np.log(kl[moved, each] / kl[plain, each])) > 1e-4 for each in names), kl
