"""A start fits a source only if that begins with every word of it, but for what may stand behind it."""

from __future__ import annotations

import json

import pytest
from compile.engine.prepared.test_plan import build

from stapsrv.compile.engine.prepared.plan import DIRECTORY, MODULE, NUMBER, Unfit
from stapsrv.compile.engine.prepared.start import (
    Start,
    asked,
    begin_start,
    divide,
    global_registers,
    numbers,
    shell_line,
    unconditional,
    uses_name,
)

SOURCE = """
#pragma GCC diagnostic ignored "-Wx"
#include "runtime_defines.h"
#include "stap_common.h"
#include "runtime.h"
#include <linux/mutex.h>
int x;
"""
COMMON = """
#ifndef MAXNESTING
#define MAXNESTING 3
#endif
#define STP_SKIP_BADVARS 0
#define STP_PROBE_COUNT 7
#ifdef STP_NEED_UNWIND_DATA
#endif"""
FREE = ["MAXNESTING", "STP_PROBE_COUNT"]
DESCRIPTION = "#include <linux/module.h>\n#define INCLUDE_VERMAGIC\n#include <linux/vermagic.h>\n\nMODULE;\n"
WORDS = [
    *("gcc", f"-Wp,-MMD,{DIRECTORY}/.{MODULE}_src.o.d", "-I./include", "-include", "/linux/kconfig.h"),
    *("-DMODULE", "-include", f"{DIRECTORY}/features.h", f'-DKBUILD_MODNAME="{MODULE}"'),
    *("-c", "-o", f"{DIRECTORY}/{MODULE}_src.o", f"{DIRECTORY}/{MODULE}_src.c"),
]


@pytest.fixture
def start() -> Start:
    text, _, _ = divide("source", SOURCE, COMMON, FREE)
    made, _ = begin_start("source", WORDS, f"objtool {DIRECTORY}/{MODULE}_src.o", text, FREE)
    made.registers = ['register unsigned long sp asm("rsp");']
    return Start.decode(made.encode())


def test_numbers_that_nothing_asks_for_move_behind_the_start():
    text, moved, rest = divide("source", SOURCE, COMMON, FREE)
    assert moved == "#ifndef MAXNESTING\n#define MAXNESTING 3\n#endif\n#define STP_PROBE_COUNT 7\n"
    assert '#define STP_SKIP_BADVARS 0\n#ifdef STP_NEED_UNWIND_DATA\n#endif\n#include "runtime.h"\n' in text
    assert rest == "#include <linux/mutex.h>\nint x;\n"


def test_rest_has_names_registers_pragmas_numbers_and_lines(start):
    assert start.rest(build(), SOURCE, COMMON) == (
        '#undef KBUILD_MODNAME\n#define KBUILD_MODNAME "stap_1"\n'
        'register unsigned long stapsrv_sp asm("rsp");\n'
        '#pragma GCC diagnostic ignored "-Wx"\n'
        "#ifndef MAXNESTING\n#define MAXNESTING 3\n#endif\n#define STP_PROBE_COUNT 7\n"
        '#line 6 "/tmp/a/stap_1_src.c"\n#include <linux/mutex.h>\nint x;\n'
    )


def test_start_of_one_auxiliary_source_is_that_of_each():
    text = "#include <linux/skbuff.h>\n#include <linux/stp_tracepoint.h>\n"
    words = [
        *("gcc", f'-DKBUILD_BASENAME="{MODULE}_aux_{NUMBER}"', "-c"),
        *("-o", f"{DIRECTORY}/{MODULE}_aux_{NUMBER}.o", f"{DIRECTORY}/{MODULE}_aux_{NUMBER}.c"),
    ]
    made, _ = begin_start("auxiliary", words, f"objtool {MODULE}_aux_{NUMBER}.o", text, [])
    start, several = Start.decode(made.encode()), build(auxiliaries=12)
    assert start.words == ["gcc", '-DKBUILD_BASENAME="stapsrv_prepared_aux_0"']
    assert start.rest(several, f"{text}int x;\n", "", 11) == (
        '#undef KBUILD_BASENAME\n#define KBUILD_BASENAME "stap_1_aux_11"\n'
        '#line 3 "/tmp/a/stap_1_aux_11.c"\nint x;\n'
    )
    command = start.command(several, "/start", "/rest.c", 11)
    assert "'-o' '/tmp/a/stap_1_aux_11.o' '/rest.c' ; objtool stap_1_aux_11.o" in command
    assert start.rest(several, "int x;\n", "", 0) is None


def test_rest_is_named_as_the_compiler_s_command_names_the_source():
    text, _, _ = divide("source", SOURCE, COMMON, FREE)
    made, _ = begin_start("source", [*WORDS[:-1], f"{MODULE}_src.c"], "", text, FREE)
    assert '\n#line 6 "stap_1_src.c"\n' in Start.decode(made.encode()).rest(build(), SOURCE, COMMON)


