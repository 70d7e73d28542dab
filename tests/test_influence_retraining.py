"""Signs and sizes against real retraining: negative alpha means that more of the domain lowers the loss."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from influence_helpers import RowPool, mixture_of, settings, tiny
from training_helpers import TinyPool, TinyRow, save_tiny_model, tiny_mixture

from idealmix.config import Influence, Training
from idealmix.curvature import make_batches
from idealmix.curvature.task import CausalTask
from idealmix.influence_stage import measure
from idealmix.training import train
from idealmix.training.model import load_model, load_tokenizer

LAYER = "blocks.1.down"


def world(seed: int = 0, count: int = 100):
    """Three domains and two references over 11 tokens: each follows its own successor table, with noise."""
    rng = np.random.default_rng(seed)
    tables = rng.integers(0, 11, (3, 11))

    def rows(which, number, tag):
        made = []
        for i in range(number):
            length, ids = int(rng.integers(4, 12)), [int(rng.integers(0, 11))]
            for _ in range(length - 1):
                follows = rng.random() < 0.6
                ids.append(int(tables[which][ids[-1]]) if follows else int(rng.integers(0, 11)))
            prompt = int(rng.integers(1, length - 1))
            made.append((f"{tag}{i}", ids, [-100] * prompt + ids[prompt:]))
        return RowPool(tag, made)

    domains = {name: rows(k, count + 10 * k, name) for k, name in enumerate(("first", "second", "third"))}
    return domains, {"first": rows(0, 25, "q"), "third": rows(2, 25, "s")}


def mean_loss(model, pool) -> torch.Tensor:
    """Nats per supervised token; one padded batch."""
    [batch] = make_batches(
        [(r.id, r.input_ids, r.labels, 1.0) for r in map(pool.row, range(len(pool)))], 10**6
    )
    logits = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
    return torch.nn.functional.cross_entropy(logits.flatten(0, 1), CausalTask().targets(batch).flatten())


class Convex:
    """The loss as a function of one layer's weight: logits = rest + (x W') head', so Newton's method is exact.

    Rows of all pools at once; `sets` says which tokens belong to which pool.
    """

    def __init__(self, model, pools) -> None:
        self.model, self.layer, self.head = (
            model,
            dict(model.named_modules())[LAYER],
            model.lm_head.weight.detach(),
        )
        seen: list[torch.Tensor] = []
        handle = self.layer.register_forward_hook(lambda module, args, output: seen.append(args[0]))
        x, rest, targets, sets = [], [], [], []
        with torch.no_grad():
            for number, pool in enumerate(pools.values()):
                for row in map(pool.row, range(len(pool))):
                    ids = torch.tensor([row.input_ids])
                    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
                    where = [t for t in range(len(row.labels) - 1) if row.labels[t + 1] != -100]
                    features = seen.pop()[0][where]
                    x.append(features)
                    rest.append(logits[where] - features @ self.layer.weight.T @ self.head.T)
                    targets += [row.labels[t + 1] for t in where]
                    sets += [number] * len(where)
        handle.remove()
        self.x, self.rest, self.targets = torch.cat(x), torch.cat(rest), torch.tensor(targets)
        self.sets, self.names = torch.tensor(sets), list(pools)

    def losses(self, W) -> dict[str, torch.Tensor]:
        """Nats per supervised token by pool."""
        logits = self.rest + self.x @ W.T @ self.head.T
        each = torch.nn.functional.cross_entropy(logits, self.targets, reduction="none")
        return {name: each[self.sets == k].mean() for k, name in enumerate(self.names)}

    def gradient(self, W, name) -> torch.Tensor:
        W = W.clone().requires_grad_()
        return torch.autograd.grad(self.losses(W)[name], W)[0].flatten()

    def hessian(self, W, weights) -> torch.Tensor:
        p = torch.softmax(self.rest + self.x @ W.T @ self.head.T, 1)
        token = sum(
            w * (self.sets == self.names.index(n)) / (self.sets == self.names.index(n)).sum()
            for n, w in weights.items()
        )
        inner = torch.diag_embed(p) - p[:, :, None] * p[:, None]
        outer = self.head.T @ inner @ self.head
        size = W.numel()
        return torch.einsum("n,nab,ni,nj->aibj", token, outer, self.x, self.x).reshape(size, size)

    def minimum(self, weights, W) -> torch.Tensor:
        """Newton's method from W to the end."""
        for _ in range(60):
            gradient = sum(w * self.gradient(W, name) for name, w in weights.items())
            if gradient.norm() < 1e-11:
                return W
            step = torch.linalg.solve(self.hessian(W, weights), gradient)
            W = W - (step * min(1.0, 2.0 / float(step.norm()))).view_as(W)
        raise AssertionError(f"not converged: {gradient.norm()}")


