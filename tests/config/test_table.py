"""The table of settings, and that everything else agrees with it."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import attrs
import pytest
from kit.machine import ROOT

from stapsrv.config.compilation import Compilation
from stapsrv.config.global_settings import SYSTEM_SETTINGS, GlobalSettings, lay_over
from stapsrv.config.settings import ServerSettings
from stapsrv.config.table import (
    GLOBAL_SETTINGS,
    SERVER_SETTINGS,
    TUNABLES,
    Description,
    Limits,
    NetworkAccess,
    Service,
    SharedLimits,
)
from stapsrv.control.cli.console import title
from stapsrv.control.cli.parser import parse_arguments as parse_command
from stapsrv.daemon_options import parse_arguments
from stapsrv.errors import ConfigError, UsageError

TUNABLE = (*NetworkAccess.rows, *Limits.rows, *Compilation.rows)


def name_of(row):
    return row.variable


def a_value(row):
    """Return a value that is not the default, as text."""
    texts = ("1", "2", "7M", "7k", "9k", "yes", "no", "off", "/a", "192.0.2.1", "192.0.2.0/24")
    texts += ("dask", "tls://farm.example.com:8786", "refuse")
    for text in texts:
        try:
            if row.kind.parse(text) != row.default:
                return text
        except ValueError:
            continue
    raise AssertionError(f"no value for {row.variable}")


def test_each_row_that_is_not_tunable_is_a_field():
    fields = {field.name: field.default for field in attrs.fields(ServerSettings)}
    assert fields.keys() - {"keep_temporary", "tuning"} == {row.attribute for row in Description.rows}
    assert all(fields[row.attribute] == row.default for row in Description.rows)
    defaults = GlobalSettings._field_defaults
    assert defaults.keys() - {"tuning", "warnings"} == {row.attribute for row in Service.rows}
    assert all(defaults[row.attribute] == row.default for row in Service.rows)


@pytest.mark.parametrize("row", [*GLOBAL_SETTINGS, *SERVER_SETTINGS], ids=name_of)
def test_rows_are_fit_for_people(row):
    assert re.fullmatch(r"[A-Z][A-Z_]*[A-Z]", row.variable)
    assert row.help
    assert not row.help.endswith(".")
    assert row.kind.metavar
    # The number of processes goes by this host's cores.
    depends_on_host = row is Limits.processes
    if row.tunable and row.default_text and row.default is not None and not depends_on_host:
        assert row.kind.parse(row.default_text) == row.default


def test_stap_may_have_make_work_on_many_jobs_however_many_cores_there_are():
    """It does where the limit is above 30 processes for each core."""
    program = (
        "import os; os.cpu_count = lambda: 64\n"
        "from stapsrv.config.table import Limits; print(Limits.processes.default)"
    )
    printed = subprocess.run([sys.executable, "-c", program], capture_output=True, check=True).stdout
    assert int(printed) > 30 * 64


def test_names_are_unique():
    for rows in (GLOBAL_SETTINGS, SERVER_SETTINGS):
        assert len({row.variable for row in rows}) == len({row.attribute for row in rows}) == len(rows)


@pytest.mark.parametrize("row", TUNABLE, ids=name_of)
def test_each_tunable_row_works_everywhere(row):
    """In the global file, as an option of both programs, and shown by ``status``."""
    text = a_value(row)
    parsed = row.kind.parse(text)
    value = (parsed,) if row.array else parsed
    assert lay_over(SYSTEM_SETTINGS, f"{row.variable}={text}\n", where="g").tuning == {row.attribute: value}
    server = parse_arguments([row.option, text]).server
    assert server is not None
    assert server.tuning == {row.attribute: value}
    (specification,) = parse_command(["start", row.option, text], directory=None).specifications
    assert specification.settings == ((row.option, text),)
    assert title({row.variable: text}) == f'stap-server {row.option} "{text}"'


@pytest.mark.parametrize("row", SharedLimits.rows, ids=name_of)
def test_each_shared_row_works_everywhere(row):
    text = a_value(row)
    wanted = {row.attribute: row.kind.parse(text)}
    assert lay_over(SYSTEM_SETTINGS, f"{row.variable}={text}\n", where="g").tuning == wanted
    options = parse_arguments([row.option, text])
    assert (options.server, options.service) == (None, wanted)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (
            ["--compile-timeout", "soon"],
            "--compile-timeout: expected a duration from 0.1 seconds to 1d, like 30 (seconds), 30s or 5m, "
            "not 'soon'",
        ),
        (
            ["--max-answer-size=12"],
            "--max-answer-size: expected a size of 1k or more, like 65536 (bytes), 64M or 1G, not '12'",
        ),
        (
            ["--listen", "localhost"],
            "--listen: expected an IPv4 or IPv6 address without a port, like 192.0.2.1 or fe80::1%eth0 "
            "(host names are not looked up), not 'localhost'",
        ),
        (
            ["--max-connections", "0"],
            "--max-connections: expected a number of connections, 1 or more, not '0'",
        ),
    ],
)
def test_wrong_values_get_one_line_from_both_programs(words, message):
    for parse in (lambda words: parse_command(["start", *words], directory=None), parse_arguments):
        with pytest.raises(UsageError) as caught:
            parse(words)
        assert str(caught.value) == message


NEW_ROW = """\
    sheep = Setting(
        "MAX_SHEEP", count("a number of sheep"), "sheep that a compile may count", default=7
    )
    warmup = Setting("""
USE = """\
from stapsrv.config.files import encode_server_settings, server_settings_from
from stapsrv.config.global_settings import SYSTEM_SETTINGS, global_defaults, lay_over
from stapsrv.config.settings import ServerSettings
from stapsrv.control.cli.help import usage
from stapsrv.control.cli.parser import parse_arguments as parse_command
from stapsrv.control.protocol.schema import settings_from, settings_info
from stapsrv.daemon_options import parse_arguments

assert ServerSettings().limits.sheep == 7
wanted = ServerSettings(tuning={"sheep": 9})
assert server_settings_from("MAX_SHEEP=9", where="f") == wanted
assert lay_over(SYSTEM_SETTINGS, "MAX_SHEEP=9", where="g").tuning == wanted.tuning
environ = {"STAPSRV_MAX_SHEEP": "9"}
assert global_defaults(environ).tuning == wanted.tuning
assert parse_arguments(["--max-sheep", "9"]).server == wanted
assert parse_command(["start", "--max-sheep=9"], directory="/").specifications[0].settings
assert "MAX_SHEEP=9" in encode_server_settings(wanted).splitlines()
assert settings_info(wanted) == {"MAX_SHEEP": 9} and settings_from({"MAX_SHEEP": 9}, where="s") == wanted
assert "--max-sheep N" in usage("start")
"""


def test_setting_that_is_added_to_the_table_is_everywhere(tmp_path):
    """A row alone: files, environment, options, ``.stat``, JSON, help, manual page, completion and docs."""
    ignored = shutil.ignore_patterns("__pycache__")
    for name in ("stapsrv", "packaging", "docs"):
        shutil.copytree(ROOT / name, tmp_path / name, ignore=ignored)
    table = tmp_path / "stapsrv" / "config" / "table.py"
    text = table.read_text()
    assert text.count("    warmup = Setting(") == 1
    table.write_text(text.replace("    warmup = Setting(", NEW_ROW))
    environ = os.environ | {"PYTHONPATH": str(tmp_path), "PYTHONDONTWRITEBYTECODE": "1"}
    generate = tmp_path / "packaging" / "manual" / "generate.py"
    for words in (["-c", USE], [generate, tmp_path / "made"], [generate, "--docs", tmp_path / "docs"]):
        command = [sys.executable, *words]
        ran = subprocess.run(command, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
        assert ran.returncode == 0, ran.stderr
    for made in ("man/stap-server.8", "man/stap-serverd.8"):
        assert "max\\-sheep" in (tmp_path / "made" / made).read_text()
    assert "MAX_SHEEP" in (tmp_path / "made" / "man" / "stap-server.conf.5").read_text()
    for made in ("bash/stap-server", "bash/stap-serverd", "zsh/_stap-server"):
        assert "--max-sheep" in (tmp_path / "made" / made).read_text()
    assert "-l max-sheep" in (tmp_path / "made" / "fish" / "stap-server.fish").read_text()
    line = "| `MAX_SHEEP` | `--max-sheep` | `7` | sheep that a compile may count |"
    assert line in (tmp_path / "docs" / "limits.md").read_text().splitlines()


def test_docs_have_the_tables_of_today(tmp_path):
    pages = [ROOT / "docs" / "configuration.md", ROOT / "docs" / "limits.md"]
    for page in pages:
        shutil.copy(page, tmp_path)
    generate = ROOT / "packaging" / "manual" / "generate.py"
    subprocess.run([sys.executable, generate, "--docs", tmp_path], check=True)
    text = "".join((tmp_path / page.name).read_text() for page in pages)
    assert text == "".join(page.read_text() for page in pages), "run packaging/manual/generate.py --docs docs"
    assert all(f"| `{row.variable}` |" in text for row in (*GLOBAL_SETTINGS, *SERVER_SETTINGS))


def test_mdns_variables() -> None:
    text = "MDNS=no\nMDNS_INTERFACES=eth0, wlan0\nMDNS_HOST=build.local\n"
    settings = lay_over(SYSTEM_SETTINGS, text, where="g")
    assert settings == SYSTEM_SETTINGS._replace(
        mdns_enabled=False, mdns_interfaces=("eth0", "wlan0"), mdns_host="build"
    )


@pytest.mark.parametrize(
    ("line", "text"),
    [
        ("MDNS=on", "MDNS=on: expected yes or no"),
        (
            "MDNS_INTERFACES=a/b",
            "MDNS_INTERFACES=a/b: expected names of interfaces or IP addresses, which 'a/b' is not",
        ),
        (
            "MDNS_HOST=a.b",
            "MDNS_HOST=a.b: expected a host name of up to 63 letters, digits and dashes, without a domain",
        ),
        ("LOG_FORMAT=xml", "LOG_FORMAT=xml: expected classic, json or journal"),
    ],
)
def test_wrong_value_is_one_line_with_what_was_expected(line: str, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        lay_over(SYSTEM_SETTINGS, line, where="g")
    assert str(caught.value) == f"g:1: {text}"


def test_paths_have_defaults_and_are_read_as_paths() -> None:
    for row in (Service.config_path, Service.stat_path, Service.log_file):
        assert row.default_text == str(row.default)
        assert (row.kind.parse("/x"), row.kind.is_path) == (Path("/x"), True)


def test_service_is_not_tunable_and_is_set_in_the_global_file() -> None:
    assert set(Service.rows) == set(GLOBAL_SETTINGS) - set(TUNABLES)
    assert not any(row.tunable or row.identifies for row in Service.rows)
