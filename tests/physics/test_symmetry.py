"""Colour refinement: a partition by hand, equitable and coarsest against slow answers, and hashes that tell apart."""

from __future__ import annotations

from collections import Counter, defaultdict
from typing import Any, NamedTuple

import networkx as nx
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from simulator.physics.symmetry import coarsest_partition, mix, near


class Drawn(NamedTuple):
    """A graph: colours of its vertices, ends and labels of its edges; edges may be parallel."""

    colours: list[int]
    edges: list[tuple[int, int, int]]


def classes_of(drawn: Drawn) -> list[int]:
    """Refine."""
    first, second, label = np.array(drawn.edges, dtype=np.int64).reshape(-1, 3).T
    found = coarsest_partition(np.array(drawn.colours), (first, second), label.astype(np.uint64))
    return [int(number) for number in found]


def neighbours(drawn: Drawn) -> dict[int, list[tuple[int, int]]]:
    """Label and other end of every edge at a vertex."""
    found = defaultdict(list)
    for first, second, label in drawn.edges:
        found[first].append((label, second))
        found[second].append((label, first))
    return found


def slow_classes(drawn: Drawn) -> list[int]:
    """Refine with sorted lists of what a vertex sees instead of sums of hashes, numbered by first members."""
    around, classes = neighbours(drawn), list(drawn.colours)
    while True:
        sights = [
            (own, tuple(sorted((label, classes[other]) for label, other in around[vertex])))
            for vertex, own in enumerate(classes)
        ]
        numbers: dict[Any, int] = {}
        refined = [numbers.setdefault(sight, len(numbers)) for sight in sights]
        if len(numbers) == len(set(classes)):
            return refined
        classes = refined


VERTICES = st.integers(1, 14)


@st.composite
def graphs(draw: st.DrawFn) -> Drawn:
    """Draw few colours and labels, so that much is alike: anything, or copies of one small graph."""
    count = draw(VERTICES)
    place = st.integers(0, count - 1)
    edges = draw(st.lists(st.tuples(place, place, st.integers(0, 1)), max_size=30))
    colours = draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    copies = draw(st.integers(1, 3))
    shifted = [(a + count * copy, b + count * copy, label) for copy in range(copies) for a, b, label in edges]
    return Drawn(colours * copies, shifted)


# --- by hand ---------------------------------------------------------------------------------------------------------


def test_path_by_hand() -> None:
    """A path of five: its ends see one neighbour, those next to them an end and the middle, the middle two of these.

    0 - 1 - 2 - 3 - 4: degrees tell {0, 4} from {1, 2, 3}, and in the next round {1, 3} see an end, 2 does not.
    """
    path = [(0, 1, 0), (1, 2, 0), (2, 3, 0), (3, 4, 0)]
    assert classes_of(Drawn([0] * 5, path)) == [0, 1, 2, 1, 0]


def test_a_marked_vertex_splits_a_ring_by_distance() -> None:
    """A ring of six is one class; with a vertex marked, the others differ by how far away they are."""
    ring = [(i, (i + 1) % 6, 0) for i in range(6)]
    assert classes_of(Drawn([0] * 6, ring)) == [0] * 6
    assert classes_of(Drawn([0, 0, 1, 0, 0, 0], ring)) == [0, 1, 2, 1, 0, 3]


def test_one_group_vertex_keeps_a_ring_whole() -> None:
    """Six ranks of one collective, one of them slow: joined to their group instead of each other, five stay alike."""
    star = [(rank, 6, 0) for rank in range(6)]
    assert classes_of(Drawn([0, 0, 1, 0, 0, 0, 2], star)) == [0, 0, 1, 0, 0, 0, 2]


def test_labels_tell_edges_apart() -> None:
    """Sender and receiver of a message have the same neighbour in different roles."""
    assert classes_of(Drawn([0, 0, 1], [(0, 2, 0), (1, 2, 0)])) == [0, 0, 1]
    assert classes_of(Drawn([0, 0, 1], [(0, 2, 0), (1, 2, 1)])) == [0, 1, 2]


def test_label_and_neighbour_belong_together() -> None:
    """Label 0 to red and 1 to blue is not 1 to red and 0 to blue."""
    assert classes_of(Drawn([0, 0, 1, 2], [(0, 2, 0), (0, 3, 1), (1, 2, 1), (1, 3, 0)])) == [0, 1, 2, 3]


def test_parallel_edges_count() -> None:
    """Twice the same edge is not once."""
    assert classes_of(Drawn([0] * 3, [(0, 2, 0), (1, 2, 0), (1, 2, 0)])) == [0, 1, 2]


@pytest.mark.parametrize("colours", [[], [3], [5, 5, 4, 5]])
def test_without_edges_the_colours_stay(colours: list[int]) -> None:
    """Nothing to refine by: classes are colours in the order of their first members."""
    order = list(dict.fromkeys(colours))
    assert classes_of(Drawn(colours, [])) == [order.index(colour) for colour in colours]


# --- laws ------------------------------------------------------------------------------------------------------------


@given(graphs())
def test_partition_is_equitable(drawn: Drawn) -> None:
    """Vertices of a class have one colour and see as many vertices of every class over edges of every label."""
    classes, around = classes_of(drawn), neighbours(drawn)
    sights: dict[int, Any] = {}
    for vertex, own in enumerate(classes):
        seen = drawn.colours[vertex], Counter((label, classes[other]) for label, other in around[vertex])
        assert sights.setdefault(own, seen) == seen


