"""A server's side of a farm: knows its nodes, and has jobs compiled by them, also when nodes die.

It runs on asyncio, as Dask does (see :mod:`stapsrv.system.loop_thread`). Dask's scheduler gives the job of a
node that died to another. What Dask leaves open is done here: a scheduler that ends takes all its jobs along,
and they are submitted again to the next one; a job that no node can take would wait for ever.
"""

from __future__ import annotations

import contextlib
import uuid
from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from typing import Any

import anyio
import attrs
import dask
from distributed import Client, Future
from distributed.client import FutureCancelledError
from distributed.scheduler import KilledWorker
from structlog.typing import FilteringBoundLogger as Log

from stapsrv.errors import ConfigError, TranslatorError, first_error
from stapsrv.farm.offer import TOPIC, Nodes, Offer
from stapsrv.farm.result import Failure, NodeFailure, NodeResult
from stapsrv.farm.security import FarmCredentials, farm_security
from stapsrv.farm.task import BEGUN_TOPIC, compile_job

# In all, a job's first one included.
_ATTEMPTS = 3
_CONNECT_S = 10.0
_ASK_S = 10.0
_CLOSE_S = 5.0
_FIRST_DELAY_S, _MAX_DELAY_S = 0.2, 5.0
# After a scheduler's start its nodes come one after the other.
_GRACE_S = 15.0
# A node that has seen a change takes its offer back; so long the next attempt waits for that.
_WITHDRAWAL_S = 5.0
_BACKGROUND_PRIORITY = -100
_ALL = "all"
_NEVER = "stapsrv-never"
_MAX_REASON = 300
_SETTINGS: dict[str, Any] = {
    # A scheduler that is cut off is missed after so long.
    "distributed.comm.timeouts.tcp": "15s",
    "distributed.comm.timeouts.connect": f"{_CONNECT_S:g}s",
    "distributed.admin.large-graph-warning-threshold": "1GiB",
}


class FarmAbsentError(Exception):
    """There is nobody to compile, and has not been for as long as a job waits; the text is for clients."""


@attrs.frozen(kw_only=True)
class Assignment:
    """A job to be compiled by the farm; the functions are called in the farm's thread."""

    release: str
    arch: str
    identity: str | None  # what its server promises; None for the best there is
    wait_s: float  # how long it waits for a scheduler, and for a node that was there
    background: bool
    # Makes the message of an attempt, of its name and identity; reads an answer, or raises a ProtocolError.
    encode: Callable[[str, str], bytes]
    decode: Callable[[object], NodeResult | NodeFailure]


@attrs.frozen
class FarmAnswer:
    """A node's answer, and the offer that it used."""

    offer: Offer
    answer: NodeResult | NodeFailure


@attrs.define
class FarmCounts:
    """The counts of jobs so far, and of those that are not done."""

    under_way: int = 0
    done: int = 0
    retries: int = 0
    lost_nodes: int = 0


@attrs.define(eq=False)
class _Attempt:
    name: str
    nodes: frozenset[str]  # the addresses of those that have it or may get it
    node: str | None = None  # the address of the one where it has begun
    deaths: int = 0  # of nodes where it had begun


