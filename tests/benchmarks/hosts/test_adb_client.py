"""Debian's adb against a device of the tests: commands, files, and what goes wrong."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellm.benchmarks.hosts import adb_client
from edgellm.benchmarks.hosts.adb_client import FOLDER, Device
from edgellm.errors import InferenceError, ResourceError, RuntimeUnavailable, UsageError
from tests import adb_device
from tests.adb_device import Phone

pytestmark = pytest.mark.skipif(shutil.which("adb") is None, reason="there is no adb: apt install adb")
HERE = f"{FOLDER}/test"
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", autouse=True)
def own_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with adb_device.server(tmp_path_factory.mktemp("adb")) as own, pytest.MonkeyPatch.context() as environment:
        for name, value in own.items():
            environment.setenv(name, value)
        yield


@pytest.fixture(params=[True, False], ids=["shell-v2", "legacy-shell"])
def phone(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Phone]:
    with Phone(tmp_path / "phone", shell_v2=request.param) as phone:
        yield phone


def written(file: Path, content: bytes | str) -> Path:
    file.write_bytes(content.encode() if isinstance(content, str) else content)
    return file


def test_what_a_command_says_and_how_it_ends(phone: Phone) -> None:
    device = adb_client.find(phone.address)
    answer = device.shell("echo one; echo two >&2; exit 7")
    assert sorted(answer.output.split()) == ["one", "two"]
    assert answer.code == 7
    assert device.shell("printf 'no newline'").output == "no newline"
    assert device.shell("true") == adb_client.Answer("", 0)


def test_a_command_that_takes_too_long(phone: Phone) -> None:
    device = adb_client.find(phone.address)
    with pytest.raises(InferenceError, match=r"no answer within 1 s; restart it"):
        device.shell("sleep 30", seconds=1)


def test_files_arrive_as_they_are(phone: Phone, tmp_path: Path) -> None:
    device = adb_client.find(phone.address)
    large = written(tmp_path / "large", os.urandom(1_000_003))
    odd = written(tmp_path / "odd", "#!/bin/sh\necho 'it runs'\n")
    device.push({"large": large, "it's a $name; rm -r *": odd}, HERE, programs=["it's a $name; rm -r *"])
    folder = phone.path(HERE)
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == {
        "large": large.read_bytes(),
        "it's a $name; rm -r *": odd.read_bytes(),
    }
    assert device.run("odd", ["./it's a $name; rm -r *"], HERE, seconds=20).output.strip() == "it runs"
    assert not os.access(folder / "large", os.X_OK)


def test_only_what_is_missing_is_sent(phone: Phone, tmp_path: Path) -> None:
    device = adb_client.find(phone.address)
    files = {name: written(tmp_path / name, name * 1000) for name in ("a", "b", "c")}
    device.push(files, HERE)
    assert len(phone.sent) == 3
    device.push(files, HERE)
    assert len(phone.sent) == 3
    damaged = phone.path(f"{HERE}/b")
    damaged.write_text(damaged.read_text(encoding="utf-8").replace("b", "x", 1), encoding="utf-8")
    phone.path(f"{HERE}/c").unlink()
    said: list[str] = []
    device.push(files, HERE, progress=said.append)
    assert [Path(name).name for name in phone.sent[3:]] == ["b.part", "c.part"]
    assert said == [f"b to {phone.address}", f"c to {phone.address}"]
    assert damaged.read_text(encoding="utf-8") == "b" * 1000


def test_a_program_has_its_folder_its_environment_and_no_input(phone: Phone, tmp_path: Path) -> None:
    device = adb_client.find(phone.address)
    script = written(tmp_path / "program", '#!/bin/sh\npwd; echo "$@"; echo "$OF_IT"; cat; ls\n')
    device.push({"program": script}, HERE, programs=["program"])
    said = device.run("program", ["./program", "a b", "$c"], HERE, seconds=20, environment={"OF_IT": "it's"}).output
    assert said.splitlines() == [str(phone.path(HERE)), "a b $c", "it's", "program"]


@pytest.mark.parametrize(
    ("script", "fault"),
    [
        ("echo loading; kill -SEGV $$", r"program ended by SIGSEGV after: .*; run it by hand in 'adb shell'"),
        ("echo loading; kill -KILL $$", r"program ended by SIGKILL.*; Android ends what takes too much memory: take a smaller"),
        ("kill -ILL $$", r"program ended by SIGILL.*; its processor lacks an instruction"),
        ("kill -36 $$", r"program ended by signal 36"),
    ],
)
def test_a_program_that_a_signal_ended(phone: Phone, tmp_path: Path, script: str, fault: str) -> None:
    device = adb_client.find(phone.address)
    device.push({"program": written(tmp_path / "program", f"#!/bin/sh\n{script}\n")}, HERE, programs=["program"])
    with pytest.raises(InferenceError, match=fault) as caught:
        device.run("program", ["./program"], HERE, seconds=20)
    assert "\n" not in str(caught.value)


def test_a_code_of_its_own_is_no_signal(phone: Phone, tmp_path: Path) -> None:
    device = adb_client.find(phone.address)
    device.push({"program": written(tmp_path / "program", "#!/bin/sh\nexit 255\n")}, HERE, programs=["program"])
    assert device.run("program", ["./program"], HERE, seconds=20).code == 255


def runs_on(phone: Phone) -> bool:
    """Whether the program that it ran last goes on; it has ten seconds to end."""
    process = Path("/proc") / phone.path(f"{HERE}/.pid").read_text(encoding="utf-8").strip()
    until = time.monotonic() + 10
    while process.exists() and time.monotonic() < until:
        time.sleep(0.01)
    return process.exists()


def test_a_program_that_hangs_is_ended_there(tmp_path: Path) -> None:
    with Phone(tmp_path / "phone", lets_run=True) as phone:
        device = adb_client.find(phone.address)
        device.push({"program": written(tmp_path / "program", "#!/bin/sh\nexec sleep 60\n")}, HERE, programs=["program"])
        with pytest.raises(InferenceError, match=r"program did not finish within 1 s; ask for less"):
            device.run("program", ["./program"], HERE, seconds=1)
        assert not runs_on(phone)


def test_a_program_is_ended_there_when_we_are_interrupted(tmp_path: Path) -> None:
    script = """
