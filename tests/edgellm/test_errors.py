"""An error is one line that any terminal and log can take."""

from __future__ import annotations

from edgellm.errors import EdgeError, plain


def test_an_error_is_one_line_of_plain_characters() -> None:
    error = EdgeError("odd\nname \x1b[2J\x9b", where="Größe 😀 \udcff", fix="rename it")
    assert str(error) == r"Größe 😀 \udcff: odd name \x1b[2J\x9b; rename it"
    assert str(error).encode()


def test_plain_leaves_text_alone() -> None:
    assert plain("C:\\models 模型 عربى") == "C:\\models 模型 عربى"
