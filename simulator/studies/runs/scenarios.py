"""A row of measured runs as a scenario, with a list of everything that the row does not say and that was assumed.

Columns come first; a named model of the catalogue fills what they leave blank (and what has no column: experts'
sharing, latent attention, head sizes); what software does by itself follows its stack. A row that the simulator cannot
represent is refused with the reason.

Limits: notes are not read. Pinned by tests/studies/runs/test_scenarios.py.
"""

from __future__ import annotations

import math
import re
from functools import cache
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from simulator.errors import SimulatorError
from simulator.scenario.pipeline import num_stages
from simulator.scenario.scenario import Scenario, fit, load_model, model_names
from simulator.scenario.stacks import Stack, find_stack, read_stacks
from simulator.scenario.training import Training
from simulator.scenario.transformer import Transformer
from simulator.studies.runs.machines import describe_machine
from simulator.studies.runs.table import Row


class RefusedError(Exception):
    """The row is well-formed, but cannot be simulated."""


def describe(row: Row) -> tuple[Scenario, dict[str, Any]]:
    """The scenario of a row, and what was assumed in it.

    Raises
    ------
    RefusedError
        The simulator cannot represent the row.
    """
    try:
        stack, assumed = stack_of(row)
        model, about_model = describe_model(row, stack)
        cluster, about_machine = describe_machine(row, pxn=stack.habits.pxn)
        training, about_training = describe_training(row, stack, model)
        scenario = Scenario(
            name=row.id,
            cluster=cluster,
            model=model,
            job_gpus=row.get("gpus"),
            parallelism=_parallelism(row, stack, assumed),
            training=training,
            memory={"enforce": False},
        )
        return fit(scenario), assumed | about_model | about_machine | about_training
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"])
        if field in row.cells:
            field = f"column {field}"
        reason = first["msg"].removeprefix("Value error, ")
        if first["type"] == "literal_error":
            reason = f"{first['input']!r} is not simulated; known: {first['ctx']['expected'].replace(' or ', ', ')}"
        raise RefusedError(f"{field}: {reason}".removeprefix(": ")) from None
    except SimulatorError as error:
        raise RefusedError(" ".join(str(error).split())) from None


def stack_of(row: Row) -> tuple[Stack, dict[str, Any]]:
    """The software stack: the longest prefix of the `software` column, else the generic one.

    Where a source ran its pipelines with a later release, `pipelined` of the entry names that.
    """
    found = find_stack(row.software)
    if found is None:
        return read_stacks()["generic"], {"stack": "generic"}
    if found.pipelined is not None and (row.get("pp") or 1) > 1:
        return read_stacks()[found.pipelined], {"stack": found.pipelined}
    return found, {}


# --- model -----------------------------------------------------------------------------------------------------------


def _plain(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.lower())


@cache
def catalogue_model(name: str) -> Transformer | None:
    """The catalogue's model whose name is the most of the words that `name` begins with, whatever their punctuation."""
    words = re.split(r"[-\s/()]+", name)
    known = {_plain(model): model for model in model_names()}
    for count in range(len(words), 0, -1):
        model = known.get(_plain("".join(words[:count])))
        if model is not None:
            return load_model(model, Path())
    return None


_SHAPE = ("num_layers", "hidden_size", "num_attention_heads", "num_query_groups", "vocab_size")
_MHA_HEAD = 128  # Assumption: the head size of nearly every model since GPT-3 13B
_VOCABULARY = {True: 32_000, False: 51_200}  # Assumption: Llama's, and GPT-2's padded as Megatron pads it


def describe_model(row: Row, stack: Stack) -> tuple[Transformer, dict[str, Any]]:
    """The model of a row.

    Raises
    ------
    RefusedError
        Neither columns nor catalogue say how large it is.
    """
    named = catalogue_model(row.get("model") or "")
    fields: dict[str, Any] = {}
    if named is not None:
        fields = named.model_dump(exclude_none=True, exclude={"published_parameters", "published_active_parameters"})
        fields = {key: value for key, value in fields.items() if key in named.model_fields_set}
    assumed = _sizes(row, named, fields)
    gated = row.get("gated_mlp")
    if gated is None:
        assumed["gated_mlp"] = gated = named is not None and named.gated_mlp
    if named is None:
        fields |= _style(gated, row.get("sequence_length"))
        assumed["model"] = "a Llama" if gated else "a GPT"
        if stack.habits.tied_embeddings is not None:
            fields["tied_embeddings"] = stack.habits.tied_embeddings
    if gated != (fields["activation"] in ("swiglu", "geglu", "reglu")):
        fields["activation"] = "swiglu" if gated else "gelu"
    fields.pop("gated_mlp", None)
    _feed_forward(row, named, fields, gated, assumed)
    if fields.get("position") == "learned":
        fields["max_sequence_length"] = row.get("sequence_length")
    fields["name"] = row.get("model") or "custom"
    return _cached_model(repr(sorted(fields.items(), key=str)), fields), assumed


