"""A bundle of format 1, made on 2026-11-23 and never made again: every later edgellm must load it and say the same.

`bundle-v1.expected.json` holds what transformers says greedily on the source that the bundle was converted from
(`tests/tiny_folder.py`, float32, 128 positions).
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import edgellm
from edgellm.bundle import Bundle

DATA = Path(__file__).parents[1] / "data"


def test_it_is_whole() -> None:
    Bundle.open(DATA / "bundle-v1").verify()


def test_it_says_what_it_said(tmp_path: Path) -> None:
    expected = json.loads((DATA / "bundle-v1.expected.json").read_text(encoding="utf-8"))
    with edgellm.load(shutil.copytree(DATA / "bundle-v1", tmp_path / "bundle")) as llm:
        assert llm.tokenizer.encode(expected["prompt"]) == expected["ids"]
        assert list(llm.generate(expected["prompt"], max_tokens=24, temperature=0).ids) == expected["greedy"]
