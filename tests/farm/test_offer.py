import pytest
from hypothesis import given
from hypothesis import strategies as st

from stapsrv.farm.offer import Node, Nodes, Offer

OLD, NEW = ("6.1.0-1-amd64/x86_64/" + digit * 64 for digit in "0f")


def worker(*resources, nthreads=2, status="running", **more):
    return {
        "name": "n",
        "nthreads": nthreads,
        "status": status,
        "resources": dict.fromkeys(resources, nthreads),
        **more,
    }


def test_resource_is_the_offer_that_it_was_made_of():
    offer = Offer("6.1.0-1-amd64", "x86_64", "0" * 64)
    assert offer.resource == OLD
    assert Offer.parse(OLD) == offer


@pytest.mark.parametrize(
    "resource", ["GPU", "6.1/x86_64/abc", f"../x86_64/{'0' * 64}", f"6.1/x/y/{'0' * 64}", f"-r/x/{'0' * 64}"]
)
def test_resource_of_others_is_no_offer(resource):
    assert Offer.parse(resource) is None


def test_best_offer_has_the_most_slots():
    nodes = Nodes.parse(
        {
            "a": worker(OLD, nthreads=3),
            "b": worker(NEW),
            "c": worker(NEW, "GPU"),
            "d": worker(OLD, nthreads=0),
        }
    )
    assert nodes.best("6.1.0-1-amd64", "x86_64").resource == NEW
    assert nodes.best("6.1.0-1-amd64", "arm64") is None
    assert nodes.slots == 7
    assert nodes.releases == (("6.1.0-1-amd64", "x86_64"),)


def test_best_of_equal_offers_is_always_the_same():
    facts = [("a", worker(OLD)), ("b", worker(NEW))]
    found = {Nodes.parse(dict(order)).best("6.1.0-1-amd64", "x86_64") for order in (facts, facts[::-1])}
    assert len(found) == 1


def test_offer_that_was_taken_back_is_none():
    assert not Nodes.parse({"a": worker(resources={OLD: 0})}).offers


def test_node_that_leaves_gets_nothing_new_but_has_what_it_has():
    nodes = Nodes.parse({"a": worker(OLD, status="closing_gracefully")})
    assert nodes.best("6.1.0-1-amd64", "x86_64") is None
    assert nodes.slots == 0
    assert nodes.offering(Offer.parse(OLD)) == {"a"}


def test_missing_release_is_told_with_those_that_there_are():
    nodes = Nodes.parse({"a": worker(OLD)})
    assert nodes.explain_missing("6.9") == (
        "No worker of the farm has the headers of 6.9: they have those of 6.1.0-1-amd64 x86_64"
    )
    assert Nodes().explain_missing("6.9").endswith(": there is no worker")
    assert Nodes((Node("a", "n", 2),)).explain_missing("6.9").endswith(": they have those of no release")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda below: st.lists(below, max_size=3) | st.dictionaries(st.text(max_size=5), below, max_size=3),
    max_leaves=10,
)
FIELDS = st.sampled_from(["name", "nthreads", "status", "resources"])


@given(st.dictionaries(st.text(max_size=3), st.dictionaries(FIELDS, JSON) | JSON, max_size=3) | JSON)
def test_description_of_any_form_is_read(described):
    nodes = Nodes.parse(described)
    assert nodes.slots == 0
    assert nodes.offers == frozenset()
