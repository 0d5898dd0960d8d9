"""LiteRT-LM on the file that edgellm packs of its own TFLite bundle: the weights are the bundle's, byte for byte.

Speed is by LiteRT-LM's own account, which its engine keeps where it is asked to: seconds to the first token, and how many
tokens a second were decoded, all of them together. It is given text, so a prompt of so many tokens is a text that its own
tokenizer makes so many of. Where it ends an answer early it is asked again, with the same prompt. The KV cache is float32;
everything that is not said here is its default.

Its API shows no logits (of given texts it tells their likelihood, and of other tokens nothing), so that neither its closeness
is measured nor its tokens are checked, and the report says so: it is an `OwnLoop` and no `Engine`.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edgellm.benchmarks.cases import Written
from edgellm.benchmarks.peers import edgellm_tflite
from edgellm.benchmarks.peers.edgellm_onnx import make_bundle
from edgellm.benchmarks.peers.engine import Variant
from edgellm.errors import InferenceError, RuntimeUnavailable

NAME = "litert-lm"
PACKAGES = ("litert-lm",)
INSTALL = "pip install litert-lm, and 'edgellm[litertlm,convert]' for its files"
IMPORTS = ("litert_lm",)
BUILDER = "litert_lm_builder"
FILE = "model.litertlm"
SPARE = 32  # characters by which a text may end elsewhere


def _variant(name: str, *, usual: bool) -> Variant:
    return replace(edgellm_tflite.VARIANTS[name], kv="f32", usual=usual)


VARIANTS = {
    "int4-b32": _variant("int4-b32", usual=True),
    "int8": _variant("int8", usual=True),
    "default": _variant("default", usual=False),
}


def prepare(variant: str, source: Path, folder: Path) -> Path:
    """A .litertlm, loaded once: what XNNPACK packs is then beside it, as after a user's first start."""
    if importlib.util.find_spec(BUILDER) is None:
        raise RuntimeUnavailable(f"{BUILDER} is not installed", fix=INSTALL)
    from edgellm.litertlm import export_litertlm  # here, so that a child that measures imports no converter

    bundle = make_bundle("tflite", edgellm_tflite.VARIANTS[variant], source, folder / f"edgellm-tflite-{variant}")
    code = bundle.name.rpartition(".")[2]
    version = importlib.metadata.version(PACKAGES[0])
    target = folder / f"litert-lm-{version}-{variant}.{code}" / FILE
    if not target.is_file():
        for old in folder.glob(f"litert-lm-*-{variant}.*"):
            shutil.rmtree(old)
        export_litertlm(bundle, target)
    open_engine(target, variant=variant, threads=1, context=1).close()
    return target


def open_engine(path: Path, *, variant: str, threads: int, context: int) -> LitertLmEngine:
    """Load a .litertlm; how long its context is has been settled when it was packed."""
    api = importlib.import_module("litert_lm")
    api.set_min_log_severity(api.LogSeverity.ERROR)
    processor = api.Backend.CPU(thread_count=threads)
    try:
        engine = api.Engine(str(path), backend=processor, cache_dir=str(path.parent), enable_benchmark=True)
    except RuntimeError as error:
        raise InferenceError(f"LiteRT-LM does not load it: {error}", where=path, fix="delete it") from error
    return LitertLmEngine(engine, api.SamplerConfig(top_k=1, top_p=1.0, temperature=1.0))


class LitertLmEngine:
    """An engine, and a fresh session for each answer; greedy."""

    def __init__(self, engine: Any, greedy: Any) -> None:
        self._engine, self._greedy = engine, greedy

    def time_prefill(self, ids: Sequence[int]) -> float:
        return float(self._answer(ids, 1).time_to_first_token_in_second)

    def time_steps(self, ids: Sequence[int], steps: int) -> Written:
        seconds, left = 0.0, steps
        while left:
            told = self._answer(ids, left)
            seconds += told.last_decode_token_count / told.last_decode_tokens_per_second
            left -= told.last_decode_token_count
        return Written(seconds)

    def close(self) -> None:
        self._engine.close()

    def _answer(self, ids: Sequence[int], most: int) -> Any:
        """What it tells of an answer to so many tokens, of up to `most` tokens."""
        session = self._engine.create_session(apply_prompt_template=False, sampler_config=self._greedy, max_output_tokens=most)
        try:
            session.run_prefill([self._text(ids)])
            session.run_decode()
            told = session.get_benchmark_info()
        except RuntimeError as error:
            raise InferenceError(f"LiteRT-LM: {error}", fix="ask for a shorter context") from error
        finally:
            session.close()
        if told.last_prefill_token_count != len(ids):
            raise InferenceError(f"LiteRT-LM read {told.last_prefill_token_count} tokens, not {len(ids)}", fix="report it")
        if not 0 < told.last_decode_token_count <= most:
            raise InferenceError(f"LiteRT-LM said {told.last_decode_token_count} tokens, not {most}", fix="report it")
        return told

    def _text(self, ids: Sequence[int]) -> str:
        """A text that it reads as so many tokens: that of the ids, or one that ends a little before or behind it."""
        own = list(ids)
        if own[:1] == [self._engine.bos_token_id]:
            own = own[1:]  # it writes that itself
        whole: str = self._engine.detokenize([*own, *own[:SPARE]])
        end = len(self._engine.detokenize(own))
        for length in sorted(range(end - SPARE, end + SPARE), key=lambda length: abs(length - end)):
            if length > 0 and len(self._engine.tokenize(whole[:length])) == len(own):
                return whole[:length]
        raise InferenceError(f"no text of {len(ids)} tokens was found", where="LiteRT-LM", fix="ask for another number")
