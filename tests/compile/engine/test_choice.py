"""Engines by name; one is from outside of this package."""

from __future__ import annotations

import sys
import textwrap

import pytest

from stapsrv.compile.engine.choice import open_engine
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError

pytestmark = pytest.mark.anyio


def settings(engine):
    return ServerSettings(tuning={"engine": engine})


@pytest.fixture
def installed(tmp_path, monkeypatch):
    """Another package, as pip would have installed it."""
    (tmp_path / "stapsrv_cloud.py").write_text(
        textwrap.dedent("""\
            class Cloud:
                def __init__(self, settings, host):
                    self.settings, self.host = settings, host

            async def open_engine(settings, host):
                return Cloud(settings, host)
        """)
    )
    facts = tmp_path / "stapsrv_cloud-1.dist-info"
    facts.mkdir()
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: stapsrv-cloud\nVersion: 1\n")
    (facts / "entry_points.txt").write_text(
        "[stapsrv.engines]\ncloud = stapsrv_cloud:open_engine\nbroken = stapsrv_missing:open_engine\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    yield
    sys.modules.pop("stapsrv_cloud", None)


async def test_engine_of_this_host_is_no_other():
    assert await open_engine(settings("local"), None) is None


async def test_engine_of_another_package_is_found_by_its_name(installed):
    host, wanted = object(), settings("cloud")
    engine = await open_engine(wanted, host)
    assert type(engine).__name__ == "Cloud"
    assert (engine.settings, engine.host) == (wanted, host)


async def test_engine_that_is_not_installed_is_refused_with_those_that_are(installed):
    with pytest.raises(ConfigError, match=r"ENGINE=cluod: is not installed; .*broken, cloud, dask, local"):
        await open_engine(settings("cluod"), None)


async def test_engine_that_lacks_a_library_is_refused(installed):
    with pytest.raises(ConfigError, match="cannot be loaded: No module named 'stapsrv_missing'"):
        await open_engine(settings("broken"), None)
