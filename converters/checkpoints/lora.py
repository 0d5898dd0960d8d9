"""LoRA: a PEFT adapter, merged into its base model row by row as the tensors are read.

    W[rows] + scale * B[rows] @ A        scale = alpha / r, or alpha / sqrt(r) with rsLoRA
    magnitude * the same / its norm      DoRA, norm over each row

Every tensor of the adapter must find its place and every option that changes the result is handled or refused: an adapter
is never silently inert. Papers: LoRA arXiv:2106.09685, rsLoRA arXiv:2312.03732, DoRA arXiv:2402.09353; file format and the
meaning of patterns: PEFT. Where head and embedding are tied and an adapter changes one of them, they part, as they did
while it was trained.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from edgellm.converters.checkpoints import HUB_ID
from edgellm.converters.checkpoints.base import Checkpoint, Naming, Text
from edgellm.converters.checkpoints.safetensors import SafetensorsFile, read_json
from edgellm.converters.weights import Array, LazyTensor
from edgellm.errors import SourceError

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# Where a part of an adapter stands in the names of its tensors.
PARTS = {
    ".lora_A.weight": "a",
    ".lora_B.weight": "b",
    ".lora_B.bias": "bias",
    ".lora_embedding_A": "a",
    ".lora_embedding_B": "b",
    ".lora_magnitude_vector": "magnitude",
    ".lora_magnitude_vector.weight": "magnitude",
}

# Options of PEFT that change what the adapter computes and are not done here.
UNSUPPORTED = (
    "alora_invocation_tokens",
    "arrow_config",
    "kasa_config",
    "layer_replication",
    "megatron_config",
    "monteclora_config",
    "target_parameters",
    "trainable_token_indices",
    "use_bdlora",
    "use_qalora",
    "velora_config",
)
# These initializations change the base model's weights too, unless the adapter was converted when it was saved.
CHANGES_BASE = ("pissa", "olora", "corda", "loftq", "lora_ga")

MERGE = "merge it with peft (merge_and_unload), save the model, and convert that"


def with_adapter(checkpoint: Checkpoint, adapter: str | os.PathLike[str]) -> Checkpoint:
    """A checkpoint with a LoRA merged into it; closing it closes the base too.

    Args:
        adapter: a folder with adapter_config.json and adapter_model.safetensors, or a hub id `org/name`.

    Raises:
        SourceError: not a LoRA adapter, damaged, not made for this model, or with an option that is not supported.
    """
    if checkpoint.naming != "hf":
        raise SourceError(
            "an adapter cannot be merged into a GGUF file",
            where=checkpoint.provenance.source,
            fix="give the original model, as a Hugging Face folder or hub id, with --adapter",
        )
    folder = _folder(adapter)
    config = _read_config(folder)
    with contextlib.ExitStack() as opened:
        file = opened.enter_context(SafetensorsFile(folder / WEIGHTS))
        merged = _Merged(checkpoint, folder, file, _plan(checkpoint, config, file))
        opened.pop_all()
    name = str(adapter) if folder != Path(adapter).expanduser() else folder.resolve().name
    merged.provenance = replace(checkpoint.provenance, adapter=name)
    return merged


@dataclass
class _Module:
    """What an adapter says about one module of the model: low-rank parts, or whole tensors to put in place."""

    parts: dict[str, LazyTensor] = field(default_factory=dict)
    embedding: bool = False


@dataclass(frozen=True)
class _Plan:
    """The tensors that differ from the base, and whether head and embedding part."""

    tensors: Mapping[str, LazyTensor]
    untied: bool


class _Merged:
    """A checkpoint seen through an adapter; a `Checkpoint`."""

    naming: Naming = "hf"

    def __init__(self, base: Checkpoint, folder: Path, file: SafetensorsFile, plan: _Plan) -> None:
        self._base, self._folder, self._file, self._plan = base, folder, file, plan
        self.architecture, self.provenance = base.architecture, base.provenance
        self.config: Mapping[str, Any] = base.config
        if plan.untied:
            nested = base.config.get("text_config")
            parts = {"text_config": {**nested, "tie_word_embeddings": False}} if isinstance(nested, Mapping) else {}
            self.config = {**base.config, **parts, "tie_word_embeddings": False}

    def names(self) -> frozenset[str]:
        """Names of all tensors."""
        return self._base.names() | frozenset(self._plan.tensors)

    def tensor(self, name: str) -> LazyTensor:
        """A tensor, merged where the adapter touches it."""
        return self._plan.tensors[name] if name in self._plan.tensors else self._base.tensor(name)

    def text(self) -> Text:
        """The adapter's tokenizer and chat template where it brings its own, as fine-tunes do; else the base's."""
        from edgellm.converters.checkpoints import folder

        base = self._base.text()
        if not (self._folder / "tokenizer.json").is_file():
            return base
        own = folder.read_text(self._folder, {})
        return replace(
            own,
            chat_template=own.chat_template or base.chat_template,
            bos_id=base.bos_id if own.bos_id is None else own.bos_id,
            eos_ids=tuple(dict.fromkeys((*own.eos_ids, *base.eos_ids))),
            pad_id=base.pad_id if own.pad_id is None else own.pad_id,
            generation={**base.generation, **own.generation},
        )

    def licenses(self) -> Mapping[str, bytes]:
        """Licence files of the base, and those of the adapter under its name."""
        from edgellm.converters.checkpoints import folder

        own = {f"adapter-{name}": content for name, content in folder.read_licenses(self._folder).items()}
        return {**self._base.licenses(), **own}

    def close(self) -> None:
        """Release the mapped files of adapter and base."""
        self._file.close()
        self._base.close()

    def __enter__(self) -> _Merged:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class _LowRank(LazyTensor):
    """base + scale * B @ A, and DoRA's magnitude per row.

    For a linear A is [r, in] and B [out, r]; for an embedding A is [r, vocabulary] and B [width, r], and the delta is
    the product's transpose.
    """

    def __init__(
        self,
        base: LazyTensor,
        a: LazyTensor,
        b: LazyTensor,
        scale: float,
        *,
        embedding: bool = False,
        magnitude: LazyTensor | None = None,
    ) -> None:
        self.shape = base.shape
        self._base, self._a, self._b = base, a, b
        self._scale, self._embedding, self._magnitude = np.float32(scale), embedding, magnitude

    def rows(self, start: int, stop: int) -> Array:
        if self._embedding:
            left, right = self._a.array()[:, start:stop].T, self._b.array().T
        else:
            left, right = self._b.rows(start, stop), self._a.array()
        delta: Array = np.matmul(left, right)
        delta *= self._scale
        delta += self._base.rows(start, stop)
        if self._magnitude is not None:
            norms: Array = np.linalg.norm(delta, axis=1).astype(np.float32)
            delta *= (self._magnitude.array().reshape(-1)[start:stop] / norms)[:, None]
        return delta


class _Sum(LazyTensor):
    """base + scale * delta, for biases."""

    def __init__(self, base: LazyTensor, delta: LazyTensor, scale: float) -> None:
        self.shape = base.shape
        self._base, self._delta, self._scale = base, delta, np.float32(scale)

    def rows(self, start: int, stop: int) -> Array:
        delta = self._delta.rows(start, stop)
        delta *= self._scale
        delta += self._base.rows(start, stop)
        return delta


def _folder(adapter: str | os.PathLike[str]) -> Path:
    path = Path(adapter).expanduser()
    if not path.exists() and isinstance(adapter, str) and HUB_ID.fullmatch(adapter):
        from edgellm.converters.checkpoints import hub

        path = hub.fetch_adapter(adapter)
    if not path.is_dir():
        raise SourceError("no such adapter folder", where=adapter, fix="give the folder with adapter_config.json")
    if not (path / CONFIG).is_file():
        raise SourceError(f"not a PEFT adapter (no {CONFIG})", where=path, fix="give the folder with adapter_config.json")
    if not (path / WEIGHTS).is_file():
        if (path / "adapter_model.bin").is_file():
            fix = "load it with peft and save it again (save_pretrained writes safetensors)"
            raise SourceError("only pickled weights, which can run code when they are read", where=path, fix=fix)
        raise SourceError(f"no {WEIGHTS}", where=path, fix="download the whole adapter")
    return path


def _read_config(folder: Path) -> Mapping[str, Any]:
    config, where = read_json(folder / CONFIG), folder / CONFIG
    if config.get("peft_type") != "LORA":
        raise SourceError(f"peft_type {str(config.get('peft_type'))[:40]!r} is not LORA", where=where, fix=MERGE)
    for option in UNSUPPORTED:
        if config.get(option):
            raise SourceError(f"the option {option} is not supported", where=where, fix=MERGE)
    init = config.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(CHANGES_BASE):
        raise SourceError(f"init_lora_weights {init[:40]!r} changes the base model too", where=where, fix=MERGE)
    for key, kinds in (("r", int), ("lora_alpha", (int, float))):
        value = config.get(key)
        if isinstance(value, bool) or not isinstance(value, kinds) or not math.isfinite(value) or (key == "r" and value < 1):
            raise SourceError(f"{key} is not a positive number", where=where, fix="the adapter is damaged: get it again")
    for key in ("rank_pattern", "alpha_pattern"):
        pattern = config.get(key) or {}
        numbers = isinstance(pattern, dict) and all(type(value) in (int, float) for value in pattern.values())
        if not numbers or not all(_is_harmless(expression) for expression in pattern):
            raise SourceError(f"{key} is not a table of patterns", where=where, fix="the adapter is damaged: get it again")
    return config


def _plan(base: Checkpoint, config: Mapping[str, Any], file: SafetensorsFile) -> _Plan:
    """Sort the adapter's tensors by the module they belong to, and check that each has its place in the base."""
    modules: dict[str, _Module] = {}
    whole: dict[str, LazyTensor] = {}
    for name in sorted(file.tensors):
        plain = name.removeprefix(PREFIX)
        suffix = next((suffix for suffix in PARTS if plain.endswith(suffix)), None)
        if suffix is None:
            if "lora_" in plain or "token_adapter" in plain:
                raise SourceError(f"tensor {name[:80]!r} is of an unknown kind", where=file.path, fix=MERGE)
            whole[re.sub(r"\.(base_layer|modules_to_save(\.default)?)(?=\.)", "", plain)] = file.tensor(name)
        else:
            module = modules.setdefault(plain.removesuffix(suffix), _Module())
            module.parts[PARTS[suffix]] = file.tensor(name)
            module.embedding |= "lora_embedding" in suffix
    if not modules and not whole:
        raise SourceError("the adapter has no tensors", where=file.path, fix="train or download it again")
    plan = _Planner(base, config, file.path)
    for name, tensor in whole.items():
        plan.put(name, tensor)
    for name, module in modules.items():
        plan.merge(name, module)
    return plan.finish(whole)


