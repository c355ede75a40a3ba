"""The web page in a real browser: no complaint, follows a compile, survives a restart, suits everybody."""

from __future__ import annotations

import contextlib
import hashlib
import os
import signal
import socket
import ssl
from collections.abc import Iterator

import attrs
import pytest
from kit.chromium import Browser, open_browser
from kit.real import CompilerGate, Server, Stap, Unavailable, finish, serving
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

TOKEN = "0123456789abcdef-token"
PHONE = {"dark": True, "width": 390}


@attrs.frozen
class Site:
    """A server with the web page."""

    server: Server
    address: str


@pytest.fixture(scope="module")
def one_browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    with contextlib.ExitStack() as held:
        try:
            opened = held.enter_context(open_browser(tmp_path_factory.mktemp("browser")))
        except Unavailable as exc:
            if os.environ.get("CI") == "true":
                pytest.fail(str(exc), pytrace=False)
            pytest.skip(str(exc))
        yield opened


@pytest.fixture
def browser(one_browser: Browser) -> Iterator[Browser]:
    yield one_browser
    one_browser.close()


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        return int(taken.getsockname()[1])


@contextlib.contextmanager
def web(stap: Stap, port: int, *options: object, **environ: str) -> Iterator[Site]:
    asked = ("--metrics", port, "--web", "yes", *options)
    with serving(stap, *asked, **({"STAPSRV_RESULT_CACHE": "no"} | environ)) as server:
        yield Site(server, f"http://localhost:{port}")


def wait_text(browser: Browser, selector: str, words: str) -> None:
    browser.wait(lambda: words in browser.text(selector), f"{words!r} in {selector}")


def test_page_follows_a_compile_and_all_pages_suit_everybody(browser, stap, tmp_path):
    gate = CompilerGate(tmp_path / "gate", visible=tmp_path / "visible")
    with contextlib.closing(gate), web(stap, free_port(), gate.option) as site:
        browser.open(site.address)
        wait_text(browser, "#following", "Following")
        wait_text(browser, "[data-live=live_running]", "No request is under way.")
        browser.run("window.sameDocument = true")

        client = stap.begin_via(site.server.port, "-p4", "-g", "-I", gate.directory, "-e", gate.SCRIPT)
        gate.wait_reached(client)
        wait_text(browser, "[data-live=live_running]", "compile")
        wait_text(browser, "[data-live=live_tiles]", "1 of ")
        gate.open()
        assert finish(client).status == 0
        wait_text(browser, "[data-live=live_recent]", "success")
        wait_text(browser, "[data-live=live_running]", "No request is under way.")
        assert "in ten minutes" in browser.text("#requests-title")
        assert browser.run("return window.sameDocument") is True
        assert "gated" not in browser.driver.page_source

        # By keyboard: the first stop leads past the navigation.
        browser.driver.find_element(By.TAG_NAME, "body").send_keys(Keys.TAB)
        assert browser.run("return document.activeElement.textContent") == "Skip to the content"

        server = browser.run("return document.querySelector('[data-live=live_servers] a').pathname")
        request = browser.run("return document.querySelector('[data-live=live_recent] a').pathname")
        release = f"/release/{stap.installation.release}"
        assert (server, request) == (f"/server/{site.server.pid}", "/request/1")
        for path in ("/", server, release, request, "/add-client"):
            browser.open(f"{site.address}{path}")
            assert (path, browser.faults()) == (path, [])
            browser.look(**PHONE)
            assert (path, browser.faults()) == (path, [])
            root = "document.documentElement"
            assert browser.run(f"return {root}.scrollWidth <= {root}.clientWidth"), path
            assert browser.run("return getComputedStyle(document.body).backgroundColor") == "rgb(16, 21, 26)"
        certificate = ssl.get_server_certificate(("localhost", site.server.port))
        digest = hashlib.sha256(ssl.PEM_cert_to_DER_cert(certificate)).hexdigest()
        assert digest in browser.text("main").replace(":", "").lower()
        assert browser.complaints() == []


def test_page_survives_a_restart_of_the_supervisor(browser, stap):
    port = free_port()
    with web(stap, port) as first:
        browser.open(first.address)
        wait_text(browser, "#following", "Following")
        assert browser.complaints() == []
        first.server.signal(signal.SIGTERM)
        wait_text(browser, "#following", "trying again")
    with web(stap, port) as second:
        wait_text(browser, "footer", f"process {second.server.pid} ")
        wait_text(browser, "#following", "Following")
        # What it could not reach is all that there is to complain of.
        assert [each for each in browser.complaints() if "net::ERR_" not in each] == []


def test_token_is_asked_for_once(browser, stap, tmp_path):
    file = tmp_path / "token"
    file.write_text(f"{TOKEN}\n")
    file.chmod(0o600)
    with web(stap, free_port(), "--web-token-file", file) as site:
        browser.open(site.address, **PHONE)
        assert browser.text("h1") == "Token"
        assert browser.faults() == []
        browser.driver.find_element(By.ID, "token").send_keys(f"{TOKEN}\n")
        wait_text(browser, "#following", "Following")
        assert browser.run("return document.cookie") == ""
        # The console has the status of the page with the form.
        assert [each for each in browser.complaints() if " 401 " not in each] == []
        assert TOKEN not in "\n".join(site.server.log.lines)
