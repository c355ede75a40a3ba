"""Rows and groups of the table of settings."""

from __future__ import annotations

import pytest

from stapsrv.config.kinds import Kind, count
from stapsrv.config.setting import Group, Setting


class Zoo(Group):
    """A table."""

    cats = Setting("MAX_CATS", count("a number of cats"), "cats", default=3)
    names = Setting[tuple[str, ...]]("NAMES", Kind("NAME"), "names", array=True, identifies=True)


def test_class_has_rows_and_instance_has_values():
    assert Zoo.rows == (Zoo.cats, Zoo.names)
    assert (Zoo().cats, Zoo().names) == (3, ())
    assert Zoo({"cats": 5, "of_another_group": 1}).cats == 5


def test_names_and_option_derive_from_the_row():
    assert (Zoo.cats.attribute, Zoo.cats.option, Zoo.cats.default_text) == ("cats", "--max-cats", "3")
    assert (Zoo.names.group, Zoo.names.default_text) == (Zoo, "")
    assert (Zoo.cats.identifies, Zoo.names.identifies) == (False, True)


def test_values_are_replaced_and_those_of_arrays_added():
    values = {}
    for row, text in ((Zoo.cats, "1"), (Zoo.cats, "2"), (Zoo.names, "a"), (Zoo.names, "b")):
        row.add(values, text)
    assert values == {"cats": 2, "names": ("a", "b")}
    with pytest.raises(ValueError, match=r"^a number of cats, 1 or more$"):
        Zoo.cats.add(values, "none")
