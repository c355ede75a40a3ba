"""Files of a directory become scripts; one that is wrong stops no other."""

from __future__ import annotations

from stapsrv.scripts.collection import Unreadable, make_collection


def test_sidecar_goes_before_what_upstream_states():
    files = {
        "x.stp": b"probe begin {}",
        "x.toml": b'options = ["-g"]',
        "x.meta": b"test_check: stap -w x.stp\n",
        "d/y.stp": b"probe begin {}",
        "d/y.meta": b"test_check: stap -w y.stp 7\n",
        "z.stp": b"",
    }
    y, x, z = make_collection("/srv", files).scripts
    assert (x.name, x.path, x.options, x.fault) == ("x.stp", "/srv/x.stp", ("-g",), None)
    assert (y.name, y.options, y.arguments) == ("d/y.stp", ("-w",), ("7",))
    assert (z.source, z.options) == (b"", ())


def test_each_fault_is_its_scripts_own():
    files = {
        "bytes.stp": b"\xff",
        "gone.stp": Unreadable("it cannot be read: Permission denied"),
        "good.stp": b"",
        "key.stp": b"",
        "key.toml": b"x = 1",
        "meta.stp": b"",
        "meta.meta": b"test_check: stap -p4 meta.stp $HOME\n",
        "option.stp": b"",
        "option.toml": b'options = ["--nonsense"]',
        "word.stp": b"",
        "word.toml": b'options = ["7"]',
        "x.stp": b"",
        "x.toml": Unreadable("it cannot be read"),
    }
    faults = {script.name: script.fault for script in make_collection("/srv", files).scripts}
    assert faults == {
        "bytes.stp": "bytes.stp: byte 0 is not UTF-8",
        "gone.stp": "gone.stp: it cannot be read: Permission denied",
        "good.stp": None,
        "key.stp": "key.toml: unknown key 'x'; the keys are options, arguments, leave_out, fails_for,"
        " privilege",
        "meta.stp": "meta.meta: test_check needs a shell: stap -p4 meta.stp $HOME",
        "option.stp": "option.toml: options: --nonsense is unknown",
        "word.stp": "word.toml: options: '7' is no option; see arguments",
        "x.stp": "x.toml: it cannot be read",
    }
