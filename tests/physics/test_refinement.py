"""Colour refinement: equitable, coarsest, and numbered by first occurrence."""

from __future__ import annotations

from collections import Counter, defaultdict

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from simulator.physics.symmetry import coarsest_partition, in_order_of_first


def equitable_cells(first: np.ndarray, ends: np.ndarray, quality: np.ndarray) -> np.ndarray:  # type: ignore[type-arg]
    """Cells of links in two columns."""
    return coarsest_partition(first, (ends[:, 0], ends[:, 1]), quality.astype(np.uint64))


@st.composite
def graphs(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray, np.ndarray]:  # type: ignore[type-arg]
    """Draw first colours, links and their qualities."""
    count = draw(st.integers(1, 12))
    vertex = st.integers(0, count - 1)
    pairs = (
        draw(st.lists(st.tuples(vertex, vertex).filter(lambda pair: pair[0] < pair[1]), unique=True, max_size=24))
        if count > 1
        else []
    )
    quality = draw(st.lists(st.integers(0, 1), min_size=len(pairs), max_size=len(pairs)))
    first = draw(st.lists(st.integers(0, 1), min_size=count, max_size=count))
    return np.array(first), np.array(pairs, dtype=np.int64).reshape(-1, 2), np.array(quality, dtype=np.int64)


def sights(cell: list[int], ends: np.ndarray, quality: np.ndarray) -> list[Counter[tuple[int, int]]]:  # type: ignore[type-arg]
    """Count what every vertex sees: links by quality and the cell at their other end."""
    seen: dict[int, Counter[tuple[int, int]]] = defaultdict(Counter)
    for (a, b), sort in zip(ends.tolist(), quality.tolist(), strict=True):
        seen[a][sort, cell[b]] += 1
        seen[b][sort, cell[a]] += 1
    return [seen[v] for v in range(len(cell))]


@given(graphs())
def test_the_partition_is_equitable_and_the_coarsest(graph: tuple[np.ndarray, np.ndarray, np.ndarray]) -> None:  # type: ignore[type-arg]
    """Oracle: refinement by comparing whole sights, one round after the other, from the first colours."""
    first, ends, quality = graph
    cell = equitable_cells(first, ends, quality)
    slow: list[int] = first.tolist()
    while True:
        keys = list(zip(slow, [tuple(sorted(s.items())) for s in sights(slow, ends, quality)], strict=True))
        number = {key: i for i, key in enumerate(dict.fromkeys(keys))}
        refined = [number[key] for key in keys]
        if len(set(refined)) == len(set(slow)):
            break
        slow = refined
    assert cell.tolist() == in_order_of_first(np.array(slow)).tolist()
    seen = sights(cell.tolist(), ends, quality)
    for v in range(len(cell)):
        assert seen[v] == seen[cell.tolist().index(cell[v])]


def test_a_path_folds_about_its_middle() -> None:
    """Five vertices in a row: ends, their neighbours, the middle."""
    path = np.array([[0, 1], [1, 2], [2, 3], [3, 4]])
    assert equitable_cells(np.zeros(5, dtype=np.int64), path, np.zeros(4, dtype=np.int64)).tolist() == [0, 1, 2, 1, 0]


def test_qualities_tell_links_apart() -> None:
    """One fast link of three splits its two ends from the other four vertices."""
    pairs = np.array([[0, 1], [2, 3], [4, 5]])
    assert equitable_cells(np.zeros(6, dtype=np.int64), pairs, np.array([0, 1, 0])).tolist() == [0, 0, 1, 1, 0, 0]
