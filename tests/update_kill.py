"""Applies an update again and again, and is killed before one after the other of its dealings with the file system, or told
that the disk is full; or a signal's exception comes before one after the other of its lines, and so behind each dealing.

    python update_kill.py UPDATE OLD NEW PLACE exchange|renames apply|rollback kill|full|signal

Prints a line of JSON for each point: how it ended, whether the bundle was there right after that, whether it was the old or the
new one (after `Bundle.open`, which is what a device does next), which one was its `.previous`, what else was there, and whether
the same command, given once more, succeeded and left nothing behind. Before an update there is an older bundle of that name.
`renames` forbids the system call that exchanges two names, as an old kernel would.
"""

from __future__ import annotations

import ctypes
import errno
import hashlib
import json
import os
import platform
import shutil
import signal
import struct
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import FrameType

from edgellm.bundle import Bundle
from edgellm.errors import EdgeError
from edgellm.update_apply import apply, roll_back

EVENTS = {
    *(
        "open",
        "os.mkdir",
        "os.link",
        "os.rename",
        "os.remove",
        "os.rmdir",
        "os.listdir",
        "os.scandir",
        "os.utime",
        "os.chmod",
        "os.chown",
    ),
    *("ctypes.dlopen", "ctypes.dlsym", "fcntl.flock"),
}
TRACED = (
    "swap.py",
    "update_apply.py",
    "partial.py",
)  # of the package; a handler of Python's runs between any two of their lines
ALIKE = (
    "_make",
    "_write",
    "_link",
    "find",
    "_liken",
    "_check_content",
)  # within the building: their callers' lines stand for theirs
RENAMEAT2 = {"x86_64": 316, "aarch64": 276}


def forbid_exchange() -> None:
    """A seccomp filter: renameat2 is answered with ENOSYS."""
    number = RENAMEAT2[platform.machine()]
    steps = [(0x20, 0, 0, 0), (0x15, 0, 1, number), (0x06, 0, 0, 0x0005_0000 | 38), (0x06, 0, 0, 0x7FFF_0000)]
    filters = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *step) for step in steps))
    program = ctypes.create_string_buffer(struct.pack("HxxxxxxP", len(steps), ctypes.addressof(filters)))
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(38, 1, 0, 0, 0) or libc.prctl(22, 2, program):
        raise OSError(ctypes.get_errno(), "no seccomp")


def content(folder: Path) -> dict[str, str]:
    files = (file for file in folder.rglob("*") if file.is_file())
    return {file.relative_to(folder).as_posix(): hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


def stopped_at(point: int, how: str, act: Callable[[], object]) -> str:
    """What became of a child that runs `act` and is stopped at its dealing number `point`.

    "killed"; "error" for one that a user is told, "ended" by a signal's, "crash" for another; "done", or "passed" where it had
    fewer dealings.
    """
    child = os.fork()
    if not child:
        left = point

        def hook(event: str, arguments: object) -> None:
            nonlocal left
            if event in EVENTS:
                left -= 1
                if left == -1 and how == "full":
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                if left < 0 and how == "kill":
                    os.kill(os.getpid(), signal.SIGKILL)

        def trace(frame: FrameType, event: str, argument: object) -> object:
            nonlocal left
            code = frame.f_code
            if Path(code.co_filename).name not in TRACED or code.co_name in ALIKE:
                return None
            if event == "line":
                left -= 1
                if left == -1:
                    sys.exit(143)
            return trace

        sys.settrace(trace) if how == "signal" else sys.addaudithook(hook)
        code = 2
        try:
            act()
            code = 3 if left >= 0 else 0
        except EdgeError:
            code = 1
        except SystemExit:
            code = 4
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    status = os.waitpid(child, 0)[1]
    return "killed" if os.WIFSIGNALED(status) else ("done", "error", "crash", "passed", "ended")[os.WEXITSTATUS(status)]


def main() -> None:
    update, old, new, place = map(Path, sys.argv[1:5])
    if sys.argv[5] == "renames":
        forbid_exchange()
    rolls = sys.argv[6] == "rollback"
    bundle, previous = place / "bundle", place / "bundle.previous"
    act = (lambda: roll_back(bundle)) if rolls else (lambda: apply(update, bundle))
    before, after = (content(new), content(old)) if rolls else (content(old), content(new))
    point, ending = 0, ""
    while ending != "passed":
        shutil.rmtree(place, ignore_errors=True)
        shutil.copytree(old, bundle)
        shutil.copytree(new, previous)
        (previous / "older").write_text("older", encoding="utf-8")
        older = content(previous)
        if rolls:
            apply(update, bundle)
        ending = stopped_at(point, sys.argv[7], act)
        hidden = [entry.name for entry in place.iterdir() if entry.name.startswith(".")]
        there = (bundle / "edgellm.json").exists()
        Bundle.open(bundle).verify()
        found = content(bundle)
        state = "before" if found == before else "after" if found == after else "neither"
        beside = content(previous)
        kept = "before" if beside == before else "after" if beside == after else "older" if beside == older else "neither"
        if not rolls or (state == "before" and previous.exists()):
            act()
        ended = content(bundle) == after and (not previous.exists() or content(previous) == before)
        left = sorted(entry.name for entry in place.iterdir())
        line = {
            "point": point,
            "ending": ending,
            "there": there,
            "state": state,
            "kept": kept,
            "ended": ended,
            "hidden": hidden,
            "left": left,
        }
        sys.stdout.write(json.dumps(line) + "\n")
        sys.stdout.flush()
        point += 1


if __name__ == "__main__":
    main()
