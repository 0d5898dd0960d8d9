"""Bundle: the folder that conversion makes and a device runs.

    edgellm.json          format version, spec, recipe, provenance, text policy, graphs, size and sha256 of every file
    model.onnx (+ .data)  one graph per runtime that the bundle was made for:
    model.tflite          the same model, quantized on the grids that the runtime takes
    tokenizer.json, tokenizer_config.json, chat_template.jinja, genai_config.json, licence files

It is the only thing that the workstation and the device share. A bundle is checked before native code sees it: structure,
sizes and paths at every load; sha256 on `verify()` and at the first load on a machine, which then leaves a stamp in the
user's cache so that later loads stay fast.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import stat
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgellm._typed import build
from edgellm.card import PAGE, Card
from edgellm.errors import BundleError
from edgellm.paths import check_name, exists
from edgellm.scheme import Recipe
from edgellm.spec import ModelSpec
from edgellm.swap import recover

FORMAT = 1
MANIFEST = "edgellm.json"
MAX_MANIFEST_BYTES = 16 << 20
MAX_SIZE = 1 << 31
KV_DTYPES = ("float32", "float16", "int8", "uint8")


@dataclass(frozen=True)
class Provenance:
    """Where the weights came from.

    Attributes:
        source: hub id, file name or folder name, as a person would name it.
        revision: the hub commit, or None for local files.
        license: the licence that the source declares, or None.
        adapter: the LoRA that was merged, or None.
        sha256: weight file name to sha256, where it was known without reading the file again.
    """

    source: str
    revision: str | None = None
    license: str | None = None
    adapter: str | None = None
    sha256: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class TextPolicy:
    """Ids and files that turn text into tokens and tell when a text ends.

    Attributes:
        tokenizer: file name of the tokenizer.json, which adds the beginning-of-text token itself where the model wants one.
        chat_template: file name of the Jinja template, or None.
        bos_id, pad_id: None where the model has none.
        eos_ids: every id that ends a text or a turn.
        special_tokens: by role ("bos_token", "eos_token", ...); chat templates use them.
    """

    tokenizer: str
    chat_template: str | None
    bos_id: int | None
    eos_ids: tuple[int, ...]
    pad_id: int | None
    special_tokens: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class KVLayout:
    """How the KV cache of some layers passes through a graph.

    Attributes:
        layers: indices of the layers this describes.
        past_key, past_value, present_key, present_value: tensor names with `{layer}` in them.
        axes: meaning of each axis.
        kv_heads, head_dim: sizes of those axes.
        dtype: numpy name of the element type; int8 codes have their scales in the graph.
        capacity: who owns the sequence axis: "session" (ONNX) or "model" (TFLite).
        key_axes: meaning of each axis of the keys, where it is not that of the values; empty: the same.
    """

    layers: tuple[int, ...]
    past_key: str
    past_value: str
    present_key: str
    present_value: str
    axes: tuple[str, ...]
    kv_heads: int
    head_dim: int
    dtype: str
    capacity: str
    key_axes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Graph:
    """One runtime's graph.

    Attributes:
        file: its main file.
        kv: its KV cache by kind of layer.
        files: every file that a load reads, the main one among them; none in bundles made before there were several graphs.
        recipe: which tensor was quantized how, where that is not as the bundle's recipe says: runtimes take different grids.
    """

    file: str
    kv: tuple[KVLayout, ...]
    files: tuple[str, ...] = ()
    recipe: Recipe | None = None


@dataclass(frozen=True)
class FileEntry:
    """Size in bytes and sha256 (hex) of a file of the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """The content of edgellm.json.

    Attributes:
        format: version of the layout.
        producer: what made the bundle, with its version.
        spec: the model in numbers.
        recipe: which tensor was quantized how, in graphs that have no recipe of their own.
        provenance: where the weights came from.
        text: tokens, templates and ends of text.
        generation: the authors' sampling defaults.
        graphs: by runtime.
        files: size and sha256 of every file, by its path in the bundle.
        fidelity: the fidelity card, or None where nothing was measured.
    """

    format: int
    producer: str
    spec: ModelSpec
    recipe: Recipe
    provenance: Provenance
    text: TextPolicy
    generation: Mapping[str, float]
    graphs: Mapping[str, Graph]
    files: Mapping[str, FileEntry]
    fidelity: Card | None = None

    def recipe_of(self, graph: Graph) -> Recipe:
        """How the tensors of a graph were quantized."""
        return self.recipe if graph.recipe is None else graph.recipe

    def files_of(self, graph: Graph) -> tuple[str, ...]:
        """The files of a graph. Where the manifest does not say, they share its stem, and there is no other graph."""
        stem = graph.file.partition(".")[0]
        return graph.files or tuple(name for name in self.files if name.partition(".")[0] == stem)


