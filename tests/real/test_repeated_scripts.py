"""The result cache with the real stap: repeats need no stap, and after a change the answer is the new one."""

from __future__ import annotations

import functools
import shutil
import signal
from collections.abc import Callable
from typing import TypeVar

import anyio
import attrs
import pytest
from kit import openssl
from kit.client import exchange, request
from kit.moks import make_mok
from kit.real import Ran, Server, Stap, cert

WATCHING = ": Result cache on; "
MISSING = "missing unwind/symbol data"
SUMMARY = r"Request from .*: answered rc=(\d+), (\w+), .*, uncacheable: (.*), worker: .*$"

T = TypeVar("T")


def asked(server: Server, ask: Callable[[], T]) -> tuple[T, str, str]:
    """Ask; return the answer, where it came from, and why it is not stored."""
    before = server.log.count(SUMMARY)
    answer = ask()
    # A client has its answer a moment before the server is done with it.
    told = server.log.wait(SUMMARY, count=before + 1)
    return answer, told[2], told[3]


@attrs.frozen
class Asker:
    """Asks one question again and again."""

    stap: Stap
    server: Server
    arguments: tuple[str, ...]

    def ask(self) -> tuple[Ran, str, str]:
        """Return what the client said, where the answer came from, and why it is not stored."""
        return asked(self.server, lambda: self.stap.via(self.server.port, "-p4", *self.arguments))

    def module(self) -> tuple[bytes, str]:
        """Return the module, and where the answer came from."""
        ran, source, _reason = self.ask()
        assert ran.status == 0, ran.stderr
        return (self.stap.place / ran.module).read_bytes(), source


@pytest.fixture
def asking(serve: Callable[..., Server], stap: Stap) -> Callable[..., Asker]:
    """Start a server, and ask it when it knows what it watches."""

    def start(*arguments: str, options: tuple[str, ...] = (), **more: object) -> Asker:
        server = serve(*options, caching=True, **more)
        server.log.wait(WATCHING)
        return Asker(stap, server, arguments)

    return start


@pytest.mark.parametrize("backend", ["asyncio", "trio"])
def test_a_repeat_is_the_same_until_a_tapset_changes(asking, tmp_path, backend):
    tapset = tmp_path / "tapset" / "answer.stp"
    tapset.parent.mkdir()
    number = {"asyncio": 4201, "trio": 4202}[backend]
    tapset.write_text(f"function answer() {{ return {number} }}")
    asker = asking(
        "-e", "probe begin { println(answer()) exit() }", options=(f"-I{tapset.parent}",), backend=backend
    )
    first, source = asker.module()
    assert source == "compiled"
    assert asker.module() == (first, "hit")
    tapset.write_text(f"function answer() {{ return {number + 100} }}")
    second, source = asker.module()
    assert source == "compiled"
    assert second != first


def test_release_that_a_client_names_is_the_server_s_own(asking, serve, stap):
    release = stap.installation.release
    script = ("-m", "one", "-p4", "-e", "probe begin { println(4250) exit() }")
    server, plain = asking().server, serve("--result-cache=no")

    def module(server: Server, *arguments: str) -> tuple[bytes, str]:
        asks = functools.partial(anyio.run, exchange, server.port, request(*arguments, release=release))
        answer, source, _reason = asked(server, asks)
        assert answer.rc == 0, answer.stderr
        return next(data for name, data in answer.files.items() if name.endswith(".ko")), source

    first, source = module(server, *script)
    assert source == "compiled"
    assert module(server, f"-r{release}", *script) == (first, "hit")
    # It is the same module.
    assert module(plain, f"-r{release}", *script) == (first, "compiled")


def test_options_of_stap_s_own_file_count(asking, stap):
    asker = asking("-e", "probe begin { println(4300) exit() }")
    warned, *_ = asker.ask()
    assert asker.ask()[1] == "hit"
    rc = stap.directory / "rc"
    rc.write_text("-w\n")
    try:
        quiet, source, _reason = asker.ask()
    finally:
        rc.unlink()
    assert source == "compiled"
    assert "symbol table missing" in warned.stderr
    assert "symbol table missing" not in quiet.stderr


