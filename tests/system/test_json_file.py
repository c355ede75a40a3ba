"""A few facts in a small file: lost or damaged, it costs the facts alone."""

from __future__ import annotations

from typing import TypeGuard

import pytest

from stapsrv.system.json_file import JsonFile, with_fact


def is_number(value: object) -> TypeGuard[int]:
    return isinstance(value, int)


def test_facts_are_read_as_they_were_written_and_in_order(tmp_path):
    memory = JsonFile(tmp_path / "new" / "facts", is_number)
    memory.write({"b": 1, "a": 2})
    assert list(memory.read().items()) == [("b", 1), ("a", 2)]
    memory.write({"c": 3})
    assert memory.read() == {"c": 3}


@pytest.mark.parametrize("content", [b"", b"[", b"[]", b"7", b"\xff"])
def test_damaged_file_has_no_facts(tmp_path, content):
    (tmp_path / "facts").write_bytes(content)
    assert JsonFile(tmp_path / "facts", is_number).read() == {}


def test_values_of_another_kind_are_dropped(tmp_path):
    (tmp_path / "facts").write_text('{"x": "text", "y": 1, "z": null}')
    assert JsonFile(tmp_path / "facts", is_number).read() == {"y": 1}


def test_place_that_cannot_be_written_raises_nothing_and_has_no_facts(tmp_path):
    (tmp_path / "file").write_text("")
    memory = JsonFile(tmp_path / "file" / "facts", is_number)
    memory.write({"a": 1})
    assert memory.read() == {}


def test_oldest_fact_beyond_500_is_dropped_and_a_renewed_one_is_not():
    facts: dict[str, int] = {}
    for number in range(500):
        facts = with_fact(facts, str(number), number)
    facts = with_fact(with_fact(facts, "0", -1), "new", 500)
    assert len(facts) == 500
    assert (facts["0"], "1" in facts, "2" in facts) == (-1, False, True)
