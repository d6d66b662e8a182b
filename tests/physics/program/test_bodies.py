"""What a rank does in a step: data-parallel volume by ZeRO stage, buckets, waiting, and the order of things."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from simulator.physics.kernels import memory_bound_time
from simulator.physics.layers.layer import layer_backward, layer_forward, recomputed
from simulator.physics.operations import Await, Collective, Kernel, Launch
from simulator.physics.program.bodies import Bodies, Counted
from simulator.physics.stages import Stage, cut, layer_parameters, stage_parameters
from simulator.scenario.stacks import Stack, read_stacks
from simulator.scenario.transformer import Transformer
from tests.physics.shapes import gpt, make_rank

ROUNDS = {"all_reduce": 2, "all_gather": 1, "reduce_scatter": 1}  # times that a ring moves (n - 1) / n of the buffer
EVERY_ZERO_STAGE = [0, 1, 2, 3]


def bodies(
    model: Transformer | None = None,
    *,
    pp: int = 1,
    vpp: int = 1,
    bucket: int = 40_000_000,
    stack: dict[str, Any] | None = None,
    **changes: Any,
) -> Bodies:
    """Build the bodies of a small model; `changes` are fields of the split and of the recipe."""
    rank = make_rank(model or gpt(), pp=pp, **{"dp": 4, **changes})
    found = read_stacks()["generic"].model_copy(
        update={"grad_bucket_elements": bucket, "grad_bucket_elements_per_replica": 0, **(stack or {})}
    )
    return Bodies(rank, cut(rank.model, pp, vpp), found)


def walk(made: Bodies, stages: tuple[Stage, ...], microbatches: int) -> Iterable[list[Counted]]:
    """List the bodies of a rank that holds `stages` in the order of a flush: all forwards, then all backwards."""
    yield made.prologue(stages)
    for microbatch in range(microbatches):
        for stage in stages:
            yield made.forward(stage, first=microbatch == 0)
    for microbatch in range(microbatches):
        for stage in reversed(stages):
            yield made.backward(stage, last=microbatch == microbatches - 1)
    yield made.epilogue(stages)


def launched(body: list[Counted], axis: str | None = None) -> list[Launch]:
    """Return what a body puts on streams beside compute."""
    found = [operation for operation, _ in body if isinstance(operation, Launch)]
    return [launch for launch in found if axis in (None, launch.axis)]


def moved(made: Bodies, microbatches: int, axis: str = "dp") -> float:
    """Count the parameters moved by data parallelism in one step, in units of (n - 1) / n of each."""
    total = 0.0
    for body in walk(made, made.stages, microbatches):
        for launch in launched(body, axis):
            element = 2.0 if launch.tag.startswith("grad:") else made.gather_element
            total += ROUNDS[launch.op] * launch.size / element
    return total


def settings(zero_stage: int, **optimizer: Any) -> dict[str, Any]:
    """Sharding with gradients in two bytes, as ZeRO counts them."""
    return {"optimizer": {"zero_stage": zero_stage, "grad_dtype": "bf16", **optimizer}}


# --- volume ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.parametrize("gather_overlap", [False, True])
@pytest.mark.parametrize(("zero_stage", "volume"), [(0, 2.0), (1, 2.0), (2, 2.0), (3, 3.0)])
def test_volume_of_zero(zero_stage: int, volume: float, overlap: bool, gather_overlap: bool) -> None:
    """ArXiv 1910.02054, section 7: 2 Ψ for data parallelism and stages 1 and 2, 3 Ψ for stage 3, one microbatch."""
    made = bodies(**settings(zero_stage, overlap_grad_reduce=overlap, overlap_param_gather=gather_overlap))
    assert moved(made, 1) == pytest.approx(volume * made.rank.model.total_parameters, rel=1e-12)


@given(
    zero_stage=st.sampled_from(EVERY_ZERO_STAGE),
    microbatches=st.integers(1, 5),
    bucket=st.sampled_from([1, 300_000, 10**12]),
    overlap=st.booleans(),
    gather_overlap=st.booleans(),
    reshard=st.booleans(),
    pp=st.sampled_from([1, 2, 4]),
)
def test_volume_with_gradient_accumulation(
    zero_stage: int, microbatches: int, bucket: int, overlap: bool, gather_overlap: bool, reshard: bool, pp: int
) -> None:
    """Per step, m microbatches: 2 Ψ; 2 Ψ; m Ψ + Ψ; 3 m Ψ, or 2 m Ψ where parameters are kept after forward.

    However gradients are cut into buckets, overlapped or not, and over all stages of a pipeline.
    """
    flags = {"overlap_grad_reduce": overlap, "overlap_param_gather": gather_overlap, "reshard_after_forward": reshard}
    made = bodies(gpt(tied_embeddings=False), pp=pp, bucket=bucket, **settings(zero_stage, **flags))
    gathers = 2 if reshard else 1
    volume = {0: 2, 1: 2, 2: microbatches + 1, 3: microbatches * (gathers + 1)}[zero_stage]
    assert moved(made, microbatches) == pytest.approx(volume * made.rank.model.total_parameters, rel=1e-12)


@given(
    zero_stage=st.sampled_from([2, 3]),
    microbatches=st.integers(1, 5),
    overlap=st.booleans(),
    pp=st.sampled_from([1, 2, 4]),
)
def test_volume_without_synchronisation(zero_stage: int, microbatches: int, overlap: bool, pp: int) -> None:
    """`no_sync` scatters once: 2 Ψ with ZeRO-2; with ZeRO-3 2 m Ψ of gathers and 1 Ψ of gradients."""
    flags = {"overlap_grad_reduce": overlap, "no_sync": True}
    batch = {"global_batch_size": 4 * microbatches, **settings(zero_stage, **flags)}
    made = bodies(gpt(tied_embeddings=False), pp=pp, **batch)
    volume = 2 if zero_stage == 2 else 2 * microbatches + 1
    assert moved(made, microbatches) == pytest.approx(volume * made.rank.model.total_parameters, rel=1e-12)


@pytest.mark.parametrize(("zero_stage", "share"), [(1, 1.0), (3, 0.25)])
def test_weights_are_cast_to_fp8_once_a_step(zero_stage: int, share: float) -> None:
    """Read in 16 bits, written in 8 twice: 4 B for each parameter of the layers, of the own part only with ZeRO-3."""
    made = bodies(precision="fp8", accelerator="h100", optimizer={"zero_stage": zero_stage})
    casts = [op.seconds for op, _ in made.epilogue(made.stages) if getattr(op, "name", "") == "weight.cast"]
    inside = 4 * sum(layer_parameters(made.rank, 0))
    assert casts == [memory_bound_time(made.rank.accelerator, 4 * share * inside, "cast")]
    plain = bodies(accelerator="h100")
    assert all(getattr(op, "name", "") != "weight.cast" for op, _ in plain.epilogue(plain.stages))


@pytest.mark.parametrize(
    ("zero_stage", "grad_dtype", "volume"), [(0, "fp32", 4), (1, "fp32", 5), (1, "bf16", 2), (2, "fp32", 3)]
)
def test_fp32_gradients_summed_everywhere(zero_stage: int, grad_dtype: str, volume: float) -> None:
    """DeepSpeed's BF16_Optimizer all-reduces and then gathers; a gradient of 4 bytes counts as two of 2.

    So 2 · 2 Ψ without ZeRO, 2 · 2 Ψ + Ψ where ZeRO-1 needs 2 Ψ + Ψ, and no change for 16-bit gradients or ZeRO-2.
    """
    made = bodies(
        gpt(tied_embeddings=False), stack={"zero1": "summed_fp32"}, **settings(zero_stage, grad_dtype=grad_dtype)
    )
    assert moved(made, 1) == pytest.approx(volume * made.rank.model.total_parameters, rel=1e-12)


@pytest.mark.parametrize("zero_stage", EVERY_ZERO_STAGE)
def test_experts_are_reduced_over_their_replicas(zero_stage: int) -> None:
    """Dp 4, ep 2: an expert's parameters go over edp, the others over dp; with as many ranks as experts over none."""
    model = gpt(moe={"num_experts": 4, "top_k": 1, "ffn_hidden_size": 64}, tied_embeddings=False)
    made = bodies(model, ep=2, **settings(zero_stage))
    volume = 3 if zero_stage == 3 else 2
    share = stage_parameters(made.rank, made.stages[0])
    assert share.expert == 4 * 2 * model.expert_parameters
    assert moved(made, 1, "dp") == pytest.approx(volume * share.dense, rel=1e-12)
    assert moved(made, 1, "edp") == pytest.approx(volume * share.expert, rel=1e-12)
    alone = bodies(model, ep=4, **settings(zero_stage))
    assert moved(alone, 1, "edp") == 0


