"""Measured GEMMs and attention kernels: rows of a table, and the time that we predict.

Idea
----
The header tells a table of GEMMs (`m`, `n`, `k`) from one of attention (`seqlen`, `pass`). A row names hardware and
implementation in words that `HARDWARE` and `IMPLEMENTATIONS` turn into names of the catalogue. Each kernel is predicted
as it was measured, by itself. What a row timed beside the kernel is added: rows that time an operator cast their
activation to 8 bits first, or write a rotated key-value cache. "standard" attention is predicted as the batched GEMMs
and memory-bound kernels that it is made of.

Limits: versions of libraries, clocks and cooling are not seen; the measured time is taken as it stands.

Pinned by tests/studies/test_validate_kernels.py.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple, TypeAlias, cast

import numpy as np
from numpy.typing import NDArray

from simulator.errors import ScenarioError
from simulator.physics.kernels.attention import attention_flops, attention_time
from simulator.physics.kernels.gemm import FloatArray, gemm_times
from simulator.physics.kernels.roofline import ITEM_SIZE
from simulator.physics.kernels.streaming import memory_bound_time
from simulator.scenario.hardware import Accelerator, Gemm, find_accelerator, read_accelerators
from simulator.scenario.units import Seconds
from simulator.studies.columns import missing_columns

SHIPPED = tuple(Path(__file__).parents[1] / "validation" / name for name in ("gemm.csv", "attention.csv"))

GEMM_COLUMNS = ("hardware", "dtype", "m", "n", "k", "time_ms")
"""Columns that a table of GEMMs must have; `groups`, `layout`, `note` and `source` may be missing."""
ATTENTION_COLUMNS = ("hardware", "impl", "dtype", "pass", "causal", "batch", "heads", "seqlen", "head_dim")
"""Columns that a table of attention must have, and `time_ms` or `tflops`; `kv_heads`, `note`, `source` may miss."""

DTYPES = {"nvfp4": "fp4", "mxfp4": "fp4", "fp16/bf16": "bf16"}
IMPLEMENTATIONS = {
    "FlashAttention-1": "flash1",
    "FlashAttention-2": "flash2",
    "FlashAttention-3": "flash3",
    "FA3-style MLA fwd (qk 192, v 128)": "flash3",
    "FA3-style MLA bwd (qk 192, v 128)": "flash3",
    "cuDNN": "cudnn",
    "Triton": "triton",
    "Triton FA2 tutorial": "triton",
    "TensorRT-LLM context attention": "trtllm",
    "PyTorch standard": "unfused",
    "standard": "unfused",
}
Passes: TypeAlias = Literal["fwd", "bwd", "fwd+bwd"]
PASSES: dict[str, tuple[bool, ...]] = {"fwd": (False,), "bwd": (True,), "fwd+bwd": (False, True)}
_MLA_V_HEAD_DIM = {192: 128}
"""Value heads of latent attention are narrower: DeepSeek-V3, arXiv 2412.19437, section 4.2."""

_OPERATOR_LAUNCH = {True: 2e-6, False: 5e-6}
"""Seconds that a framework's quantising operator adds beside launch and bytes, with scales by block or one scale.

One scale takes kernels of its own for the largest magnitude, before anything can be cast. Fitted, on H100, H200, B200.
"""


_MASK_PASSES = 5
"""Times that the scores are read or written while PyTorch adds a causal mask: fitted, 4.9 on A100 and 6.5 on H100."""


class Malformed(NamedTuple):
    """A row that cannot be read, and why; `blank` where its source leaves the shape out: no fault of the file."""

    row: str
    reason: str
    blank: bool = False


class _BlankError(ValueError):
    """A shape that is not given."""


@dataclass(frozen=True)
class GemmRow:
    """A measured product."""

    row: str
    hardware: str
    dtype: str
    m: int
    n: int
    k: int
    seconds: Seconds
    groups: int = 1
    layout: str = ""
    note: str = ""
    source: str = ""

    @property
    def kind(self) -> str:
        """What its group is called beside the accelerator: the dtype, fp16 and bf16 together."""
        return {"fp16": "bf16"}.get(self.dtype, self.dtype)

    @property
    def accumulates(self) -> bool:
        """Whether it adds to an fp32 output."""
        return "fp32 accumulate=True" in self.note

    @property
    def quantises(self) -> bool:
        """Whether it times the framework's operator, which casts its activation first."""
        return "activation quantisation" in self.note and "torch_flow" in self.note

    @property
    def scales_blocks(self) -> bool:
        """Whether every block of the activation has a scale of its own: DeepSeek's fp8 and NVIDIA's fp4."""
        return "fp8_block" in self.note or self.dtype == "fp4"


