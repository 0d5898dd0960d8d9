"""Boards over SSH: `ssh://pi@kitchen`.

Bundle and package go there by their hashes, only what is missing, and only below ~/.cache/edgellm/host of the board; see
`board`, which runs there. The board needs sshd and Python 3.11; no internet, no compiler, no edgellm.

What hosts.toml may say of such a host beside its URL, or the URL itself ("ssh://pi@kitchen?patience=20m"):

    key = "~/.ssh/board"            the private key; else those of ~/.ssh and the agent's
    known_hosts = "board.keys"      the file that has the board's key; else ~/.ssh/known_hosts
    python = "/opt/python3.12"      the interpreter; else the first of python3, python3.13, ... that is new enough
    folder = "/mnt/ssd/edgellm"     instead of ~/.cache/edgellm/host
    patience = "20m"                without a sign of life before it counts as hung; else 5 minutes
"""

from __future__ import annotations

import asyncio
import contextlib
import re
import shlex
import urllib.parse
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import asyncssh

from edgellm.benchmarks import facts as device
from edgellm.benchmarks.facts import Facts, Looked, Python
from edgellm.benchmarks.hosts import Target, wheels
from edgellm.benchmarks.hosts.agent import Agent, lost, shell
from edgellm.benchmarks.hosts.answers import Placed
from edgellm.benchmarks.hosts.failure import HostError
from edgellm.benchmarks.hosts.there import Job
from edgellm.benchmarks.hosts.wheels import Platform
from edgellm.benchmarks.result import Run, Settings
from edgellm.benchmarks.run import labels
from edgellm.bundle import MANIFEST, Bundle, graph_name, sha256_file
from edgellm.errors import EdgeError, RuntimeUnavailable, UsageError

CONNECT = 20.0  # seconds to answer in
ALIVE, MISSED = 10.0, 3  # seconds between two looks whether the connection is there, and how many may fail
OPTIONS = ("key", "known_hosts", "python", "folder", "patience")
PATIENCE = 300.0
UNITS = {"s": 1, "m": 60, "h": 3600}
PYTHONS = ("python3", "python3.13", "python3.12", "python3.11")
FIND = """for each in {names}; do
    case $each in "~/"*) each=$HOME/${{each#??}} ;; esac
    "$each" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && command -v "$each" && exit 0
done
python3 -V 2>&1
exit 1
"""


class NoPython(HostError):
    """A board without a Python that is new enough."""


@dataclass(frozen=True)
class Address:
    """A target's URL and options, checked."""

    host: str
    port: int | None
    user: str | None
    key: str | None = None
    known_hosts: str | None = None
    python: str | None = None
    folder: str = ""
    patience: float = PATIENCE


def address(target: Target) -> Address:
    """Where a target is.

    Raises:
        UsageError: the URL names no host, or carries more than a user, a host and a port; an option that there is not.
    """
    try:
        url = urllib.parse.urlsplit(target.url)
        port = url.port
    except ValueError as error:
        raise UsageError(str(error), where=target.name, fix="write ssh://user@board:22") from error
    name = re.sub(r":\d*$", "", url.netloc.rpartition("@")[2])  # as it is written: ~/.ssh/config tells Pi from pi
    host = urllib.parse.unquote(name.removeprefix("[").removesuffix("]"))
    if not host or url.password is not None or url.path.strip("/") or url.fragment:
        fix = "write ssh://user@board:22; keys come from ~/.ssh or the agent"
        raise UsageError("no URL of a host", where=target.name, fix=fix)
    options = target.asked(OPTIONS)
    patience = PATIENCE
    if "patience" in options:
        match = re.fullmatch(r"(\d+)\s*([smh])", options["patience"])
        if match is None:
            raise UsageError(f"patience is '{options['patience']}'", where=target.name, fix="write it like 90s or 10m")
        patience = float(int(match[1]) * UNITS[match[2]])
    files = {name: str(Path(options[name]).expanduser()) for name in ("key", "known_hosts") if name in options}
    return Address(
        host,
        port,
        None if url.username is None else urllib.parse.unquote(url.username),
        files.get("key"),
        files.get("known_hosts"),
        options.get("python"),
        options.get("folder", ""),
        patience,
    )


def check(target: Target) -> None:
    """See `hosts.Checker`."""
    address(target)


