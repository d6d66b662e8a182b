"""How fast a software stack lets the kernels of a rank run: its efficiency, its host, and the slowest of the ranks.

A stack's factor stretches every kernel. The host hands kernels over one at a time, so that an action takes at least as
long as its launches; CUDA graphs hand all of them over at once. And every collective waits for the slowest of its
members: speeds vary a little from rank to rank and from moment to moment, so the time of a kernel grows by the expected
maximum over the ranks (`Stack.straggling`).

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
    straggling
        Waiting for the slowest rank, over kernel time.
    sustained
        Share of the dense peak that matrix products keep up for seconds, at the clock that the power cap leaves.
    """

    efficiency: float = 1.0
    launch: Seconds = 0.0
    straggling: float = 0.0
    sustained: float = 1.0

    def kernel(self, kernel: Kernel) -> Seconds:
        """Seconds of a kernel on a healthy GPU."""
        seconds = max(kernel.seconds, kernel.light / self.sustained) if kernel.flops else kernel.seconds
        return seconds / self.efficiency


IDEAL = Pace()
"""No factor, no host, no jitter."""


def pace_of(scenario: Scenario) -> Pace:
    """The pace of a scenario's stack on its GPUs."""
    stack = scenario.stack
    switch = scenario.training.cuda_graphs
    graphs = stack.cuda_graphs if switch is None else switch
    launch = 0.0 if graphs else stack.launch_overhead
    sustained = scenario.accelerator.sustained
    return Pace(stack.compute_efficiency, launch, stack.straggling(scenario.gpus), sustained)


_WITH: dict[tuple[str, str, float], tuple[Accelerator, Accelerator]] = {}


def with_attention(accelerator: Accelerator, stack: Stack) -> Accelerator:
    """The accelerator with a stack's fused attention as its default, where that was measured on it.

    Equal questions have the same object as their answer, because kernel times are cached by accelerator.
    """
    kernels, slowdown = accelerator.kernels, stack.attention_slowdown
    wanted = stack.attention_kernel or kernels.default_attention
    name = wanted if wanted in kernels.attention else kernels.default_attention
    if name == kernels.default_attention and slowdown == 1:
        return accelerator
    key = (accelerator.name, name, slowdown)
    if key not in _WITH or _WITH[key][0] is not accelerator:
        slower = {dtype: _slower(attention, slowdown) for dtype, attention in kernels.attention[name].items()}
        changed = {"default_attention": name, "attention": {**kernels.attention, name: slower}}
        _WITH[key] = accelerator, accelerator.model_copy(update={"kernels": kernels.model_copy(update=changed)})
    return _WITH[key][1]


def _slower(attention: Attention, slowdown: float) -> Attention:
    return attention.model_copy(
        update={
            "forward_efficiency": attention.forward_efficiency / slowdown,
            "backward_efficiency": attention.backward_efficiency / slowdown,
        }
    )
