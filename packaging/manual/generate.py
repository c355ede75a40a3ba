"""Make manual pages and completions: ``generate.py DIRECTORY``, with a Python that has stapsrv.

DIRECTORY gets ``man/PAGE.SECTION``, ``bash/COMMAND``, ``zsh/_stap-server`` and ``fish/COMMAND.fish``.
``generate.py --docs DIRECTORY`` writes the tables of settings in the pages of DIRECTORY anew.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from pathlib import Path

import completion
import model
import roff
import variables

from stapsrv import __version__
from stapsrv.control.cli.help import ACTIONS, ALIASES

PAGES = Path(__file__).parent / "pages"


def main() -> None:
    """Write everything below the directory that the command line names."""
    arguments = [word for word in sys.argv[1:] if word != "--docs"]
    if len(arguments) != 1:
        sys.exit("usage: generate.py [--docs] DIRECTORY")
    target = Path(arguments[0])
    if "--docs" in sys.argv:
        for page in sorted(target.glob("*.md")):
            page.write_text(variables.with_tables(page.read_text(encoding="utf-8")), encoding="utf-8")
        return
    texts = {f"man/{page.name}": manual_page(page) for page in sorted(PAGES.iterdir())}
    commands = (model.server(), model.daemon(), model.farm(), model.compile_client())
    texts |= {f"bash/{name}": text for name, text in completion.bash(*commands).items()}
    texts |= {"zsh/_stap-server": completion.zsh(*commands)}
    texts |= {f"fish/{name}.fish": text for name, text in completion.fish(*commands).items()}
    for name, text in texts.items():
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")


def manual_page(template: Path) -> str:
    """Return a page made from its template, whose name is ``PAGE.SECTION``."""
    directives: dict[str, roff.Directive] = {
        "head": lambda words: [f'.TH {words[0].upper()} {words[1]} "" "stapsrv {__version__}"'],
        "options": _options,
        "actions": _actions,
        "tools": _tools,
        "variables": _variables,
    }
    return roff.fill(template.read_text(encoding="utf-8"), directives)


def _options(words: Sequence[str]) -> Iterable[str]:
    if words[0] == "stap-serverd":
        return roff.options(model.daemon())
    if words[0] == "stap-compile":
        return roff.options(model.compile_client(), without=["--help"])
    if words[0] == "stap-farm":
        command = model.farm()
        for word in words[1:]:
            command = next(verb for verb in command.verbs if verb.words[-1] == word)
        return roff.options(command, without=["--help"])
    start, status = (
        next(verb for verb in model.server().verbs if verb.words[-1] == word) for word in ("start", "status")
    )
    known = {option.names for option in start.options}
    further = tuple(option for option in status.options if option.names not in known)
    return roff.options(start._replace(options=start.options + further), without=["--help"])


def _actions(_words: Sequence[str]) -> Iterable[str]:
    for action, (text, _) in ACTIONS.items():
        others = [alias for alias, known in ALIASES.items() if known == action]
        yield from roff.entry(", ".join(map(roff.bold, [action, *others])), text)


def _tools(_words: Sequence[str]) -> Iterable[str]:
    for tool in model.server().verbs:
        if tool.words[-1] not in {*ACTIONS, *ALIASES}:
            for command in tool.verbs or (tool,):
                yield f".SS {roff.bold(' '.join(command.words[1:]))}"
                yield roff.escaped(f"{command.summary}.")
                for option in command.options:
                    if "-h" not in option.names:
                        yield from roff.entry(roff.option_title(option), option.text)


def _variables(words: Sequence[str]) -> Iterable[str]:
    for name, text in variables.described(words[0]).items():
        yield from roff.entry(roff.bold(name), text)


if __name__ == "__main__":
    main()
