"""Advertises the servers that serve, each with its present certificate and keys."""

from __future__ import annotations

import contextlib
import ipaddress
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import anyio
from anyio.abc import TaskGroup
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.config.global_settings import GlobalSettings
from stapsrv.identity.mok import load_moks, moks_directory
from stapsrv.identity.selfsigned import host_name
from stapsrv.identity.store import LiveIdentity
from stapsrv.mdns.advertiser import Advertiser
from stapsrv.mdns.records import Advertisement
from stapsrv.supervisor.server.compile_server import CompileServer
from stapsrv.system.blocking import BlockingCalls
from stapsrv.system.directory_watcher import DirectoryWatcher

# A key, like a certificate, comes in several files; this long after the first they are read.
_SETTLE_S = 0.2


class ServerAdvertiser:
    """Advertises the servers of one process, and keeps that up to date; nothing without ``advertiser``."""

    def __init__(self, advertiser: Advertiser | None, *, log: Log) -> None:
        self._advertiser = advertiser
        self._log = log
        self._advertised: dict[int, CompileServer] = {}
        self._followed: set[Path] = set()
        self._moks: dict[Path, tuple[str, ...]] = {}
        self._files = BlockingCalls()
        self._tasks: TaskGroup | None = None

    @classmethod
    def from_settings(cls, settings: GlobalSettings, *, log: Log) -> ServerAdvertiser:
        """Return an advertiser as the operator wants it; one that does nothing where mDNS is off."""
        if settings.mdns_enabled is False:
            return cls(None, log=log)
        host, interfaces = settings.mdns_host or host_name(), settings.mdns_interfaces or ()
        return cls(Advertiser(host, interfaces=interfaces, log=log), log=log)

    async def run(self) -> None:
        """Advertise until cancelled, then say goodbye within two seconds; a fault of it is no server's."""
        if self._advertiser is None:
            return
        try:
            async with anyio.create_task_group() as self._tasks:
                for server_id in self._advertised:
                    self._publish(server_id)
                await self._advertiser.run()
        except* Exception as crash:  # noqa: BLE001 - the one net between the network and the servers
            self._log.exception("mdns.crashed", exc_info=crash)
        finally:
            self._tasks = None

    def advertise(self, server_id: int, server: CompileServer) -> None:
        """Advertise a server that serves, or what is new of it; never waits."""
        if self._advertiser is not None:
            self._advertised[server_id] = server
            self._publish(server_id)

    def retract(self, server_id: int) -> None:
        """Stop advertising a server; never waits."""
        if self._advertiser is not None and self._advertised.pop(server_id, None) is not None:
            self._advertiser.set(server_id, ())

    async def withdraw(self, server_id: int) -> None:
        """Stop advertising a server that is about to stop, and wait for its goodbye, 1 s at most."""
        if self._advertiser is not None:
            self._advertised.pop(server_id, None)
            await self._advertiser.withdraw(server_id)

    # Nothing before its keys have been read.
    def _publish(self, server_id: int) -> None:
        server = self._advertised[server_id]
        identity = server.service.identity
        directory = identity.loaded.directory
        if directory not in self._followed and self._tasks is not None:
            self._followed.add(directory)
            self._tasks.start_soon(self._follow_identity, identity)
            self._tasks.start_soon(self._follow_files, identity)
        if directory in self._moks and self._advertiser is not None:
            found = advertisements(server, serial=identity.loaded.serial, moks=self._moks[directory])
            self._advertiser.set(server_id, found, server.service.log)

    def _publish_all(self, directory: Path) -> None:
        for server_id, server in self._advertised.items():
            if server.service.identity.loaded.directory == directory:
                self._publish(server_id)

    async def _follow_identity(self, identity: LiveIdentity) -> None:
        while True:
            await identity.wait_changed()
            self._publish_all(identity.loaded.directory)

    async def _follow_files(self, identity: LiveIdentity) -> None:
        directory = identity.loaded.directory
        try:
            with contextlib.closing(DirectoryWatcher[Path]()) as watcher:
                watched = directory, moks_directory(directory)
                while True:
                    await self._files.run(partial(watcher.watch_directories, directory, watched))
                    await self._read_moks(identity)
                    await watcher.wait_changed()
                    await anyio.sleep(_SETTLE_S)
        except OSError as exc:
            self._log.warning("identity.unwatched", directory=directory, reason=exc.strerror)
            await self._read_moks(identity)

    async def _read_moks(self, identity: LiveIdentity) -> None:
        directory = identity.loaded.directory
        try:
            found = await self._files.run(partial(load_moks, moks_directory(directory)))
            fingerprints = tuple(mok.fingerprint for mok in found.usable)
        except OSError as exc:
            # It hangs, or this host is short of threads: what was found before holds on.
            self._log.warning("identity.unwatched", directory=directory, reason=exc.strerror)
            fingerprints = self._moks.get(directory, ())
        if fingerprints != self._moks.get(directory):
            self._moks[directory] = fingerprints
            self._publish_all(directory)


def advertisements(server: CompileServer, *, serial: str, moks: Sequence[str]) -> tuple[Advertisement, ...]:
    """Return an advertisement for each release that a server can compile for; none on loopback alone."""
    service = server.service
    settings = service.settings
    addresses = _listened_on(settings.access.listen)
    if addresses is not None and not addresses:
        return ()
    runtime = () if settings.runtime is None else (settings.runtime,)
    given = (("-R", runtime), ("-B", settings.build), ("-D", settings.define), ("-I", settings.include))
    # In the original's order, and unquoted.
    options = tuple(option + value for option, values in given for value in values)
    return tuple(
        Advertisement(
            sysinfo=release.sysinfo,
            port=server.address.port,
            version=service.version,
            serial=serial,
            options=options,
            moks=tuple(moks),
            addresses=addresses,
        )
        for release in service.releases.values()
        if release.name not in service.release_health or service.release_health[release.name].is_usable
    )


def _listened_on(listen: Sequence[str]) -> frozenset[bytes] | None:
    """Return the addresses that other hosts can reach a server at, packed; None for all of this host's."""
    addresses = [ipaddress.ip_address(address.partition("%")[0]) for address in listen]
    return frozenset(each.packed for each in addresses if not each.is_loopback) if addresses else None
