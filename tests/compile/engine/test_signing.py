"""Signatures on modules: by the server's certificate, and by the kernel's own program."""

from __future__ import annotations

from pathlib import Path

import anyio
import anyio.lowlevel
import pytest
import structlog
from kit.keys import small_keys
from kit.moks import make_mok, make_sign_file, ml_dsa
from kit.service import LogLines

from stapsrv.compile.engine import signing
from stapsrv.compile.engine.base import CompileJob
from stapsrv.compile.engine.signing import (
    KernelSigner,
    add_signatures,
    has_modules,
    refuse_signing_options,
    without_signatures,
)
from stapsrv.compile.engine.workspace import Workspace
from stapsrv.compile.pool import WorkerPool
from stapsrv.compile.protocol.options import parse_options
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.compile.protocol.response import ResponseFile
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import RequestRejected, TranslatorError
from stapsrv.identity.mok import Mok, MokStore, load_moks
from stapsrv.sandbox.sandbox import Sandbox

MODULE = ResponseFile("stap000000/x.ko", b"module")
UPROBES = ResponseFile("stap000000/uprobes/uprobes.ko", b"uprobes")
OTHERS = tuple(
    ResponseFile(path, b"")
    for path in (
        "x.ko",
        "stap000000/x.c",
        "stap000000/x.bo",
        "stap000000/x.so",
        "stap000000/.ko",
        "stap000000/x.ko.gz",
        "stap000000/deep/x.ko",
        "stap000000/uprobes/other.ko",
        "stap000000/deep/uprobes/uprobes.ko",
        "stap000000/x\n.koo",
    )
)


def a_job(build_tree: Path, *fingerprints: str, client: str = "192.0.2.1", **tuning: float) -> CompileJob:
    return CompileJob(
        log=structlog.get_logger(),
        request=CompileRequest(release="6.1", arch="x86_64", fingerprints=fingerprints),
        release=ServedRelease("6.1", "x86_64", "6.1", build_tree),
        settings=ServerSettings(tuning=tuning),
        client=client,
    )


def sign(module: bytes) -> bytes:
    return b"signed " + module


@pytest.mark.anyio
async def test_each_module_and_nothing_else_gets_a_signature():
    files = (MODULE, *OTHERS, UPROBES)
    assert await add_signatures(files, sign) == (
        MODULE,
        ResponseFile("stap000000/x.ko.sgn", b"signed module"),
        *OTHERS,
        UPROBES,
        ResponseFile("stap000000/uprobes/uprobes.ko.sgn", b"signed uprobes"),
    )


def test_modules_are_known_by_their_paths():
    assert has_modules([*OTHERS, MODULE])
    assert has_modules([UPROBES])
    assert not has_modules(OTHERS)


def test_signatures_from_a_compile_are_dropped():
    forged = [ResponseFile(f"{file.path}.sgn", b"forged") for file in (MODULE, UPROBES, *OTHERS)]
    assert without_signatures([*forged, MODULE, *forged]) == (MODULE,)


@pytest.mark.parametrize(
    "arguments",
    [
        (b"--sign-module",),
        (b"--sign-module=/tmp/mine",),
        (b"--sign-module=",),
        (b"-p4", b"--sig", b"-e", b"probe begin {}"),
        (b"x.stp", b"--sign=../moks"),
        (b"--sign-module=/x", b"--bogus"),
    ],
)
def test_sign_module_option_is_rejected(arguments):
    with pytest.raises(RequestRejected) as caught:
        refuse_signing_options(parse_options(arguments))
    assert str(caught.value) == (
        "--sign-module is not for clients: this server signs the modules that need it"
    )


def test_sign_module_as_value_or_operand_is_accepted():
    refuse_signing_options(parse_options((b"-e", b"--sign-module", b"x.stp", b"--", b"--sign-module=/x")))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Mok:
    with small_keys():
        return make_mok(tmp_path_factory.mktemp("moks"))


