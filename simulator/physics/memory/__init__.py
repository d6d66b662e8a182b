"""Bytes per GPU: weights, gradients, optimizer state, activations, buffers, and what the allocator adds.

`states` is what ZeRO shards, `activations` what a layer keeps, `working` what comes and goes, `ranks` puts a pipeline
rank together at its worst moment, `capacity` says whether it fits.

Three totals. `allocated`: the peak of what PyTorch's tensors take (`torch.cuda.max_memory_allocated`). `reserved`: with
what its allocator holds and cannot use (`max_memory_reserved`). `device`: with CUDA context and NCCL (`nvidia-smi`).

Limits: tensors live as long as they must, not as a traced run frees them; one moment is the worst for all parts.
Pinned by tests/physics/test_memory.py: ZeRO's 7.5B table and the formulas of arXiv 2205.05198 exactly.
"""

from simulator.physics.memory.activations import layer_activations, logits_elements, stage_activations
from simulator.physics.memory.capacity import check_capacity
from simulator.physics.memory.ranks import StageMemory, job_memory, rank_memory
from simulator.physics.memory.states import MOMENTS, model_state_bytes, optimizer_bytes, weight_bytes
from simulator.physics.memory.working import COMMUNICATOR_BYTES, CONTEXT_BYTES

__all__ = [
    "COMMUNICATOR_BYTES",
    "CONTEXT_BYTES",
    "MOMENTS",
    "StageMemory",
    "check_capacity",
    "job_memory",
    "layer_activations",
    "logits_elements",
    "model_state_bytes",
    "optimizer_bytes",
    "rank_memory",
    "stage_activations",
    "weight_bytes",
]
