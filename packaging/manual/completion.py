"""Completion of the commands' words and options, for three shells.

What is known only when it is asked for is asked then: nicknames and ids of servers (of ``status --json``),
releases (of /lib/modules), users, directories and files.
"""

from __future__ import annotations

from collections.abc import Iterator

from model import Command, Option

_BASH = r"""# bash completion for stapsrv. Made by packaging/manual/generate.py.

__stapsrv_servers() { # nickname, or id
    stap-server ctl status --json 2>/dev/null |
        sed -n "s/^ *\"$1\": \"\{0,1\}\([^\",]*\)\"\{0,1\},\{0,1\}\$/\1/p"
}

__stapsrv_value() { # METAVAR CURRENT
    case $1 in
        NICKNAME) COMPREPLY=($(compgen -W "$(__stapsrv_servers nickname)" -- "$2")) ;;
        ID) COMPREPLY=($(compgen -W "$(__stapsrv_servers id)" -- "$2")) ;;
        RELEASE)
            COMPREPLY=($(compgen -W "$(cd /lib/modules 2>/dev/null && printf '%s ' */)" -- "$2"))
            COMPREPLY=("${COMPREPLY[@]%/}")
            [[ $2 != /* ]] || COMPREPLY=($(compgen -d -- "$2"))
            ;;
        USER) COMPREPLY=($(compgen -u -- "$2")) ;;
        DIR) COMPREPLY=($(compgen -d -- "$2")) ;;
        FILE) COMPREPLY=($(compgen -f -- "$2")) ;;
        *\|*) COMPREPLY=($(compgen -W "${1//|/ }" -- "$2")) ;;
    esac
}

__stapsrv_complete() { # of "PREFIX WORDS…" in the table $1, after the words before the current one
    local current=${COMP_WORDS[COMP_CWORD]} previous=${COMP_WORDS[COMP_CWORD - 1]} path='' word index line
    local -A verbs=() options=()
    while IFS=$'\t' read -r path word line; do
        verbs[$path]=$word
        options[$path]=$line
    done <<<"$1"
    path=${COMP_WORDS[0]##*/}
    for ((index = 1; index < COMP_CWORD; index++)); do
        [[ ${COMP_WORDS[index]} != ctl ]] || continue
        [[ " ${verbs[$path]-} " != *" ${COMP_WORDS[index]} "* ]] || path+=" ${COMP_WORDS[index]}"
    done
    COMPREPLY=()
    # bash takes --option=value apart.
    if [[ $current == = ]]; then
        current=''
    elif [[ $previous == = ]]; then
        previous=${COMP_WORDS[COMP_CWORD - 2]}
    fi
    for word in ${options[$path]-}; do
        if [[ ${word%%:*} == "$previous" && $word == *:* ]]; then
            __stapsrv_value "${word#*:}" "$current"
            return
        fi
    done
    local words=${verbs[$path]-}
    words=${words#-}
    [[ $path == *' '* || $path != stap-server ]] || words+=' ctl help'
    for word in ${options[$path]-}; do
        words+=" ${word%%:*}"
    done
    COMPREPLY=($(compgen -W "$words" -- "$current"))
}
"""


def bash(server: Command, daemon: Command, farm: Command, client: Command) -> dict[str, str]:
    """Return bash's files by their names, which are those of the commands."""
    files = {}
    for command, others in ((server, ()), (daemon, ("stap-start-server",)), (farm, ()), (client, ())):
        name = command.words[0]
        function = f"_{name.replace('-', '_')}"
        rows = [
            f"{' '.join(each.words)}\t{' '.join(verb.words[-1] for verb in each.verbs) or '-'}\t"
            + " ".join(
                f"{option}:{row.metavar}" if row.metavar else option
                for row in each.options
                for option in row.names
            )
            for each in _all(command)
        ]
        for other in others:
            rows += [row.replace(name, other, 1) for row in rows]
        table = "\n".join(rows)
        names = " ".join((name, *others))
        files[name] = (
            f"{_BASH}\n{function}() {{\n    __stapsrv_complete '{table}'\n}}\n"
            f"complete -F {function} {names}\n"
        )
    return files


def zsh(server: Command, daemon: Command, farm: Command, client: Command) -> str:
    """Return zsh's function, for all commands."""
    lines = [
        "#compdef stap-server stap-serverd stap-start-server stap-farm stap-compile",
        "# Made by packaging/manual/generate.py.",
        "",
        "__stapsrv_servers() {",
        "    local -a found",
        '    found=(${(f)"$(stap-server ctl status --json 2>/dev/null |',
        '        sed -n "s/^ *\\"$1\\": \\"\\{0,1\\}\\([^\\",]*\\)\\"\\{0,1\\},\\{0,1\\}\\$/\\1/p")"})',
        "    compadd -a found",
        "}",
        "",
    ]
    for command in (*_all(server), *_all(daemon), *_all(farm), *_all(client)):
        lines += [f"{_function(command)}() {{", *_zsh_arguments(command), "}", ""]
    lines += [
        "case $service in",
        f"    stap-server) {_function(server)} ;;",
        f"    stap-farm) {_function(farm)} ;;",
        f"    stap-compile) {_function(client)} ;;",
        f"    *) {_function(daemon)} ;;",
        "esac",
    ]
    return "\n".join(lines) + "\n"


