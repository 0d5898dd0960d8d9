"""Downloads into huggingface_hub's own cache, which other tools share: what is there is used, and works without a network.

Weights are fetched by our own loop over the library's HTTP session: it keeps a cut file for the next run to go on with (the
library's own download starts again in a new process) and hashes it before it enters the cache. hf-xet is not needed.
"""

from __future__ import annotations

import hashlib
import logging
import os
import re
import shutil
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import NoReturn

from edgellm.errors import ResourceError, SourceError

logger = logging.getLogger(__name__)

LISTING_TIMEOUT = 20.0  # seconds
STALLED_ATTEMPTS = 4  # cut transfers in a row without a new byte before giving up
SPARE_BYTES = 64 << 20  # left free on the disk


@dataclass(frozen=True)
class File:
    """A file of a repository: its size in bytes, and sha256 where it is kept in large-file storage."""

    name: str
    size: int | None
    sha256: str | None
    blob_id: str | None


@dataclass(frozen=True)
class Repo:
    """A repository at one commit. `files` is None without a network: then the cache is all there is."""

    id: str
    revision: str
    commit: str
    cached: Path
    files: Mapping[str, File] | None


def _import() -> ModuleType:
    """huggingface_hub with telemetry off, which it decides while it is imported."""
    os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
    try:
        import huggingface_hub
        import huggingface_hub.constants
        import huggingface_hub.errors
        import huggingface_hub.utils
    except ImportError as error:
        fix = "pip install huggingface-hub, or give a local folder"
        raise SourceError("hub ids need the package huggingface_hub", where=str(error.name), fix=fix) from error
    huggingface_hub.constants.HF_HUB_DISABLE_TELEMETRY = True  # it may have been imported before
    return huggingface_hub


def resolve(repo_id: str, revision: str | None) -> Repo:
    """The commit that a revision names, and its files; from the cache where the hub cannot be reached."""
    hub = _import()
    try:
        info = hub.HfApi().model_info(repo_id, revision=revision, files_metadata=True, timeout=LISTING_TIMEOUT)
    except Exception as error:
        if not _unreachable(hub, error):
            _refuse(hub, error, repo_id, revision)
        return _resolve_cached(hub, repo_id, revision, error)
    files = {}
    for entry in info.siblings or ():
        sha256 = getattr(entry.lfs, "sha256", None)
        valid = isinstance(sha256, str) and re.fullmatch(r"[0-9a-f]{64}", sha256)
        files[entry.rfilename] = File(entry.rfilename, entry.size, sha256 if valid else None, entry.blob_id)
    if not re.fullmatch(r"[0-9a-f]{40}", info.sha or ""):
        raise SourceError("the hub names no commit", where=repo_id, fix="check HF_ENDPOINT")
    return Repo(repo_id, revision or "main", info.sha, _cache(hub, repo_id) / "snapshots" / info.sha, files)


def _resolve_cached(hub: ModuleType, repo_id: str, revision: str | None, reason: Exception) -> Repo:
    try:
        folder = Path(hub.snapshot_download(repo_id, revision=revision, local_files_only=True, allow_patterns=["config.json"]))
    except (hub.errors.LocalEntryNotFoundError, OSError, ValueError) as error:
        offline = isinstance(reason, hub.errors.OfflineModeIsEnabled)
        what = "HF_HUB_OFFLINE is set" if offline else f"the hub cannot be reached ({_first_line(reason)})"
        fix = "unset HF_HUB_OFFLINE once to download it" if offline else "check the network or HF_ENDPOINT"
        raise SourceError(
            f"{what}, and the model is not in the cache", where=_shown(repo_id, revision), fix=f"{fix}, or give a local folder"
        ) from error
    logger.info("%s: the hub cannot be reached, using commit %s from the cache", repo_id, folder.name)
    return Repo(repo_id, revision or "main", folder.name, folder, None)


def fetch(repo: Repo, names: Iterable[str]) -> Path:
    """Bring files into the cache, small ones first so that weights vouch for the rest; the folder that holds them."""
    if repo.files is None:
        return repo.cached
    hub = _import()
    missing = [repo.files[name] for name in names if name in repo.files and not _is_there(repo.cached, repo.files[name])]
    _check_disk(hub, repo, missing)
    for file in missing:
        try:
            if file.sha256 is not None:
                _download_blob(hub, repo, file, file.sha256)
            path = Path(hub.hf_hub_download(repo.id, file.name, revision=repo.commit))
        except OSError as error:
            _refuse_transfer(hub, error, repo, file)
        except Exception as error:
            _refuse(hub, error, repo.id, repo.commit)
        _check(path, repo, file)
    return repo.cached


