"""A small kernel's build in the place of make, which leaves what kbuild leaves, and stap's files for it."""

from __future__ import annotations

from pathlib import Path

import attrs
import pytest

from stapsrv.compile.engine.prepared.recorder import record
from stapsrv.compile.engine.prepared.stand_in import PLAN, REPORT, follow

FEATURES = f"stapconf_{'ab' * 16}_714.h"

# In place of env: the rules of a small kernel's build, which leave what kbuild leaves.
MAKE = """#!/bin/sh
echo make >>{calls}
for word; do case $word in M=*) D=${{word#M=}};; esac; done
cd {tree}; set -e
N=$(basename $D/*_src.c _src.c)
[ -e $D/{features} ] || echo 1 >$D/{features}
rule() {{ sh -ec "$2"; printf 'cmd_%s := %s\\n' "$D/$1" "$2" >$D/.$1.cmd; }}
for o in ${{N}}_src stap_symbols ${{N}}_aux_0; do
    rule $o.o "{compiler} $D/$o.c $D/$o.o && echo $o.o: $D/$o.c include/x.h >$D/.$o.o.d"
    rm $D/.$o.o.d
done
rule $N.mod "echo ${{N}}_src.o ${{N}}_aux_0.o stap_symbols.o >$D/$N.mod"
rule $N.o "(cd $D; cat \\`cat $N.mod\\`) >$D/$N.o"
rule modules.order "echo $D/$N.ko >$D/modules.order"
rule Module.symvers "grep EXPORT $D/$N.o >$D/Module.symvers || true"
rule $N.mod.o "echo $N >$D/$N.mod.o"
rule $N.ko "cat $D/$N.o $D/$N.mod.o >$D/$N.ko; {odd}"
{after}
"""


@attrs.frozen
class Bench:
    place: Path
    environ: dict[str, str]

    def write_make(self, *, compiler: str = "cp", odd: str = "true", after: str = "") -> None:
        env = self.place / "bin" / "env"
        env.write_text(
            MAKE.format(
                calls=self.place / "calls",
                tree=self.place / "tree",
                features=FEATURES,
                compiler=compiler,
                odd=odd,
                after=after,
            )
        )
        env.chmod(0o755)

    def directory(self, name: str, *, source: str = "int x;\n", features: str | None = "1\n") -> Path:
        """What stap has when it calls make."""
        path = self.place / name
        path.mkdir()
        files = {f"{name}_src.c": source, f"{name}_aux_0.c": "0\n", "stap_symbols.c": "1\n"}
        objects = f"{name}_src.o {name}_aux_0.o stap_symbols.o"
        files |= {"Makefile": f"{name}-y := {objects}\n", "stapconf_export.h": "", "stap_common.h": ""}
        if features is not None:
            files[FEATURES] = features
        for file, text in files.items():
            (path / file).write_text(text)
        return path

    def call(self, directory: Path, *more: str) -> list[str]:
        return ["-uARCH", "make", "-C", str(self.place / "tree"), f"M={directory}", "modules", "-j2", *more]

    def record(self, directory: Path) -> int:
        store = self.place / "store" / "one"
        store.mkdir(parents=True, exist_ok=True)
        return record(str(store), self.call(directory), self.environ)

    def follow(self, directory: Path, *more: str) -> int:
        return follow(str(self.place / "store"), self.call(directory, *more), self.environ)

    @property
    def plan(self) -> Path:
        return self.place / "store" / "one" / PLAN

    @property
    def reports(self) -> list[str]:
        return (self.place / REPORT).read_text().splitlines()

    @property
    def calls(self) -> int:
        return len((self.place / "calls").read_text().splitlines())


@pytest.fixture(name="bench")
def make_bench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Bench:
    for name in ("bin", "tree", "store"):
        (tmp_path / name).mkdir()
    path = f"{tmp_path / 'bin'}:/usr/bin:/bin"
    monkeypatch.setenv("PATH", path)
    bench = Bench(tmp_path, {"PATH": path, "SYSTEMTAP_DIR": str(tmp_path)})
    bench.write_make()
    return bench


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}
