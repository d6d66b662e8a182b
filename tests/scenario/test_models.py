"""The shipped models against what their papers and released weights say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from simulator.scenario import transformer
from simulator.scenario.transformer import Transformer, read_model

FOLDER = Path(transformer.__file__).parent / "catalogue" / "models"
NAMES = sorted(path.stem for path in FOLDER.glob("*.yaml"))
EXPECTED = """
gpt1 gpt2 gpt2-medium gpt2-large gpt2-xl
gpt3-125m gpt3-350m gpt3-760m gpt3-1.3b gpt3-2.7b gpt3-6.7b gpt3-13b gpt3-175b
megatron-1.7b megatron-3.6b megatron-7.5b megatron-18b megatron-39b megatron-76b megatron-145b megatron-310b
megatron-530b megatron-1t megatron-8.3b megatron-22b mt-nlg-530b turing-nlg-17b
bloom-176b palm-540b opt-175b gpt-neox-20b
gpt-oss-120b qwen3-30b-a3b nanotron-3.6b
llama-7b llama-13b llama-33b llama-65b llama2-7b llama2-13b llama2-70b llama3-8b llama3-70b llama3.1-405b
mixtral-8x7b mixtral-8x22b deepseek-v2 deepseek-v3 gshard-600b qwen2.5-72b qwen3-235b-a22b gpt4-1.8t
"""


def fields_of(name: str) -> dict[str, Any]:
    """The file as it is."""
    fields: dict[str, Any] = yaml.safe_load((FOLDER / f"{name}.yaml").read_text(encoding="utf-8"))
    return fields


def model_of(name: str) -> Transformer:
    """The shipped model."""
    return read_model(fields_of(name))


def test_the_catalogue_is_complete() -> None:
    """Every model that scenarios name is shipped, and no other."""
    assert set(NAMES) == set(EXPECTED.split())


@pytest.mark.parametrize("name", NAMES)
def test_names_and_sources(name: str) -> None:
    """A file is named as its model and says where its numbers come from."""
    model = model_of(name)
    assert model.name == name
    assert len(model.source) > 40
    assert model.max_sequence_length is not None


@pytest.mark.parametrize("name", NAMES)
def test_total_is_the_published_one(name: str) -> None:
    """Within the tolerance in the file, which is 0 where the source counts exactly."""
    model = model_of(name)
    assert model.published_parameters is not None
    error = abs(model.total_parameters - model.published_parameters)
    assert error <= model.published_tolerance * model.published_parameters


# Counted tensor by tensor in the released weights (parameter counts of the safetensors files).
RELEASED = {
    "gpt1": 116_534_784,
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt-neox-20b": 20_554_567_680,
    "bloom-176b": 176_247_271_424,
    "llama-7b": 6_738_415_616,
    "llama-13b": 13_015_864_320,
    "llama-33b": 32_528_943_616,
    "llama-65b": 65_285_660_672,
    "llama2-7b": 6_738_415_616,
    "llama2-13b": 13_015_864_320,
    "llama2-70b": 68_976_648_192,
    "llama3-8b": 8_030_261_248,
    "llama3-70b": 70_553_706_496,
    "llama3.1-405b": 405_853_388_800,
    "mixtral-8x7b": 46_702_792_704,
    "mixtral-8x22b": 140_620_634_112,
    "deepseek-v2": 235_741_434_880,
    "deepseek-v3": 671_026_419_200,
    "qwen2.5-72b": 72_706_203_648,
    "qwen3-235b-a22b": 235_093_634_560,
}


@pytest.mark.parametrize("name", RELEASED)
def test_released_weights_are_counted_exactly(name: str) -> None:
    """No parameter too many or too few where the weights are public."""
    assert model_of(name).total_parameters == RELEASED[name]


def test_only_models_without_public_weights_have_a_tolerance() -> None:
    """A tolerance is for a rounded figure, never for a miscount; PaLM, GPT-3 and Megatron round to few digits."""
    assert {name for name in NAMES if model_of(name).published_tolerance == 0} == set(RELEASED)
    assert max(model_of(name).published_tolerance for name in NAMES) <= 0.035


@pytest.mark.parametrize(
    ("name", "billions", "tolerance"),
    [
        ("mixtral-8x7b", 12.9, 0.005),
        ("mixtral-8x22b", 39, 0.01),
        ("deepseek-v2", 21, 0.02),
        ("deepseek-v3", 37, 0.02),
        ("qwen3-235b-a22b", 22, 0.01),
        ("gpt4-1.8t", 280, 0.01),
    ],
)
def test_active_parameters_are_the_published_ones(name: str, billions: float, tolerance: float) -> None:
    """To the digits that the papers round to (embedding and output layer included)."""
    model = model_of(name)
    assert model.active_parameters == pytest.approx(billions * 1e9, rel=tolerance)
    assert model.published_active_parameters == billions * 1e9


def test_gshard_active_parameters_need_the_cross_attention_left_out() -> None:
    """18 decoder layers' cross attention of 4 * 1024 * 2048 makes up the difference to GLaM's 1.5B."""
    model = model_of("gshard-600b")
    cross_attention = 18 * 4 * 1024 * 16 * 128
    assert round((model.active_parameters + cross_attention) / 1e9, 1) == 1.5
    assert model.num_moe_layers * 2048 == 36_864


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("megatron-", "mt-nlg"))])
def test_megatron_models_follow_their_formula(name: str) -> None:
    """Oracle: P = 12 l h^2 (1 + 13 / 12h + (V + s) / 12lh) (arXiv 2104.04473, equation 2), less the last norm."""
    model = model_of(name)
    layers, hidden = model.num_layers, model.hidden_size
    assert model.max_sequence_length is not None
    formula = 12 * layers * hidden**2 + 13 * layers * hidden + (model.vocab_size + model.max_sequence_length) * hidden
    assert model.total_parameters == formula + 2 * hidden


@pytest.mark.parametrize(
    ("name", "printed"),
    [
        ("megatron-1.7b", 1.7), ("megatron-3.6b", 3.6), ("megatron-7.5b", 7.5), ("megatron-39b", 39.1),
        ("megatron-145b", 145.6), ("megatron-310b", 310.1), ("megatron-530b", 529.6), ("megatron-1t", 1008.0),
        ("palm-540b", 540.4), ("gpt3-175b", 174.6),
    ],
)  # fmt: skip
def test_rounded_totals_print_as_in_the_papers(name: str, printed: float) -> None:
    """One decimal of billions, as the tables print them."""
    assert round(model_of(name).total_parameters / 1e9, 1) == printed


def test_gpt4_gives_both_rumoured_figures_at_once() -> None:
    """4 h^2 * 120 = 55.5B of attention and 8 h^2 * 120 = 111.0B per expert with h = 10,752."""
    model = model_of("gpt4-1.8t")
    assert model.num_layers * model.attention_parameters == 4 * 10752**2 * 120
    assert model.num_layers * model.attention_parameters == pytest.approx(55.5e9, rel=1e-3)
    assert model.num_layers * model.expert_parameters == pytest.approx(111.0e9, rel=1e-3)
    assert model.num_moe_layers == 120


@pytest.mark.parametrize("tp", [8, 16])
def test_gpt4_divides_by_tensor_parallelism(tp: int) -> None:
    """Heads, expert width and padded vocabulary split evenly over one and two NVLink domains."""
    model = model_of("gpt4-1.8t")
    assert [size % tp for size in (model.num_attention_heads, 4 * model.hidden_size, model.vocab_size)] == [0, 0, 0]
    assert model.vocab_size % (128 * tp) == 0


def test_architectures_differ_where_the_papers_do() -> None:
    """One distinctive fact of each family that a total alone would not show."""
    assert model_of("palm-540b").attention_kind == "mqa"
    assert model_of("palm-540b").parallel_block
    assert model_of("palm-540b").norms_per_layer == 1
    assert model_of("gpt-neox-20b").parallel_block
    assert model_of("gpt-neox-20b").norms_per_layer == 2
    assert model_of("bloom-176b").position == "alibi"
    assert model_of("llama2-70b").attention_kind == "gqa"
    assert model_of("llama-65b").attention_kind == "mha"
    assert model_of("deepseek-v3").attention_kind == "mla"
    assert [model_of("deepseek-v3").is_moe_layer(index) for index in (2, 3)] == [False, True]
    assert [model_of("gshard-600b").is_moe_layer(index) for index in (0, 1)] == [False, True]
