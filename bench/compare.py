#!/usr/bin/env python3
"""Compare this project's server with SystemTap's own one, on the same requests, in one run.

The real client, and a client of TLS alone, ask both servers in turn; a local stap is the baseline. All that
is made is in one temporary directory, and gone at the end.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import socket
import statistics
import sys
import tempfile
import time
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NoReturn

import attrs

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from kit.client import Answer, frame, request, trusting
from kit.real import Installation, Ran, Stap, Unavailable, serving, serving_original

LOCAL, ORIGINAL, OURS = "local stap", "stap-serverd", "stapsrv"
_SHOWN_BYTES = 64
_ATTEMPTS = 6
_BACK_OFF_S = 1.0
"""Both as the real client has them, which is what the servers are compared for."""
_ANSWER_S = 300.0
"""Sixteen compiles one after the other take a minute on an idle machine."""
_ANY_SERVER = trusting()


@attrs.frozen
class Sample:
    """What was measured of one thing.

    Attributes:
        title: what was done.
        unit: of the values: ``s`` each time, or ``requests/s``.
        values: by whom it was done.
    """

    title: str
    unit: str
    values: Mapping[str, list[float]]

    def median(self, who: str) -> float | None:
        values = self.values.get(who)
        return statistics.median(values) if values else None

    @property
    def count(self) -> int:
        return max(map(len, self.values.values()))

    def cell(self, who: str) -> str:
        values = self.values.get(who)
        if not values:
            return "-"
        return f"{statistics.median(values):.2f} ({min(values):.2f}-{max(values):.2f})"

    @property
    def speed(self) -> float | None:
        """How many times as fast as the original this project's server is, by the medians."""
        ours, original = self.median(OURS), self.median(ORIGINAL)
        if not ours or not original:
            return None
        return original / ours if self.unit == "s" else ours / original


class Contest:
    """Everything that is compared, on a user of its own.

    Args:
        stap: the user, whose stap has compiled before.
        ports: where the servers are, by their names.
        deadline: on the monotonic clock; no measurement begins after it.
    """

    def __init__(self, stap: Stap, ports: Mapping[str, int], *, deadline: float) -> None:
        self._stap = stap
        self._ports = ports
        self._deadline = deadline
        self._scripts = 0

    def new_scripts(self, count: int) -> Sample:
        """Compile scripts that nobody has compiled before."""
        return Sample(
            "new script", "s", self._alternate(count, lambda who: self._compile(who, self._script()))
        )

    def repeated_script(self, count: int) -> Sample:
        """Compile a script that stap has in its cache."""
        script = self._script()
        self._compile(LOCAL, script)
        return Sample("repeated script", "s", self._alternate(count, lambda who: self._compile(who, script)))

    def throughput(self, clients: int, seconds: float, rounds: int) -> Sample:
        """Ask for a script in stap's cache from many threads, without the real client's own work."""
        script = self._script()
        self._compile(LOCAL, script)
        payload = frame(request("-p4", "-e", script, release=self._stap.installation.release))

        def measure(who: str) -> float:
            return rate(who, self._ports[who], payload, clients, seconds)

        values = self._alternate(rounds, measure, of=tuple(self._ports))
        return Sample(f"repeated script, TLS only, {clients} clients", "requests/s", values)

    def _alternate(
        self, count: int, measure: Callable[[str], float], of: Sequence[str] = (LOCAL, ORIGINAL, OURS)
    ) -> dict[str, list[float]]:
        """Measure all in turn, ``count`` times, each time in the other direction."""
        values: dict[str, list[float]] = {who: [] for who in of}
        for number in range(count):
            if time.monotonic() > self._deadline:
                break
            for who in of if number % 2 else reversed(of):
                values[who].append(measure(who))
        return values

    def _compile(self, who: str, script: str) -> float:
        began = time.monotonic()
        arguments = ("-p4", "-e", script)
        ran = self._stap.local(*arguments) if who == LOCAL else self._stap.via(self._ports[who], *arguments)
        took = time.monotonic() - began
        check(who, ran)
        return took

    def _script(self) -> str:
        self._scripts += 1
        return (
            f"probe begin {{ println({self._scripts}) exit() }} probe timer.s({self._scripts}) {{ exit() }}"
        )


def check(who: str, ran: Ran) -> None:
    """Stop when a compile has failed: its time would mean nothing."""
    if ran.status != 0:
        sys.exit(f"{who} has failed:\n{ran.stderr}")


class NoAnswer(Exception):
    """What a server sent is no answer; says whose it was, and what the bytes are."""

    def __init__(self, who: str, data: bytes) -> None:
        shown = data.hex(" ") if len(data) <= 2 * _SHOWN_BYTES else _ends(data)
        super().__init__(f"{who} sent {len(data)} bytes that are no answer: {shown or 'nothing'}")


def rate(who: str, port: int, payload: bytes, clients: int, seconds: float) -> float:
    """Return how many requests a second are answered to ``clients`` that ask all the time.

    One that is not answered is reported, and does not count; where the server itself is gone, this program
    ends. So that the clients cost little, only both ends of an answer are read while the clock runs; of
    those of one length one is read afterwards.
    """
    began = time.monotonic()
    seen: dict[int, bytes] = {}

    def ask(_number: int) -> int:
        count = 0
        while time.monotonic() < began + seconds:
            try:
                answer = fetch(who, port, payload)
            except ConnectionRefusedError:
                sys.exit(f"{who} has crashed: nobody listens there any more, and there is no rate to tell of")
            except (OSError, NoAnswer) as exc:
                progress(f"{who} left a request without an answer: {exc}")
            else:
                seen[len(answer)] = answer
                count += 1
        return count

    with ThreadPoolExecutor(clients) as threads:
        total = sum(threads.map(ask, range(clients)))
    elapsed = time.monotonic() - began
    for answer in seen.values():
        if Answer.of(answer).rc != 0:
            sys.exit(f"{who} has failed:\n{Answer.of(answer).stderr}")
    return total / elapsed