def remember(repo: Repo) -> None:
    """Note, once all is there, which commit the branch or tag names, so that it is found without a network."""
    ref = _cache(_import(), repo.id) / "refs" / repo.revision
    if (
        repo.files is None
        or repo.revision == repo.commit
        or ".." in Path(repo.revision).parts
        or (ref.is_file() and ref.read_text() == repo.commit)
    ):
        return
    try:
        ref.parent.mkdir(parents=True, exist_ok=True)
        new = ref.with_name(f"{ref.name}.{os.getpid()}.tmp")
        new.write_text(repo.commit)
        new.replace(ref)
    except OSError as error:  # a read-only cache serves well
        logger.debug("%s: %s", ref, error)


def _is_there(folder: Path, file: File) -> bool:
    """Whether the cache has a file; one of another size is damaged and thrown away."""
    path = folder / file.name
    if not path.exists():
        return False
    if file.size is not None and path.stat().st_size != file.size:
        _throw_away(path)
        return False
    return True


def _throw_away(path: Path) -> None:
    path.resolve().unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def _download_blob(hub: ModuleType, repo: Repo, file: File, sha256: str) -> None:
    """Put a large file into the cache's blobs, going on where an earlier run was cut."""
    blob = _cache(hub, repo.id) / "blobs" / sha256
    if blob.exists():
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{sha256}.incomplete")
    lock = blob.parents[2] / ".locks" / blob.parents[1].name / f"{sha256}.lock"
    lock.parent.mkdir(parents=True, exist_ok=True)
    with hub.utils.WeakFileLock(lock):
        if blob.exists():  # another process was faster
            return
        resumed = part.exists() and part.stat().st_size > 0
        _transfer(hub, repo, file, part)
        if resumed and _sha256(part) != sha256:  # what lay there was of something else
            part.unlink()
            _transfer(hub, repo, file, part)
        if _sha256(part) != sha256:
            part.unlink()
            raise _wrong_bytes(repo, file)
        part.replace(blob)


def _transfer(hub: ModuleType, repo: Repo, file: File, part: Path) -> None:
    """Append what is missing to `part`, however often the connection is cut while bytes keep coming."""
    stalled = 0
    while True:
        have = part.stat().st_size if part.exists() else 0
        if file.size is None or have > file.size:
            have = 0
        try:
            _receive(hub, repo, file, part, have)
            if file.size is None or part.stat().st_size >= file.size:
                return
            error: Exception = ConnectionError(f"{part.stat().st_size} of {file.size} bytes")
        except Exception as caught:
            if not _unreachable(hub, caught):
                raise
            error = caught
        stalled = 0 if part.exists() and part.stat().st_size > have else stalled + 1
        if stalled >= STALLED_ATTEMPTS:
            raise error
        logger.warning("%s: the transfer of %s was cut (%s), going on", repo.id, file.name, _first_line(error))
        time.sleep(stalled)


