"""The plans of one toolchain, and what puts the program that follows them in the place of make.

They are beside what stap has found out about the toolchain, in the directory that has the digest of all that
modules are built with: a change of a header, the compiler, the runtime or the build tree leads to another
directory. Only builds of the server's own scripts add plans; compiles of clients can read them. Each is under
the digest of its content, and one that is not what its name says is removed before a compile sees it.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import shlex
import shutil
import stat
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

import attrs

from stapsrv.compile.cache.stap_cache import CACHES_DIRECTORY
from stapsrv.compile.engine.prepared.plan import LACKING, REASONS, Plan, Unfit
from stapsrv.compile.engine.prepared.stand_in import ANOTHER_START, PLAN, PREPARED, REPORT
from stapsrv.compile.engine.prepared.start import COMPILED, HEADER, OPTIONS, ROLES, Start
from stapsrv.system import trees
from stapsrv.system.atomic_file import replace_file

# The modules that stand in for env.
FOLLOW, RECORD = "prepared.stand_in", "prepared.recorder"
# In the directory of a toolchain.
PLANS_DIRECTORY = "prepared"
# How a module was built, beside ``plain: REASON`` with other reasons.
NOT_PREPARED, ANOTHER_MAKEFILE = "plain: off", "plain: Makefile"
FEATURES_UNKNOWN = "plain: features unknown"
# What the program that follows plans is made of, and the Python that runs it; compiles have to see both.
PROGRAM = (Path(__file__).parent.parent, Path(sys.base_prefix))

# Where the server's own next build of this kind gives the plan that is missing.
_LACKING = frozenset((ANOTHER_START, *(f"plain: {why}" for why in LACKING)))
# All that is ever said of a client's build: nobody can make it say more.
BUILDS = (PREPARED, ANOTHER_START, NOT_PREPARED, *(f"plain: {why}" for why in REASONS))

_MAX_PLANS = 16
# Of all plans together; each is some 20 to 60 MB.
_MAX_STARTS = 16
_MAX_HEADER_BYTES = 256 << 20
_MAX_SEEN = 1000
# Plans of a toolchain that was not used for so long go when there are new ones of another.
_IN_USE_S = 3600.0
# What is not complete yet.
_NEW = "new."
_START_FILES = (OPTIONS, HEADER, COMPILED)
_MAX_PLAN_BYTES = 1 << 20
_MAX_REPORT_BYTES = 16 << 10

# make takes over where it cannot even begin. What it prints is not for the client.
_STAND_IN = """\
#!/bin/sh
{python} -I -S -E -B -c 'import sys; sys.path.append(sys.argv.pop(1)); from {module} import main
main(sys.argv[1:])' {package} {own} {store} "$@" {rest}
"""
_REST = {FOLLOW: '2>/dev/null && exit 0\nPATH=${{PATH#{own}:}}\nexec env "$@"', RECORD: ""}


class SeenFiles:
    """Digests of large files, which are read once as long as the kernel says that nobody has changed them."""

    def __init__(self) -> None:
        self._digests: dict[Path, tuple[tuple[int, ...], bytes]] = {}

    def digest(self, path: Path) -> bytes:
        """Return the digest of a regular file; may raise OSError."""
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            status = os.fstat(fd)
            if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_HEADER_BYTES:
                raise OSError(errno.EFBIG, "is no file of a start", str(path))
            # Nobody but the kernel sets the time of the last change of a file's status.
            identity = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns)
            known = self._digests.get(path)
            if known is not None and known[0] == identity:
                return known[1]
            found = hashlib.file_digest(file, "sha256").digest()
        while len(self._digests) >= _MAX_SEEN:
            self._digests.pop(next(iter(self._digests)), None)
        self._digests[path] = identity, found
        return found


@attrs.frozen
class PlanStore:
    """The plans at ``path``, which need not exist; the methods block on files."""

    path: Path
    seen: SeenFiles = attrs.field(factory=SeenFiles, eq=False)

    @property
    def plans(self) -> Path:
        """The directory of plans: one directory for each, which has one for each start of sources."""
        return self.path / "plans"

    def stand_in(self, mode: str, store: Path) -> Path:
        """Return the directory, for the beginning of stap's path, in which a stand-in for env is found.

        With FOLLOW it follows the plans of ``store``, with RECORD it leaves one there. May raise OSError.
        """
        own = self.path / mode.rpartition(".")[2]
        python = getattr(sys, "_base_executable", None) or sys.executable
        words = {"python": python, "package": PROGRAM[0], "own": own, "store": store}
        quoted = {name: shlex.quote(str(word)) for name, word in words.items()}
        text = _STAND_IN.format(module=mode, rest=_REST[mode].format(**quoted), **quoted)
        own.mkdir(mode=0o700, parents=True, exist_ok=True)
        program = own / "env"
        if not program.is_file() or program.read_text(encoding="utf-8") != text:
            replace_file(program, text, mode=0o500)
        return own

    def check(self) -> None:
        """Remove what is damaged, of another version, or not put here by :meth:`keep`; may raise OSError."""
        self.plans.mkdir(mode=0o700, parents=True, exist_ok=True)
        for plan in list(self.plans.iterdir()):
            if not self._is_plan(plan):
                trees.remove(plan)
                continue
            # Another process may remove it meanwhile.
            with contextlib.suppress(FileNotFoundError):
                for path in list(plan.iterdir()):
                    if path.name != PLAN and not self._is_start(path):
                        trees.remove(path)

    def keep(self, directory: Path) -> bool:
        """Take the plan and the starts that a build of the server's own has left; return whether it has."""
        try:
            data = _read(directory / PLAN)
            Plan.decode(data)
        except (OSError, Unfit):
            return False
        self.plans.mkdir(mode=0o700, parents=True, exist_ok=True)
        own = self.plans / _name(data)
        # A compile removes what it finds half made.
        new = Path(tempfile.mkdtemp(prefix=_NEW, dir=self.path))
        try:
            plan = new / "plan"
            plan.mkdir(mode=0o700)
            replace_file(plan / PLAN, data, mode=0o400)
            with contextlib.suppress(OSError):  # it is known already
                plan.rename(own)
            for role in ROLES:
                with contextlib.suppress(OSError, Unfit):
                    self._keep_start(directory / "starts" / role, own, new / role)
        finally:
            trees.remove(new)
        os.utime(own)
        self._evict()
        return True

    def clear(self) -> int:
        """Remove all plans; return how many starts there were."""
        count, _ = self.statistics()
        trees.remove(self.plans)
        return count

    def statistics(self) -> tuple[int, int]:
        """Return the number of starts and their size in bytes."""
        sizes = []
        for path in self.plans.glob(f"*/*/{COMPILED}"):
            with contextlib.suppress(FileNotFoundError):
                sizes.append(path.stat().st_size)
        return len(sizes), sum(sizes)

    def _keep_start(self, source: Path, plan: Path, new: Path) -> None:
        start = Start.decode(_read(source / OPTIONS))
        for path in plan.glob(f"*/{OPTIONS}"):
            known = Start.decode(_read(path))
            if (known.role, known.text) == (start.role, start.text):
                return
        new.mkdir(mode=0o700)
        for name in _START_FILES:
            _copy(source / name, new / name)
        new.rename(plan / self._start_name(new))

    def _start_name(self, path: Path) -> str:
        return hashlib.sha256(b"".join(self.seen.digest(path / name) for name in _START_FILES)).hexdigest()[
            :32
        ]

    def _is_plan(self, path: Path) -> bool:
        try:
            data = _read(path / PLAN)
            # One of another version of this program is of no use.
            Plan.decode(data)
        except (OSError, Unfit):
            return False
        return _name(data) == path.name

    def _is_start(self, path: Path) -> bool:
        try:
            return self._start_name(path) == path.name and len(list(path.iterdir())) == len(_START_FILES)
        except OSError:
            return False

    def _evict(self) -> None:
        _remove_oldest(self.plans.iterdir(), _MAX_PLANS)
        _remove_oldest(self.plans.glob("*/*/"), _MAX_STARTS)
        # Of a process that was killed.
        for path in self.path.glob(f"{_NEW}*"):
            with contextlib.suppress(FileNotFoundError):
                if time.time() - path.stat().st_mtime > _IN_USE_S:
                    trees.remove(path)
        # Each compile touches the directory of its toolchain.
        for toolchain in self.path.parent.parent.iterdir():
            other = PlanStore(toolchain / self.path.name)
            # Another process may remove it meanwhile, and what cannot be read is none of ours.
            with contextlib.suppress(OSError):
                if other.plans != self.plans and time.time() - toolchain.stat().st_mtime > _IN_USE_S:
                    other.clear()