def fish(*commands: Command) -> dict[str, str]:
    """Return fish's files by their commands."""
    return {command.words[0]: "\n".join(_fish_lines(command)) + "\n" for command in commands}


def _all(command: Command) -> Iterator[Command]:
    """Give a command, and all below it."""
    yield command
    for verb in command.verbs:
        yield from _all(verb)


def _function(command: Command) -> str:
    return "_" + "_".join(command.words).replace("-", "_")


def _zsh_arguments(command: Command) -> Iterator[str]:
    specifications = [
        f"    '*{name}[{_zsh_text(option.text)}]{_zsh_value(option)}' \\"
        for option in command.options
        for name in option.names
    ]
    if not command.verbs:
        yield from ["    _arguments -s -S : \\", *specifications, "        && return"]
        return
    yield "    local -a verbs"
    yield "    verbs=("
    for verb in command.verbs:
        yield f"        '{verb.words[-1]}:{_zsh_text(verb.summary)}'"
    yield "    )"
    # What stands before the verb is passed by, so that each verb sees its own words first.
    yield "    [[ $words[2] != ctl ]] || { words=($words[1] $words[3,-1]); (( CURRENT-- )) }"
    yield "    if (( CURRENT == 2 )); then"
    yield "        _describe -t commands verb verbs"
    yield "        return"
    yield "    fi"
    yield "    local verb=$words[2]"
    yield "    shift words; (( CURRENT-- ))"
    yield "    case $verb in"
    for verb in command.verbs:
        yield f"        {verb.words[-1]}) {_function(verb)} ;;"
    yield "    esac"


def _zsh_value(option: Option) -> str:
    if option.metavar is None:
        return ""
    kind = {
        "NICKNAME": "{__stapsrv_servers nickname}",
        "ID": "{__stapsrv_servers id}",
        "RELEASE": "{_path_files -W /lib/modules -/}",
        "USER": "_users",
        "DIR": "_files -/",
        "FILE": "_files",
    }.get(option.metavar, f"({' '.join(option.choices)})" if option.choices else " ")
    return f":{_zsh_text(option.metavar)}:{kind}"


def _zsh_text(text: str) -> str:
    for character in "\\:[]":
        text = text.replace(character, f"\\{character}")
    return text.replace("'", "'\\''")


def _fish_lines(command: Command) -> Iterator[str]:
    name = command.words[0]
    yield "# Made by packaging/manual/generate.py."
    yield "function __stapsrv_servers"
    yield "    stap-server ctl status --json 2>/dev/null |"
    yield "        string replace -rf '^ *\"'$argv[1]'\": \"?([^\",]*)\"?,?$' '$1'"
    yield "end"
    yield f"complete -c {name} -f"
    for each in _all(command):
        depth = len(each.words) - 1
        seen = "".join(f"__fish_seen_subcommand_from {word}; and " for word in each.words[1:]).removesuffix(
            "; and "
        )
        if each.verbs:
            names = " ".join(verb.words[-1] for verb in each.verbs)
            unseen = f"not __fish_seen_subcommand_from {names}"
            where = f"{seen}; and {unseen}" if seen else unseen
            for verb in each.verbs:
                yield f"complete -c {name} -n '{where}' -a {verb.words[-1]} -d {_fish_text(verb.summary)}"
        condition = f" -n '{seen}'" if depth else ""
        for option in each.options:
            words = " ".join(
                f"-l {given[2:]}" if given.startswith("--") else f"-s {given[1:]}" for given in option.names
            )
            yield f"complete -c {name}{condition} {words}{_fish_value(option)} -d {_fish_text(option.text)}"


def _fish_value(option: Option) -> str:
    if option.metavar is None:
        return ""
    values = {
        "NICKNAME": "(__stapsrv_servers nickname)",
        "ID": "(__stapsrv_servers id)",
        "RELEASE": "(ls /lib/modules)",
        "USER": "(__fish_complete_users)",
        "DIR": "(__fish_complete_directories)",
    }.get(option.metavar, " ".join(option.choices))
    if option.metavar == "FILE":
        return " -r -F"
    return f" -x -a '{values}'" if values else " -x"


def _fish_text(text: str) -> str:
    escaped = text.replace("\\", "\\\\").replace("'", "\\'")
    return f"'{escaped}'"