@pytest.fixture(scope="module", params=[0, 3])
def converged(request):
    """A model with one layer trained to the very end on three domains; what happens to the references' losses."""
    domains, references = world(request.param)
    tokens = {name: float(pool.supervised.sum()) for name, pool in domains.items()}
    v = {name: count / sum(tokens.values()) for name, count in tokens.items()}
    model = tiny(request.param)
    loss = Convex(model, domains | {f"{name}-q": pool for name, pool in references.items()})
    best = loss.minimum(v, loss.layer.weight.detach())
    with torch.no_grad():
        loss.layer.weight.copy_(best)
    mixture = mixture_of({name: pool.ids for name, pool in domains.items()})
    return model, mixture, domains, references, v, loss, best


def retrained(converged, step=0.05) -> np.ndarray:
    """(R, D) central differences of the references' losses over real retraining with another weight of a domain."""
    *_, domains, references, v, loss, best = converged
    columns = []
    for name in domains:
        after = []
        for beta in (step, -step):
            changed = {d: share * (1 + beta * (d == name)) for d, share in v.items()}
            total = sum(changed.values())
            found = loss.losses(loss.minimum({d: share / total for d, share in changed.items()}, best))
            after.append(np.array([float(found[f"{q}-q"]) for q in references]))
        columns.append((after[0] - after[1]) / (2 * step))
    return np.stack(columns, 1)


def test_alpha_is_what_retraining_to_convergence_does(converged):
    model, mixture, domains, references, *_ = converged
    true = retrained(converged)
    found = {
        c: measure(model, mixture, domains, references, settings(layers=LAYER, damping=1e-4, centred=c))
        for c in (True, False)
    }
    alpha = found[True].alpha
    clear = np.abs(true) > 0.1 * np.abs(true).max()
    assert clear.sum() >= 4
    assert (np.sign(alpha) == np.sign(true))[clear].all()
    assert np.corrcoef(alpha.ravel(), true.ravel())[0, 1] > 0.97  # over four seeds: .987 to .997
    assert 0.8 < (alpha * true).sum() / (true**2).sum() < 1.2  # .89 to 1.04
    # at the optimum the mixture's gradient is zero: centred or not is the same
    np.testing.assert_allclose(alpha, found[False].alpha, rtol=1e-6)
    # its own domain lowers a reference's loss, and words say so
    assert true[0, 0] < 0
    assert true[1, 2] < 0
    words = np.array(found[True].signs())
    assert (true[words == "helps"] < 0).all()
    assert (true[words == "hurts"] > 0).all()


def test_the_test_itself_is_the_implicit_function_theorem(converged):
    """Retraining equals -v_i g_q' H^-1 g_i with the full Hessian, so what is left above is EK-FAC's approximation."""
    *_, domains, references, v, loss, best = converged
    inverse = torch.linalg.inv(loss.hessian(best, v))
    exact = [
        [float(-v[d] * loss.gradient(best, f"{q}-q") @ inverse @ loss.gradient(best, d)) for d in domains]
        for q in references
    ]
    np.testing.assert_allclose(retrained(converged, 0.01), exact, rtol=0.01, atol=1e-4)


def test_the_dot_of_gradients_does_not_tell_the_size(converged):
    model, mixture, domains, references, *_ = converged
    true = retrained(converged)
    for kind, right in (("kfac", True), ("identity", False)):
        chosen = settings(layers=LAYER, damping=1e-4, curvature=kind)
        alpha = measure(model, mixture, domains, references, chosen).alpha
        assert (0.8 < (alpha * true).sum() / (true**2).sum() < 1.2) == right


# --- through the real trainer --------------------------------------------------------------------------------


def conflicting_pools(rng, sizes: dict[str, int], tables) -> dict[str, TinyPool]:
    """``truth`` and ``lies`` give different answers to the same prompts; ``noise`` gives none that can be learned."""
    pools = {}
    for name, size in sizes.items():
        rows = []
        for number in range(size):
            prompt = rng.integers(2, 20, 4).tolist()
            table = tables.get(name.split("-")[0])
            answer = rng.integers(20, 40, 4) if table is None else [table[token] for token in prompt]
            ids = [*prompt, *map(int, answer)]
            rows.append(TinyRow(f"{number:03d}", ids, [-100] * 4 + ids[4:]))
        pools[name] = TinyPool(name, rows)
    return pools


@pytest.fixture(scope="module")
def trained_thrice(tmp_path_factory):
    """A tiny Llama trained by TRL on truth and lies: as they are, with more truth, with more lies; steps held."""
    rng = np.random.default_rng(0)
    tables = {name: rng.integers(20, 40, 40) for name in ("truth", "lies")}
    pools = conflicting_pools(rng, {"truth": 96, "lies": 96}, tables)
    references = conflicting_pools(rng, {"truth-q": 32, "lies-q": 32}, tables)
    folder = tmp_path_factory.mktemp("retraining")
    base = save_tiny_model(folder / "base")
    chosen = Training(learning_rate=3e-3, per_device_train_batch_size=16, epochs=3, dtype="float32")
    found = {}
    for tag, (truth, lies) in {"even": (64, 64), "truth": (80, 48), "lies": (48, 80)}.items():
        mixture = tiny_mixture(pools)
        mixture.row_ids = {"truth": pools["truth"].ids[:truth], "lies": pools["lies"].ids[:lies]}
        record = train(base, mixture, pools, chosen, seed=0, output=folder / tag, steps=24)
        found[tag] = (mixture, record, load_model(folder / tag / "model"))
    return pools, references, found, folder