@pytest.mark.parametrize("zero_stage", EVERY_ZERO_STAGE)
def test_one_replica_exchanges_nothing(zero_stage: int) -> None:
    """Dp 1: no launches, no waits."""
    made = bodies(dp=1, **settings(zero_stage, overlap_param_gather=True))
    for body in walk(made, made.stages, 2):
        assert not [operation for operation, _ in body if isinstance(operation, Launch | Await)]


def test_context_parallel_ranks_are_replicas() -> None:
    """Dp 1, cp 2: gradients are reduced all the same."""
    made = bodies(dp=1, cp=2, **settings(0))
    assert moved(made, 1) == pytest.approx(2 * made.rank.model.total_parameters)


@pytest.mark.parametrize(
    ("fields", "gradient", "parameter"),
    [
        ({}, 4, 2),
        ({"grad_dtype": "bf16"}, 2, 2),
        ({"param_gather_dtype": "fp8"}, 4, 1),
        ({"param_gather_dtype": "fp32"}, 4, 4),
    ],
)
def test_bytes_of_an_element(fields: dict[str, Any], gradient: int, parameter: int) -> None:
    """Gradients are reduced in their dtype (fp32 if left out), parameters gathered in theirs (as the weights)."""
    made = bodies(optimizer={"zero_stage": 1, **fields})
    sizes = Counter[str]()
    for body in walk(made, made.stages, 1):
        for launch in launched(body):
            sizes[launch.op] += launch.size  # type: ignore[assignment]
    total = made.rank.model.total_parameters
    assert sizes == {"reduce_scatter": gradient * total, "all_gather": parameter * total}


