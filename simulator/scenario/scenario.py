"""A scenario: one YAML file, resolved and checked, ready to simulate.

`load` reads the file, applies `--set` overrides, replaces names by what they name (a cluster file, a catalogue model, a
Hugging Face config.json), checks every field, derives the degree that was left out and refuses an impossible split.
The result is frozen, and its dump is again a scenario file: a result that embeds it can be run again.

Pinned by tests/scenario/test_scenario.py and tests/test_cli.py.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from simulator.errors import LayoutError, ScenarioError
from simulator.scenario.conditions import Condition, out_of_range
from simulator.scenario.expected import FIGURES, Expected, read_expected
from simulator.scenario.explain import explain, nearest
from simulator.scenario.hardware import ENTRY_SUFFIXES, Accelerator, find_accelerator, read_accelerators
from simulator.scenario.hosts import Host, refusal
from simulator.scenario.huggingface import read_config
from simulator.scenario.parallelism import Parallelism
from simulator.scenario.phases import Stretch
from simulator.scenario.reliability import Reliability
from simulator.scenario.shipped import find_file
from simulator.scenario.source import KeyPath, Source, apply_override, place_of, read_source
from simulator.scenario.split import check_split
from simulator.scenario.stacks import Stack, read_stacks
from simulator.scenario.topology import Cluster
from simulator.scenario.training import Training
from simulator.scenario.transformer import Transformer
from simulator.scenario.units import format_quantity

MODELS = Path(__file__).parent / "catalogue" / "models"

# Beyond these a command would run for minutes and fill the memory. Assumption: forty times the largest clusters, and
# thirty times the longest published pipeline (64 stages × 512 microbatches).
MAX_GPUS = 4_000_000
MAX_ACTIONS = 2_000_000


class Memory(BaseModel):
    """What to do with a model that does not fit: refuse it (`enforce`), or warn and go on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    enforce: bool = True


class Scenario(BaseModel):
    """A training run to simulate; the fields are those of the scenario file."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: str
    description: str = ""
    source: str | tuple[str, ...] = ""
    cluster: Cluster
    model: Transformer
    job_gpus: int | None = Field(default=None, gt=0)
    parallelism: Parallelism = Parallelism()
    training: Training
    memory: Memory = Memory()
    conditions: tuple[Condition, ...] = ()
    reliability: Reliability | None = None
    expected: dict[str, Expected] = {}
    seed: int = Field(default=0, ge=0)

    @field_validator("expected", mode="before")
    @classmethod
    def _figures_with_units(cls, entries: Any) -> Any:
        if not isinstance(entries, dict):
            return entries
        unknown = [name for name in entries if name not in FIGURES]
        if unknown:
            hint = nearest(unknown[0], FIGURES)
            raise ValueError(f"{unknown[0]!r} is not a figure of the result; allowed: {', '.join(FIGURES)}{hint}")
        return {name: _read_entry(name, entry) for name, entry in entries.items()}

    @cached_property
    def accelerator(self) -> Accelerator:
        """The cluster's accelerator, from the catalogue or inline."""
        given = self.cluster.accelerator
        return find_accelerator(given) if isinstance(given, str) else Accelerator.model_validate(given)

    @property
    def stack(self) -> Stack:
        """The software stack."""
        return read_stacks()[self.training.stack]

    @property
    def host(self) -> Host | None:
        """A GPU's share of its node, where that is known."""
        return self.cluster.known_host

    @property
    def gpus(self) -> int:
        """Job GPUs."""
        return self.parallelism.world_size

    @property
    def num_microbatches(self) -> int:
        """Microbatches of one pipeline in one step."""
        return self.training.global_batch_size // ((self.parallelism.dp or 1) * self.training.micro_batch_size)

    @property
    def steps(self) -> int | None:
        """Steps of the whole run; the last one of a phase may be partly filled. None without `tokens`."""
        return self.training.steps

    @property
    def phases(self) -> tuple[tuple[str, Scenario], ...]:
        """Stretches of the run with one recipe and one batch size each, in order: names, and scenarios without phases.

        A run without `phases` is one stretch, called `training`. The others' `training.tokens` are their own, so that
        `steps` are too.

        Raises
        ------
        LayoutError
            A phase's split fits neither the model nor its batch nor the job's GPUs; names the phase.
        """
        return tuple((stretch.name, self._stretch(stretch)) for stretch in self.training.stretches()) or (
            ("training", self),
        )

    def _stretch(self, stretch: Stretch) -> Scenario:
        training = self.training.model_copy(update={**stretch.changes, "phases": ()})
        try:
            phase = self.training.phases[stretch.phase]
            changes = {"training": training, "parallelism": phase.parallelism.applied(self.parallelism)}
            return fit(self.model_copy(update={**changes, "model": phase.model or self.model}))
        except LayoutError as error:
            raise LayoutError(f"phase {stretch.name!r}: {error}") from None

    def resolved(self) -> dict[str, Any]:
        """The scenario as plain data, names replaced by what they name: again a scenario file."""
        content = self.model_dump(mode="json", exclude_none=True, by_alias=True)
        if self.reliability is not None:
            written = self.reliability.expanded.model_dump(mode="json", exclude_none=True, by_alias=True)
            content["reliability"] = written
        content["cluster"]["accelerator"] = self.accelerator.model_dump(mode="json", exclude_none=True)
        content["expected"] = {name: _write_expected(name, entry) for name, entry in self.expected.items()}
        return content


