"""Checkpoint readers: one file each, imported when it is used."""

from __future__ import annotations

import os
import re
from pathlib import Path

from edgellm.bundle import MANIFEST
from edgellm.converters.checkpoints.base import Checkpoint
from edgellm.errors import SourceError, UsageError
from edgellm.paths import exists

MAGIC = b"GGUF"
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*(:[^:\\]+\.gguf)?")
PART = re.compile(r"-\d{5}-of-\d{5}(?=\.gguf$)", re.IGNORECASE)


def open_checkpoint(
    source: str | os.PathLike[str], *, revision: str | None = None, adapter: str | os.PathLike[str] | None = None
) -> Checkpoint:
    """Open a model source: a .gguf file, a Hugging Face folder, or a hub id.

    Args:
        source: a path; or `org/name` on the Hugging Face hub, `org/name:file.gguf` for one GGUF file of it. What exists
            as a path is a path.
        revision: branch, tag or commit of a hub id.
        adapter: a PEFT LoRA folder, or its hub id, to merge on the way.

    Raises:
        SourceError: it is not there, damaged, or of a kind that edgellm does not read.
        ResourceError: too little disk for the download.
    """
    checkpoint = _open(source, revision)
    if adapter is None:
        return checkpoint
    from edgellm.converters.checkpoints import lora

    try:
        return lora.with_adapter(checkpoint, adapter)
    except BaseException:
        checkpoint.close()
        raise


def _open(source: str | os.PathLike[str], revision: str | None) -> Checkpoint:
    path = Path(source).expanduser()
    if exists(path):
        if revision is not None:
            raise UsageError("only hub models have revisions", where="--revision", fix="leave it out for a local model")
        try:
            return _open_path(path)
        except OSError as error:
            raise SourceError(f"cannot be read: {error.strerror or error}", where=path, fix="check its permissions") from error
    if isinstance(source, str) and HUB_ID.fullmatch(source):
        from edgellm.converters.checkpoints import hub

        return hub.open_checkpoint(source, revision=revision)
    raise SourceError(
        "no such file or folder", where=source, fix="check the path, or give a Hugging Face id such as 'org/name'"
    )


def _open_path(path: Path) -> Checkpoint:
    if path.is_dir():
        if (path / MANIFEST).is_file() and not (path / "config.json").is_file():
            raise SourceError("this is a bundle already", where=path, fix="run it, or convert the model it was made from")
        if not (path / "config.json").is_file() and (models := _gguf_models(path)):
            if len(models) > 1:
                names = ", ".join(file.name for file in models[:8])
                raise SourceError(f"{len(models)} GGUF models", where=path, fix=f"name one of them: {names}")
            path = models[0]
        else:
            from edgellm.converters.checkpoints import safetensors

            return safetensors.open_checkpoint(path)
    if path.suffix.lower() != ".gguf" and not _is_gguf(path):
        raise SourceError(
            "neither a .gguf file nor a folder", where=path, fix="give a GGUF file, or the folder with config.json"
        )
    from edgellm.converters.checkpoints import gguf

    return gguf.open_checkpoint(path)


def _is_gguf(path: Path) -> bool:
    """Whether a file begins as a GGUF does, whatever its name: caches call them by their hash."""
    if not path.is_file():  # opening a FIFO would wait for ever
        return False
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except OSError:
        return False


def _gguf_models(folder: Path) -> list[Path]:
    """GGUF models of a folder, a split one by its first part."""
    models: dict[str, Path] = {}
    for file in sorted(folder.iterdir()):
        if file.suffix.lower() == ".gguf" and file.is_file():
            models.setdefault(PART.sub("", file.name), file)
    return list(models.values())