# --- waiting ---------------------------------------------------------------------------------------------------------


@given(
    zero_stage=st.sampled_from(EVERY_ZERO_STAGE),
    microbatches=st.integers(1, 3),
    bucket=st.sampled_from([1, 300_000, 10**12]),
    overlap=st.booleans(),
    gather_overlap=st.booleans(),
    depth=st.sampled_from([(1, 1), (2, 1), (2, 2)]),
    experts=st.booleans(),
)
def test_everything_launched_is_awaited(
    zero_stage: int, microbatches: int, bucket: int, overlap: bool, gather_overlap: bool, depth: Any, experts: bool
) -> None:
    """No wait for what was not launched, and nothing left at the end of the step.

    A stream runs in order, so waiting for a later launch of a tag covers the earlier ones.
    """
    model = gpt(moe={"num_experts": 4, "top_k": 1, "ffn_hidden_size": 64} if experts else None)
    flags = settings(zero_stage, overlap_grad_reduce=overlap, overlap_param_gather=gather_overlap)
    made = bodies(model, pp=depth[0], vpp=depth[1], bucket=bucket, **flags)
    for rank in range(depth[0]):
        open_tags: set[str] = set()
        for body in walk(made, made.stages[rank :: depth[0]], microbatches):
            for operation, _ in body:
                if isinstance(operation, Launch):
                    open_tags.add(operation.tag)
                elif isinstance(operation, Await):
                    assert operation.tag in open_tags
                    open_tags.remove(operation.tag)
        assert open_tags == set()


