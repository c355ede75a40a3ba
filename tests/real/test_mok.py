"""The real client on a host under secure boot, whose kernel loads signed modules only.

No kernel is locked for that: the client asks mokutil which keys are enrolled, which here is a script, and
looks at a file of the kernel's, over which its own mount namespace has another.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import anyio
import pytest
from kit import openssl
from kit.client import exchange, request
from kit.moks import make_mok
from kit.real import Ran, Server, Stap, serving_original

from stapsrv.identity.mok import Mok, load_moks

SCRIPT = "probe begin { exit() }"

LOCKED = """\
#!/bin/sh
exec unshare --user --map-root-user --mount sh -c '
    mount -t tmpfs none /sys/kernel/security &&
    echo "none [integrity] confidentiality" >/sys/kernel/security/lockdown && exec "$@"' sh {program} "$@"
"""

SecureBoot = Callable[..., Ran]


@pytest.fixture(autouse=True)
def no_keys(stap: Stap) -> None:
    """Let there be no key yet, whatever other tests had this user's servers make."""
    shutil.rmtree(moks_place(stap), ignore_errors=True)


@pytest.fixture
def locked(stap: Stap) -> SecureBoot:
    """Run the client on such a host; give it a server's port, the fingerprints enrolled, and arguments."""
    programs = stap.place / "bin"
    programs.mkdir()
    (programs / "stap").write_text(LOCKED.format(program=shutil.which("stap")))
    (programs / "mokutil").write_text('#!/bin/sh\nexec cat "${0%/*}/enrolled"\n')
    for program in programs.iterdir():
        program.chmod(0o755)
    path = f"{programs}:{os.environ['PATH']}"
    if subprocess.run([programs / "stap", "--version"], check=False, capture_output=True).returncode != 0:
        pytest.skip("this user may not mount anything in a namespace of its own")

    def run(server: Server, enrolled: tuple[str, ...], *arguments: str) -> Ran:
        keys = [
            f"[key {number}]\nSHA1 Fingerprint: {fingerprint}\n        Issuer: O=Systemtap, CN=x\n"
            for number, fingerprint in enumerate(enrolled, 1)
        ]
        (programs / "enrolled").write_text("".join(keys) or "MokListRT is empty\n")
        return stap.via(server.port, *arguments, "-e", SCRIPT, PATH=path)

    return run


def moks_place(stap: Stap) -> Path:
    return stap.directory / "ssl" / "server" / "moks"


def moks_of(stap: Stap) -> tuple[Mok, ...]:
    """The keys of this user's servers."""
    return load_moks(moks_place(stap)).usable


def shown(module: Path, field: str) -> str:
    """What modinfo says of a module's signature."""
    environ = {"PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"}
    command = ["modinfo", "-F", field, str(module)]
    return subprocess.run(command, env=environ, check=True, capture_output=True, text=True).stdout.strip()


def test_key_is_offered_then_it_signs(server, stap, locked):
    """The way of a user: the first request brings a key, the next, once it is enrolled, a module."""
    ran = locked(server, (), "-p4")
    (mok,) = moks_of(stap)
    assert ran.status == 1
    assert "Server:     sudo mokutil --import signing_key.x509\n" in ran.stderr
    assert (stap.place / "signing_key.x509").read_bytes() == mok.der
    assert not list(stap.place.glob("*.ko"))

    ran = locked(server, ("00:" * 19 + "00", mok.fingerprint), "-p4", "--unprivileged")
    assert ran.status == 0, ran.stderr
    assert f"machine owner key (MOK) {mok.fingerprint}" in ran.stderr
    module = stap.place / ran.module
    assert shown(module, "signer") == "Systemtap module signing key"
    assert shown(module, "sig_hashalgo") == "sha512"
    assert int(shown(module, "sig_key").replace(":", ""), 16) == mok.certificate.serial_number
    assert openssl.verifies_for_kernel(certificate=mok.der, module=module.read_bytes())
    spoilt = module.read_bytes().replace(b"stap", b"pats", 1)
    assert not openssl.verifies_for_kernel(certificate=mok.der, module=spoilt)
    # And the other kind of signature covers this one.
    certificate = (stap.directory / "ssl/server/stap.cert").read_bytes()
    signature = module.with_name(f"{module.name}.sgn").read_bytes()
    assert openssl.verifies(certificate=certificate, data=module.read_bytes(), signature=signature)


def test_another_s_key_is_answered_with_ours(server, stap, locked):
    ran = locked(server, ("00:" * 19 + "00",), "-p4")
    assert ran.status == 1
    assert (stap.place / "signing_key.x509").read_bytes() in [mok.der for mok in moks_of(stap)]


def test_without_a_module_no_key_is_wanted(server, stap, locked):
    ran = locked(server, (), "-p2")
    assert ran.status == 0, ran.stderr
    assert not (stap.place / "signing_key.x509").exists()


def test_original_server_takes_our_key(stap, serve, locked):
    mok = make_mok(moks_place(stap))
    ran = locked(serve(using=serving_original), (mok.fingerprint,), "-p4")
    assert ran.status == 0, ran.stderr
    module = (stap.place / ran.module).read_bytes()
    assert openssl.verifies_for_kernel(certificate=mok.der, module=module)


def test_original_server_s_key_is_taken(server, stap, serve, locked):
    ran = locked(serve(using=serving_original), (), "-p4")
    assert ran.status == 1, ran.stderr
    (mok,) = moks_of(stap)
    ran = locked(server, (mok.fingerprint,), "-p4")
    assert ran.status == 0, ran.stderr
    assert openssl.verifies_for_kernel(certificate=mok.der, module=(stap.place / ran.module).read_bytes())


def test_stap_makes_no_keys_for_a_client(server, stap):
    """Left to itself it makes one for each such request."""
    before = moks_of(stap)

    async def ask(option: str) -> None:
        answer = await exchange(
            server.port, request("-p4", option, "-e", SCRIPT, release=stap.installation.release)
        )
        assert answer.rc == 1
        assert answer.stderr.startswith("Server: --sign-module is not for clients")

    for option in ("--sign-module", "--sign=/tmp"):
        anyio.run(ask, option)
    assert moks_of(stap) == before