@dataclass(frozen=True, kw_only=True)
class Bundle(Manifest):
    """An opened bundle: the manifest, checked against the folder at `path`. Make one with `Bundle.open`."""

    path: Path

    @classmethod
    def open(cls, path: str | os.PathLike[str]) -> Bundle:
        """Read and check a bundle's manifest; no graph is loaded.

        Raises:
            BundleError: no bundle there, a later format, a damaged manifest, a missing file or one of the wrong size,
                or a path that leaves the folder.
        """
        bundle = cls.announced(path)
        bundle._check_files()
        return bundle

    @classmethod
    def announced(cls, path: str | os.PathLike[str]) -> Bundle:
        """What a bundle's manifest says of files that need not be there yet. Raises as `open` does of the manifest."""
        folder = Path(path)
        value = _read_manifest(folder)
        version = value.get("format")
        if not isinstance(version, int) or isinstance(version, bool) or version < 1:
            raise BundleError("'format' is not a version number", where=folder / MANIFEST, fix="convert the model again")
        if version > FORMAT:
            raise BundleError(
                f"bundle format {version} is newer than this edgellm reads ({FORMAT})", where=folder, fix="upgrade edgellm"
            )
        try:
            manifest = build(Manifest, value)
            _check_meaning(manifest)
        except ValueError as error:
            raise BundleError(f"damaged manifest: {error}", where=folder / MANIFEST, fix="convert the model again") from error
        return cls(**vars(manifest), path=folder)

    def file(self, name: str) -> Path:
        """Full path of a file that the manifest lists."""
        if name not in self.files:
            raise BundleError(f"the manifest does not list '{name}'", where=self.path, fix="convert the model again")
        return self.path / name

    def digest(self, name: str) -> str:
        """sha256 of a file in the folder, hex.

        Raises:
            BundleError: it cannot be read.
        """
        try:
            return sha256_file(self.path / name)
        except OSError as error:
            reason = error.strerror or error
            raise BundleError(f"cannot be read: {reason}", where=self.path / name, fix="check its permissions") from error

    def verify(self) -> None:
        """Hash every file.

        Raises:
            BundleError: a file's content is not what was converted.
        """
        for name, entry in self.files.items():
            if self.digest(name) != entry.sha256:
                raise BundleError(
                    "content differs from what was converted (sha256)",
                    where=self.path / name,
                    fix="copy the bundle again or convert the model again",
                )

    def ensure_verified(self) -> None:
        """`verify()` once per machine and state of the files; a stamp in the user's cache remembers it."""
        if not (cache_dir() / "verified" / self._state_hash()).exists():
            self.verify()
            self.remember_verified()

    def remember_verified(self) -> None:
        """Leave the stamp for files that were just hashed."""
        stamp = cache_dir() / "verified" / self._state_hash()
        try:
            stamp.parent.mkdir(parents=True, exist_ok=True)
            stamp.touch()
        except OSError:
            pass  # a read-only home costs a hash per load, nothing else

    def size(self) -> int:
        """Bytes of all files together."""
        return sum(entry.size for entry in self.files.values())

    def _check_files(self) -> None:
        for name, entry in self.files.items():
            where = self.path / name
            check_name(name, self.path / MANIFEST)
            try:
                if not where.resolve().is_relative_to(self.path.resolve()):
                    raise BundleError("the file lies outside the bundle", where=where, fix="convert the model again")
                status = where.stat()
            except (OSError, RuntimeError) as error:  # the latter of links in a circle, up to Python 3.12
                raise BundleError("file is missing", where=where, fix="copy the bundle again") from error
            if not stat.S_ISREG(status.st_mode):
                raise BundleError("not a regular file", where=where, fix="do not use this bundle")
            size = status.st_size
            if size != entry.size:
                raise BundleError(
                    f"size is {size} bytes, the manifest says {entry.size}", where=where, fix="copy the bundle again"
                )
        graph_files = [name for graph in self.graphs.values() for name in (graph.file, *graph.files)]
        for file in (self.text.tokenizer, self.text.chat_template, *graph_files):
            if file is not None:
                self.file(file)

    def _state_hash(self) -> str:
        parts: list[object] = [str(self.path.resolve())]
        for name in sorted(self.files):
            try:
                status = (self.path / name).stat()
            except OSError as error:  # it was there when the bundle was opened
                raise BundleError("file is missing", where=self.path / name, fix="copy the bundle again") from error
            parts.append((name, self.files[name].sha256, status.st_size, status.st_mtime_ns, status.st_ino))
        return hashlib.sha256(repr(parts).encode()).hexdigest()