@pytest.mark.anyio
class TestKernelSigner:
    @pytest.fixture
    def workspace(self, tmp_path: Path):
        made = Workspace.open(tmp_path)
        yield made
        assert [path.name for path in made.path.iterdir()] == ["lock"]
        made.close()

    @pytest.fixture
    def signer(self, made: Mok, workspace: Workspace) -> KernelSigner:
        keys = MokStore(made.directory.parent, LogLines().log)
        return KernelSigner(keys, workspace, Sandbox(None), WorkerPool(2, queue_length=None))

    async def test_modules_are_signed_by_the_kernel_s_program(self, signer, made, tmp_path):
        make_sign_file(tmp_path, 'echo "$1 $2 $3" >>"$4"; env >>"$4"')
        job = a_job(tmp_path, "00:11", made.fingerprint)
        signed = await signer.sign((MODULE, *OTHERS, UPROBES), job)
        first, *others, last = signed.files
        told = f"sha512 {made.directory}/signing_key.priv {made.directory}/signing_key.x509\n".encode()
        assert (first.path, last.path) == (MODULE.path, UPROBES.path)
        assert first.whole.startswith(b"module" + told)
        assert last.whole.startswith(b"uprobes" + told)
        assert b"HOME" not in first.whole
        assert tuple(others) == OTHERS
        assert (signed.key, signed.trusted) == (made.fingerprint, True)
        assert signed.message.decode() == (
            f"Server: The module is signed with the machine owner key (MOK) {made.fingerprint}\n"
        )

    @pytest.mark.parametrize("fingerprints", [(), ("00:11",)], ids=["missing", "unknown"])
    async def test_key_is_offered_if_none_is_trusted(self, signer, made, tmp_path, fingerprints):
        """No sign-file is there: nothing is signed."""
        signed = await signer.sign((MODULE,), a_job(tmp_path, *fingerprints))
        assert signed.files == (MODULE, ResponseFile("signing_key.x509", made.der))
        assert (signed.key, signed.trusted) == (made.fingerprint, False)
        lines = signed.message.decode().splitlines()
        assert all(line.startswith("Server: ") for line in lines)
        assert "Server:     sudo mokutil --import signing_key.x509" in lines
        assert "reboot" in signed.message.decode()

    async def test_key_that_cannot_be_made_is_an_error(self, workspace, tmp_path):
        keys = MokStore(Path("/dev/null/moks"), LogLines().log)
        signer = KernelSigner(keys, workspace, Sandbox(None), WorkerPool(1, queue_length=None))
        with pytest.raises(TranslatorError) as caught:
            await signer.sign((MODULE,), a_job(tmp_path))
        assert caught.value.problem == (
            "The module is not signed: this server has no machine owner key (MOK) that your system trusts,"
            " and could not make one"
        )
        assert "/dev/null/moks" in str(caught.value)

    @pytest.mark.parametrize("script", ['echo signed >>"$4"', "echo unsupported >&2; exit 1"])
    async def test_new_key_of_another_kind_is_offered_if_the_kernel_s_program_signs_with_it(
        self, workspace, tmp_path, script
    ):
        make_sign_file(tmp_path, script)
        lines = LogLines()
        moks = tmp_path / "moks"
        keys = MokStore(moks, lines.log, kind=ml_dsa())
        signer = KernelSigner(keys, workspace, Sandbox(None), WorkerPool(1, queue_length=None))
        if "unsupported" not in script:
            signed = await signer.sign((MODULE,), a_job(tmp_path))
            assert [mok.fingerprint for mok in load_moks(moks).usable] == [signed.key]
            return
        with pytest.raises(TranslatorError) as caught:
            await signer.sign((MODULE,), a_job(tmp_path))
        assert f"{tmp_path}/scripts/sign-file: cannot sign with the kind of key" in str(caught.value)
        assert "(unsupported)" in str(caught.value)
        assert load_moks(moks).usable == ()

    @pytest.mark.parametrize(
        ("script", "reason"),
        [
            ("echo no such key >&2; exit 1", "no such key"),
            ("exit 3", "status 3"),
            ("kill -KILL $$", "status -9"),
            ('rm "$4"', "No such file or directory"),
            (None, "could not be started: No such file or directory"),
            ("sleep 1000", "did not end within 0.2 seconds"),
        ],
    )
    async def test_failed_signing_is_an_error_without_paths(
        self, signer, made, tmp_path, monkeypatch, script, reason
    ):
        if script is not None:
            make_sign_file(tmp_path, script)
        if script == "sleep 1000":
            monkeypatch.setattr(signing, "_SIGN_FILE_S", 0.2)
        with pytest.raises(TranslatorError) as caught:
            await signer.sign((MODULE,), a_job(tmp_path, made.fingerprint))
        # The client reads no path of this host.
        assert caught.value.problem == "The module could not be signed for your system's kernel"
        assert caught.value.remedy is None
        assert reason in str(caught.value)

    async def test_as_many_answers_are_signed_at_once_as_there_are_signers(self, signer, made, tmp_path):
        """Each notes that it has begun and how many others are there; two signers work for eight answers."""
        ours = tmp_path / "signing"
        ours.mkdir()
        make_sign_file(
            tmp_path, f"mkdir {ours}/$$; ls {ours} | wc -l >>{tmp_path}/seen; sleep 0.1; rmdir {ours}/$$"
        )
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                job = a_job(tmp_path, made.fingerprint, client=f"192.0.2.{number}")
                tasks.start_soon(signer.sign, (MODULE,), job)
        seen = [int(line) for line in (tmp_path / "seen").read_text().split()]
        assert len(seen) == 8
        assert max(seen) <= 2

    async def test_turn_that_comes_too_late_is_a_rejection(self, signer, made, tmp_path):
        make_sign_file(tmp_path, "sleep 1000")
        at_once = a_job(tmp_path, made.fingerprint, client="192.0.2.2", queue_s=0.1)
        async with anyio.create_task_group() as tasks:
            for _ in range(2):
                tasks.start_soon(signer.sign, (MODULE,), a_job(tmp_path, made.fingerprint))
            # The keys are read in a thread first, where the third could overtake one of them.
            while signer._signers.statistics().running < 2:
                await anyio.lowlevel.checkpoint()
            with pytest.raises(RequestRejected, match="no worker was free within"):
                await signer.sign((MODULE,), at_once)
            tasks.cancel_scope.cancel()

    async def test_signing_is_held_to_the_limits_of_compiles(self, signer, made, tmp_path):
        make_sign_file(tmp_path, 'echo "$(ulimit -t) $(ulimit -v)" >>"$4"')
        held = a_job(tmp_path, made.fingerprint, cpu_s=7.0, memory_bytes=1 << 30)
        signed = await signer.sign((MODULE,), held)
        assert signed.files[0].whole == b"module7 1048576\n"