@attrs.define(eq=False)
class FarmClient:
    """The farm of one scheduler; :meth:`run` keeps the connection."""

    address: str
    _credentials: FarmCredentials | None
    _log: Log
    # Replaced as a whole, so that other threads may read them.
    nodes: Nodes = attrs.field(init=False, factory=Nodes)
    is_connected: bool = attrs.field(init=False, default=False)
    since: datetime = attrs.field(init=False, factory=lambda: datetime.now(UTC))  # it is so
    fault: str | None = attrs.field(init=False, default=None)  # of the last try to connect
    counts: FarmCounts = attrs.field(init=False, factory=FarmCounts)
    # Called in the farm's thread after each change of these, and each try to connect.
    on_change: Callable[[], None] = attrs.field(init=False, default=lambda: None)
    _client: Client | None = attrs.field(init=False, default=None)
    _connected_at: float = attrs.field(init=False, default=0.0)
    _seen: dict[tuple[str, str], float] = attrs.field(init=False, factory=dict)
    _attempts: dict[str, _Attempt] = attrs.field(init=False, factory=dict)
    _changed: anyio.Event = attrs.field(init=False, factory=anyio.Event)
    _stale: anyio.Event = attrs.field(init=False, factory=anyio.Event)

    @property
    def running(self) -> int:
        """The number of jobs that the scheduler has."""
        return len(self._attempts)

    async def run(self) -> None:
        """Be connected to the scheduler, or try to be, until cancelled."""
        delay_s = _FIRST_DELAY_S
        while True:
            try:
                with dask.config.set(_SETTINGS):
                    await self._be_connected()
                delay_s = _FIRST_DELAY_S
                self._log.warning("farm.lost", scheduler=self.address)
            except* (ConfigError, OSError, ImportError, RuntimeError, ValueError) as group:
                fault = str(first_error(group)) or type(first_error(group)).__name__
                if fault != self.fault:
                    self._log.warning("farm.unreachable", scheduler=self.address, reason=fault)
                self.fault = fault
                self._announce()
            await anyio.sleep(delay_s)
            delay_s = min(2 * delay_s, _MAX_DELAY_S)

    async def compile(self, job: Assignment) -> FarmAnswer:
        """Have a job compiled.

        Raises:
            FarmAbsentError: nobody can, and nobody came in time.
            TranslatorError: three nodes died of it, or what it is compiled with changed three times.
            ProtocolError: the answer is none.

        Cancellation: the farm reads that nobody waits for the result.
        """
        self.counts.under_way += 1
        try:
            return await self._compile(job)
        finally:
            self.counts.under_way -= 1

    async def _compile(self, job: Assignment) -> FarmAnswer:
        deaths = changes = 0
        while True:
            offer = await self._wait_offer(job)
            attempt = _Attempt(f"stapsrv-{uuid.uuid4().hex}", self.nodes.offering(offer))
            message = await self._submit(job, offer, attempt)
            deaths += attempt.deaths
            if deaths >= _ATTEMPTS:
                raise TranslatorError(f"The compile ended {_ATTEMPTS} workers of the farm")
            if message is not None:
                answer = job.decode(message)
                if not isinstance(answer, NodeFailure) or answer.failure is not Failure.CHANGED:
                    self.counts.done += 1
                    return FarmAnswer(offer, answer)
                changes += 1
                if changes >= _ATTEMPTS:
                    raise TranslatorError("The farm's toolchain keeps changing", remedy="try again later")
                await self._wait_withdrawn(offer, answer.node)
            self.counts.retries += 1

    async def _submit(self, job: Assignment, offer: Offer, attempt: _Attempt) -> bytes | None:
        """Submit a job, and return the answer; None if it is to be submitted again."""
        client = self._client
        if client is None:
            return None
        future: Future[Any] = client.submit(
            compile_job,
            job.encode(attempt.name, offer.identity),
            key=attempt.name,
            pure=False,
            resources={offer.resource: 1},
            priority=_BACKGROUND_PRIORITY if job.background else 0,
        )
        self._attempts[attempt.name] = attempt
        answer: bytes | None = None
        failure: Exception | None = None
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self._watch, attempt, offer, tasks.cancel_scope)
                try:
                    answer = await future
                except (KilledWorker, FutureCancelledError, OSError):
                    # Too many nodes have ended that had it, begun or not; or the scheduler is just going.
                    await self._wait_lost_or_moment(client)
                except Exception as exc:  # noqa: BLE001 - of any kind, since the node made it
                    failure = exc
                tasks.cancel_scope.cancel()
        finally:
            del self._attempts[attempt.name]
            with anyio.move_on_after(_CLOSE_S, shield=True), contextlib.suppress(Exception):
                if answer is None:
                    await client.cancel([future], force=True)
                future.release()
        if failure is not None:
            self._log.error("farm.broken", reason=repr(failure)[:_MAX_REASON])
            raise TranslatorError("The farm failed on this request; the server's log says why")
        return answer

    async def _wait_lost_or_moment(self, client: Client) -> None:
        with anyio.move_on_after(_FIRST_DELAY_S):
            while self._client is client:
                await self._changed.wait()

    async def _watch(self, attempt: _Attempt, offer: Offer, scope: anyio.CancelScope) -> None:
        """End an attempt that nobody would finish: its nodes are gone or withdrew, or three died of it.

        Dask itself would wait for a node that makes the offer at the moment when it comes.
        """
        while True:
            changed = self._changed
            now = self.nodes.offering(offer)
            is_given_up = self.is_connected and not attempt.nodes & now
            if is_given_up or attempt.deaths >= _ATTEMPTS:
                scope.cancel()
                return
            attempt.nodes = now or attempt.nodes
            await changed.wait()

    async def _wait_offer(self, job: Assignment) -> Offer:
        """Return the offer that a job is compiled by: what its server promises, or else the best one."""
        key = (job.release, job.arch)
        began = anyio.current_time()
        while True:
            changed, now = self._changed, anyio.current_time()
            if self.is_connected:
                best = self.nodes.best(*key)
                if best is not None:
                    promised = attrs.evolve(best, identity=job.identity or best.identity)
                    return promised if promised in self.nodes.offers else best
                # Others may come after a start; those that were there may come back.
                seen = self._seen.get(key)
                until = max(
                    self._connected_at + min(_GRACE_S, job.wait_s), 0.0 if seen is None else seen + job.wait_s
                )
                fault = self.nodes.explain_missing(job.release)
            else:
                until = began + job.wait_s
                fault = "The farm cannot be reached"
            if now >= until:
                raise FarmAbsentError(fault)
            with anyio.move_on_after(until - now):
                await changed.wait()

    async def _wait_withdrawn(self, offer: Offer, node: str) -> None:
        """Wait until a node has taken back an offer that does not hold any more."""
        with anyio.move_on_after(_WITHDRAWAL_S):
            while any(each.name == node and offer in each.offers for each in self.nodes.nodes):
                await self._changed.wait()

    async def _be_connected(self) -> None:
        client: Client = Client(
            self.address,
            security=farm_security(self._credentials, address=self.address),
            asynchronous=True,
            set_as_default=False,
            timeout=_CONNECT_S,
            name="stapsrv",
        )
        try:
            await client
            client.subscribe_topic(TOPIC, self._hear)
            client.subscribe_topic(BEGUN_TOPIC, self._hear_begun)
            client.subscribe_topic(_ALL, self._hear)
            async with anyio.create_task_group() as tasks:
                # What comes after this is heard of by an event.
                await self._look(client)
                self._client, self._connected_at = client, anyio.current_time()
                self.is_connected, self.since, self.fault = True, datetime.now(UTC), None
                tasks.start_soon(self._follow_nodes, client)
                self._log.info("farm.connected", scheduler=self.address, nodes=len(self.nodes.nodes))
                await self._wait_lost(client)
                tasks.cancel_scope.cancel()
        finally:
            self._remember()
            if self.is_connected:
                self.since = datetime.now(UTC)
            self._client, self.is_connected, self.nodes = None, False, Nodes()
            self._announce()
            with anyio.move_on_after(_CLOSE_S, shield=True), contextlib.suppress(Exception):
                await client.close()

    async def _wait_lost(self, client: Client) -> None:
        """Wait until the connection is lost: then Dask says of each future that it is cancelled."""
        while client.status == "running":
            # No node offers that, so nothing else ends it.
            never: Future[object] = client.submit(
                _nothing, key=f"stapsrv-{uuid.uuid4().hex}", pure=False, resources={_NEVER: 1}
            )
            with contextlib.suppress(Exception):
                await never

    async def _follow_nodes(self, client: Client) -> None:
        while True:
            stale = self._stale
            await self._look(client)
            self._announce()
            await stale.wait()
            self._remember()

    async def _look(self, client: Client) -> None:
        """Read the scheduler's description of its workers."""
        scheduler: Any = client.scheduler
        with anyio.fail_after(_ASK_S):
            described = await scheduler.identity(n_workers=-1)
        self.nodes = Nodes.parse(described.get("workers"))

    def _hear(self, event: tuple[float, object]) -> None:
        """Take an event of the scheduler: nodes that came or went, and the jobs that they had."""
        said = event[1]
        action = said.get("action") if isinstance(said, Mapping) else None
        if isinstance(said, Mapping) and action == "remove-worker" and not said.get("expected"):
            self.counts.lost_nodes += 1
            self._count_deaths(said.get("worker"))
        if action in {None, "add-worker", "remove-worker"}:
            self._stale.set()
            self._stale = anyio.Event()

    def _hear_begun(self, event: tuple[float, object]) -> None:
        """Take from a node that a job begins there; it may be another server's."""
        said = event[1]
        attempt = self._attempts.get(str(said.get("job"))) if isinstance(said, Mapping) else None
        if attempt is not None and isinstance(said, Mapping):
            attempt.node = str(said.get("node"))

    def _count_deaths(self, node: object) -> None:
        """Count the end of a node for the jobs that had begun there."""
        for attempt in self._attempts.values():
            if attempt.node is not None and attempt.node == node:
                attempt.node = None
                attempt.deaths += 1
                self._announce()

    def _remember(self) -> None:
        """Note which releases are offered until now: who did so may come back."""
        self._seen |= dict.fromkeys(self.nodes.releases, anyio.current_time())

    def _announce(self) -> None:
        self._changed.set()
        self._changed = anyio.Event()
        self.on_change()


def _nothing() -> None:
    """Do nothing; no node is given it."""
