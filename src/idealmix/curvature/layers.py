"""Which linear layers of a module are measured.

Flows in: a module and ``linear``, ``mlp`` or name patterns. Flows out: `Layer` objects: the module, its sizes, and how
its parameters make one matrix (d_out, d_in), with the bias as the last column.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from idealmix.errors import InputError

_MLP = re.compile(
    r"mlp|ffn|feed_?forward|^(fc\d?|fc_in|fc_out|c_fc|dense_h_to_4h|dense_4h_to_h|w[123])$", re.I
)
_HEADS = {"lm_head", "embed_out"}


@dataclass(frozen=True, eq=False)
class Layer:
    """One linear map and where it sits.

    Attributes:
        name: the first module's name in the model.
        modules: usually one; several where modules share one weight.
        d_in: inputs, one more where there is a bias (a column of ones).
        d_out: outputs.
        bias: there is one.
        transposed: the weight is stored (d_in, d_out), as in transformers' ``Conv1D``.
    """

    name: str
    modules: tuple[nn.Module, ...]
    d_in: int
    d_out: int
    bias: bool
    transposed: bool = False

    def matrix(self, parameters: Mapping[str, Tensor]) -> Tensor:
        """The layer's (d_out, d_in) matrix from tensors that are named and shaped like the model's parameters.

        Raises:
            KeyError: one is missing.
        """
        weight = parameters[f"{self.name}.weight"]
        weight = weight.T if self.transposed else weight
        if not self.bias:
            return weight
        return torch.cat([weight, parameters[f"{self.name}.bias"][:, None]], 1)


def select_layers(model: nn.Module, spec: str | Sequence[str] = "linear") -> list[Layer]:
    """The layers that `spec` names, in the model's order.

    Args:
        model: any module; LoRA adapters, where there are any, are the layers.
        spec: ``linear`` (all but the output head), ``mlp`` (those inside feed-forward blocks, the paper's choice), or
            patterns: shell wildcards on the full name, or on the end of it after a dot.

    Raises:
        InputError: a pattern matches nothing (the nearest names are told), or there is no linear layer.
    """
    candidates = _linears(model)
    if not candidates:
        raise InputError(
            f"{type(model).__name__} has no linear layer to measure",
            where="influence.layers",
            mend="the curvature is that of nn.Linear and transformers' Conv1D",
        )
    heads = _heads(model)
    plain = [name for name in candidates if name not in heads]
    if spec == "linear":
        chosen = set(plain)
    elif spec == "mlp":
        chosen = {name for name in plain if any(_MLP.search(part) for part in name.split("."))}
        if not chosen:
            raise InputError("'mlp' matches no layer", where="influence.layers", mend=_nearest("mlp", plain))
    else:
        patterns = [spec] if isinstance(spec, str) else list(spec)
        chosen = set()
        for pattern in patterns:
            # the head only by its own name: a wildcard does not mean it
            found = {n for n in plain if fnmatchcase(n, pattern) or fnmatchcase(n, f"*.{pattern}")}
            found |= {pattern} & heads
            if not found:
                raise InputError(
                    f"{pattern!r} matches no linear layer",
                    where="influence.layers",
                    mend=_nearest(pattern, plain),
                )
            chosen |= found
    if not chosen:
        raise InputError("no layer is selected", where="influence.layers", mend=_nearest("", plain))
    return _layers([(name, candidates[name]) for name in candidates if name in chosen])


def _linears(model: nn.Module) -> dict[str, nn.Module]:
    found = {name: m for name, m in model.named_modules() if name and _is_linear(m)}
    adapters = {name: m for name, m in found.items() if {"lora_A", "lora_B"} & set(name.split("."))}
    return adapters or found


def _is_linear(module: nn.Module) -> bool:
    return isinstance(module, nn.Linear) or type(module).__name__ == "Conv1D"


def _heads(model: nn.Module) -> set[str]:
    ask: Any = getattr(model, "get_output_embeddings", None)
    head = ask() if callable(ask) else None
    embeddings = {id(m.weight) for m in model.modules() if isinstance(m, nn.Embedding)}
    return {
        name
        for name, module in model.named_modules()
        if module is head
        or name.rsplit(".", 1)[-1] in _HEADS
        or id(getattr(module, "weight", None)) in embeddings
    }


def _layers(chosen: Sequence[tuple[str, nn.Module]]) -> list[Layer]:
    layers: dict[int, Layer] = {}
    for name, module in chosen:
        weight: Any = module.weight
        bias = getattr(module, "bias", None)
        transposed = not isinstance(module, nn.Linear)
        twin = layers.get(id(weight))
        if twin is not None:
            if getattr(twin.modules[0], "bias", None) is not bias:
                raise InputError(
                    f"it shares its weight with {twin.name} but not its bias",
                    where=f"layer {name}",
                    mend="leave one of them out with influence.layers",
                )
            layers[id(weight)] = Layer(
                twin.name, (*twin.modules, module), twin.d_in, twin.d_out, twin.bias, twin.transposed
            )
            continue
        d_out, d_in = reversed(weight.shape) if transposed else weight.shape
        if not transposed:  # a quantised weight is packed; the module knows its sizes
            d_out, d_in = int(module.out_features), int(module.in_features)  # type: ignore[arg-type]
        layers[id(weight)] = Layer(
            name, (module,), d_in + (bias is not None), d_out, bias is not None, transposed
        )
    return list(layers.values())


def _nearest(pattern: str, names: Sequence[str]) -> str:
    ends = sorted({name.rsplit(".", 1)[-1] for name in names})
    near = difflib.get_close_matches(pattern, [*names, *ends], n=5, cutoff=0.4) or ends[:8]
    return f"the nearest names are {', '.join(near)}"
