"""A plan fits a build only if every word of it is what the plan says."""

from __future__ import annotations

import json

import pytest

from stapsrv.compile.engine.prepared.plan import (
    Build,
    Plan,
    Unfit,
    dependency_record,
    make_plan,
    parse_commands,
)

HEADERS = (f"stapconf_{'ab' * 16}_714.h", "stapconf_export.h")
VARIABLES = {"PATH": "/usr/bin", "KCFLAGS": "-O2"}


def arguments(directory: str) -> list[str]:
    return ["-uARCH", "PATH=/usr/bin", "make", "-C", "/tree", f"M={directory}", "modules", "-j3"]


def makefile(directory: str, module: str, auxiliaries: int, *, before: int = 0) -> str:
    """Return a Makefile like stap's, with so many auxiliary sources ``before`` the script's own."""
    objects = [f"{module}_aux_{number}.o" for number in range(auxiliaries)]
    objects[before:before] = [f"{module}_src.o"]
    rules = "".join(f"{directory}/{module}_aux_{number}.o: x\n" for number in range(auxiliaries))
    return f"obj-m := {module}.o\n{module}-y :=  {' '.join(objects)} stap_symbols.o\n{rules}# end\n"


def build(
    directory: str = "/tmp/a", module: str = "stap_1", *, auxiliaries: int = 1, before: int = 0, **changed
) -> Build:
    names = [f"{module}_src.c", "Makefile", "stap_common.h", "stap_symbols.c", *HEADERS]
    names += [f"{module}_aux_{number}.c" for number in range(auxiliaries)]
    given = {"arguments": arguments(directory), "environment": VARIABLES, "names": names}
    given |= {"makefile": makefile(directory, module, auxiliaries, before=before)} | changed
    return Build(directory=directory, **given)


def reader(
    directory: str = "/tmp/a", module: str = "stap_1", *, auxiliaries: int = 1, before: int = 0, **changed
):
    text = makefile(directory, module, auxiliaries, before=before)
    texts = {"Makefile": text, **dict.fromkeys(HEADERS, "#define X")}
    return (texts | changed).__getitem__


def records(directory: str = "/tmp/a", module: str = "stap_1", *, objects: str = "") -> list[str]:
    made = [f"{module}_src.o", "stap_symbols.o", f"{module}_aux_0.o", f"{module}.mod", f"{module}.o"]
    made += ["modules.order", "Module.symvers", f"{module}.mod.o", f"{module}.ko"]
    return [
        f"cmd_{directory}/{name} := gcc -o {directory}/{name} $(pound)$$x{objects}\n\ndeps_x := y\n"
        for name in made
    ]


@pytest.fixture
def plan() -> Plan:
    return Plan.decode(make_plan(build(), records(), reader(), "/tree").encode())


def test_commands_are_those_of_the_records_with_names_filled_in(plan):
    other = build("/tmp/b", "other", auxiliaries=2)
    assert plan.object_commands(other) == [
        (f"/tmp/b/{name}", f"gcc -o /tmp/b/{name} #$x")
        for name in ("other_src.o", "stap_symbols.o", "other_aux_0.o", "other_aux_1.o")
    ]
    steps = ["other.mod", "other.o", "modules.order", "Module.symvers", "other.mod.o", "other.ko"]
    assert [path for path, _ in plan.step_commands(other)] == [f"/tmp/b/{name}" for name in steps]
    assert plan.directory == "/tree"


def test_order_of_the_objects_is_that_of_each_build():
    objects = " stap_1_aux_0.o stap_1_src.o stap_symbols.o"
    made = make_plan(build(before=1), records(objects=objects), reader(before=1), "/tree")
    for auxiliaries, before, filled in [
        (0, 0, ["b_src.o"]),
        (2, 0, ["b_src.o", "b_aux_0.o", "b_aux_1.o"]),
        (3, 2, ["b_aux_0.o", "b_aux_1.o", "b_src.o", "b_aux_2.o"]),
    ]:
        other = build("/tmp/b", "b", auxiliaries=auxiliaries, before=before)
        assert made.misfit(other, reader("/tmp/b", "b", auxiliaries=auxiliaries, before=before)) is None
        (command, *_) = (text for _, text in made.step_commands(other))
        assert command == f"gcc -o /tmp/b/b.mod #$x {' '.join(filled)} stap_symbols.o"


