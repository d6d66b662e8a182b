"""What a pipeline rank does in each action, and before and after them: operations with the state that they count as.

Gradients are reduced when the last microbatch's backward produces them (bucket by bucket when overlapped, else at the
end), with ZeRO-2 in every microbatch; ZeRO-3 gathers the parameters of each unit (layer, embedding, output layer) one
unit ahead, in forward and again in backward, and reduce-scatters its gradients, in every microbatch (arXiv 1910.02054,
section 7; arXiv 2304.11277, section 3.3). Dense parameters are reduced over dp · cp, experts over edp.

With a `shard_group` gradients are scattered inside it and summed across groups (HSDP, arXiv 2304.11277, section 3.2.2).

`no_sync` scatters once, with the last microbatch (PyTorch's FSDP).

Limits: experts are sharded over all of edp. Gradients of what tp replicates (norms, router) are not summed over tp:
they are small.

Pinned by tests/physics/program/test_bodies.py.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

from simulator.physics.kernels import memory_bound_time
from simulator.physics.layers.layer import embedding, layer_backward, layer_forward, output_layer, recomputed
from simulator.physics.layers.rank import Rank
from simulator.physics.memory import optimizer_bytes, weight_bytes
from simulator.physics.memory.states import shards
from simulator.physics.operations import Await, Collective, Kernel, Launch, Operation
from simulator.physics.program.layout import REPLICA, SHARD
from simulator.physics.program.offload import host_step
from simulator.physics.program.software import half, overlapped, repeats_half, without_fused_casts
from simulator.physics.stages import (
    LocalParameters,
    Stage,
    layer_parameters,
    stage_parameters,
    stage_tensors,
    units,
)
from simulator.scenario.stacks import Stack
from simulator.scenario.training import BYTES_PER_ELEMENT


class Counted(NamedTuple):
    """An operation and the breakdown state that its kernels count as."""

    operation: Operation
    state: str


def _as(state: str, operations: Iterable[Operation]) -> list[Counted]:
    return [Counted(operation, state) for operation in operations]


def _is_weight_gradient(operation: Operation) -> bool:
    """Whether nobody but the optimizer waits for it: weight gradients, and what is gathered again only for them."""
    name = getattr(operation, "name", "")
    return name.endswith((".wgrad", ".input_gather")) or name.startswith("embedding.")


class Bodies:
    """Bodies of every action of a program.

    Parameters
    ----------
    rank
        What one rank sees; the same for all.
    stages
        All stages in order.
    """

    def __init__(self, rank: Rank, stages: tuple[Stage, ...], stack: Stack) -> None:
        self.rank, self.stages, self.stack = rank, stages, stack
        self.optimizer = rank.training.optimizer
        split = rank.parallelism
        self.replicas = {"dp": split.replicas, "edp": split.edp}
        group = self.optimizer.shard_group
        self.shard_group = group if group is not None and group < split.replicas and self.optimizer.zero_stage else None
        self.zero1 = stack.zero1 if self.optimizer.zero_stage == 1 else "scattered"
        self._layers: dict[tuple[str, bool], list[Counted]] = {}

    # --- actions -----------------------------------------------------------------------------------------------------

    def forward(self, stage: Stage, *, first: bool) -> list[Counted]:
        """F of one microbatch; `first` waits for parameters that were gathered beside compute."""
        body = self._received(stage, entering=not stage.embedding)
        ready = self._awaited(stage) if first and self.gathers_ahead else self._gathered(units(self.rank, stage))
        if stage.embedding:
            body += [*next(ready, []), *_as("compute", embedding(self.rank, backward=False))]
        for layer in stage.layers:
            body += [*next(ready, []), *self._layer("forward", layer)]
        if stage.output:
            body += [*next(ready, []), *_as("compute", output_layer(self.rank, backward=False))]
        return body

    def backward(self, stage: Stage, *, last: bool, kind: str = "B") -> list[Counted]:
        """B of one microbatch, or its halves I and W; `last` reduces the gradients that are complete with it.

        What the stage before waits for is in I, recomputation and gathers of parameters too; W has the weight
        gradients and what becomes of them.
        """
        overlap = self.overlaps_reduction
        reduces = kind != "I" and (self.reduces_every_microbatch or (last and overlap))
        buckets = Buckets(self, stage)
        gathers = self.optimizer.reshard_after_forward and kind != "W"
        gathered = self._gathered(units(self.rank, stage)[::-1] if gathers else [])
        body = self._received(stage, entering=not stage.output and kind != "W")
        for part in self._backward_parts(stage):
            body += [*next(gathered, []), *(part if kind == "B" else self._half(kind, part))]
            if reduces:
                body += _as("compute", buckets.add_next())
        if reduces and not overlap:
            body += _as("compute", [Await(tag) for tag in buckets.tags])
        return body

    def _half(self, kind: str, part: list[Counted]) -> list[Counted]:
        """Operations of a unit's whole backward that belong to I or to W."""
        return [each for each in part if _is_weight_gradient(each.operation) == (kind == "W")]

    def _backward_parts(self, stage: Stage) -> Iterator[list[Counted]]:
        """Backward of each unit of a stage, last first."""
        if stage.output:
            yield self._end("output")
        for layer in reversed(stage.layers):
            yield [*self._layer("recomputed", layer), *self._layer("backward", layer)]
        if stage.embedding:
            yield self._end("embedding")

    def _end(self, name: str) -> list[Counted]:
        """Backward of the embedding or the output layer."""
        if (name, False) not in self._layers:
            build = output_layer if name == "output" else embedding
            self._layers[name, False] = _as("compute", build(self.rank, backward=True))
        return self._layers[name, False]

    def _layer(self, what: str, layer: int) -> list[Counted]:
        key = (what, self.rank.model.is_moe_layer(layer))
        if key not in self._layers:
            build = {"forward": layer_forward, "backward": layer_backward, "recomputed": recomputed}[what]
            state = "recomputation" if what == "recomputed" else "compute"
            operations = build(self.rank, layer)
            if what == "recomputed" and repeats_half(self.rank, self.stack):
                operations = half(layer_forward(self.rank, layer))
            if what == "backward" and not self.stack.fused_accumulation:
                operations = [*operations, self._accumulation(layer)]
            if self.stack.fused_casts:
                operations = without_fused_casts(operations)
            counted = _as(state, overlapped(operations, self.stack.tp_overlap))
            if any(getattr(operation, "name", "") == "router" for operation in operations) and self.counts_tokens:
                counted += _as("host", [Kernel("token_counts", self.stack.expert_sync)])
            self._layers[key] = counted
        return self._layers[key]

    @property
    def counts_tokens(self) -> bool:
        """Whether the host waits in every mixture for the tokens of each expert, which a capacity tells beforehand."""
        return self.stack.expert_sync > 0 and not self.rank.training.expert_padding

    def _accumulation(self, layer: int) -> Kernel:
        """Adding a layer's weight gradients to their buffer, where no GEMM does it: read both, write one."""
        size = weight_bytes(self.rank) + 2 * BYTES_PER_ELEMENT[self.optimizer.grad_dtype]
        share = sum(layer_parameters(self.rank, layer))
        return Kernel("accumulate", memory_bound_time(self.rank.accelerator, share * size))

    def _received(self, stage: Stage, *, entering: bool) -> list[Counted]:
        """A message that crossed the network in tp slices is gathered on arrival (arXiv 2104.04473, section 4.1)."""
        if not entering or not self.slices_messages or len(self.stages) == 1:
            return []
        return _as("compute", [Collective("message.gather", "tp", "all_gather", self.message_bytes)])

    @property
    def message_bytes(self) -> float:
        """Bytes of a stage's output for one microbatch, all of it."""
        return float(self.rank.tokens * self.rank.model.hidden_size * self.rank.element)

    @property
    def slices_messages(self) -> bool:
        """Whether a message without sequence parallelism is sent in tp slices."""
        return self.stack.scatter_gather and self.rank.parallelism.tp > 1 and not self.rank.sequence_parallel

    @property
    def sent_bytes(self) -> float:
        """Bytes that one rank sends of it."""
        split = self.slices_messages or self.rank.sequence_parallel
        return self.message_bytes / (self.rank.parallelism.tp if split else 1)

    # --- data parallelism --------------------------------------------------------------------------------------------

    @property
    def reduces_every_microbatch(self) -> bool:
        """ZeRO-2 and ZeRO-3 hold no full gradient between microbatches, unless `no_sync`."""
        return not self.rank.keeps_whole_gradients

    @property
    def overlaps_reduction(self) -> bool:
        """Whether gradients are reduced beside the last backward passes."""
        return self.optimizer.overlap_grad_reduce and self.zero1 != "summed"

    @property
    def gathers_ahead(self) -> bool:
        """Whether the parameters of ZeRO-1 and ZeRO-2 are gathered beside the first forward passes."""
        return self.optimizer.zero_stage in (1, 2) and self.optimizer.overlap_param_gather

    def _sized(self, share: LocalParameters, element: float) -> list[tuple[str, float]]:
        """Bytes to move by axis, where there is anything to move and anyone to move it to."""
        sizes = {"dp": share.dense * element, "edp": share.expert * element}
        return [(axis, size) for axis, size in sizes.items() if size and self.replicas[axis] > 1]

    @property
    def gather_element(self) -> float:
        """Bytes of a parameter in a gather."""
        dtype = self.optimizer.param_gather_dtype
        return weight_bytes(self.rank) if dtype is None else float(BYTES_PER_ELEMENT[dtype])

    def _gathered(self, order: list[tuple[str, LocalParameters]]) -> Iterator[list[Counted]]:
        """ZeRO-3: before each unit, put the next one's gather on its stream and wait for this one's."""
        if self.optimizer.zero_stage != 3:
            return
        gathers = [self._gather(name, share) for name, share in order]
        for position, own in enumerate(gathers):
            ahead = [*(own if position == 0 else []), *(gathers[position + 1] if position + 1 < len(gathers) else [])]
            yield _as("compute", [*ahead, *(Await(launch.tag) for launch in own)])

    def _gather(self, name: str, share: LocalParameters) -> list[Launch]:
        """Gather the parameters of a unit or stage from all who keep a part of them."""
        sized = self._sized(share, self.gather_element)
        return [Launch(f"gather:{axis}:{name}", self._shard_axis(axis), "all_gather", size) for axis, size in sized]

    def _shard_axis(self, axis: str) -> str:
        """Axis of the ranks that share one copy of what is sharded."""
        return axis if self.shard_group is None or axis != "dp" else f"{SHARD}{self.shard_group}"

    @property
    def _sums_everywhere(self) -> bool:
        """Whether every replica receives all gradients, though ZeRO-1 may leave it only a part to update."""
        if self.zero1 == "summed_fp32":
            return self.optimizer.grad_dtype == "fp32"
        return not self.optimizer.zero_stage or self.zero1 != "scattered"

    def gradient_launches(self, tag: str, share: LocalParameters) -> list[Launch]:
        """Reduce a bucket of gradients."""
        op = "all_reduce" if self._sums_everywhere else "reduce_scatter"
        element = float(BYTES_PER_ELEMENT[self.optimizer.grad_dtype])
        if self.zero1 == "owned":
            return [Launch(f"grad:{axis}:{tag}", axis, op, size) for axis, size in self._sized(share, element)]
        found = []
        for axis, size in self._sized(share, element):
            own = self._shard_axis(axis)
            found.append(Launch(f"grad:{axis}:{tag}", own, op, size))
            if own != axis and self.shard_group is not None:
                across = f"{REPLICA}{self.shard_group}"
                found.append(Launch(f"grad:{across}:{tag}", across, "all_reduce", size / self.shard_group))
        return found

    # --- before and after --------------------------------------------------------------------------------------------

    def prologue(self, stages: tuple[Stage, ...]) -> list[Counted]:
        """Parameter gathers that run beside the first forward passes."""
        if not self.gathers_ahead:
            return []
        buckets = [bucket for stage in stages for bucket in self._gather_buckets(stage)]
        return _as("compute", [launch for _, launches in buckets for launch in launches])

    @property
    def bucket_elements(self) -> float:
        """Elements after which a bucket of gradients or parameters is sent off."""
        if self.zero1 == "summed":
            return math.inf
        per_replica = self.stack.grad_bucket_elements_per_replica * self.replicas["dp"]
        return max(self.stack.grad_bucket_elements, per_replica)

    def _broadcasts(self, stage: Stage) -> list[tuple[int, list[Launch]]]:
        """Each rank that owns tensors of a stage sends them to the others of its group, one rank after another."""
        launches = []
        for axis, size in self._sized(stage_parameters(self.rank, stage), self.gather_element):
            ranks = self.replicas[axis] if self.shard_group is None or axis != "dp" else self.shard_group
            owners = min(ranks, stage_tensors(self.rank.model, stage))
            launches += [
                Launch(f"gather:{axis}:{stage.index}.{owner}", self._shard_axis(axis), "broadcast", size / owners)
                for owner in range(owners)
            ]
        return [(0, launches)]

    def _gather_buckets(self, stage: Stage) -> list[tuple[int, list[Launch]]]:
        """Parameter gathers of a stage in forward order: first unit of each bucket, and its launches."""
        if self.zero1 == "owned":
            return self._broadcasts(stage)
        found: list[tuple[int, list[Launch]]] = []
        start, waiting = 0, LocalParameters(0.0, 0.0)
        shares = [share for _, share in units(self.rank, stage)]
        for position, share in enumerate(shares):
            waiting = waiting.plus(share)
            if sum(waiting) >= self.bucket_elements or position == len(shares) - 1:
                found.append((start, self._gather(f"{stage.index}.{len(found)}", waiting)))
                start, waiting = position + 1, LocalParameters(0.0, 0.0)
        return found

    def _awaited(self, stage: Stage) -> Iterator[list[Counted]]:
        """Before each unit, the parameter gather of its bucket."""
        buckets = dict(self._gather_buckets(stage))
        for position in range(len(units(self.rank, stage))):
            yield _as("compute", [Await(launch.tag) for launch in buckets.get(position, [])])

    def epilogue(self, stages: tuple[Stage, ...]) -> list[Counted]:
        """Outstanding gradients, embedding tie, gradient norm, optimizer, parameter gathers, host."""
        ops: list[Operation] = []
        gradients = [Buckets(self, stage) for stage in reversed(stages)]
        launches = [launch for bucket in gradients for launch in bucket.everything()]
        waits = [Await(tag) for bucket in gradients for tag in bucket.tags]
        if self.overlaps_reduction:
            ops += waits
        elif not self.reduces_every_microbatch:
            ops += [*launches, *waits]
        ops += [*self._embedding_tie(stages), *self._copies_tie(stages)]
        optimizer = self._optimizer_kernels(stages)
        if self.rank.training.schedule.synchronous or len(self.stages) == 1:
            optimizer.insert(0, Collective("gradient_norm", "world", "all_reduce", 8.0))
        tail = _as("compute", ops) + _as("optimizer", optimizer)
        if self.optimizer.zero_stage in (1, 2) and not self.optimizer.overlap_param_gather:
            buckets = [bucket for stage in stages for bucket in self._gather_buckets(stage)]
            gathers = [launch for _, launches in buckets for launch in launches]
            tail += _as("compute", [*gathers, *(Await(launch.tag) for launch in gathers)])
        if self.stack.step_overhead:
            tail += _as("host", [Kernel("host", self.stack.step_overhead)])
        return tail

    def _embedding_tie(self, stages: tuple[Stage, ...]) -> list[Operation]:
        """With tied embeddings first and last stage sum their embedding gradients (arXiv 2104.04473, section 2.2)."""
        ends = any(stage.embedding for stage in stages) != any(stage.output for stage in stages)
        if not self.rank.model.tied_embeddings or not ends:
            return []
        elements = self.rank.model.vocab_size * self.rank.model.hidden_size / self.rank.parallelism.tp
        size = elements * BYTES_PER_ELEMENT[self.optimizer.grad_dtype]
        return [Collective("embedding_tie", "embedding", "all_reduce", size)]

    def _copies_tie(self, stages: tuple[Stage, ...]) -> list[Operation]:
        """DualPipe keeps each stage on two ranks, which sum their gradients: what dp has left of them to each rank.

        Limits: neither beside compute nor merged with the reduction over dp.
        """
        if self.rank.training.schedule.kind != "dualpipe":
            return []
        size = self._owned_elements(stages) * BYTES_PER_ELEMENT[self.optimizer.grad_dtype]
        return [Collective("copies_tie", "copies", "all_reduce", size)]

    def _owned_elements(self, stages: tuple[Stage, ...]) -> float:
        """Parameters that this rank's optimizer updates."""
        elements = 0.0
        for stage in stages:
            share, sharded = stage_parameters(self.rank, stage), self.optimizer.zero_stage > 0
            elements += share.dense / ((self.shard_group or self.replicas["dp"]) if sharded else 1)
            elements += share.expert / (self.replicas["edp"] if sharded else 1)
        return elements

    def _optimizer_kernels(self, stages: tuple[Stage, ...]) -> list[Operation]:
        """What becomes of gradients and weights once a step, each a pass over memory.

        Adam reads gradient, master weight and moments, and writes the latter three; 16-bit weights are copied from the
        master. Before it the gradients' norm is taken and they are clipped by it; the sum over data-parallel ranks is
        divided by their number in the whole buffer, which is zeroed for the next step (Megatron-Core,
        `DistributedDataParallel`, `gradient_scaling_factor`, `zero_grad_buffer`; `clip_grad_by_total_norm_fp32`).
        """
        elements = self._owned_elements(stages)
        gradient, weight = BYTES_PER_ELEMENT[self.optimizer.grad_dtype], weight_bytes(self.rank)
        local = sum(sum(stage_parameters(self.rank, stage)) for stage in stages) * gradient
        if self.reduces_every_microbatch:
            local = elements * gradient  # no rank holds the others' gradients
        # a 16-bit weight is a copy of its master; without one the weight itself is read and written
        size = elements * (gradient + 2 * optimizer_bytes(self.rank) + (4 + weight if weight < 4 else 2 * weight))
        passes = {
            "gradient_zero": local,
            "gradient_scale": 2 * local if self.replicas["dp"] > 1 else 0.0,
            "gradient_norm": elements * gradient,
            "gradient_clip": 2 * elements * gradient,
            "optimizer": size,
        }
        accelerator, offloaded = self.rank.accelerator, self.optimizer.offload is not None
        if offloaded:
            del passes["optimizer"]
        kernels = [Kernel(name, memory_bound_time(accelerator, moved)) for name, moved in passes.items() if moved]
        return [*kernels, *(host_step(self.rank, elements) if offloaded else []), *self._weight_casts(stages)]

    def _weight_casts(self, stages: tuple[Stage, ...]) -> list[Operation]:
        """Weights of blocks to fp8 for the next step; ZeRO-3 casts a rank's own part and gathers fp8 (torchao).

        Assumption: behind the optimizer, as stacks that keep fp8 weights do it (Megatron-Core, `--fp8-param-gather`).
        Transformer Engine without them casts in the first microbatch's forward.
        """
        over_dense, over_expert = shards(self.rank) if self.optimizer.zero_stage == 3 else (1, 1)
        shares = [layer_parameters(self.rank, layer) for stage in stages for layer in stage.layers]
        return self.rank.cast(
            "weight.cast", sum(each.dense / over_dense + each.expert / over_expert for each in shares)
        )


class Buckets:
    """Gradients of one stage gathered into buckets in the order in which backward completes them."""

    def __init__(self, bodies: Bodies, stage: Stage) -> None:
        self.bodies, self.stage = bodies, stage
        self.tags: list[str] = []
        self._left = [share for _, share in units(bodies.rank, stage)]
        self._waiting = LocalParameters(0.0, 0.0)
        self._count = 0

    def add_next(self) -> list[Operation]:
        """Add the next unit; launch once the bucket is full, with ZeRO-3 or where nothing is left."""
        share = self._left.pop()
        self._waiting = self._waiting.plus(share)
        full = sum(self._waiting) >= self.bodies.bucket_elements
        return self._launch() if full or self.bodies.optimizer.zero_stage == 3 or not self._left else []

    def everything(self) -> list[Operation]:
        """All buckets of the stage, one after another."""
        ops: list[Operation] = []
        while self._left:
            ops += self.add_next()
        return ops

    def _launch(self) -> list[Operation]:
        launches = self.bodies.gradient_launches(f"{self.stage.index}.{self._count}", self._waiting)
        self._count += 1
        self._waiting = LocalParameters(0.0, 0.0)
        self.tags += [launch.tag for launch in launches]
        return [*launches]