@given(graphs())
@example(Drawn([0] * 12, [(i, (i + 1) % 6 + 6 * (i // 6), 0) for i in range(12)]))
def test_partition_is_the_coarsest(drawn: Drawn) -> None:
    """The same classes as with sorted lists: these split only what no equitable partition can keep together."""
    assert classes_of(drawn) == slow_classes(drawn)


@given(graphs())
def test_whatever_is_split_networkx_tells_apart(drawn: Drawn) -> None:
    """Subgraph hashes of as many rounds as there are vertices are equal just within classes (Weisfeiler and Leman)."""
    graph: nx.Graph[int] = nx.Graph()
    graph.add_nodes_from((vertex, {"colour": str(colour)}) for vertex, colour in enumerate(drawn.colours))
    # networkx knows no parallel edges or loops: their labels, sorted, become one
    labels: dict[tuple[int, int], list[int]] = defaultdict(list)
    for first, second, label in drawn.edges:
        labels[min(first, second), max(first, second)].append(label)
    graph.add_edges_from((a, b, {"label": str(sorted(own))}) for (a, b), own in labels.items() if a != b)
    numbers = {text: number for number, text in enumerate(sorted({str(sorted(own)) for own in labels.values()}))}
    edges = [(a, b, numbers[str(sorted(own))]) for (a, b), own in labels.items() if a != b]
    rounds = len(drawn.colours)
    hashes = nx.weisfeiler_lehman_subgraph_hashes(
        graph, node_attr="colour", edge_attr="label", iterations=rounds, digest_size=16
    )
    order = list(dict.fromkeys(hashes[vertex][-1] if hashes[vertex] else "" for vertex in range(rounds)))
    expected = [order.index(hashes[vertex][-1] if hashes[vertex] else "") for vertex in range(rounds)]
    assert classes_of(Drawn(drawn.colours, edges)) == expected


@given(graphs(), st.randoms(use_true_random=False))
def test_numbers_of_vertices_and_order_of_edges_do_not_matter(drawn: Drawn, random: Any) -> None:
    """Vertices renumbered and edges shuffled and turned round: the same vertices are together."""
    count = len(drawn.colours)
    new = random.sample(range(count), count)
    colours = [0] * count
    for vertex, colour in enumerate(drawn.colours):
        colours[new[vertex]] = colour
    edges = [
        (new[a], new[b], label) if random.random() < 0.5 else (new[b], new[a], label) for a, b, label in drawn.edges
    ]
    random.shuffle(edges)
    before, after = classes_of(drawn), classes_of(Drawn(colours, edges))
    pairs = {(before[vertex], after[new[vertex]]) for vertex in range(count)}
    assert len(pairs) == len(set(before)) == len(set(after))


@given(graphs())
def test_names_of_colours_do_not_matter(drawn: Drawn) -> None:
    """Only which colours are equal counts, not their numbers; asking twice gives the same."""
    renamed = drawn._replace(colours=[10**12 - 7 * colour for colour in drawn.colours])
    assert classes_of(drawn) == classes_of(drawn) == classes_of(renamed)


@given(graphs())
def test_classes_are_numbered_by_first_members(drawn: Drawn) -> None:
    """0, 1, 2, ... in the order in which they occur."""
    classes = classes_of(drawn)
    assert list(dict.fromkeys(classes)) == list(range(len(set(classes))))


# --- hashes ----------------------------------------------------------------------------------------------------------


def test_mix_is_splitmix64() -> None:
    """First outputs of SplitMix64 with seed 1234567, as published with its reference code (Vigna, splitmix64.c)."""
    golden = 0x9E3779B97F4A7C15
    seeds = np.array([(1234567 + golden * step) % 2**64 for step in range(3)], dtype=np.uint64)
    assert mix(seeds).tolist() == [6457827717110365317, 3203168211198807973, 9817491932198370423]


def test_mix_loses_nothing() -> None:
    """It is a permutation: a hundred thousand neighbours stay different, in their upper halves nearly all."""
    mixed = mix(np.arange(100_000, dtype=np.uint64))
    assert len(np.unique(mixed)) == 100_000
    assert len(np.unique(mixed >> np.uint64(32))) > 99_990
    ones = np.unpackbits(mixed.view(np.uint8)).mean()
    assert ones == pytest.approx(0.5, abs=0.002)


@given(st.floats(1e-12, 1e15), st.integers(-2, 2))
def test_rounding_is_forgiven(value: float, steps: int) -> None:
    """A few last bits more or less: at most neighbours on the grid, and mostly the same number of it."""
    other = value
    for _ in range(abs(steps)):
        other = float(np.nextafter(other, np.inf if steps > 0 else 0.0))
    one, two = (int(each) for each in near(np.array([value, other])))
    assert abs(one - two) <= 1


def test_near_tells_apart_what_differs() -> None:
    """2^-32 of the size is the grid: a millionth apart is different, 2^-40 apart is equal, so are 0.1 + 0.2 and 0.3."""
    a, b, c = (int(each) for each in near(np.array([0.7, 0.7 * (1 + 1e-6), 0.7 * (1 + 2**-40)])))
    assert a != b
    assert a == c
    assert len(set(near(np.array([0.1 + 0.2, 0.3])).tolist())) == 1
    assert len(set(near(np.array([0.0, 1e-300, 1.0, 2.0, np.inf])).tolist())) == 5