@pytest.mark.parametrize(
    "objects",
    [
        "stap_1_src.o stap_symbols.o",
        "stap_1_aux_0.o stap_symbols.o",
        "stap_1_src.o stap_1_aux_0.o",
        "stap_1_src.o stap_symbols.o stap_1_aux_0.o",
        "stap_1_src.o stap_1_aux_0.o more.o stap_symbols.o",
        "stap_1_src.o stap_1_src.o stap_1_aux_0.o stap_symbols.o",
    ],
)
def test_module_of_other_objects_is_left_to_make(objects):
    with pytest.raises(Unfit, match="another kind of build"):
        build(makefile=f"stap_1-y := {objects}\n")


@pytest.mark.parametrize("auxiliaries", [0, 1, 2, 11])
def test_build_with_another_name_directory_and_number_of_sources_fits(plan, auxiliaries):
    other = build("/tmp/b", "other", auxiliaries=auxiliaries)
    assert plan.misfit(other, reader("/tmp/b", "other", auxiliaries=auxiliaries)) is None


@pytest.mark.parametrize(
    ("changed", "text", "misfit"),
    [
        ({"arguments": [*arguments("/tmp/a"), "V=1"]}, {}, "arguments"),
        ({"arguments": arguments("/tmp/other")}, {}, "arguments"),
        ({"environment": {"KCFLAGS": "-O3"}}, {}, "environment"),
        ({}, {HEADERS[0]: "#define Y"}, "features"),
        ({}, {"Makefile": makefile("/tmp/a", "stap_1", 1) + "EXTRA_CFLAGS += -g\n"}, "Makefile"),
        ({}, {"Makefile": makefile("/tmp/b", "stap_1", 1)}, "Makefile"),
    ],
)
def test_build_that_differs_in_a_word_does_not_fit(plan, changed, text, misfit):
    assert plan.misfit(build(**changed), reader(**text)) == misfit


def test_features_of_another_name_do_not_fit(plan):
    other = f"stapconf_{'cd' * 16}_714.h"
    names = ["stap_1_src.c", "stap_1_aux_0.c", "Makefile", other, HEADERS[1]]
    assert plan.misfit(build(names=names), reader()) == "features"


def test_language_and_temporary_directory_do_not_count(plan):
    environment = VARIABLES | {"LC_ALL": "C", "LANG": "de_DE", "TMPDIR": "/x", "SYSTEMTAP_DIR": "/y"}
    assert plan.misfit(build(environment=environment), reader()) is None


@pytest.mark.parametrize(
    ("names", "reason"),
    [
        (["Makefile"], "another kind of build"),
        (["a_src.c", "b_src.c", *HEADERS], "another kind of build"),
        (["a b_src.c", *HEADERS], "name"),
        (["$(x)_src.c", *HEADERS], "name"),
        (["a_src.c", "Makefile", HEADERS[1]], "features unknown"),
        (["a_src.c", "Module.symvers", *HEADERS], "other files"),
        (["a_src.c", "a_aux_1.c", *HEADERS], "other files"),
    ],
)
def test_directory_with_other_files_is_left_to_make(names, reason):
    with pytest.raises(Unfit, match=reason):
        build(names=names)


@pytest.mark.parametrize("directory", ["/tmp/a b", "/tmp/$x", "tmp", "/tmp/a'"])
def test_directory_that_a_shell_would_read_otherwise_is_left_to_make(directory):
    with pytest.raises(Unfit, match="another kind of build"):
        build(directory)


