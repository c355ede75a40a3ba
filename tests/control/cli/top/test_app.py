"""The screens of ``top`` as a terminal shows them: compared with what is in ``screens``.

``SCREENS=write`` in the environment writes them anew; a person then looks at the difference.
"""

from __future__ import annotations

import io
import os
import time
from pathlib import Path

import anyio
import pytest
from kit.control import listening_at
from kit.supervisor import FakeSupervisor
from kit.top import NOW, live_state, native, seen
from rich.console import Console

from stapsrv.control.cli import follow
from stapsrv.control.cli.follow import Lost
from stapsrv.control.cli.top.app import Overview, Question, ServerPage, TopApp

pytestmark = pytest.mark.anyio
SCREENS = Path(__file__).parent / "screens"


@pytest.fixture
def anyio_backend() -> str:
    """Textual knows asyncio alone."""
    return "asyncio"


@pytest.fixture(autouse=True)
def utc(monkeypatch):
    monkeypatch.setenv("TZ", "UTC")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.fixture(autouse=True)
def quick_looks(monkeypatch):
    monkeypatch.setattr(follow, "_LOOK_S", 0.02)


def top(*sockets: Path) -> TopApp:
    return TopApp(lambda: sockets, now=lambda: NOW)


def text_of(app: TopApp) -> str:
    """What is on the screen, without colours."""
    width, height = app.size
    console = Console(width=width, height=height, file=io.StringIO(), record=True, legacy_windows=False)
    console.print(app.screen._compositor.render_update(full=True))
    lines = console.export_text(styles=False).splitlines()
    return "".join(f"{line.rstrip()}\n" for line in lines)


def check_screen(app: TopApp, name: str) -> None:
    path, text = SCREENS / f"{name}.txt", text_of(app)
    if os.environ.get("SCREENS") == "write":
        path.write_text(text, encoding="utf-8")
    assert text.splitlines() == path.read_text(encoding="utf-8").splitlines()


async def wait_for(pilot, condition) -> None:
    with anyio.fail_after(30):
        while not condition():
            await pilot.pause(0.01)


async def test_overview_at_80_by_24():
    app = top()
    async with app.run_test(size=(80, 24)) as pilot:
        app.states.take(seen(live_state()))
        await pilot.pause()
        check_screen(app, "overview")


async def test_sorted_and_filtered():
    app = top()
    async with app.run_test(size=(80, 24)) as pilot:
        app.states.take(seen(live_state()))
        await pilot.press("s", "s", "slash", *"5001")
        check_screen(app, "filtered")
        await pilot.press("escape")
        assert "cloud" in text_of(app)


async def test_page_of_a_server_with_the_end_of_its_log(tmp_path):
    log = tmp_path / "log"
    log.write_text("".join(f"[b]entry {number}[/b]\n" for number in range(50)))
    app = top()
    async with app.run_test(size=(80, 24)) as pilot:
        app.states.take(seen(live_state(native(log))))
        await pilot.pause()
        await pilot.press("enter")
        assert isinstance(app.screen, ServerPage)
        await wait_for(pilot, lambda: "[b]entry 49[/b]" in text_of(app))
        assert "native (id 7): serving; wanted: up" in text_of(app)
        await pilot.press("escape")
        assert isinstance(app.screen, Overview)


async def test_connection_that_is_lost_is_said_and_comes_back():
    app = top()
    async with app.run_test(size=(80, 24)) as pilot:
        assert "not connected: no supervisor runs" in text_of(app)
        app.states.take(seen(live_state()))
        await pilot.pause()
        app.states.take(Lost("me", "the supervisor has ended"))
        await pilot.pause()
        check_screen(app, "lost")
        app.states.take(seen(live_state()))
        await pilot.pause()
        assert "native" in text_of(app)


async def test_command_is_asked_for_first_and_only_then_given(tmp_path):
    (tmp_path / "me").mkdir()
    path = tmp_path / "me" / "control.sock"
    supervisor = FakeSupervisor(native())
    with listening_at(supervisor, path):
        app = top(path)
        async with app.run_test(size=(80, 24)) as pilot:
            await wait_for(pilot, lambda: "native" in text_of(app))
            for key, is_asked in (("n", False), ("y", True)):
                await pilot.press("d")
                await wait_for(pilot, lambda: isinstance(app.screen, Question))
                check_screen(app, "question")
                await pilot.press(key)
                await wait_for(pilot, lambda: isinstance(app.screen, Overview))
                if is_asked:
                    await wait_for(pilot, lambda: supervisor.told == [("drain", [7])])
                    await wait_for(pilot, lambda: "draining" in text_of(app))
                else:
                    assert supervisor.told == []


async def test_who_may_only_read_is_told_so():
    app = top()
    async with app.run_test(size=(80, 24), notifications=True) as pilot:
        app.states.take(seen(live_state(), may_command=False))
        await pilot.pause()
        await pilot.press("r")
        await wait_for(pilot, lambda: "restart: not permitted: ask as me" in text_of(app))
        assert isinstance(app.screen, Overview)


async def test_names_are_no_markup():
    app = top()
    async with app.run_test(size=(80, 24)) as pilot:
        app.states.take(seen(live_state(native(nickname="[red]x[/]"))))
        await pilot.pause()
        assert "[red]x[/]" in text_of(app)


async def test_one_key_ends_it():
    app = top()
    async with app.run_test(size=(80, 24)) as pilot:
        await pilot.press("q")
        await pilot.pause()
    assert app.return_code == 0
