import pytest

from stapsrv.farm.node import _stricter


@pytest.mark.parametrize(
    ("name", "own", "asked", "bound"),
    [
        ("output_bytes", 10, 20, 10),
        ("output_bytes", 20, 10, 10),
        ("kill_grace_s", 0.0, 2.0, 0.0),
        ("cpu_s", 0.0, 7.0, 7.0),
        ("cpu_s", 7.0, 0.0, 7.0),
        ("memory_bytes", 5, 7, 5),
        ("cores", 0, 0, 0),
        ("nice", 5, 10, 10),
        ("nice", 10, 5, 10),
    ],
)
def test_bound_of_a_compile_is_the_stricter_one(name, own, asked, bound):
    assert _stricter(name, own, asked) == bound
