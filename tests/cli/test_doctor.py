"""doctor: its advice, by devices that would need it, and a board over a real sshd."""

from __future__ import annotations

import getpass
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgellm.benchmarks import facts
from edgellm.benchmarks.facts import Core, Facts, Looked, Python
from edgellm.cli import doctor
from edgellm.cli._doctor_device import device, features, system
from tests.cli.conftest import edgellm, start
from tests.sshd import Board
from tests.sysfs_tree import lay

GOVERNED = {
    "sys/devices/system/cpu/online": "0",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_governor": "powersave",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_driver": "cpufreq-dt",
    "sys/devices/system/cpu/cpu0/cpufreq/scaling_cur_freq": 600000,
}


def advice(found: Facts) -> list[str]:
    return [finding.advice for finding in [*system(found), *device(found)] if finding.advice]


def cores(count: int, **fields: object) -> tuple[Core, ...]:
    return tuple(Core(number, **fields) for number in range(count))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("found", "words"),
    [
        (Facts(features=("neon",)), "no int8 dot product, so int4 gains little"),
        (Facts(cores=cores(2, governor="ondemand")), "ondemand may hold the clock back: set the governor to performance"),
        (Facts(cores=cores(4), quota=1.5), "the CPU quota is 1.5 of 4 processors"),
        (Facts(throttled=("cpufreq-cpu0 is at 3 of 17",)), "throttled now (cpufreq-cpu0 is at 3 of 17): cool it"),
        (Facts(celsius={"cpu": 84.0, "gpu": 40.0}), "cpu is at 84 degrees: cool it"),
        (Facts(disk=100_000_000), "little disk"),
        (Facts(emulated="aarch64 is emulated on x86 here"), "measure on the hardware itself"),
    ],
)
def test_what_could_be_better(found: Facts, words: str) -> None:
    (line,) = advice(found)
    assert words in line


@pytest.mark.parametrize(
    "found",
    [
        Facts(),
        Facts(
            features=("dotprod", "neon"), cores=cores(4, governor="performance"), quota=4.0, throttled=(), celsius={"cpu": 50.0}
        ),
        Facts(cores=cores(2, governor="powersave", driver="intel_pstate"), disk=10**11),
    ],
)
def test_where_nothing_could(found: Facts) -> None:
    assert advice(found) == []


def test_what_is_not_known_is_left_out() -> None:
    assert [finding.name for finding in device(Facts())] == []
    assert next(finding.text for finding in system(Facts())) == "unknown"
    assert features(None).advice is None


def test_big_and_little_cores_are_told_apart() -> None:
    found = Facts(
        cores=(Core(0, "Cortex-A55", 325, max_mhz=1800.0), *cores(2, name="Cortex-A76", capacity=1024, max_mhz=2400.0))
    )
    (line,) = (finding.text for finding in device(found) if finding.name == "cores")
    assert line == "1 x Cortex-A55 up to 1,800 MHz (capacity 325), 2 x Cortex-A76 up to 2,400 MHz (capacity 1024)"


def test_a_governor_that_is_laid_out(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-s", str(lay(tmp_path, GOVERNED))], input=facts.SCRIPT, capture_output=True, text=True, check=True
    )
    found = [finding for finding in device(facts.parse(done.stdout)) if finding.name == "governor"]
    assert [finding.text for finding in found] == ["powersave, 600 to 600 MHz now"]
    assert "powersave may hold the clock back" in (found[0].advice or "")


def test_the_old_runtime_and_a_new_numpy() -> None:
    packages = {"numpy": "2.1.0", "tflite-runtime": "2.14.0"}
    findings = doctor._elsewhere(Looked(Facts(), Python("/usr/bin/python3", "3.11.2", packages)))
    assert [each.advice for each in findings if each.advice] == [
        "tflite-runtime needs an older numpy: pip install 'edgellm[tflite-runtime]' 'numpy<2'"
    ]
    older = doctor._elsewhere(Looked(Facts(), Python("/usr/bin/python3", "3.11.2", {**packages, "numpy": "1.26.4"})))
    assert not [each for each in older if each.advice]
    assert "install Python 3.11" in str(doctor._elsewhere(Looked(Facts()))[-1].advice)
    assert not [each for each in doctor._elsewhere(Looked(Facts(android={"ro.soc.model": "SM8650"}))) if each.advice]


