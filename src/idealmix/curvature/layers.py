"""Which linear layers of a module are measured.

Flows in: a module and ``linear``, ``mlp`` or name patterns. Flows out: `Layer` objects: the module, its sizes, and how
its parameters make one matrix (d_out, d_in), with the bias as the last column.
"""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

from idealmix.curvature.covered import is_linear, left_out, trouble, unwrapped, why
from idealmix.errors import Doubt, InputError

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

    def parameters(self, matrix: Tensor) -> dict[str, Tensor]:
        """The inverse of `matrix`: tensors by parameter name from a (d_out, d_in) matrix."""
        weight = matrix[:, : self.d_in - self.bias]
        found = {f"{self.name}.weight": weight.T if self.transposed else weight}
        return found | ({f"{self.name}.bias": matrix[:, -1]} if self.bias else {})


def select_layers(model: nn.Module, spec: str | Sequence[str] = "linear") -> list[Layer]:
    """The layers that `spec` names, in the model's order.

    What no spec can have is left out with a warning, and refused where a pattern means nothing else: experts fused in
    one tensor, quantised or offloaded weights, weights that are computed or used without calling their module.

    Args:
        model: any module; LoRA adapters, where there are any, are the layers. Names are those inside DDP and compile.
        spec: ``linear`` (all but the output head), ``mlp`` (those inside feed-forward blocks, the paper's choice), or
            patterns: shell wildcards on the full name, or on the end of it after a dot.

    Raises:
        InputError: a pattern matches nothing that can be measured (the reason or the nearest names are told), there
            is no linear layer, or a head that is tied to the embedding is selected.
    """
    model = unwrapped(model)
    candidates, adapters = _linears(model)
    heads = _heads(model)
    known = [*candidates.values(), *(model.get_submodule(head) for head in heads)]
    refused = {n: f"is not measured: {t}" for n, m in candidates.items() if (t := trouble(n, m, model))}
    refused |= {n: f"is not measured: {why(m)}" for n, m in left_out(model, known, adapters)}
    plain = [name for name in candidates if name not in heads and name not in refused]
    if not plain and not heads & candidates.keys():
        raise InputError(
            f"{type(model).__name__} has no linear layer to measure{_example(refused)}",
            where="influence.layers",
            mend="the curvature is that of nn.Linear and transformers' Conv1D",
        )
    if spec == "linear":
        chosen, missed = set(plain), set(refused)
    elif spec == "mlp":
        chosen, missed = ({n for n in names if _in_mlp(n)} for names in (plain, refused))
        if not chosen:
            raise InputError(
                f"'mlp' matches no layer{_example({n: refused[n] for n in missed})}",
                where="influence.layers",
                mend=_nearest("mlp", plain),
            )
    else:
        chosen, missed = set(), set()
        for pattern in [spec] if isinstance(spec, str) else spec:
            # the head only by its own name: a wildcard does not mean it
            found = _matches(pattern, plain) | ({pattern} & heads)
            beside = _matches(pattern, refused)
            if not found:
                raise InputError(
                    f"{pattern!r} matches no linear layer{_example({n: refused[n] for n in beside})}",
                    where="influence.layers",
                    mend=_nearest(pattern, plain),
                )
            chosen, missed = chosen | found, missed | beside
    if not chosen:
        raise InputError("no layer is selected", where="influence.layers", mend=_nearest("", plain))
    for head in chosen & heads:
        _check_head(head, model)
    _tell(model, {name: refused[name] for name in refused if name in missed})
    return _layers([(name, candidates[name]) for name in candidates if name in chosen])


def _linears(model: nn.Module) -> tuple[dict[str, nn.Module], bool]:
    """By name; and whether they are adapters, which are then all that is trained."""
    found = {name: m for name, m in model.named_modules() if name and is_linear(m)}
    adapters = {name: m for name, m in found.items() if {"lora_A", "lora_B"} & set(name.split("."))}
    return adapters or found, bool(adapters)


def _matches(pattern: str, names: Iterable[str]) -> set[str]:
    return {n for n in names if fnmatchcase(n, pattern) or fnmatchcase(n, f"*.{pattern}")}


def _in_mlp(name: str) -> bool:
    return any(_MLP.search(part) for part in name.split("."))


def _example(refused: Mapping[str, str]) -> str:
    if not refused:
        return ""
    name = min(refused)
    more = f" (and {len(refused) - 1} more)" if len(refused) > 1 else ""
    return f"; {name} {refused[name]}{more}"


def _check_head(head: str, model: nn.Module) -> None:
    weight = model.get_submodule(head).weight
    if any(m.weight is weight for m in model.modules() if isinstance(m, nn.Embedding)):
        raise InputError(
            "it shares its weight with the embedding, whose part of the gradient is not measured",
            where=f"layer {head}",
            mend="leave it out with influence.layers",
        )


def _tell(model: nn.Module, missed: Mapping[str, str]) -> None:
    """A warning for each reason, with how much of the model it concerns."""
    total = sum(parameter.numel() for parameter in model.parameters())
    by_reason: dict[str, list[str]] = {}
    for name, reason in missed.items():
        by_reason.setdefault(reason, []).append(name)
    for reason, names in by_reason.items():
        part = sum(p.numel() for n in names for p in model.get_submodule(n).parameters(recurse=False))
        more = f" and {len(names) - 1} more" if len(names) > 1 else ""
        warnings.warn(
            f"{names[0]}{more} {reason} ({part / total:.1%} of the parameters)", Doubt, stacklevel=3
        )


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
        layers[id(weight)] = Layer(
            name, (module,), d_in + (bias is not None), d_out, bias is not None, transposed
        )
    return list(layers.values())


def _nearest(pattern: str, names: Sequence[str]) -> str:
    ends = sorted({name.rsplit(".", 1)[-1] for name in names})
    near = difflib.get_close_matches(pattern, [*names, *ends], n=5, cutoff=0.4) or ends[:8]
    return f"the nearest names are {', '.join(near)}"
