"""``stap-server mok``."""

from __future__ import annotations

import json
import os
import pwd
import subprocess
import sys
from pathlib import Path

import pytest
from kit.moks import make_sign_file, ml_dsa

from stapsrv.control.cli.commands import mok
from stapsrv.identity.mok import load_moks

USER = pwd.getpwuid(os.geteuid()).pw_name


@pytest.fixture(scope="module")
def keys(tmp_path_factory) -> Path:
    """A server's directory with one key, made by the command itself."""
    directory = tmp_path_factory.mktemp("ssl") / "server"
    directory.mkdir()
    command = [
        sys.executable,
        "-m",
        "stapsrv.control.cli.main",
        "mok",
        "new",
        "-u",
        USER,
        "--ssl",
        str(directory),
    ]
    made = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    assert (directory / "moks" / made / "signing_key.priv").stat().st_mode & 0o777 == 0o600
    return directory


def run(capsys, directory: Path, *arguments: str, status: int = 0) -> tuple[str, str]:
    assert mok.main([*arguments, "-u", USER, "--ssl", str(directory)]) == status
    return tuple(capsys.readouterr())


def test_list(keys, capsys):
    (listed,) = json.loads(run(capsys, keys, "list", "--json")[0])
    assert run(capsys, keys, "list")[0].startswith(f"{listed['fingerprint']}  until 21")
    assert listed["file"] == f"{keys}/moks/{listed['fingerprint']}/signing_key.x509"


def test_export_is_what_mokutil_takes(keys, capsys, tmp_path):
    (listed,) = json.loads(run(capsys, keys, "list", "--json")[0])
    for name in ((), (listed["fingerprint"].upper(),)):
        run(capsys, keys, "export", *name, "-o", str(tmp_path / "out"))
        assert (tmp_path / "out").read_bytes() == Path(listed["file"]).read_bytes()
    run(capsys, keys, "export", "--pem", "-o", str(tmp_path / "pem"))
    said = subprocess.run(
        ["openssl", "x509", "-in", tmp_path / "pem", "-noout", "-fingerprint", "-sha1"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert listed["fingerprint"] in said.lower()


def test_unusable_key_is_told(keys, capsys, tmp_path):
    bad = tmp_path / "moks" / "aa:bb"
    bad.mkdir(parents=True)
    out, err = run(capsys, tmp_path, "list", status=1)
    assert out == f"no machine owner key in {tmp_path}/moks\n"
    assert str(bad) in err
    assert err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "status", "text"),
    [
        (["export"], 1, "holds no machine owner key; make one: stap-server mok new\n"),
        (["burn"], 2, "invalid choice: 'burn'"),
    ],
)
def test_faults_are_one_line(capsys, tmp_path, arguments, status, text):
    _, err = run(capsys, tmp_path, *arguments, status=status)
    assert text in err
    assert err.count("\n") == 1


@pytest.mark.parametrize("script", ['echo signed >>"$4"', "echo unsupported >&2; exit 1", None])
def test_new_key_is_of_the_kind_that_the_environment_says(capsys, tmp_path, monkeypatch, script):
    monkeypatch.setattr(mok, "MODULES", tmp_path / "modules")
    monkeypatch.setattr(mok, "installed_releases", lambda: [] if script is None else ["1", "2"])
    monkeypatch.setenv("SYSTEMTAP_MOK_KEY_TYPE", ml_dsa().value)
    if script is not None:
        make_sign_file(tmp_path / "modules/1/build", "exit 1")
        make_sign_file(tmp_path / "modules/2/build", script)
    works = script is None or "unsupported" not in script
    out, err = run(capsys, tmp_path, "new", status=0 if works else 1)
    (made,) = load_moks(tmp_path / "moks").usable if works else (None,)
    if made is not None:
        assert out == f"{made.fingerprint}\n"
        assert made.certificate.signature_algorithm_oid.dotted_string == "2.16.840.1.101.3.4.3.18"
    else:
        assert err.startswith(f"stap-server mok: {tmp_path}/modules/2/build/scripts/sign-file: cannot sign")
        assert "(unsupported)" in err
        assert err.count("\n") == 1


def test_new_key_of_an_unknown_kind_is_refused(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("SYSTEMTAP_MOK_KEY_TYPE", "bogus")
    _, err = run(capsys, tmp_path, "new", status=1)
    assert err.startswith(
        "stap-server mok: SYSTEMTAP_MOK_KEY_TYPE=bogus: is no kind of key; write one of rsa,"
    )


def test_unknown_key(keys, capsys):
    _, err = run(capsys, keys, "export", "00:11", status=2)
    assert err.startswith("stap-server mok: there is no key 00:11; name one: ")
