"""A set's loss against transformers' own loss, one row at a time; its errors against the bootstrap."""

from __future__ import annotations

import math

import evaluation_helpers as helpers
import numpy as np
import pytest
import torch
from scipy.special import stdtrit

from idealmix.errors import IdealmixError
from idealmix.evaluation.loss import reference_loss
from idealmix.evaluation.set_loss import SetLoss, paired_difference, satterthwaite


def direct(model, row) -> tuple[float, int]:
    """The row alone, without pads, through the model's own loss."""
    ids, labels = torch.tensor([row.input_ids]), torch.tensor([row.labels])
    count = int((labels[:, 1:] != -100).sum())
    with torch.no_grad():
        return float(model(input_ids=ids, labels=labels).loss) * count, count


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
@pytest.mark.parametrize("batch_tokens", [1, 30, 60, 10_000])
def test_every_row_equals_transformers_own_loss(kind, batch_tokens):
    model, pool = helpers.tiny_model(kind, torch.float64), helpers.token_pool()
    loss = reference_loss(model, pool, batch_tokens)
    assert loss.row_ids == tuple(row.id for row in pool.rows)
    for row, nats, count in zip(pool.rows, loss.loss_sums, loss.counts):
        # transformers upcasts its loss to float32
        assert (nats, count) == (pytest.approx(direct(model, row)[0], rel=1e-6), direct(model, row)[1])
    assert loss.mean == pytest.approx(
        sum(direct(model, r)[0] for r in pool.rows) / loss.counts.sum(), rel=1e-6
    )


def test_batch_size_and_order_change_nothing():
    model, pool = helpers.tiny_model(dtype=torch.float64), helpers.token_pool(12)
    alone, together = reference_loss(model, pool, 1), reference_loss(model, pool, 10_000)
    np.testing.assert_allclose(alone.loss_sums, together.loss_sums, rtol=1e-12)
    turned = reference_loss(model, helpers.TinyPool("set", pool.rows[::-1]), 70)
    np.testing.assert_allclose(turned.loss_sums[::-1], alone.loss_sums, rtol=1e-12)
    assert turned.row_ids == alone.row_ids[::-1]


