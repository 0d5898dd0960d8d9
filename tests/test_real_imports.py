"""Files that llama.cpp quantized: the bundle has their very codes, and says what llama.cpp says on the same file."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import gguf
import numpy as np
import pytest

import edgellm
from edgellm.benchmarks.peers import llama_cpp
from edgellm.conversion import convert
from edgellm.converters import calibration_text
from edgellm.converters.architectures import describe
from edgellm.converters.calibration import calibrate
from edgellm.converters.checkpoints import open_checkpoint
from edgellm.converters.quantizers import imatrix, rtn
from edgellm.converters.weights import Weight
from edgellm.scheme import IMPORTED, QTensor, Scheme
from tests import onnx_weights
from tests.test_real_models import PREDICTED, PROMPTS, teacher_forced

pytest.importorskip("llama_cpp")
pytestmark = pytest.mark.slow

HEADS = {"attn_q": 9, "attn_k": 3}
LAYER = {"attn_output": "o", "ffn_down": "down", "token_embd": "embed.weight"}


@pytest.fixture(scope="module")
def quantized(models: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """SmolLM2 as llama.cpp quantizes it, made once."""
    folder = tmp_path_factory.mktemp("quantized")
    return lambda kind: llama_cpp.prepare(kind, models("smollm2"), folder)


@pytest.mark.parametrize(("kind", "quant"), [("q4_0", "int4"), ("q8_0", "int8")])
def test_the_bundle_is_the_file(quantized: Callable[[str], Path], kind: str, quant: str, tmp_path: Path) -> None:
    file = quantized(kind)
    bundle = convert(file, tmp_path / "out", quant=quant)
    assert bundle.recipe.method == IMPORTED
    assert_exact(file, bundle.path)
    agreements = []
    with edgellm.load(bundle.path) as llm:
        for prompt in PROMPTS:
            ids, predictions = teacher_forced(file, prompt)
            session = llm.session()
            logits = session.logits(ids)[-PREDICTED:]
            session.close()
            agreements.append(float(np.mean(logits.argmax(axis=-1) == predictions)))
    assert np.mean(agreements) >= 0.95, agreements


def assert_exact(file: Path, bundle: Path) -> None:
    """Every matrix of the file by gguf-py is every matrix of the graph by its operators' specification, bit for bit."""
    written, seen = onnx_weights.read(bundle), 0
    tensors = {tensor.name: tensor for tensor in gguf.GGUFReader(file).tensors}

    def values(name: str) -> np.ndarray:
        tensor = tensors[f"{name}.weight"]
        found = gguf.quants.dequantize(tensor.data, tensor.tensor_type)
        part = name.rsplit(".", maxsplit=1)[-1]
        if part not in HEADS:
            return found
        pairs = found.reshape(HEADS[part], -1, 2, found.shape[1])  # llama.cpp keeps rotated pairs as neighbours
        return pairs.swapaxes(1, 2).reshape(found.shape)

    for layer in range(30):
        for parts, names in ((("attn_q", "attn_k", "attn_v"), "qkv"), (("ffn_gate", "ffn_up"), ("gate", "up"))):
            joined = "+".join(f"layers.{layer}.{name}.weight" for name in names)
            np.testing.assert_array_equal(written[joined], np.concatenate([values(f"blk.{layer}.{part}") for part in parts]))
            seen += 1
        for part in ("attn_output", "ffn_down"):
            np.testing.assert_array_equal(written[f"layers.{layer}.{LAYER[part]}.weight"], values(f"blk.{layer}.{part}"))
            seen += 1
    np.testing.assert_array_equal(written["embed.weight"], values("token_embd"))
    assert seen + 1 == len(written)


def test_on_tflites_grid_new_codes_are_nearer_than_the_files(quantized: Callable[[str], Path]) -> None:
    """Q4_0's codes with its scales made positive and bfloat16, against a search; errors weighed by the inputs' mean squares."""
    file = quantized("q4_0")
    grid, kept_errors, new_errors, kept_better = Scheme(4, 32, scales="positive bfloat16"), [], [], 0
    with open_checkpoint(file) as checkpoint:
        spec, tensors = describe(checkpoint, None)
        tokenizer = checkpoint.text().tokenizer
        text = calibration_text.windows(tokenizer, spec, 512)
        importance = calibrate(spec, lambda name: Weight(name, tensors(name)), text, 4 << 20).importance
        for name in [f"layers.{layer}.{part}.weight" for layer in (0, 15, 29) for part in ("q", "k", "v", "o", "up", "down")]:
            weight, weights = tensors(name).array(), importance[name]
            own = tensors(name).on_grid(Scheme(4, 32), 0, len(weight))
            assert own is not None
            turned = np.where(own.scales[..., None] < 0, -own.codes.astype(np.int16), own.codes)
            scales = rtn.bfloat16(np.abs(own.scales))
            kept = QTensor(grid, own.shape, np.clip(turned, -8, 7).astype(np.int8), scales, None)
            errors = [
                ((made.dequantize() - weight) ** 2 * weights).reshape(len(weight), -1, 32).sum(axis=-1)
                for made in (kept, imatrix.quantize(weight, grid, weights))
            ]
            size = (weight**2 * weights).sum()
            kept_errors.append(errors[0].sum() / size)
            new_errors.append(errors[1].sum() / size)
            kept_better += int((errors[0] < errors[1]).sum())
    assert np.mean(new_errors) < 0.5 * np.mean(kept_errors), (np.mean(new_errors), np.mean(kept_errors))
    assert kept_better == 0
