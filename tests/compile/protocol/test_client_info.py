"""What clients state line by line; the messages are word for word those of the original server."""

from __future__ import annotations

import pytest

from stapsrv.compile.protocol.client_info import (
    LOCALE_KEYS,
    MAX_LINES,
    ClientKeys,
    ClientLocale,
    parse_keys,
    parse_locale,
)
from stapsrv.errors import RequestRejected


@pytest.mark.parametrize("data", [b"", b"\n"[:0]])
def test_empty_entries_state_nothing(data):
    assert parse_locale(data) == ClientLocale()
    assert parse_keys(data) == ClientKeys()


def test_every_locale_key_is_accepted():
    lines = b"".join(f"{key}=C.UTF-8\n".encode() for key in sorted(LOCALE_KEYS))
    stated = parse_locale(lines)
    assert dict(stated.environment) == dict.fromkeys(LOCALE_KEYS, "C.UTF-8")
    assert stated.messages == ()


def test_bad_locale_lines_earn_messages_and_the_others_count():
    # The first ten lines were put to the original server, which said the same.
    stated = parse_locale(
        b"LANG=C\nFOO=bar\nnoequals\nLC_ALL=a b\n\n=x\nLC_TIME=a=b\nLANG=en\nLC_CTYPE=\n lang=x\nLC_ALL =C\n"
    )
    assert stated.environment == (("LANG", "en"), ("LC_TIME", "a=b"), ("LC_CTYPE", ""))
    assert stated.messages == (
        "Server: Localization key 'FOO' not found in global list",
        "Server: Localization key=value line 'noequals' cannot be parsed",
        "Server: Localization value 'a b' contains illegal characters",
        "Server: Localization key=value line '' cannot be parsed",
        "Server: Localization key '' not found in global list",
        "Server: Localization key ' lang' not found in global list",
        "Server: Localization key 'LC_ALL ' not found in global list",
    )


def test_last_line_needs_no_newline():
    assert parse_locale(b"LANG=C\nLC_ALL=C").environment == (("LANG", "C"), ("LC_ALL", "C"))
    assert parse_keys(b"aa:bb").fingerprints == ("aa:bb",)


@pytest.mark.parametrize("value", [b"C\r", b"../x", b"a/b", b"\xe9", "ü".encode(), b"a\0", b"%s", b"C "])
def test_locale_value_with_other_characters_is_refused(value):
    stated = parse_locale(b"LANG=" + value + b"\n")
    assert stated.environment == ()
    assert len(stated.messages) == 1
    assert stated.messages[0].isprintable()


def test_locale_key_is_compared_as_it_is_sent():
    assert parse_locale(b"LA\\x4eG=C\nL\0ANG=C\n").environment == ()


def test_bad_fingerprints_earn_messages_and_the_others_count():
    # All but the last two were put to the original server, which said the same.
    longest, too_long = ":".join(["ab"] * 64), ":".join(["ab"] * 65)
    stated = parse_keys(
        b"aa:bb\nAA:bb\n\nmissing\naa\nfoo\n missing\nmissing x\naa:bb\n"
        + f"{longest}\n{too_long}\n".encode()
    )
    assert stated.fingerprints == ("aa:bb", longest)
    assert stated.missing
    prefix, suffix = "Server: MOK fingerprint value '", "' isn't in the correct format"
    refused = ["AA:bb", "", "aa", "foo", " missing", "missing x", too_long]
    assert stated.messages == tuple(f"{prefix}{value}{suffix}" for value in refused)


def test_fingerprints_alone_do_not_say_missing():
    assert parse_keys(b"00:ff:10\n") == ClientKeys(("00:ff:10",), missing=False, messages=())
    assert parse_keys(b"zz\n").missing is False


@pytest.mark.parametrize(("parse", "entry"), [(parse_locale, "locale"), (parse_keys, "mok_fingerprints")])
@pytest.mark.parametrize("end", [b"", b"\n", b"x"])
def test_more_lines_than_the_limit_are_rejected(parse, entry, end):
    assert len(parse(b"\n" * MAX_LINES).messages) == MAX_LINES
    with pytest.raises(RequestRejected) as caught:
        parse(b"\n" * (MAX_LINES + (end != b"x")) + end)
    assert str(caught.value) == f"The request's {entry} has more than 1000 lines"


def test_messages_cannot_forge_lines():
    assert parse_locale(b"A\x07\r\xe9=x\n").messages == (
        r"Server: Localization key 'A\x07\r\xe9' not found in global list",
    )
