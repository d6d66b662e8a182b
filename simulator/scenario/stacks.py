"""Software stacks: what a training framework does by itself, one entry per framework in catalogue/stacks.yaml.

The same configuration moves by tens of per cent between frameworks and releases. What of that has a mechanism is told
by switches (overlap, buckets, blocking messages) and by host terms; what is left is `compute_efficiency`, one factor on
the kernel times of all scenarios of the stack, fitted to published runs.

Pinned by tests/scenario/test_stacks.py.
"""

from __future__ import annotations

import math
from functools import cache
from pathlib import Path
from typing import Annotated, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from simulator.scenario.memory_habits import MemoryHabits
from simulator.scenario.units import SecondsField

CATALOGUE = Path(__file__).parent / "catalogue" / "stacks.yaml"

Share = Annotated[float, Field(ge=0, le=1)]


class Habits(BaseModel):
    """What users of a stack leave at its defaults: fills what a row of measured runs does not say."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    zero_stage: Annotated[int, Field(ge=0, le=3)] = 0
    recompute: Literal["none", "selective", "full"] = "none"
    attention: Literal["flash", "unfused"] = "flash"
    grad_dtype: Literal["fp32", "bf16", "fp16", "auto"] = "fp32"
    param_gather_dtype: Literal["fp32", "fp16", "bf16", "fp8"] | None = None
    overlap_grad_reduce: bool = True
    overlap_param_gather: bool = False
    dropout: bool = False
    sequence_parallel: bool = True
    expert_capacity_factor: float | None = Field(default=None, gt=0)
    expert_padding: bool = False
    tied_embeddings: bool | None = None
    pxn: bool = True
    stages: Literal["equal", "by_cost"] = "equal"


class FactorFit(BaseModel):
    """How well `compute_efficiency` brings the runs that it was fitted to in line."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    rows: int = Field(gt=0)
    mape: float = Field(ge=0)
    bias: float


class Stack(BaseModel):
    """One software stack; the fields are explained at the top of catalogue/stacks.yaml."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    software: tuple[str, ...] = ()
    blocking_p2p: bool
    scatter_gather: bool
    grad_bucket_elements: int = Field(gt=0)
    grad_bucket_elements_per_replica: int = Field(ge=0)
    overlap_slowdown: float = Field(ge=1)
    step_overhead: SecondsField
    compute_efficiency: float = Field(default=1.0, gt=0.1, lt=2)
    launch_overhead: SecondsField = 0.0
    launch_blocking_gpus: int | None = Field(default=None, gt=0)
    aligned_batches: bool = False
    collective_check: SecondsField = 0.0
    cuda_graphs: bool = False
    tp_overlap: Share = 0.0
    fused_accumulation: bool = True
    zero1: Literal["scattered", "summed", "summed_fp32", "owned"] = "scattered"
    fused_casts: bool = False
    fp8_gathers: bool = False
    cross_entropy: Literal["fused", "unfused"] = "fused"
    selective: Literal["core", "half"] = "core"
    dispatcher: Literal["alltoall", "deepep"] = "alltoall"
    expert_launch: SecondsField = 0.0
    expert_sync: SecondsField = 0.0
    attention_kernel: str | None = None
    attention_slowdown: float = Field(default=1.0, ge=1, lt=4)
    untuned_gemm: dict[str, Annotated[float, Field(ge=1, lt=4)]] = {}
    jitter: float = Field(default=0.0, ge=0, lt=0.2)
    habits: Habits = Habits()
    memory: MemoryHabits = MemoryHabits()
    fit: FactorFit | None = None
    prior: str | None = None
    pipelined: str | None = None
    source: str

    def straggling(self, ranks: int) -> float:
        """Waiting for the slowest of `ranks` ranks, over the mean time of a kernel.

        The expected maximum of n normal deviates of standard deviation sigma is sigma * sqrt(2 ln n), for large n and
        from above (Boucheron, Lugosi and Massart, Concentration Inequalities, theorem 2.5).
        """
        return self.jitter * math.sqrt(2 * math.log(ranks)) if ranks > 1 else 0.0


@cache
def read_stacks() -> dict[str, Stack]:
    """Every stack of the catalogue by name."""
    entries = yaml.safe_load(CATALOGUE.read_text(encoding="utf-8"))
    return {entry["name"]: Stack.model_validate(entry) for entry in entries}


def find_stack(software: str) -> Stack | None:
    """The stack with the longest `software` prefix of a name such as "Megatron-LM 2022"; None if there is none."""
    wanted = software.strip().lower()
    best: tuple[int, Stack | None] = (0, None)
    for stack in read_stacks().values():
        for prefix in stack.software:
            if wanted.startswith(prefix.lower()) and len(prefix) > best[0]:
                best = len(prefix), stack
    return best[1]
