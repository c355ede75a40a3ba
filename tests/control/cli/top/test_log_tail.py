"""The end of a log: the last whole lines, and nothing that waits or obeys."""

from __future__ import annotations

import os

from stapsrv.control.cli.top.log_tail import log_tail


def test_last_lines_of_a_long_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f"line {number}\n" for number in range(20_000)))
    assert log_tail(log, 2) == ["line 19998", "line 19999"]
    assert all(line.startswith("line ") for line in log_tail(log, 100_000))


def test_what_a_terminal_would_obey_is_escaped(tmp_path):
    (tmp_path / "log").write_bytes(b"\x1b[2Jgone \xff\n")
    (line,) = log_tail(tmp_path / "log", 9)
    assert "\x1b" not in line


def test_pipe_and_missing_file_are_a_line_that_says_so(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    assert log_tail(tmp_path / "pipe", 9) == [
        f"{tmp_path}/pipe is no file: what is logged there cannot be shown"
    ]
    assert log_tail(tmp_path / "none", 9) == [f"{tmp_path}/none: No such file or directory"]
