"""What is remembered of checks, within a bound."""

from __future__ import annotations

import json

from stapsrv.scripts.history import (
    MAX_CELLS,
    MAX_CHANGES,
    History,
    decode_history,
    encode_history,
    history_lines,
)
from stapsrv.scripts.matrix import Cell, Inputs, Result, Verdict

CELL = Cell("/srv", "d/x.stp", "6.1.0-10-amd64")
OLD = Cell("/srv", "d/x.stp", "6.1.0-9-amd64")


def result(verdict: Verdict, at: float, cell: Cell = CELL, **facts: object) -> Result:
    return Result(cell=cell, verdict=verdict, at=at, **facts)


def test_equal_results_are_one_change_with_the_first_time_and_the_last_inputs():
    inputs = Inputs("r", "t", "e")
    history = History().with_results([result(Verdict.OK, 1), result(Verdict.OK, 2, inputs=inputs)])
    (change,) = history.cells[CELL]
    assert (change.at, change.inputs) == (1, inputs)


def test_what_was_not_tried_hides_nothing():
    history = History().with_results([result(Verdict.FAILS, 1), result(Verdict.UNTRIED, 2)])
    assert history.last[CELL].verdict is Verdict.FAILS


def test_bounds():
    many = [result(Verdict.FAILS, number, message=str(number)) for number in range(2 * MAX_CHANGES)]
    assert len(History().with_results(many).cells[CELL]) == MAX_CHANGES
    wide = [result(Verdict.OK, 1, Cell("/srv", f"{number}.stp", "r")) for number in range(MAX_CELLS + 1)]
    history = History().with_results(wide)
    assert len(history.cells) == MAX_CELLS
    assert Cell("/srv", "0.stp", "r") not in history.cells


def test_json_and_back():
    history = History().with_results(
        [result(Verdict.FAILS, 1.5, message="error", inputs=Inputs("a", "b", "c"))]
    )
    assert decode_history(json.loads(json.dumps(encode_history(history)))) == history


def test_damaged_rows_cost_themselves_alone():
    document = json.loads(json.dumps(encode_history(History().with_results([result(Verdict.OK, 1)]))))
    document["cells"] += [{}, {"cell": ["a", "b", "c"], "changes": [{"verdict": "odd"}]}, 7, None]
    assert list(decode_history(document).cells) == [CELL]
    assert decode_history([]) == decode_history({"version": 2}) == History()


def test_lines_say_since_when_and_since_which_kernel():
    history = History().with_results(
        [
            result(Verdict.OK, 1, inputs=Inputs("r", "t", "e")),
            result(Verdict.FAILS, 2, message="error: y", inputs=Inputs("r", "T", "E")),
            result(Verdict.OK, 1, OLD),
            result(Verdict.FAILS, 3, Cell("/srv", "d/x.stp", "6.2"), message="error: z"),
        ]
    )
    lines = history_lines(history.of_script("x"))
    assert lines[0] == "d/x.stp (/srv)"
    assert lines[1].startswith(f"  {OLD.release}: ok since ")
    (changed,) = [line for line in lines if line.startswith(f"  {CELL.release}: ")]
    assert changed.endswith("when the kernel's headers, the compiler or the runtime changed; ok before")
    (new,) = [line for line in lines if line.startswith("  6.2: ")]
    assert new.endswith(f"the first check; works on {OLD.release}")
    assert any(line.endswith("fails: error: y") for line in lines)
    assert history.of_script("y") == {}
