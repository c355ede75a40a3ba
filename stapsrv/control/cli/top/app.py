"""The screens of ``top``, on Textual: the overview, a server's page, and a question before a command."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import ClassVar, Literal, TypeAlias

from rich.text import Text
from textual import work
from textual.app import App, ComposeResult
from textual.binding import Binding, BindingType
from textual.containers import Vertical
from textual.message import Message
from textual.screen import ModalScreen, Screen
from textual.widgets import DataTable, Footer, Input, Static
from textual.widgets.data_table import CursorType

from stapsrv.control.cli.follow import Follower
from stapsrv.control.cli.top.log_tail import log_tail
from stapsrv.control.cli.top.rows import (
    COLUMNS,
    ENDED_HEADINGS,
    RUNNING_HEADINGS,
    Row,
    ended_rows,
    history_lines,
    page_lines,
    refusals_line,
    running_rows,
    server_of,
    server_rows,
)
from stapsrv.control.cli.top.states import Followed, States
from stapsrv.control.client.sync import SyncControlClient
from stapsrv.control.protocol.status_fields import ServerInfo
from stapsrv.errors import StapsrvError
from stapsrv.text import printable

# Ages grow without news.
_TICK_S = 1.0
# For a command to be begun; what comes of it is seen in the table.
_BEGIN_S = 0.0
_LOG_LINES = 200

Command: TypeAlias = Literal["drain", "undrain", "restart"]
Table: TypeAlias = DataTable[Text]


class News(Message):
    """The state of a supervisor has changed and was not read since."""


class Question(ModalScreen[bool]):
    """Asks before a command; its result is whether to go on."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("y", "dismiss(True)", "Yes"),
        Binding("n,escape", "dismiss(False)", "No"),
    ]
    CSS = """
    Question { align: center middle; }
    Question Static { width: auto; height: auto; padding: 1 3; border: round $warning; }
    """

    def __init__(self, text: str) -> None:
        super().__init__()
        self._text = text

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield Static(f"{self._text}\n\ny: yes   n: no", markup=False)