_MODELS: dict[str, Transformer] = {}


def _cached_model(key: str, fields: dict[str, Any]) -> Transformer:
    if key not in _MODELS:
        _MODELS[key] = Transformer(**fields)
    return _MODELS[key]


def _sizes(row: Row, named: Transformer | None, fields: dict[str, Any]) -> dict[str, Any]:
    """Put the columns' sizes into `fields`; returns what had to be assumed."""
    assumed: dict[str, Any] = {}
    for column in _SHAPE:
        value = row.get(column)
        if value is None:
            value = fields.get(column)
            if value is None:
                value = _guess(column, fields, bool(row.get("gated_mlp")))
            if value is None:
                raise RefusedError(f"{column} is blank and the catalogue has no model {row.get('model')!r}")
            assumed[column] = value
        fields[column] = value
    same = named is not None and (fields["hidden_size"], fields["num_attention_heads"]) == (
        named.hidden_size, named.num_attention_heads,
    )  # fmt: skip
    if not same:
        fields.pop("head_dim", None)
    if "mla" in fields:
        fields.pop("num_query_groups", None)
    elif "head_dim" not in fields and fields["hidden_size"] % fields["num_attention_heads"]:
        fields["head_dim"] = assumed["head_dim"] = round(fields["hidden_size"] / fields["num_attention_heads"])
    return assumed


