"""The loads that ``performance.py`` measures: each returns what came of it, beside what is to be reached."""

from __future__ import annotations

import contextlib
import importlib.util
import itertools
import os
import re
import socket
import ssl
import statistics
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import anyio
import attrs
import structlog
from compare import LOCAL, ORIGINAL, OURS, check, exchange, fetch, progress, rate
from servers import OURS as OUR_COMMAND
from servers import fleet

sys.path.append(str(Path(__file__).resolve().parents[1] / "tests"))

from kit.client import frame, request
from kit.footprint import descendants
from kit.real import Installation, Server, Stap, serving, serving_original

from stapsrv.identity.certificate import load_or_create_identity

_EXACT_ROUNDS = 20
"""Of what takes some milliseconds."""
_NEW_ROUNDS = 6
"""Of new scripts, which take seconds and differ by tenths."""
_SHARE_ROUNDS = 60
"""Of new scripts where some milliseconds are looked for."""
_BURST_ROUNDS = 12
"""Of eight new scripts at once, whose times differ by a tenth."""
_PREPARED_ROUNDS = 6
_COLD_ROUNDS = 3
_PLANS = 4
"""A script's Makefile, its beginning and what stap is to find out for it may all be new."""
_FOUND = r"Found out .* of kernel release|are built by make:"
_REQUEST = r"Request from .* for .*"
_EXAMPLES = [
    Path("/usr/share/systemtap/examples", name)
    for name in ("network/tcp_connections.stp", "io/iostats.stp", "process/syscalls_by_proc.stp")
]
"""They need no debugging information. Of the last two the compiler makes more code than it reads headers."""
_IDLE_S = 30.0
_IDLE_SERVERS = 20
_IDLE_CONNECTIONS = 200
_BESIDE = "stapsrv beside idle connections"
_UVLOOP = "stapsrv on uvloop"
_ON_DISK = "stapsrv on disk"
_SETTLE_S = 90.0
"""For what follows a start, a first compile for the kernel release included."""
_WARM_S = 600.0
_IDLE_PORT = 7760
_TICK_S = 1 / os.sysconf("SC_CLK_TCK")
"""What the kernel shows of a process's time at best."""

Values = Mapping[str, list[float]]


@attrs.frozen
class Verdict:
    """A line of the table.

    Attributes:
        load: what was asked for.
        original: what the original did.
        ours: what this project's server did.
        measured: what is to be compared with the aim.
        target: the aim.
        reached: whether it is reached; None where nothing was aimed at.
    """

    load: str
    original: str
    ours: str
    measured: str
    target: str
    reached: bool | None