def test_a_model_without_logits_to_keep_gives_the_same():
    model, pool = helpers.tiny_model(dtype=torch.float64), helpers.token_pool()

    class Plain(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = model

        def forward(self, input_ids, attention_mask, use_cache):
            return self.inner(input_ids=input_ids, attention_mask=attention_mask, use_cache=use_cache)

    np.testing.assert_allclose(
        reference_loss(Plain(), pool).loss_sums, reference_loss(model, pool).loss_sums, rtol=1e-12
    )


def test_bf16_logits_are_summed_in_float32():
    model, pool = helpers.tiny_model(dtype=torch.bfloat16), helpers.token_pool()
    loss = reference_loss(model, pool, 1)
    for row, nats in zip(pool.rows, loss.loss_sums):
        with torch.no_grad():
            logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
        labels = torch.tensor(row.labels[1:])
        wanted = torch.nn.functional.cross_entropy(logits.double(), labels, reduction="sum")
        assert nats == pytest.approx(float(wanted), rel=1e-5)  # a bf16 sum would be off by 1e-2


def test_a_model_in_training_is_evaluated_without_dropout_and_left_in_training():
    model, pool = helpers.tiny_model(), helpers.token_pool()
    quiet = reference_loss(model, pool)
    model.train()
    assert np.array_equal(reference_loss(model, pool).loss_sums, quiet.loss_sums)
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_progress_ends_at_all_tokens():
    pool, seen = helpers.token_pool(), []
    reference_loss(helpers.tiny_model(), pool, 40, lambda done, total: seen.append((done, total)))
    tokens = sum(len(row.input_ids) for row in pool.rows)
    assert len(seen) > 2
    assert seen[-1] == (tokens, tokens)


def test_a_loss_that_is_not_finite_names_the_set_and_the_rows():
    model, pool = helpers.tiny_model(), helpers.token_pool()
    odd = pool.rows[3]
    odd.input_ids[-1], odd.labels[-1] = 7, 7
    with torch.no_grad():
        model.lm_head.weight[7] = float("nan")
    only = helpers.TinyPool("mathematics", [odd])
    with pytest.raises(IdealmixError, match=r"mathematics: the loss of 1 of 1 rows is not finite: row-3"):
        reference_loss(model, only)


def test_a_set_without_supervised_tokens_is_refused():
    pool = helpers.token_pool(3)
    for row in pool.rows:
        row.labels = [-100] * len(row.labels)
    with pytest.raises(IdealmixError, match="no supervised token"):
        reference_loss(helpers.tiny_model(), pool)


def simulated(seed: int, rows: int = 60, shift: float = 0.0) -> tuple[SetLoss, SetLoss]:
    """Two models on the same rows: token counts unequal, losses of a row's tokens strongly correlated."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(1, 40, rows)
    level = rng.gamma(4, 0.3, rows)
    first = level * counts + rng.normal(0, 0.1, rows) * counts
    second = first + (shift + rng.normal(0, 0.05, rows)) * counts
    ids = tuple(map(str, range(rows)))
    return SetLoss("set", ids, first, counts), SetLoss("set", ids, second, counts)


def bootstrap(*losses: SetLoss, draws: int = 4000) -> np.ndarray:
    """(draws, models) means over rows drawn with replacement."""
    rng = np.random.default_rng(1)
    picks = rng.integers(0, len(losses[0]), (draws, len(losses[0])))
    return np.stack([x.loss_sums[picks].sum(1) / x.counts[picks].sum(1) for x in losses], 1)


def test_the_error_is_that_of_drawing_rows():
    first, _ = simulated(0)
    assert first.se == pytest.approx(bootstrap(first)[:, 0].std(), rel=0.06)
    naive = np.repeat(first.loss_sums / first.counts, first.counts).std() / math.sqrt(first.tokens)
    assert first.se > 2 * naive  # tokens of one row are not independent draws


def test_the_paired_error_is_that_of_the_difference():
    old, new = simulated(3, shift=-0.02)
    difference = paired_difference(new, old)
    means = bootstrap(new, old)
    assert difference.value == pytest.approx(new.mean - old.mean)
    assert difference.se == pytest.approx((means[:, 0] - means[:, 1]).std(), rel=0.06)
    assert difference.se < 0.3 * old.se
    share = old.counts / old.tokens
    assert difference.dof == pytest.approx(1 / (share**2).sum() - 1)
    # the delete-one jackknife, row by row
    n, without = len(old), []
    for row in range(n):
        rest = np.arange(n) != row
        without.append((new.loss_sums - old.loss_sums)[rest].sum() / old.counts[rest].sum())
    jackknife = np.sqrt((n - 1) / n * ((np.array(without) - difference.value) ** 2).sum())
    assert difference.se == pytest.approx(jackknife, rel=1e-9)
    assert paired_difference(old, new).value == -difference.value


def test_rows_of_very_unequal_length_make_no_better_of_nothing():
    """40 rows, lognormal lengths (sigma 1.5): with the linearised error a tenth of no differences would be better at 5 %."""
    rng, called = np.random.default_rng(0), 0
    for _ in range(2000):
        counts = rng.lognormal(3, 1.5, 40).astype(int) + 1
        old, new = (
            SetLoss("set", tuple(map(str, range(40))), counts * (2 + rng.normal(size=40)), counts)
            for _ in range(2)
        )
        value, se, dof = paired_difference(new, old)
        called += value / se < stdtrit(dof, 0.05)
    assert called / 2000 < 0.065  # two standard errors above 5 %: 0.06


def test_the_paired_interval_covers_the_truth():
    hits = 0
    for seed in range(300):
        old, new = simulated(seed, rows=40, shift=0.01)
        value, se, _ = paired_difference(new, old)
        hits += abs(value - 0.01) < 2.02 * se
    assert 0.92 < hits / 300 < 0.98


def test_losses_of_different_rows_do_not_pair():
    old, new = simulated(0)
    with pytest.raises(IdealmixError, match="different rows"):
        paired_difference(SetLoss("set", new.row_ids[::-1], new.loss_sums, new.counts), old)
    with pytest.raises(IdealmixError, match="different rows"):
        paired_difference(SetLoss("set", new.row_ids, new.loss_sums, new.counts + 1), old)


def test_json_gives_the_same_back():
    import json

    loss, _ = simulated(5)
    again = SetLoss.from_json(json.loads(json.dumps(loss.to_json())))
    assert again.row_ids == loss.row_ids
    assert np.array_equal(again.loss_sums, loss.loss_sums)
    assert np.array_equal(again.counts, loss.counts)
    assert (again.mean, again.se) == (loss.mean, loss.se)


def test_one_row_has_no_known_error():
    single = SetLoss("set", ("a",), np.array([3.0]), np.array([2]))
    assert single.se == math.inf
    assert single.to_json()["se"] is None


def test_satterthwaite_of_equal_parts_adds_the_degrees_of_freedom():
    assert satterthwaite([2.0, 2.0], [7, 7]) == pytest.approx(14)
    assert satterthwaite([1.0, 1e-9], [7, 70]) == pytest.approx(7, rel=1e-6)
