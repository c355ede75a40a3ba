"""The command line: grammar, order, what begins a further server, and every refusal."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from stapsrv.control.cli.invocation import (
    Action,
    Invocation,
    OutputForm,
    ServerSpecification,
    TypedOption,
)
from stapsrv.control.cli.parser import parse_arguments
from stapsrv.errors import UsageError

ACTIONS = (
    "start, stop, restart, condrestart, force-reload, reload, status, drain, undrain, check, help, version"
)
RELOAD = (
    "reload takes no servers: it makes the running ones those that are configured; "
    "name none, or restart those that you mean"
)


def parse(line: str) -> Invocation:
    return parse_arguments(shlex.split(line), directory="/cwd")


def typed(line: str) -> tuple[TypedOption, ...]:
    words = shlex.split(line)
    return tuple(TypedOption(option, value) for option, value in zip(words[::2], words[1::2], strict=True))


@pytest.mark.parametrize("word", ACTIONS.split(", "))
def test_action_alone(word: str) -> None:
    assert parse(word) == Invocation(Action(word))


def test_words_for_an_action() -> None:
    assert parse("try-restart").action is Action.CONDRESTART
    assert parse("--help").action is Action.HELP
    assert parse("--version").action is Action.VERSION
    assert parse("start -r X --help").action is Action.HELP
    assert parse("start --version --help").action is Action.VERSION
    assert parse("ctl stop -n a") == parse("stop -n a")._replace(running_only=True)


def test_watch_is_of_status_alone_and_takes_neither_servers_nor_an_end() -> None:
    assert parse("status --watch --json") == Invocation(Action.STATUS, watch=True, output=OutputForm.JSON)
    for line, text in {
        "stop --watch": "--watch is an option of status alone",
        "status --watch -n a": "status --watch takes no servers: it tells of all; name none",
        "status --watch --classic": "status --watch has no end and no classic form;"
        " leave out --timeout and --classic",
    }.items():
        with pytest.raises(UsageError) as caught:
            parse(line)
        assert str(caught.value) == text


@pytest.mark.parametrize(
    "line",
    [
        "start -rX -Iy --port=1 -n=z",
        "start -r X -I y --port 1 -n =z",
        "start -- -r X -- -I /cwd/y --port 1 -n=z",
    ],
)
def test_values_are_attached_or_separate(line: str) -> None:
    assert parse(line) == Invocation(
        Action.START,
        specifications=(ServerSpecification(name=typed("-n =z")[0], earlier=typed("-r X -I /cwd/y")),),
        lists={"--port": (1,)},
    )


def test_value_may_look_like_an_option() -> None:
    assert parse("start -B -j2 -D -a").specifications[0].settings == typed("-B -j2 -D -a")
    assert parse("start -B -- -D--").specifications[0].settings == typed("-B -- -D --")


def test_flags_may_be_one_word() -> None:
    assert parse("start -kP") == parse("start -k -P")


@pytest.mark.parametrize(
    ("line", "specifications"),
    [
        pytest.param("", [], id="none"),
        pytest.param("--port 1 -k -P", [], id="lists, -k and -P specify no server"),
        pytest.param("-c /g", [], id="-c specifies no server"),
        pytest.param(
            "-a A -r R -I /i -R /r -B B -D D -u U",
            [ServerSpecification(settings=typed("-a A -r R -I /i -R /r -B B -D D -u U"))],
            id="all that describes describes one server",
        ),
        pytest.param(
            "-r R -r S -a A -a B",
            [ServerSpecification(settings=typed("-r R -r S -a A -a B"))],
            id="order is kept",
        ),
        pytest.param(
            "-r R -n N -a A",
            [ServerSpecification(name=typed("-n N")[0], earlier=typed("-r R"), settings=typed("-a A"))],
            id="-n splits what comes before from what overrides it",
        ),
        pytest.param(
            "-n N -a A -p 7 -r R",
            [
                ServerSpecification(name=typed("-n N")[0], settings=typed("-a A")),
                ServerSpecification(name=typed("-p 7")[0], settings=typed("-r R")),
            ],
            id="a second name begins a further server",
        ),
        pytest.param(
            "-u U -i",
            [ServerSpecification(settings=typed("-u U"), each_release=True)],
            id="-i takes what was typed before",
        ),
        pytest.param(
            "-R /r -i -u U -I /i",
            [ServerSpecification(settings=typed("-R /r -u U -I /i"), each_release=True)],
            id="-i takes what is typed after it",
        ),
        pytest.param("-i", [ServerSpecification(each_release=True)], id="-i alone"),
        pytest.param("-i -i", [ServerSpecification(each_release=True)] * 2, id="-i twice"),
        pytest.param(
            "-n N -i",
            [ServerSpecification(name=typed("-n N")[0], each_release=True)],
            id="-i after -n",
        ),
        pytest.param(
            "-i -a A -r R",
            [ServerSpecification(each_release=True), ServerSpecification(settings=typed("-a A -r R"))],
            id="-r after -i is a further server",
        ),
        pytest.param(
            "-i -a A -n N",
            [
                ServerSpecification(each_release=True),
                ServerSpecification(name=typed("-n N")[0], earlier=typed("-a A")),
            ],
            id="-n after -i is a further server",
        ),
        pytest.param(
            "-i -I /i -i",
            [
                ServerSpecification(each_release=True),
                ServerSpecification(settings=typed("-I /i"), each_release=True),
            ],
            id="-i after -i",
        ),
    ],
)
def test_specifications(line: str, specifications: list[ServerSpecification]) -> None:
    assert list(parse(f"start {line}").specifications) == specifications


def test_lists_keep_their_order_and_an_empty_value_is_the_default() -> None:
    line = (
        "start --port 1 --port '' --port 65535 --log l --log /m --ssl s --max-threads 0 "
        "--max-request-size 1 --max-compressed-request 2"
    )
    assert parse(line).lists == {
        "--log": (Path("/cwd/l"), Path("/m")),
        "--port": (1, None, 65535),
        "--ssl": (Path("/cwd/s"),),
        "--max-threads": (0,),
        "--max-request-size": (1,),
        "--max-compressed-request": (2,),
    }


def test_last_config_file_counts() -> None:
    assert parse("status -c a -r X -c b").config_file == Path("/cwd/b")


def test_paths_are_made_absolute_and_others_are_not() -> None:
    invocation = parse("start -c ../g -I ./t -R r -r build -B x -D y")
    assert invocation.config_file == Path("/cwd/../g")
    assert invocation.specifications[0].settings == typed("-I /cwd/./t -R /cwd/r -r build -B x -D y")


def test_flags() -> None:
    assert parse("start") == Invocation(Action.START, wait=True, timeout_s=None, output=OutputForm.AUTO)
    assert parse("start -k -P --no-wait --timeout 2.5 --json") == Invocation(
        Action.START,
        keep_temporary=True,
        use_password=True,
        wait=False,
        timeout_s=2.5,
        output=OutputForm.JSON,
    )
    assert parse("status --classic").output is OutputForm.CLASSIC
    assert parse("start --no-wait --wait").wait, "the last counts"


def test_an_empty_value_means_the_default_where_there_is_one() -> None:
    assert parse("start -a '' -u '' -R '' -rX").specifications[0].settings == (
        *typed("-a ''"),
        *typed("-u ''"),
        *typed("-R ''"),
        *typed("-r X"),
    )


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", f"no action given; give one of {ACTIONS}"),
        ("ctl", f"no action given; give one of {ACTIONS}"),
        ("strat", "unknown action 'strat'; did you mean start?"),
        ("ctl ctl", f"unknown action 'ctl'; give one of {ACTIONS}"),
        ("zzz", f"unknown action 'zzz'; give one of {ACTIONS}"),
        ("''", f"unknown action ''; give one of {ACTIONS}"),
        ("-c f start", f"'-c' comes before the action; first give one of {ACTIONS}"),
        ("start -Z", "unknown option '-Z'; see stap-server --help"),
        ("start -Zx", "unknown option '-Z'; see stap-server --help"),
        ("start --prot 1", "unknown option '--prot'; did you mean --port?"),
        ("start --por=1", "unknown option '--por'; did you mean --port?"),
        ("start --zzz", "unknown option '--zzz'; see stap-server --help"),
        ("start operand", "unexpected argument 'operand'; see stap-server --help"),
        ("start -", "unexpected argument '-'; see stap-server --help"),
        ("start ''", "unexpected argument ''; see stap-server --help"),
        ("start -r", "-r: needs a value"),
        ("start --port", "--port: needs a value"),
        ("start -r ''", "-r: needs a value"),
        ("start -n ''", "-n: needs a value"),
        ("start -c ''", "-c: needs a value"),
        ("start --timeout=", "--timeout: needs a value"),
        ("start --json=1", "--json: takes no value"),
        ("start -n 'a\nb'", "-n: the value holds a line break"),
        ("start -D '()'", "-D: needs a value"),
        ("start -D 'a\udcff'", "-D: the value is not UTF-8 text"),
        (
            "start --port abc",
            "--port: expected a port number from 0 to 65535 (0: the kernel picks one), not 'abc'",
        ),
        (
            "start --port=65536",
            "--port: expected a port number from 0 to 65535 (0: the kernel picks one), not '65536'",
        ),
        (
            "start --max-threads -1",
            "--max-threads: expected a number of threads, 0 or more (0: one request at a time), not '-1'",
        ),
        (
            "start --max-request-size 0",
            "--max-request-size: expected a number of bytes, 1 or more, not '0'",
        ),
        (
            "start --max-compressed-request x",
            "--max-compressed-request: expected a number of bytes, 1 or more, not 'x'",
        ),
        ("start --timeout 0", "--timeout: expected a number of seconds above 0, not '0'"),
        ("start --timeout inf", "--timeout: expected a number of seconds above 0, not 'inf'"),
        ("start --timeout soon", "--timeout: expected a number of seconds above 0, not 'soon'"),
        ("status --json --classic", "--json and --classic exclude each other"),
        ("reload -n a", RELOAD),
    ],
)
def test_mistake_is_one_line(line: str, message: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse(line)
    assert str(caught.value) == message
    assert caught.value.exit_status == 2
    assert "\n" not in message


@settings(derandomize=True, database=None)
@given(
    st.lists(
        st.text()
        | st.sampled_from(["start", "-r", "-n", "-i", "-k=", "--port", "--json=", "-", "--", "=", "ctl"])
    )
)
def test_any_words_are_understood_or_refused(words: list[str]) -> None:
    try:
        parse_arguments(words, directory="/")
    except UsageError as refusal:
        message = str(refusal)
    else:
        message = ""
    assert "\n" not in message


@pytest.mark.parametrize("option", ["-I", "-c", "--log"])
def test_relative_path_is_refused_where_the_directory_is_gone(option: str) -> None:
    with pytest.raises(UsageError) as caught:
        parse_arguments(["start", option, "x"], directory=None)
    assert str(caught.value) == f"{option}: expected an absolute path, not 'x'"


def test_letter_after_an_option_without_a_value_is_a_mistake() -> None:
    with pytest.raises(UsageError) as caught:
        parse("start -iX")
    # As argparse of this Python reads it.
    assert str(caught.value) in {"-i: takes no value", "unknown option '-X'; see stap-server --help"}