@pytest.mark.parametrize(
    "changed",
    [
        [*records(), "cmd_/tmp/a/extra := x\n"],
        records()[:-1],
        [record.replace("/tmp/a/", "sub/") for record in records()],
        [],
    ],
)
def test_build_by_other_rules_has_no_plan(changed):
    with pytest.raises(Unfit, match="make's own rules"):
        make_plan(build(), changed, reader(), "/tree")


@pytest.mark.parametrize("auxiliaries", [2, 11])
def test_build_with_several_auxiliary_sources_is_a_model_too(plan, auxiliaries):
    source = "cmd_/tmp/a/stap_1_aux_{0}.o := gcc -o /tmp/a/stap_1_aux_{0}.o $(pound)$$x\n"
    further = [source.format(number) for number in range(1, auxiliaries)]
    model = build(auxiliaries=auxiliaries)
    made = make_plan(model, [*records(), *further], reader(auxiliaries=auxiliaries), "/tree")
    assert made.encode() == plan.encode()
    further[-1] = further[-1].replace("gcc", "gcc -O3")
    with pytest.raises(Unfit, match="make's own rules"):
        make_plan(model, [*records(), *further], reader(auxiliaries=auxiliaries), "/tree")


def test_makefile_that_is_not_what_the_plan_would_say_is_no_model():
    text = makefile("/tmp/a", "stap_1", 2).replace("stap_1_aux_1.o: x", "stap_1_aux_1.o: y")
    further = "cmd_/tmp/a/stap_1_aux_1.o := gcc -o /tmp/a/stap_1_aux_1.o $(pound)$$x\n"
    with pytest.raises(Unfit, match="Makefile"):
        make_plan(build(auxiliaries=2), [*records(), further], reader(auxiliaries=2, Makefile=text), "/tree")


@pytest.mark.parametrize(
    "damage",
    [
        lambda fields: {},
        lambda fields: fields | {"version": 0},
        lambda fields: fields | {"more": 1},
        lambda fields: fields | {"commands": {}},
        lambda fields: fields | {"commands": fields["commands"] | {"rm": "rm"}},
        lambda fields: fields | {"makefile": [1]},
        lambda fields: fields | {"directory": None},
        lambda fields: [],
    ],
)
def test_damaged_plan_is_none(plan, damage):
    data = json.dumps(damage(json.loads(plan.encode()))).encode()
    with pytest.raises(Unfit, match="damaged"):
        Plan.decode(data)


@pytest.mark.parametrize("data", [b"", b"\xff", b"{", b"null", b"[" * 100_000])
def test_text_that_is_no_json_is_no_plan(data):
    with pytest.raises(Unfit, match="damaged"):
        Plan.decode(data)


def test_commands_that_run_in_the_module_s_directory_are_a_plan_for_any_directory():
    relative = [
        record.replace("/tmp/a/", "").replace(" := gcc", " := gcc -I/x/arch/x86/include")
        for record in records()
    ]
    made = make_plan(build(), relative, reader(), "/tree")
    other = build("/tmp/b", "other")
    assert other.fill(made.directory) == "/tmp/b"
    assert made.exports == {"SRCARCH": "x86"}
    assert made.object_commands(other)[0] == (
        "/tmp/b/other_src.o",
        "gcc -I/x/arch/x86/include -o other_src.o #$x",
    )


def test_commands_of_both_ways_of_kbuild_are_read():
    text = "savedcmd_/a/b.o := gcc '$(pound)' $$x\n\nsource_/a/b.o := /a/b.c\n"
    assert parse_commands(text) == [("/a/b.o", "gcc '#' $x")]


def test_record_names_the_source_and_all_files_that_were_read():
    record = dependency_record("/a/b.o", "b.o: /a/b.c \\\n include/x.h \\\n include/y.h\n")
    assert "source_/a/b.o := /a/b.c\n" in record
    assert "deps_/a/b.o := \\\n  include/x.h \\\n  include/y.h \\\n\n" in record
