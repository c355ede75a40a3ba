"""The releases that the nodes of a farm offer, as its scheduler states them. Pure.

A node offers each release as a resource of Dask's, named ``RELEASE/ARCH/IDENTITY``. The identity is a digest
of all that modules are built with there: the scheduler gives a job to no node that has not just that.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Mapping

import attrs

from stapsrv.config.kernels import is_release_name
from stapsrv.text import printable, shortened

# A node announces a change of its offers by an event of this topic.
TOPIC = "stapsrv-offers"
_MAX_NODES = 10_000
_MAX_OFFERS = 1000  # of one node
_MAX_SLOTS = 100_000
_MAX_NAME = 200
_RESOURCE = re.compile(r"([^/]{1,200})/(\w{1,64})/([0-9a-f]{64})", re.ASCII)


@attrs.frozen(order=True)
class Offer:
    """A release that a node compiles for, and the identity of what it compiles with."""

    release: str
    arch: str
    identity: str

    @property
    def resource(self) -> str:
        """The name of Dask's resource."""
        return f"{self.release}/{self.arch}/{self.identity}"

    @property
    def sysinfo(self) -> str:
        """``RELEASE ARCH``, as a client states it."""
        return f"{self.release} {self.arch}"

    @classmethod
    def parse(cls, resource: str) -> Offer | None:
        """Return the offer that a resource is; None for a resource of others."""
        found = _RESOURCE.fullmatch(resource)
        if found is None or not is_release_name(found[1]):
            return None
        return cls(found[1], found[2], found[3])


@attrs.frozen
class Node:
    """A node of a farm, as the scheduler knows it."""

    address: str
    name: str
    slots: int
    offers: frozenset[Offer] = frozenset()
    is_open: bool = True  # it takes new jobs


@attrs.frozen
class Nodes:
    """The nodes of a farm at one moment."""

    nodes: tuple[Node, ...] = ()

    @classmethod
    def parse(cls, workers: object) -> Nodes:
        """Read the scheduler's description of its workers; what makes no sense in it is left out."""
        if not isinstance(workers, Mapping):
            return cls()
        described = list(workers.items())[:_MAX_NODES]
        return cls(tuple(_node(str(address), facts) for address, facts in described if _is_facts(facts)))

    @property
    def slots(self) -> int:
        """The number of jobs that the farm runs at the same time."""
        return sum(node.slots for node in self.nodes if node.offers and node.is_open)

    @property
    def offers(self) -> frozenset[Offer]:
        """All offers of open nodes."""
        return frozenset(offer for node in self.nodes if node.is_open for offer in node.offers)

    @property
    def releases(self) -> tuple[tuple[str, str], ...]:
        """The releases that the farm compiles for, with their architectures, by name."""
        return tuple(sorted({(offer.release, offer.arch) for offer in self.offers}))

    def offering(self, offer: Offer) -> frozenset[str]:
        """Return the addresses of the nodes that make an offer."""
        return frozenset(node.address for node in self.nodes if offer in node.offers)

    def best(self, release: str, arch: str) -> Offer | None:
        """Return the offer for a release that has the most slots, always the same one of equals."""
        slots: Counter[Offer] = Counter()
        for node in self.nodes:
            for offer in node.offers if node.is_open else ():
                if (offer.release, offer.arch) == (release, arch):
                    slots[offer] += node.slots
        return max(slots, key=lambda offer: (slots[offer], offer), default=None)

    def explain_missing(self, release: str) -> str:
        """Return, for a client, that nobody offers a release, and what there is."""
        there = "there is no worker"
        if self.nodes:
            offered = ", ".join(f"{name} {arch}" for name, arch in self.releases)
            there = f"they have those of {offered or 'no release'}"
        return f"No worker of the farm has the headers of {release}: {there}"


def _is_facts(facts: object) -> bool:
    return isinstance(facts, Mapping)


def _node(address: str, facts: Mapping[str, object]) -> Node:
    slots, name, resources = facts.get("nthreads"), facts.get("name"), facts.get("resources")
    is_sound = isinstance(slots, int) and 0 < slots < _MAX_SLOTS
    return Node(
        address=address,
        name=shortened(printable(str(name)), _MAX_NAME),
        slots=slots if is_sound and isinstance(slots, int) else 0,
        offers=frozenset(_offers(resources)) if isinstance(resources, Mapping) else frozenset(),
        is_open=facts.get("status") == "running",
    )


def _offers(resources: Mapping[object, object]) -> Iterator[Offer]:
    for resource, quantity in list(resources.items())[:_MAX_OFFERS]:
        # One that is taken back has none left.
        if isinstance(resource, str) and isinstance(quantity, (int, float)) and quantity >= 1:
            offer = Offer.parse(resource)
            if offer is not None:
                yield offer
