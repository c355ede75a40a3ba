"""A bounded load of compile requests, and how long each took."""

from __future__ import annotations

import math
import secrets
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import attrs

from stapsrv.client.job import Job
from stapsrv.client.response import read_response
from stapsrv.client.server import Server
from stapsrv.errors import StapsrvError
from stapsrv.text import printable

MAX_REQUESTS = 10_000
MAX_CLIENTS = 256


@attrs.frozen(kw_only=True)
class LoadResult:
    """The result of a load.

    ``seconds`` has the time of each request that got its module, sorted; ``elapsed_s`` is that of all
    together. ``failure`` is the first reason for one of the ``failed``.
    """

    clients: int
    seconds: tuple[float, ...]
    failed: int
    elapsed_s: float
    failure: str | None = None

    @property
    def per_second(self) -> float:
        """The rate of answered requests, in requests per second."""
        return len(self.seconds) / self.elapsed_s if self.elapsed_s else 0.0

    def percentile(self, percent: float) -> float:
        """Return the time within which so many percent were answered; not a number if none was."""
        if not self.seconds:
            return math.nan
        return self.seconds[max(0, math.ceil(len(self.seconds) * percent / 100) - 1)]


def measure(
    server: Server, job: Job, *, clients: int, requests: int, is_new: bool, deadline_s: float
) -> LoadResult:
    """Send ``requests`` from ``clients`` threads, each one after the other; begin none after ``deadline_s``.

    With ``is_new`` each script differs from all that a server has seen, so that no cache has it.

    Raises:
        ClientError: the job cannot be packed.
    """
    last_pass = job.pack()[1]
    numbers = iter(range(min(requests, MAX_REQUESTS)))
    taking = threading.Lock()
    began = time.monotonic()
    times: list[float] = []
    failures: list[str] = []

    def send() -> None:
        while time.monotonic() - began < deadline_s:
            with taking:
                if next(numbers, None) is None:
                    return
            request = (unlike(job) if is_new else job).pack()[0]
            sent = time.monotonic()
            try:
                result = read_response(server.send(request), last_pass=last_pass)
            except StapsrvError as exc:
                failures.append(str(exc))
                continue
            if result.status:
                failures.append(_reason(result.stderr))
            else:
                times.append(time.monotonic() - sent)

    count = min(clients, MAX_CLIENTS)
    with ThreadPoolExecutor(max_workers=count) as pool:
        for future in [pool.submit(send) for _ in range(count)]:
            future.result()
    return LoadResult(
        clients=count,
        seconds=tuple(sorted(times)),
        failed=len(failures),
        elapsed_s=time.monotonic() - began,
        failure=failures[0] if failures else None,
    )


def unlike(job: Job) -> Job:
    """Return a job whose script, a text, prints something that no other one does."""
    text = job.script if isinstance(job.script, str) else ""
    return attrs.evolve(job, script=f'{text}\nprobe end {{ println("{secrets.token_hex(8)}") }}\n')


def _reason(stderr: str) -> str:
    lines: Sequence[str] = [line for line in stderr.splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()] or lines[:1] or ["the server made no module"]
    return printable(errors[0].strip())
