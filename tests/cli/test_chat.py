"""A conversation through real pipes and a real terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import edgellm as library
from tests.cli.conftest import ROOT, edgellm

GREEDY = ("--temperature", "0", "--max-tokens", "10")


def expected(bundle: Path, turns: list[str], system: str | None = None) -> list[str]:
    """The answers of a conversation by the library."""
    messages = [] if system is None else [{"role": "system", "content": system}]
    answers = []
    with library.load(bundle) as llm:
        for turn in turns:
            messages.append({"role": "user", "content": turn})
            answers.append(llm.chat(messages, temperature=0, max_tokens=10).text)
            messages.append({"role": "assistant", "content": answers[-1]})
    return answers


def test_a_conversation_remembers_until_reset(bundle: Path) -> None:
    result = edgellm("chat", bundle, *GREEDY, input="one\ntwo\n/reset\ntwo\n\n/exit\nnever\n")
    assert result.exit_code == 0, result.output
    remembered, fresh = expected(bundle, ["one", "two"]), expected(bundle, ["two"])
    assert remembered[1] != fresh[0]
    assert result.stdout == "".join(f"{answer}\n" for answer in [*remembered, *fresh])
    assert result.stderr == "forgotten\n"


def test_the_system_message_stays_after_a_reset(bundle: Path) -> None:
    result = edgellm("chat", bundle, "--system", "Be brief.", *GREEDY, input="one\n/reset\none\n")
    (answer,) = expected(bundle, ["one"], system="Be brief.")
    assert result.stdout == f"{answer}\n{answer}\n"


def test_an_unknown_command_and_an_error_do_not_end_the_conversation(bundle: Path) -> None:
    result = edgellm("chat", bundle, *GREEDY, input=f"/help\n{'x' * 5000}\none\n")
    assert result.exit_code == 0
    assert result.stderr.startswith("unknown command /help: ")
    assert "the context 4096" in result.stderr
    assert result.stdout == expected(bundle, ["one"])[0] + "\n"  # the failed question is not in the conversation


class Terminal:
    """`edgellm chat` on a pseudo-terminal."""

    def __init__(self, *arguments: object) -> None:
        import pty

        self._file, end = pty.openpty()
        command = [sys.executable, "-W", "error", "-m", "edgellm", "chat", *map(str, arguments)]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "dumb"}
        self.process = subprocess.Popen(
            command, stdin=end, stdout=end, stderr=end, env=environment, start_new_session=True, close_fds=True
        )
        os.close(end)
        os.set_blocking(self._file, False)
        self.shown = ""

    def type(self, text: str) -> None:
        os.write(self._file, text.encode())

    def wait_for(self, text: str, seconds: float = 30) -> str:
        """What was shown up to and with `text`, which is then forgotten."""
        deadline = time.monotonic() + seconds
        while text not in self.shown:
            assert time.monotonic() < deadline, f"never saw {text!r} in {self.shown!r}"
            try:
                self.shown += os.read(self._file, 65536).decode("utf-8", "replace")
            except (BlockingIOError, OSError):
                time.sleep(0.01)
        before, _, self.shown = self.shown.partition(text)
        return before + text

    def close(self) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._file)


@pytest.mark.skipif(sys.platform != "linux", reason="needs a pseudo-terminal")
def test_ctrl_c_stops_the_answer_and_not_the_program(bundle: Path) -> None:
    terminal = Terminal(bundle, "--temperature", "0", "--max-tokens", "3900")
    try:
        assert "Ctrl-C stops an answer" in terminal.wait_for("> ")
        terminal.type("hello\n")
        terminal.wait_for("hello")
        time.sleep(0.3)  # some of the answer has come
        terminal.process.send_signal(signal.SIGINT)
        terminal.wait_for("\n> ")
        assert terminal.process.poll() is None

        terminal.process.send_signal(signal.SIGINT)  # at the prompt: it only clears the line
        terminal.wait_for("> ")
        assert terminal.process.poll() is None

        terminal.type("/exit\n")
        assert terminal.process.wait(timeout=30) == 0
    finally:
        terminal.close()
