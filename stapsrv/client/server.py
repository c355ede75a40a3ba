"""The Python API: one compile server, and what it makes of scripts."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import attrs

from stapsrv.client import blocking
from stapsrv.client.address import Address
from stapsrv.client.exchange import ANSWER_S, OnStage, exchange
from stapsrv.client.job import Job
from stapsrv.client.known_servers import KnownServers, default_path
from stapsrv.client.response import Result, read_response
from stapsrv.client.trust import Certificates, Trust
from stapsrv.errors import StapsrvError

if TYPE_CHECKING:
    from stapsrv.client.exchange import Exchange

DEFAULT_CONCURRENCY = 4
"""Of a batch; SystemTap's own server has a worker for each processor."""
_PREFIX = "SHA256:"


@attrs.frozen
class Outcome:
    """The outcome of one job of a batch: a result, or the error."""

    job: Job
    result: Result | None = None
    error: StapsrvError | None = None


OnOutcome: TypeAlias = Callable[[Outcome, int, int], None]
"""Is called with each outcome as it comes, the number of those so far, and that of all."""


def _address(value: str | Address) -> Address:
    return value if isinstance(value, Address) else Address.parse(value)


def _trust(value: str | Path | Trust | None) -> Trust:
    """Return what decides; a fingerprint, a path of certificates, or None for the known servers."""
    if value is None:
        return KnownServers(default_path(os.environ))
    if isinstance(value, str) and value.upper().startswith(_PREFIX):
        return Certificates.by_fingerprint(value)
    if isinstance(value, str | Path):
        return Certificates.read(Path(value))
    return value


@attrs.frozen
class Server:
    """A compile server: ``Server("host:5001", trust="SHA256:…")``.

    It holds no connection: each compile makes one of its own, so it may be used by many threads and tasks.

    Args:
        address: ``HOST:PORT``, with an IPv6 address in brackets.
        trust: how its certificate is recognised: ``SHA256:`` and its fingerprint, the path of a PEM file or
            of an NSS database directory, or an object with :class:`stapsrv.client.Trust`'s method; None for
            the servers that this user knows already (``~/.config/stapsrv/known_servers``).
        timeout_s: for one compile, queueing included.

    Raises:
        ClientError: the address is none, or what is to be trusted cannot be read.
    """

    address: Address = attrs.field(converter=_address)
    trust: Trust = attrs.field(default=None, converter=_trust, kw_only=True)
    timeout_s: float = attrs.field(default=ANSWER_S, kw_only=True)

    def compile(
        self,
        script: str | Path | None = None,
        *,
        release: str | None = None,
        arch: str | None = None,
        options: Sequence[str] = (),
        arguments: Sequence[str] = (),
        moks: Sequence[str] = (),
        on_stage: OnStage | None = None,
    ) -> Result:
        """Compile a script and wait for the result; see :class:`Job` for the arguments.

        ``on_stage`` is called with each stage of the request. A script that is refused or does not compile
        is no error: the result's ``status`` is 1, and its ``stderr`` says why.

        Raises:
            ClientError: a file or an option cannot be used; nothing was sent.
            ServerUnavailable: there is no answer.
            ServerNotTrusted: its certificate is not the one that is trusted; nothing was sent.
            ProtocolError: the answer is none of a compile server.
        """
        job = Job(script=script, release=release, arch=arch, options=options, arguments=arguments, moks=moks)
        return self.run(job, on_stage=on_stage)

    async def compile_async(
        self,
        script: str | Path | None = None,
        *,
        release: str | None = None,
        arch: str | None = None,
        options: Sequence[str] = (),
        arguments: Sequence[str] = (),
        moks: Sequence[str] = (),
        on_stage: OnStage | None = None,
    ) -> Result:
        """Do what :meth:`compile` does, on asyncio or Trio; needs anyio.

        Cancellation: the connection is closed, at which the server ends the compile.
        """
        job = Job(script=script, release=release, arch=arch, options=options, arguments=arguments, moks=moks)
        return await self.run_async(job, on_stage=on_stage)

    def run(self, job: Job, *, on_stage: OnStage | None = None) -> Result:
        """Compile what a job says; see :meth:`compile`."""
        request, last_pass = job.pack()
        return read_response(self.send(request, on_stage=on_stage), last_pass=last_pass)

    async def run_async(self, job: Job, *, on_stage: OnStage | None = None) -> Result:
        """Compile what a job says; see :meth:`compile_async`."""
        # Late: all else here does without anyio.
        from anyio import to_thread  # noqa: PLC0415

        from stapsrv.client import waiting  # noqa: PLC0415

        request, last_pass = await to_thread.run_sync(job.pack)
        response = await waiting.run(self._begin(request, on_stage))
        return await to_thread.run_sync(lambda: read_response(response, last_pass=last_pass))

    def compile_many(
        self,
        jobs: Iterable[Job],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        on_outcome: OnOutcome | None = None,
    ) -> list[Outcome]:
        """Compile a batch, at most ``concurrency`` jobs at a time; return their outcomes, in the jobs' order.

        ``on_outcome`` is called in the caller's thread. A job that fails does not end the others.
        """
        from concurrent.futures import as_completed  # noqa: PLC0415 - like the pool, for batches alone

        todo = list(jobs)
        with ThreadPoolExecutor(max_workers=concurrency) as pool:
            futures = [pool.submit(self._outcome, job) for job in todo]
            try:
                for number, future in enumerate(as_completed(futures), 1):
                    if on_outcome is not None:
                        on_outcome(future.result(), number, len(todo))
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        return [future.result() for future in futures]

    async def compile_many_async(
        self,
        jobs: Iterable[Job],
        *,
        concurrency: int = DEFAULT_CONCURRENCY,
        on_outcome: OnOutcome | None = None,
    ) -> list[Outcome]:
        """Do what :meth:`compile_many` does, on asyncio or Trio; ``on_outcome`` is called in the loop."""
        import anyio  # noqa: PLC0415 - see run_async

        todo = list(jobs)
        outcomes: dict[int, Outcome] = {}
        limiter = anyio.Semaphore(concurrency)

        async def run(number: int, job: Job) -> None:
            async with limiter:
                try:
                    outcome = Outcome(job, result=await self.run_async(job))
                except StapsrvError as exc:
                    outcome = Outcome(job, error=exc)
            outcomes[number] = outcome
            if on_outcome is not None:
                on_outcome(outcome, len(outcomes), len(todo))

        async with anyio.create_task_group() as tasks:
            for number, job in enumerate(todo):
                tasks.start_soon(run, number, job)
        return [outcomes[number] for number in range(len(todo))]

    def send(self, request: bytes, *, on_stage: OnStage | None = None) -> bytes:
        """Send a request's zip, and return the zip that is the response; raises what :meth:`compile` does."""
        return blocking.run(self._begin(request, on_stage))

    def _begin(self, request: bytes, on_stage: OnStage | None) -> Exchange:
        return exchange(self.address, request, self.trust, timeout_s=self.timeout_s, on_stage=on_stage)

    def _outcome(self, job: Job) -> Outcome:
        try:
            return Outcome(job, result=self.run(job))
        except StapsrvError as exc:
            return Outcome(job, error=exc)
