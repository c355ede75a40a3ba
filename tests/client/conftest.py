"""A server for the client's tests, that sends the answers that it is given, and nothing of the user's own."""

from __future__ import annotations

import io
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from kit.compile_server import Identity, RecordingServer


@pytest.fixture(scope="session")
def identity_of_server(tmp_path_factory: pytest.TempPathFactory) -> Identity:
    return Identity.make(tmp_path_factory.mktemp("server"))


@pytest.fixture
def server(identity_of_server: Identity) -> Iterator[RecordingServer]:
    with RecordingServer.open(identity_of_server) as opened:
        yield opened


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's configuration, and the working directory."""
    work = tmp_path / "work"
    work.mkdir()
    monkeypatch.chdir(work)
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "config"))
    return tmp_path


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Waits between tries that take no time."""
    monkeypatch.setattr("stapsrv.client.exchange.RETRY_S", 0.01)
    monkeypatch.setattr("stapsrv.client.exchange.RENEWAL_S", 0.01)


@pytest.fixture
def unzipped() -> Callable[[bytes], dict[str, bytes]]:
    """Return the entries of a zip."""

    def unzip(data: bytes) -> dict[str, bytes]:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            return {name: archive.read(name) for name in archive.namelist()}

    return unzip
