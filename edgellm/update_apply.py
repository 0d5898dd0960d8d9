"""A bundle becomes the one that an update was made for, on the device: whole, checked, and at one stroke, or not at all.

    from edgellm.update_apply import apply, roll_back

    apply("model.update", "bundle", key="public.pem")
    roll_back("bundle")

The new bundle is built in a hidden folder beside the old one, which serves until the moment of the exchange: what did not
change is linked, not copied, and every file is hashed. The old bundle then is `bundle.previous`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import BinaryIO

from edgellm import signature
from edgellm.bundle import MANIFEST, Bundle, sha256_file
from edgellm.errors import BundleError
from edgellm.partial import IN_USE, alive, check_disk, leave_partial, make_partial, remove_partial, works_on, write_error
from edgellm.swap import NEW, identity, locked, previous_of, put_in_place, sync_folder, trade_places
from edgellm.update_file import BLOCK, PAYLOAD, NewFile, Update, open_update

OPTION, OLDER = "disk", "older"


def apply(
    update: str | os.PathLike[str], bundle: str | os.PathLike[str], *, key: str | os.PathLike[str] | None = None
) -> Bundle:
    """Make a bundle what an update says; what it was becomes its `.previous`.

    A bundle that is so already stays as it is, and so does any that something goes wrong with, whatever it is.

    Args:
        update: the file that `edgellm bundle diff` made.
        bundle: the folder of the bundle that it was made from.
        key: a public key, PEM; the new bundle must then carry a signature of it.

    Raises:
        BundleError: the update or the bundle is damaged, they do not belong together, the signature is not the key's, or
            nothing can be written there.
        ResourceError: too little disk.
    """
    if key is not None:
        signature.read_key(key)  # a key that is none is said before the work
    with open_update(Path(update)) as opened:
        Bundle.open(bundle)
        target = Path(bundle).resolve()  # a link to the folder stays one
        with locked(target):
            opened_as = identity(target)
            old = Bundle.open(target)
            there = old.digest(MANIFEST)
            left = _settle(opened, target)
            if there == opened.header.result and _is_there(opened, old):
                if key is not None:
                    signature.check(old, key)
                if left:
                    with _work_folder(target):
                        pass  # which clears away the others
                return old
            if there != opened.header.base:
                raise BundleError(
                    "the update was made from another bundle than this one",
                    where=bundle,
                    fix=f"get the one that was made from it (sha256 of its {MANIFEST}: {there[:16]}...)",
                )
            _check_previous(target)
            with _work_folder(target) as work:
                _build(opened, old, work / NEW)
                _check(opened, work / NEW, target, key)
                if identity(target) != opened_as or old.digest(MANIFEST) != there:  # not every file system has locks
                    raise BundleError("another process has just changed it", where=bundle, fix="do it again")
                _swap(work, target)
    updated = Bundle.open(bundle)
    updated.remember_verified()
    return updated


def roll_back(bundle: str | os.PathLike[str]) -> Bundle:
    """Exchange a bundle with its `.previous`, so that doing it twice changes nothing.

    Raises:
        BundleError: there is none, it is damaged, or it cannot be exchanged.
    """
    Bundle.open(bundle)
    target = Path(bundle).resolve()
    with locked(target):
        previous = previous_of(target)
        if not previous.is_dir():
            fix = "give the update that was interrupted again" if _left(target) else "an update leaves the old bundle there"
            raise BundleError("there is nothing to roll back to", where=previous, fix=fix)
        Bundle.open(previous).verify()
        with _work_folder(target) as work:
            trade_places(target, work)
    return Bundle.open(bundle)


@contextlib.contextmanager
def _work_folder(target: Path) -> Iterator[Path]:
    was = identity(target)
    work = make_partial(target, OPTION)
    try:
        yield work
    except OSError as error:
        raise write_error(error, target, OPTION) from error
    finally:
        # two signals, or a disk that fails in undoing, may have left in it what has no other place
        lost = os.path.lexists(work / OLDER) and not os.path.lexists(previous_of(target))
        if lost or identity(work / NEW) == was:
            leave_partial(work)
        else:
            remove_partial(work)


def _swap(work: Path, target: Path) -> None:
    """The new bundle gets the name; an older one than that which had it goes, but not before."""
    previous, was = previous_of(target), identity(target)
    try:
        with contextlib.suppress(FileNotFoundError):
            previous.rename(work / OLDER)
        put_in_place(work / NEW, target)
    except BaseException:
        if identity(target) == was and not os.path.lexists(previous):
            with contextlib.suppress(OSError):
                (work / OLDER).rename(previous)
        raise


def _settle(update: Update, target: Path) -> bool:
    """Give the name `.previous` to what an interrupted update left hidden; whether it left anything.

    Right behind the exchange that is the old bundle, right before it the older one.
    """
    left = _left(target)
    for folder in left:
        with contextlib.suppress(OSError):
            if not os.path.lexists(previous_of(target)):
                is_old = (folder / NEW / MANIFEST).exists() and sha256_file(folder / NEW / MANIFEST) == update.header.base
                (folder / (NEW if is_old else OLDER)).rename(previous_of(target))
    return bool(left)


def _left(target: Path) -> list[Path]:
    """Work folders of processes that have ended."""
    try:
        return [folder for folder, owner in works_on(target) if folder not in IN_USE and not alive(owner)]
    except OSError:  # which making a new one meets too, and says
        return []


def _check_previous(target: Path) -> None:
    """An older bundle makes room; nothing else does."""
    previous = previous_of(target)
    if os.path.lexists(previous) and not (previous.is_dir() and not previous.is_symlink() and (previous / MANIFEST).exists()):
        raise BundleError("the old bundle is to get this name, and it is taken", where=previous, fix="remove it")


def _is_there(update: Update, bundle: Bundle) -> bool:
    """Whether a bundle is what the update makes, to the byte."""
    bundle.verify()
    extra = update.header.files.keys() - {MANIFEST, *bundle.files}
    with contextlib.suppress(OSError):
        return all(sha256_file(bundle.path / name) == update.header.files[name].sha256 for name in extra)
    return False


def _build(update: Update, old: Bundle, new: Path) -> None:
    """Write every file of the new bundle."""
    sources = [_source(update, old, name) for name in update.header.sources]
    sizes = [source.stat().st_size for source in sources]
    written = []
    for name, file in update.header.files.items():
        if any(part.source != PAYLOAD and part.offset + part.length > sizes[part.source] for part in file):
            raise BundleError(f"takes more for '{name}' than the old bundle has", where=update.path, fix="do not use it")
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        if not _link(file, sources, new / name):
            written.append(name)
    check_disk(new.parent, sum(update.header.files[name].size for name in written), "the new bundle", OPTION)
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context(source.open("rb")) for source in sources]
        for name in written:
            _write(update, update.header.files[name], files, new / name)
    for folder in (new, *(entry for entry in new.rglob("*") if entry.is_dir())):
        sync_folder(folder)
    sync_folder(new.parent)


def _source(update: Update, old: Bundle, name: str) -> Path:
    """A file of the old bundle; `Bundle.open` has looked at those that the manifest lists."""
    source = (old.path / name).resolve()
    listed = name in old.files or name == MANIFEST or name == signature.FILE
    if not listed or not source.is_relative_to(old.path) or not source.is_file():
        raise BundleError(f"takes '{name}' from the old bundle, which has no such file", where=update.path, fix="do not use it")
    return source


def _link(file: NewFile, sources: list[Path], new: Path) -> bool:
    """Let a file that did not change lie in both bundles; whether it can, `_check` looks whether it may."""
    parts = list(file)
    if len(parts) != 1 or parts[0].source == PAYLOAD:
        return False
    source = sources[parts[0].source]
    if parts[0].offset or source.stat().st_size != file.size:
        return False
    try:
        os.link(source, new)
    except OSError:  # a file system without links, or somebody else's file
        return False
    return True


def _write(update: Update, file: NewFile, sources: Sequence[BinaryIO], new: Path) -> None:
    with new.open("xb") as out:
        for part in file:
            if part.source == PAYLOAD:
                out.write(update.piece(part))
                continue
            source, left = sources[part.source], part.length
            source.seek(part.offset)
            while left and (block := source.read(min(BLOCK, left))):
                out.write(block)
                left -= len(block)
        out.flush()
        os.fsync(out.fileno())


def _check(update: Update, new: Path, target: Path, key: str | os.PathLike[str] | None) -> None:
    """Every byte is as the update says, and the whole is a bundle: nothing else gets the name."""
    for name, file in update.header.files.items():
        if sha256_file(new / name) != file.sha256:
            update.check_payload()
            raise BundleError(
                f"the bundle is damaged: '{name}' would not come out right", where=target, fix="copy the new bundle whole"
            )
    try:
        made = Bundle.open(new)
        if key is not None:
            signature.check(made, key)
    except BundleError as error:  # which names a folder that goes away
        raise BundleError(f"what the update makes is not to be used: {error.what}", where=update.path, fix=error.fix) from error
    promised = {name: file.sha256 for name, file in update.header.files.items() if name not in (MANIFEST, signature.FILE)}
    if promised != {name: entry.sha256 for name, entry in made.files.items()}:
        raise BundleError("its files are not those of the bundle in it", where=update.path, fix="do not use it")
