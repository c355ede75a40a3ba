"""A certificate's dates, and who trusts it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime, timedelta

import anyio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import rsa
from kit.service import LogLines

from stapsrv.doctor.certificates import check_dates, check_trust, saved_certificate
from stapsrv.doctor.findings import Finding, Verdict
from stapsrv.errors import IdentityError
from stapsrv.identity.certificate import CERTIFICATE_FILE, load_or_create_identity
from stapsrv.identity.selfsigned import self_signed
from stapsrv.identity.trust import authorize, default_client_directory

NAME = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "a server")])
DAY = timedelta(days=1)


@pytest.fixture(scope="module")
def key() -> rsa.RSAPrivateKey:
    return rsa.generate_private_key(public_exponent=65537, key_size=2048)


@pytest.fixture(scope="module")
def certificate(tmp_path_factory) -> x509.Certificate:
    directory = tmp_path_factory.mktemp("made") / "server"
    made = anyio.run(lambda: load_or_create_identity(directory, log=LogLines().log))
    return made.certificate


@pytest.fixture
def environ(tmp_path, monkeypatch) -> dict[str, str]:
    monkeypatch.setattr("stapsrv.doctor.certificates.ALL_CLIENTS", tmp_path / "all")
    return {"SYSTEMTAP_DIR": str(tmp_path / "systemtap")}


def trust(certificate: x509.Certificate, environ) -> Finding:
    return anyio.run(lambda: check_trust(certificate, environ, distrust="it is unknown", remedy="trust it"))


@pytest.mark.parametrize(
    ("begin", "end", "verdict", "answer"),
    [
        (-DAY, 300 * DAY, Verdict.OK, "serial 01, valid until "),
        (-DAY, 29 * DAY, Verdict.WARNING, ", less than a month"),
        (-3 * DAY, -DAY, Verdict.FAILURE, "has expired on "),
        (DAY, 300 * DAY, Verdict.FAILURE, "is not valid before "),
    ],
)
def test_dates_decide_the_verdict(key, begin, end, verdict, answer):
    start = datetime.now(UTC) + begin
    finding = check_dates(self_signed(key, NAME, [], serial=1, begin=start, lifetime=end - begin))
    assert finding.verdict is verdict
    assert answer in finding.answer


def test_certificate_is_trusted_once_it_was_authorized(certificate, environ):
    finding = trust(certificate, environ)
    assert (finding.verdict, finding.answer) == (Verdict.FAILURE, "it is unknown")
    assert finding.remedy == "trust it"
    directory = default_client_directory(environ)
    anyio.run(lambda: authorize(certificate, directory, log=LogLines().log))
    finding = trust(certificate, environ)
    assert (finding.verdict, finding.answer) == (Verdict.OK, f"{directory} trusts it")


def test_trust_of_all_clients_is_of_no_use_to_who_cannot_write_it(
    certificate, environ, tmp_path, monkeypatch
):
    anyio.run(lambda: authorize(certificate, tmp_path / "all", log=LogLines().log))
    finding = trust(certificate, environ)
    assert (finding.verdict, finding.answer) == (Verdict.OK, f"{tmp_path}/all trusts it")
    # For root, who may write all.
    monkeypatch.setattr("os.access", lambda path, _mode: not str(path).endswith(".db"))
    finding = trust(certificate, environ)
    assert (finding.verdict, finding.remedy) == (Verdict.FAILURE, "trust it")
    assert finding.answer.startswith(
        f"only {tmp_path}/all trusts it, of no use to clients that cannot write it"
    )


def test_missing_certutil_is_a_warning(certificate, environ, monkeypatch):
    directory = default_client_directory(environ)
    directory.mkdir(parents=True)
    (directory / "cert9.db").touch()
    monkeypatch.setenv("PATH", "/nowhere")
    finding = trust(certificate, environ)
    assert finding.verdict is Verdict.WARNING
    assert finding.answer == f"cannot be checked without certutil: {directory}"


def test_damaged_database_is_a_failure(certificate, environ):
    directory = default_client_directory(environ)
    directory.mkdir(parents=True)
    for name in ("cert9.db", "key4.db"):
        (directory / name).write_bytes(b"no database" * 500)
    finding = trust(certificate, environ)
    assert finding.verdict is Verdict.FAILURE
    assert finding.answer.startswith(f"{directory}: cert9.db is damaged")


def test_hanging_database_is_a_failure(certificate, environ, monkeypatch):
    hanging = threading.Event()
    monkeypatch.setattr("stapsrv.doctor.certificates._TIMEOUT_S", 0.2)
    monkeypatch.setattr("stapsrv.doctor.certificates.is_trusted", lambda *_arguments: hanging.wait())
    try:
        finding = trust(certificate, environ)
    finally:
        hanging.set()
    assert finding.verdict is Verdict.FAILURE
    assert finding.answer.endswith(": no answer within 0.2 seconds")


def test_saved_certificate_is_read_if_there_is_one(certificate, tmp_path):
    assert saved_certificate(tmp_path) is None
    (tmp_path / CERTIFICATE_FILE).write_bytes(b"no certificate")
    with pytest.raises(IdentityError, match="cannot be read"):
        saved_certificate(tmp_path)
