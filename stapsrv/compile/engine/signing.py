"""The signatures on an answer's modules.

There are two kinds, for two readers on the client's host. A kernel that loads no other modules (secure boot)
looks for one at the end of the module itself, made with a *machine owner key* that it knows. ``staprun``, for
a user who may not load every module, looks for a file ``NAME.ko.sgn``, made with the key of the *server's
certificate*; it states that stap was held to a restricted privilege, and covers the module with all that is
appended to it.

Both are made here, after the compile and out of its reach: no compile sees a key. So stap's own
``--sign-module`` is not used: it would need the keys where compiles run, and makes a new one each time that
it cannot use the one it is given.

Source: PROTOCOL, privilege and signing, machine owner keys; seen in SystemTap 4.8.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

import anyio.to_thread
import attrs

from stapsrv.compile.engine.base import CompileJob
from stapsrv.compile.engine.workspace import Workspace
from stapsrv.compile.pool import WorkerPool
from stapsrv.compile.protocol.options import ParsedOptions, Privilege
from stapsrv.compile.protocol.response import RESPONSE_DIRECTORY, ResponseFile
from stapsrv.errors import IdentityError, RequestRejected, TranslatorError
from stapsrv.identity.mok import SIGN_FILE, Mok, MokStore, sign_file_command, unfit_for_kernel
from stapsrv.process import ExitReason, check_program, run_process_tree
from stapsrv.sandbox.sandbox import Sandbox

SIGNED_PRIVILEGES = frozenset({Privilege.STAPUSR, Privilege.STAPSYS})
# In an answer, the certificate to enrol; the client leaves it in its user's working directory.
OWNER_CERTIFICATE = "signing_key.x509"

_SIGNATURE = ".sgn"
_MODULE = re.compile(rf"{RESPONSE_DIRECTORY}/([^/]+|uprobes/uprobes)\.ko")

_SIGN_FILE_S = 30.0  # it takes 10 ms
_SIGN_FILE_ENVIRONMENT = {b"PATH": b"/usr/bin:/bin", b"LC_ALL": b"C"}

_NOT_SIGNED = "The module is not signed: this server has no machine owner key (MOK) that your system trusts"
_SIGNING_FAILED = "The module could not be signed for your system's kernel"
_HOW_TO_ENROL = f"""\
Server: {_NOT_SIGNED}.
Server: To trust its key, run this where stap left {OWNER_CERTIFICATE}, and reboot; then try again:
Server:     sudo mokutil --import {OWNER_CERTIFICATE}
"""


def refuse_signing_options(parsed: ParsedOptions) -> None:
    """Raise RequestRejected for ``--sign-module``, which would make stap use or make keys on this host."""
    # No real client sends it.
    if any(name == "sign-module" for name, _value in parsed.options):
        raise RequestRejected("--sign-module is not for clients: this server signs the modules that need it")


def without_signatures(files: Iterable[ResponseFile]) -> tuple[ResponseFile, ...]:
    """Return the files less those that only look like a signature of this server."""
    return tuple(file for file in files if not file.path.endswith(_SIGNATURE))


def has_modules(files: Iterable[ResponseFile]) -> bool:
    """Whether there is a kernel module among the files."""
    return any(_is_module(file) for file in files)


async def add_signatures(
    files: Iterable[ResponseFile], sign: Callable[[bytes], bytes]
) -> tuple[ResponseFile, ...]:
    """Add a file ``NAME.ko.sgn`` for each module; ``sign`` runs in a worker thread."""
    signed = []
    for file in files:
        signed.append(file)
        if _is_module(file):
            signature = await anyio.to_thread.run_sync(_signature_of, file, sign)
            signed.append(ResponseFile(file.path + _SIGNATURE, signature))
    return tuple(signed)


@attrs.frozen
class SignedForKernel:
    """The files of an answer to a client whose kernel wants modules signed.

    They are signed if that kernel trusts the key whose fingerprint is ``key``; else unsigned, with the
    certificate of that key to enrol. ``message`` is for the client's user.
    """

    files: tuple[ResponseFile, ...]
    key: str
    trusted: bool
    message: bytes


@attrs.frozen
class KernelSigner:
    """Signs modules for kernels that load no others; ``signers`` bounds how many answers at once.

    All servers share the signers. They are none of the workers, which a client whose answer is being signed
    may still hold for what follows its compile.
    """

    _keys: MokStore
    _workspace: Workspace
    _sandbox: Sandbox  # the kernel's program reads a module that a client had made
    _signers: WorkerPool

    async def sign(self, files: Sequence[ResponseFile], job: CompileJob) -> SignedForKernel:
        """Sign the modules of a job with a key that the client's kernel trusts, or offer it one.

        Raises:
            TranslatorError: they cannot be signed, or there is no key to offer.
            RequestRejected: it was not the client's turn within the time that a request may wait.
        """
        key = await self._keys.find(job.request.fingerprints)
        if key is None:
            return await self._offer(files, job)
        async with self._signers.worker(job.client, wait_s=job.settings.limits.queue_s):
            signed = [
                attrs.evolve(file, after=await self._signature(file.data, key, job))
                if _is_module(file)
                else file
                for file in files
            ]
        message = f"Server: The module is signed with the machine owner key (MOK) {key.fingerprint}\n"
        return SignedForKernel(tuple(signed), key.fingerprint, trusted=True, message=message.encode())

    async def _offer(self, files: Sequence[ResponseFile], job: CompileJob) -> SignedForKernel:
        try:
            key = await self._keys.get_or_create(functools.partial(self._try, job=job))
        except IdentityError as exc:
            raise TranslatorError(f"{_NOT_SIGNED}, and could not make one", where=str(exc)) from exc
        certificate = ResponseFile(OWNER_CERTIFICATE, key.der)
        return SignedForKernel(
            (*files, certificate), key.fingerprint, trusted=False, message=_HOW_TO_ENROL.encode()
        )

    async def _try(self, key: Mok, job: CompileJob) -> None:
        try:
            await self._signature(b"trial", key, job)
        except TranslatorError as exc:
            program = job.release.build_tree / SIGN_FILE
            raise unfit_for_kernel(program, str(exc.where).removeprefix(f"{program}: ")) from exc

    async def _signature(self, module: bytes, key: Mok, job: CompileJob) -> bytes:
        """Return what is to follow a module; all who are sent the module share the rest."""
        try:
            async with self._workspace.request_directory(keep=False) as directory:
                path = directory / "module.ko"
                await self._workspace.files.run(functools.partial(path.write_bytes, module))
                await self._run_sign_file(key, path, job)
                return await self._workspace.files.run(functools.partial(_read_from, path, len(module)))
        except (OSError, TranslatorError) as exc:
            # Where and why is for the log, not for the client.
            raise TranslatorError(_SIGNING_FAILED, where=str(exc)) from exc

    async def _run_sign_file(self, key: Mok, module: Path, job: CompileJob) -> None:
        """Run the kernel's own program, which knows the signatures that this kernel reads, on a file."""
        program, limits = job.release.build_tree / SIGN_FILE, job.settings.limits
        check_program(program)
        read = (program, key.key_file, key.certificate_file)
        plan = await self._workspace.files.run(
            functools.partial(self._sandbox.tool_mounts, read, module.parent)
        )
        command = sign_file_command(program, key, module)
        async with self._sandbox.request_cgroup(module.parent.name, limits) as group:
            result = await run_process_tree(
                self._sandbox.command(plan, limits, command),
                deadline_s=_SIGN_FILE_S,
                env=_SIGN_FILE_ENVIRONMENT,
                group=group,
            )
        if result.exit_reason is ExitReason.TIMED_OUT:
            raise TranslatorError(f"did not end within {_SIGN_FILE_S:g} seconds", where=str(program))
        if result.exit_reason is not ExitReason.EXITED or result.status != 0:
            said = result.stderr.decode(errors="replace").strip() or f"status {result.status}"
            raise TranslatorError(said, where=str(program))


def _signature_of(file: ResponseFile, sign: Callable[[bytes], bytes]) -> bytes:
    return sign(file.whole)


def _read_from(path: Path, offset: int) -> bytes:
    with path.open("rb") as stream:
        stream.seek(offset)
        return stream.read()


def _is_module(file: ResponseFile) -> bool:
    return _MODULE.fullmatch(file.path) is not None