def where(made: Bodies, prefix: str, microbatches: int = 2) -> list[int]:
    """Count the launches of a kind in each body of a step."""
    found = walk(made, made.stages, microbatches)
    return [len([launch for launch in launched(body) if launch.tag.startswith(prefix)]) for body in found]


@pytest.mark.parametrize(
    ("zero_stage", "overlap", "expected"),
    [
        (0, True, [0, 0, 0, 0, 6, 0]),
        (1, True, [0, 0, 0, 0, 6, 0]),
        (0, False, [0, 0, 0, 0, 0, 6]),
        (1, False, [0, 0, 0, 0, 0, 6]),
        (2, True, [0, 0, 0, 6, 6, 0]),
        (2, False, [0, 0, 0, 6, 6, 0]),
        (3, True, [0, 0, 0, 6, 6, 0]),
    ],
)
def test_when_gradients_are_reduced(zero_stage: int, overlap: bool, expected: list[int]) -> None:
    """Start, two forwards, two backwards, end; six units (embedding, four layers, output) in buckets of one each.

    With the last backward where overlapped, else after it; ZeRO-2 and 3 in every backward.
    """
    assert where(bodies(bucket=1, **settings(zero_stage, overlap_grad_reduce=overlap)), "grad:") == expected


def test_zero1_of_some_stacks_sums_whole_gradients_at_the_end() -> None:
    """One all-reduce after the last backward although overlap is asked for, and one gather; ZeRO-0 stays as it is."""
    summed = {"zero1": "summed"}
    made = bodies(bucket=1, stack=summed, **settings(1, overlap_grad_reduce=True))
    assert where(made, "grad:") == [0, 0, 0, 0, 0, 1]
    assert where(made, "gather:") == [0, 0, 0, 0, 0, 1]
    assert launched(made.epilogue(made.stages))[0].op == "all_reduce"
    plain = bodies(bucket=1, stack=summed, **settings(0, overlap_grad_reduce=True))
    assert where(plain, "grad:") == [0, 0, 0, 0, 6, 0]


def test_zero1_whose_ranks_own_whole_tensors() -> None:
    """Gradients are summed over all replicas; then both ranks of each shard group broadcast half of the parameters."""
    made = bodies(bucket=1, stack={"zero1": "owned"}, **settings(1, overlap_grad_reduce=True, shard_group=2))
    reduced = launched(made.backward(made.stages[0], last=True))
    assert {(launch.axis, launch.op) for launch in reduced} == {("dp", "all_reduce")}
    sent = launched(made.epilogue(made.stages))
    assert [(launch.axis, launch.op) for launch in sent] == [("dp_shard2", "broadcast")] * 2
    assert sum(launch.size for launch in sent) == 2 * made.rank.model.total_parameters


def test_unoverlapped_zero2_waits_in_the_same_backward() -> None:
    """Without overlap the rank stands still for its reduce-scatters at the end of every backward."""
    made = bodies(bucket=1, **settings(2, overlap_grad_reduce=False))
    body = [operation for operation, _ in made.backward(made.stages[0], last=False)]
    launches, waits = ([op.tag for op in body if isinstance(op, kind)] for kind in (Launch, Await))
    assert sorted(waits) == sorted(launches)
    assert all(isinstance(operation, Await) for operation in body[-6:])
    assert not any(
        isinstance(operation, Await) for operation, _ in made.epilogue(made.stages) if "grad" in str(operation)
    )


def test_gradients_are_launched_where_they_are_complete() -> None:
    """Output layer first, embedding last: each bucket right after the kernels that fill it."""
    made = bodies(bucket=1, **settings(0))
    body = [operation for operation, _ in made.backward(made.stages[0], last=True)]
    launches = [index for index, operation in enumerate(body) if isinstance(operation, Launch)]
    kernels = [operation.name for operation in body if isinstance(operation, Kernel)]
    before = [body[index - 1] for index in launches]
    assert [operation.name for operation in before if isinstance(operation, Kernel)] == [
        "final_norm.grad", *["attention_norm.grad"] * 4, "embedding.grad",
    ]  # fmt: skip
    assert kernels[-1] == "embedding.grad"


