"""An emulated board behind a real sshd: no edgellm, no packages and no internet there, and the run that comes back."""

from __future__ import annotations

from pathlib import Path

import pytest

from edgellm.benchmarks import report
from edgellm.benchmarks.figures import figures
from edgellm.benchmarks.hosts import ssh
from edgellm.benchmarks.hosts.failure import HostError
from edgellm.benchmarks.result import Settings
from edgellm.bundle import Bundle
from edgellm.conversion import convert
from tests.arm import board, roots
from tests.runs import a_run
from tests.sshd import Board

pytestmark = [pytest.mark.arm, pytest.mark.slow]

SMALL = Settings(threads=(1,), prompts=(8,), depths=(0,), decode=4, trials=1)


@pytest.mark.usefixtures("emulation")
def test_a_32_bit_board_has_numpy_of_its_own_and_gets_the_rest(tiny_source: Path, tmp_path: Path) -> None:
    made = convert(tiny_source, tmp_path / "tiny", target="tflite-compat", quant="int8")
    pi = board.make(tmp_path / "pi", board.KINDS["cortex-a7"], roots.root("armhf"), [])
    with Board.started(tmp_path / "sshd") as door:
        door.gate("unset PYTHONPATH", f"PATH='{pi.folder}/bin':$PATH; export PATH")
        run = ssh.bench(
            door.target(python="python3"), [made], ["tflite-compat"], SMALL, command="edgellm bench", progress=lambda step: None
        )
    (lane,) = run.lanes
    assert (run.machine.architecture, lane.runtime, lane.failed) == ("armv7l", "tflite_compat", None)
    assert lane.versions["tflite-runtime"] == "2.14.0"
    assert lane.versions["numpy"].startswith("1.")


@pytest.mark.usefixtures("emulation")
def test_a_board_that_has_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    pi = board.make(tmp_path / "pi", board.KINDS["cortex-a76"], roots.root("arm64"), [])
    with Board.started(tmp_path / "sshd") as door:
        door.gate("unset PYTHONPATH", f"PATH='{pi.folder}/bin':$PATH; export PATH")
        target = door.target("kitchen", python="python3")
        looked = ssh.look(target)
        assert looked.python is not None
        assert (looked.python.path, looked.python.packages) == (str(pi.python), {})
        steps: list[str] = []
        try:
            run = ssh.bench(target, [Bundle.open(tiny_bundle)], ["onnx"], SMALL, command="edgellm bench", progress=steps.append)
        except HostError as error:
            if "no wheels of" in str(error):
                pytest.skip(str(error))
            raise
    assert run.machine.architecture == "aarch64"
    assert run.machine.emulated == "aarch64 is emulated on x86 here"
    assert run.host == "kitchen"
    (lane,) = run.lanes
    assert (lane.failed, lane.agreement) == (None, 1.0)
    assert "onnxruntime" in lane.versions
    assert run.samples
    assert figures(run) == (), "what is emulated has no speeds"
    assert any(step.startswith("wheels of onnx for Python 3.") and step.endswith(" on aarch64") for step in steps)
    assert any(step.startswith("sending onnxruntime") for step in steps)
    report.write([a_run(), run], tmp_path / "report.md")
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert "emulated" in text
