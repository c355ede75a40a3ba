"""A server at work with the real client shows in its metrics, and in one log line for each request."""

from __future__ import annotations

import re
import signal

from kit.http import get_page, read_samples
from kit.real import wait_until


def metrics_of(place):
    status, text = get_page(place, "/metrics")
    assert status == 200
    return read_samples(text)


def test_requests_are_in_the_metrics_and_one_log_line_each(serve, stap):
    place = stap.place / "metrics.sock"
    server = serve("--metrics", f"unix:{place}", caching=True)
    release = stap.installation.release
    # A script that no other test has: its result is not cached yet.
    assert stap.via(server.port, "-p4", "-e", 'probe begin { println("metrics") exit() }').status == 0
    assert stap.via(server.port, "-p4", "-e", "probe begin { exit( }").status == 1
    assert stap.via(server.port, "-p1", "-r", "5.5.5", "-e", "probe begin { exit() }").status == 1

    # A client has its answer a moment before the server is done with it, which takes one longer than another.
    server.log.wait(", refusal: .*$", count=3)
    lines = [line for line in server.log.lines if ", refusal: " in line]
    done, faulty, refused = sorted(lines, key=lambda line: re.search(r": (answered rc=\d|refused)", line)[1])
    times = r"lookup \d+\.\d+ s, queue \d+\.\d+ s, compile \d+\.\d+ s, sign \d+\.\d+ s, send \d+\.\d+ s"
    for line, rc in ((done, 0), (faulty, 1)):
        assert re.fullmatch(
            rf"Request from \S+ for {release}, options \w+: answered rc={rc}, compiled, "
            rf"\d+ bytes in, \d+ out; {times}; build: \S.*, refusal: -, uncacheable: \S.*",
            line,
        )
    assert " for 5.5.5, options " in refused
    assert ": refused rc=1, -, " in refused
    assert ", refusal: Target kernel version 5.5.5 x86_64 is not supported by this server" in refused
    # The log line comes when the result is stored; the worker is free when the directory is gone.
    wait_until(lambda: metrics_of(place)["stapsrv_workers_busy", "stap-serverd"] == 0)
    metrics = metrics_of(place)
    expected = {
        ("stapsrv_server_serving", "stap-serverd"): 1,
        ("stapsrv_requests_total", release, "success"): 1,
        ("stapsrv_requests_total", release, "error"): 1,
        ("stapsrv_requests_total", "other", "refused"): 1,
        ("stapsrv_answers_total", "compiled"): 2,
        ("stapsrv_request_compile_seconds_count",): 2,
        ("stapsrv_workers_busy", "stap-serverd"): 0,
        ("stapsrv_child_processes",): 0,
    }
    assert {key: metrics.get(key) for key in expected} == expected
    assert metrics["stapsrv_connections_total", "request"] == 3
    # The faulty one is never stored, nor is the other before its inputs have been scanned.
    not_kept = [count for name, count in metrics.items() if name[0] == "stapsrv_results_not_kept_total"]
    assert sum(not_kept) in {1, 2}
    assert metrics["stapsrv_request_compile_seconds_sum",] > 0.02

    server.signal(signal.SIGTERM)
    assert server.wait() == 0
    assert not place.exists()
