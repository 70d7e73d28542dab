"""The exactly inverted Fisher of all layers together, against the dense matrix in float64."""

from __future__ import annotations

import pytest
import torch
from curvature_helpers import Direct, rows, tiny
from test_curvature_collect import checkpointed
from test_curvature_memory import narrow
from torch import nn

from idealmix.curvature import Collector, make_batches, select_layers, woodbury
from idealmix.curvature.woodbury import fit_woodbury
from idealmix.errors import InputError

RHO = 0.05


def adapted():
    from peft import LoraConfig, get_peft_model

    torch.manual_seed(0)
    model = get_peft_model(checkpointed(None), LoraConfig(r=2, target_modules=["q_proj", "down_proj"]))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter)
    return model.double().eval()


def dense(direct):
    """(H + D)^-1 over all layers' parameters, one layer after the other; and the dampings by layer."""
    vectors = [torch.cat([G[name].flatten() for name in direct.layers]) for G in direct.rows]
    H = sum(w * torch.outer(v, v) for w, v in zip(direct.weights, vectors)) / direct.T
    sizes = [layer.d_out * layer.d_in for layer in direct.layers.values()]
    means = torch.stack([block.mean() for block in H.diagonal().split(sizes)])
    damping = RHO * torch.maximum(
        means, 0.01 * means.sort().values[(len(means) - 1) // 2 : len(means) // 2 + 1].mean()
    )
    D = torch.cat([d.expand(size) for d, size in zip(damping, sizes)])
    return torch.linalg.inv(H + torch.diag(D)), damping, sizes


@pytest.mark.parametrize("make", [tiny, adapted])
@pytest.mark.parametrize("label_seed", [None, 3])
def test_woodbury_is_the_dense_inverse(make, label_seed):
    model = make()
    collector = Collector(model, select_layers(model))
    found = fit_woodbury(collector, make_batches(rows(), 40), rho=RHO, label_seed=label_seed)
    R, damping, sizes = dense(Direct(model, rows(), label_seed))
    torch.testing.assert_close(
        torch.tensor(list(found.damping.values())).double(), damping, rtol=1e-6, atol=0
    )
    torch.manual_seed(1)
    g = {layer.name: torch.randn(3, layer.d_out, layer.d_in).double() for layer in collector.layers}
    flat = torch.cat([each.flatten(1) for each in g.values()], 1)
    expected = (flat @ R).split(sizes, 1)
    answers = found.respond_all(g)
    for (name, answer), part in zip(answers.items(), expected):
        torch.testing.assert_close(answer.flatten(1), part, rtol=1e-6, atol=1e-8 * float(part.abs().max()))
        assert answer.shape == g[name].shape
    # layers have something in common: the blocks alone are another matrix
    blocks, begin = [], 0
    for size in sizes:
        blocks.append(R[begin : begin + size, begin : begin + size])
        begin += size
    for (name, each), block in zip(g.items(), blocks):
        torch.testing.assert_close(
            found.respond(name, each).flatten(1), each.flatten(1) @ block, rtol=1e-6, atol=1e-7
        )
    assert any(
        (found.respond(name, each) - answers[name]).norm() > 0.01 * answers[name].norm()
        for name, each in g.items()
    )
    halved = found.with_damping(RHO / 2)
    assert halved.damping[collector.layers[0].name] == pytest.approx(float(damping[0]) / 2, rel=1e-6)


def test_halved_batches_keep_rows_together():
    batches = make_batches(rows(), 1000)
    plain, model = tiny(), narrow(3, "backward")
    expected = fit_woodbury(Collector(plain, select_layers(plain)), batches, rho=RHO)
    with pytest.warns(UserWarning, match="memory ran out"):
        found = fit_woodbury(Collector(model, select_layers(model)), batches, rho=RHO)
    ones = {layer.name: torch.ones(layer.d_out, layer.d_in).double() for layer in expected.layers}
    answers = found.respond_all({name.replace("0.up", "0.up.up"): g for name, g in ones.items()})
    for name, answer in expected.respond_all(ones).items():
        torch.testing.assert_close(answers[name.replace("0.up", "0.up.up")], answer, rtol=1e-7, atol=1e-9)


def test_too_many_gradients_are_refused(monkeypatch):
    monkeypatch.setattr(woodbury, "MOST", 1000)
    model = tiny()
    with pytest.raises(InputError, match="keeps every row's gradient"):
        fit_woodbury(Collector(model, select_layers(model)), make_batches(rows(), 40))