class CommandScreen(Screen[None]):
    """A screen with a server to command; ``server`` says which."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("d", "command('drain')", "Drain"),
        Binding("u", "command('undrain')", "Undrain"),
        Binding("r", "command('restart')", "Restart"),
    ]

    def server(self) -> tuple[Followed, ServerInfo] | None:
        """Return the server that commands are for, and its supervisor."""
        raise NotImplementedError

    def refresh_view(self) -> None:
        """Show what is known now."""
        raise NotImplementedError

    @work
    async def action_command(self, command: Command) -> None:
        """Ask, then begin a command."""
        found = self.server()
        if found is None:
            return
        followed, server = found
        name = printable(server["nickname"])
        if not followed.may_command:
            text = f"{command}: not permitted: ask as {followed.user}, or as root"
            self.notify(text, severity="error", markup=False)
            return
        question = f"{command.capitalize()} server {name}?"
        if await self.app.push_screen_wait(Question(question)):
            self._begin(command, followed.socket, server["id"], name)

    @work(thread=True)
    def _begin(self, command: Command, socket: Path, server_id: int, name: str) -> None:
        try:
            with SyncControlClient(socket) as client:
                (outcome,) = client.command(command, [server_id], timeout_s=_BEGIN_S)
            # What is only not done yet is seen as it goes on.
            error = outcome["error"] if outcome["server"] is None else None
        except StapsrvError as exc:
            error = str(exc)
        text = f"{command} {name}: {'begun' if error is None else error}"
        severity: Literal["information", "error"] = "information" if error is None else "error"
        self.app.call_from_thread(self.notify, text, severity=severity, markup=False)


class Overview(CommandScreen):
    """All servers, the requests under way, and the last ones."""

    AUTO_FOCUS = "#servers"
    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("s", "sort", "Sort"),
        Binding("slash", "filter", "Filter", key_display="/"),
        Binding("escape", "clear", show=False),
        Binding("q", "app.quit", "Quit"),
    ]
    CSS = """
    Overview DataTable { height: 1fr; overflow-x: hidden; scrollbar-size-vertical: 1; }
    Overview #servers { height: 1fr; min-height: 4; }
    Overview Static { height: auto; text-wrap: nowrap; }
    Overview #title { background: $primary-background; }
    Overview Input { display: none; height: 1; border: none; padding: 0; }
    Overview Input.asked { display: block; }
    """

    def __init__(self, states: States, now: Callable[[], datetime]) -> None:
        super().__init__()
        self._states = states
        self._now = now
        self._sort = 0
        self._words = ""

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield Static(id="title", markup=False)
        yield Static(id="history", markup=False)
        for name in ("servers", "running", "ended"):
            cursor: CursorType = "row" if name == "servers" else "none"
            yield DataTable(id=name, cell_padding=0, cursor_type=cursor)
        yield Static(id="refusals", markup=False)
        yield Input(id="filter", placeholder="words to look for", compact=True)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to show what is known."""
        self.refresh_view()
        self.set_interval(_TICK_S, self.refresh_view)

    def server(self) -> tuple[Followed, ServerInfo] | None:
        """Return the server of the row with the cursor."""
        table = self._table("servers")
        if not table.row_count:
            return None
        key = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
        return server_of(self._states.look()[0], key or "")

    def refresh_view(self) -> None:
        """Show what is known now."""
        followed, lost = self._states.look()
        now = self._now()
        # The column that it is sorted by is marked.
        headings = [
            f"{column.heading}▾" if number == self._sort else column.heading
            for number, column in enumerate(COLUMNS)
        ]
        words = self._words
        servers = server_rows(followed, sort=self._sort, words=words, now=now)
        _fill(self._table("servers"), headings, servers)
        _fill(self._table("running"), RUNNING_HEADINGS, running_rows(followed, words=words, now=now))
        _fill(self._table("ended"), ENDED_HEADINGS, ended_rows(followed, words=words))
        self.query_one("#title", Static).update(self._title(followed.values(), lost.items()))
        self.query_one("#history", Static).update("\n".join(history_lines(followed, now)))
        infos = [server for one in followed.values() for server in one.info["servers"].values()]
        self.query_one("#refusals", Static).update(refusals_line(infos))

    def action_sort(self) -> None:
        """Sort by the next column."""
        self._sort = (self._sort + 1) % len(COLUMNS)
        self.refresh_view()

    def action_filter(self) -> None:
        """Ask for words to look for."""
        self.query_one("#filter").add_class("asked")
        self.query_one("#filter").focus()

    def action_clear(self) -> None:
        """Show all again."""
        self.query_one("#filter", Input).value = ""
        self._end_filter()

    def on_input_changed(self, event: Input.Changed) -> None:
        """Look for what is typed."""
        self._words = event.value
        self.refresh_view()

    def on_input_submitted(self) -> None:
        """Go back to the servers, with what was found."""
        self._end_filter()

    def on_data_table_row_selected(self, event: DataTable.RowSelected) -> None:
        """Open a server's page."""
        if event.data_table.id == "servers" and event.row_key.value is not None:
            self.app.push_screen(ServerPage(self._states, event.row_key.value, self._now))

    def _end_filter(self) -> None:
        self.query_one("#filter").remove_class("asked")
        self._table("servers").focus()

    def _table(self, name: str) -> Table:
        return self.query_one(f"#{name}", DataTable)

    def _title(self, followed: Iterable[Followed], lost: Iterable[tuple[str, str]]) -> str:
        parts = [
            f"{one.user}: {one.info['supervisor']['compiles']} of {one.info['supervisor']['max_compiles']}"
            " compiles"
            for one in followed
        ]
        parts += [f"{user}: not connected: {reason}" for user, reason in lost]
        if not parts:
            parts = ["not connected: no supervisor runs"]
        if self._words:
            parts.append(f"only {self._words!r}")
        return printable(f"stap-server top  {', '.join(parts)}")


