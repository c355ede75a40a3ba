"""What came with SystemTap 5, and what becomes of it where the installed release has none of it.

Each is asked of this project's server, of SystemTap's own beside it, and where that is no matter of servers,
of stap itself. No test is left out on an older release: what it lacks, both servers refuse alike.
"""

from __future__ import annotations

import contextlib
import re
import shutil
import ssl
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import attrs
import pytest
from anyio.streams.tls import TLSAttribute
from kit import openssl
from kit.client import Answer, connect, frame, read_answer, request, trusting
from kit.real import PATIENCE_S, Ran, Server, Stap, serving, serving_original

from stapsrv.identity.mok import load_moks

SCRIPT = "probe begin { exit() }"
KEY_TYPE = "ml-dsa-65"
FIRST_WITH_KEY_TYPES = (5, 6)
NEGATIVE = b"\xff\xff\xff\xf0"

# Some of these no client sends by itself. Where they are asked of stap, a module's name is beside the point.
NEW = {
    "bpf": ("--bpf", "-p4", "-e", SCRIPT),
    "runtime bpf": ("--runtime=bpf", "-p4", "-e", SCRIPT),
    "dyninst": ("--dyninst", "-p4", "-e", SCRIPT),
    "tracepoint by BTF": ("-p2", "-e", 'probe kernel.tracepoint("sched_switch") { exit() }'),
    "several errors": ("-p2", "--semantic-keep-going", "-e", "probe begin { one() two() }"),
    "name of a constant": ("-p2", "-e", 'probe begin { println(@enumname(1, "pid_type")) }'),
}

# Whatever openssl calls them: no encryption, keys of 112 bits and fewer, unsound ones, no proof of who it is.
WEAK = "NULL:aNULL:3DES:DES:RC2:RC4:IDEA:SEED:CAMELLIA:ARIA:EXPORT:LOW:MD5:PSK:SRP:aDSS:@SECLEVEL=0"
STRONG = (
    "ECDHE-RSA-AES128-GCM-SHA256",
    "ECDHE-RSA-AES256-GCM-SHA384",
    "ECDHE-RSA-CHACHA20-POLY1305",
)


@attrs.frozen
class Pair:
    """SystemTap's own server and this project's, for the same user."""

    original: Server
    ours: Server
    stap: Stap

    def __iter__(self) -> Iterator[Server]:
        return iter((self.original, self.ours))


@pytest.fixture(scope="module")
def pair(warm_stap: Stap, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Pair]:
    stap = warm_stap.at(tmp_path_factory.mktemp("pair"))
    with serving(stap) as ours, serving_original(stap) as original:
        yield Pair(original, ours, stap)


@pytest.fixture(scope="module")
def version() -> tuple[int, ...]:
    """The installed SystemTap's."""
    printed = subprocess.run(["stap", "--version"], check=True, capture_output=True, text=True)
    found = re.search(r"version (\d+)\.(\d+)", printed.stdout + printed.stderr)
    assert found is not None, printed
    return tuple(int(number) for number in found.groups())


def exchange(server: Server, data: bytes) -> bytes:
    """Return what a server sends to somebody who sends ``data`` and waits."""

    async def run() -> bytes:
        with anyio.fail_after(PATIENCE_S):
            async with await connect(server.port) as tls:
                await tls.send(data)
                return await read_answer(tls)

    return anyio.run(run)


def ask(server: Server, stap: Stap, *arguments: str, **entries: str) -> Answer:
    payload = request(*arguments, release=stap.installation.release, locale="LANG=C.UTF-8\n", **entries)
    return Answer.of(exchange(server, frame(payload)))


def without_places(text: str, stap: Stap) -> str:
    """Leave out where files are, what stap was called by, and the number that ends a program's name."""
    text = text.replace(str(stap.directory), "<server>")
    text = re.sub(r"^\S*stap: ", "stap: ", text, flags=re.MULTILINE)
    return re.sub(r"stap_\d+", "stap_NUMBER", text)