class Bench:
    """Both servers, each with certificates, a compile cache and a log of its own, and the real stap.

    Args:
        installation: what this host has.
        place: a directory for everything.
        rounds: how often to measure, at least.
        backend: of this project's server.
    """

    def __init__(self, installation: Installation, place: Path, *, rounds: int, backend: str) -> None:
        self.installation = installation
        self.rounds = rounds
        self.backend = backend
        self._place = place
        self._scripts = itertools.count(1)
        self.numbers = itertools.count(1)
        self._users = itertools.count(1)
        self._warm: Stap | None = None
        self._ours: Server | None = None

    def user(self) -> Stap:
        """Return somebody who has compiled nothing yet."""
        place = self._place / f"user{next(self._users)}"
        place.mkdir()
        return Stap(installation=self.installation, directory=place / "systemtap", place=place)

    @property
    def warm(self) -> Stap:
        """The user of most loads, whose stap knows the kernel release."""
        if self._warm is None:
            progress(f"  compiling once for {self.installation.release}")
            self._warm = self.user()
            check(LOCAL, self._warm.local("-p4", "-e", self.script()))
            progress("  and for a plan")
            with self.serving(user=self._warm) as server:
                fetch(OURS, server.port, self.payload(self.script()))
                server.log.wait(r"Found out the plan of kernel release", timeout_s=_WARM_S)
        return self._warm

    def script(self) -> str:
        """Return a script that nobody has compiled before, of the same size as all others."""
        number = f"{next(self._scripts):06}"
        return f'probe begin {{ println("{number}") exit() }} probe timer.s(7) {{ exit() }}'

    def payload(self, script: str, passes: str = "-p4") -> bytes:
        """Return what a raw client sends for a script."""
        return frame(request(passes, "-e", script, release=self.installation.release))

    def serving(
        self, *options: object, user: Stap | None = None, backend: str | None = None
    ) -> AbstractContextManager[Server]:
        """Serve a user, the warm one by default, with this project's server, as it is by itself."""
        # Without TMPDIR it chooses where it compiles.
        options = options if "--prepared=no" in options else (*options, "--prepared=yes")
        return serving(user or self.warm, *options, backend=backend or self.backend, TMPDIR=None)

    @contextlib.contextmanager
    def both(self, *options: object) -> Iterator[dict[str, int]]:
        """Serve the warm user with both servers; yields their ports by their names."""
        # In this order: ours has the client trust the certificate, and the original takes it as it is.
        with (
            self.serving(*options) as ours,
            serving_original(self.warm) as original,
        ):
            self._ours = ours
            yield {ORIGINAL: original.port, OURS: ours.port}

    def repeated_script(self) -> str:
        """Return a script that both servers have compiled, as they are when they have run for a while.

        After its start this project's server looks at all that results depend on before it keeps one. So it
        is asked for one script after the other until it answers the same one from what it knows.
        """
        assert self._ours is not None
        deadline = time.monotonic() + _SETTLE_S
        while time.monotonic() < deadline:
            script = self.script()
            for _ in range(2):
                fetch(OURS, self._ours.port, self.payload(script))
            self._ours.log.wait(r"Request from .* for .*")
            if any(re.search(r"^Request from .*: answered rc=0, hit", line) for line in self._ours.log.lines):
                return script
        progress(f"  {OURS} keeps no result; see its log")
        return self.script()

    def alternate(self, count: int, measure: Callable[[str], float], of: Sequence[str]) -> Values:
        """Measure all in turn, ``count`` times, each time in the other direction."""
        values: dict[str, list[float]] = {who: [] for who in of}
        for number in range(count):
            for who in of if number % 2 else reversed(of):
                values[who].append(measure(who))
        return values

    def real(self, who: str, port: int, script: str) -> float:
        """Return how long the real client takes with a script (seconds)."""
        return timed(lambda: check(who, self.warm.via(f"[::1]:{port}", "-p4", "-e", script)))

    def ask(self, who: str, port: int | None, script: str, passes: str = "-p4") -> float:
        """Return how long a raw client takes with a script, or without a port a local stap (seconds)."""
        if port is None:
            return timed(lambda: check(who, self.warm.local(passes, "-e", script)))
        return together(who, port, [self.payload(script, passes)])


def repeated_real(bench: Bench) -> list[Verdict]:
    """Ask with the real client for a script that was compiled before, of a server that need not work, too."""
    with bench.both() as ports:
        script = bench.repeated_script()
        answer = fetch(OURS, ports[OURS], bench.payload(script))
        with replaying(bench.warm, answer) as floor:
            places = {**ports, "floor": floor}
            for who, port in places.items():
                bench.real(who, port, script)
            values = bench.alternate(
                max(bench.rounds, _EXACT_ROUNDS),
                lambda who: bench.real(who, places[who], script),
                tuple(places),
            )
    ratio = median(values[OURS]) / median(values[ORIGINAL])
    least = median(values["floor"]) / median(values[ORIGINAL])
    return [
        Verdict(
            "repeated script, one real client",
            spread(values[ORIGINAL]),
            spread(values[OURS]),
            f"{ratio:.3f} = 1/{1 / ratio:.1f}",
            "at most 1/8",
            ratio <= 1 / 8,
        ),
        Verdict(
            "the same client, where the answer lies ready",
            "",
            spread(values["floor"]),
            f"{least:.3f} = 1/{1 / least:.1f}",
            "(no server can do better)",
            None,
        ),
    ]


