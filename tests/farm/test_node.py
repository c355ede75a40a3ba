from types import SimpleNamespace

import attrs
import pytest
from kit.service import LogLines

from stapsrv.compile.cache.key import CacheKey
from stapsrv.compile.protocol.options import STAP_4_8, Privilege
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings
from stapsrv.config.table import Limits
from stapsrv.farm.job import COUNTS, DURATIONS, FarmJob, encode_job
from stapsrv.farm.node import FarmNode, _Offered, _stricter
from stapsrv.farm.offer import Offer
from stapsrv.farm.result import Failure, decode_answer

IDENTITY = "a" * 64
JOB = FarmJob(
    name="j",
    request=CompileRequest(release="6.1", arch="x86_64", arguments=(b"-p4", b"-e", b"probe begin {}")),
    identity=IDENTITY,
    privilege=Privilege.STAPDEV,
    limits={name: getattr(Limits(), name) for name in (*DURATIONS, *COUNTS)},
    deadline_s=7.0,
)


class Options:
    async def table_for(self, _arguments):
        return STAP_4_8


class Cache:
    """Of which each compile comes to an end that tells that it was begun."""

    def __init__(self):
        self.begun = []
        self.key = CacheKey(b"", reason="program")

    async def wait_key_for(self, _job):
        return self.key

    async def compile(self, _key, job, _engine):
        self.begun.append(job)
        raise ZeroDivisionError


@pytest.fixture
def node():
    """A node that offers one release."""
    runtime, cache = SimpleNamespace(options=Options(), engine=None), Cache()
    made = FarmNode("n", runtime, cache, ServerSettings(tuning={"nice": 7}), (), {}, LogLines().log)
    offer = Offer("6.1", "x86_64", IDENTITY)
    made._offered["6.1", "x86_64"] = _Offered(offer, ServedRelease("6.1", "x86_64", "6.1", None), cache.key)
    return made


async def failure_of(node, message):
    return decode_answer(await node.compile(message), Limits()).failure


@pytest.mark.anyio
@pytest.mark.parametrize(
    "job",
    [
        attrs.evolve(JOB, identity="b" * 64),
        attrs.evolve(JOB, request=attrs.evolve(JOB.request, release="6.2")),
        attrs.evolve(JOB, request=attrs.evolve(JOB.request, arch="arm64")),
    ],
)
async def test_job_for_another_toolchain_is_not_compiled(node, job):
    assert await failure_of(node, encode_job(job)) is Failure.CHANGED
    assert node._cache.begun == []


@pytest.mark.anyio
async def test_job_is_not_compiled_where_something_has_changed_since_the_proof(node):
    node._cache.key = CacheKey(b"", generation=(1, 0))
    assert await failure_of(node, encode_job(JOB)) is Failure.CHANGED
    assert node._offered["6.1", "x86_64"].stale.is_set()
    assert node._cache.begun == []


@pytest.mark.anyio
async def test_job_whose_privilege_is_read_in_another_way_is_not_compiled(node):
    """What the server signs rests on it."""
    job = attrs.evolve(JOB, privilege=Privilege.STAPUSR)
    assert await failure_of(node, encode_job(job)) is Failure.TRANSLATOR
    assert node._cache.begun == []


@pytest.mark.anyio
@pytest.mark.parametrize("message", [b"", b"stapjob\x01", "text", None, 7])
async def test_what_is_no_job_is_refused(node, message):
    assert await failure_of(node, message) is Failure.UNUSABLE


@pytest.mark.anyio
async def test_job_is_compiled_as_the_node_allows_and_a_crash_is_an_answer(node):
    limits = {**JOB.limits, "nice": 3, "cpu_s": 9.0}
    job = attrs.evolve(JOB, limits=limits, build=("V=1",))
    assert await failure_of(node, encode_job(job)) is Failure.TRANSLATOR
    (begun,) = node._cache.begun
    assert (begun.settings.limits.nice, begun.settings.limits.cpu_s, begun.deadline_s) == (7, 9.0, 7.0)
    assert begun.settings.build == ("V=1",)
    assert node.running == 0


@pytest.mark.parametrize(
    ("name", "own", "asked", "bound"),
    [
        ("output_bytes", 10, 20, 10),
        ("output_bytes", 20, 10, 10),
        ("kill_grace_s", 0.0, 2.0, 0.0),
        ("cpu_s", 0.0, 7.0, 7.0),
        ("cpu_s", 7.0, 0.0, 7.0),
        ("memory_bytes", 5, 7, 5),
        ("cores", 0, 0, 0),
        ("nice", 5, 10, 10),
        ("nice", 10, 5, 10),
    ],
)
def test_bound_of_a_compile_is_the_stricter_one(name, own, asked, bound):
    assert _stricter(name, own, asked) == bound
