"""Memory-bound kernels: bytes over an achieved share of bandwidth, plus a launch.

Idea
----
A kernel that only moves bytes takes launch + bytes / (share x bandwidth): small arrays are launch, half the bandwidth
is reached at launch x share x bandwidth bytes. The share of large arrays is the accelerator's (BabelStream and its
like), times a factor of the kind of kernel: reductions along a row, scattered rows and casts reach less.

Limits: a cache that holds the array makes it faster; a kind is as good on every accelerator, relative to plain copies.

Pinned by tests/physics/test_kernels.py.
"""

from __future__ import annotations

from simulator.errors import ScenarioError
from simulator.scenario.hardware import Accelerator
from simulator.scenario.units import Bytes, Seconds

KINDS: dict[str, float] = {
    # adds, GELU, SwiGLU, dropout, rotary. Of an A100's 2.04 TB/s: residual add 0.88 (microsoft/vidur), GELU 0.77
    # (PrincetonUniversity/LLMCompass); of 1.56: residual 0.87 (karpathy/llm.c issue 378)
    "elementwise": 1.0,
    # A100: LayerNorm 0.42 to 0.75 (LLMCompass), 0.61 to 0.69 (llm.c issue 378), 0.53 to 0.62 (issue 645): 0.6 of 0.79
    "norm": 0.76,
    # A100: about 0.75 of DRAM throughput in llm.c's best kernel (issue 378), which adds up the weights' gradients; a
    # row is read twice. Assumption: 0.5 of 0.79 altogether
    "norm_grad": 0.63,
    # A100: 0.82 to 1.1 TB/s, 0.40 to 0.54 of peak (LLMCompass); fitted to PyTorch's attention on A100 and H100
    # without a mask (Dao-AILab/flash-attention, charts)
    "softmax": 0.5,
    # scaled, masked softmax of training stacks: a warp keeps its row in registers, so that each element is read and
    # written once (Megatron-LM, scaled_upper_triang_masked_softmax). Assumption: as plain copies, and no credit for
    # skipping masked reads
    "fused_softmax": 1.0,
    # A100: 0.81 (MooreThreads/SimuMax a100_pcie.json); B200: 0.33 (SimuMax b200_bf16_ceperm.json). Between the two
    "cross_entropy": 0.75,
    # encoder forward 0.78 (llm.c issue 378)
    "embedding": 1.0,
    # scattered rows. B200: 0.50 to 0.51 (SimuMax b200_bf16_ceperm.json); A100 0.19 of an older stack (a100_pcie.json)
    "permute": 0.63,
    # bf16 to fp8 with a scale. Fitted to timings with and without it (ai-dynamo/aiconfigurator): H100, H200, B200
    # 0.38 to 0.46 of peak
    "cast": 0.48,
    # Adam over many tensors at once. Assumption: as plain copies; no published table was found
    "optimizer": 1.0,
}
"""Achieved bandwidth of a kind of kernel over the accelerator's for plain copies."""


def memory_bound_time(acc: Accelerator, size_bytes: Bytes, kind: str = "elementwise") -> Seconds:
    """Time of a streaming kernel that reads and writes `size_bytes` altogether.

    Parameters
    ----------
    kind
        A key of `KINDS`.

    Raises
    ------
    ScenarioError
        For an unknown kind.
    """
    if kind not in KINDS:
        raise ScenarioError(f"no kind of memory-bound kernel {kind!r}; allowed: {', '.join(KINDS)}")
    kernels = acc.kernels
    share = kernels.memory_kinds.get(kind, KINDS[kind] * kernels.memory_bandwidth_fraction)
    return kernels.memory_launch + size_bytes / (share * acc.memory_bandwidth)
