"""Plans on disk: only what the server itself put there, whole, and a bounded number."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import time
from pathlib import Path

import pytest
from compile.engine.prepared.test_plan import build, reader, records

from stapsrv.compile.engine.prepared import store as store_module
from stapsrv.compile.engine.prepared.plan import REASONS, VERSION, make_plan
from stapsrv.compile.engine.prepared.stand_in import PLAN, REPORT
from stapsrv.compile.engine.prepared.start import COMPILED, HEADER, OPTIONS, Start
from stapsrv.compile.engine.prepared.store import (
    FOLLOW,
    RECORD,
    PlanStore,
    all_stores,
    lacks_plan,
    read_report,
)


def plan(number: int = 0) -> bytes:
    return make_plan(build(environment={"N": str(number)}), records(), reader(), "/tree").encode()


@pytest.fixture
def store(tmp_path):
    return PlanStore(tmp_path / "prepared")


def keep(store: PlanStore, data: bytes, **starts: str) -> bool:
    """Keep what a build has left; a start by its role, with a text."""
    left = store.path.parent / "left"
    shutil.rmtree(left, ignore_errors=True)
    left.mkdir(parents=True)
    (left / PLAN).write_bytes(data)
    for role, text in starts.items():
        (path := left / "starts" / role).mkdir(parents=True)
        (path / OPTIONS).write_bytes(start(role, text))
        (path / HEADER).write_text(text)
        (path / COMPILED).write_text("compiled" * 1000)
    return store.keep(left)


def start(role: str, text: str) -> bytes:
    fields = {"role": role, "text": text, "source": "", "after": "", "free": [], "words": [], "macros": []}
    return Start(registers=[], dependencies=[], **fields).encode()


def starts(store: PlanStore) -> set[tuple[str, str]]:
    found = [Start.decode(path.read_bytes()) for path in store.plans.glob(f"*/*/{OPTIONS}")]
    return {(each.role, each.text) for each in found}


def kept(store: PlanStore) -> list[bytes]:
    return [path.read_bytes() for path in store.plans.glob(f"*/{PLAN}")]


def test_plan_of_a_build_is_kept_whole_and_read_only(store):
    assert keep(store, plan())
    store.check()
    assert kept(store) == [plan()]
    assert all(path.stat().st_mode & 0o222 == 0 for path in store.plans.glob("*/*"))


@pytest.mark.parametrize("data", [b"", b"{}", plan()[:-10], b"x" * (2 << 20)])
def test_what_is_no_plan_is_not_kept(store, data):
    assert not keep(store, data)
    assert not store.plans.exists()


def test_build_without_a_plan_leaves_none(store, tmp_path):
    assert not store.keep(tmp_path)


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(plan(1)),
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
)
def test_damaged_or_foreign_plan_is_removed(store, damage):
    keep(store, plan())
    (path,) = store.plans.glob(f"*/{PLAN}")
    path.chmod(0o600)
    damage(path)
    store.check()
    assert list(store.plans.iterdir()) == []


def test_plan_of_another_version_is_removed(store, monkeypatch):
    with monkeypatch.context() as earlier:
        earlier.setattr("stapsrv.compile.engine.prepared.plan.VERSION", VERSION - 1)
        keep(store, plan())
        store.check()
        assert kept(store) == [plan()]
    store.check()
    assert list(store.plans.iterdir()) == []


def test_starts_are_added_to_the_plan_that_they_belong_to(store):
    keep(store, plan(), source="one", symbols="two")
    keep(store, plan(), source="other", symbols="two")
    store.check()
    assert kept(store) == [plan()]
    assert starts(store) == {("source", "one"), ("symbols", "two"), ("source", "other")}
    assert store.statistics() == (3, 3 * 8000)


@pytest.mark.parametrize("name", [OPTIONS, HEADER, COMPILED])
@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[:-1]),
        lambda path: path.write_bytes(b""),
        lambda path: path.unlink(),
        lambda path: (path.unlink(), path.symlink_to("/dev/zero")),
        lambda path: (path.unlink(), os.mkfifo(path)),
    ],
)
def test_damaged_start_is_removed_and_its_plan_stays(store, name, damage):
    keep(store, plan(), source="one")
    store.check()
    (path,) = store.plans.glob(f"*/*/{name}")
    path.chmod(0o600)
    damage(path)
    store.check()
    assert starts(store) == set()
    assert kept(store) == [plan()]


def test_start_with_a_file_more_is_removed(store):
    keep(store, plan(), source="one")
    next(store.plans.glob(f"*/*/{HEADER}")).with_name("stap_common.h").write_text("x")
    store.check()
    assert starts(store) == set()


def test_change_of_one_byte_is_seen_also_where_size_and_time_stay(store):
    keep(store, plan(), source="one")
    store.check()
    (path,) = store.plans.glob(f"*/*/{COMPILED}")
    before = path.stat()
    path.chmod(0o600)
    with path.open("r+b") as file:
        file.write(b"C")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    store.check()
    assert starts(store) == set()


def test_number_of_starts_is_bounded(store):
    for number in range(20):
        keep(store, plan(number % 3), source=f"{number}")
    assert store.statistics()[0] == 16


def test_plans_of_a_toolchain_out_of_use_go_when_another_has_new_ones(tmp_path):
    stores = [PlanStore(tmp_path / name / "prepared") for name in ("old", "used", "new")]
    for each in stores:
        keep(each, plan(), source="one")
    old = time.time() - 7200
    os.utime(stores[0].path.parent, (old, old))
    keep(stores[2], plan(1))
    assert [len(kept(each)) for each in stores] == [0, 1, 2]
    assert {each.path for each in all_stores(tmp_path)} == set()


def test_foreign_entries_are_removed(store):
    keep(store, plan())
    (store.plans / "x").mkdir()
    (store.plans / "x" / PLAN).write_bytes(plan(1))
    (store.plans / "file").write_text("")
    store.check()
    assert kept(store) == [plan()]


def test_oldest_plans_go_when_there_are_many(store):
    for number in range(20):
        keep(store, plan(number))
        for path in store.plans.iterdir():
            os.utime(path, (time.time(), path.stat().st_mtime - 1))
    assert sorted(kept(store)) == sorted(plan(number) for number in range(4, 20))


def test_stand_in_runs_make_where_it_cannot_follow(store, tmp_path):
    store.check()
    own = store.stand_in(FOLLOW, store.plans)
    (real := tmp_path / "bin").mkdir()
    (real / "env").write_text('#!/bin/sh\necho "$PATH" "$@"\nexit 3\n')
    (real / "env").chmod(0o755)
    environ = {"PATH": f"{own}:{real}:/usr/bin:/bin", "SYSTEMTAP_DIR": str(tmp_path)}
    ran = subprocess.run(["env", "make", "a  b"], env=environ, capture_output=True, text=True, check=False)
    assert (ran.returncode, ran.stderr) == (3, "")
    assert ran.stdout == f"{real}:/usr/bin:/bin make a  b\n"
    assert read_report(tmp_path) == "plain: another kind of build"


def test_stand_in_that_cannot_even_begin_runs_make(store, tmp_path, monkeypatch):
    monkeypatch.setattr("stapsrv.compile.engine.prepared.store.PROGRAM", (tmp_path,))
    own = store.stand_in(FOLLOW, store.plans)
    environ = {"PATH": f"{own}:/usr/bin:/bin", "SYSTEMTAP_DIR": str(tmp_path)}
    ran = subprocess.run(["env", "echo", "made"], env=environ, capture_output=True, text=True, check=True)
    assert (ran.stdout, ran.stderr) == ("made\n", "")
    assert read_report(tmp_path) is None


def test_stand_in_that_records_runs_make_once(store, tmp_path):
    own = store.stand_in(RECORD, tmp_path)
    environ = {"PATH": f"{own}:/usr/bin:/bin", "SYSTEMTAP_DIR": str(tmp_path)}
    ran = subprocess.run(["env", "echo", "made"], env=environ, capture_output=True, text=True, check=True)
    assert ran.stdout == "made\n"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("prepared\n", "prepared"),
        ("plain: another kind of build\nprepared\n", "prepared"),
        ("prepared\nplain: no plan\n", "plain: no plan"),
        ("prepared: another start\n", "prepared: another start"),
        ("", None),
        ("plain: something else\nrubbish\n", None),
        ("plain: " + "x" * 200, None),
        ("\0" * 100_000, None),
    ],
)
def test_report_is_the_last_known_word(tmp_path, text, expected):
    (tmp_path / REPORT).write_text(text)
    assert read_report(tmp_path) == expected


@pytest.mark.parametrize(
    ("report", "expected"),
    [
        ("plain: no plan", True),
        ("plain: Makefile", True),
        ("prepared: another start", True),
        ("plain: messages", False),
        ("plain: other files", False),
        ("prepared", False),
        (None, False),
    ],
)
def test_plan_is_lacking_where_another_build_can_give_it(report, expected):
    assert lacks_plan(report) is expected


def test_every_reason_in_the_source_is_a_known_word():
    sources = "".join(path.read_text() for path in Path(store_module.__file__).parent.glob("*.py"))
    said = set(re.findall(r"(?:Unfit\(|plain: )\"?([A-Za-z][a-zA-Z' ]+)\"", sources)) - {"off"}
    assert said <= {*REASONS}
    assert [reason for reason in REASONS if sources.count(f'"{reason}"') < 2 and reason not in said] == []


def test_report_that_is_a_link_or_a_pipe_says_nothing(tmp_path):
    assert read_report(tmp_path) is None
    (tmp_path / REPORT).symlink_to("/etc/passwd")
    assert read_report(tmp_path) is None
    (tmp_path / REPORT).unlink()
    os.mkfifo(tmp_path / REPORT)
    assert read_report(tmp_path) is None
