"""The TOML file beside a script."""

from __future__ import annotations

import pytest

from stapsrv.scripts.sidecar import parse_sidecar


def test_all_keys():
    text = b"""
    options = ["-g"]
    arguments = ["a b"]
    leave_out = ["5.*"]
    fails_for = ["*"]
    privilege = "stapusr"
    """
    assert parse_sidecar(text) == {
        "options": ("-g",),
        "arguments": ("a b",),
        "leave_out": ("5.*",),
        "fails_for": ("*",),
        "privilege": "stapusr",
    }


def test_stapdev_adds_nothing_to_a_request():
    assert parse_sidecar(b'privilege = "stapdev"') == {"privilege": None}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (b"option = []", "unknown key 'option'; did you mean options?"),
        (b"zzz = 1", "unknown key 'zzz'; the keys are options, arguments"),
        (b"options = '-g'", "options: expected an array of strings"),
        (b"arguments = [1]", "arguments: expected an array of strings"),
        (b'arguments = ["\\u0000"]', "arguments: a string holds a NUL"),
        (b'privilege = "root"', "privilege: expected one of stapdev, stapsys, stapusr"),
        (b"options = [", "it is no TOML"),
        (b"\xff", "byte 0 is not UTF-8"),
    ],
)
def test_wrong_sidecar_is_told_by_its_key(text, words):
    with pytest.raises(ValueError, match=words):
        parse_sidecar(text)