def _guess(column: str, fields: dict[str, Any], gated: bool) -> int | None:
    """The family's usual value."""
    if column == "num_attention_heads":
        return max(1, int(fields["hidden_size"]) // _MHA_HEAD)
    if column == "num_query_groups":
        return int(fields["num_attention_heads"])
    return _VOCABULARY[gated] if column == "vocab_size" else None


def _style(gated: bool, sequence: int) -> dict[str, Any]:
    """What has no column, by family: Llama's with a gated MLP, GPT-2's without."""
    if gated:
        return {
            "activation": "swiglu", "norm": "rmsnorm", "linear_bias": False, "position": "rotary",
            "tied_embeddings": False,
        }  # fmt: skip
    return {"activation": "gelu", "position": "learned", "max_sequence_length": sequence, "tied_embeddings": True}


def _feed_forward(
    row: Row, named: Transformer | None, fields: dict[str, Any], gated: bool, assumed: dict[str, Any]
) -> None:
    """Width of the MLP, or of one expert."""
    width, experts = row.get("ffn_hidden_size"), row.get("num_experts")
    known = named.moe if named is not None else None
    if experts or (experts is None and known is not None):
        moe = known.model_dump() if known is not None else {}
        moe["num_experts"] = experts or moe["num_experts"]
        top_k = row.get("top_k") or moe.get("top_k")
        if top_k is None:
            raise RefusedError("top_k is blank and the catalogue does not know the model")
        moe["top_k"] = top_k
        moe["ffn_hidden_size"] = width or moe.get("ffn_hidden_size") or 4 * fields["hidden_size"]
        dense = moe.get("first_dense_layers", 0)
        if named is not None and fields["num_layers"] < named.num_layers and dense:
            # a model cut to a few layers keeps at most one dense layer
            moe["first_dense_layers"] = assumed["first_dense_layers"] = min(dense, 1)
        fields["moe"] = moe
        fields.setdefault("ffn_hidden_size", moe["ffn_hidden_size"])
        return
    fields.pop("moe", None)
    if width is None:
        width = fields.get("ffn_hidden_size") if named is not None else None
        if width is None:
            hidden = fields["hidden_size"]
            width = math.ceil(8 * hidden / 3 / 256) * 256 if gated else 4 * hidden
        assumed["ffn_hidden_size"] = width
    fields["ffn_hidden_size"] = width


# --- split and recipe ------------------------------------------------------------------------------------------------


def _parallelism(row: Row, stack: Stack, assumed: dict[str, Any]) -> dict[str, Any]:
    fields: dict[str, Any] = {}
    for axis in ("tp", "cp", "pp"):
        degree = row.get(axis)
        if degree is None:
            assumed[axis] = degree = 1
        fields[axis] = degree
    product = math.prod(fields.values())
    fields["dp"] = row.get("dp")
    if fields["dp"] is None:
        fields["dp"] = assumed["dp"] = row.get("gpus") // product
    fields["ep"] = row.get("ep") or 1
    if fields["ep"] > 1 and fields["tp"] > 1:
        # Megatron-Core's expert_tensor_parallel_size follows tp unless it is said; with many small experts it is 1
        fields["etp"] = assumed["etp"] = 1
    parallel = row.get("sequence_parallel")
    if parallel is None:
        parallel = stack.habits.sequence_parallel and fields["tp"] > 1
        assumed["sequence_parallel"] = parallel
    fields["sequence_parallel"] = parallel and fields["tp"] > 1
    return fields


def describe_training(row: Row, stack: Stack, model: Transformer) -> tuple[Training, dict[str, Any]]:
    """The recipe of a row.

    Raises
    ------
    RefusedError
        The batch is unknown, or what is asked for is not modelled.
    """
    habits, assumed = stack.habits, {}

    def given(column: str, default: Any) -> Any:
        value = row.get(column)
        if value is None:
            assumed[column] = value = default
        return value

    batch = row.get("global_batch_size")
    if batch is None:
        raise RefusedError("global_batch_size is blank: how much work a step does is unknown")
    stage = given("zero_stage", habits.zero_stage)
    optimizer: dict[str, Any] = {
        "zero_stage": stage,
        "grad_dtype": _gradients(habits.grad_dtype, row.get("precision")),
        "param_gather_dtype": habits.param_gather_dtype,
        "overlap_grad_reduce": habits.overlap_grad_reduce,
        "overlap_param_gather": habits.overlap_param_gather and stage in (1, 2),
    }
    group = row.get("zero_group")
    if group is not None and stage:
        optimizer["shard_group"] = group
    fields = {
        "sequence_length": row.get("sequence_length"),
        "global_batch_size": batch,
        "micro_batch_size": given("micro_batch_size", 1),
        "precision": given("precision", "bf16"),
        "schedule": _schedule(row, stack, model, assumed),
        "recompute": given("recompute", habits.recompute),
        "attention": given("attention", habits.attention),
        "dropout": habits.dropout,
        "optimizer": optimizer,
        "stack": stack.name,
    }
    if model.moe is not None and habits.expert_capacity_factor is not None:
        fields |= {
            "expert_capacity_factor": habits.expert_capacity_factor,
            "expert_padding": habits.expert_padding,
        }
        assumed["expert_capacity_factor"] = habits.expert_capacity_factor
    return Training(**fields), assumed


def _gradients(habit: str, precision: str | None) -> str:
    """Megatron and DeepSpeed of 2020 to 2022 keep fp16 gradients in fp16 and add up bf16 ones in fp32."""
    return habit if habit != "auto" else "fp16" if precision == "fp16" else "fp32"


_SCHEDULES = {"zb-v": "zbv"}


def _schedule(row: Row, stack: Stack, model: Transformer, assumed: dict[str, Any]) -> dict[str, Any]:
    vpp = row.get("vpp")
    kind = row.get("schedule")
    if (row.get("pp") or 1) == 1:
        return {"kind": "1f1b"}
    if vpp is None:
        assumed["vpp"] = vpp = 1
    if kind is None:
        assumed["schedule"] = kind = "interleaved" if vpp > 1 else "1f1b"
    kind = kind.lower()
    if kind == "interleaved" and vpp == 1:
        kind = "1f1b"  # one chunk a rank is the plain schedule
    if kind == "1f1b" and vpp > 1:
        kind = "interleaved"
    kind = _SCHEDULES.get(kind, kind)
    found = {"kind": kind, "vpp": vpp} if vpp > 1 else {"kind": kind}
    return {**found, **_cut(num_stages(kind, row.get("pp"), vpp), stack, model, assumed)}


def _cut(stages: int, stack: Stack, model: Transformer, assumed: dict[str, Any]) -> dict[str, Any]:
    """How layers are shared out, where a stack weighs them or they do not divide."""
    layers = model.num_layers
    if stack.habits.stages == "by_cost":
        found = cut_by_cost(model, stages, reached=stack.memory.stage_cut == "cost_reached")
        if found is not None:
            assumed["layers"] = list(found)
            return {"layers": found}
    if layers % stages and (layers + 2) % stages == 0:
        assumed["embedding_and_loss_as_layers"] = True
        return {"embedding_and_loss_as_layers": True}
    if layers % stages:
        assumed["layers"] = "as even as they go"
    return {}


def cut_by_cost(model: Transformer, stages: int, *, reached: bool = False) -> tuple[int, ...] | None:
    """Layers of each stage as nanotron shares them out; None where that leaves one empty that may not be.

    Blocks go to a stage until their weights, the output layer's included, pass its share of all (huggingface/nanotron,
    models/base.py, December 2024), or, since the fix of its pipeline, until they have `reached` it.
    """
    layer = model.attention_parameters + model.mlp_parameters
    output = model.vocab_size * model.hidden_size
    total, cost, stage = model.num_layers * layer + output, 0, 0
    found = [0] * stages
    for _ in range(model.num_layers):
        found[stage] += 1
        cost += layer
        share = total * (stage + 1) / stages
        if (cost > share or (reached and cost == share)) and stage + 1 < stages:
            stage += 1
    for empty in [stage for stage in range(1, stages - 1) if not found[stage]]:
        # nanotron leaves it the output layer alone; here that stays on the last stage, and a neighbour gives a layer
        giver = max(range(empty), key=lambda stage: (found[stage], stage))
        found[giver], found[empty] = found[giver] - 1, 1
    return tuple(found) if all(found[:-1]) else None
