"""How the commands of this folder end."""

from __future__ import annotations

import pytest

from edgellm.benchmarks import script
from edgellm.errors import UsageError


def test_what_goes_well_is_status_0(capsys: pytest.CaptureFixture[str]) -> None:
    called: list[bool] = []
    assert script.ends(lambda: called.append(True))() == 0
    assert called == [True]
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("raised", "status", "said"),
    [
        (UsageError("no such thing", where="--it", fix="take another"), 1, "error: --it: no such thing; take another\n"),
        (KeyboardInterrupt(), 130, "interrupted\n"),
    ],
)
def test_what_a_user_can_cause_is_one_line(
    raised: BaseException, status: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    @script.ends
    def main() -> None:
        raise raised

    assert main() == status
    assert capsys.readouterr() == ("", said)


def test_a_mistake_of_ours_keeps_its_traceback() -> None:
    @script.ends
    def main() -> None:
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        main()


def test_arguments_that_make_no_sense_end_as_argparse_has_it() -> None:
    @script.ends
    def main() -> None:
        raise SystemExit(2)

    with pytest.raises(SystemExit) as caught:
        main()
    assert caught.value.code == 2
