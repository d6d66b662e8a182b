"""Which parallel splits are impossible: every reason with its factors and the nearest degree that works.

Pinned by tests/scenario/test_parallelism.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

from simulator.errors import LayoutError
from simulator.scenario.parallelism import DENSE_AXES, Parallelism, name_factors, suggest
from simulator.scenario.pipeline import Schedule, microbatch_rule, stage_layers

_NOT_INTERLEAVED = ("gpipe", "1f1b", "zb-h1", "zb-h2", "zb-1p", "zb-2p")


def check_split(
    parallelism: Parallelism,
    *,
    available_gpus: int,
    num_layers: int,
    num_attention_heads: int,
    num_query_groups: int,
    ffn_hidden_size: int | None,
    sequence_length: int,
    global_batch_size: int,
    micro_batch_size: int,
    schedule_kind: str,
    vpp: int = 1,
    num_experts: int | None = None,
    expert_ffn_hidden_size: int | None = None,
    zigzag: bool = True,
    schedule: Schedule | None = None,
) -> None:
    """Refuse a split that the model, the batch or the cluster cannot take.

    Parameters
    ----------
    parallelism
        With all degrees known.
    available_gpus
        GPUs of the cluster; a job may use fewer.
    num_query_groups
        Key/value heads; fewer than tp are replicated, as Megatron does.
    ffn_hidden_size, expert_ffn_hidden_size
        Width of a dense layer's MLP and of one expert; None where there is none.
    global_batch_size, micro_batch_size
        Sequences.
    schedule_kind, vpp
        Name of the pipeline schedule, such as ``1f1b`` or ``interleaved``, and model chunks per pipeline rank.
    num_experts
        Experts of one layer; None or 0 for a dense model.
    zigzag
        Causal context parallelism gives every rank an early and a late piece of the sequence, so it is cut in 2 · cp.
    schedule
        Says how the layers are cut; None cuts them as evenly as can be.

    Raises
    ------
    LayoutError
        One line for every reason, with all factors and the nearest degree that works where there is one.
    """
    problems = [
        *_cluster_problems(parallelism, available_gpus),
        *_tensor_problems(parallelism, num_attention_heads, num_query_groups, ffn_hidden_size),
        *_pipeline_problems(parallelism, num_layers, schedule_kind, vpp, schedule),
        *_batch_problems(parallelism, global_batch_size, micro_batch_size, schedule_kind),
        *_sequence_problems(parallelism, sequence_length, zigzag),
        *_expert_problems(parallelism, num_experts or 0, expert_ffn_hidden_size),
    ]
    if problems:
        raise LayoutError("\n".join(problems))


def _cluster_problems(p: Parallelism, available_gpus: int) -> Iterator[str]:
    if p.world_size <= available_gpus:
        return
    replica = p.world_size // p.dp
    most = available_gpus // replica
    fix = f"; use dp {most:,}: {most * replica:,} GPUs" if most else f"; one replica alone takes {replica:,}"
    degrees = name_factors({axis: getattr(p, axis) for axis in DENSE_AXES})
    yield f"{degrees} = {p.world_size:,} GPUs, but the cluster has {available_gpus:,}{fix}"


def _tensor_problems(p: Parallelism, heads: int, query_groups: int, ffn: int | None) -> Iterator[str]:
    if heads % p.tp:
        yield _indivisible("num_attention_heads", heads, "tp", p.tp)
    if query_groups >= p.tp and query_groups % p.tp:
        yield _indivisible("num_query_groups", query_groups, "tp", p.tp)
    if query_groups < p.tp and p.tp % query_groups:
        fixes = suggest("tp", p.tp, lambda tp: tp % query_groups == 0 or query_groups % tp == 0, heads)
        yield (
            f"tp {p.tp} is no multiple of num_query_groups {query_groups}, so they cannot be replicated evenly{fixes}"
        )
    if ffn and ffn % p.tp:
        yield _indivisible("ffn_hidden_size", ffn, "tp", p.tp)


def _pipeline_problems(
    p: Parallelism, num_layers: int, schedule_kind: str, vpp: int, schedule: Schedule | None
) -> Iterator[str]:
    try:
        # not validated: a schedule that cannot be has its own line below
        plain: dict[str, Any] = {"kind": schedule_kind, "vpp": vpp}
        stage_layers(schedule or Schedule.model_construct(**plain), num_layers, p.pp)
    except LayoutError as error:
        yield str(error)
    if schedule_kind == "dualpipe" and p.pp % 2:
        yield f"schedule dualpipe needs an even pp, for its two directions; use pp {p.pp - 1 or 2} or {p.pp + 1}"
    if vpp > 1 and schedule_kind in _NOT_INTERLEAVED:
        yield f"vpp {vpp} needs an interleaved schedule, not {schedule_kind!r}; use vpp 1 or schedule 'interleaved'"
    if schedule_kind == "interleaved" and p.pp == 1:
        yield "an interleaved schedule needs more than pp 1; use schedule '1f1b' or raise pp"


def _batch_problems(p: Parallelism, global_batch: int, micro_batch: int, schedule_kind: str) -> Iterator[str]:
    ranks = p.dp * micro_batch
    factors = f"dp {p.dp:,} × micro_batch_size {micro_batch:,}"
    divisor, least = microbatch_rule(schedule_kind, p.pp)
    interleaved = schedule_kind == "interleaved" and p.pp > 1
    step = ranks * divisor
    if global_batch % ranks:
        yield (
            f"global_batch_size {global_batch:,} is not divisible by {factors} = {ranks:,}"
            f"{_use_multiple('global_batch_size', global_batch, step)}"
        )
    elif interleaved and (global_batch // ranks) % p.pp:
        count = global_batch // ranks
        yield (
            f"an interleaved schedule needs microbatches divisible by pp {p.pp}, but global_batch_size"
            f" {global_batch:,} / ({factors}) = {count:,}{_use_multiple('global_batch_size', global_batch, step)}"
        )
    elif (global_batch // ranks) % divisor or global_batch // ranks < least:
        even = "an even number of microbatches, " if divisor > 1 else ""
        target = max(global_batch, least * ranks - 1)
        yield (
            f"schedule {schedule_kind} needs {even}2 × pp {p.pp} = {least} microbatches or more, but global_batch_size"
            f" {global_batch:,} / ({factors}) = {global_batch // ranks:,}"
            f"; use global_batch_size {-(-target // step) * step:,}"
        )


def _sequence_problems(p: Parallelism, sequence: int, zigzag: bool) -> Iterator[str]:
    pieces = 2 * p.cp if zigzag and p.cp > 1 else p.cp
    if sequence % pieces:
        why = f"2 × cp {p.cp} = {pieces} (causal zigzag)" if pieces > p.cp else f"cp {p.cp}"
        fix = _use_multiple("sequence_length", sequence, math.lcm(pieces, p.cp * p.tp if p.sequence_parallel else 1))
        yield f"sequence_length {sequence:,} is not divisible by {why}{fix}"
    elif p.sequence_parallel and sequence % (p.cp * p.tp):
        shards = p.cp * p.tp
        fix = _use_multiple("sequence_length", sequence, math.lcm(pieces, shards))
        yield (
            f"sequence_length {sequence:,} is not divisible by cp {p.cp} × tp {p.tp} = {shards:,} as sequence"
            f" parallelism needs{fix} or sequence_parallel false"
        )


def _expert_problems(p: Parallelism, num_experts: int, expert_ffn: int | None) -> Iterator[str]:
    if not num_experts:
        if p.ep > 1:
            yield f"ep {p.ep} on a model without experts; use ep 1"
        if p.etp is not None and p.etp != p.tp:
            yield f"etp {p.etp} on a model without experts; leave etp out"
        return
    if num_experts % p.ep:
        yield _indivisible("num_experts", num_experts, "ep", p.ep)
    if expert_ffn and p.etp is not None and expert_ffn % p.etp:
        yield _indivisible("expert_ffn_hidden_size", expert_ffn, "etp", p.etp)
    try:
        _ = p.edp  # checks the grid of the experts
    except LayoutError as error:
        yield str(error)


def _indivisible(name: str, total: int, axis: str, degree: int) -> str:
    fixes = suggest(axis, degree, lambda value: total % value == 0, total)
    return f"{name} {total:,} is not divisible by {axis} {degree:,}{fixes}"


def _use_multiple(name: str, value: int, step: int) -> str:
    below = value // step * step
    return f"; use {name} {f'{below:,} or ' if below else ''}{below + step:,}"
