"""The bench of an NVIDIA or AMD GPU: PyTorch's own kernels, timed by events on the device.

Pinned by tests/calibrate/test_calibrate.py as far as that goes without a GPU.
"""

from __future__ import annotations

from collections.abc import Callable
from statistics import median
from typing import Any

from simulator.errors import ScenarioError
from simulator.scenario.units import Bytes, Seconds

_WARM_UP = 5
_REPEATS = 20


def open_bench() -> TorchBench:
    """The bench of this machine.

    Raises
    ------
    ScenarioError
        Without PyTorch or without a GPU that it can use.
    """
    try:
        import torch
    except ImportError:
        raise ScenarioError(
            "calibration needs PyTorch, which is not installed: pip install 'trainsim[calibrate]'", field="calibrate"
        ) from None
    if not torch.cuda.is_available():
        raise ScenarioError(
            "calibration needs a GPU, and PyTorch sees none here; run it on the machine to be measured",
            field="calibrate",
        )
    return TorchBench(torch)


class TorchBench:
    """Times kernels of PyTorch on GPU 0, and collectives over all GPUs of this machine."""

    def __init__(self, torch: Any) -> None:
        self._torch = torch
        self.name = str(torch.cuda.get_device_name(0))
        self.gpus = int(torch.cuda.device_count())

    def _time(self, run: Callable[[], Any]) -> Seconds:
        torch = self._torch
        for _ in range(_WARM_UP):
            run()
        times = []
        for _ in range(_REPEATS):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            start.record()
            run()
            end.record()
            end.synchronize()
            times.append(start.elapsed_time(end) * 1e-3)
        return float(median(times))

    def _random(self, *shape: int, dtype: str = "bf16") -> Any:
        torch = self._torch
        kinds = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
        return torch.randn(*shape, device="cuda:0", dtype=kinds[dtype])

    def gemm(self, dtype: str, m: int, n: int, k: int) -> Seconds:
        """Product with the weight's rows along k, as a linear layer has them."""
        inputs, weight = self._random(m, k, dtype=dtype), self._random(n, k, dtype=dtype)
        return self._time(lambda: self._torch.nn.functional.linear(inputs, weight))

    def attention(self, batch: int, heads: int, length: int, head_dim: int, *, backward: bool) -> Seconds:
        """PyTorch's scaled dot product attention, causal; backward alone is the difference of both and forward."""
        torch = self._torch
        parts = [self._random(batch, heads, length, head_dim).requires_grad_(backward) for _ in range(3)]

        def forward() -> Any:
            return torch.nn.functional.scaled_dot_product_attention(*parts, is_causal=True)

        if not backward:
            return self._time(forward)
        output = forward()
        gradient = torch.randn_like(output)
        return self._time(lambda: torch.autograd.grad(output, parts, gradient, retain_graph=True))

    def stream(self, kind: str, size: Bytes) -> Seconds:
        """A kernel that reads and writes half of `size` each."""
        functional, width = self._torch.nn.functional, 4096
        array = self._random(max(1, int(size / 4 / width)), width)
        runs: dict[str, Callable[[], Any]] = {
            "elementwise": lambda: functional.gelu(array),
            "norm": lambda: functional.layer_norm(array, (width,)),
            "softmax": lambda: functional.softmax(array, dim=-1),
        }
        return self._time(runs[kind])

    def adam(self, parameters: int) -> Seconds:
        """One step of PyTorch's fused Adam in fp32."""
        torch = self._torch
        weights = [torch.zeros(parameters // 10, device="cuda:0", requires_grad=True) for _ in range(10)]
        for weight in weights:
            weight.grad = torch.zeros_like(weight)
        optimizer = torch.optim.Adam(weights, fused=True)
        return self._time(optimizer.step)

    def all_reduce(self, size: Bytes) -> Seconds:
        """NCCL's all-reduce of one buffer a GPU, in this process."""
        torch = self._torch
        buffers = [torch.zeros(int(size / 2), device=f"cuda:{gpu}", dtype=torch.bfloat16) for gpu in range(self.gpus)]
        return self._time(lambda: torch.cuda.nccl.all_reduce(buffers))
