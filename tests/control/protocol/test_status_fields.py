"""The table of status fields: what is derived from it, and that one row is all that a new field takes."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated, NotRequired, get_args, is_typeddict

import attrs
import pytest
from kit.supervisor import server_status, supervisor_status

from stapsrv.control.cli import table
from stapsrv.control.cli.console import StatusReport
from stapsrv.control.protocol.schema import encoded
from stapsrv.control.protocol.status_fields import (
    Column,
    ServerInfo,
    SupervisorInfo,
    columns,
    row,
)
from stapsrv.control.protocol.validation import ShapeError, alternatives, checked, members
from stapsrv.supervisor.status import ServerStatus

DOCS = Path(__file__).parents[3] / "docs" / "control.md"


def doc_rows(shape: type) -> list[str]:
    """The table of an object's members as ``docs/control.md`` has it."""
    lines = ["| member | meaning |", "| --- | --- |"]
    for name, hint in members(shape).items():
        meaning, parts = row(hint)[0], alternatives(hint)
        inner = next(filter(is_typeddict, (parts.get(dict), *get_args(parts.get(list)))), None)
        if inner is not None and inner is not ServerInfo:
            described = "; ".join(f"`{each}`, {row(one)[0]}" for each, one in members(inner).items())
            lines.append(f"| `{name}` | {meaning}: {described} |")
        else:
            lines.append(f"| `{name}` | {meaning} |")
    return lines


@pytest.mark.parametrize(
    ("heading", "shape"), [("## A server", ServerInfo), ("### `status`", SupervisorInfo)]
)
def test_docs_have_every_field_in_the_words_of_the_table(heading, shape):
    text = DOCS.read_text(encoding="utf-8")
    section = re.split(r"\n##", text[text.index(f"\n{heading}\n") + 2 :])[0]
    assert [line for line in section.splitlines() if line.startswith("|")] == doc_rows(shape)


def test_columns_are_headed_once_and_path_members_that_there_are():
    headings = [column.heading for column, _ in columns(ServerInfo)]
    assert len(headings) == len(set(headings))
    assert {path[0] for _, path in columns(ServerInfo)} <= set(members(ServerInfo))
    assert (Column("HIT%", "hit rate"), ("cache", "hits")) in columns(ServerInfo)


class TemperedInfo(ServerInfo):
    """A server that tells one thing more."""

    degrees: NotRequired[Annotated[int, "how hot it is", Column("DEGREES", "number")]]


@attrs.frozen(kw_only=True)
class TemperedStatus(ServerStatus):
    degrees: int


def test_new_field_takes_a_row_and_the_attribute_that_holds_it(monkeypatch):
    monkeypatch.setattr(table, "ServerInfo", TemperedInfo)
    plain = server_status(7)
    status = TemperedStatus(
        **{field.name: getattr(plain, field.name) for field in attrs.fields(ServerStatus)}, degrees=451
    )
    info = encoded(status, TemperedInfo)
    assert info["degrees"] == 451
    assert checked(info, TemperedInfo, name="result", exact=True) is info
    with pytest.raises(ShapeError, match=r"^result\.degrees: expected a whole number, not a string$"):
        checked({**info, "degrees": "hot"}, TemperedInfo, name="result", exact=True)
    whole = {**encoded(supervisor_status(), SupervisorInfo), "servers": [info]}
    heading, row, *_ = table.status_table(StatusReport([whole]), colour=False, now=datetime.now(UTC))
    assert (heading.split()[-1], row.split()[-1]) == ("DEGREES", "451")
    assert "| `degrees` | how hot it is |" in doc_rows(TemperedInfo)


def test_scripts_are_counted_by_release_and_verdict():
    counts = {"6.1": {"ok": 41, "expected failure": 2}}
    info = encoded(supervisor_status(scripts=counts, new_releases=("6.1",)), SupervisorInfo)
    assert (info["scripts"], info["new_releases"]) == (counts, ["6.1"])
    assert checked(info, SupervisorInfo, name="result", exact=True) is info
    with pytest.raises(ShapeError, match=r"^result\.scripts\.6\.1: expected an object, not a number$"):
        checked({**info, "scripts": {"6.1": 41}}, SupervisorInfo, name="result", exact=True)


def test_older_supervisor_that_lacks_later_fields_is_understood():
    info = encoded(server_status(7), ServerInfo)
    old = {name: info[name] for name in info if name in ServerInfo.__required_keys__}
    assert len(old) < len(info)
    assert checked(old, ServerInfo, name="result", exact=False) is old
