"""The accelerator: what it could do, and what its kernels were measured to do.

A datasheet gives peaks; the `kernels` of an accelerator hold the few numbers with which
`simulator/physics/kernels/` turns a shape into a time. They are fitted by `benchmarks/fit_kernels.py` to
published timings, and each fit keeps its number of rows and its error, in sample and cross-validated.
An accelerator nobody has published timings for carries a prior: `fit` is then absent and `source` says where
the numbers come from.

Conventions. Peaks are dense (the 2:4 sparse figure is twice as high), bandwidths are per direction and
decimal, `memory` is what PyTorch reports as the device's total memory (about 1 % under the 80 GiB of an
"80 GB" card: the driver and ECC keep the rest), or the datasheet's decimal figure where no report is known.

Clocks that fall under load are one number of a GEMM (`throttle`). Not modelled: temperature, sparsity.

Pinned by tests/scenario/test_hardware.py.
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Literal, TypeAlias

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator

from simulator.errors import ScenarioError
from simulator.scenario.units import BandwidthField, BytesField, FlopsField, FrequencyField, PowerField, SecondsField

Dtype: TypeAlias = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "fp4", "int8"]
Fraction: TypeAlias = Annotated[float, Field(gt=0, le=1)]

ENTRY_SUFFIXES = (".yaml", ".yml")
"""An accelerator whose name ends so is a file that `trainsim calibrate` wrote."""

CATALOGUE = Path(__file__).parent / "catalogue" / "accelerators.yaml"


class _Description(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Fit(_Description):
    """How well a kernel model reproduces the rows that it was fitted to.

    Errors are |predicted / measured - 1|. `cross_validated_error` is the median over rows that the fit did not see, a
    fifth at a time; `other_source_error` the median over rows of a source that the fit did not see, where there are
    several.
    """

    rows: int = Field(gt=0)
    median_abs_error: float = Field(ge=0)
    p90_abs_error: float = Field(ge=0)
    cross_validated_error: float = Field(ge=0)
    other_source_error: float | None = Field(default=None, ge=0)


class Gemm(_Description):
    """Matrix multiplication: parameters of `physics.kernels.gemm_time`.

    Attributes
    ----------
    efficiency
        Share of the dense peak that a full wave of the largest tiles reaches in its main loop.
    launch
        Seconds before and after the main loop of the smallest kernel.
    k_padding
        Steps of k that a tile's prologue and epilogue cost.
    bandwidth_fraction
        Share of the memory bandwidth that a memory-bound GEMM reaches.
    tile_efficiency
        Speed of a tile relative to the largest, by its area (rows x columns of the output).
    quantisation
        What an unfilled last wave of tiles costs, as a share of a full one.
    throttle
        How much longer compute takes once the chip has reached its power limit, as a share.
    accumulate_fp32_factor
        Time of a weight-gradient GEMM that adds to an fp32 buffer, over that of a plain one.
    """

    efficiency: Fraction
    launch: SecondsField
    k_padding: float = Field(ge=0)
    bandwidth_fraction: Fraction
    tile_efficiency: dict[int, Fraction] = Field(min_length=1)
    quantisation: float = Field(default=1.0, ge=0, le=1)
    throttle: float = Field(default=0.0, ge=0)
    accumulate_fp32_factor: float = Field(ge=1)
    fit: Fit | None = None
    source: str


class Attention(_Description):
    """Fused attention: parameters of `physics.kernels.attention_time`.

    Attributes
    ----------
    forward_efficiency, backward_efficiency
        Share of the dense peak for long sequences and heads of 128.
    kv_padding
        Keys' worth of time that each tile of queries costs beyond the keys it sees: the sequence length at which
        the efficiency halves.
    head_dim_efficiency
        Efficiency by head size, relative to 128; interpolated between, constant beyond.
    launch
        Seconds, as for `Gemm`.
    """

    forward_efficiency: Fraction
    backward_efficiency: Fraction
    kv_padding: float = Field(ge=0)
    head_dim_efficiency: dict[int, float] = Field(min_length=1)
    launch: SecondsField
    fit: Fit | None = None
    source: str

    @model_validator(mode="after")
    def _below_peak(self) -> Attention:
        best = max(self.forward_efficiency, self.backward_efficiency) * max(self.head_dim_efficiency.values())
        if best > 1 or min(self.head_dim_efficiency.values()) <= 0:
            raise ValueError(
                f"head_dim_efficiency {self.head_dim_efficiency} must be positive and, times the forward and the "
                f"backward efficiency, at most 1 (here {best:.3g}): no kernel beats the peak"
            )
        return self


class Kernels(_Description):
    """Measured speed of an accelerator's kernels.

    Attributes
    ----------
    gemm
        By dtype. A dtype without an entry borrows its neighbour's efficiencies (`physics.kernels`).
    attention
        By implementation (`flash1`, `flash2`, `flash3`, `cudnn`, `triton`, `trtllm`) and dtype.
    default_attention
        The implementation of the training stacks of the accelerator's time.
    memory_bandwidth_fraction, memory_launch, memory_source
        Streaming kernels: share of the memory bandwidth for large arrays, seconds of fixed cost, where from. Half
        the bandwidth is reached at `memory_launch x memory_bandwidth_fraction x memory_bandwidth` bytes.
    memory_kinds
        Share of the memory bandwidth of a kind of kernel (`physics.kernels.streaming.KINDS`) that was measured on this
        accelerator; the others follow `memory_bandwidth_fraction`.
    """

    gemm: dict[Dtype, Gemm] = Field(min_length=1)
    attention: dict[str, dict[Dtype, Attention]] = Field(min_length=1)
    default_attention: str
    memory_bandwidth_fraction: Fraction
    memory_launch: SecondsField
    memory_source: str
    memory_kinds: dict[str, Fraction] = {}

    @model_validator(mode="after")
    def _default_is_known(self) -> Kernels:
        if self.default_attention not in self.attention:
            raise ValueError(
                f"default_attention {self.default_attention!r} is not an implementation in `attention`; "
                f"allowed: {', '.join(self.attention)}"
            )
        return self


class Accelerator(_Description):
    """One accelerator: datasheet peaks and measured kernels.

    Attributes
    ----------
    peak_flops
        Dense peak by dtype. [FLOP/s]
    memory
        Usable device memory (see the module docstring). [B]
    memory_bandwidth
        Peak. [B/s]
    sm_count
        Units that a kernel's tiles are dealt to: streaming multiprocessors, compute units, matrix units of a TPU.
    clock
        Boost clock. [Hz]
    scale_up_bandwidth
        To the other accelerators of its scale-up domain, all links together, per direction. [B/s]
    tdp
        Thermal design power. [W]
    like
        An accelerator of the catalogue whose collectives it shares, where it is not in the catalogue itself.
    sustained
        Share of the dense peak that matrix products keep up in training: the clock falls until the power cap is met,
        which benchmarks of single kernels are too short, or their inputs too regular, to show.
    """

    name: str
    vendor: str
    aliases: tuple[str, ...] = ()
    peak_flops: dict[Dtype, FlopsField] = Field(min_length=1)
    memory: BytesField
    memory_bandwidth: BandwidthField
    sm_count: int = Field(gt=0)
    clock: FrequencyField
    scale_up_bandwidth: BandwidthField
    tdp: PowerField
    sustained: Fraction = 1.0
    like: str | None = None
    kernels: Kernels
    source: str

    def __hash__(self) -> int:
        # Kernel times are cached by accelerator; equal accelerators have equal names.
        return hash(self.name)


@cache
def _catalogue() -> MappingProxyType[str, Accelerator]:
    with CATALOGUE.open(encoding="utf-8") as stream:
        document = yaml.safe_load(stream)
    table: dict[str, Accelerator] = {}
    for name, fields in document["accelerators"].items():
        accelerator = Accelerator.model_validate({"name": name, **fields})
        for key in (name, *accelerator.aliases):
            assert key not in table, f"{key!r} names two accelerators"
            table[key] = accelerator
    return MappingProxyType(table)


def read_accelerators() -> dict[str, Accelerator]:
    """Every accelerator of the shipped catalogue, by lower-case name and by alias."""
    return dict(_catalogue())


@cache
def _read_entry(path: str) -> Accelerator:
    """The accelerator of a file that `trainsim calibrate` wrote."""
    try:
        document = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
        ((name, fields),) = document["accelerators"].items()
        return Accelerator.model_validate({"name": name, **fields})
    except OSError as error:
        raise ScenarioError(f"cannot be read: {error.strerror}", file=path) from error
    except (KeyError, TypeError, ValueError, AttributeError, yaml.YAMLError) as error:
        reason = f"is not one accelerator as `trainsim calibrate` writes it: {error}"
        raise ScenarioError(reason, file=path) from error


def find_accelerator(name: str) -> Accelerator:
    """The accelerator of that name or alias, whose case does not matter, or of that .yaml file.

    Raises
    ------
    ScenarioError
        For an unknown name; the message lists the known ones. For a file that cannot be read or holds none.
    """
    if name.endswith(ENTRY_SUFFIXES):
        return _read_entry(name)
    table = _catalogue()
    if name.lower() not in table:
        names = sorted({accelerator.name for accelerator in table.values()})
        raise ScenarioError(f"{name!r} is not an accelerator of the catalogue; known: {', '.join(names)}")
    return table[name.lower()]
