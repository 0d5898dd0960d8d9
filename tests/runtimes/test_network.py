"""Nothing leaves the device: a whole generation under a kernel filter that kills the process at its first socket.

onnxruntime's telemetry (its official Linux builds have it) first writes its events to a database in the user's cache and
sends them later, so a generation must not leave that behind either.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
SOCKET_CALL = {"x86_64": 41, "aarch64": 198}

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() not in SOCKET_CALL, reason="seccomp is Linux's, and its numbers the CPU's"
)

# A classic BPF program: load the system call's number; kill the whole process if it is socket(), allow all else. Set before
# anything is imported, it binds every thread that native code starts.
DENY_SOCKETS = """
import ctypes, struct
LOAD, JUMP_IF_EQUAL, RETURN, KILL, ALLOW = 0x20, 0x15, 6, 0x80000000, 0x7FFF0000
program = b"".join(
    struct.pack("HBBI", *rule)
    for rule in [(LOAD, 0, 0, 0), (JUMP_IF_EQUAL, 0, 1, SOCKET), (RETURN, 0, 0, KILL), (RETURN, 0, 0, ALLOW)]
)
code = ctypes.create_string_buffer(program)
class Filter(ctypes.Structure):
    _fields_ = [("length", ctypes.c_ushort), ("code", ctypes.c_void_p)]
libc = ctypes.CDLL(None, use_errno=True)
NO_NEW_PRIVILEGES, SECCOMP, MODE_FILTER = 38, 22, 2
assert libc.prctl(NO_NEW_PRIVILEGES, 1, 0, 0, 0) == 0
assert libc.prctl(SECCOMP, MODE_FILTER, ctypes.byref(Filter(4, ctypes.addressof(code))), 0, 0) == 0, ctypes.get_errno()
""".replace("SOCKET)", f"{SOCKET_CALL.get(platform.machine())})")
GENERATE = """
import sys, time, edgellm
with edgellm.load(sys.argv[1], threads=2) as llm:
    out = llm.generate("hello", max_tokens=8)
    time.sleep(1)  # telemetry is often sent by a thread of its own
print(out.finish_reason)
"""


SUPPRESSED_BY = ("ORT_", "CI", "GITHUB_", "GITLAB_", "JENKINS_", "TF_BUILD", "BUILDKITE", "CODEBUILD_", "BITBUCKET_", "XDG_")


def run(home: Path, program: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Run in a process in which nothing but edgellm says that telemetry is not wanted."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith(SUPPRESSED_BY)}
    environment |= {"PYTHONPATH": str(ROOT), "HOME": str(home), "PYTHONDONTWRITEBYTECODE": "1"}
    environment.pop("EDGELLM_CACHE", None)
    return subprocess.run(
        [sys.executable, "-c", DENY_SOCKETS + program, *map(str, arguments)],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


@pytest.mark.parametrize(
    "program",
    [
        "import socket; socket.socket()",
        "import threading, socket as s; t = threading.Thread(target=s.socket); t.start(); t.join()",
    ],
)
def test_the_filter_kills(program: str, tmp_path: Path) -> None:
    assert run(tmp_path, program).returncode < 0


def test_a_generation_sends_and_stores_nothing(tiny_bundle: Path, tmp_path: Path) -> None:
    result = run(tmp_path, GENERATE, tiny_bundle)
    assert (result.returncode, result.stdout, result.stderr) == (0, "length\n", "")
    left = {path.relative_to(tmp_path).parts[:2] for path in tmp_path.rglob("*") if path.is_file()}
    assert left == {(".cache", "edgellm")}, "only the stamp of the verified bundle"


@pytest.mark.parametrize(
    ("before", "warned"),
    [
        ("", False),
        ("import onnxruntime\n", True),
        ("import os; os.environ['ORT_DISABLE_TELEMETRY'] = '1'; import onnxruntime\n", False),
    ],
)
def test_an_import_that_came_too_early_is_said(before: str, warned: bool, tiny_bundle: Path) -> None:
    """Without the filter: what this is about is that edgellm cannot undo it."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ORT_")}
    program = before + "import sys, edgellm\nfor _ in range(2): edgellm.load(sys.argv[1]).close()"
    done = subprocess.run(
        [sys.executable, "-c", program, str(tiny_bundle)],
        env={**environment, "PYTHONPATH": str(ROOT), "CI": "true"},  # onnxruntime itself keeps quiet under CI
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stderr.count("set ORT_DISABLE_TELEMETRY=1 first") == int(warned)