def repeated_raw(bench: Bench) -> list[Verdict]:
    """Ask with eight raw clients, as fast as they are answered, for a script that was compiled before."""
    with bench.both() as ports, contextlib.ExitStack() as more:
        payload = bench.payload(bench.repeated_script())
        if bench.backend == "asyncio" and importlib.util.find_spec("uvloop") is not None:
            ports[_UVLOOP] = more.enter_context(bench.serving(backend="uvloop")).port
        for who, port in ports.items():
            fetch(who, port, payload)
        values = bench.alternate(
            bench.rounds, lambda who: rate(who, ports[who], payload, 8, 5.0), tuple(ports)
        )
    times = median(values[OURS]) / median(values[ORIGINAL])
    verdicts = [
        Verdict(
            "repeated script, 8 raw clients, requests per second",
            spread(values[ORIGINAL], unit="/s", digits=1),
            spread(values[OURS], unit="/s", digits=1),
            f"{times:.1f} times",
            "at least 20 times",
            times >= 20,
        )
    ]
    if _UVLOOP in values:
        verdicts.append(
            Verdict(
                "the same, on uvloop",
                "",
                spread(values[_UVLOOP], unit="/s", digits=1),
                f"{median(values[_UVLOOP]) / median(values[OURS]):.2f} times asyncio",
                "(used where it is installed)",
                None,
            )
        )
    return verdicts


def equal_at_once(bench: Bench) -> list[Verdict]:
    """Let sixteen raw clients ask for the same new script at once."""
    with bench.both() as ports:
        single = bench.alternate(
            bench.rounds,
            lambda who: together(who, ports[who], [bench.payload(bench.script())]),
            tuple(ports),
        )
        many = bench.alternate(
            bench.rounds,
            lambda who: together(who, ports[who], [bench.payload(bench.script())] * 16),
            tuple(ports),
        )
    ratio = {who: median(many[who]) / median(single[who]) for who in ports}
    return [
        Verdict(
            "16 equal new requests at once",
            f"{spread(many[ORIGINAL])}, {ratio[ORIGINAL]:.1f} times one",
            f"{spread(many[OURS])}, {ratio[OURS]:.1f} times one",
            f"{ratio[OURS]:.2f} times one",
            "at most 1.3 times one",
            ratio[OURS] <= 1.3,
        )
    ]


def share(bench: Bench) -> list[Verdict]:
    """Find what a server adds to a plain local stap.

    New scripts differ by more than that among themselves. So the same is also measured where stap compiles
    nothing: up to pass 2. Modules are built by make, as local stap builds them.
    """
    with bench.both("--prepared=no") as ports:
        values = bench.alternate(
            max(bench.rounds, _SHARE_ROUNDS),
            lambda who: bench.ask(who, ports.get(who), bench.script()),
            (LOCAL, *ports),
        )
        short = bench.alternate(
            max(bench.rounds, _EXACT_ROUNDS),
            lambda who: bench.ask(who, ports.get(who), bench.script(), "-p2"),
            (LOCAL, *ports),
        )
    return [
        _share("new script, built by make, one client", values),
        _share("the same up to pass 2", short),
    ]


def _share(load: str, values: Values) -> Verdict:
    local = median(values[LOCAL])
    added = {who: 1000 * (median(values[who]) - local) for who in (ORIGINAL, OURS)}
    return Verdict(
        f"{load}, beside {spread(values[LOCAL])} of local stap",
        f"{spread(values[ORIGINAL])}: {added[ORIGINAL]:+.0f} ms",
        f"{spread(values[OURS])}: {added[OURS]:+.0f} ms",
        f"{added[OURS]:+.0f} ms",
        "at most +30 ms",
        added[OURS] <= 30,
    )