def bench(
    target: Target,
    bundles: Sequence[Bundle],
    runtimes: Sequence[str],
    settings: Settings,
    *,
    command: str,
    progress: Callable[[str], None],
) -> Run:
    """Measure bundles on a board; see `Host.bench`.

    Raises:
        HostError: the board cannot be reached, has no room or no Python, or did not finish; it has the facts it told by then.
        BundleError: a file of a bundle is not what was converted.
        UsageError: the URL or an option makes no sense.
    """
    where = address(target)
    for bundle in bundles:
        bundle.ensure_verified()
    run = asyncio.run(_bench(target, where, bundles, runtimes, settings, command, progress))
    return replace(run, host=target.name, command=command)


def look(target: Target) -> Looked:
    """What a board is, and the Python there that edgellm would use. Raises as `bench` does."""
    return asyncio.run(_look(target, address(target)))


async def _look(target: Target, where: Address) -> Looked:
    async with _connected(target, where) as connection:
        facts = await _facts(connection, target, where)
        try:
            python = await _python(connection, target, where)
        except NoPython:
            return Looked(facts)
        async with Agent.started(connection, target.name, python, where.folder, where.patience) as agent:
            told = await agent.look()
        return Looked(facts, Python(told.executable, told.version, told.packages))


async def _bench(
    target: Target,
    where: Address,
    bundles: Sequence[Bundle],
    runtimes: Sequence[str],
    settings: Settings,
    command: str,
    progress: Callable[[str], None],
) -> Run:
    progress("connecting")
    async with _connected(target, where) as connection:
        facts = await _facts(connection, target, where)
        try:
            python = await _python(connection, target, where)
            async with Agent.started(connection, target.name, python, where.folder, where.patience) as agent:
                packages = await _packages(agent, bundles, runtimes, progress)
                folders = await _sent(agent, bundles, packages, progress)
                job = Job(tuple(folders), tuple(runtimes), settings, command)
                return await agent.run(job, [digest for digest, _ in packages], progress)
        except HostError as error:
            error.facts = facts
            raise
        except (OSError, asyncssh.Error) as error:
            failure = _failure(error, target, where)
            failure.facts = facts
            raise failure from error


@contextlib.asynccontextmanager
async def _connected(target: Target, where: Address) -> AsyncIterator[asyncssh.SSHClientConnection]:
    options: dict[str, Any] = {"preferred_auth": "publickey", "connect_timeout": CONNECT}
    options |= {"keepalive_interval": ALIVE, "keepalive_count_max": MISSED, "compression_algs": ["none"]}
    given = {"port": where.port, "username": where.user, "known_hosts": where.known_hosts}
    options |= {name: value for name, value in given.items() if value is not None}
    if where.key is not None:
        options["client_keys"] = [where.key]
    try:
        meant = asyncssh.SSHClientConnectionOptions(host=where.host, **options)  # with what ~/.ssh/config says
        if meant.host_key_alias is None:  # known hosts are in lower case, as ssh writes them
            options["host_key_alias"] = meant.host.lower()
        connection = await asyncssh.connect(where.host, **options)
    except (OSError, asyncssh.Error, TimeoutError, ValueError) as error:
        raise _failure(error, target, where) from error
    try:
        yield connection
    except (OSError, asyncssh.Error) as error:
        raise _failure(error, target, where) from error
    finally:
        connection.close()
        try:
            await asyncio.wait_for(connection.wait_closed(), ALIVE)
        except (TimeoutError, OSError, asyncssh.Error):
            connection.abort()


def _failure(error: Exception, target: Target, where: Address) -> HostError:
    """What went wrong with a connection, and what helps."""
    port, user = "" if where.port is None else f"-p {where.port} ", "" if where.user is None else f"{where.user}@"
    login = f"ssh {port}{user}{where.host}"
    if isinstance(error, asyncssh.HostKeyNotVerifiable):
        what = f"its host key is not that of the known hosts: {error.reason}"
        fix = f"log in once with '{login}', compare the fingerprint and accept it, or take the old key away if the board is new"
    elif isinstance(error, asyncssh.PermissionDenied):
        what = "it accepts none of the keys"
        fix = f"add yours with '{login.replace('ssh ', 'ssh-copy-id ', 1)}', or name one by key ="
    elif isinstance(error, asyncssh.KeyImportError | asyncssh.KeyEncryptionError):
        what, fix = f"the key cannot be read: {error}", "give the agent a key that has a passphrase (ssh-add)"
    elif isinstance(error, OSError) and error.filename is not None:
        what, fix = f"{error.filename} cannot be read here: {error.strerror}", "check the path and its permissions"
    elif isinstance(error, asyncssh.ConnectionLost | ConnectionResetError | BrokenPipeError):
        return lost(target.name)
    elif isinstance(error, TimeoutError):
        what, fix = f"no answer within {CONNECT:g} s", "look whether it runs and is on this network"
    else:
        reason = getattr(error, "strerror", None) or getattr(error, "reason", None) or str(error) or type(error).__name__
        what, fix = f"it cannot be reached: {reason}", f"look whether it runs and sshd does; try '{login}'"
    return HostError(what, where=target.name, fix=fix)


