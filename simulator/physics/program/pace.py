"""How fast a software stack lets the kernels of a rank run: its efficiency, its host, and the slowest of the ranks.

A stack's factor stretches every kernel. The host hands kernels over one at a time, so that an action takes at least as
long as its launches; CUDA graphs hand all of them over at once. Where the host waits for each kernel before it turns to
the next (CUDA_LAUNCH_BLOCKING), launches come on top of the kernels. And every collective waits for the slowest of its
members: speeds vary a little from rank to rank and from moment to moment, so the time of a kernel grows by the expected
maximum over the ranks (`Stack.straggling`). Where a stack has PyTorch compare every collective among its members
before it starts (TORCH_DISTRIBUTED_DEBUG=DETAIL), the host waits for each member in turn.

Limits: the launches of one action do not hide behind the previous action's kernels; jitter is that of the whole job
also where only a small group waits. Pinned by tests/physics/program/test_pace.py.
"""

from __future__ import annotations

from typing import NamedTuple

from simulator.physics.operations import Kernel
from simulator.scenario.hardware import Accelerator, Attention
from simulator.scenario.scenario import Scenario
from simulator.scenario.stacks import Stack
from simulator.scenario.units import Seconds


class Pace(NamedTuple):
    """What a stack does to kernels.

    Attributes
    ----------
    efficiency
        Expected kernel time over the time with this stack.
    launch
        Host seconds for one kernel or collective.
    blocking
        Whether the GPU idles while the host launches.
    straggling
        Waiting for the slowest rank, over kernel time.
    product
        Host seconds for one expert's product beyond the first of a kernel.
    sustained
        Share of the dense peak that matrix products keep up for seconds, at the clock that the power cap leaves.
    check
        Host seconds for each member of a collective's group, before it is put under way.
    """

    efficiency: float = 1.0
    launch: Seconds = 0.0
    blocking: bool = False
    straggling: float = 0.0
    sustained: float = 1.0
    product: Seconds = 0.0
    check: Seconds = 0.0

    def kernel(self, kernel: Kernel) -> Seconds:
        """Seconds of a kernel on a healthy GPU."""
        seconds = max(kernel.seconds, kernel.light / self.sustained) if kernel.flops else kernel.seconds
        return seconds / self.efficiency


IDEAL = Pace()
"""No factor, no host, no jitter."""


def pace_of(scenario: Scenario) -> Pace:
    """The pace of a scenario's stack on its GPUs.

    A graph cannot hold a mixture that drops nothing: how much its kernels have to do is known only when they start.
    """
    stack, training = scenario.stack, scenario.training
    switch = training.cuda_graphs
    dropless = scenario.model.moe is not None and not training.expert_padding
    graphs = stack.cuda_graphs and not dropless if switch is None else switch
    launch, product = (0.0, 0.0) if graphs else (stack.launch_overhead, stack.expert_launch)
    sustained = scenario.accelerator.sustained
    blocking = stack.launch_blocking_gpus is not None and scenario.gpus >= stack.launch_blocking_gpus
    check = stack.collective_check if scenario.gpus > scenario.cluster.topology.gpus_per_node else 0.0
    return Pace(stack.compute_efficiency, launch, blocking, stack.straggling(scenario.gpus), sustained, product, check)


_WITH: dict[tuple[str, str, float, float], tuple[Accelerator, Accelerator]] = {}

_HALVES = ("bf16", "fp16")


def with_kernels(accelerator: Accelerator, stack: Stack) -> Accelerator:
    """The accelerator with a stack's own kernels: fused attention, and matrix products where its libraries are older.

    Equal questions have the same object as their answer, because kernel times are cached by accelerator.
    """
    kernels, slowdown = accelerator.kernels, stack.attention_slowdown
    wanted = stack.attention_kernel or kernels.default_attention
    name = wanted if wanted in kernels.attention else kernels.default_attention
    untuned = stack.untuned_gemm.get(accelerator.name, 1.0)
    if name == kernels.default_attention and slowdown == 1 and untuned == 1:
        return accelerator
    key = (accelerator.name, name, slowdown, untuned)
    if key not in _WITH or _WITH[key][0] is not accelerator:
        slower = {dtype: _slower(attention, slowdown) for dtype, attention in kernels.attention[name].items()}
        products = {
            dtype: gemm.model_copy(update={"efficiency": gemm.efficiency / untuned}) if dtype in _HALVES else gemm
            for dtype, gemm in kernels.gemm.items()
        }
        changed = {"default_attention": name, "attention": {**kernels.attention, name: slower}, "gemm": products}
        _WITH[key] = accelerator, accelerator.model_copy(update={"kernels": kernels.model_copy(update=changed)})
    return _WITH[key][1]


def _slower(attention: Attention, slowdown: float) -> Attention:
    return attention.model_copy(
        update={
            "forward_efficiency": attention.forward_efficiency / slowdown,
            "backward_efficiency": attention.backward_efficiency / slowdown,
        }
    )