@dataclass(frozen=True)
class AttentionRow:
    """A measured attention kernel."""

    row: str
    hardware: str
    implementation: str
    dtype: str
    passes: Passes
    causal: bool
    batch: int
    heads: int
    kv_heads: int
    length: int
    head_dim: int
    seconds: Seconds
    note: str = ""
    source: str = ""

    @property
    def kind(self) -> str:
        """What its group is called beside the accelerator."""
        return self.passes

    @property
    def v_head_dim(self) -> int:
        """Width of a value head."""
        return _MLA_V_HEAD_DIM.get(self.head_dim, self.head_dim)


Row: TypeAlias = GemmRow | AttentionRow
BoolArray: TypeAlias = NDArray[np.bool_]

# --- reading ---------------------------------------------------------------------------------------------------------


def read_rows(path: Path) -> tuple[list[Row], list[Malformed]]:
    """Read a table of either kind.

    Returns
    -------
    rows, malformed
        Rows that can be read, and those that cannot, by `id` or line number.

    Raises
    ------
    ScenarioError
        When the file cannot be read, is empty, or lacks a column.
    """
    try:
        with path.open(encoding="utf-8", newline="") as stream:
            table = csv.DictReader(stream)
            columns = list(table.fieldnames or [])
            read = _reader(columns, path)
            lines = [(str(entry.get("id") or f"line {table.line_num}"), entry) for entry in table]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise ScenarioError(f"cannot be read as a CSV table: {error}", file=str(path)) from error
    if not lines:
        raise ScenarioError("has no rows below its header", file=str(path), line=1)
    rows: list[Row] = []
    malformed: list[Malformed] = []
    for name, entry in lines:
        try:
            if None in entry:
                raise ValueError("has more fields than the table has columns")
            rows.append(read(name, {key: (value or "").strip() for key, value in entry.items()}))
        except ValueError as error:
            malformed.append(Malformed(name, str(error), isinstance(error, _BlankError)))
    return rows, malformed


def _reader(columns: list[str], path: Path) -> Any:
    """The reader of the table that these columns are nearest to."""
    attention = len({"impl", "pass", "seqlen", "head_dim", "causal"}.intersection(columns)) >= 2
    required = ATTENTION_COLUMNS if attention else GEMM_COLUMNS
    missing = [name for name in required if name not in columns]
    if attention and not {"time_ms", "tflops"}.intersection(columns):
        missing.append("time_ms")
    if missing:
        kind = "attention" if attention else "GEMMs"
        has = ", ".join(columns) or "no columns"
        raise ScenarioError(f"{missing_columns(missing)} from a table of {kind}; it has {has}", file=str(path), line=1)
    return _attention_row if attention else _gemm_row


def _gemm_row(name: str, text: dict[str, str]) -> GemmRow:
    return GemmRow(
        row=name,
        hardware=_word(text, "hardware"),
        dtype=_dtype(text),
        m=_count(text, "m"),
        n=_count(text, "n"),
        k=_count(text, "k"),
        seconds=_positive(text, "time_ms") * 1e-3,
        groups=_count(text, "groups") if text.get("groups") else 1,
        layout=text.get("layout", ""),
        note=text.get("note", ""),
        source=text.get("source", ""),
    )