async def _facts(connection: asyncssh.SSHClientConnection, target: Target, where: Address) -> Facts:
    _, output, errors = await shell(connection, device.SCRIPT, target.name, where.patience, "its facts")
    try:
        return device.parse(output)
    except ValueError as error:
        told = (errors.strip() or output.strip() or "nothing").splitlines()[-1]
        raise HostError(f"its shell said: {told}", where=target.name, fix="give a user who may run programs") from error


async def _packages(
    agent: Agent, bundles: Sequence[Bundle], runtimes: Sequence[str], progress: Callable[[str], None]
) -> list[tuple[str, Path]]:
    """sha256 and file of what has to be there, edgellm first, for as many of the runtimes as the board can have.

    Where none is asked for, it is each of the bundles' that has wheels for it, with LiteRT before its predecessor.
    """
    told = await agent.look()
    platform = Platform(told.version, told.implementation, told.architecture, told.libc)
    names = [graph_name(name) for name in runtimes] or [
        name for name in wheels.PACKAGES if any(name in bundle.graphs for bundle in bundles)
    ]
    wanted, files, refusals = wheels.requirements(None), list[Path](), list[EdgeError]()
    got = False
    for name in names:
        if not runtimes and name == "tflite_compat" and got:
            continue
        more = [*wanted, *wheels.requirements(name)]
        try:
            if wheels.lacking(more, told.packages):
                progress(f"wheels of {name} for Python {platform.version} on {platform.architecture}")
                files = await _wheels(more, told.packages, platform)
        except RuntimeUnavailable as error:
            refusals.append(error)
            continue
        wanted, got = more, True
    if refusals and (runtimes or not got):
        raise HostError(refusals[0].what, where=agent.name, fix=refusals[0].fix)
    return [(sha256_file(file), file) for file in [wheels.package(), *files]]


async def _wheels(wanted: Sequence[str], installed: Mapping[str, str], platform: Platform) -> list[Path]:
    """All of them from one resolution. Where there is none, as on 32-bit ARM, what the board's system brought has to do, and
    only what is not there at all is added to it."""
    try:
        return await wheels.resolve(wanted, platform)
    except RuntimeUnavailable:
        absent = wheels.absent(wanted, installed)
        if len(absent) == len(wanted):
            raise
        return await wheels.resolve(absent, platform, alone=True) if absent else []


async def _sent(
    agent: Agent, bundles: Sequence[Bundle], packages: Sequence[tuple[str, Path]], progress: Callable[[str], None]
) -> list[str]:
    """Folders of the bundles on the board, where everything is by then."""
    blobs = {}
    manifests = {bundle.path: sha256_file(bundle.path / MANIFEST) for bundle in bundles}
    for bundle in bundles:
        blobs[manifests[bundle.path]] = bundle.path / MANIFEST
        blobs |= {entry.sha256: bundle.file(name) for name, entry in bundle.files.items()}
    await agent.send(blobs, dict(packages), progress)
    folders = []
    for bundle, label in zip(bundles, labels([bundle.path for bundle in bundles]), strict=True):
        digest = manifests[bundle.path]
        files = {MANIFEST: digest, **{name: entry.sha256 for name, entry in bundle.files.items()}}
        folders.append((await agent.ask(Placed, do="bundle", name=f"{digest[:16]}/{label}", files=files)).bundle)
    return folders


async def _python(connection: asyncssh.SSHClientConnection, target: Target, where: Address) -> str:
    names = PYTHONS if where.python is None else (where.python,)
    script = FIND.format(names=" ".join(map(shlex.quote, names)))
    status, output, _ = await shell(connection, script, target.name, where.patience, "its Python")
    lines = output.strip().splitlines()
    if status == 0 and lines:
        return lines[-1]
    there = f"{lines[-1]} is there" if lines and lines[-1].startswith("Python ") else "there is none"
    if where.python is not None:
        there = f"and '{where.python}' is none there"
    fix = "install one, or name it by python = in hosts.toml"
    raise NoPython(f"edgellm needs Python 3.11 or later, {there}", where=target.name, fix=fix)