def _remove_oldest(paths: Iterable[Path], most: int) -> None:
    made = {}
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            made[path] = path.stat().st_mtime
    for path in sorted(made, key=made.__getitem__)[: max(0, len(made) - most)]:
        trees.remove(path)


def _copy(source: Path, target: Path) -> None:
    fd = os.open(source, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        status = os.fstat(fd)
        if not stat.S_ISREG(status.st_mode) or status.st_size > _MAX_HEADER_BYTES:
            raise OSError(errno.EFBIG, "is no file of a start", str(source))
        copied = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o400)
        with os.fdopen(copied, "wb") as copy:
            shutil.copyfileobj(file, copy, 1 << 20)


def all_stores(systemtap: Path) -> Iterator[PlanStore]:
    """Give the stores of all toolchains in stap's own directory, ``systemtap``."""
    with contextlib.suppress(FileNotFoundError):
        for toolchain in sorted((systemtap / CACHES_DIRECTORY).iterdir()):
            yield PlanStore(toolchain / PLANS_DIRECTORY)


def read_report(directory: Path) -> str | None:
    """Return how the last module of a compile was built, by its own report; None if it built none.

    The report is foreign: a compile could have written anything.
    """
    try:
        fd = os.open(directory / REPORT, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        with os.fdopen(fd, "rb") as file:
            lines = file.read(_MAX_REPORT_BYTES).decode("utf-8", "replace").split("\n")
    except OSError:
        return None
    known = [line for line in lines if line in BUILDS]
    return known[-1] if known else None


def lacks_plan(report: str | None) -> bool:
    """Whether a module was built by make, or in part, because there is no plan for such builds yet."""
    return report in _LACKING


def _name(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()[:32]


def _read(path: Path) -> bytes:
    fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    with os.fdopen(fd, "rb") as file:
        return file.read(_MAX_PLAN_BYTES)
