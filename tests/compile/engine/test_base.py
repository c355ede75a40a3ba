"""What a job says of itself."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest
import structlog

from stapsrv.compile.engine.base import CompileJob
from stapsrv.compile.protocol.options import Privilege
from stapsrv.compile.protocol.request import CompileRequest
from stapsrv.config.kernels import ServedRelease
from stapsrv.config.settings import ServerSettings

RELEASE = ServedRelease("6.1", "x86_64", "6.1", Path("/nowhere"))


def job_of(*arguments: bytes, **limits: object) -> CompileJob:
    request = CompileRequest(release="6.1", arch="x86_64", arguments=arguments)
    return CompileJob(
        log=structlog.get_logger(), request=request, release=RELEASE, settings=ServerSettings(tuning=limits)
    )


def test_deadline_is_the_server_s_unless_the_job_has_its_own() -> None:
    assert job_of().deadline_s == ServerSettings().limits.compile_s
    assert job_of(compile_s=7.0).deadline_s == 7.0
    assert attrs.evolve(job_of(compile_s=7.0), deadline_s=2.0).deadline_s == 2.0


def test_jobs_are_equal_whatever_is_recorded_of_them() -> None:
    first, second = job_of(b"x.stp"), job_of(b"x.stp")
    first.answered.set()
    first.record.compile_s = 1.0
    assert first == second != job_of(b"y.stp")


@pytest.mark.parametrize(
    ("arguments", "privilege"),
    [
        ((b"x.stp",), Privilege.STAPDEV),
        ((b"--unprivileged", b"x.stp"), Privilege.STAPUSR),
        ((b"--privilege=stapsys", b"x.stp"), Privilege.STAPSYS),
        ((b"--privilege=nonsense", b"x.stp"), None),
    ],
)
def test_privilege_is_what_the_arguments_ask_for(
    arguments: tuple[bytes, ...], privilege: Privilege | None
) -> None:
    assert job_of(*arguments).privilege is privilege
