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
import stat
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

from edgellm import signature
from edgellm.bundle import MANIFEST, Bundle, FileEntry, sha256_file
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
            done = there == opened.header.result and _is_there(opened, old)
            left = _settle(opened, target, done=done)
            if done:
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
                _build(opened, old, work, key)
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


def _settle(update: Update, target: Path, *, done: bool) -> bool:
    """Give the name `.previous` to what an interrupted update left hidden; whether it left anything.

    That is the old bundle where the exchange was done, and else the older one.
    """
    left = _left(target)
    for folder in left:
        with contextlib.suppress(OSError):
            if not os.path.lexists(previous_of(target)):
                is_old = done and sha256_file(folder / NEW / MANIFEST) == update.header.base
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


def _build(update: Update, old: Bundle, work: Path, key: str | os.PathLike[str] | None) -> None:
    """Make the new bundle, and at first what says whose it is and which files it has: no other file is made."""
    files, new = update.header.files, work / NEW
    sources = _Sources(update, old)
    first = {name: file for name, file in files.items() if name in (MANIFEST, signature.FILE)}
    work.chmod(0o700)  # until it has the old bundle's modes it is nobody else's
    written = _make(update, sources, first, new)
    _check_content(update, first, new, old.path)
    try:
        said = Bundle.announced(new)
        if key is not None:
            signature.check(said, key)
    except BundleError as error:
        raise _useless(update, error) from error
    rest = {name: file for name, file in files.items() if name not in first}
    if {name: FileEntry(file.size, file.sha256) for name, file in rest.items()} != dict(said.files):
        raise BundleError("its files are not those of the bundle in it", where=update.path, fix="do not use it")
    written += _make(update, sources, rest, new)
    _check_content(update, files, new, old.path)
    try:
        Bundle.open(new)
    except BundleError as error:
        raise _useless(update, error) from error
    for name in written:
        _liken(new / name, old.path / (name if (old.path / name).is_file() else MANIFEST))
    for folder in (new, *(entry for entry in new.rglob("*") if entry.is_dir())):
        before = old.path / folder.relative_to(new)
        _liken(folder, before if before.is_dir() else old.path)
        sync_folder(folder)
    sync_folder(work)


def _liken(path: Path, model: Path) -> None:
    """Give a file or folder the mode of another one, and owner and group as far as this process may: the same read it."""
    status = model.stat()
    # whoever owns a folder and may not write to it could not remove it again
    path.chmod(stat.S_IMODE(status.st_mode) | (stat.S_IRWXU if path.is_dir() else 0))
    if sys.platform != "win32":
        for owner in (status.st_uid, -1):
            with contextlib.suppress(OSError):
                os.chown(path, owner, status.st_gid)
                return


class _Sources:
    """The files of the old bundle that parts are taken from, each looked at when the first part is."""

    def __init__(self, update: Update, old: Bundle) -> None:
        self._update, self._old = update, old
        self._found: dict[int, tuple[Path, int]] = {}

    def find(self, index: int) -> tuple[Path, int]:
        """A file and its size; `Bundle.open` has looked at those that the manifest lists.

        Raises:
            BundleError: the old bundle has it not.
        """
        if index not in self._found:
            old, name = self._old, self._update.header.sources[index]
            source = Path(os.path.realpath(old.path / name))
            listed = name in old.files or name in (MANIFEST, signature.FILE)
            if not listed or not source.is_relative_to(old.path) or not source.is_file():
                raise BundleError(
                    f"takes '{name}' from the old bundle, which has no such file", where=self._update.path, fix="do not use it"
                )
            self._found[index] = source, source.stat().st_size
        return self._found[index]


def _make(update: Update, sources: _Sources, files: Mapping[str, NewFile], new: Path) -> list[str]:
    """Link or write some files of the new bundle; those that were written."""
    written = []
    for name, file in files.items():
        for part in file:
            if part.source != PAYLOAD and part.offset + part.length > sources.find(part.source)[1]:
                raise BundleError(f"takes more for '{name}' than the old bundle has", where=update.path, fix="do not use it")
        (new / name).parent.mkdir(parents=True, exist_ok=True)
        if not _link(file, sources, new / name):
            written.append(name)
    check_disk(new.parent, sum(files[name].size for name in written), "the new bundle", OPTION)
    for name in written:
        _write(update, files[name], sources, new / name)
    return written


def _link(file: NewFile, sources: _Sources, new: Path) -> bool:
    """Let a file that did not change lie in both bundles; whether it can, `_check_content` looks whether it may."""
    parts = list(file)
    if len(parts) != 1 or parts[0].source == PAYLOAD:
        return False
    source, size = sources.find(parts[0].source)
    if parts[0].offset or size != file.size:
        return False
    try:
        os.link(source, new)
    except OSError:  # a file system without links, or somebody else's file
        return False
    return True


def _write(update: Update, file: NewFile, sources: _Sources, new: Path) -> None:
    with new.open("xb") as out, contextlib.ExitStack() as last:
        opened: BinaryIO | None = None
        at = PAYLOAD
        for part in file:
            if part.source == PAYLOAD:
                out.write(update.piece(part))
                continue
            if opened is None or part.source != at:
                last.close()  # one at a time: a process may have few files open
                opened, at = last.enter_context(sources.find(part.source)[0].open("rb")), part.source
            left = part.length
            opened.seek(part.offset)
            while left and (block := opened.read(min(BLOCK, left))):
                out.write(block)
                left -= len(block)
        out.flush()
        os.fsync(out.fileno())


def _check_content(update: Update, files: Mapping[str, NewFile], new: Path, target: Path) -> None:
    """Every byte is as the update says: nothing else gets the name."""
    for name, file in files.items():
        if sha256_file(new / name) != file.sha256:
            update.check_payload()
            raise BundleError(
                f"the bundle is damaged: '{name}' would not come out right", where=target, fix="copy the new bundle whole"
            )


def _useless(update: Update, error: BundleError) -> BundleError:
    """Without the folder that the error names, which goes away."""
    return BundleError(f"what the update makes is not to be used: {error.what}", where=update.path, fix=error.fix)
