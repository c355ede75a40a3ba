"""What a request becomes: stap's response with its signatures, or the server's own with a reason."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import AsyncIterator

import anyio
import attrs
import pytest
import structlog
from anyio.streams.tls import TLSAttribute
from kit import openssl
from kit.client import RELEASE, Answer, connect, exchange, frame, pack, read_answer, request
from kit.keys import small_keys
from kit.moks import make_mok, make_sign_file
from kit.service import IDENTITY, Shown, running_server, tls_context

from stapsrv.compile.cache.entry import CacheEntry
from stapsrv.compile.engine.base import CompileJob, CompileResult
from stapsrv.compile.engine.workspace import Workspace
from stapsrv.compile.protocol.response import ResponseFile
from stapsrv.errors import TranslatorError
from stapsrv.identity.certificate import load_or_create_identity
from stapsrv.identity.mok import Mok

pytestmark = pytest.mark.anyio


async def test_each_request_has_one_summary_line():
    async with running_server() as running:
        for payload in (request("-p4", "-e", "probe begin {}"), request("-p1", release="9.9"), b"no zip"):
            await exchange(running.port, payload)
        await running.lines.wait("request.summary", 3)
    served, unserved, unread = (line for line in running.lines.entries if line["event"] == "request.summary")
    assert (served["release"], served["result"], served["source"]) == (RELEASE, "answered rc=0", "compiled")
    assert (unserved["release"], unserved["result"], unserved["source"]) == ("9.9", "refused rc=1", None)
    assert (unread["release"], unread["options"], unread["result"]) == (None, None, "refused rc=1")
    assert (served["outcome"], served["rc"], served["refusal"]) == ("answered", 0, None)
    assert unserved["refusal"].startswith("Target kernel version 9.9 x86_64 is not supported")
    assert served["options"] != unserved["options"]
    assert unread["request_bytes"] == len(b"no zip")


async def test_limit_that_stap_met_is_in_response_and_log():
    async with running_server() as running:
        running.engine.status, running.engine.limit_met = 1, "The compile needed too much"
        answer = await exchange(running.port, request("-p4"))
    assert (answer.rc, answer.stderr) == (1, "Server: The compile needed too much\nerr\n")
    assert "request.limited" in running.lines.events()


async def test_locale_messages_precede_stap_s_own():
    async with running_server() as running:
        answer = await exchange(running.port, request("-p1", locale="LANG=C\nBAD=1\n"))
    assert answer.stderr == "Server: Localization key 'BAD' not found in global list\nerr\n"
    assert running.engine.jobs[0].request.environment == (("LANG", "C"),)


@pytest.mark.parametrize(
    ("payload", "text"),
    [
        (
            request("-p1", release="9.9"),
            f"Server: Target kernel version 9.9 x86_64 is not supported by this server, "
            f"which serves {RELEASE} x86_64\n",
        ),
        (
            pack([("version", "4.8"), ("sysinfo", f"sysinfo: {RELEASE} aarch64")]),
            "not supported by this server",
        ),
        (pack([("version", "4.8")]), "sysinfo"),
        (pack([("sysinfo", f"sysinfo: {RELEASE} x86_64"), ("argv2", "x")]), "argv1"),
        (b"this is no zip", "Server: "),
        (request("-p1", **{"../evil": "x"}), "Server: "),
        (request("x" * 60_000), "is not within the expected range of 1 to 50000 bytes."),
    ],
    ids=["release", "arch", "no-sysinfo", "gap", "no-zip", "traversal", "too-large"],
)
async def test_bad_request_gets_the_reason_and_the_server_serves_on(payload, text):
    async with running_server() as running:
        answer = await exchange(running.port, payload)
        assert (answer.rc, answer.stdout) == (1, "")
        assert text in answer.stderr
        assert answer.stderr.startswith("Server: ")
        assert (await exchange(running.port, request("-p1"))).rc == 0
        assert len(running.engine.jobs) == 1
    assert running.lines.reasons("request.rejected")


async def test_client_gets_the_text_of_a_translator_error():
    async with running_server() as running:
        running.engine.fault = TranslatorError("The compile was ended: it took longer than 3 seconds")
        answer = await exchange(running.port, request("-p1"))
        assert (answer.rc, answer.stderr) == (
            1,
            "Server: The compile was ended: it took longer than 3 seconds\n",
        )
        assert running.service.pool.statistics().running == 0


async def test_crash_ends_one_request_alone_and_its_client_gets_a_response():
    async with running_server() as running:
        running.engine.fault = ZeroDivisionError("a fault of this program")
        answer = await exchange(running.port, request("-p1"))
        assert answer.rc == 1
        assert answer.stderr == "Server: The server failed on this request; its log says why\n"
        running.engine.fault = None
        assert (await exchange(running.port, request("-p1"))).rc == 0
        assert running.service.pool.statistics().running == 0
        assert running.service.counts.failed == 1
    assert running.lines.events().count("request.crashed") == 1


class TestSigning:
    """The two kinds of signature, as far as a session decides on them."""

    @pytest.mark.parametrize(
        ("arguments", "signed"),
        [
            (("--privilege=stapusr",), True),
            (("--privilege", "stapsys", "-p4"), True),
            (("--unprivileged", "-e", "probe begin {}"), True),
            (("x.stp", "--unpriv"), True),
            ((), False),
            (("-g", "-p4"), False),
            (("--privilege=stapdev",), False),
            (("-e", "--privilege=stapusr"), False),
            (("x.stp", "--", "--unprivileged"), False),
            (("--privilege=stapusr", "--privilege=stapsys"), False),
            (("--privilege=stapusr", "--bogus"), False),
            (("--privilege=root",), False),
        ],
    )
    async def test_module_is_signed_only_for_a_restricted_privilege(self, arguments, signed):
        """The real stap refuses what is unreadable; here it succeeds, and nothing is signed all the same."""
        async with running_server() as running:
            answer = await exchange(running.port, request(*arguments))
            module = running.engine.module
        assert answer.rc == 0
        assert answer.files["stap_x.ko"] == module
        assert answer.files.get("stap_x.ko.sgn") == (IDENTITY.sign(module) if signed else None)

    async def test_nothing_is_signed_when_stap_failed(self):
        async with running_server() as running:
            running.engine.status = 1
            answer = await exchange(running.port, request("--unprivileged"))
        assert (answer.rc, list(answer.files)) == (1, ["stap_x.ko"])

    @pytest.mark.parametrize("privilege", ["stapdev", "stapusr"])
    async def test_signatures_that_a_compile_left_are_dropped(self, privilege):
        async with running_server() as running:
            paths = ("stap_x.ko.sgn", "uprobes/uprobes.ko.sgn", "deep/other.ko", "deep/other.ko.sgn")
            running.engine.more_files = tuple(ResponseFile(f"stap000000/{path}", b"forged") for path in paths)
            answer = await exchange(running.port, request(f"--privilege={privilege}"))
        signatures = {name: data for name, data in answer.files.items() if name.endswith(".sgn")}
        signed = {"stap_x.ko.sgn": IDENTITY.sign(running.engine.module)}
        assert signatures == (signed if privilege == "stapusr" else {})

    async def test_response_is_signed_by_the_certificate_of_the_handshake(self):
        """A certificate that is renewed while a request runs does not sign what the old one answers."""
        shown = Shown(attrs.evolve(IDENTITY, name=b"old"))
        async with running_server(identity=shown) as running:
            running.engine.gate = anyio.Event()
            async with await connect(running.port) as tls:
                shown.loaded = attrs.evolve(IDENTITY, context=tls_context(), name=b"new")
                await tls.send(frame(request("--unprivileged")))
                await running.engine.wait(lambda: running.engine.jobs)
                running.engine.gate.set()
                answer = Answer.of(await read_answer(tls))
            after = await exchange(running.port, request("--unprivileged"))
        assert answer.files["stap_x.ko.sgn"].startswith(b"old signed ")
        assert after.files["stap_x.ko.sgn"].startswith(b"new signed ")

    async def test_openssl_verifies_signature_by_the_shown_certificate(self, identity):
        made = await load_or_create_identity(identity, log=structlog.get_logger("silent"))
        async with running_server(identity=made) as running:
            async with await connect(running.port) as tls:
                shown = tls.extra(TLSAttribute.peer_certificate_binary)
                await tls.send(frame(request("--privilege=stapusr")))
                answer = Answer.of(await read_answer(tls))
        module, signature = answer.files["stap_x.ko"], answer.files["stap_x.ko.sgn"]
        assert openssl.verifies(certificate=shown, data=module, signature=signature)
        assert not openssl.verifies(certificate=shown, data=b"another", signature=signature)

    @pytest.mark.parametrize("option", ["--sign-module", "--sig=/tmp/key"])
    async def test_signing_option_of_a_client_is_refused(self, option):
        async with running_server() as running:
            answer = await exchange(running.port, request(option, "-p4"))
            assert running.engine.jobs == []
        assert (answer.rc, answer.files) == (1, {})
        assert answer.stderr.startswith("Server: --sign-module is not for clients")


@pytest.fixture(scope="module")
def mok(tmp_path_factory: pytest.TempPathFactory) -> Mok:
    """A machine owner key of the server's."""
    with small_keys():
        return make_mok(tmp_path_factory.mktemp("moks"))


