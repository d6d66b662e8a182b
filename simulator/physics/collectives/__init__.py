"""Collectives on groups of GPUs: coflows on the links, protocol latency, and the algorithm that would be chosen.

Idea
----
A chunk-pipelined collective (ring, tree, NVLS) advances in lock-step, so all its edges run at the pace of its slowest:
it is *one* activity with one rate, that takes `usage[link] · rate` of every link it crosses. An algorithm is a list of
phases run in sequence; a phase is one or more `Traffic` patterns that start together and end with the slowest (an
all-to-all has one in the scale-up domain, one below a leaf switch and one across). Latency stands apart from bandwidth
and is paid once a phase.

What is laid on the links is the traffic of *every* group of a class at once: all tensor-parallel groups of a pipeline
stage, say. They run the same program and share one rate, that of the slowest; `usage` is the sum over the groups.

Across scale-up domains NCCL runs as many channels as a group has members in a domain (at most eight), each leaving by
another member's NIC (PXN and rail alignment): with p members in a domain each NIC edge carries 1/p of the rate, so
tensor parallelism over two 8-GPU nodes uses all sixteen NICs.

Links are shared between connections. A pattern's `weight` turns its rate into that of one connection: a ring's channels
each carry one part in `channels` of the rate, so a ring counts as so many connections on each of its edges.

Protocols and latency follow NCCL's tuning model (NVIDIA/nccl, src/graph/tuning.cc): `base + steps · hop`, with
Simple, LL128 and LL trading latency for bandwidth, and the least predicted time wins. How far a machine is from NCCL's
constants is fitted per architecture.

`laying` puts edges between GPUs on links; `groups` lays rings, trees and jumps; `plans` is time and choice, `tuning`
the fitted numbers; `algorithms` makes plans of reductions and gathers and lists the candidates, `exchanges` makes those
of all-to-alls.

Limits: CollNet and SHARP in the fabric are absent; the hop inside a domain from a channel's last member to the one
whose NIC it leaves by is free; an irregular group (other numbers of members in different domains) runs as many channels
as its smallest domain. docs/collectives.md has the fit's errors.

Shapes: G groups of n members each; L directed links.

Pinned by tests/physics/collectives/: bytes on links against closed forms, step-by-step rings as an oracle.
"""
