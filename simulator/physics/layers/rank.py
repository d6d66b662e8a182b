"""What one rank sees of a layer, and the kernels that it can write.

Pinned by tests/physics/layers/test_rank.py.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property

from simulator.physics.kernels.gemm import gemm_bytes, gemm_time
from simulator.physics.kernels.roofline import speed_of_light
from simulator.physics.kernels.streaming import memory_bound_time
from simulator.physics.layers.routing import Routing, route
from simulator.physics.operations import Kernel, Operation
from simulator.scenario.hardware import Accelerator
from simulator.scenario.hosts import Host
from simulator.scenario.parallelism import Parallelism
from simulator.scenario.training import BYTES_PER_ELEMENT, Training
from simulator.scenario.transformer import Transformer


@dataclass(frozen=True)
class Rank:
    """What one rank sees of a layer: the model, its share of it and the machine that it runs on.

    Attributes
    ----------
    context_index, expert_index
        Its place in its cp group and its ep group, where its load depends on them.
    aligned_batches
        Whether batched products run on tensor cores only where their rows are whole 16 bytes (`Stack`).
    fp8_gathers
        Whether fp8 training casts what sequence parallelism gathers before it does (`Stack`).
    fused_loss
        Whether the cross-entropy is one kernel each way.
    host
        Its share of the node, where the optimizer may be offloaded to.
    """

    model: Transformer
    parallelism: Parallelism
    training: Training
    accelerator: Accelerator
    context_index: int = 0
    expert_index: int = 0
    aligned_batches: bool = False
    fp8_gathers: bool = False
    fused_loss: bool = True
    host: Host | None = None

    @property
    def keeps_whole_gradients(self) -> bool:
        """Whether gradients stand whole between microbatches: below ZeRO-2, or put off by `no_sync`."""
        optimizer, batch = self.training.optimizer, self.training.global_batch_size
        several = batch > self.training.micro_batch_size * (self.parallelism.dp or 1)
        return optimizer.zero_stage < 2 or (optimizer.no_sync and several)

    @property
    def tokens(self) -> int:
        """T, tokens of a microbatch on this rank."""
        return self.training.micro_batch_size * self.training.sequence_length // self.parallelism.cp

    @property
    def spread_tokens(self) -> int:
        """Tokens that norms, dropout and residuals see: T / tp under sequence parallelism."""
        return self.tokens // self.parallelism.tp if self.sequence_parallel else self.tokens

    @property
    def sequence_parallel(self) -> bool:
        """Whether norms and residuals are split over tp."""
        return bool(self.parallelism.sequence_parallel) and self.parallelism.tp > 1

    @property
    def element(self) -> int:
        """Bytes of an activation; fp8 training keeps activations in bf16."""
        return max(2, BYTES_PER_ELEMENT[self.training.precision])

    @property
    def gathered_element(self) -> int:
        """Bytes of an element that sequence parallelism gathers for a linear inside a block."""
        return 1 if self.fp8_gathers and self.gemm_dtype == "fp8" else self.element

    @property
    def context_is_uneven(self) -> bool:
        """Whether ranks of a cp group have unequal shares of causal attention."""
        return self.parallelism.cp > 1 and self.training.cp_split == "contiguous"

    @cached_property
    def routing(self) -> Routing:
        """Where the token copies of this rank's routers go; only asked of a model with experts."""
        moe = self.model.moe
        assert moe is not None
        return route(
            self.spread_tokens * moe.top_k,
            moe.num_experts,
            self.parallelism.ep,
            imbalance=self.training.expert_imbalance,
            capacity_factor=self.training.expert_capacity_factor,
            padded=self.training.expert_padding,
        )

    @property
    def expert_loads(self) -> tuple[float, ...] | None:
        """Copies that each rank of an ep group receives, over their mean; None where all receive as many."""
        return None if self.model.moe is None else self.routing.loads

    @property
    def expert_load(self) -> float:
        """Copies that this rank's experts receive, over the mean of its ep group."""
        loads = self.expert_loads
        return 1.0 if loads is None else loads[self.expert_index]

    @property
    def gemm_dtype(self) -> str:
        """Precision of the GEMMs inside blocks."""
        return self.training.precision

    @property
    def sensitive_dtype(self) -> str:
        """Precision of attention, router and output layer: fp8 recipes keep them in bf16.

        Source: DeepSeek-V3, arXiv 2412.19437, section 3.3.1.
        """
        return "bf16" if self.training.precision == "fp8" else self.training.precision

    @property
    def heads(self) -> int:
        """Attention heads on this rank."""
        return self.model.num_attention_heads // self.parallelism.tp

    @property
    def query_groups(self) -> int:
        """Key-value heads on this rank; replicated once there are fewer than tp."""
        return max(1, self.model.num_query_groups // self.parallelism.tp)

    def gemm(
        self,
        name: str,
        m: int,
        n: int,
        k: int,
        *,
        groups: int = 1,
        wgrad: bool = False,
        dtype: str | None = None,
        flops: float | None = None,
        tensor_cores: bool = True,
    ) -> Kernel:
        """A GEMM of `groups` equal problems (m, n, k).

        A weight gradient is added to its buffer, which costs more where that is fp32. `flops` is what counts, where
        that is less than the machine executes.
        """
        acc, number = self.accelerator, dtype or self.gemm_dtype
        fp32 = wgrad and self.training.optimizer.grad_dtype == "fp32"
        seconds = gemm_time(
            acc, number, m, n, k, groups=groups, accumulate_fp32=fp32, weight_gradient=wgrad, tensor_cores=tensor_cores
        )
        executed = 2.0 * m * n * k * groups
        light = speed_of_light(acc, number, executed, gemm_bytes(number, m, n, k, groups=groups, accumulate_fp32=fp32))
        return Kernel(name, seconds, executed if flops is None else flops, light)

    def move(self, name: str, elements: float, *, kind: str = "elementwise", element: float | None = None) -> Kernel:
        """A memory-bound kernel of a kind (`physics.kernels.KINDS`) that reads and writes `elements` in all."""
        size = elements * (self.element if element is None else element)
        seconds = memory_bound_time(self.accelerator, size, kind)
        return Kernel(name, seconds, 0.0, size / self.accelerator.memory_bandwidth)

    def cast(self, name: str, elements: float) -> list[Operation]:
        """What fp8 training does to an operand before its GEMMs: read in bf16, written in fp8 straight and transposed.

        Hopper's fp8 tensor cores take no transposed operands, so that the weight gradient needs the other copy (NVIDIA,
        Transformer Engine, `cast_transpose`). Weights are cast so, too, once a step (`Bodies`).
        """
        return [self.move(name, 4.0 * elements, kind="cast", element=1.0)] if self.gemm_dtype == "fp8" else []


@dataclass(frozen=True)
class Linear:
    """A matrix multiplication with its gradients: (m × k) by (k × n), `groups` times.

    Attributes
    ----------
    dtype
        None is the recipe's precision.
    rows
        The true number of rows (m) of all groups together, where they do not divide evenly: FLOPs count these.
    n_multiple
        The stack pads n to a multiple of this: time counts the padding, FLOPs do not.
    """

    name: str
    m: int
    n: int
    k: int
    groups: int = 1
    dtype: str | None = None
    rows: int | None = None
    n_multiple: int = 1

    @property
    def _width(self) -> int:
        return -(-self.n // self.n_multiple) * self.n_multiple

    @property
    def _flops(self) -> float:
        return 2.0 * (self.m * self.groups if self.rows is None else self.rows) * self.n * self.k

    def forward(self, rank: Rank) -> Kernel:
        """Return the output."""
        kernel = rank.gemm(
            self.name, self.m, self._width, self.k, groups=self.groups, dtype=self.dtype, flops=self._flops
        )
        return kernel._replace(products=self.groups)

    def forward_casts(self, rank: Rank) -> list[Operation]:
        """Casts before `forward`: the input's."""
        return [] if self.dtype else rank.cast(f"{self.name}.cast", float(self.m * self.groups * self.k))

    def backward(self, rank: Rank) -> list[Operation]:
        """Return the gradients of input and weight, with the cast of the output's before them."""
        m, n, k, groups, dtype, flops = self.m, self._width, self.k, self.groups, self.dtype, self._flops
        casts = [] if dtype else rank.cast(f"{self.name}.grad_cast", float(m * groups * n))
        gemms = (
            rank.gemm(f"{self.name}.dgrad", m, k, n, groups=groups, dtype=dtype, flops=flops),
            rank.gemm(f"{self.name}.wgrad", n, k, m, groups=groups, dtype=dtype, flops=flops, wgrad=True),
        )
        return [*casts, *(gemm._replace(products=groups) for gemm in gemms)]


def forwards(rank: Rank, linears: Iterable[Linear]) -> list[Operation]:
    """Forward of several linears; those of one input and width, one after another, share its cast."""
    ops: list[Operation] = []
    seen: tuple[int, int, int] | None = None
    for linear in linears:
        reads = (linear.m, linear.k, linear.groups)
        ops += [*([] if reads == seen else linear.forward_casts(rank)), linear.forward(rank)]
        seen = reads
    return ops
