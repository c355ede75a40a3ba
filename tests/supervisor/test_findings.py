"""What clients' compiles had to find out is found out again by the server's own scripts; plans are made."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
from kit.client import exchange, request
from kit.kernel import BROKEN, MODULE, started

from stapsrv.compile.cache.stap_cache import CACHES_DIRECTORY, Finding
from stapsrv.compile.engine.base import CompileJob, CompileResult
from stapsrv.compile.engine.prepared.store import ANOTHER_MAKEFILE

pytestmark = pytest.mark.anyio

EMPTY = CompileResult(0, b"", b"", ())
FEATURES, TRACEPOINTS = f"ab/stapconf_{'ab' * 16}_714.h", f"cd/tracequery_{'cd' * 16}_1.o"
# As far as it is not there, which is also how stap does it.
FINDS = f"""
    find_out() {{ mkdir -p "$SYSTEMTAP_DIR/cache/${{1%/*}}"; cat "$SYSTEMTAP_DIR/cache/$1" 2>&1 ||
        echo "$2" >"$SYSTEMTAP_DIR/cache/$1"; }}
    case "$*" in *' -p2 '*) what={TRACEPOINTS} ;; *) what={FEATURES} ;; esac
    case "$script" in *planted*) find_out {FEATURES} planted; find_out {TRACEPOINTS} planted ;;
        *) find_out $what found ;; esac
    {MODULE}
"""


def known(tmp_path: Path) -> dict[str, str]:
    """Return what later compiles begin with."""
    top = tmp_path / "systemtap" / CACHES_DIRECTORY / "unwatched"
    return {str(path.relative_to(top)): path.read_text() for path in top.rglob("*") if path.is_file()}


class TestFindings:
    async def test_of_a_client_are_found_out_again_by_the_server(self, bench, kernel, tmp_path):
        kernel.answer(FINDS)
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            assert (await exchange(server.port, request("-p4", "-e", "planted"))).rc == 0
            await bench.lines.wait("release.found", 2)
            assert known(tmp_path) == {FEATURES: "found\n", TRACEPOINTS: "found\n"}
            answer = await exchange(server.port, request("-p4", "-e", "planted"))
            assert answer.stdout == "found\nfound\n"
        assert len(kernel.runs) == 4

    async def test_of_guru_mode_are_found_out_in_guru_mode(self, bench, kernel):
        kernel.answer(FINDS)
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            assert (await exchange(server.port, request("-g", "-p4", "-e", "planted"))).rc == 0
            await bench.lines.wait("release.found", 2)
        assert all(" -g " in run for run in kernel.runs)

    async def test_are_not_found_out_again_and_again(self, bench, kernel, tmp_path):
        kernel.answer(f'case "$script" in *planted*) true ;; *) {BROKEN} ;; esac; {FINDS}')
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            for _ in range(3):
                assert (await exchange(server.port, request("-p4", "-e", "planted"))).rc == 0
            await bench.lines.wait("release.unfound", 2)
            assert known(tmp_path) == {}
        assert len(kernel.runs) == 5
        assert bench.lines.reasons("release.unfound") == ["x.h:3: error: no such thing"] * 2

    async def test_are_waited_for_until_all_are_known(self, bench, kernel, tmp_path):
        kernel.answer(FINDS)
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            assert (await exchange(server.port, request("-p4", "-e", "planted"))).rc == 0
            await bench.lines.wait("release.found", 1)
            await bench.runtime.warmup.findings.wait_found()
            assert known(tmp_path) == {FEATURES: "found\n", TRACEPOINTS: "found\n"}

    async def test_that_come_after_its_end_are_left_alone(self, bench, kernel):
        kernel.answer(FINDS)
        found = []
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            bench.runtime.engine.on_findings = lambda *finding: found.append(finding)
            assert (await exchange(server.port, request("-p4", "-e", "planted"))).rc == 0
        bench.runtime.warmup.findings.find(*found[0])
        assert len(kernel.runs) == 1


class TestPlans:
    async def test_missing_for_a_client_is_made_by_the_server_s_own_script(self, bench, kernel):
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            job = await caught(bench, kernel, server, "-g", "-DMAXACTION=1", "-I", "x", "-p4", "-e", "theirs")
            for _ in range(3):
                bench.runtime.engine.on_unplanned(job, EMPTY, frozenset())
            await bench.lines.wait("prepared.none", 1)
        (_, own) = kernel.runs
        assert " -g -DMAXACTION=1 -p4 " in own
        assert "theirs" not in own

    async def test_number_that_waits_to_be_made_is_bounded(self, bench, kernel):
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            job = await caught(bench, kernel, server, "-p4", "-e", "theirs")
            for number in range(100):
                asked = attrs.evolve(job.request, arguments=(f"-DX={number}".encode(),))
                bench.runtime.engine.on_unplanned(attrs.evolve(job, request=asked), EMPTY, frozenset())
            assert len(bench.runtime.warmup.findings._waiting) == 8
            await bench.lines.wait("prepared.none", 8)
        assert len(kernel.runs) == 9

    @pytest.mark.parametrize(
        ("build", "found", "scripts"),
        [
            (ANOTHER_MAKEFILE, {Finding.FEATURES, Finding.TRACEPOINTS}, 2),
            # To find the tracepoints out, which this client cannot have asked for, takes minutes.
            (ANOTHER_MAKEFILE, {Finding.FEATURES}, 1),
            ("plain: no plan", {Finding.FEATURES, Finding.TRACEPOINTS}, 1),
        ],
    )
    async def test_are_made_with_tracepoints_where_a_client_may_have_asked_for_them(
        self, bench, kernel, build, found, scripts
    ):
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            job = await caught(bench, kernel, server, "-p4", "-e", "theirs")
            job.record.build = build
            bench.runtime.engine.on_unplanned(job, EMPTY, frozenset(found))
            assert len(bench.runtime.warmup.findings._waiting) == scripts
            await bench.lines.wait("prepared.none", scripts)
        assert sorted("kernel.trace" in run for run in kernel.runs[1:]) == [False, True][:scripts]

    async def test_of_a_kernel_that_has_none_is_told_with_the_reason(self, bench, kernel):
        async with started(bench, tuning={"warmup": False}) as (_, (server,), _healths):
            job = await caught(bench, kernel, server, "-p4", "-e", "theirs")
            bench.runtime.engine.on_unplanned(job, EMPTY, frozenset())
            await bench.lines.wait("prepared.none")
        # Here nothing watches what modules are built with.
        assert bench.lines.reasons("prepared.none") == ["plain: off"]


async def caught(bench, kernel, server, *arguments: str) -> CompileJob:
    """Return the job of a request, which is compiled."""
    jobs = []
    kernel.answer(FINDS)
    bench.runtime.engine.on_findings = lambda job, _found: jobs.append(job)
    assert (await exchange(server.port, request(*arguments))).rc == 0
    kernel.answer(MODULE)
    return jobs[0]