def programs(answer: Answer) -> list[bytes]:
    """Return what there is for a runtime other than the kernel's."""
    return [data for name, data in answer.files.items() if name.endswith((".bo", ".so"))]


@pytest.mark.parametrize("arguments", NEW.values(), ids=NEW)
def test_answer_is_that_of_the_original_and_of_stap(pair, stap, arguments):
    original, ours = (ask(server, stap, *arguments) for server in pair)
    assert said(ours, stap) == said(original, stap)
    assert programs(ours) == programs(original)

    local = stap.local(*arguments)
    assert local.status == ours.rc
    assert without_places(local.stderr, stap) == without_places(ours.stderr, stap)
    if "-p2" in arguments:
        assert local.stdout == ours.stdout
    elif local.status == 0:
        assert [(stap.place / local.stdout.splitlines()[-1]).read_bytes()] == programs(ours)


def said(answer: Answer, stap: Stap) -> Ran:
    return Ran(answer.rc, without_places(answer.stdout, stap), without_places(answer.stderr, stap))


def test_length_that_is_negative_is_refused(pair, version):
    """The original sends nothing then, and up to 5.5 has other words for it."""
    original, ours = (exchange(server, NEGATIVE) for server in pair)
    assert original == b""
    answer = Answer.of(ours)
    assert (answer.rc, answer.files) == (1, {})
    assert answer.stderr == "Server: Invalid request size: negative value (-16)\n"
    words = "Invalid request size: negative value"
    if version < FIRST_WITH_KEY_TYPES:
        words = "Invalid request size: negative value|Expected -16 bytes, got 0"
    assert pair.original.log.has(words, 1)
    assert pair.ours.log.has("was refused: Invalid request size: negative value", 1)


def shake_hands(server: Server, suites: str, most: ssl.TLSVersion) -> str | None:
    """Return the cipher suite that a server takes of those; None if it takes none."""
    context = trusting(maximum_version=most)
    context.set_ciphers(suites)

    async def run() -> str | None:
        try:
            async with await connect(server.port, context) as tls:
                return tls.extra(TLSAttribute.cipher)[0]
        except (ssl.SSLError, anyio.EndOfStream, anyio.BrokenResourceError, ConnectionError):
            return None

    return anyio.run(run)


def test_weak_suites_are_refused_and_strong_ones_taken(pair):
    for server in pair:
        assert shake_hands(server, WEAK, ssl.TLSVersion.TLSv1_2) is None
        for suite in STRONG:
            assert shake_hands(server, suite, ssl.TLSVersion.TLSv1_2) == suite
        assert shake_hands(server, WEAK, ssl.TLSVersion.TLSv1_3) in {
            "TLS_AES_128_GCM_SHA256",
            "TLS_AES_256_GCM_SHA384",
        }


