"""A Hugging Face folder whose linears are packed as GPTQ or AWQ: words made bit by bit from the formats' descriptions.

AutoGPTQ (qlinear_cuda_old.py) and AutoAWQ (gemm.py) write the same words; both need a GPU to make a model of them.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file, save_file

Values = NDArray[np.float32]
AWQ_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # which output each nibble of a word has, lowest nibble first


def pack(
    folder: Path,
    method: str,
    group: int,
    *,
    symmetric: bool = False,
    shuffled: bool = False,
    only: str = "proj.weight",
    **settings: Any,
) -> dict[str, Values]:
    """Pack the linears of a folder in place; what they stand for, float32 [out, in] by name.

    Args:
        symmetric: every zero point is 8.
        shuffled: groups are dealt out to the inputs at random, as with act-order.
        only: how names end that are packed.
    """
    file = folder / "model.safetensors"
    tensors: dict[str, Any] = load_file(file)
    meant = {}
    for index, name in enumerate(sorted(tensors)):
        if name.endswith(only):
            stem, rng = name.removesuffix("weight"), np.random.default_rng(index)
            packed, meant[name] = linear(tensors.pop(name).shape, method, group, symmetric, shuffled, rng, settings)
            tensors |= {stem + part: values for part, values in packed.items()}
    save_file(tensors, file, metadata={"format": "pt"})
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    config["quantization_config"] = {"quant_method": method, "bits": 4, "group_size": group, **settings}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return meant


def linear(
    shape: tuple[int, int],
    method: str,
    group: int,
    symmetric: bool,
    shuffled: bool,
    rng: np.random.Generator,
    settings: dict[str, Any],
) -> tuple[dict[str, NDArray[Any]], Values]:
    """Random codes, zero points and scales of one linear: its tensors, and the values."""
    outputs, inputs = shape
    size = inputs if group == -1 else group
    groups = -(-inputs // size)
    codes = rng.integers(0, 16, (inputs, outputs))
    zeros = np.full((groups, outputs), 8) if symmetric else rng.integers(0, 16, (groups, outputs))
    scales = (rng.uniform(0.2, 1, (groups, outputs)) * 0.2 / np.sqrt(inputs)).astype(np.float16)
    of = np.arange(inputs) // size
    if shuffled:
        of = rng.permutation(of)
    values = ((codes - zeros[of]) * scales[of].astype(np.float64)).astype(np.float32).T
    if method == "awq":
        words = {"qweight": across(codes, AWQ_ORDER), "qzeros": across(zeros, AWQ_ORDER)}
        return {**words, "scales": scales}, values
    less = 0 if settings.get("checkpoint_format") == "gptq_v2" else 1
    words = {"qweight": across(codes.T, range(8)).T.copy(), "qzeros": across((zeros - less) % 16, range(8))}
    return {**words, "scales": scales, "g_idx": of.astype(np.int32)}, values


def across(codes: NDArray[np.int64], order: Any) -> NDArray[np.int32]:
    """Eight neighbours of a row in each word: nibble n holds the one at `order[n]`."""
    words = np.zeros((codes.shape[0], codes.shape[1] // 8), np.uint64)
    for word in range(words.shape[1]):
        for nibble, place in enumerate(order):
            words[:, word] |= codes[:, 8 * word + place].astype(np.uint64) << np.uint64(4 * nibble)
    return words.astype(np.uint32).view(np.int32)