def write_manifest(
    folder: Path,
    *,
    spec: ModelSpec,
    recipe: Recipe,
    provenance: Provenance,
    text: TextPolicy,
    generation: Mapping[str, float],
    graphs: Mapping[str, Graph],
    producer: str,
) -> None:
    """Hash every file that lies in `folder` and write its edgellm.json."""
    files = {
        entry.relative_to(folder).as_posix(): FileEntry(entry.stat().st_size, sha256_file(entry))
        for entry in sorted(folder.rglob("*"))
        if entry.is_file() and entry.name != MANIFEST
    }
    manifest = Manifest(FORMAT, producer, spec, recipe, provenance, text, generation, graphs, files)
    _write(folder, manifest)


def add_card(bundle: Bundle, card: Card, page: str) -> None:
    """Put the fidelity card into a bundle that is being made, and the page that says it to people."""
    (bundle.path / PAGE).write_text(page, encoding="utf-8")
    entry = FileEntry((bundle.path / PAGE).stat().st_size, sha256_file(bundle.path / PAGE))
    values = {field.name: getattr(bundle, field.name) for field in dataclasses.fields(Manifest)}
    _write(bundle.path, Manifest(**{**values, "fidelity": card, "files": {**bundle.files, PAGE: entry}}))


def _write(folder: Path, manifest: Manifest) -> None:
    (folder / MANIFEST).write_text(
        json.dumps(dataclasses.asdict(manifest), indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
    )


def sha256_file(path: Path) -> str:
    """sha256 of a file's content, hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def graph_name(name: str) -> str:
    """A runtime's name as bundles and files have it; users may write a hyphen for its underscore."""
    return name.replace("-", "_")


def cache_dir() -> Path:
    """The user's cache folder for edgellm: $EDGELLM_CACHE, else $XDG_CACHE_HOME/edgellm, else ~/.cache/edgellm."""
    own = os.environ.get("EDGELLM_CACHE")
    if own:
        return Path(own)
    base = os.environ.get("XDG_CACHE_HOME")
    if base:
        return Path(base) / "edgellm"
    try:
        return Path.home() / ".cache" / "edgellm"
    except RuntimeError:  # no home directory: a service account
        return Path(tempfile.gettempdir()) / "edgellm"


def _read_manifest(folder: Path) -> dict[str, Any]:
    where = folder / MANIFEST
    recover(folder)
    if not exists(folder):
        raise BundleError("no such folder", where=folder, fix="check the path, or make a bundle with 'edgellm convert'")
    try:
        if not where.is_file():
            raise BundleError(f"not a bundle (no {MANIFEST})", where=folder, fix="make one with 'edgellm convert'")
        if where.stat().st_size > MAX_MANIFEST_BYTES:
            raise BundleError(f"larger than {MAX_MANIFEST_BYTES >> 20} MiB", where=where, fix="convert the model again")
        manifest = json.loads(where.read_text(encoding="utf-8"))
    except OSError as error:
        reason = error.strerror or error
        raise BundleError(f"cannot be read: {reason}", where=where, fix="check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise BundleError(f"unreadable manifest: {error}", where=where, fix="copy the bundle again") from error
    if not isinstance(manifest, dict):
        raise BundleError("the manifest is not a JSON object", where=where, fix="convert the model again")
    return manifest


def _check_meaning(manifest: Manifest) -> None:
    """What the types cannot say: sizes that make sense, and references that lead somewhere."""
    spec = manifest.spec
    kinds = list(spec.kinds.values())
    sizes = [spec.vocab_size, spec.hidden_size, spec.intermediate_size, spec.max_context, len(spec.layers), len(kinds)]
    sizes += [size for kind in kinds for size in (kind.heads, kind.kv_heads, kind.head_dim)]
    sizes += [size for graph in manifest.graphs.values() for kv in graph.kv for size in (kv.kv_heads, kv.head_dim)]
    if not all(0 < size < MAX_SIZE for size in sizes):
        raise ValueError(f"a size of the model is not between 1 and {MAX_SIZE}")
    if not set(spec.layers) <= set(spec.kinds):
        raise ValueError("'spec.layers' names a kind that 'spec.kinds' does not have")
    ids = [*manifest.text.eos_ids, *(i for i in (manifest.text.bos_id, manifest.text.pad_id) if i is not None)]
    if not all(0 <= token < spec.vocab_size for token in ids):
        raise ValueError("'text' holds an id outside the vocabulary")
    for name, graph in manifest.graphs.items():
        if not name.isidentifier():
            raise ValueError(f"'graphs' has {name!r}, which is no runtime's name")
        if sorted(layer for kv in graph.kv for layer in kv.layers) != list(range(len(spec.layers))):
            raise ValueError(f"'graphs.{name}.kv' does not describe every layer once")
        if graph.files and graph.file not in graph.files:
            raise ValueError(f"'graphs.{name}.files' does not have '{graph.file}'")
        _check_kv(name, graph)
    if not manifest.graphs:
        raise ValueError("'graphs' is empty")
    if any(entry.size < 0 for entry in manifest.files.values()):
        raise ValueError("'files' holds a negative size")


def _check_kv(name: str, graph: Graph) -> None:
    """Buffers are made and bound by these: types that exist, and a name of its own for every tensor."""
    tensors: list[str] = []
    for kv in graph.kv:
        templates = [kv.past_key, kv.past_value, kv.present_key, kv.present_value]
        if kv.capacity == "model" and templates[:2] == templates[2:]:
            templates = templates[:2]  # a signature's inputs and outputs have names of their own
        if kv.dtype not in KV_DTYPES:
            raise ValueError(f"'graphs.{name}.kv' has the dtype '{kv.dtype}', and not one of {', '.join(KV_DTYPES)}")
        for template in templates:
            if set("{}") & set(template.replace("{layer}", "")):
                raise ValueError(f"'graphs.{name}.kv' has '{template}', which is no tensor name with {{layer}} in it")
            tensors += [template.replace("{layer}", str(layer)) for layer in kv.layers]
    if len(set(tensors)) < len(tensors):
        raise ValueError(f"'graphs.{name}.kv' gives two tensors one name")