def prepared(bench: Bench) -> list[Verdict]:
    """Ask with the real client for new scripts, tiny ones and some of SystemTap's, beside local stap.

    What that saves of the processor's time, bench/identical.py tells.
    """
    kinds: dict[str, tuple[Callable[[], str], float]] = {"tiny script": (bench.script, 0.4)}
    for path in _EXAMPLES:
        number = partial("{}\nprobe end {{ println({}) }}\n".format, path.read_text())
        kinds[f"script, `{path.stem}`"] = (lambda number=number: number(next(bench.numbers)), 0.5)
    verdicts = []
    with bench.serving() as ours:
        for kind, (script, most) in kinds.items():

            def once(who: str, script: Callable[[], str] = script) -> float:
                if who == LOCAL:
                    return timed(lambda: check(who, bench.warm.local("-p4", "-e", script())))
                return bench.real(who, ours.port, script())

            if not prepare(ours, partial(once, OURS)):
                progress(f"  there is no plan for a {kind}")
            values = bench.alternate(max(bench.rounds, _PREPARED_ROUNDS), once, (LOCAL, OURS))
            ratio = median(values[OURS]) / median(values[LOCAL])
            verdicts.append(
                Verdict(
                    f"new {kind}, real client, beside {spread(values[LOCAL])} of local stap",
                    "",
                    spread(values[OURS]),
                    f"{ratio:.2f} times",
                    f"at most {most}",
                    ratio <= most,
                )
            )
    return verdicts


def memory(bench: Bench) -> list[Verdict]:
    """Ask for new scripts of a server that compiles where it likes to, in memory, and of one on disk."""
    with bench.serving() as ours, bench.serving("--temp-in-memory", "no") as on_disk:
        in_memory = ours.log.count("^Requests are compiled in memory") > 0
        ports = {OURS: ours.port, _ON_DISK: on_disk.port}
        values = bench.alternate(
            max(bench.rounds, _EXACT_ROUNDS),
            lambda who: bench.ask(who, ports[who], bench.script()),
            tuple(ports),
        )
    ours_s, on_disk_s = (median(values[who]) for who in ports)
    return [
        Verdict(
            "new script, temporary directories in memory" if in_memory else "the same twice, on disk",
            "",
            f"{spread(values[OURS])}; on disk {spread(values[_ON_DISK])}",
            f"{ours_s / on_disk_s:.2f} times disk",
            "(they are there, where there is room)",
            None,
        )
    ]


def different_at_once(bench: Bench) -> list[Verdict]:
    """Let eight raw clients ask for eight new scripts at once; then with 200 idle connections beside them."""

    def burst(who: str) -> float:
        return together(who, ports[who], [bench.payload(bench.script()) for _ in range(8)])

    with (
        bench.both() as ports,
        # Left alone, it closes such connections after ten seconds.
        bench.serving("--handshake-timeout", "1h") as patient,
        idle_connections(patient.port, _IDLE_CONNECTIONS),
    ):
        ports[_BESIDE] = patient.port
        values = bench.alternate(max(bench.rounds, _BURST_ROUNDS), burst, tuple(ports))
    ratio, ratio_beside = (median(values[who]) / median(values[ORIGINAL]) for who in (OURS, _BESIDE))
    return [
        Verdict(
            "8 different new scripts at once",
            spread(values[ORIGINAL]),
            spread(values[OURS]),
            f"{ratio:.2f} times",
            "at most 0.45 times",
            ratio <= 0.45,
        ),
        Verdict(
            f"the same, beside {_IDLE_CONNECTIONS} idle connections",
            "answers nobody",
            spread(values[_BESIDE]),
            f"{ratio_beside:.2f} times",
            "at most 1.0 times",
            ratio_beside <= 1.0,
        ),
    ]


