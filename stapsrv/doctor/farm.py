"""Checks of the farms that compile for servers: reachable, certificates, versions, clocks, releases."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import AsyncIterator, Iterator, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from stapsrv.config.kernels import host_arch
from stapsrv.config.settings import ServerSettings
from stapsrv.doctor.context import DoctorContext, silent_log
from stapsrv.doctor.findings import Finding, error, failure, ok, warning
from stapsrv.errors import ConfigError
from stapsrv.identity.store import RENEW_BEFORE
from stapsrv.text import counted

if TYPE_CHECKING:
    from stapsrv.farm.census import Census, Member

_DASK = "dask"
# More than a slow network makes of equal clocks.
_CLOCKS_S = 5.0
_NO_DASK = "install it: pip install 'stapsrv[farm]'"
_UNREACHED = (
    "see whether the scheduler runs (systemctl status stap-farm-scheduler), a firewall lets its port "
    "through, and its certificate is of the authority in FARM_CA"
)


async def check_farms(context: DoctorContext) -> AsyncIterator[Finding]:
    """Check each farm that servers with ``ENGINE=dask`` name."""
    farms: dict[tuple[str | None, ...], list[ServerSettings]] = defaultdict(list)
    for settings in context.servers:
        wanted = settings.compilation
        if wanted.engine == _DASK:
            farms[wanted.farm, wanted.farm_ca, wanted.farm_cert, wanted.farm_key].append(settings)
    for (address, *_), servers in farms.items():
        question = f"farm {address or ''}".rstrip()
        try:
            async for finding in _check_farm(question, servers):
                yield finding
        except ConfigError as exc:
            yield error(question, exc)
        except ImportError as exc:
            yield failure(question, f"Dask is not there: {exc}", _NO_DASK)


async def _check_farm(question: str, servers: Sequence[ServerSettings]) -> AsyncIterator[Finding]:
    # Late: few hosts have a farm, and Dask takes a second.
    from stapsrv.compile.engine.dask import connection_of  # noqa: PLC0415
    from stapsrv.farm.census import own_versions, take_census  # noqa: PLC0415
    from stapsrv.farm.dask_logs import dask_logs_to  # noqa: PLC0415
    from stapsrv.farm.pem_files import read_certificate  # noqa: PLC0415

    address, credentials = connection_of(servers[0])
    try:
        with dask_logs_to(silent_log()):
            census = await take_census(address, credentials)
    except ConfigError:
        raise
    except Exception as exc:  # noqa: BLE001 - of any kind, since another program made it
        reason = exc.__cause__ or exc
        yield failure(question, f"cannot be reached: {str(reason) or type(reason).__name__}", _UNREACHED)
        return
    workers, slots = counted(len(census.nodes.nodes), "worker"), census.nodes.slots
    if slots:
        yield ok(question, f"its scheduler is reached; {workers} with {counted(slots, 'slot')}")
    else:
        remedy = "look at the workers' logs: journalctl -u stap-farm-worker, on the hosts that compile"
        yield failure(question, f"its scheduler is reached; {workers}, and no release is offered", remedy)
    if credentials is not None:
        ends = [(str(path), read_certificate(path).not_valid_after_utc) for path in credentials.certificates]
        yield judge_certificates(ends, census.members, now=datetime.now(UTC))
    yield judge_versions(own_versions(), census.members)
    yield judge_clocks(census.members)
    for finding in judge_releases(servers, census):
        yield finding


def judge_certificates(
    own: Sequence[tuple[str, datetime]], members: Sequence[Member], *, now: datetime
) -> Finding:
    """Say which of a farm's certificates ends first: of this host's files, or of what members showed."""
    shown = [(member.name, member.certificate_until) for member in members]
    ends = sorted(
        ((until, name) for name, until in (*own, *shown) if until is not None), key=lambda end: end[0]
    )
    until, name = ends[0]
    text = f"of one authority; the first to end is that of {name}, on {until:%Y-%m-%d}"
    late = [name for until, name in ends if until - now < RENEW_BEFORE]
    if late:
        remedy = f"issue new ones for {', '.join(late)}: stap-farm ca issue; copy them there, and restart"
        return warning("farm's certificates", text, remedy)
    return ok("farm's certificates", text)


def judge_versions(own: dict[str, str], members: Sequence[Member]) -> Finding:
    """Say whether all have the same versions; of Python, of the same minor one."""
    for package, version in own.items():
        found: dict[str, list[str]] = defaultdict(list)
        found[_comparable(package, version)].append("this host")
        for member in members:
            if package in member.versions:
                found[_comparable(package, member.versions[package])].append(member.name)
        if len(found) > 1:
            said = "; ".join(f"{version}: {', '.join(names)}" for version, names in sorted(found.items()))
            return warning(
                "farm's versions", f"{package} {said}", "install the same version on all of its hosts"
            )
    return ok("farm's versions", ", ".join(f"{package} {version}" for package, version in own.items()))


def judge_clocks(members: Sequence[Member]) -> Finding:
    """Say whether the clocks of all agree with this host's."""
    ahead = {member.name: member.ahead_s for member in members if member.ahead_s is not None}
    wrong = [
        f"{name} is {abs(seconds):.0f} s {'ahead of' if seconds > 0 else 'behind'} this host"
        for name, seconds in ahead.items()
        if abs(seconds) > _CLOCKS_S
    ]
    if wrong:
        remedy = "have all clocks set by the network (timedatectl set-ntp true)"
        return warning("farm's clocks", "; ".join(wrong), remedy)
    most = max(map(abs, ahead.values()), default=0.0)
    return ok("farm's clocks", f"agree with this host's within {most:.1f} s")


def judge_releases(servers: Sequence[ServerSettings], census: Census) -> Iterator[Finding]:
    """Say which releases are offered, and which ones servers name that are not."""
    offered = census.nodes.releases
    missing = {
        name: census.nodes.explain_missing(name)
        for settings in servers
        for name in settings.releases
        if (name, settings.arch or host_arch()) not in offered
    }
    for said in missing.values():
        remedy = "install its headers on a worker, and restart stap-farm-worker there"
        yield failure("farm's releases", said, remedy)
    if offered:
        yield ok("farm's releases", ", ".join(f"{name} {arch}" for name, arch in offered))


def _comparable(package: str, version: str) -> str:
    return ".".join(version.split(".")[:2]) if package == "Python" else version
