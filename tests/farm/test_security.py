"""A farm's connections are by mutual TLS; what would fail later is one line at the start."""

from __future__ import annotations

import ssl
import subprocess
from datetime import UTC, datetime, timedelta
from pathlib import Path

import dask
import pytest

from stapsrv.errors import ConfigError
from stapsrv.farm.ca import create_authority, issue
from stapsrv.farm.security import FarmCredentials, farm_security

TLS = "tls://127.0.0.1:8786"


@pytest.fixture(scope="module")
def farm(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("farm")
    create_authority(directory)
    for name in ("node", "other"):
        issue(directory, name)
    return directory


@pytest.fixture
def credentials(farm) -> FarmCredentials:
    return FarmCredentials(farm / "ca.pem", farm / "node.pem", farm / "node.key")


def changed(credentials: FarmCredentials, **files: Path) -> FarmCredentials:
    return FarmCredentials(
        **{"ca": credentials.ca, "cert": credentials.cert, "key": credentials.key, **files}
    )


def test_connections_with_credentials_are_encrypted_in_each_role(credentials):
    hostile = {
        "distributed.comm.require-encryption": False,
        "distributed.comm.tls.ciphers": "NULL",
        "distributed.comm.tls.max-version": 1.2,
    }
    with dask.config.set(hostile):
        security = farm_security(credentials, address=TLS)
    assert security.require_encryption
    assert (security.tls_ciphers, security.tls_max_version) == (None, None)
    for role in ("client", "scheduler", "worker"):
        for arguments in (security.get_connection_args(role), security.get_listen_args(role)):
            context = arguments["ssl_context"]
            assert arguments["require_encryption"]
            assert context.verify_mode is ssl.CERT_REQUIRED
            assert context.minimum_version is ssl.TLSVersion.TLSv1_2
            assert len(context.get_ca_certs()) == 1


@pytest.mark.parametrize("address", ["tcp://127.0.0.1:8786", "tcp://localhost:8786", "tcp://[::1]:8786"])
def test_loopback_may_be_plain(credentials, address):
    assert not farm_security(None, address=address).require_encryption
    with pytest.raises(ConfigError, match="has no use for certificates; write tls://"):
        farm_security(credentials, address=address)


@pytest.mark.parametrize(
    "address", ["tcp://10.0.0.1:8786", "tcp://0.0.0.0:8786", "tcp://[::]:8786", "tcp://farm:8786"]
)
def test_plain_connections_to_others_are_refused(address):
    with pytest.raises(
        ConfigError, match="expected tls://HOST:PORT, since tcp:// without TLS is for this host"
    ):
        farm_security(None, address=address)


@pytest.mark.parametrize(
    "address", ["farm", "farm:8786", "tls://farm", "http://farm:1", "tls://farm:8786/x", ""]
)
def test_what_is_no_address_is_refused(credentials, address):
    with pytest.raises(ConfigError, match=r"expected tls://HOST:PORT, with an IPv6 address in brackets"):
        farm_security(credentials, address=address)


def test_encrypted_connections_need_all_files():
    with pytest.raises(
        ConfigError, match=r"^tls://127\.0\.0\.1:8786: needs the farm's authority, a certificate and"
    ):
        farm_security(None, address=TLS)


@pytest.mark.parametrize("name", ["ca", "cert", "key"])
def test_missing_file_is_named(credentials, tmp_path, name):
    missing = tmp_path / "missing"
    with pytest.raises(ConfigError, match=rf"^{missing}: cannot be used \(No such file or directory\)"):
        farm_security(changed(credentials, **{name: missing}), address=TLS)


def test_key_of_another_certificate_is_refused(credentials, farm):
    with pytest.raises(ConfigError, match=r"other\.key: is not the key of .*node\.pem; name the two"):
        farm_security(changed(credentials, key=farm / "other.key"), address=TLS)


def test_key_that_others_can_read_is_refused(credentials, tmp_path):
    exposed = tmp_path / "exposed.key"
    exposed.write_bytes(credentials.key.read_bytes())
    exposed.chmod(0o644)
    with pytest.raises(ConfigError, match=r"exposed\.key: is a private key, and others than its owner"):
        farm_security(changed(credentials, key=exposed), address=TLS)


def test_certificate_of_another_authority_is_refused(credentials, tmp_path):
    foreign = create_authority(tmp_path / "foreign")
    with pytest.raises(
        ConfigError, match=r"node\.pem: is no certificate of the authority in .*/foreign/ca\.pem"
    ):
        farm_security(changed(credentials, ca=foreign.certificate_file), address=TLS)


def test_certificate_for_servers_only_is_refused(tmp_path):
    """Of a company's own authority, for example."""
    authority = create_authority(tmp_path)
    key, csr, cert = (tmp_path / name for name in ("web.key", "web.csr", "web.pem"))
    request = f"openssl req -newkey ed25519 -nodes -subj /CN=web -keyout {key} -out {csr}"
    subprocess.run(request.split(), check=True, capture_output=True)
    (tmp_path / "extensions").write_text("extendedKeyUsage=serverAuth\n")
    sign = f"openssl x509 -req -in {csr} -CA {authority.certificate_file} -CAkey {authority.key_file} -days 9"
    sign += f" -extfile {tmp_path / 'extensions'} -out {cert}"
    subprocess.run(sign.split(), check=True, capture_output=True)
    key.chmod(0o600)
    with pytest.raises(ConfigError, match=r"web\.pem: is no certificate of .* \(un\w+ certificate purpose\)"):
        farm_security(FarmCredentials(authority.certificate_file, cert, key), address=TLS)


@pytest.mark.parametrize(
    ("years", "reason"),
    [
        (-1, r"ca\.pem: is not valid before .* UTC; see whether this host's clock is right"),
        (3, r"node\.pem: expired on \d{4}-\d\d-\d\d; issue one with stap-farm ca issue"),
        (11, r"ca\.pem: expired on .*; make a new authority"),
    ],
)
def test_certificate_that_is_not_valid_now_is_refused(credentials, years, reason):
    with pytest.raises(ConfigError, match=reason):
        farm_security(credentials, address=TLS, now=datetime.now(UTC) + timedelta(days=365 * years))


def test_two_authorities_are_trusted_while_one_follows_the_other(credentials, tmp_path):
    later = create_authority(tmp_path / "later")
    both = tmp_path / "both.pem"
    both.write_bytes(later.certificate_file.read_bytes() + credentials.ca.read_bytes())
    new = issue(tmp_path / "later", "node")
    farm_security(changed(credentials, ca=both), address=TLS)
    farm_security(FarmCredentials(both, new.certificate_file, new.key_file), address=TLS)
