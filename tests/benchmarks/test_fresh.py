"""Jobs in processes of their own, whose modules are written here."""

from __future__ import annotations

import os
import signal
import sys
import time
from pathlib import Path

import pytest

from edgellm.benchmarks import fresh
from edgellm.errors import BundleError, InferenceError

MODULE = """
import ctypes, os, signal, sys, time
from edgellm.errors import BundleError

def work(job):
    yield {"pid": os.getpid(), "job": job}
    if job["do"] == "print":
        print("hello")
        os.system("echo hello")
        ctypes.CDLL(None).puts(b"hello")
    if job["do"] == "raise":
        raise BundleError("broken ü", where="a file", fix="mend it")
    if job["do"] == "raise nothing but that":
        raise BundleError("broken")
    if job["do"] == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    if job["do"] == "crash":
        raise ZeroDivisionError
    if job["do"] == "sleep":
        time.sleep(60)
    if job["do"] == "be interrupted":
        os.kill(os.getpid(), signal.SIGINT)
    yield {"last": True}
"""

pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="the module's jobs are POSIX")


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "jobs_of_a_test.py").write_text(MODULE, encoding="utf-8")
    others = filter(None, [os.environ.get("PYTHONPATH")])  # an empty entry would be the folder where one stands
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(tmp_path), *others]))


def answers(do: str, **more: object) -> list[fresh.Said]:
    heard: list[fresh.Said] = []
    fresh.run("jobs_of_a_test", {"do": do, **more}, heard.append, where="the job")
    return heard


def test_a_job_goes_over_and_answers_come_back_from_another_process() -> None:
    first, last = answers("nothing", path="ü 'x' \"y\"\n", numbers=[1, 2.5, None])
    assert first["job"] == {"do": "nothing", "path": "ü 'x' \"y\"\n", "numbers": [1, 2.5, None]}
    assert first["pid"] != os.getpid()
    assert last == {"last": True}


def test_what_is_printed_is_no_answer() -> None:
    assert len(answers("print")) == 2


def test_an_error_comes_over_as_itself_behind_the_answers_before_it() -> None:
    heard: list[fresh.Said] = []
    with pytest.raises(BundleError) as caught:
        fresh.run("jobs_of_a_test", {"do": "raise"}, heard.append, where="the job")
    assert (caught.value.what, caught.value.where, caught.value.fix) == ("broken ü", "a file", "mend it")
    assert len(heard) == 1
    with pytest.raises(BundleError) as caught:
        answers("raise nothing but that")
    assert (caught.value.what, caught.value.where, caught.value.fix) == ("broken", None, None)


@pytest.mark.parametrize(("do", "status"), [("die", -9), ("crash", 1)])
def test_a_process_that_ends_without_a_word_is_an_error(do: str, status: int) -> None:
    with pytest.raises(InferenceError, match=rf"the job: the process .* ended with status {status}; free memory"):
        answers(do)


def test_what_the_listener_raises_ends_the_process() -> None:
    pids: list[int] = []

    def interrupt(said: fresh.Said) -> None:
        pids.append(said["pid"])
        raise KeyboardInterrupt

    started = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        fresh.run("jobs_of_a_test", {"do": "sleep"}, interrupt, where="the job")
    assert time.monotonic() - started < 50
    with pytest.raises(ProcessLookupError):
        os.kill(pids[0], signal.SIG_DFL)


def test_ctrl_c_is_the_parents_affair() -> None:
    """A terminal sends it to both."""
    assert answers("be interrupted")[-1] == {"last": True}


def test_no_module_of_the_folder_where_the_user_stands_is_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stand = tmp_path / "bundle"
    stand.mkdir()
    (stand / "json.py").write_text("open('was-run', 'w')\n", encoding="utf-8")
    monkeypatch.chdir(stand)
    assert len(answers("nothing")) == 2
    assert not (stand / "was-run").exists()