class TestKernelUnderSecureBoot:
    @pytest.fixture
    def locked(self, mok, tmp_path):
        """Return a server whose clients' kernels want signed modules."""
        workspace = Workspace.open(tmp_path)
        make_sign_file(tmp_path)
        yield functools.partial(
            running_server, build_tree=tmp_path, moks=mok.directory.parent, workspace=workspace
        )
        workspace.close()

    async def test_module_is_signed_with_a_trusted_owner_key(self, locked, mok):
        async with locked() as running:
            trusted = f"00:11\n{mok.fingerprint}\n"
            answer = await exchange(running.port, request("-p4", mok_fingerprints=trusted))
        assert answer.rc == 0
        assert answer.files["stap_x.ko"].startswith(running.engine.module + b"signed sha512 ")
        assert answer.stderr.endswith(
            f"err\nServer: The module is signed with the machine owner key (MOK) {mok.fingerprint}\n"
        )
        assert "signing_key.x509" not in answer.entries
        (entry,) = (entry for entry in running.lines.entries if entry["event"] == "mok.signed")
        assert entry["fingerprint"] == mok.fingerprint

    async def test_privilege_s_signature_covers_the_kernel_s(self, locked, mok):
        """The privilege's covers the module as it is loaded, with the kernel's at its end."""
        async with locked() as running:
            answer = await exchange(
                running.port, request("--unprivileged", mok_fingerprints=f"{mok.fingerprint}\n")
            )
        assert answer.files["stap_x.ko"] != running.engine.module
        assert answer.files["stap_x.ko.sgn"] == IDENTITY.sign(answer.files["stap_x.ko"])

    @pytest.mark.parametrize("stated", ["missing\n", "00:11\n", "00:11\nmissing\n"])
    async def test_key_to_enrol_is_sent_where_none_is_trusted(self, locked, mok, stated):
        async with locked() as running:
            answer = await exchange(running.port, request("-p4", mok_fingerprints=stated))
        assert answer.rc == 1
        assert answer.entries["signing_key.x509"] == mok.der
        assert answer.files == {"stap_x.ko": running.engine.module}
        assert answer.stderr.startswith("err\nServer: The module is not signed")
        assert answer.stderr.endswith("mokutil --import signing_key.x509\n")
        assert "mok.offered" in running.lines.events()

    @pytest.mark.parametrize(("status", "module"), [(1, "stap000000/stap_x.ko"), (0, "stap000000/stap_x.bo")])
    async def test_nothing_is_signed_without_a_module(self, locked, mok, status, module):
        async with locked() as running:
            running.engine.status = status
            running.engine.module_path = module
            for stated in (mok.fingerprint, "missing"):
                answer = await exchange(running.port, request("-p4", mok_fingerprints=stated))
                assert (answer.rc, answer.stderr) == (status, "err\n")
                assert "signing_key.x509" not in answer.entries

    async def test_client_without_owner_keys_gets_a_plain_module(self, locked):
        async with locked() as running:
            answer = await exchange(running.port, request("-p4", mok_fingerprints="nonsense\n"))
        assert answer.rc == 0
        assert answer.files == {"stap_x.ko": running.engine.module}

    async def test_request_is_rejected_where_no_owner_key_can_be_made(self):
        async with running_server() as running:
            answer = await exchange(running.port, request("-p4", mok_fingerprints="missing\n"))
            assert (answer.rc, answer.files) == (1, {})
            assert answer.stderr.endswith("that your system trusts, and could not make one\n")
            assert "/dev" not in answer.stderr
            assert "/dev/null/moks" in running.lines.reasons("request.rejected")[0]
            assert (await exchange(running.port, request("-p4"))).rc == 0


async def test_cached_response_is_signed_anew_after_renewal(tmp_path, monkeypatch):
    """The answer that was made for one certificate is not given in the name of another."""
    shown = Shown(IDENTITY)
    async with running_server(identity=shown) as running:
        entry = CacheEntry.final(
            CompileResult(0, b"out\n", b"err\n", (ResponseFile("stap000000/stap_x.ko", b"module"),))
        )

        @contextlib.asynccontextmanager
        async def answer(_job: CompileJob) -> AsyncIterator[CacheEntry]:
            yield entry

        monkeypatch.setattr(running.service.engine, "answer", answer)
        payload = request("-p4", "--privilege=stapusr")
        first, again = [await exchange(running.port, payload) for _ in range(2)]
        plain = await exchange(running.port, request("-p4"))
        kept = entry.signed
        assert (await exchange(running.port, payload)).files == first.files
        assert entry.signed is kept is not None
        shown.loaded = attrs.evolve(IDENTITY, name=b"renewed")
        renewed = await exchange(running.port, payload)
    signature = "stap_x.ko.sgn"
    assert first.files == again.files
    assert signature not in plain.files
    assert first.files[signature].startswith(b"server signed ")
    assert renewed.files[signature].startswith(b"renewed signed ")
