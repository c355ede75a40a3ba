from pathlib import Path

from stapsrv.farm.security import FarmCredentials, farm_security


def test_connections_of_credentials_are_encrypted_in_each_role():
    security = farm_security(FarmCredentials(Path("/ca"), Path("/cert"), Path("/key")))
    assert security.require_encryption
    assert security.tls_ca_file == "/ca"
    assert {security.tls_client_cert, security.tls_worker_cert, security.tls_scheduler_cert} == {"/cert"}
    assert {security.tls_client_key, security.tls_worker_key, security.tls_scheduler_key} == {"/key"}


def test_connections_without_credentials_are_plain():
    assert not farm_security(None).require_encryption