def fetch(who: str, port: int, payload: bytes) -> bytes:
    """Send one request and return the zip that answers it.

    A server that resets the connection before the handshake is busy; as the real client does, this one comes
    back after a second, five times at most.

    Raises:
        NoAnswer: the server sent something else.
    """
    for _ in range(_ATTEMPTS - 1):
        try:
            return _fetch_once(who, port, payload)
        except ConnectionResetError:
            time.sleep(_BACK_OFF_S)
    return _fetch_once(who, port, payload)


def _fetch_once(who: str, port: int, payload: bytes) -> bytes:
    answer = bytearray()
    with (
        socket.create_connection(("127.0.0.1", port), timeout=_ANSWER_S) as connection,
        _ANY_SERVER.wrap_socket(connection) as tls,
    ):
        tls.sendall(payload)
        while data := tls.recv(1 << 16):
            answer += data
    # A zip begins with its first entry and ends with a record of 22 bytes (APPNOTE 4.3.7, 4.3.16).
    if not answer.startswith(b"PK\3\4") or answer[-22:-18] != b"PK\5\6":
        raise NoAnswer(who, bytes(answer))
    return bytes(answer)


def exchange(who: str, port: int, payload: bytes) -> Answer:
    """Send one request and return its answer, unpacked."""
    answer = fetch(who, port, payload)
    try:
        return Answer.of(answer)
    except (AssertionError, KeyError, zipfile.BadZipFile) as exc:
        raise NoAnswer(who, answer) from exc


def _ends(data: bytes) -> str:
    return f"{data[:_SHOWN_BYTES].hex(' ')} … {data[-_SHOWN_BYTES:].hex(' ')}"


def table(samples: Sequence[Sample]) -> Iterator[str]:
    """Yield the lines of a table: medians, least to most, and how the servers compare."""
    titles = [f"{sample.title} ({sample.unit}, {sample.count}x)" for sample in samples]
    width = max(map(len, titles))
    yield (
        "".ljust(width)
        + "".join(who.rjust(20) for who in (LOCAL, ORIGINAL, OURS))
        + "times as fast".rjust(15)
    )
    for title, sample in zip(titles, samples, strict=True):
        cells = "".join(sample.cell(who).rjust(20) for who in (LOCAL, ORIGINAL, OURS))
        yield f"{title:{width}}{cells}{'-' if sample.speed is None else f'{sample.speed:.2f}':>15}"


def progress(text: str) -> None:
    sys.stderr.write(f"{text}\n")


def run(options: argparse.Namespace, installation: Installation) -> list[Sample]:
    """Start both servers, measure, and end them."""
    began = time.monotonic()
    with contextlib.ExitStack() as cleanup:
        place = Path(cleanup.enter_context(tempfile.TemporaryDirectory(prefix="stapsrv-bench.")))
        stap = Stap(installation=installation, directory=place / "systemtap", place=place)
        progress(f"warming the cache for {installation.release}")
        check(LOCAL, stap.local("-p4", "-e", "probe begin { exit() }"))
        ours = cleanup.enter_context(serving(stap, backend=options.backend))
        original = cleanup.enter_context(serving_original(stap))
        ports = {ORIGINAL: original.port, OURS: ours.port}
        contest = Contest(stap, ports, deadline=began + options.limit)
        samples = []
        for title, measure in (
            ("new scripts", lambda: contest.new_scripts(options.new)),
            ("a repeated script", lambda: contest.repeated_script(options.repeated)),
            ("throughput", lambda: contest.throughput(options.clients, options.seconds, options.rounds)),
        ):
            progress(f"measuring {title}")
            samples.append(measure())
        return samples


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    add = parser.add_argument
    add("--new", type=int, default=8, metavar="N", help="new scripts for each")
    add("--repeated", type=int, default=20, metavar="N", help="repetitions of a script for each")
    add("--clients", type=int, default=8, metavar="N", help="clients that ask at the same time")
    add("--seconds", type=float, default=5.0, metavar="S", help="length of a round with these clients")
    add("--rounds", type=int, default=3, metavar="N", help="such rounds for each server")
    add(
        "--limit", type=float, default=240.0, metavar="S", help="begin no further measurement after this time"
    )
    add("--backend", choices=("asyncio", "trio"), default="asyncio", help="this project's event loop")
    add("--json", action="store_true", help="print all values as JSON")
    options = parser.parse_args()

    if os.geteuid() == 0:
        parser.error("compile servers do not run as root; try: packaging/as-stap-server bench/compare.py")
    try:
        installation = Installation.find(os.environ)
    except Unavailable as exc:
        parser.error(str(exc))
    signal.signal(signal.SIGTERM, end)

    samples = run(options, installation)
    if options.json:
        print(json.dumps({"release": installation.release, "samples": [attrs.asdict(s) for s in samples]}))
    else:
        print(*table(samples), sep="\n")


def end(number: int, _frame: object) -> NoReturn:
    """Leave by way of all clean-up."""
    sys.exit(128 + number)


if __name__ == "__main__":
    main()
