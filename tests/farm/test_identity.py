import os

import pytest

from stapsrv.compile.engine.stap import StapProgram
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ConfigError
from stapsrv.farm import identity

ENVIRON = {"PATH": os.defpath, "LANG": "C"}


@pytest.fixture
def host(tmp_path):
    """A host's files, in a directory that may be anywhere."""

    def make(name):
        top = tmp_path / name
        for file, text in {
            "bin/stap": "program",
            "share/systemtap/runtime/transport.c": "runtime",
            "share/systemtap/tapset/a.stp": "probe",
            "tree/Module.symvers": "0x1",
            "tree/include/linux/a.h": "header",
        }.items():
            path = top / file
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return top

    return make


def identity_of(top, environ=ENVIRON, contained="bubblewrap", **changes):
    return identity.toolchain_identity(
        StapProgram(top / "bin" / "stap", "4.8"),
        ServedRelease("6.1.0-identity", "x86_64", "6.1.0-identity", top / "tree"),
        ServerSettings(**changes),
        environ,
        systemtap=top,
        contained=contained,
    )


def test_equal_hosts_have_one_identity(host):
    one, other = host("one"), host("other")
    assert identity_of(one) == identity_of(other)
    own = {**ENVIRON, "HOME": "/elsewhere", "STAPSRV_LOG": "x", "SYSTEMTAP_DIR": "/x", "INVOCATION_ID": "1"}
    assert identity_of(one) == identity_of(other, own)


@pytest.mark.parametrize(
    "file",
    [
        *("bin/stap", "share/systemtap/runtime/transport.c", "share/systemtap/tapset/a.stp"),
        *("tree/Module.symvers", "tree/include/linux/a.h", "tree/include/linux/new.h", "rc"),
    ],
)
def test_host_with_another_file_has_another_identity(host, file):
    one, other = host("one"), host("other")
    (other / file).write_text("another")
    assert identity_of(one) != identity_of(other)


def test_environment_and_containment_count(host):
    top = host("one")
    identities = {
        identity_of(top),
        identity_of(top, {**ENVIRON, "LANG": "de_DE"}),
        identity_of(top, contained="off"),
        identity_of(top, include=(str(top / "tree"),)),
    }
    assert len(identities) == 4


def test_links_are_followed_and_end(host):
    one, other = host("one"), host("other")
    for top in (one, other):
        (top / "linked").mkdir()
        (top / "linked" / "b.h").write_text("b")
        (top / "tree" / "link").symlink_to(top / "linked")
        (top / "tree" / "loop").symlink_to(top / "tree")
    assert identity_of(one) == identity_of(other)
    (other / "linked" / "b.h").write_text("another")
    assert identity_of(one) != identity_of(other)


def test_named_pipe_is_not_waited_for(host):
    top = host("one")
    os.mkfifo(top / "tree" / "pipe")
    assert identity_of(top) != identity_of(host("other"))


def test_tree_of_too_many_files_is_refused(host, monkeypatch):
    monkeypatch.setattr(identity, "_MAX_FILES", 1)
    with pytest.raises(ConfigError, match="more than 1 files"):
        identity_of(host("one"))
