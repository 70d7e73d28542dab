"""A small causal transformer in float64, rows of unequal length, and everything computed directly, row by row.

Nothing here uses the package's hooks or batches: each row goes through the model alone and without padding, weight
gradients come from `torch.autograd.grad`, and matrices are built in full.
"""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import torch
from torch import nn

from idealmix.curvature import select_layers
from idealmix.curvature.labels import sample, uniforms

VOCABULARY = 11


class Block(nn.Module):
    """Attention with and without biases, a feed-forward part of another width, residuals."""

    def __init__(self, width: int, wide: int) -> None:
        super().__init__()
        self.q, self.k = nn.Linear(width, 4, bias=True), nn.Linear(width, 4, bias=False)
        self.v, self.o = nn.Linear(width, 5, bias=False), nn.Linear(5, width, bias=True)
        self.up, self.down = nn.Linear(width, wide, bias=True), nn.Linear(wide, width, bias=False)

    def forward(self, x: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
        scores = self.q(x) @ self.k(x).mT / 2
        mixed = scores.masked_fill(hidden, -1e30).softmax(-1) @ self.v(x)
        x = x + self.o(mixed)
        return x + self.down(torch.tanh(self.up(x)))


class Tiny(nn.Module):
    """Token and place embeddings, blocks, an untied head; called as transformers' models are."""

    def __init__(self, width: int = 6, wide: int = 7, blocks: int = 2) -> None:
        super().__init__()
        self.tokens, self.places = nn.Embedding(VOCABULARY, width), nn.Embedding(64, width)
        self.blocks = nn.ModuleList(Block(width, wide) for _ in range(blocks))
        self.lm_head = nn.Linear(width, VOCABULARY, bias=False)

    def forward(self, input_ids, attention_mask, use_cache=False):
        places = (attention_mask.cumsum(1) - 1).clamp_min(0)
        x = self.tokens(input_ids) + self.places(places)
        length = input_ids.shape[1]
        hidden = torch.ones(length, length, dtype=torch.bool).triu(1)[None] | ~attention_mask.bool()[:, None]
        for block in self.blocks:
            x = block(x, hidden)
        return SimpleNamespace(logits=self.lm_head(x))


def tiny(seed: int = 0) -> Tiny:
    """In float64, with weights large enough that attention is uneven."""
    torch.manual_seed(seed)
    model = Tiny().double()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(2.0)
    return model


def rows(count: int = 6, seed: int = 0, vocabulary: int = VOCABULARY, repeats: bool = True):
    """Rows of 3 to 13 tokens: a prompt without loss, sometimes a gap in the middle, unequal weights."""
    rng = np.random.default_rng(seed)
    made = []
    for i in range(count):
        length = int(rng.integers(3, 14))
        ids = rng.integers(0, vocabulary, length)
        labels = np.where(np.arange(length) < rng.integers(0, length - 1), -100, ids)
        if length > 8:
            labels[length // 2] = -100
        made.append((f"row-{i}", ids.tolist(), labels.tolist(), 1.0 + (i % 3 if repeats else 0)))
    return made


class Direct:
    """A, S, lambda and gradients of a set of rows, row by row and with full matrices.

    Attributes (by layer name): A, S; rows: list of {layer: G_n}; P, T; weights; supervised (by row).
    """

    def __init__(self, model, data, label_seed=None, spec="linear") -> None:
        self.layers = {layer.name: layer for layer in select_layers(model, spec)}
        self.rows, self.weights, self.losses, self.supervised = [], [], [], []
        aa = {name: 0.0 for name in self.layers}
        ss = {name: 0.0 for name in self.layers}
        self.P = self.T = 0.0
        for name, ids, labels, weight in data:
            inputs, gradients, G, loss, count = _row(model, self.layers, name, ids, labels, label_seed)
            for layer in self.layers:
                for x, g in zip(inputs[layer], gradients[layer]):
                    aa[layer] = aa[layer] + weight * sum(torch.outer(t, t) for t in x)
                    ss[layer] = ss[layer] + weight * sum(torch.outer(t, t) for t in g)
            self.rows.append(G)
            self.weights.append(weight)
            self.losses.append(loss)
            self.supervised.append(count)
            self.P += weight * len(ids)
            self.T += weight * count
        self.A = {name: total / self.P for name, total in aa.items()}
        self.S = {name: total / self.T for name, total in ss.items()}

    def fisher(self, name):
        """(1/T) sum over sequences of vec(G_n) vec(G_n)', rows of G one after the other."""
        vectors = [G[name].flatten() for G in self.rows]
        return sum(w * torch.outer(v, v) for w, v in zip(self.weights, vectors)) / self.T

    def total(self, name):
        """The weighted summed gradient."""
        return sum(w * G[name] for w, G in zip(self.weights, self.rows))

    def ekfac(self, name):
        """The dense EK-FAC matrix: the Fisher's diagonal in the Kronecker eigenbasis."""
        turn = torch.kron(torch.linalg.eigh(self.S[name])[1], torch.linalg.eigh(self.A[name])[1])
        return turn @ torch.diag((turn.T @ self.fisher(name) @ turn).diagonal()) @ turn.T


def _row(model, layers, row_id, ids, labels, label_seed):
    inputs = {name: [] for name in layers}
    outputs = {name: [] for name in layers}

    def keep(name, bias):
        def hook(module, args, output):
            x = args[0].detach().flatten(0, -2)  # one row: all positions are its own
            inputs[name].append(torch.cat([x, x.new_ones(len(x), 1)], 1) if bias else x)
            outputs[name].append(output)

        return hook

    handles = [
        m.register_forward_hook(keep(name, layer.bias))
        for name, layer in layers.items()
        for m in layer.modules
    ]
    ids = torch.tensor([ids])
    logits = model(input_ids=ids, attention_mask=torch.ones_like(ids)).logits[0]
    for handle in handles:
        handle.remove()
    targets = [(t, labels[t + 1]) for t in range(len(labels) - 1) if labels[t + 1] != -100]
    places = np.array([t for t, _ in targets])
    chosen = torch.tensor([label for _, label in targets])
    if label_seed is not None and len(places):
        u = uniforms(label_seed, [row_id], np.zeros(len(places), int), places)
        chosen = sample(logits[places].detach(), torch.from_numpy(u))
    loss = -sum(torch.log_softmax(logits[t], -1)[c] for t, c in zip(places, chosen)) + 0 * logits.sum()
    named = dict(model.named_parameters())
    wanted = [o for name in layers for o in outputs[name]]
    weights = [n for layer in layers.values() for n in _parameters(layer)]
    found = torch.autograd.grad(
        loss, wanted + [named[n] for n in weights], allow_unused=True, materialize_grads=True
    )
    flow = iter(found[: len(wanted)])
    gradients = {name: [next(flow).flatten(0, -2) for _ in outputs[name]] for name in layers}
    by_name = dict(zip(weights, found[len(wanted) :]))
    G = {name: layer.matrix(by_name) for name, layer in layers.items()}
    return inputs, gradients, G, float(loss.detach()), len(targets)


def _parameters(layer):
    return [f"{layer.name}.weight"] + ([f"{layer.name}.bias"] if layer.bias else [])
