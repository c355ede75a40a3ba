"""What a client makes of a response, as the real one does."""

from __future__ import annotations

import pytest
from kit.client import pack
from kit.compile_server import response

from stapsrv.client import response as module
from stapsrv.client.response import read_response
from stapsrv.errors import ProtocolError


def test_module_and_signature_are_found_and_their_line_left_out():
    result = read_response(
        response(stdout="a\n/x/stap_1.ko\nb", stderr="e\n", stap1_ko=b"M", stap1_ko_sgn=b"S", x_c=b"C"),
        last_pass=4,
    )
    assert (result.status, result.module, result.module_name, result.signature) == (0, b"M", "stap1.ko", b"S")
    assert (result.stdout, result.stderr, result.problem) == ("a\nb", "e\n", None)
    assert sorted(result.files) == ["stap1.ko", "stap1.ko.sgn", "x.c"]
    assert result.version == "4.8"


def test_pass_before_the_fourth_needs_no_module():
    assert read_response(response(stdout="tree\n"), last_pass=2).status == 0


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (response(), "No module was returned by the server."),
        (response(a_ko=b"", b_ko=b""), "Incorrect number of modules in server response"),
        (pack([("version", "4.8")]), "the server sent no exit status: it may not serve this kernel release"),
        (
            pack([("rc", "zero"), ("stap000000/a.ko", "M")]),
            "the server sent no exit status: it may not serve",
        ),
        (response(139, stderr="no"), None),
        (response(1, a_ko=b"M"), None),
    ],
)
def test_response_without_a_module_to_use_has_status_1(answer, problem):
    result = read_response(answer, last_pass=4)
    assert (result.status, result.module) == (1, None)
    assert (result.problem or "").startswith(problem or "")
    assert (problem is None) == (result.problem is None)


def test_key_to_enrol_is_found():
    answer = pack([("rc", "1"), ("signing_key.x509", "K"), ("stap000000/a.ko", "M")])
    assert read_response(answer, last_pass=4).mok_certificate == b"K"


def test_output_that_is_no_utf_8_is_kept():
    result = read_response(pack([("rc", "0"), ("stdout", b"\xff\n")]), last_pass=1)
    assert (result.stdout, result.raw_stdout) == ("\\xff\n", b"\xff\n")


@pytest.mark.parametrize(
    ("answer", "problem"),
    [
        (b"", "has no proper end"),
        (b"hello", "has no proper end"),
        (response(x_ko=bytes(3000))[:-40], "has no proper end"),
        (pack([("rc", "0"), ("../x", "")]), r"its zip entry '\.\./x' has \.\. in its path"),
        (pack([("rc", "0"), ("/x", "")]), "its zip entry '/x' has an absolute or empty path"),
    ],
)
def test_what_is_no_response_is_refused_on_one_line(answer, problem):
    with pytest.raises(ProtocolError, match=f"^the response is not .*: .*{problem}") as raised:
        read_response(answer, last_pass=4)
    assert "\n" not in str(raised.value)


def test_too_much_is_refused(monkeypatch):
    monkeypatch.setattr(module, "MAX_FILES_BYTES", 1 << 20)
    with pytest.raises(ProtocolError, match=r"its files have more than 1 MiB$"):
        read_response(response(x_ko=bytes(2 << 20)), last_pass=4)