@pytest.mark.parametrize(
    "options",
    [{}, {"response": "finite"}, {"fisher": "empirical"}, {"curvature": "kfac"}],
    ids=["default", "finite", "empirical", "kfac"],
)
def test_signs_agree_with_real_training(trained_thrice, options):
    pools, references, found, folder = trained_thrice
    mixture, record, model = found["even"]
    matrix = measure(
        model, mixture, pools, references, Influence(**options), record=record, folder=folder / "even"
    )

    def loss(tag, name):
        with torch.no_grad():
            return float(mean_loss(found[tag][2], references[name]))

    # a domain helps its own reference and hurts the other one
    right = [["helps", "hurts"], ["hurts", "helps"]]
    for q, (reference, words) in enumerate(zip(matrix.references, matrix.signs())):
        true = (loss("truth", reference) - loss("lies", reference)) / 2
        assert abs(true) > 0.1  # the test can see something
        # 64 -> 80 and 64 -> 48 rows: beta = 0.25 and -0.25
        predicted = matrix.change({"truth": 0.25, "lies": -0.25}, {reference: 1.0})
        assert np.sign(predicted.value) == np.sign(true)
        assert abs(predicted.value) > 2 * predicted.se
        assert all(word in (expected, "cannot be told from zero") for word, expected in zip(words, right[q]))
        assert words[q] == "helps" or q == 1
        # after three epochs the converged response is far too large (about 30 times here), the finite one less so (4)
        assert (0.5 < predicted.value / true < 8) == (matrix.facts["response"] == "finite")
    assert (np.sign(matrix.alpha) == [[-1, 1], [1, -1]]).all()
    assert (np.sign(matrix.alpha_drawn) == [[-1, 1], [1, -1]]).all()
    assert matrix.step_weights == record.step_weights


# --- the weights of the domains ------------------------------------------------------------------------------


@pytest.mark.parametrize("accumulation", [1, 4])
def test_the_step_weights_are_those_of_the_loss_that_trl_reports(tmp_path, accumulation):
    """Finite differences of TRL's own loss, averaged over the steps, against sum_i v_i gbar_i.

    Rows of 4 to 24 tokens, alike within a domain; the learning rate moves nothing.
    """
    rng, pools = np.random.default_rng(0), {}
    for name, size, length in (("long", 3, 24), ("short", 9, 4), ("middle", 7, 10)):
        ids = rng.integers(2, 40, length).tolist()
        pools[name] = TinyPool(name, [TinyRow(f"{i}", ids, [-100, *ids[1:]]) for i in range(size)])
    base = save_tiny_model(tmp_path / "base")
    model = load_model(base)
    layers = [name for name, p in model.named_parameters() if name.endswith("down_proj.weight")]
    weights = [dict(model.named_parameters())[name] for name in layers]
    gbar = {name: torch.autograd.grad(mean_loss(model, pool), weights) for name, pool in pools.items()}
    chosen = Training(
        learning_rate=1e-30,
        dtype="float32",
        per_device_train_batch_size=4 // accumulation,
        gradient_accumulation_steps=accumulation,
    )
    originals = [weight.detach().clone() for weight in weights]

    def trl_loss(direction, size, tag):
        with torch.no_grad():
            for weight, original, part in zip(weights, originals, direction):
                weight.copy_(original + size * part)
        model.save_pretrained(tmp_path / tag)
        load_tokenizer(str(base)).save_pretrained(tmp_path / tag)
        return train(
            tmp_path / tag, tiny_mixture(pools), pools, chosen, seed=0, output=tmp_path / f"{tag}-out"
        )

    slopes, system = [], []
    for name in pools:
        norm = float(sum(part.norm() ** 2 for part in gbar[name])) ** 0.5
        direction = [part / norm for part in gbar[name]]
        up, down = (trl_loss(direction, size, f"{name}{size}") for size in (0.03, -0.03))
        slopes.append((np.mean(up.losses) - np.mean(down.losses)) / 0.06)
        system.append([float(sum((g * d).sum() for g, d in zip(gbar[other], direction))) for other in pools])
    v = np.linalg.solve(system, slopes)
    assert v == pytest.approx(list(up.step_weights.values()), abs=0.005)
    assert np.abs(v - list(up.token_shares.values())).max() > 0.02  # which is another vector here
    with torch.no_grad():
        for weight, original in zip(weights, originals):
            weight.copy_(original)
    mixture = tiny_mixture(pools)
    matrix = measure(model, mixture, pools, pools, Influence(curvature="identity", centred=False), record=up)
    drawn = matrix.moments.mean[:, :3]
    np.testing.assert_allclose(
        matrix.alpha, -drawn * np.array([up.step_weights[n] for n in pools]), rtol=1e-6
    )