@pytest.mark.parametrize(
    ("value", "told"), [("1", "telemetry        off for all programs"), ("0", "set ORT_DISABLE_TELEMETRY=1")]
)
def test_telemetry(monkeypatch: pytest.MonkeyPatch, value: str, told: str) -> None:
    monkeypatch.setenv("ORT_DISABLE_TELEMETRY", value)
    assert told in edgellm("doctor").stdout


def test_telemetry_of_a_board_whose_environment_nobody_knows() -> None:
    findings = doctor._elsewhere(Looked(Facts(), Python("/usr/bin/python3", "3.11.2", {"onnxruntime": "1.32.1"})))
    assert [each.name for each in findings if each.advice] == ["telemetry"]
    assert "set ORT_DISABLE_TELEMETRY=1 for all programs there, if that is not done" in str(findings[-1].advice)


@pytest.fixture
def board(tmp_path: Path) -> Iterator[Board]:
    with Board.started(tmp_path / "board") as board:
        yield board


@pytest.mark.skipif(sys.platform == "win32", reason="boards are POSIX systems")
def test_a_board(board: Board, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = board.target("kitchen")
    options = "".join(f'{name} = "{value}"\n' for name, value in target.options)
    (tmp_path / "hosts.toml").write_text(f'[hosts.kitchen]\nurl = "{target.url}"\n{options}', encoding="utf-8")
    monkeypatch.chdir(tmp_path)
    done = edgellm("doctor", "--host", "kitchen")
    assert done.exit_code == 0, done.output
    assert f"python           {'.'.join(map(str, sys.version_info[:3]))}, " in done.stdout
    assert "onnxruntime      " in done.stdout
    for line in ("system", "cpu", "cpu features", "threads", "memory", "disk"):
        assert f"\n{line} " in f"\n{done.stdout}"


@pytest.mark.skipif(sys.platform == "win32", reason="boards are POSIX systems")
def test_what_a_user_has_set_up_for_ssh_is_heeded(board: Board, tmp_path: Path) -> None:
    """Keys, known hosts and names are those that `ssh kitchen` takes; without them nobody gets in."""
    settings = tmp_path / "user/.ssh"
    settings.mkdir(parents=True)
    lines = ["Host Kitchen", "HostName 127.0.0.1", f"Port {board.port}", f"User {getpass.getuser()}"]
    (settings / "config").write_text("\n".join(lines) + "\n", encoding="utf-8")
    environment = {"HOME": str(tmp_path / "user"), "SSH_AUTH_SOCK": ""}

    def ask() -> tuple[int, str]:
        with start("doctor", "--host", "ssh://Kitchen", environment=environment) as process:
            output, errors = process.communicate(timeout=60)
        return process.returncode, (output + errors).decode()

    status, said = ask()
    assert (status, "its host key is not that of the known hosts" in said) == (1, True), said
    shutil.copy(board.folder / "known", settings / "known_hosts")
    status, said = ask()
    assert (status, "it accepts none of the keys" in said) == (1, True), said
    shutil.copy(board.folder / "user", settings / "id_ed25519")
    status, said = ask()
    assert status == 0, said
    assert "\npython " in said


def test_hosts_that_tell_nothing() -> None:
    assert edgellm("doctor", "--host", "gopher://x").exit_code == 2
    done = edgellm("doctor", "--host", "ssh://127.0.0.1:1")
    assert (done.exit_code, done.stdout) == (1, "")
    assert done.stderr.startswith("error: ssh://127.0.0.1:1: it cannot be reached")
    assert done.stderr.count("\n") == 1