class TestMachineOwnerKeys:
    @pytest.fixture(autouse=True)
    def moks(self, stap: Stap) -> Path:
        """Where they are; there is none yet."""
        place = stap.directory / "ssl" / "server" / "moks"
        shutil.rmtree(place, ignore_errors=True)
        return place

    @pytest.fixture
    def is_possible(self, stap: Stap, tmp_path: Path) -> bool:
        """Whether openssl makes such a key here, and the kernel's program signs with it."""
        key, certificate, module = (tmp_path / name for name in ("key", "certificate", "module"))
        module.write_bytes(b"module")
        making = ["openssl", "req", "-new", "-x509", "-nodes", "-newkey", KEY_TYPE, "-subj", "/CN=x"]
        making += ["-outform", "DER", "-out", str(certificate), "-keyout", str(key)]
        tree = Path("/lib/modules", stap.installation.release, "build")
        signing = [str(tree / "scripts/sign-file"), "sha512", str(key), str(certificate), str(module)]
        return all(
            subprocess.run(command, check=False, capture_output=True).returncode == 0
            for command in (making, signing)
        )

    def test_kind_that_the_environment_asks_for_is_made_or_refused(self, serve, stap, moks, is_possible):
        server = serve(SYSTEMTAP_MOK_KEY_TYPE=KEY_TYPE)
        answer = ask(server, stap, "-p4", "-e", SCRIPT, mok_fingerprints="missing\n")
        assert answer.rc == 1
        if not is_possible:
            assert "signing_key.x509" not in answer.entries
            assert answer.stderr.endswith(
                "Server: The module is not signed: this server has no machine owner key (MOK) that your"
                " system trusts, and could not make one\n"
            )
            assert server.log.has("scripts/sign-file: cannot sign with the kind of key .*; use rsa", 1)
            assert load_moks(moks).usable == ()
            return
        (mok,) = load_moks(moks).usable
        assert answer.entries["signing_key.x509"] == mok.der
        assert_key_type(mok.der)
        self.assert_signs(server, stap, mok.fingerprint, mok.der)

    def test_original_signs_with_our_key_and_we_with_its(self, serve, stap, moks, is_possible, version):
        original = serve(using=serving_original, SYSTEMTAP_MOK_KEY_TYPE=KEY_TYPE)
        answer = ask(original, stap, "-p4", "-e", SCRIPT, mok_fingerprints="missing\n")
        (theirs,) = load_moks(moks).usable
        assert answer.entries["signing_key.x509"] == theirs.der
        if version >= FIRST_WITH_KEY_TYPES:
            assert_key_type(theirs.der)
        ours = serve(SYSTEMTAP_MOK_KEY_TYPE=KEY_TYPE)
        self.assert_signs(ours, stap, theirs.fingerprint, theirs.der)
        if is_possible:
            shutil.rmtree(moks)
            ask(ours, stap, "-p4", "-e", SCRIPT, mok_fingerprints="missing\n")
            (mine,) = load_moks(moks).usable
            self.assert_signs(original, stap, mine.fingerprint, mine.der)

    def assert_signs(self, server: Server, stap: Stap, fingerprint: str, certificate: bytes) -> None:
        """Let a server sign for a kernel that knows a key, and openssl be the judge."""
        answer = ask(server, stap, "-p4", "-e", SCRIPT, mok_fingerprints=f"{fingerprint}\n")
        assert answer.rc == 0, answer.stderr
        (module,) = (data for name, data in answer.files.items() if name.endswith(".ko"))
        assert openssl.verifies_for_kernel(certificate=certificate, module=module)


def assert_key_type(certificate: bytes) -> None:
    shown = subprocess.run(
        ["openssl", "x509", "-inform", "DER", "-noout", "-text"],
        input=certificate,
        check=True,
        capture_output=True,
    ).stdout.decode()
    assert re.search(rf"Public Key Algorithm: {KEY_TYPE}", shown, re.IGNORECASE), shown


def test_certificate_that_no_client_could_use_is_refused(stranger, version):
    """The original makes one from 5.6 on, and then can set up no session."""
    environ = stranger.environ(SYSTEMTAP_SIGN_KEY_TYPE=KEY_TYPE)
    command = [sys.executable, "-m", "stapsrv.daemon", "-r", stranger.installation.release]
    ours = subprocess.run(
        command, env=environ, check=False, capture_output=True, text=True, timeout=PATIENCE_S
    )
    assert ours.returncode == 1
    assert ours.stderr.splitlines()[-1] == (
        f"stap-serverd: SYSTEMTAP_SIGN_KEY_TYPE={KEY_TYPE}: clients before 5.6 cannot connect to a server"
        " with such a certificate; use rsa"
    )
    assert not (stranger.directory / "ssl").exists()
    with contextlib.ExitStack() as expected:
        if version >= FIRST_WITH_KEY_TYPES:
            expected.enter_context(pytest.raises((ssl.SSLError, ConnectionError)))
        with serving_original(stranger, SYSTEMTAP_SIGN_KEY_TYPE=KEY_TYPE):
            pass