def cold(bench: Bench) -> list[Verdict]:
    """Ask for the first script of a user who has never compiled, of a server that starts for that."""
    values: dict[str, list[float]] = {LOCAL: [], OURS: [], ORIGINAL: []}
    for who in list(values) * _COLD_ROUNDS:
        user = bench.user()
        if who == LOCAL:
            values[who].append(timed(lambda user=user: check(LOCAL, user.local("-p4", "-e", bench.script()))))
            continue
        served = bench.serving("--warmup", "yes", user=user) if who == OURS else serving_original(user)
        with served as server:
            values[who].append(together(who, server.port, [bench.payload(bench.script())]))
    ratio = median(values[OURS]) / median(values[LOCAL])
    return [
        Verdict(
            f"first request of all, right after the start, beside {spread(values[LOCAL])} of local stap",
            spread(values[ORIGINAL]),
            spread(values[OURS]),
            f"{ratio:.2f} times",
            "at most 0.5 times",
            ratio <= 0.5,
        )
    ]


def first(bench: Bench) -> list[Verdict]:
    """Start a server for a user who has never compiled, let it warm up, and ask for new scripts."""
    at_first: dict[str, list[float]] = {ORIGINAL: [], OURS: []}
    later: dict[str, list[float]] = {ORIGINAL: [], OURS: []}
    for who in (OURS, ORIGINAL):
        user = bench.user()
        served = bench.serving("--warmup", "yes", user=user) if who == OURS else serving_original(user)
        with served as server:
            if who == OURS:
                wait_warm(server)
            at_first[who].append(together(who, server.port, [bench.payload(bench.script())]))
            later[who] += [
                together(who, server.port, [bench.payload(bench.script())])
                for _ in range(max(bench.rounds, _NEW_ROUNDS))
            ]
    ratio = {who: median(at_first[who]) / median(later[who]) for who in at_first}
    return [
        Verdict(
            "first request for a release, after the start and warm-up",
            f"{at_first[ORIGINAL][0]:.2f} s, {ratio[ORIGINAL]:.1f} times a later one",
            f"{at_first[OURS][0]:.2f} s, {ratio[OURS]:.1f} times a later one",
            f"{ratio[OURS]:.2f} times a later one",
            "at most 1.3 times a later one",
            ratio[OURS] <= 1.3,
        )
    ]


def idle(bench: Bench) -> list[Verdict]:
    """Let a supervisor with twenty servers do nothing for half a minute, and see what it costs."""
    place = bench.user().place
    with fleet(
        OUR_COMMAND,
        place / "fleet",
        release=bench.installation.release,
        count=_IDLE_SERVERS,
        first_port=_IDLE_PORT,
        runtime=bench.installation.runtime,
    ) as one:
        one.start()
        wait_quiet(one.processes())
        before = cpu_s(one.processes())
        # Only a clock shows the end of half a minute.
        time.sleep(_IDLE_S)
        spent = cpu_s(one.processes()) - before
        one.call("stop")
    return [
        Verdict(
            f"idle supervisor with {_IDLE_SERVERS} servers, {_IDLE_S:g} s",
            "",
            f"{1000 * spent:.1f} ms of CPU",
            f"{100 * spent / _IDLE_S:.3f} %",
            f"less than the kernel's tick, {1000 * _TICK_S:g} ms",
            spent < _TICK_S,
        )
    ]


LOADS: Mapping[str, Callable[[Bench], list[Verdict]]] = {
    "repeated-real": repeated_real,
    "repeated-raw": repeated_raw,
    "equal": equal_at_once,
    "share": share,
    "prepared": prepared,
    "memory": memory,
    "different": different_at_once,
    "first": first,
    "cold": cold,
    "idle": idle,
}


def together(who: str, port: int, payloads: Sequence[bytes]) -> float:
    """Return the time from the first request to the last answer of raw clients that ask at once (seconds)."""
    with ThreadPoolExecutor(len(payloads)) as threads:
        began = time.monotonic()
        answers = list(threads.map(lambda payload: exchange(who, port, payload), payloads))
        took = time.monotonic() - began
    for answer in answers:
        if answer.rc != 0:
            sys.exit(f"{who} has failed:\n{answer.stderr}")
    return took