def test_a_probed_program_is_looked_at_each_time(asking, tmp_path):
    program = tmp_path / "program"
    shutil.copy("/bin/true", program)
    asker = asking(
        "-e", f'probe process("{program}").begin {{ exit() }}', options=(f"--sandbox-read={program}",)
    )
    for _ in range(2):
        ran, source, reason = asker.ask()
        assert (ran.status, source, reason) == (0, "compiled", "program")
        assert MISSING not in ran.stderr
    program.unlink()
    assert MISSING in asker.ask()[0].stderr


def test_another_option_of_the_server_is_another_question(asking, stap, tmp_path):
    """Also for what was kept on disk by a server that had another."""
    tapset = tmp_path / "tapset" / "own.stp"
    tapset.parent.mkdir()
    info = "%{\nMODULE_INFO(own, __stringify(OWN));\n%}"
    tapset.write_text(f"{info}\nfunction own:long() %{{ /* pure */ STAP_RETVALUE = OWN; %}}")
    for number, wanted in ((4501, "compiled"), (4502, "compiled"), (4501, "hit")):
        options = (f"-I{tapset.parent}", f"-DOWN={number}")
        asker = asking("-e", "probe begin { println(own()) exit() }", options=options)
        module, source = asker.module()
        assert (source, b"own=%d\0" % number in module) == (wanted, True)
        assert asker.module() == (module, "hit")
        asker.server.signal(signal.SIGTERM)
        asker.server.wait()


def test_a_known_result_is_signed_by_the_certificate_of_now(asking, stap, tmp_path):
    ssl = tmp_path / "ssl"
    asker = asking(
        "--privilege=stapusr", "-e", "probe begin { println(4600) exit() }", options=("--ssl", ssl)
    )

    def signed() -> tuple[bytes, bytes, str]:
        ran, source, _reason = asker.ask()
        assert ran.status == 0, ran.stderr
        module = stap.place / ran.module
        return module.read_bytes(), module.with_name(f"{module.name}.sgn").read_bytes(), source

    old = (ssl / "stap.cert").read_bytes()
    module, signature, source = signed()
    assert source == "compiled"
    assert openssl.verifies(certificate=old, data=module, signature=signature)
    assert signed() == (module, signature, "hit")
    cert(stap, "renew", ssl)
    new = (ssl / "stap.cert").read_bytes()
    again, signature, source = signed()
    assert (again, source) == (module, "hit")
    assert openssl.verifies(certificate=new, data=module, signature=signature)
    assert not openssl.verifies(certificate=old, data=module, signature=signature)


def test_a_known_result_is_signed_by_the_owner_key_that_the_client_trusts(serve, stap):
    server = serve(caching=True)
    server.log.wait(WATCHING)
    moks = stap.directory / "ssl" / "server" / "moks"

    def module(**entries: str) -> tuple[bytes, str]:
        script = "probe begin { println(4700) exit() }"
        payload = request("-p4", "-e", script, release=stap.installation.release, **entries)
        answer, source, _reason = asked(server, lambda: anyio.run(exchange, server.port, payload))
        assert answer.rc == 0, answer.stderr
        (made,) = (data for name, data in answer.files.items() if name.endswith(".ko"))
        return made, source

    plain, source = module()
    assert source == "compiled"
    keys = [make_mok(moks), make_mok(moks)]
    for key in (*keys, keys[0]):
        signed, source = module(mok_fingerprints=key.fingerprint)
        assert (signed.startswith(plain), source) == (True, "hit")
        for other in keys:
            assert openssl.verifies_for_kernel(certificate=other.der, module=signed) == (other is key)
    assert module() == (plain, "hit")
