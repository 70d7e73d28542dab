"""Which modules are linear maps that can be measured, and why others cannot.

Flows in: a model as it was built, wrapped or compiled. Flows out: the model itself, its linear modules, and in words
what stands in the way of each one that is left out.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from idealmix.errors import InputError

_FLOATS = {torch.float64, torch.float32, torch.bfloat16, torch.float16}


def unwrapped(model: nn.Module) -> nn.Module:
    """The model inside ``DistributedDataParallel``, ``DataParallel`` and ``torch.compile``.

    Measuring makes no weight gradients, which DDP would wait for, and shares batches itself.

    Raises:
        InputError: parameters are flattened by ``FullyShardedDataParallel``, the first FSDP.
    """
    inner: Any = model
    while True:
        kind = type(inner).__name__
        if kind in ("DistributedDataParallel", "DataParallel"):
            inner = inner.module
        elif kind == "OptimizedModule":
            inner = inner._orig_mod
        else:
            break
    if any(type(module).__name__ == "FullyShardedDataParallel" for module in inner.modules()):
        raise InputError(
            "FullyShardedDataParallel flattens the weights of several layers into one",
            where="model",
            mend="shard with torch.distributed.fsdp.fully_shard (FSDP2)",
        )
    return inner


def is_sharded(model: nn.Module) -> bool:
    """Some parameters lie in shards on several processes (``fully_shard``)."""
    return any(type(parameter).__name__ == "DTensor" for parameter in model.parameters())


def is_linear(module: nn.Module) -> bool:
    """``nn.Linear`` or transformers' ``Conv1D``, sharded ones included."""
    return isinstance(module, nn.Linear) or any(kind.__name__ == "Conv1D" for kind in type(module).__mro__)


def trouble(name: str, module: nn.Module, model: nn.Module) -> str | None:
    """Why a linear module cannot be measured; None: it can."""
    parent = model.get_submodule(name.rpartition(".")[0])
    if isinstance(parent, nn.MultiheadAttention):
        return "nn.MultiheadAttention uses its weight without calling it"
    weight: Any = module._parameters.get("weight")
    if weight is None:
        return "its weight is computed from other parameters"
    if nn.parameter.is_lazy(weight):
        return "its weight has no size yet: run the model once"
    if weight.is_meta:
        return "its weight is offloaded"
    plain = type(weight) in (nn.Parameter, Tensor) or type(weight).__name__ == "DTensor"
    if not plain or weight.dtype not in _FLOATS or weight.dim() != 2:
        return "its weight is quantised"
    return None


def left_out(
    model: nn.Module, known: Collection[nn.Module], adapters: bool
) -> Iterator[tuple[str, nn.Module]]:
    """Modules with matrices of their own that are no linear module, by name.

    Args:
        model: any module.
        known: what is measured, or left out for a reason of its own (embeddings and heads are, too).
        adapters: only adapters are trained: a frozen matrix is not missed.
    """
    seen = {id(module) for module in known}
    for name, module in model.named_modules():
        if id(module) in seen or isinstance(module, nn.Embedding):
            continue
        if any(
            parameter.dim() > 1 and (parameter.requires_grad or not adapters)
            for parameter in module.parameters(recurse=False)
        ):
            yield name, module


def why(module: nn.Module) -> str:
    """What a module that is no linear module has instead."""
    shapes = [tuple(parameter.shape) for parameter in module.parameters(recurse=False) if parameter.dim() > 1]
    if any(len(shape) == 3 for shape in shapes) and "expert" in type(module).__name__.lower():
        return f"{type(module).__name__} holds all experts in one tensor, {max(shapes, key=len)}"
    return f"{type(module).__name__} is not nn.Linear"