@given(bucket=st.integers(1, 20_000_000), layers=st.sampled_from([1, 3, 8]))
def test_buckets_hold_at_least_their_size(bucket: int, layers: int) -> None:
    """Units fill a bucket until it is full; only the last may stay below."""
    made = bodies(gpt(num_layers=layers), bucket=bucket, **settings(0))
    sizes = [launch.size / 2 for launch in launched(made.backward(made.stages[0], last=True))]
    largest = max(12 * 512**2 + 13 * 512, (1024 + 256) * 512)
    assert all(bucket <= size < bucket + largest for size in sizes[:-1])
    assert sum(sizes) == made.rank.model.total_parameters


# --- parameters gathered beside compute ------------------------------------------------------------------------------


@pytest.mark.parametrize("zero_stage", [1, 2])
def test_parameters_are_gathered_before_or_after_the_step(zero_stage: int) -> None:
    """Overlapped: launched at the start of the step, awaited by the first forward. Else after the optimizer."""
    ahead = bodies(bucket=1, **settings(zero_stage, overlap_param_gather=True))
    assert where(ahead, "gather:") == [6, 0, 0, 0, 0, 0]
    first, later = (ahead.forward(ahead.stages[0], first=first) for first in (True, False))
    assert len([op for op, _ in first if isinstance(op, Await)]) == 6
    assert not [op for op, _ in later if isinstance(op, Await)]
    behind = bodies(bucket=1, **settings(zero_stage))
    assert where(behind, "gather:") == [0, 0, 0, 0, 0, 6]
    tail = [operation for operation, _ in behind.epilogue(behind.stages)]
    optimizer = next(index for index, op in enumerate(tail) if isinstance(op, Kernel) and op.name == "optimizer")
    assert all(index > optimizer for index, op in enumerate(tail) if isinstance(op, Launch) and "gather" in op.tag)


def test_first_forward_waits_for_one_bucket_at_a_time() -> None:
    """The second layer's parameters may still be under way while the first layer computes."""
    made = bodies(bucket=1, **settings(1, overlap_param_gather=True))
    body = [operation for operation, _ in made.forward(made.stages[0], first=True)]
    waits = [index for index, operation in enumerate(body) if isinstance(operation, Await)]
    assert waits[0] == 0
    assert all(later - earlier > 1 for earlier, later in pairwise(waits))


@pytest.mark.parametrize("backward", [False, True])
def test_zero3_gathers_one_unit_ahead(backward: bool) -> None:
    """At any time at most this unit and the next are gathered, and each wait is for the unit that computes next."""
    made = bodies(**settings(3))
    body = made.backward(made.stages[0], last=False) if backward else made.forward(made.stages[0], first=True)
    order = ["embedding", "layer0", "layer1", "layer2", "layer3", "output"]
    waited: list[str] = []
    started: list[str] = []
    for operation, _ in body:
        if isinstance(operation, Launch) and operation.op == "all_gather":
            started.append(operation.tag)
            assert len(started) - len(waited) <= 2
        elif isinstance(operation, Await) and operation.tag.startswith("gather"):
            waited.append(operation.tag)
    expected = [f"gather:dp:{name}" for name in (order[::-1] if backward else order)]
    assert waited == started == expected


def test_zero3_keeps_parameters_where_asked() -> None:
    """Without resharding backward gathers nothing."""
    made = bodies(**settings(3, reshard_after_forward=False))
    ops = {launch.op for launch in launched(made.backward(made.stages[0], last=False))}
    assert ops == {"reduce_scatter"}


# --- end of the step -------------------------------------------------------------------------------------------------


def tied_sizes(**changes: Any) -> list[list[float]]:
    """Bytes of the embedding's all-reduce on every pipeline rank."""
    made = bodies(**changes)
    pp = made.rank.parallelism.pp
    ends = [made.epilogue(made.stages[rank::pp]) for rank in range(pp)]
    return [[op.size for op, _ in end if isinstance(op, Collective) and op.axis == "embedding"] for end in ends]


