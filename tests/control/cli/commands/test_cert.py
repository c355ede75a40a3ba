"""``stap-server cert``, ``stap-gen-cert`` and ``stap-authorize-cert``."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from stapsrv.control.cli.commands import cert

SERIAL = r"([0-9a-f]{2}:)+[0-9a-f]{2}"


@pytest.fixture
def systemtap(tmp_path, identity, monkeypatch) -> Path:
    """A SystemTap directory with a server's certificate in it, in force for this process."""
    directory = tmp_path / "systemtap"
    (directory / "ssl").mkdir(parents=True)
    identity.rename(directory / "ssl" / "server")
    monkeypatch.setenv("SYSTEMTAP_DIR", str(directory))
    monkeypatch.setattr(cert, "ALL_CLIENTS", tmp_path / "all-clients")
    monkeypatch.setattr(cert, "MODULE_SIGNERS", tmp_path / "staprun")
    return directory


def run(capsys, *arguments: str) -> str:
    assert cert.main([*arguments, "-u", user()]) == 0
    return capsys.readouterr().out


def user() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def shown(capsys) -> dict:
    return json.loads(run(capsys, "show", "--json"))


def test_show_agrees_with_openssl(systemtap, capsys):
    found = shown(capsys)
    file = systemtap / "ssl" / "server" / "stap.cert"
    said = subprocess.run(
        [
            "openssl",
            "x509",
            "-inform",
            "DER",
            "-in",
            file,
            "-noout",
            "-serial",
            "-fingerprint",
            "-sha256",
            "-dates",
        ],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert f"serial={found['serial'].replace(':', '').upper().removeprefix('00')}" in said
    assert found["sha256"].upper() in said
    assert found["key"] == "RSA 3072 bits"
    assert found["subject"] == "CN=Systemtap Compile Server,OU=Systemtap"
    assert found["trusted_by"] == []


def test_show_for_people(systemtap, capsys):
    text = run(capsys, "show")
    assert "not after:   20" in text
    assert "trusted by:  nobody" in text


def test_authorize_and_revoke(systemtap, capsys):
    mine = f"{systemtap}/ssl/client"
    serial = shown(capsys)["serial"]
    assert run(capsys, "authorize") == f"{mine} trusts {serial}\n"
    assert shown(capsys)["trusted_by"] == [f"the client of {user()}"]
    assert run(capsys, "revoke") == f"{mine} no longer trusts {serial}\n"
    assert shown(capsys)["trusted_by"] == []
    assert run(capsys, "revoke") == f"{mine} did not trust {serial}\n"


def test_revocation_spares_the_others(systemtap, capsys):
    run(capsys, "authorize")
    first = shown(capsys)["serial"]
    run(capsys, "export", "--der", "-o", str(systemtap / "old.cert"))
    run(capsys, "renew")
    second = shown(capsys)
    assert second["serial"] != first
    assert second["trusted_by"] == [f"the client of {user()}"]
    run(capsys, "revoke")
    listed = subprocess.run(
        ["certutil", "-L", "-n", "stap-server", "-d", f"sql:{systemtap}/ssl/client"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert first in listed.replace("\n", " ").lower() or f"{int(first.replace(':', ''), 16):x}" in listed
    assert listed.count("Serial Number") == 1


def test_renewal_keeps_extra_names(systemtap, capsys, monkeypatch):
    monkeypatch.setattr("sys.argv", ["stap-gen-cert", "one.example,two.example", "three"])
    if os.getuid() == 0:
        pytest.skip("stap-gen-cert does not run as root")
    assert cert.gen_cert() == 0
    extra = ["one.example", "two.example", "three"]
    assert shown(capsys)["names"][2:] == extra
    run(capsys, "renew")
    assert shown(capsys)["names"][2:] == extra


def test_renewal_by_a_key_that_clients_do_not_take_is_refused(systemtap, capsys, monkeypatch):
    monkeypatch.setenv("SYSTEMTAP_SIGN_KEY_TYPE", "ml-dsa-65")
    before = shown(capsys)
    assert cert.main(["renew", "-u", user()]) == 1
    assert capsys.readouterr().err.startswith(
        "stap-server cert: SYSTEMTAP_SIGN_KEY_TYPE=ml-dsa-65: clients before"
    )
    assert cert.gen_cert([]) == 1
    assert capsys.readouterr().err.startswith(
        "stap-gen-cert: SYSTEMTAP_SIGN_KEY_TYPE=ml-dsa-65: clients before"
    )
    assert shown(capsys) == before


def test_export(systemtap):
    file = systemtap / "ssl" / "server" / "stap.cert"
    assert cert.main(["export", "--der", "-o", str(systemtap / "out"), "-u", user()]) == 0
    assert (systemtap / "out").read_bytes() == file.read_bytes()
    command = [sys.executable, "-m", "stapsrv.control.cli.main", "cert", "export", "-u", user()]
    pem = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert pem.startswith("-----BEGIN CERTIFICATE-----\n")


@pytest.mark.skipif(os.geteuid() == 0, reason="root decides for everybody")
@pytest.mark.parametrize("verb", ["authorize", "revoke"])
@pytest.mark.parametrize("whom", ["--all", "--signer"])
def test_only_root_decides_for_everybody(systemtap, capsys, verb, whom):
    assert cert.main([verb, whom]) == 1
    assert capsys.readouterr().err == (
        "stap-server cert: only root decides for every user of this host; run it as root\n"
    )


@pytest.mark.root
@pytest.mark.skipif(os.geteuid() != 0, reason="only root decides for everybody")
@pytest.mark.parametrize(("whom", "place"), [("--all", "every client"), ("--signer", "staprun")])
def test_root_decides_for_everybody(systemtap, capsys, whom, place):
    run(capsys, "authorize", whom)
    assert shown(capsys)["trusted_by"] == [place]
    run(capsys, "revoke", whom)
    assert shown(capsys)["trusted_by"] == []


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        ([], 2, "the following arguments are required: VERB; see stap-server cert --help"),
        (["frobnicate"], 2, "argument VERB: invalid choice: 'frobnicate'"),
        (
            ["show", "--ssl", "/missing"],
            1,
            "/missing/stap.cert: cannot be read (No such file or directory); start",
        ),
        (["show", "-u", "nobody-here"], 1, "there is no user nobody-here; name another with -u"),
        (["export", "--der", "--pem"], 2, "argument --pem: not allowed with argument --der"),
        (["export", "-o", "/missing/x"], 1, "/missing/x: cannot be written (No such file or directory)"),
    ],
)
def test_faults_are_one_line(systemtap, capsys, arguments, status, text):
    named = arguments if not arguments or "-u" in arguments or status == 2 else [*arguments, "-u", user()]
    assert cert.main(named) == status
    error = capsys.readouterr().err
    assert error.startswith(f"stap-server cert: {text}")
    assert error.count("\n") == 1


def test_not_a_certificate(systemtap, capsys):
    (systemtap / "ssl" / "server" / "stap.cert").write_bytes(b"nonsense")
    assert cert.main(["show", "-u", user()]) == 1
    assert "stap.cert: is not a certificate; give one in DER or PEM" in capsys.readouterr().err


class TestAuthorizeCert:
    def call(self, monkeypatch, *arguments: str) -> int:
        monkeypatch.setattr("sys.argv", ["stap-authorize-cert", *arguments])
        return cert.authorize_cert()

    def test_makes_the_database_and_trusts(self, systemtap, monkeypatch, tmp_path):
        file = str(systemtap / "ssl" / "server" / "stap.cert")
        assert self.call(monkeypatch, file, str(tmp_path / "db")) == 0
        listed = subprocess.run(
            ["certutil", "-L", "-d", f"sql:{tmp_path}/db"], capture_output=True, text=True, check=True
        ).stdout
        assert "P,P,P" in listed
        assert {path.stat().st_mode & 0o777 for path in (tmp_path / "db").glob("*.db")} == {0o644}

    def test_usage(self, monkeypatch, capsys):
        assert self.call(monkeypatch) == 2
        assert capsys.readouterr().err == (
            "stap-authorize-cert: a certificate and a database are needed; "
            "usage: stap-authorize-cert CERTFILE DIRECTORY\n"
        )

    def test_missing_file(self, monkeypatch, capsys, tmp_path):
        assert self.call(monkeypatch, "/missing", str(tmp_path / "db")) == 1
        assert not (tmp_path / "db").exists()
