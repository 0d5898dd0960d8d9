"""The Hugging Face hub: the files that a conversion needs are brought into its cache, then read from there.

hub id, revision ─> listing (commit, sizes, hashes) ─> small files ─> weights ─> the folder or GGUF reader
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from edgellm.bundle import Provenance
from edgellm.converters.checkpoints import PART
from edgellm.converters.checkpoints.base import Checkpoint
from edgellm.converters.checkpoints.hub_cache import Repo, fetch, remember, resolve
from edgellm.converters.checkpoints.safetensors import INDEX, MAX_HEADER_BYTES, PICKLE, SINGLE, is_plain_name, read_json
from edgellm.converters.checkpoints.safetensors import open_checkpoint as open_folder
from edgellm.errors import SourceError

TEXT_FILES = (
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "chat_template.jinja",
    "chat_template.json",
    "README.md",
)
ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
LICENSE = re.compile(r"(licen[sc]e|notice)[^/]*", re.IGNORECASE)


def open_checkpoint(source: str, *, revision: str | None = None) -> Checkpoint:
    """Open a model of the hub.

    Args:
        source: `org/name`, or `org/name:file.gguf` for one GGUF file.
        revision: branch, tag or commit; the default branch otherwise.

    Raises:
        SourceError: no such repository or revision, no access, no network and nothing in the cache, a damaged transfer,
            or a repository without a model that edgellm reads.
        ResourceError: too little disk.
    """
    repo_id, _, gguf_name = source.partition(":")
    repo = resolve(repo_id, revision)
    names = _names(repo)
    if not gguf_name and SINGLE not in names and INDEX not in names:
        gguf_name = _only_gguf(repo, names)
    if gguf_name:
        from edgellm.converters.checkpoints import gguf

        path = fetch(repo, [*_small(names, ("README.md",)), *_parts(repo, names, gguf_name)]) / gguf_name
        remember(repo)
        checkpoint: Checkpoint = gguf.open_checkpoint(path)
        checkpoint.provenance = _provenance(repo, checkpoint.provenance.license, f"{repo.id}:{gguf_name}")
        return checkpoint
    folder = fetch(repo, _small(names, TEXT_FILES))
    fetch(repo, [SINGLE] if SINGLE in names else _shards(fetch(repo, [INDEX]) / INDEX))
    remember(repo)
    return open_folder(folder, _provenance(repo, None, repo.id))


def fetch_adapter(source: str, revision: str | None = None) -> Path:
    """Download a PEFT adapter of the hub, `org/name`; its folder. Raises as `open_checkpoint`."""
    repo = resolve(source, revision)
    names = _names(repo)
    if "adapter_config.json" not in names:
        raise SourceError("not a PEFT adapter (no adapter_config.json)", where=source, fix="give the hub id of a LoRA adapter")
    tokenizer = [name for name in TEXT_FILES if name not in ("config.json", "generation_config.json", "README.md")]
    folder = fetch(repo, [*_small(names, tokenizer), *(name for name in ADAPTER_FILES if name in names)])
    remember(repo)
    return folder


def _names(repo: Repo) -> frozenset[str]:
    if repo.files is not None:
        return frozenset(repo.files)
    return frozenset(file.relative_to(repo.cached).as_posix() for file in repo.cached.rglob("*") if file.is_file())


def _small(names: Iterable[str], wanted: Iterable[str]) -> list[str]:
    available = frozenset(names)
    return [name for name in wanted if name in available] + sorted(name for name in available if LICENSE.fullmatch(name))


def _shards(index: Path) -> list[str]:
    weight_map = read_json(index, MAX_HEADER_BYTES).get("weight_map")
    shards = set(weight_map.values()) if isinstance(weight_map, dict) else set()
    return sorted(shard for shard in shards if is_plain_name(shard))  # the folder reader refuses the others by name


def _only_gguf(repo: Repo, names: Iterable[str]) -> str:
    """The one GGUF model of a repository without safetensors."""
    models: dict[str, str] = {}
    for name in sorted(names):
        if name.lower().endswith(".gguf"):
            models.setdefault(PART.sub("", name), name)
    if len(models) == 1:
        return next(iter(models.values()))
    if models:
        shown = ", ".join(list(models.values())[:12])
        fix = f"name one, as in '{repo.id}:{next(iter(models.values()))}'"
        raise SourceError(f"{len(models)} GGUF models: {shown}", where=repo.id, fix=fix)
    if any(name.endswith((".bin", ".pt", ".pth")) for name in names):
        raise SourceError("only pickled weights, which can run code when they are read", where=repo.id, fix=PICKLE)
    if repo.files is None:
        raise SourceError("the cache has no weights of this model", where=repo.id, fix="convert once with a network")
    raise SourceError("neither safetensors nor GGUF files", where=repo.id, fix="give the id of a model with weights")


def _parts(repo: Repo, names: Iterable[str], name: str) -> list[str]:
    """A GGUF file, or all the parts of a split one."""
    if name not in names:
        ggufs = ", ".join(sorted(other for other in names if other.lower().endswith(".gguf"))[:12]) or "no GGUF at all"
        raise SourceError(f"no file '{name}'", where=repo.id, fix=f"it has {ggufs}")
    return sorted(
        other for other in names if other == name or (PART.search(name) and PART.sub("", other) == PART.sub("", name))
    )


def _provenance(repo: Repo, license_name: str | None, source: str) -> Provenance:
    """Commit, licence, and sha256 of the weights that this source is made of."""
    from edgellm.converters.checkpoints import folder

    hashes = {name: file.sha256 for name, file in (repo.files or {}).items() if file.sha256 and (repo.cached / name).exists()}
    if repo.files is None:  # the cache names a large file after its hash
        links = {name: (repo.cached / name).resolve().name for name in _names(repo)}
        hashes = {name: target for name, target in links.items() if re.fullmatch(r"[0-9a-f]{64}", target)}
    weights = {name: value for name, value in hashes.items() if name.endswith((".safetensors", ".gguf"))}
    found = Provenance(source=source, revision=repo.commit, license=license_name, sha256=dict(sorted(weights.items())))
    return folder.with_license(repo.cached, found)
