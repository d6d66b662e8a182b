"""Stages of equal cost: how nanotron cuts a model.

Layers, output layer and embedding are dealt out in order; a stage ends with the piece at which the running cost passes
(or, since the fix of its pipeline, reaches) its share of the whole. The cost of a layer is its weights, of the output
layer vocabulary times hidden size, of all else nothing (`get_block_compute_costs` and `build_model` of
huggingface/nanotron).

Limits: the running cost decides, so that the last stages may be left with nothing. Pinned by
tests/physics/test_memory.py.
"""

from __future__ import annotations

from itertools import accumulate

from simulator.physics.stages import Stage
from simulator.scenario.transformer import Transformer


def cut_by_cost(model: Transformer, pp: int, *, reached: bool) -> tuple[Stage, ...]:
    """Stages whose running cost passes, or `reached`: equals, their share."""
    width = 4 * model.hidden_size**2 + 3 * model.ffn_hidden_size * model.hidden_size
    pieces = [0, *[width] * model.num_layers, 0, model.vocab_size * model.hidden_size, 0, 0]
    running = list(accumulate(pieces))
    homes, stage = [], 0
    for cost in running:
        homes.append(stage)
        share = running[-1] * ((stage + 1) / pp)
        if stage < pp - 1 and (cost > share or (reached and cost == share)):
            stage += 1
    layers = homes[1 : model.num_layers + 1]
    found, start = [], 0
    for index in range(pp):
        count = layers.count(index)
        output = homes[model.num_layers + 2] == index
        found.append(Stage(index, range(start, start + count), index == 0, output))
        start += count
    return tuple(found)
