"""Elastic training: which replicas lack how many of their machines.

Machines stand in the order of the replicas. A failure takes machines that stand next to each other, from its first
victim on; one that comes takes a place in the replica that needs fewest.

Pinned by tests/engine/campaign/test_replicas.py and tests/engine/campaign/test_oracle.py.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from simulator.engine.campaign.job import Job


def regroup(job: Job, victim: float = 0.0) -> None:
    """Machines were lost, the first of them drawn by `victim` (0..1), or came: place them.

    To be called after each change of the machines that are missing or on their way.
    """
    elastic, gone = job.plan.elastic, job.gone
    assert elastic is not None
    size = elastic.nodes_per_replica
    away = sum(gone.values())
    change = min(job.fleet.missing + job.arriving, size * elastic.replicas) - away
    if change > 0:
        replica = replica_of(gone, size, elastic.replicas, victim)
        while change > 0:
            taken = min(change, size - gone.get(replica, 0))
            if taken:
                gone[replica] = gone.get(replica, 0) + taken
                change -= taken
            replica = (replica + 1) % elastic.replicas
    while change < 0:
        replica = min(gone, key=lambda each: (gone[each], each))
        given = min(-change, gone[replica])
        gone[replica] -= given
        change += given
        if not gone[replica]:
            del gone[replica]


def replica_of(gone: dict[int, int], size: int, replicas: int, victim: float) -> int:
    """The replica of one of the machines left, drawn evenly from them by `victim` (0..1)."""
    place = int(victim * (size * replicas - sum(gone.values())))
    for replica in sorted(gone):  # the first places of a replica are its empty ones
        if place < replica * size:
            break
        place += gone[replica]
    return place // size % replicas