def _read_entry(name: str, entry: Any) -> Any:
    try:
        return entry if isinstance(entry, Expected) else read_expected(name, entry)
    except ValueError as error:
        raise ValueError(f"unit: {name}: {str(error).removeprefix('unit:').strip()}") from None


def _write_expected(name: str, entry: Expected) -> dict[str, Any]:
    dimension = FIGURES[name]
    content = entry.model_dump(mode="json", exclude_none=True)
    if dimension is None:
        return content
    for form, value in content.items():
        if isinstance(value, list):
            content[form] = [format_quantity(each, dimension) for each in value]
        elif isinstance(value, float):
            content[form] = format_quantity(value, dimension)
    return content


# --- loading ---------------------------------------------------------------------------------------------------------


def load(name: str | Path, overrides: Iterable[str] = ()) -> Scenario:
    """Read a scenario.

    Parameters
    ----------
    name
        Path of a scenario file, or the name of a shipped one.
    overrides
        `--set` texts such as ``"parallelism.tp=16"``.

    Raises
    ------
    ScenarioError
        Something in a file is wrong: says where, what is allowed and the likely fix.
    LayoutError
        The split fits neither the model nor the batch nor the cluster.
    """
    source = read_source(find_file(str(name), "scenarios"))
    inner: dict[str, list[str]] = {"cluster": [], "model": []}
    for override in overrides:
        section, dot, rest = override.partition(".")
        if dot and section in inner and isinstance(source.content.get(section), str):
            inner[section].append(rest)  # of the file that the scenario names
        else:
            source = apply_override(source, override)
    folder = source.path.parent if source.path else Path()
    content = dict(source.content)
    if isinstance(content.get("cluster"), str):
        content["cluster"] = load_cluster(content["cluster"], folder, inner["cluster"])
    if isinstance(content.get("model"), str):
        content["model"] = load_model(content["model"], folder, source, inner["model"])
    content["training"] = _with_models(content.get("training"), folder, source)
    try:
        scenario = Scenario.model_validate(content)
    except ValidationError as error:
        raise explain(error, source, Scenario) from None
    cluster = _with_accelerator(scenario.cluster, source, ("cluster", "accelerator"))
    scenario = scenario.model_copy(update={"cluster": cluster})
    if scenario.training.stack not in read_stacks():
        raise source.error(("training", "stack"), _unknown("software stack", scenario.training.stack, read_stacks()))
    _check_conditions(scenario, source)
    if (target := scenario.training.optimizer.offload) is not None:
        problem = refusal(target, scenario.host, scenario.cluster.platform)
        if problem is not None:
            raise source.error(("training", "optimizer", "offload"), problem)
    try:
        fitted = fit(scenario)
    except LayoutError as error:
        raise LayoutError(str(source.error(("parallelism",), str(error)))) from None
    try:
        _ = fitted.phases
    except LayoutError as error:
        raise LayoutError(str(source.error(("training", "phases"), str(error)))) from None
    _check_spares(fitted, source)
    return fitted


