import pytest

from stapsrv.config.compilation import Compilation
from stapsrv.config.settings import HostDefaults, ServerSettings


def test_servers_compile_on_their_own_host_unless_told_otherwise():
    assert Compilation().engine == "local"
    assert Compilation().farm is None


@pytest.mark.parametrize("text", ["", "Dask", "a b", "../x", "x" * 33])
def test_name_that_no_engine_can_have_is_refused(text):
    with pytest.raises(ValueError, match="the name of another engine"):
        Compilation.engine.kind.parse(text)


def test_plain_tcp_is_for_this_host_alone():
    assert Compilation.farm.kind.parse("tcp://127.0.0.1:8786") == "tcp://127.0.0.1:8786"
    with pytest.raises(ValueError, match="since tcp:// without TLS is for this host alone"):
        Compilation.farm.kind.parse("tcp://farm.example.com:8786")


def test_server_of_a_farm_is_another_one_than_that_of_this_host(tmp_path):
    defaults = HostDefaults(release="6.1", user="u", log=tmp_path)
    here, there = ServerSettings(), ServerSettings(tuning={"engine": "dask"})
    assert here.identity(defaults) != there.identity(defaults)
    waiting = ServerSettings(tuning={"engine": "dask", "farm_wait_s": 7.0})
    assert there.identity(defaults) == waiting.identity(defaults)