def _attention_row(name: str, text: dict[str, str]) -> AttentionRow:
    implementation, passes, causal = _word(text, "impl"), _word(text, "pass"), _word(text, "causal")
    if passes not in PASSES:
        raise ValueError(f"pass {passes!r} is not one of {', '.join(PASSES)}")
    if causal not in ("0", "1"):
        raise ValueError(f"causal {causal!r} is not 0 or 1")
    heads = _count(text, "heads")
    shape: dict[str, Any] = {
        "batch": _count(text, "batch"), "heads": heads, "length": _count(text, "seqlen"),
        "head_dim": _count(text, "head_dim"), "causal": causal == "1",
        "kv_heads": _count(text, "kv_heads") if text.get("kv_heads") else heads,
    }  # fmt: skip
    row = AttentionRow(
        row=name, hardware=_word(text, "hardware"), implementation=IMPLEMENTATIONS.get(implementation, implementation),
        dtype=_dtype(text), passes=cast(Passes, passes), seconds=1.0, note=text.get("note", ""),
        source=text.get("source", ""),
        **shape,
    )  # fmt: skip
    if text.get("time_ms"):
        seconds = _positive(text, "time_ms") * 1e-3
    else:
        seconds = counted_flops(row) / (_positive(text, "tflops") * 1e12)
    return AttentionRow(**{**row.__dict__, "seconds": seconds})


def counted_flops(row: AttentionRow) -> float:
    """FLOPs as published tables count them: backward 2.5 times forward, a causal mask half of all pairs."""
    flops = sum(
        attention_flops(
            batch=row.batch, heads=row.heads, q_len=row.length, kv_len=row.length, head_dim=row.head_dim,
            v_head_dim=row.v_head_dim, causal=False, backward=backward,
        )
        for backward in PASSES[row.passes]
    )  # fmt: skip
    return flops * (0.5 if row.causal else 1.0)


def _dtype(text: dict[str, str]) -> str:
    word = _word(text, "dtype")
    dtype = DTYPES.get(word, word)
    if dtype not in ITEM_SIZE:
        raise ValueError(f"dtype {word!r} is not one of {', '.join([*ITEM_SIZE, *DTYPES])}")
    return dtype


def _word(text: dict[str, str], column: str) -> str:
    if not text[column]:
        raise ValueError(f"{column} is empty")
    return text[column]


def _positive(text: dict[str, str], column: str) -> float:
    word = text.get(column, "")
    try:
        number = float(word)
    except ValueError:
        raise ValueError(f"{column} {word!r} is not a number") from None
    if not math.isfinite(number) or number <= 0:
        raise ValueError(f"{column} {word!r} must be finite and above zero")
    return number


def _count(text: dict[str, str], column: str) -> int:
    if not text[column]:
        raise _BlankError(f"{column} is blank: the shape is not known")
    number = _positive(text, column)
    if number != int(number):
        raise ValueError(f"{column} {text[column]!r} must be whole")
    return int(number)


# --- prediction ------------------------------------------------------------------------------------------------------


def accelerator_of(row: Row) -> Accelerator:
    """The row's accelerator.

    Raises
    ------
    ScenarioError
        If the catalogue has none of that name.
    """
    return find_accelerator(row.hardware.lower().replace(" ", "-"))


def predict(rows: Sequence[Row]) -> list[Seconds | str]:
    """Predicted time of every row, or why there is none."""
    found: list[Seconds | str] = [""] * len(rows)
    batches: dict[tuple[str, str], list[int]] = {}
    for index, row in enumerate(rows):
        reason = _refusal(row)
        if reason is not None:
            found[index] = reason
        elif isinstance(row, GemmRow):
            batches.setdefault((row.hardware, row.dtype), []).append(index)
        else:
            found[index] = attention_prediction(row, accelerator_of(row))
    for indices in batches.values():
        batch = [row for row in (rows[index] for index in indices) if isinstance(row, GemmRow)]
        acc = accelerator_of(batch[0])
        times = gemm_predictions(products(batch, acc), acc, batch[0].dtype)
        for index, time in zip(indices, times, strict=True):
            found[index] = float(time)
    return found


def _refusal(row: Row) -> str | None:
    names = read_accelerators()
    if row.hardware.lower().replace(" ", "-") not in names:
        known = ", ".join(sorted({each.name for each in names.values()}))
        return f"hardware {row.hardware!r} is not in the catalogue; known: {known}"
    acc = accelerator_of(row)
    if row.dtype not in acc.peak_flops:
        return f"{acc.name} has no peak for {row.dtype!r}; allowed: {', '.join(acc.peak_flops)}"
    if isinstance(row, GemmRow) or row.implementation == "unfused":
        return None
    if row.implementation not in acc.kernels.attention:
        return (
            f"{acc.name} has no attention {row.implementation!r}; allowed: {', '.join(acc.kernels.attention)}, unfused"
        )
    return None


