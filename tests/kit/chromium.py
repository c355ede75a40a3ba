"""Debian's Chromium, headless, which contacts nobody but this host; and axe-core, which checks its pages."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Callable, Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from selenium.webdriver import Chrome, ChromeOptions
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.common.by import By
from selenium.webdriver.support.wait import WebDriverWait

from .real import PATIENCE_S, Unavailable

_FLAGS = (
    "--headless=new",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-dev-shm-usage",
    "--disable-gpu",
    "--disable-sync",
    "--no-default-browser-check",
    "--no-first-run",
    "--no-pings",
    "--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE localhost , EXCLUDE 127.0.0.1",
)
_AXE = """
const [done] = arguments;
const told = ({impact, id, nodes}) => [impact, id, nodes.map((node) => node.html)];
axe.run(document, {resultTypes: ["violations"]}).then(
  (found) => done(found.violations.map(told)),
  (fault) => done([["critical", String(fault), []]]),
);
"""


class Browser:
    """A window, and what a test wants to know of the page in it."""

    def __init__(self, driver: Chrome) -> None:
        self.driver = driver
        axe = resources.files("axe_core_python") / "axe.min.js"
        self._axe = axe.read_text(encoding="utf-8")

    def open(self, address: str, *, dark: bool = False, width: int = 1280, height: int = 900) -> None:
        """Show a page as somebody with such a screen has it."""
        self.look(dark=dark, width=width, height=height)
        self.driver.get(address)

    def look(self, *, dark: bool, width: int, height: int = 900) -> None:
        scheme = [{"name": "prefers-color-scheme", "value": "dark" if dark else "light"}]
        self._devtools("Emulation.setEmulatedMedia", features=scheme)
        self._devtools(
            "Emulation.setDeviceMetricsOverride",
            width=width,
            height=height,
            deviceScaleFactor=1,
            mobile=False,
        )

    def text(self, selector: str) -> str:
        return str(self.driver.find_element(By.CSS_SELECTOR, selector).get_property("textContent"))

    def run(self, script: str) -> Any:
        return self.driver.execute_script(script)

    def wait(self, condition: Callable[[], object], what: str) -> None:
        """Wait until something is so on the page, which may change at any moment."""
        WebDriverWait(self.driver, PATIENCE_S, 0.05, ignored_exceptions=[Exception]).until(
            lambda _driver: condition(), what
        )

    def complaints(self) -> list[str]:
        """Return the console's warnings and errors, those of the network and of policies included, once."""
        entries = self.driver.get_log("browser")
        return [entry["message"] for entry in entries if entry["level"] in {"WARNING", "SEVERE"}]

    def close(self) -> None:
        """Leave the page, and forget what the console said of it."""
        self.driver.get("about:blank")
        self.complaints()

    def faults(self) -> list[Any]:
        """Return what axe-core finds serious or critical."""
        self.driver.execute_script(self._axe)
        found = self.driver.execute_async_script(_AXE)
        return [fault for fault in found if fault[0] in {"serious", "critical"}]

    def _devtools(self, command: str, **parameters: object) -> None:
        self.driver.execute_cdp_cmd(command, parameters)


@contextlib.contextmanager
def open_browser(place: Path) -> Iterator[Browser]:
    """Start a browser whose files are in a directory.

    Raises:
        Unavailable: it is not installed.
    """
    browser, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if browser is None or driver is None:
        raise Unavailable("chromium and chromedriver are not installed; run packaging/setup --test")
    options = ChromeOptions()
    options.binary_location = browser
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    for flag in (*_FLAGS, f"--user-data-dir={place / 'profile'}"):
        options.add_argument(flag)
    environ = os.environ | {"HOME": str(place), "XDG_CONFIG_HOME": str(place), "XDG_CACHE_HOME": str(place)}
    with (place / "chromedriver.log").open("wb") as log:
        service = Service(driver, log_output=log, env=environ)
        started = Chrome(options=options, service=service)
    try:
        started.set_script_timeout(PATIENCE_S)
        yield Browser(started)
    finally:
        started.quit()