def _with_models(training: Any, folder: Path, source: Source) -> Any:
    """The same, phases with the models that they name."""
    phases = training.get("phases") if isinstance(training, dict) else None
    if not isinstance(phases, list):
        return training
    found = []
    for number, phase in enumerate(phases):
        if isinstance(phase, dict) and isinstance(phase.get("model"), str):
            where = ("training", "phases", number, "model")
            phase = {**phase, "model": load_model(phase["model"], folder, source, where=where)}
        found.append(phase)
    return {**training, "phases": found}


@contextmanager
def located(name: str | Path, overrides: Iterable[str] = ()) -> Iterator[None]:
    """Give an error about a field of the scenario that is found after loading its file and line."""
    try:
        yield
    except ScenarioError as error:
        field = error.field or ""
        if error.file is not None or field.split(".")[0] not in Scenario.model_fields:
            raise
        source = read_source(find_file(str(name), "scenarios"))
        for override in overrides:
            if override.split("=")[0].split(".")[0] not in ("cluster", "model"):
                source = apply_override(source, override)
        file, line = place_of(source, tuple(field.split(".")))
        raise type(error)(error.message, file=file, line=line, field=field) from error


def _check_spares(scenario: Scenario, source: Source) -> None:
    """Refuse more spares than the cluster has nodes that the job does not use."""
    if scenario.reliability is None:
        return
    topology, spares = scenario.cluster.topology, scenario.reliability.spares
    left = topology.nodes + scenario.gpus // -topology.gpus_per_node
    asked = (spares.hot or 0) + spares.warm
    if asked > left:
        counted = f"hot {spares.hot or 0:,} + warm {spares.warm:,}" if spares.warm else f"{asked:,}"
        raise source.error(
            ("reliability", "spares"),
            f"{counted} nodes are more than the {left:,} of the cluster's {topology.nodes:,} that the job leaves over;"
            f" use at most {left:,}, or more nodes in the cluster",
        )


def _unknown(what: str, name: str, known: Iterable[str]) -> str:
    return f"no {what} {name!r}; known: {', '.join(known)}{nearest(name, known)}"


def _with_accelerator(cluster: Cluster, source: Source, where: KeyPath) -> Cluster:
    """Refuse an unknown accelerator, or an inline one that is wrong, where it is written; find one that is a file.

    A file's path starts from the file that names it (from the working directory, if `--set` does).
    """
    given = cluster.accelerator
    if isinstance(given, str):
        if given.endswith(ENTRY_SUFFIXES):
            folder = source.path.parent if source.path else Path()
            path = next((each for each in (folder / given, Path(given)) if each.is_file()), None)
            if path is None:
                raise source.error(where, f"no file {given}; name one that `trainsim calibrate` wrote, or {_known()}")
            find_accelerator(str(path.resolve()))
            return cluster.model_copy(update={"accelerator": str(path.resolve())})
        if given.lower() not in read_accelerators():
            raise source.error(where, _unknown("accelerator", given, accelerator_names()))
        return cluster
    try:
        Accelerator.model_validate(cluster.accelerator)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = tuple(part for part in first["loc"] if isinstance(part, str | int))
        raise source.error((*where, *field), first["msg"].removeprefix("Value error, ")) from None
    return cluster


def _known() -> str:
    return f"an accelerator of the catalogue: {', '.join(accelerator_names())}"


def _check_conditions(scenario: Scenario, source: Source) -> None:
    """Refuse conditions of GPUs and nodes that are not there, where they are written."""
    cluster = scenario.cluster
    for index, condition in enumerate(scenario.conditions):
        wrong = out_of_range(condition, gpus=cluster.gpus, nodes=cluster.topology.nodes)
        if wrong is not None:
            raise source.error(("conditions", index, wrong[0]), wrong[1])


def load_cluster(name: str, folder: Path | None = None, overrides: Iterable[str] = ()) -> Cluster:
    """Read a cluster file: a path beside the scenario, or the name of a shipped topology."""
    source = read_source(find_file(name, "topologies", folder))
    for override in overrides:
        source = apply_override(source, override)
    try:
        cluster = Cluster.model_validate(source.content)
    except ValidationError as error:
        raise explain(error, source, Cluster) from None
    return _with_accelerator(cluster, source, ("accelerator",))