import sys
from edgellm.benchmarks.hosts import adb_client
adb_client.find(sys.argv[1]).run("program", ["./program"], sys.argv[2], seconds=60)
"""
    with Phone(tmp_path / "phone", lets_run=True) as phone:
        device = adb_client.find(phone.address)
        program = written(tmp_path / "program", "#!/bin/sh\ntouch started\nexec sleep 60\n")
        device.push({"program": program}, HERE, programs=["program"])
        command = [sys.executable, "-c", script, phone.address, HERE]
        child = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stderr=subprocess.PIPE)
        until = time.monotonic() + 30
        while not phone.path(f"{HERE}/started").exists() and time.monotonic() < until:
            time.sleep(0.01)
        child.send_signal(signal.SIGINT)
        assert b"KeyboardInterrupt" in child.communicate(timeout=30)[1]
        assert not runs_on(phone)


def test_no_room(tmp_path: Path) -> None:
    file = written(tmp_path / "large", bytes(3_000_000))
    with Phone(tmp_path / "phone", room=1_000_000) as phone:
        device = adb_client.find(phone.address)
        with pytest.raises(
            ResourceError, match=r"no space left for 'large' of 3 MB; free some, for example by 'adb shell rm -r"
        ):
            device.push({"large": file}, HERE)
        assert list(phone.path(HERE).iterdir()) == []


def test_a_file_that_arrives_changed_keeps_no_name(tmp_path: Path) -> None:
    with Phone(tmp_path / "phone") as phone:
        device = adb_client.find(phone.address)
        phone.tool("sha256sum", 'printf "%064d  %s\\n" 0 "$1"')
        with pytest.raises(InferenceError, match=r"'file' did not arrive as it was sent; try another cable"):
            device.push({"file": written(tmp_path / "file", "content")}, HERE)
        assert list(phone.path(HERE).iterdir()) == []


def test_a_device_without_sha256sum(tmp_path: Path) -> None:
    with Phone(tmp_path / "phone") as phone:
        device = adb_client.find(phone.address)
        phone.tool("sha256sum", "echo 'sha256sum: not found'; exit 127")
        phone.path(HERE).mkdir(parents=True)
        written(phone.path(HERE) / "file", "old")
        with pytest.raises(ResourceError, match=r"it hashes no files: sha256sum: not found; Android 8 or later can"):
            device.push({"file": written(tmp_path / "file", "content")}, HERE)


def test_it_is_unplugged_while_a_file_is_sent(tmp_path: Path) -> None:
    with Phone(tmp_path / "phone", dies_after=1 << 20) as phone:
        device = adb_client.find(phone.address)
        with pytest.raises(InferenceError, match=r"the device went away.*; plug it in again, and measure again"):
            device.push({"large": written(tmp_path / "large", bytes(8 << 20))}, HERE)
        assert not phone.path(f"{HERE}/large").exists()
        assert not device.is_there()


def test_it_is_unplugged_while_a_command_runs(tmp_path: Path) -> None:
    with Phone(tmp_path / "phone", dies_in="sleep") as phone:
        device = adb_client.find(phone.address)
        with pytest.raises(InferenceError, match=r"the device went away"):
            device.shell("sleep 30")


def test_a_device_that_lets_nobody_in(tmp_path: Path) -> None:
    fault = r"adb://127.*: the device has not allowed this computer; unlock it, and accept 'Allow USB debugging'"
    with Phone(tmp_path / "phone", authorized=False) as phone, pytest.raises(UsageError, match=fault):
        adb_client.find(phone.address)


def test_nobody_answers_at_an_address(tmp_path: Path) -> None:
    with Phone(tmp_path / "phone") as phone:
        address = phone.address
    with pytest.raises(UsageError, match=r"no connection: .*; check the address and wireless debugging"):
        adb_client.find(address)


def test_one_device_needs_no_name_and_of_several_one_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with adb_device.server(tmp_path / "adb") as own:
        for name, value in own.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(UsageError, match=r"adb://: no device; plug it in, and turn on USB debugging"):
            adb_client.find("")
        with Phone(tmp_path / "one") as one, Phone(tmp_path / "two") as two:
            adb_client.find(one.address)
            assert adb_client.find("").serial == one.address
            with pytest.raises(UsageError, match=rf"adb://R58N: no such device; .*there are: {one.address}"):
                adb_client.find("R58N")
            adb_client.find(two.address)
            with pytest.raises(UsageError, match=r"there are 2 devices: .*; say which, such as adb://127"):
                adb_client.find("")


def test_no_adb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "/nowhere")
    with pytest.raises(RuntimeUnavailable, match=r"adb is not installed; apt install adb"):
        adb_client.find("")


def test_adb_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANDROID_ADB_SERVER_PORT", "no number")
    with pytest.raises(RuntimeUnavailable, match=r"adb does not start: "):
        adb_client.find("")


def test_devices_keep_their_serial(tmp_path: Path) -> None:
    with Phone(tmp_path / "phone") as phone:
        assert isinstance(adb_client.find(phone.address), Device)
