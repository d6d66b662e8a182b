"""Time of one kernel on one accelerator: what it should take and what it could never beat.

`gemm` and `attention` cut their work into tiles that are dealt to the streaming multiprocessors, `streaming` moves
bytes; `roofline` is the bound of all three. Parameters are described in `simulator/scenario/hardware.py`; their fits,
with errors, are in the catalogue, made by benchmarks/fit_kernels.py.

Pinned by tests/physics/test_kernels.py.
"""

from simulator.physics.kernels.attention import BACKWARD_FLOPS, attention_bytes, attention_flops, attention_time
from simulator.physics.kernels.gemm import gemm_bytes, gemm_time, gemm_times
from simulator.physics.kernels.roofline import ITEM_SIZE, speed_of_light
from simulator.physics.kernels.streaming import KINDS, memory_bound_time

__all__ = [
    "BACKWARD_FLOPS",
    "ITEM_SIZE",
    "KINDS",
    "attention_bytes",
    "attention_flops",
    "attention_time",
    "gemm_bytes",
    "gemm_time",
    "gemm_times",
    "memory_bound_time",
    "speed_of_light",
]