@pytest.mark.parametrize(
    ("source", "common"),
    [
        (SOURCE, COMMON.replace("PROBE_COUNT 7", "PROBE_COUNT 8")),
        (SOURCE.replace("int x", "int y"), COMMON),
        (SOURCE, COMMON.replace("#define STP_PROBE_COUNT 7\n", "")),
    ],
)
def test_source_that_differs_in_numbers_or_behind_it_has_the_start(start, source, common):
    assert start.rest(build(), source, common) is not None


@pytest.mark.parametrize(
    ("source", "common"),
    [
        (SOURCE.replace("#pragma", "#define X\n#pragma"), COMMON),
        (SOURCE, COMMON.replace("BADVARS 0", "BADVARS 1")),
        (SOURCE, COMMON.replace("COUNT 7", "COUNT (7)")),
        (SOURCE, COMMON.replace("\n#ifdef", "\n#define STP_NEED_UNWIND_DATA 1\n#ifdef")),
        (SOURCE.replace('#include "runtime.h"\n', ""), COMMON),
        (SOURCE.replace('#include "stap_common.h"\n', ""), COMMON),
        ("", ""),
    ],
)
def test_source_that_begins_otherwise_does_not_have_the_start(start, source, common):
    assert start.rest(build(), source, common) is None


def test_command_has_the_options_in_their_order_and_the_header_in_place_of_the_files(start):
    command = start.command(build(), "/store/x", "/tmp/a/prepared/stap_1_src.c")
    assert (
        command
        == shell_line(
            [
                *("gcc", "-I./include", "-DMODULE", '-DKBUILD_MODNAME="stapsrv_prepared"', "-Winvalid-pch"),
                *("-iquote", "/tmp/a", "-include", "/store/x/start.h", "-Wp,-MMD,/tmp/a/.stap_1_src.o.d"),
                *("-c", "-o", "/tmp/a/stap_1_src.o", "/tmp/a/prepared/stap_1_src.c"),
            ]
        )
        + " ; objtool /tmp/a/stap_1_src.o"
    )


def test_files_that_come_before_the_source_come_before_the_start():
    assert begin_start("source", WORDS, "", "", [])[1] == ["/linux/kconfig.h", f"{DIRECTORY}/features.h"]


@pytest.mark.parametrize("word", [f"-I{DIRECTORY}", f"--param={MODULE}"])
def test_command_with_the_directory_or_the_name_elsewhere_has_no_start(word):
    with pytest.raises(Unfit):
        begin_start("source", [WORDS[0], word, *WORDS[1:]], "", "", [])


def test_description_starts_with_all_its_first_includes():
    text, moved, rest = divide("description", DESCRIPTION, "", [])
    assert (text + rest, moved, rest) == (DESCRIPTION, "", "\nMODULE;\n")
    assert divide("description", "int x;\n", "", []) is None


def test_macros_are_asked_for_where_they_are_tested_or_used():
    printed = "#define A 1\n#undef B\nint c = 2;\n"
    assert asked(["A", "B", "C"], printed) == ["A", "B"]


def test_numbers_are_asked_for_without_their_own_question():
    assert numbers(COMMON) == ["MAXNESTING", "STP_PROBE_COUNT", "STP_SKIP_BADVARS"]
    assert "ifndef" not in unconditional(COMMON)
    assert "#define MAXNESTING 3\n" in unconditional(COMMON)


def test_name_counts_in_code_and_not_in_macros():
    assert not uses_name('#define KBUILD_MODNAME "stapsrv_prepared"\nint x;\n')
    assert uses_name('char *x = "stapsrv_prepared";\n')


def test_registers_of_functions_are_not_global():
    printed = (
        'register unsigned long sp asm("rsp");\n# 1 "x"\nstatic void f(void) { char *x = "{";\n'
        'register long r8 asm("r8"); }\nregister\n int y __asm__ ("rbp") ;\nvoid g(register int x);\n'
    )
    assert global_registers(printed) == [
        'register unsigned long sp asm("rsp");',
        'register int y __asm__ ("rbp") ;',
    ]


def test_words_of_a_shell_are_quoted():
    assert shell_line(["a b", "it's", "$x"]) == "'a b' 'it'\\''s' '$x'"


@pytest.mark.parametrize(
    "change", [{"version": 0}, {"role": "x"}, {"words": [1]}, {"more": 1}, {"macros": [1]}]
)
def test_damaged_start_is_none(start, change):
    data = json.dumps(json.loads(start.encode()) | change).encode()
    with pytest.raises(Unfit, match="damaged"):
        Start.decode(data)
