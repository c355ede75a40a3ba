import attrs
import pytest

from stapsrv.compile.engine.base import CompileResult
from stapsrv.compile.protocol.response import ResponseFile
from stapsrv.config.table import Limits
from stapsrv.errors import ProtocolError, RequestRejected, TranslatorError
from stapsrv.farm.result import Failure, NodeFailure, NodeResult, decode_answer, encode_answer
from stapsrv.rejection import RejectReason

RESULT = CompileResult(
    status=0,
    stdout=b"out",
    stderr=b"err\xff",
    files=(ResponseFile("stap000000/stap_x.ko", b"\x7fELF"), ResponseFile("stap000000/stap_x_src.c", b"")),
)
ANSWER = NodeResult(result=RESULT, node="n1", build="prepared")
LIMITS = Limits({"output_bytes": 100, "answer_bytes": 100})


def with_result(**changes):
    return attrs.evolve(ANSWER, result=attrs.evolve(RESULT, **changes))


def with_path(path):
    """Return an answer as a node would have to forge it: a path of ours is checked when it is made."""
    encoded = encode_answer(with_result(files=(ResponseFile("stap000000/" + "p" * (len(path) - 11), b""),)))
    return encoded.replace(b"stap000000/" + b"p" * (len(path) - 11), path.encode())


@pytest.mark.parametrize(
    "answer",
    [
        ANSWER,
        with_result(status=130, limit_met="too much", hidden_paths=("/a",)),
        attrs.evolve(ANSWER, uncacheable="outside"),
        NodeFailure(failure=Failure.CHANGED, node="n1", problem="changed"),
        NodeFailure(
            failure=Failure.TRANSLATOR,
            node="n1",
            problem="late",
            remedy="wait",
            reject_reason=RejectReason.COMPILE_TIMEOUT,
        ),
    ],
)
def test_answer_comes_out_as_it_went_in(answer):
    assert decode_answer(encode_answer(answer), LIMITS) == answer


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (with_result(stdout=b"x" * 101), "prints more"),
        (with_result(stderr=b"x" * 101), "prints more"),
        (with_result(files=(ResponseFile("stap000000/a.ko", b"x" * 101),)), "larger than the server allows"),
        (with_result(files=RESULT.files * 2), "a file twice"),
        (with_result(status=256), "no number status"),
        (attrs.evolve(ANSWER, build="x" * 201), "no sound text build"),
    ],
)
def test_answer_beyond_the_servers_limits_is_refused(answer, said):
    with pytest.raises(ProtocolError, match=said):
        decode_answer(encode_answer(answer), LIMITS)


@pytest.mark.parametrize(
    "path",
    [
        "stap000000/../../x.ko",
        "stap000000/x.ko.sgn",
        "stap000000/x.mod.c",
        "stap000000/Makefile",
        "stap999999/stap_x.ko",
        "/etc/cron.d/stap_x.ko",
        "stap000000//x.ko",
        "stdout_instead.ko",
    ],
)
def test_file_that_no_compile_leaves_is_refused(path):
    with pytest.raises(ProtocolError, match="a file that no compile leaves"):
        decode_answer(with_path(path), LIMITS)


def test_what_a_node_says_is_printable():
    answer = decode_answer(encode_answer(attrs.evolve(ANSWER, node="a\nb", build="\x1b[2J")), LIMITS)
    assert (answer.node, answer.build) == ("a\\nb", "\\x1b[2J")


@pytest.mark.parametrize(
    ("failure", "kind"), [("rejected", RequestRejected), ("translator", TranslatorError)]
)
def test_client_is_told_of_a_failure_as_if_its_server_had_compiled(failure, kind):
    failed = NodeFailure(
        failure=Failure(failure), node="n1", problem="no", reject_reason=RejectReason.OUTPUT_SIZE
    )
    error = failed.error()
    assert (type(error), error.problem, error.reject_reason) == (kind, "no", RejectReason.OUTPUT_SIZE)


def test_failure_that_there_is_not_is_refused():
    encoded = encode_answer(NodeFailure(failure=Failure.CHANGED, node="n1", problem="x"))
    with pytest.raises(ProtocolError, match="a way that there is not"):
        decode_answer(encoded.replace(b'"changed"', b'"chanced"'), LIMITS)