@contextlib.contextmanager
def idle_connections(port: int, count: int) -> Iterator[None]:
    """Hold connections that say nothing, from ten addresses, since one may not have so many."""
    with contextlib.ExitStack() as held:
        for number in range(count):
            own = (f"127.0.1.{1 + number % 10}", 0)
            connection = socket.create_connection(("127.0.0.1", port), timeout=10, source_address=own)
            held.enter_context(connection)
        yield


@contextlib.contextmanager
def replaying(stap: Stap, answer: bytes) -> Iterator[int]:
    """Send one answer to every client, under the identity that ``stap``'s client trusts.

    Yields the port. What a client takes with this server is its own time.
    """

    async def context() -> ssl.SSLContext:
        quiet = structlog.wrap_logger(structlog.testing.CapturingLogger(), processors=[])
        identity = await load_or_create_identity(stap.directory / "ssl" / "server", log=quiet)
        return identity.context

    tls_context = anyio.run(context)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return  # closed: nobody asks any more
            # The client sends in small pieces, each of which waits for the one before to be acknowledged.
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with contextlib.suppress(OSError), tls_context.wrap_socket(connection, server_side=True) as tls:
                tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                missing = int.from_bytes(tls.recv(4), "big")
                while missing > 0:
                    tls.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
                    missing -= len(tls.recv(missing))
                tls.sendall(answer)
                tls.unwrap()

    with socket.create_server(("::1", 0), family=socket.AF_INET6, dualstack_ipv6=False) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        try:
            yield listener.getsockname()[1]
        finally:
            listener.shutdown(socket.SHUT_RDWR)
            thread.join()


def cpu_s(processes: Sequence[int]) -> float:
    """Return the CPU time of all threads of these processes so far, as the scheduler knows it (seconds)."""
    total = 0
    for pid in processes:
        for task in Path(f"/proc/{pid}/task").iterdir():
            total += int((task / "schedstat").read_text().split()[0])
    return total / 1e9


def prepare(server: Server, ask: Callable[[], object]) -> bool:
    """Ask for new scripts of a kind until they are built by a plan; returns whether they are."""
    for _ in range(_PLANS):
        found = server.log.count(_FOUND)
        count = server.log.count(_REQUEST)
        ask()
        if (
            ", compiled, " in (line := server.log.wait(_REQUEST, count=count + 1)[0])
            and "build: prepared," in line
        ):
            return True
        server.log.wait(_FOUND, count=found + 1, timeout_s=_WARM_S)
    return False


def wait_quiet(processes: Sequence[int]) -> None:
    """Wait until what a start leaves to be done is done: no child, and no work to speak of for a second."""
    deadline = time.monotonic() + _SETTLE_S
    while time.monotonic() < deadline:
        before = cpu_s(processes)
        time.sleep(1.0)  # the measurement
        if cpu_s(processes) - before < _TICK_S and not any(map(descendants, processes)):
            return
    sys.exit(f"the supervisor was busy for {_SETTLE_S:g} s after its start")


def wait_warm(server: Server) -> None:
    """Wait until the first compile is done, which runs at low priority."""
    server.log.wait("can be compiled for", timeout_s=_WARM_S)


def timed(work: Callable[[], object]) -> float:
    """Return how long some work takes (seconds)."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def median(values: Sequence[float]) -> float:
    return statistics.median(values)


def spread(values: Sequence[float], *, unit: str = " s", digits: int | None = None) -> str:
    """Return a median with the least and the most."""
    if digits is None:
        digits = 3 if median(values) < 1 else 2
    low, middle, high = (f"{value:.{digits}f}" for value in (min(values), median(values), max(values)))
    return f"{middle}{unit} ({low}-{high})"
