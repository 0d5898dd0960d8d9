"""onnxruntime-genai with the model that its own builder makes, from the source written as a Hugging Face folder.

The builder is told to compute logits of the last position only (`prune_lm_head`), as every engine here does; "int4" is
otherwise its default (a 4-bit head), "int4-head8" keeps 8 bits in the head. A tied embedding is the head's matrix, any
other is float32; so is the KV cache.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from edgellm.benchmarks.peers import hf_folder
from edgellm.benchmarks.peers.engine import Variant
from edgellm.errors import ResourceError, RuntimeUnavailable, SourceError
from edgellm.runtimes.session import Logits

NAME = "onnxruntime-genai"
PACKAGES = ("onnxruntime_genai", "onnxruntime")
INSTALL = "pip install onnxruntime-genai, and onnx_ir, torch and transformers for its builder"
IMPORTS = ("onnxruntime_genai",)
VARIANTS = {"int4": Variant(4, 32, embedding="4 or 32", head=4), "int4-head8": Variant(4, 32, embedding="8 or 32")}
OPTIONS = {"int4": ("prune_lm_head=true",), "int4-head8": ("prune_lm_head=true", "algo_config=rtn_last")}
BUILDER_PACKAGES = ("onnx_ir", "torch", "transformers", "safetensors")


def prepare(variant: str, source: Path, folder: Path) -> Path:
    """The builder's folder."""
    target = folder / f"onnxruntime-genai-{importlib.metadata.version(PACKAGES[0])}-{variant}"
    if (target / "genai_config.json").is_file():
        return target
    missing = [name for name in BUILDER_PACKAGES if importlib.util.find_spec(name) is None]
    if missing:
        raise RuntimeUnavailable(f"its builder needs {', '.join(missing)}", fix=f"pip install {' '.join(missing)}")
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=".genai-") as scratch:
            model = source
            if source.suffix.lower() == ".gguf":
                model = Path(scratch) / "source"
                hf_folder.write(source, model, dtype=np.dtype(np.float32))  # nothing is lost before the builder rounds
            built = Path(scratch) / "built"
            _build(model, built, Path(scratch), OPTIONS[variant])
            shutil.rmtree(target, ignore_errors=True)
            built.rename(target)
    except OSError as error:
        raise ResourceError(str(error), where=folder, fix="free some space") from error
    return target


def _build(model: Path, output: Path, scratch: Path, options: Sequence[str]) -> None:
    command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "--input", str(model), "--output", str(output)]
    command += ["--precision", "int4", "--execution_provider", "cpu", "--cache_dir", str(scratch / "cache")]
    done = subprocess.run([*command, "--extra_options", *options], capture_output=True, text=True, check=False)
    if done.returncode != 0 or not (output / "genai_config.json").is_file():
        last = (done.stderr.strip().splitlines() or ["no message"])[-1]
        raise SourceError(f"the builder of onnxruntime-genai failed: {last}", where=model)


def open_engine(path: Path, *, variant: str, threads: int, context: int) -> GenaiEngine:
    """Load the builder's folder with `threads` for a step; the rest is as the builder wrote it."""
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    api = importlib.import_module("onnxruntime_genai")
    config = api.Config(str(path))
    config.overlay(json.dumps({"model": {"decoder": {"session_options": {"intra_op_num_threads": threads}}}}))
    model = api.Model(config)
    params = api.GeneratorParams(model)
    params.set_search_options(max_length=context, do_sample=False, batch_size=1)
    return GenaiEngine(api.Generator(model, params))


class GenaiEngine:
    """A generator that is fed tokens; its own sampling is not used."""

    def __init__(self, generator: Any) -> None:
        self._generator = generator
        self._one = np.zeros(1, np.int32)

    def reset(self) -> None:
        self._generator.rewind_to(0)

    def prefill(self, ids: Sequence[int]) -> Logits:
        self._generator.append_tokens(np.asarray(ids, np.int32))
        return self._last()

    def step(self, token: int) -> Logits:
        self._one[0] = token
        self._generator.append_tokens(self._one)
        return self._last()

    def logits(self, ids: Sequence[int]) -> Logits:
        self.reset()
        return np.stack([self.step(token).copy() for token in ids])  # the graph gives the last position only

    def close(self) -> None:
        del self._generator

    def _last(self) -> Logits:
        logits: Logits = self._generator.get_logits().reshape(-1)
        return logits