def load_model(
    name: str,
    folder: Path,
    origin: Source | None = None,
    overrides: Iterable[str] = (),
    where: KeyPath = ("model",),
) -> Transformer:
    """Read a model: a YAML, a Hugging Face config.json, or a name of the catalogue. An existing path wins."""
    path = folder / name
    if path.suffix == ".json" and path.is_file():
        for override in overrides:
            label = f"--set model.{override}"
            raise ScenarioError(f"{name} is a config.json and cannot be overridden; edit a copy", file=label)
        return _read_huggingface(path)
    if not path.is_file():
        path = MODELS / f"{name}.yaml"
    if not path.is_file():
        message = _unknown("model file and no catalogue model", name, model_names())
        raise origin.error(where, message) if origin else ScenarioError(message, field="model")
    source = read_source(path)
    for override in overrides:
        source = apply_override(source, override)
    try:
        return Transformer.model_validate(source.content)
    except ValidationError as error:
        raise explain(error, source, Transformer) from None


def _read_huggingface(path: Path) -> Transformer:
    try:
        return read_config(json.loads(path.read_text(encoding="utf-8")))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ScenarioError(f"not JSON: {error}", file=str(path)) from None


def model_names() -> list[str]:
    """Names of the catalogue's models."""
    return sorted(path.stem for path in MODELS.glob("*.yaml"))


def accelerator_names() -> list[str]:
    """Names of the catalogue's accelerators."""
    return sorted(read_accelerators())


def _check_imbalance(more: float, ep: int) -> None:
    """Refuse a rank of an ep group that receives more than there is, and an imbalance of nothing."""
    if more and ep == 1:
        raise LayoutError(
            f"training.expert_imbalance {more:g} needs experts on several ranks: a mixture-of-experts model and"
            " parallelism.ep of at least 2; leave it out, or raise ep"
        )
    if more and ep > 1 and more >= ep - 1:
        raise LayoutError(
            f"training.expert_imbalance {more:g} with ep {ep}: one rank would receive all tokens and more;"
            f" use less than {ep - 1}"
        )


def _check_capacity(factor: float | None, experts: bool) -> None:
    """Refuse a capacity of experts that are not there."""
    if factor is not None and not experts:
        raise LayoutError(
            f"training.expert_capacity_factor {factor:g} needs a mixture-of-experts model; leave it out"
            " (and expert_padding), or name a model with experts"
        )


def fit(scenario: Scenario) -> Scenario:
    """Derive the degree that was left out and refuse an impossible split, or one too large to simulate."""
    available = scenario.cluster.gpus
    if available > MAX_GPUS:
        raise LayoutError(f"the cluster has {available:,} GPUs; at most {MAX_GPUS:,} can be simulated: use fewer nodes")
    if scenario.job_gpus is not None and scenario.job_gpus > available:
        raise LayoutError(f"job_gpus {scenario.job_gpus:,} are more than the {available:,} GPUs of the cluster")
    split = scenario.parallelism.derive(scenario.job_gpus or available)
    model, training = scenario.model, scenario.training
    check_split(
        split,
        available_gpus=available,
        num_layers=model.num_layers,
        num_attention_heads=model.num_attention_heads,
        num_query_groups=model.num_query_groups,
        ffn_hidden_size=model.ffn_hidden_size,
        sequence_length=training.sequence_length,
        global_batch_size=training.global_batch_size,
        micro_batch_size=training.micro_batch_size,
        schedule_kind=training.schedule.kind,
        vpp=training.schedule.vpp,
        num_experts=model.moe.num_experts if model.moe else None,
        expert_ffn_hidden_size=model.moe.ffn_hidden_size if model.moe else None,
        zigzag=training.cp_split == "zigzag",
        schedule=training.schedule,
    )
    _check_imbalance(training.expert_imbalance, split.ep if model.moe else 1)
    _check_capacity(training.expert_capacity_factor, model.moe is not None)
    fitted = scenario.model_copy(update={"parallelism": split})
    chunks = training.schedule.chunks
    actions = 2 * split.pp * chunks * fitted.num_microbatches
    if actions > MAX_ACTIONS:
        raise LayoutError(
            f"2 × pp {split.pp} × vpp {chunks} × {fitted.num_microbatches:,} microbatches ="
            f" {actions:,} actions in a step; at most {MAX_ACTIONS:,} can be simulated:"
            " use a smaller global_batch_size or a larger dp"
        )
    return fitted