def test_tied_embeddings_are_summed_between_first_and_last_stage() -> None:
    """ArXiv 2104.04473: V · h / tp gradients of 4 bytes on both ends, nothing between, on one stage, or untied."""
    size = 1024 * 512 / 2 * 4
    assert tied_sizes(pp=4, tp=2) == [[size], [], [], [size]]
    assert tied_sizes(pp=2, vpp=2, tp=2) == [[size], [size]]
    assert tied_sizes(pp=1, tp=2) == [[]]
    assert tied_sizes(model=gpt(tied_embeddings=False), pp=4, tp=2) == [[], [], [], []]


@pytest.mark.parametrize(("zero_stage", "share"), [(0, 1.0), (1, 0.25), (2, 0.25), (3, 0.25)])
def test_optimizer_walks_its_share_of_the_parameters(zero_stage: int, share: float) -> None:
    """Adam moves gradient 4, master and moments 2 · 12 bytes, and the copy to 16 bits 4 + 2; every share.

    The norm reads the gradients, clipping reads and writes them. The whole buffer is zeroed and divided by the number
    of replicas, which no rank holds with ZeRO-2 and 3.
    """
    made = bodies(optimizer={"zero_stage": zero_stage})
    found = {
        op.name: op.seconds
        for op, state in made.epilogue(made.stages)
        if isinstance(op, Kernel) and state == "optimizer"
    }
    elements = made.rank.model.total_parameters * share
    held = elements if zero_stage >= 2 else made.rank.model.total_parameters
    acc = made.rank.accelerator
    assert found == {
        "gradient_zero": pytest.approx(memory_bound_time(acc, 4 * held)),
        "gradient_scale": pytest.approx(memory_bound_time(acc, 8 * held)),
        "gradient_norm": pytest.approx(memory_bound_time(acc, 4 * elements)),
        "gradient_clip": pytest.approx(memory_bound_time(acc, 8 * elements)),
        "optimizer": pytest.approx(memory_bound_time(acc, (4 + 2 * 12 + 4 + 2) * elements)),
    }


def test_optimizer_without_a_master_copy() -> None:
    """Fp32 Adam reads gradient, weight and two moments, and writes the latter three: 4 + 2 · 4 + 2 · 8 bytes."""
    made = bodies(precision="fp32")
    (found,) = [op for op, _ in made.epilogue(made.stages) if isinstance(op, Kernel) and op.name == "optimizer"]
    expected = memory_bound_time(made.rank.accelerator, 28 * made.rank.model.total_parameters)
    assert found.seconds == pytest.approx(expected)


def test_order_at_the_end_of_a_step() -> None:
    """Wait for gradients, tie the embeddings, norm over all ranks, optimizer, then new parameters, then the host."""
    made = bodies(pp=2, **settings(1))
    made.stack = Stack.model_validate({**made.stack.model_dump(mode="json"), "step_overhead": "3 ms"})
    end = made.epilogue(made.stages[:1])
    kinds = [
        type(operation).__name__ if isinstance(operation, Launch | Await) else operation.name for operation, _ in end
    ]
    passes = ["gradient_zero", "gradient_scale", "gradient_norm", "gradient_clip", "optimizer"]
    assert kinds == ["Await", "embedding_tie", "gradient_norm", *passes, "Launch", "Await", "host"]
    assert end[-1] == Counted(Kernel("host", 3e-3), "host")
    assert [state for _, state in end] == ["compute"] * 2 + ["optimizer"] * 6 + ["compute"] * 2 + ["host"]


# --- actions ---------------------------------------------------------------------------------------------------------