class _Planner:
    """Builds the changed tensors. A tied head and embedding are told apart here by name and joined again in `finish`."""

    def __init__(self, base: Checkpoint, config: Mapping[str, Any], where: Path) -> None:
        self._base, self._config, self._where = base, config, where
        self._tensors: dict[str, LazyTensor] = {}
        self._names = base.names()
        self._tied = EMBEDDING in self._names and (HEAD not in self._names or _says_tied(base.config))

    def put(self, name: str, tensor: LazyTensor) -> None:
        """A whole tensor takes the place of the base's."""
        current = self._current(name)
        if tensor.shape != current.shape:
            raise SourceError(
                f"{name[:80]!r} is {list(tensor.shape)} in the adapter and {list(current.shape)} in the model",
                where=self._where,
                fix=f"resize the base model as in training and save it, or {MERGE}",
            )
        self._tensors[name] = tensor

    def merge(self, module: str, found: _Module) -> None:
        """Low-rank parts are added to a module's weight, and to its bias where they have one."""
        parts, name = found.parts, f"{module}.weight"
        base = self._current(name)
        if not {"a", "b"} <= parts.keys():
            raise SourceError(f"{module[:80]!r} has only one of A and B", where=self._where, fix="get the adapter again")
        a, b, rank = parts["a"], parts["b"], self._rank(module)
        rows, columns = base.shape if len(base.shape) == 2 else (-1, -1)
        expected = ((rank, rows), (columns, rank)) if found.embedding else ((rank, columns), (rows, rank))
        if (a.shape, b.shape) != expected:
            raise SourceError(
                f"A {list(a.shape)} and B {list(b.shape)} of {module[:80]!r} do not fit rank {rank} and {list(base.shape)}",
                where=self._where,
                fix="use the adapter with the base model that it was trained on",
            )
        magnitude = parts.get("magnitude")
        if (magnitude is not None) != bool(self._config.get("use_dora")) or (magnitude is not None and found.embedding):
            raise SourceError(f"use_dora does not fit the tensors of {module[:80]!r}", where=self._where, fix=MERGE)
        if magnitude is not None and math.prod(magnitude.shape) != rows:
            raise SourceError(f"the magnitudes of {module[:80]!r} are not {rows}", where=self._where, fix=MERGE)
        scale = self._scale(module, rank)
        self._tensors[name] = _LowRank(base, a, b, scale, embedding=found.embedding, magnitude=magnitude)
        if "bias" in parts:
            bias = self._current(f"{module}.bias")
            if parts["bias"].shape != bias.shape:
                raise SourceError(f"the bias of {module[:80]!r} is not {list(bias.shape)}", where=self._where, fix=MERGE)
            self._tensors[f"{module}.bias"] = _Sum(bias, parts["bias"], scale)

    def finish(self, whole: Mapping[str, LazyTensor]) -> _Plan:
        """Part a tied head from the embedding where the adapter changed one of them."""
        changed = {EMBEDDING, HEAD} & self._tensors.keys()
        if not self._tied or not changed:
            return _Plan(self._tensors, untied=False)
        if {EMBEDDING, HEAD} <= whole.keys() and _equal(self._tensors[EMBEDDING], self._tensors[HEAD]):
            return _Plan({name: tensor for name, tensor in self._tensors.items() if name != HEAD}, untied=False)
        if self._config.get("ensure_weight_tying"):
            fix = f"train without it, or {MERGE}"
            raise SourceError("ensure_weight_tying, but head and embedding differ", where=self._where, fix=fix)
        return _Plan({HEAD: self._base.tensor(EMBEDDING), **self._tensors}, untied=True)

    def _current(self, name: str) -> LazyTensor:
        if name in self._tensors:
            return self._tensors[name]
        if name == HEAD and self._tied:
            return self._base.tensor(EMBEDDING)
        if name not in self._names:
            raise SourceError(
                f"the adapter changes {name[:80]!r}, which the model does not have",
                where=self._where,
                fix="use it with the base model that it was trained on",
            )
        return self._base.tensor(name)

    def _rank(self, module: str) -> int:
        return int(_by_pattern(self._config.get("rank_pattern"), module, self._config["r"]))

    def _scale(self, module: str, rank: int) -> float:
        alpha = _by_pattern(self._config.get("alpha_pattern"), module, self._config["lora_alpha"])
        return alpha / (math.sqrt(rank) if self._config.get("use_rslora") else rank)


def _by_pattern(patterns: Mapping[str, float] | None, module: str, default: float) -> float:
    """The value of the first pattern that matches the end of a module's name, from a dot on (PEFT's rule)."""
    for expression, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({expression})$", module):
            return value
    return default


def _is_harmless(expression: str) -> bool:
    """Whether a pattern compiles, and cannot take for ever: no quantified groups, few quantifiers."""
    try:
        re.compile(expression)
    except (re.error, RecursionError, OverflowError):
        return False
    plain = re.sub(r"\\.", "", expression)
    return len(plain) < 200 and not re.search(r"[*+}?)][*+{]", plain) and len(re.findall(r"[*+{]", plain)) <= 3


def _equal(one: LazyTensor, other: LazyTensor) -> bool:
    slices = one.slices(16 << 20)
    return one.shape == other.shape and all(np.array_equal(one.rows(*rows), other.rows(*rows)) for rows in slices)


def _says_tied(config: Mapping[str, Any]) -> bool:
    nested = config.get("text_config")
    return bool(config.get("tie_word_embeddings") or (isinstance(nested, Mapping) and nested.get("tie_word_embeddings")))
