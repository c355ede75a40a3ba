"""Clients of all kinds against one daemon at once; in the end everything has to be as it was before.

Good clients ask again and again, and every answer has to be right. Beside them are slow ones, silent ones, a
flood from one address, some that leave at each byte of a request, some that send rubbish, some whose stap
misbehaves, and somebody who kills processes. Each kind has an address of its own.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import socket
import ssl
import struct
import threading
import time
import zipfile
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import attrs
from fuzz.mutation import changed, some_changes

from .client import Answer, frame, request
from .faulty import FaultyServer, connect, receive, send
from .footprint import Footprint, descendants, wait_back

OPTIONS = (
    *("--handshake-timeout", "2", "--request-timeout", "3", "--compile-timeout", "10", "--kill-grace", "0.5"),
    *("--max-output-size", "65536", "--max-threads", "4", "--max-connections-per-address", "32"),
)
"""For a daemon that is to meet all this within seconds."""

SETTLING_S = 60.0
_FLOOD = 48
# How long a good client comes back for, and how long it waits before each time.
_INSIST_S = 60.0
_PAUSE_S = 0.2
_GONE = (OSError, ssl.SSLError)

Actor = Callable[[], None]


class Soak:
    """One run.

    Args:
        server: started with :data:`OPTIONS`.
        chance: makes every choice that is left to chance.

    Attributes:
        done: what was done, by kind.
        wrong: what was not as it should be.
    """

    def __init__(self, server: FaultyServer, chance: random.Random) -> None:
        self.done: Counter[str] = Counter()
        self.wrong: list[str] = []
        self._server = server
        self._chance = chance
        self._ends = 0.0
        self._number = 0
        self._counting = threading.Lock()
        self._over = threading.Event()

    def run(self, seconds: float, *others: Actor) -> None:
        """Let all kinds of clients loose for so long, and ``others`` beside them, until each has ended."""
        self._ends = time.monotonic() + seconds
        self._over.clear()
        actors = (
            *(self._good, self._good, self._good, self._privileged, self._slow, self._slow, self._silent),
            *(self._flood, self._cut_short, self._cut_handshake, self._malformed, self._leave),
            *(self._misbehave, self._kill, *others),
        )
        threads = [threading.Thread(target=self._repeat, args=(actor,)) for actor in actors]
        for thread in threads:
            thread.start()
        self._over.wait(seconds)
        self._over.set()
        for thread in threads:
            thread.join()

    @property
    def is_over(self) -> bool:
        """Whether it is time to end."""
        return self._over.is_set()

    def count(self, kind: str) -> None:
        with self._counting:
            self.done[kind] += 1

    def complain(self, text: str) -> None:
        with self._counting:
            self.wrong.append(text)

    def footprint(self) -> Footprint:
        return Footprint.of(self._server.pid, self._server.temporary)

    def differences(self, before: Footprint, *, memory_kb: int) -> list[str]:
        """Return what has not come back after a while to what it was at a quiet moment."""
        return wait_back(
            lambda: self.footprint().differences(before, threads=4, memory_kb=memory_kb),
            timeout_s=SETTLING_S,
        )

    def _repeat(self, actor: Actor) -> None:
        try:
            while not self.is_over:
                actor()
        except Exception as exc:  # noqa: BLE001 - it is reported at the end
            self.complain(f"{actor.__name__}: {exc!r}")

    def _next(self) -> int:
        with self._counting:
            self._number += 1
            return self._number

    def _good(self) -> None:
        """Ask for something that nobody asked for before, and see that it is answered so."""
        number = self._next()
        script = f'echo module {number} >"$answer/stap_{number}.ko"; echo out {number}; echo err {number} >&2'
        answer = self._insist(script, f"127.0.0.{2 + number % 3}")
        right = Answer(
            {
                **answer.entries,
                "rc": b"0",
                "stdout": b"out %d\n" % number,
                "stderr": b"err %d\n" % number,
                f"stap000000/stap_{number}.ko": b"module %d\n" % number,
            }
        )
        if answer != right:
            self.complain(f"good request {number} was answered {answer}")
        self.count("good")

    def _privileged(self) -> None:
        """Ask for a module that is signed."""
        number = self._next()
        answer = self._insist(f'echo {number} >"$answer/stap_x.ko"', "127.0.0.5", "--privilege=stapusr")
        if answer.rc != 0 or "stap_x.ko.sgn" not in answer.files:
            self.complain(f"signed request {number} was answered {answer}")
        self.count("signed")

    def _insist(self, script: str, source: str, *options: str) -> Answer:
        """Ask as the real client does: again, when the connection is reset before the handshake."""
        payload = frame(request(*options, "-e", script))
        deadline = time.monotonic() + _INSIST_S
        while time.monotonic() < deadline:
            try:
                tls = connect(self._server.port, source=source)
            except ConnectionResetError:
                self.count("came back")
                time.sleep(_PAUSE_S)
                continue
            with tls:
                tls.sendall(payload)
                return receive(tls)
        raise ConnectionResetError(f"{source} was not let in")

    def _slow(self) -> None:
        """Send a byte a second, until the server has had enough."""
        with contextlib.suppress(*_GONE), connect(self._server.port, source="127.0.0.70") as tls:
            for byte in frame(request("-p4", "-e", "exit 0")):
                tls.sendall(bytes([byte]))
                if self._over.wait(1.0):
                    break
        self.count("slow")

    def _silent(self) -> None:
        """Say nothing: some before the handshake, some after it."""
        with contextlib.ExitStack() as held, contextlib.suppress(*_GONE):
            for _ in range(5):
                raw = socket.create_connection(
                    ("127.0.0.1", self._server.port), timeout=60, source_address=("127.0.0.71", 0)
                )
                held.enter_context(raw)
            held.enter_context(connect(self._server.port, source="127.0.0.71"))
            self._over.wait(2.5)
        self.count("silent")

    def _flood(self) -> None:
        """Connect more often than anybody may, and hold what is to be had for a moment."""
        with contextlib.ExitStack() as held:
            for _ in range(_FLOOD):
                with contextlib.suppress(OSError):
                    raw = socket.create_connection(
                        ("127.0.0.1", self._server.port), timeout=60, source_address=("127.0.0.72", 0)
                    )
                    held.enter_context(raw)
                self.count("flood")
            self._over.wait(0.3)

    def _cut_short(self) -> None:
        """Leave at one byte of a request after the other, politely or not."""
        whole = frame(request("-p4", "-e", "sleep 5"))
        with contextlib.suppress(*_GONE):
            tls = connect(self._server.port, source="127.0.0.73")
            with tls:
                tls.sendall(whole[: self.done["cut short"] % (len(whole) + 1)])
                if self._chance.random() < 0.5:
                    tls.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                elif self._chance.random() < 0.5:
                    tls.settimeout(1)
                    tls.unwrap()
        self.count("cut short")

    def _cut_handshake(self) -> None:
        """Leave at one byte of a greeting after the other."""
        incoming, outgoing = ssl.MemoryBIO(), ssl.MemoryBIO()
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        context.check_hostname = False
        context.verify_mode = ssl.CERT_NONE
        with contextlib.suppress(ssl.SSLWantReadError):
            context.wrap_bio(incoming, outgoing).do_handshake()
        greeting = outgoing.read()
        with contextlib.suppress(OSError):
            raw = socket.create_connection(
                ("127.0.0.1", self._server.port), timeout=60, source_address=("127.0.0.74", 0)
            )
            with raw:
                raw.sendall(greeting[: self.done["cut handshakes"] % (len(greeting) + 1)])
        self.count("cut handshakes")
        self._over.wait(0.01)

    def _malformed(self) -> None:
        """Send a request that was changed by chance; it is answered, or the connection ends."""
        good = request("-p4", "-e", "exit 0", locale="LANG=C\n")
        stream = frame(good)
        if self._chance.random() < 0.5:
            stream = frame(changed(good, some_changes(self._chance, (), [good])))
        else:
            stream = changed(stream, some_changes(self._chance, (), [stream]))
        with contextlib.suppress(*_GONE):
            with connect(self._server.port, source="127.0.0.75", timeout=60) as tls:
                try:
                    with contextlib.suppress(*_GONE):
                        tls.sendall(stream)
                    receive(tls)
                except zipfile.BadZipFile:
                    self.count("malformed, unanswered")
                except TimeoutError:
                    self.complain(f"a malformed request was neither answered nor ended: {stream!r}")
        self.count("malformed")

    def _leave(self) -> None:
        """Have something compiled, and not wait for it."""
        with contextlib.suppress(*_GONE):
            tls = send(self._server.port, f"sleep 1000 # {self._next()}", source="127.0.0.76")
            with tls:
                self._over.wait(self._chance.random())
        self.count("left")

    def _misbehave(self) -> None:
        """Have a stap that floods, forks away or seals its directory; it costs nobody else anything."""
        script = self._chance.choice(
            (
                "yes",
                "setsid sh -c 'setsid sleep 1000 & setsid sleep 1001 &' & exit 3",
                'mkdir -p "$answer/a/b"; chmod 0 "$answer/a"; exit 5',
                'rm -r "$answer"',
                "sleep 1000 & kill -KILL $$",
            )
        )
        with contextlib.suppress(*_GONE):
            answer = receive(send(self._server.port, f"{script} # {self._next()}", source="127.0.0.77"))
            if answer.rc == 0:
                self.complain(f"{script} was answered {answer}")
        self.count("misbehaved")

    def _kill(self) -> None:
        """Begin something, and kill a process of it."""
        mark = f"victim {self._next()}"
        with contextlib.suppress(*_GONE):
            with send(self._server.port, f"sleep 1000 # {mark}", source="127.0.0.78") as tls:
                for _ in range(100):
                    if self._over.wait(0.02) or self._kill_one(mark):
                        break
                tls.settimeout(1 if self.is_over else 60)
                with contextlib.suppress(zipfile.BadZipFile):
                    answer = receive(tls)
                    if answer.rc == 0:
                        self.complain(f"{mark} was answered {answer}")
        self.count("killed")

    def _kill_one(self, mark: str) -> bool:
        pids = descendants(self._server.pid)
        self._chance.shuffle(pids)
        for pid in pids:
            with contextlib.suppress(OSError):
                if mark.encode() in Path(f"/proc/{pid}/cmdline").read_bytes():
                    os.kill(pid, signal.SIGKILL)
                    return True
        return False


@attrs.frozen
class Report:
    """What came of a run.

    Attributes:
        done: how often what was done.
        faults: what was wrong, and what has not come back; none is the aim.
    """

    done: Counter[str]
    faults: list[str]


def soak(
    server: FaultyServer,
    *,
    seconds: float,
    warm_up_s: float,
    seed: int,
    memory_kb: int,
    others: tuple[Actor, ...] = (),
) -> Report:
    """Soak a server; it is measured before, and after a while of quiet.

    Args:
        server: started with :data:`OPTIONS`.
        seconds: how long.
        warm_up_s: how long before that, to have all caches and pools filled.
        seed: of chance.
        memory_kb: by how much its memory may grow from the end of the warm-up to the end.
        others: further clients.
    """
    run = Soak(server, random.Random(seed))
    run.run(warm_up_s)
    faults = [f"after the warm-up: {text}" for text in run.differences(server.quiet, memory_kb=0)]
    before = run.footprint()
    run.run(seconds, *others)
    faults += run.wrong + run.differences(before, memory_kb=memory_kb)
    log = server.log_text()
    faults += [line for line in log.splitlines() if "Traceback" in line or "fault of this program" in line]
    return Report(run.done, faults)