def test_forward_and_backward_of_a_stage() -> None:
    """A middle stage is its layers in order, backward in reverse, each recomputed right before its own backward."""
    made = bodies(pp=2, tp=2, recompute="full", dp=1)
    last = made.stages[1]
    forward = [operation for operation, _ in made.forward(last, first=False)]
    layers = [*layer_forward(made.rank, 2), *layer_forward(made.rank, 3)]
    assert forward[: len(layers)] == layers
    backward = made.backward(made.stages[0], last=False)
    one = [*recomputed(made.rank, 1), *layer_backward(made.rank, 1)]
    assert [operation for operation, _ in backward[: len(one)]] == one
    states = [state for _, state in backward[: len(one)]]
    assert states == ["recomputation"] * len(recomputed(made.rank, 1)) + ["compute"] * len(layer_backward(made.rank, 1))


def test_dense_and_mixture_layers_of_one_stage() -> None:
    """Layer 0 is dense, layers 1 to 3 are mixtures: each gets its own kernels."""
    model = gpt(moe={"num_experts": 4, "top_k": 1, "ffn_hidden_size": 64, "first_dense_layers": 1})
    made = bodies(model)
    names = Counter(op.name for op, _ in made.forward(made.stages[0], first=True) if isinstance(op, Kernel))
    assert (names["router"], names["mlp.up"], names["qkv"]) == (3, 1, 4)


def gathers(body: list[Counted]) -> list[float]:
    """Bytes of the gathers of messages that came in slices."""
    return [op.size for op, _ in body if isinstance(op, Collective) and op.name == "message.gather"]


def test_messages_cross_the_network_once() -> None:
    """ArXiv 2104.04473, section 4.1: without sequence parallelism tp slices of b s h, gathered on arrival."""
    message = 2.0 * 256 * 512
    made = bodies(pp=2, tp=4, sequence_parallel=False)
    assert made.sent_bytes == message / 4
    first, last = made.stages
    assert gathers(made.forward(first, first=False)) == gathers(made.backward(last, last=False)) == []
    assert gathers(made.forward(last, first=False)) == gathers(made.backward(first, last=False)) == [message]
    made.stack = made.stack.model_copy(update={"scatter_gather": False})
    assert made.sent_bytes == message
    assert gathers(made.forward(last, first=False)) == []


def test_messages_under_sequence_parallelism_are_slices() -> None:
    """Each rank sends its tokens, and the next stage needs no more; with tp 1 it sends all."""
    made = bodies(pp=2, tp=4)
    assert made.sent_bytes == 2.0 * 256 * 512 / 4
    assert gathers(made.forward(made.stages[1], first=False)) == []
    assert bodies(pp=2, tp=1).sent_bytes == 2.0 * 256 * 512


def test_buckets_grow_with_the_replicas() -> None:
    """Megatron-Core's max(40M, 1M · dp): 40M elements up to 40 replicas, one million each beyond."""
    stack = read_stacks()["megatron-core-2024"]
    found = []
    for dp in (8, 40, 208):
        rank = make_rank(gpt(), dp=dp)
        found.append(Bodies(rank, cut(rank.model, 1, 1), stack).bucket_elements)
    assert found == [40_000_000, 40_000_000, 208_000_000]


MOE: dict[str, Any] = {"num_experts": 8, "top_k": 2, "ffn_hidden_size": 256, "first_dense_layers": 1}


@pytest.mark.parametrize(("recipe", "syncs"), [({}, 3), ({"recompute": "full"}, 3)])
def test_the_host_waits_for_token_counts(recipe: dict[str, Any], syncs: int) -> None:
    """Once in the forward of each of three mixtures, and again where it is recomputed; not with a padded capacity."""

    def waits(*, forward: bool, **training: Any) -> list[float]:
        made = bodies(gpt(moe=MOE), ep=4, **recipe, **training)
        made.stack = made.stack.model_copy(update={"expert_sync": 1e-4})
        stage = made.stages[0]
        body = made.forward(stage, first=False) if forward else made.backward(stage, last=False)
        found = [op for op, state in body if isinstance(op, Kernel) and state == "host"]
        assert {op.name for op in found} <= {"token_counts"}
        return [op.seconds for op in found]

    assert waits(forward=True) == [1e-4] * syncs
    assert waits(forward=False) == ([1e-4] * syncs if recipe else [])
    assert waits(forward=True, expert_capacity_factor=1.0, expert_padding=True) == []
