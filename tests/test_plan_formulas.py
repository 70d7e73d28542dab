"""The plan's formulas against sums done by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
from transformers import LlamaConfig

from idealmix.config import Lora
from idealmix.errors import InputError
from idealmix.plan import cost, memory
from idealmix.plan.machine import GIB, Machine, named
from idealmix.plan.memory import Batch, Matrices
from idealmix.plan.shapes import Blueprint, Kept, Linear, Shape
from idealmix.plan.work import Rows

SHAPE = Shape(
    parameters=1000, trained=1000, largest=200, embedding=200, tied=False, vocabulary=20, hidden=10, inner=30,
    blocks=2, cached=40, attention=20,
)  # fmt: skip
LAYERS = [Linear("q", 3, 5, "q"), Linear("k", 3, 2, "q"), Linear("down", 7, 3, "down")]


def llama(**changes: int) -> LlamaConfig:
    sizes = {
        "hidden_size": 16, "intermediate_size": 40, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "vocab_size": 50, "bos_token_id": None, "eos_token_id": None,
    }  # fmt: skip
    return LlamaConfig(**{**sizes, **changes})


def test_parameters_of_a_llama() -> None:
    shape = Blueprint(llama(tie_word_embeddings=True)).shape
    block = 16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 40 + 2 * 16  # q and o, k and v, feed-forward, two norms
    assert shape.parameters == shape.trained == 50 * 16 + 2 * block + 16
    assert shape.tied
    assert shape.multiplied == shape.parameters
    assert shape.cached == 2 * 2 * 4 * 2  # keys and values, two heads of 4, two blocks


def test_layers_that_read_the_same_input_have_one_leader() -> None:
    layers = {
        layer.name.removeprefix("model.layers.0."): layer for layer in Blueprint(llama()).layers("linear")
    }
    assert layers["mlp.up_proj"].leader == "model.layers.0.mlp.gate_proj"
    assert layers["self_attn.v_proj"].leader == "model.layers.0.self_attn.q_proj"
    assert layers["mlp.down_proj"] == Linear(
        "model.layers.0.mlp.down_proj", 40, 16, "model.layers.0.mlp.down_proj"
    )


def test_what_a_llama_keeps_for_its_backward() -> None:
    """By hand, in numbers a token: each norm keeps its input, the scale, the normed input; linear layers their input.

    A block: norm 16 + 1 + 16, q k v's input 16, rotated q 16, k and v repeated to four heads 16 + 16, attention's
    output 16 and its log-sum 4, norm 16 + 1 + 16, gate and up's input 16, gate 40, silu 40, up 40, product 40.
    Once: the last norm 16 + 1 + 16, the ids (8 bytes).
    """
    length = 32
    block = (16 + 1 + 16) + 16 + 16 + 32 + 16 + 4 + (16 + 1 + 16) + 16 + 4 * 40
    kept = Blueprint(llama()).training(length, "float32")
    mask = (
        4 * length * length
    )  # each block makes numbers of it; cosines and sines once, and a number for each weight
    assert kept.per_row == 4 * length * (2 * block + 33) + 8 * length + 2 * mask
    assert 2 * 4 * length * 4 <= kept.fixed < 2 * 4 * length * 4 + 4 * 30


def test_checkpointing_keeps_block_inputs_and_one_block() -> None:
    plan = Blueprint(llama())
    plain, less = plan.training(32, "float32"), plan.training(32, "float32", checkpointing=True)
    assert less.per_row == 4 * 32 * 16 * 2 + plain.per_row / 2
    assert plain.passing > 4 * 32 * 2 * (16 + 40)  # each block's output before the sum, at least


def test_adapters_are_what_is_trained_and_measured() -> None:
    plan = Blueprint(llama(), Lora(r=4, target_modules=["q_proj"]))
    assert plan.shape.trained == 2 * (4 * 16 + 16 * 4)
    assert {layer.name.rsplit(".", 2)[-2] for layer in plan.layers("linear")} == {"lora_A", "lora_B"}
    assert plan.shape.weights("bfloat16") == 4 * 256 + 2 * (plan.shape.parameters - 256)


def test_training_memory_by_hand() -> None:
    kept = Kept(10.0, 100.0, 1000.0)
    moments = memory.training(SHAPE, Batch(2, 8, 5), kept, "float32", steps=2, accelerator=False)
    head = 8.25 * 4 * 16 * 20 + 4 * 20 * 10  # tiles of 16 tokens x 20 words, the head's own gradient
    assert moments["loss"] == 4000 + 8000 + 210 + memory.GAPS_TRAINING * 2000 + head
    assert moments["step"] == 4000 + 4000 + 8000 + 8 * 200
    assert moments["saving"] == 4000 + 8000 + 4000
    first = memory.training(SHAPE, Batch(2, 8, 5), kept, "float32", steps=1, accelerator=False)
    assert moments["loss"] - first["loss"] == 8000  # no moments yet
    card = memory.training(SHAPE, Batch(2, 8, 5), kept, "float32", steps=2, accelerator=True)
    assert card["loss"] == 4000 + 8000 + 210 + max(4 * 16 * 20 + 4 * 20 * 10, 4 * 16 * (3 * 30 + 2 * 10))


def test_layer_matrices_by_hand() -> None:
    found = Matrices.of(LAYERS)
    assert found.whole == 4 * (15 + 6 + 21)
    assert (found.a, found.a_each, found.s) == (4 * (9 + 49), 4 * (9 + 9 + 49), 4 * (25 + 4 + 9))
    assert (found.largest, found.widest) == (4 * 21, 7)


def test_influence_memory_by_hand() -> None:
    names = ("covariances", "eigenvalues", "references", "domains", "reference rows")
    passes = dict.fromkeys(names, (Batch(1, 1, 0), Kept(0.0, 0.0)))
    held = memory.influence(
        SHAPE, LAYERS, passes, "float32", curvature="ekfac", references=3, samples=4, accelerator=True
    )
    head, signal = 4.0 * 20, 8.0 * (7 + 10)
    m, bases = 4.0 * 42, 4.0 * (58 + 38)
    rows, queries = 84.0, 4 * 84.0
    assert held["domains"] == 4000 + bases + m + 7 * m + max(head, signal, rows + queries + 84)
    disk = memory.influence(
        SHAPE,
        LAYERS,
        passes,
        "float32",
        curvature="ekfac",
        references=3,
        samples=4,
        accelerator=True,
        on_disk=True,
    )
    assert held["domains"] - disk["domains"] == bases + m + 6 * m  # one gradient is always in memory
    plain = memory.influence(
        SHAPE, LAYERS, passes, "float32", curvature="identity", references=3, samples=4, accelerator=True
    )
    assert plain["covariances"] == plain["eigenvalues"] == 0
    assert held["domains"] - plain["domains"] == bases + m


def test_each_pass_counts_its_own_batch_and_the_logits_that_are_made() -> None:
    words = replace(SHAPE, vocabulary=1000)

    def moments(**batches: Batch) -> dict[str, float]:
        names = ("covariances", "eigenvalues", "references", "domains", "reference rows")
        passes = {name: (batches.get(name.split()[0], Batch(1, 4, 0, 0)), Kept(0.0, 100.0)) for name in names}
        return memory.influence(
            words, LAYERS, passes, "float32", curvature="ekfac", references=1, samples=1, accelerator=True
        )

    one, wider = moments(), moments(covariances=Batch(3, 4, 0, 0))
    assert wider["covariances"] - one["covariances"] == 2 * 100 + 2 * 4 * 8.0 * (7 + 10)
    assert all(wider[name] == one[name] for name in one if name != "covariances")
    some, whole = moments(domains=Batch(1, 4, 0, 3)), moments(domains=Batch(1, 4, 0))
    assert whole["domains"] - some["domains"] == 4 * 1000


def test_logits_are_made_everywhere_where_the_head_is_measured() -> None:
    blueprint = Blueprint(llama())
    assert blueprint.selects("linear")
    assert not blueprint.selects(["lm_head"])


def test_costs_by_hand() -> None:
    assert cost.forward(SHAPE, 10, 6) == 10 * (2 * 800 + 4 * 20 * 6)
    assert cost.training(SHAPE, 10, 6, False).passes == 3 * cost.forward(SHAPE, 10, 6)
    assert cost.covariances(SHAPE, LAYERS, 10, 6).sums == 10 * 2 * (9 + 49 + 25 + 4 + 9)
    assert cost.decompositions(LAYERS, "ekfac").decompositions == 9 * (27 + 343 + 125 + 8 + 27)
    assert cost.gradients(SHAPE, LAYERS, 12, 6, 3, 0).sums == 2 * 42 * (12 + 3 * 2)
    machine = Machine("m", 1.0, 100.0, 10.0)
    assert cost.Cost(passes=40, sums=8, decompositions=1).seconds(machine, "bfloat16") == 1 + 1 + 1


def test_batches_are_grouped_as_measuring_groups_them() -> None:
    from idealmix.curvature import make_batches

    lengths = [3, 9, 4, 4, 7, 2]
    rows = Rows.of([(lengths, [n - 1 for n in lengths], [2, 1, 3, 3, 1, 1]), ([5], [4], [2])])
    made = make_batches([(str(i), [1] * n, [1] * n, 1.0) for i, n in enumerate(lengths)], 12)
    assert [(b.rows, b.length) for b in rows.batches(12)] == [
        *(tuple(b.input_ids.shape) for b in made),
        (1, 5),
    ]
    assert sum(b.supervised for b in rows.batches(12)) == sum(lengths) - 6 + 4
    assert [b.columns for b in rows.batches(12)] == [9 - 1, 7 - 1, 4 - 2, 2 - 1, 5 - 2]


def test_machines_are_named() -> None:
    assert named("h200").memory > 139 * GIB
    with pytest.raises(InputError, match="did you mean 'h200'"):
        named("H-200")