class ServerPage(CommandScreen):
    """One server, and the end of its log."""

    BINDINGS: ClassVar[list[BindingType]] = [
        Binding("escape", "app.pop_screen", "Back"),
        Binding("q", "app.quit", "Quit"),
    ]
    CSS = """
    ServerPage #facts { height: auto; max-height: 50%; }
    ServerPage #log { height: 1fr; overflow: hidden; }
    ServerPage #name { height: 1; background: $primary-background; }
    """

    def __init__(self, states: States, key: str, now: Callable[[], datetime]) -> None:
        super().__init__()
        self._states = states
        self._key = key
        self._now = now

    def compose(self) -> ComposeResult:
        """Make the widgets."""
        yield Static(id="facts", markup=False)
        yield Static(id="name", markup=False)
        with Vertical():
            yield Static(id="log", markup=False)
        yield Footer(compact=True, show_command_palette=False)

    def on_mount(self) -> None:
        """Begin to show what is known."""
        self.refresh_view()
        self.set_interval(_TICK_S, self.refresh_view)

    def server(self) -> tuple[Followed, ServerInfo] | None:
        """Return the server of this page."""
        return server_of(self._states.look()[0], self._key)

    def refresh_view(self) -> None:
        """Show what is known now, and read the log again."""
        found = self.server()
        if found is None:
            self.query_one("#facts", Static).update("not connected, or the server is gone")
            return
        followed, server = found
        scripts = followed.info["supervisor"].get("scripts", {})
        self.query_one("#facts", Static).update("\n".join(page_lines(server, self._now(), scripts=scripts)))
        path = server["settings"].get("LOG")
        self.query_one("#name", Static).update(printable(f"log {path}"))
        if isinstance(path, str):
            self._read_log(Path(path))

    @work(thread=True, exclusive=True, group="log")
    def _read_log(self, path: Path) -> None:
        self.app.call_from_thread(self._show_log, log_tail(path, _LOG_LINES))

    def _show_log(self, lines: Sequence[str]) -> None:
        shown = self.query_one("#log", Static)
        height, width = max(1, shown.size.height), max(1, shown.size.width)
        shown.update("\n".join(line[:width] for line in lines[-height:]))


class TopApp(App[None]):
    """Follows supervisors and shows them; ``find`` returns the sockets of those that there are now."""

    ENABLE_COMMAND_PALETTE = False
    TITLE = "stap-server top"

    def __init__(
        self,
        find: Callable[[], Iterable[Path]],
        *,
        now: Callable[[], datetime] = lambda: datetime.now(UTC),
    ) -> None:
        super().__init__()
        self.states = States(lambda: self.post_message(News()))
        self._now = now
        self._follower = Follower(find, self.states.take)

    def on_mount(self) -> None:
        """Begin to follow."""
        self.push_screen(Overview(self.states, self._now))
        self._follower.__enter__()

    def on_unmount(self) -> None:
        """Follow nobody any more."""
        self._follower.__exit__(None, None, None)

    def on_news(self) -> None:
        """Show what was told."""
        if isinstance(self.screen, CommandScreen):
            self.screen.refresh_view()


def _fill(table: Table, headings: Sequence[str], rows: Sequence[Row]) -> None:
    """Show rows in a table; the cursor stays on its row, as long as that is there."""
    cursor = None
    if table.row_count:
        cursor = table.coordinate_to_cell_key(table.cursor_coordinate).row_key.value
    top = table.scroll_y
    table.clear(columns=True)
    for number, heading in enumerate(headings):
        cells = [row.cells[number] for row in rows]
        table.add_column(heading, width=max(map(len, (heading, *cells))) + 1)
    for row in rows:
        # As text: a cell that is a string would be read as markup.
        table.add_row(*map(Text, row.cells), key=row.key)
    for number, row in enumerate(rows):
        if row.key == cursor:
            table.move_cursor(row=number, animate=False, scroll=False)
    table.scroll_to(y=top, animate=False)
