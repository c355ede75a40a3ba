import attrs
import pytest
import structlog

from stapsrv.compile.engine.base import CompileJob
from stapsrv.compile.protocol.archive import RequestFile
from stapsrv.compile.protocol.options import Privilege
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.errors import ProtocolError
from stapsrv.farm.job import FarmJob, decode_job, encode_job

IDENTITY = "0123456789abcdef" * 4
REQUEST = CompileRequest(
    release="6.1.0-1-amd64",
    arch="x86_64",
    arguments=(b"-p4", b"\xff arbitrary", b""),
    environment=(("LANG", "de_DE.UTF-8"),),
    files=(RequestFile(b"a/b/x.stp", b"probe"), RequestFile(b"y", b"")),
    directories=(b"a", b"a/b"),
)
SETTINGS = ServerSettings(
    build=("V=1",),
    define=("A=1",),
    include=("/of/this/host",),
    runtime="/of/this/host",
    tuning={"cpu_s": 7.0, "nice": 3, "sandbox_read": ("/of/this/host",)},
)
JOB = FarmJob.of(
    CompileJob(
        log=structlog.get_logger(),
        request=REQUEST,
        release=ServedRelease("6.1.0-1-amd64", "x86_64", "6.1.0-1-amd64", None),
        settings=SETTINGS,
    ),
    name="stapsrv-1",
    identity=IDENTITY,
)


def with_request(**changes):
    return attrs.evolve(JOB, request=attrs.evolve(REQUEST, **changes))


def test_job_comes_out_as_it_went_in():
    assert decode_job(encode_job(JOB)) == JOB
    assert (JOB.limits["cpu_s"], JOB.limits["nice"], JOB.build, JOB.define) == (7.0, 3, ("V=1",), ("A=1",))


def test_job_names_no_path_of_its_servers_host():
    assert b"/of/this/host" not in encode_job(JOB)


def test_release_that_the_client_names_is_stated_once():
    """The node may have another name for it."""
    named = attrs.evolve(REQUEST, arguments=(b"-r6.1.0-1-amd64", *REQUEST.arguments))
    job = CompileJob(
        log=structlog.get_logger(),
        request=named,
        release=ServedRelease("6.1.0-1-amd64", "x86_64", "6.1.0-1-amd64", None),
        settings=SETTINGS,
    )
    assert FarmJob.of(job, name="stapsrv-1", identity=IDENTITY) == JOB


@pytest.mark.parametrize("level", [None, *Privilege])
def test_privilege_comes_out_as_it_went_in(level):
    assert decode_job(encode_job(attrs.evolve(JOB, privilege=level))).privilege is level


@pytest.mark.parametrize(
    ("job", "said"),
    [
        (with_request(release="../6.1"), "no kernel release"),
        (with_request(release="-r"), "no kernel release"),
        (with_request(arch="x/y"), "no kernel release"),
        (with_request(arguments=(b"a\0b",)), "no program can be given"),
        (with_request(arguments=(b"a" * 131_072,)), "no program can be given"),
        (with_request(environment=(("PATH", "/tmp"),)), "locale"),
        (with_request(environment=(("LANG", "a/b"),)), "locale"),
        (with_request(files=(RequestFile(b"../x", b""),)), r"\.\. in its path"),
        (with_request(files=(RequestFile(b"/etc/x", b""),)), "absolute"),
        (with_request(files=(RequestFile(b"c/x", b""),)), "a directory that is none"),
        (with_request(files=(RequestFile(b"y", b""), RequestFile(b"y", b""))), "twice"),
        (with_request(files=(RequestFile(b"a", b""),)), "twice"),
        (with_request(directories=(b"a/b", b"a")), "disorder"),
        (with_request(directories=(b"a", b"a/b", b"c/d")), "a directory that is none"),
        (attrs.evolve(JOB, identity="x"), "no name and identity"),
        (attrs.evolve(JOB, name="a b"), "no name and identity"),
        (attrs.evolve(JOB, limits={**JOB.limits, "cpu_s": -1.0}), "no number cpu_s"),
        (attrs.evolve(JOB, limits={}), "no number kill_grace_s"),
        (attrs.evolve(JOB, deadline_s=float("nan")), "not JSON|no number deadline_s"),
        (attrs.evolve(JOB, build=("a\0b",)), "no sound text build"),
    ],
)
def test_job_that_breaks_a_rule_is_refused(job, said):
    with pytest.raises(ProtocolError, match=said):
        decode_job(encode_job(job))


def test_privilege_that_there_is_not_is_refused():
    encoded = encode_job(attrs.evolve(JOB, privilege=Privilege.STAPUSR))
    with pytest.raises(ProtocolError, match="privilege"):
        decode_job(encoded.replace(b'"stapusr"', b'"stapabc"'))