class Products(NamedTuple):
    """Rows of one accelerator and dtype as arrays of shape (R,): what `gemm_times` takes, and what is added to it."""

    m: FloatArray
    n: FloatArray
    k: FloatArray
    groups: FloatArray
    accumulate_fp32: BoolArray
    weight_gradient: BoolArray
    beside: FloatArray

    def take(self, which: NDArray[np.int64]) -> Products:
        """Some of the rows."""
        return self._replace(**{name: each[which] for name, each in self._asdict().items()})


def products(rows: Sequence[GemmRow], acc: Accelerator) -> Products:
    """Rows as arrays, with the seconds of what they timed beside the product."""
    sizes = np.array([(row.m, row.n, row.k, row.groups) for row in rows], dtype=float).T
    beside = [_cast_time(acc, row) if row.quantises else 0.0 for row in rows]
    return Products(
        sizes[0],
        sizes[1],
        sizes[2],
        sizes[3],
        np.array([row.accumulates for row in rows]),
        np.array([row.layout == "NT" for row in rows]),
        np.array(beside),
    )


def gemm_predictions(rows: Products, acc: Accelerator, dtype: str, model: Gemm | None = None) -> FloatArray:
    """Seconds of rows of one accelerator and dtype, shape (R,)."""
    times = gemm_times(
        acc, dtype, rows.m, rows.n, rows.k, rows.groups, accumulate_fp32=rows.accumulate_fp32,
        weight_gradient=rows.weight_gradient, isolated=True, model=model,
    )  # fmt: skip
    return times + rows.beside


def _cast_time(acc: Accelerator, row: GemmRow) -> Seconds:
    # a bf16 activation [m, k] is read and written again in fewer bits
    return _OPERATOR_LAUNCH[row.scales_blocks] + memory_bound_time(
        acc, row.m * row.k * (2 + ITEM_SIZE[row.dtype]), "cast"
    )


def attention_prediction(row: AttentionRow, acc: Accelerator) -> Seconds:
    """Seconds of one row."""
    if row.implementation == "unfused":
        return sum(_unfused_time(row, acc, backward=backward) for backward in PASSES[row.passes])
    time = sum(
        attention_time(
            acc, row.dtype, batch=row.batch, heads=row.heads, kv_heads=row.kv_heads, q_len=row.length,
            kv_len=row.length, head_dim=row.head_dim, v_head_dim=row.v_head_dim, causal=row.causal, backward=backward,
            implementation=row.implementation,
        )
        for backward in PASSES[row.passes]
    )  # fmt: skip
    return time + (memory_bound_time(acc, _stored_bytes(row)) if "rope" in row.note else 0.0)


def _stored_bytes(row: AttentionRow) -> float:
    # such rows time the operator: Q, K and V are first rotated and stored, read and written once each
    return row.batch * row.length * row.head_dim * (row.heads + 2 * row.kv_heads) * 2 * ITEM_SIZE[row.dtype]


def _unfused_time(row: AttentionRow, acc: Accelerator, *, backward: bool) -> Seconds:
    """Batched GEMMs, softmax and, where causal, the addition of a mask, in PyTorch (arXiv 2205.14135, algorithm 0)."""
    length, width, groups = row.length, row.head_dim, row.batch * row.heads
    scores = float(groups) * length * length * ITEM_SIZE[row.dtype]
    wide, deep = (length, length, width), (length, width, length)
    shapes = [wide, deep, deep, deep] if backward else [wide, deep]
    sizes = np.array([(*shape, groups) for shape in shapes], dtype=float).T
    time = float(gemm_times(acc, row.dtype, *sizes, isolated=True).sum())
    time += memory_bound_time(acc, (3 if backward else 2) * scores, "softmax")
    return time + (memory_bound_time(acc, _MASK_PASSES * scores) if row.causal and not backward else 0.0)


def by_group(rows: Iterable[Row]) -> dict[tuple[str, str, str], list[int]]:
    """Indices of the rows of each accelerator and dtype, or accelerator and pass, in order of appearance."""
    groups: dict[tuple[str, str, str], list[int]] = {}
    for index, row in enumerate(rows):
        table = "gemm" if isinstance(row, GemmRow) else "attention"
        groups.setdefault((table, row.hardware, row.kind), []).append(index)
    return groups