def _receive(hub: ModuleType, repo: Repo, file: File, part: Path, have: int) -> None:
    """One request for the bytes from `have` on. Each is written as it comes, so that a cut loses none."""
    if have == file.size:
        return
    headers = hub.utils.build_hf_headers() | {"Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    url = hub.hf_hub_url(repo.id, file.name, revision=repo.commit)
    timeout = hub.constants.HF_HUB_DOWNLOAD_TIMEOUT
    with hub.utils.get_session().stream("GET", url, headers=headers, timeout=timeout) as response:
        hub.utils.hf_raise_for_status(response)
        if response.status_code != 206:  # the server starts over
            have = 0
        bar = hub.utils.tqdm(desc=file.name[-40:], total=file.size, initial=have, unit="B", unit_scale=True, disable=None)
        with part.open("r+b" if part.exists() else "wb") as target, bar:
            target.truncate(have)
            target.seek(have)
            for chunk in response.iter_raw():
                target.write(chunk)
                bar.update(len(chunk))


def _check(path: Path, repo: Repo, file: File) -> None:
    """Hash what was just downloaded; what is wrong does not stay in the cache."""
    if file.sha256 is not None:
        right = path.resolve().name == file.sha256 or _sha256(path) == file.sha256  # a blob so named was hashed before
    elif file.blob_id is not None and re.fullmatch(r"[0-9a-f]{40}", file.blob_id):
        content = path.read_bytes()
        right = hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest() == file.blob_id
    else:
        right = file.size is None or path.stat().st_size == file.size
    if not right:
        _throw_away(path)
        raise _wrong_bytes(repo, file)


def _wrong_bytes(repo: Repo, file: File) -> SourceError:
    return SourceError(
        "what arrived is not what the hub describes (hash)",
        where=f"{repo.id}/{file.name}",
        fix="run it again; if it stays so, a proxy or mirror on the way changes the file",
    )


def _check_disk(hub: ModuleType, repo: Repo, missing: Iterable[File]) -> None:
    cache = _cache(hub, repo.id)
    needed = 0
    for file in missing:
        part = cache / "blobs" / f"{file.sha256}.incomplete"
        needed += max(0, (file.size or 0) - (part.stat().st_size if part.exists() else 0))
    existing = next((path for path in (cache, *cache.parents) if path.exists()), None)
    if existing is None or needed == 0:
        return
    free = shutil.disk_usage(existing).free
    if needed + SPARE_BYTES > free:
        raise ResourceError(
            f"the download needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free",
            where=existing,
            fix="free some space, or set HF_HOME to a larger disk",
        )


def _cache(hub: ModuleType, repo_id: str) -> Path:
    return Path(hub.constants.HF_HUB_CACHE).resolve() / f"models--{repo_id.replace('/', '--')}"


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _unreachable(hub: ModuleType, error: Exception) -> bool:
    """Whether the network or the hub is down, and not that the hub said no."""
    if isinstance(error, hub.errors.HfHubHTTPError):
        status = getattr(getattr(error, "response", None), "status_code", 0)
        return status >= 500 or status in (408, 429)
    # HTTPError is the root of the HTTP library, whose name has changed with huggingface_hub's versions
    transport = next(kind for kind in hub.errors.HfHubHTTPError.__mro__ if kind.__name__ == "HTTPError")
    return isinstance(error, (transport, hub.errors.OfflineModeIsEnabled, ConnectionError, TimeoutError))


def _refuse_transfer(hub: ModuleType, error: OSError, repo: Repo, file: File) -> NoReturn:
    if error.errno is not None and not isinstance(error, (ConnectionError, TimeoutError)):
        where = error.filename or _cache(hub, repo.id)
        fix = "free some space or correct the rights, or set HF_HOME to another disk"
        raise ResourceError(f"cannot write {file.name}: {error.strerror}", where=where, fix=fix) from error
    _refuse(hub, error, repo.id, repo.commit)


def _refuse(hub: ModuleType, error: Exception, repo_id: str, revision: str | None) -> NoReturn:
    """The hub's answer as one line."""
    where = _shown(repo_id, revision)
    status = getattr(getattr(error, "response", None), "status_code", None)
    kinds = hub.errors
    login = "log in with 'hf auth login', or set HF_TOKEN"
    if isinstance(error, SourceError):
        raise error
    if isinstance(error, kinds.GatedRepoError):
        raise SourceError(
            "the model is gated", where=where, fix=f"accept its terms on its page on the hub, then {login}"
        ) from error
    if isinstance(error, kinds.RevisionNotFoundError):
        raise SourceError("no such revision", where=where, fix="check --revision: a branch, a tag or a commit") from error
    if isinstance(error, kinds.RepositoryNotFoundError) or status in (401, 404):
        raise SourceError(
            "no such file or folder, and no such model on the hub",
            where=where,
            fix=f"check the name; if it is private, {login}",
        ) from error
    if status == 403:
        raise SourceError("the hub denies access", where=where, fix=login) from error
    if isinstance(error, kinds.HFValidationError):
        raise SourceError("not a valid hub id", where=where, fix="it reads 'org/name'") from error
    if _unreachable(hub, error):
        raise SourceError(
            f"the transfer broke off ({_first_line(error)})", where=where, fix="run it again: it goes on where it was cut"
        ) from error
    raise SourceError(
        f"the hub failed: {_first_line(error)}", where=where, fix="run it again, or give a local folder"
    ) from error


def _shown(repo_id: str, revision: str | None) -> str:
    return repo_id if revision is None else f"{repo_id} at {revision}"


def _first_line(error: Exception) -> str:
    lines: list[str] = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:120]
