"""A model's sizes from its config alone: parameters, linear layers, and what a pass keeps for its backward.

Flows in: a transformers config. Flows out: a `Shape`, and `Kept` bytes for rows of a length. The model is built without
memory (on the meta device), and its forward pass is run on shapes alone (torch's fake tensors), so that every architecture
is counted by what it does and not by a formula for one of them. For Llama's blocks the count agrees with the sum by
hand in ``tests/test_plan_shapes.py``; Korthikanti et al. (arXiv 2205.05198), section 4, counts GPT-2's the same way.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from idealmix import config
from idealmix.curvature import Layer, select_layers
from idealmix.curvature.collect import measures_head
from idealmix.curvature.task import selects_positions
from idealmix.errors import InputError
from idealmix.training.quiet import quiet

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

BYTES = {"float32": 4, "bfloat16": 2}


@dataclass(frozen=True)
class Linear:
    """A measured layer: a bias counts as one more input. `leader`: the first layer that reads the same input."""

    name: str
    d_in: int
    d_out: int
    leader: str


@dataclass(frozen=True)
class Kept:
    """What autograd and hooks keep between a forward pass and its backward, in bytes.

    Attributes:
        fixed: whatever the batch's size (casts of weights under autocast).
        per_row: for each row of the length that was asked for.
        passing: for each row, what the forward makes and frees again.
    """

    fixed: float
    per_row: float
    passing: float = 0.0

    def bytes(self, rows: float) -> float:
        """Of a batch of so many rows."""
        return self.fixed + rows * self.per_row


@dataclass(frozen=True)
class Shape:
    """A model's sizes.

    Attributes:
        parameters: all of them, adapters included, shared ones once.
        trained: those that a training moves.
        largest: elements of the largest trained tensor.
        embedding: elements of the input embedding.
        tied: the output head shares the input embedding.
        vocabulary, hidden, inner, blocks: inner is the widest linear layer of a block.
        cached: elements that one token leaves in a generation's cache.
        attention: products of a query with one key, over all blocks: heads x head size x blocks.
    """

    parameters: int
    trained: int
    largest: int
    embedding: int
    tied: bool
    vocabulary: int
    hidden: int
    inner: int
    blocks: int
    cached: int
    attention: int

    @property
    def multiplied(self) -> int:
        """Parameters that a token's forward multiplies with: all but a plain look-up table."""
        return self.parameters - (0 if self.tied else self.embedding)

    def weights(self, dtype: str) -> float:
        """Bytes of the weights: what is trained in float32, what is frozen in `dtype`."""
        return 4 * self.trained + BYTES[dtype] * (self.parameters - self.trained)


class Blueprint:
    """A model without memory.

    Args:
        shape: its config.
        lora: adapters on it.

    Raises:
        InputError: the adapters fit no layer, or peft is not installed.
    """

    def __init__(self, shape: PreTrainedConfig, lora: config.Lora | None = None) -> None:
        from transformers import AutoModelForCausalLM

        self._config, self._lora = copy.deepcopy(shape), lora
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        with quiet(), torch.device("meta"):
            self.model: Any = AutoModelForCausalLM.from_config(self._config, dtype=torch.float32)
            if lora is not None:
                self.model = _with_adapters(self.model, lora)
        _hollow(self.model)
        self._traces: dict[tuple[Any, ...], _Trace] = {}

    @property
    def shape(self) -> Shape:
        """Its sizes."""
        text = self._config.get_text_config()
        trained = [p for p in self.model.parameters() if p.requires_grad]
        table = self.model.get_input_embeddings().weight
        head = self.model.get_output_embeddings()
        linears = [m for m in self.model.modules() if isinstance(m, nn.Linear) and m is not head]
        heads = int(text.num_attention_heads)
        size = int(getattr(text, "head_dim", None) or text.hidden_size // heads)
        keys = int(getattr(text, "num_key_value_heads", None) or heads)
        return Shape(
            parameters=sum(p.numel() for p in self.model.parameters()),
            trained=sum(p.numel() for p in trained),
            largest=max(p.numel() for p in trained),
            embedding=table.numel(),
            tied=head is not None and head.weight is table,
            vocabulary=int(text.vocab_size),
            hidden=int(text.hidden_size),
            inner=max(
                (max(m.in_features, m.out_features) for m in linears), default=4 * int(text.hidden_size)
            ),
            blocks=int(text.num_hidden_layers),
            cached=2 * keys * size * int(text.num_hidden_layers),
            attention=heads * size * int(text.num_hidden_layers),
        )

    def selected(self, spec: str | Sequence[str]) -> list[Layer]:
        """The layers that a spec names.

        Raises:
            InputError: a pattern matches nothing.
        """
        with _quiet():
            return select_layers(self.model, spec)

    def layers(self, spec: str | Sequence[str]) -> list[Linear]:
        """The measured layers, in the model's order.

        Raises:
            InputError: a pattern matches nothing.
        """
        leaders = self._trace(1, 8, "float32", spec).leaders
        return [
            Linear(each.name, each.d_in, each.d_out, leaders.get(each.name, each.name))
            for each in self.selected(spec)
        ]

    def selects(self, spec: str | Sequence[str]) -> bool:
        """A measurement makes logits only where some row has a label: the model can, and its head is not measured."""
        return selects_positions(self.model) and not measures_head(self.model, self.selected(spec))

    def training(self, length: int, dtype: str, checkpointing: bool = False) -> Kept:
        """Of a training's micro-batch: trained weights in float32; `dtype` bfloat16 is autocast."""
        kept = self._kept(length, dtype, None)
        if not checkpointing:
            return kept
        # each block's input stays, in float32, and one block at a time is run again
        shape = self.shape
        boundaries = 4 * length * shape.hidden * shape.blocks
        inside = (kept.per_row + kept.passing) / shape.blocks
        return Kept(kept.fixed, boundaries + kept.per_row / shape.blocks, inside)

    def measuring(self, length: int, dtype: str, spec: str | Sequence[str]) -> Kept:
        """Of an influence batch: all weights frozen, in `dtype` but adapters; the measured layers' inputs held by hooks."""
        return self._kept(length, dtype, spec)

    def _kept(self, length: int, dtype: str, spec: str | Sequence[str] | None) -> Kept:
        one, two = (self._trace(rows, length, dtype, spec) for rows in (1, 2))
        per_row, made = two.kept - one.kept, two.made - one.made
        return Kept(one.kept - per_row, per_row, made - per_row)

    def _trace(self, rows: int, length: int, dtype: str, spec: str | Sequence[str] | None) -> _Trace:
        """One forward; `spec` None: a training's."""
        key = rows, length, dtype, spec if spec is None or isinstance(spec, str) else tuple(spec)
        if key in self._traces:
            return self._traces[key]
        wanted = {p: p.requires_grad for p in self.model.parameters()}
        for parameter, trained in wanted.items():
            if not trained or (spec is not None and self._lora is None):
                parameter.data = _nothing(parameter, getattr(torch, dtype))
            parameter.requires_grad_(trained and spec is None)
        try:
            with _quiet():
                layers = None if spec is None else select_layers(self.model, spec)
                with self._fake:
                    autocast = dtype == "bfloat16" and spec is None
                    self._traces[key] = _trace(self.model, rows, length, autocast, layers)
        finally:
            for parameter, trained in wanted.items():
                parameter.data = _nothing(parameter, torch.float32)
                parameter.requires_grad_(trained)
        return self._traces[key]


@dataclass(frozen=True)
class _Trace:
    """Bytes kept for the backward, bytes of all tensors that were made, and each measured layer's leader."""

    kept: float
    made: float
    leaders: dict[str, str]


class _Made(TorchDispatchMode):
    """Adds up the bytes of new tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.bytes = 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        old = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, Tensor)}
        new = [x.untyped_storage() for x in tree_leaves(out) if isinstance(x, Tensor)]
        self.bytes += sum(storage.nbytes() for storage in new if storage._cdata not in old)
        return out


def _trace(model: Any, rows: int, length: int, autocast: bool, layers: list[Layer] | None) -> _Trace:
    """One forward on shapes alone, the head left out."""
    names = {id(module): layer.name for layer in layers or () for module in layer.modules}
    kept: dict[int, tuple[int, Any]] = {}
    inputs: dict[int, tuple[str, Tensor]] = {}
    leaders: dict[str, str] = {}

    def keep(x: Tensor) -> Tensor:
        storage = x.untyped_storage()  # of a weight: one number; of a cast weight: all of it
        kept[storage._cdata] = storage.nbytes(), storage  # held, so that its address is not given out again
        return x

    def called(module: nn.Module, args: Any, output: Tensor) -> Tensor:
        """As the collector's own hook does."""
        name = names[id(module)]
        leaders[name] = inputs.setdefault(id(args[0]), (name, args[0]))[0]
        keep(args[0])
        return output if output.requires_grad else output.detach().requires_grad_().clone()

    handles = [module.register_forward_hook(called) for layer in layers or () for module in layer.modules]
    ids = torch.zeros(rows, length, dtype=torch.long)
    whole = model.get_base_model() if hasattr(model, "get_base_model") else model
    model.train(layers is None)
    made = _Made()
    try:
        with (
            torch.enable_grad(),
            torch.autograd.graph.saved_tensors_hooks(keep, lambda x: x),
            torch.autocast("cpu", torch.bfloat16, enabled=autocast),
            made,
        ):
            whole.base_model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=False)
    finally:
        for handle in handles:
            handle.remove()
    return _Trace(float(sum(size for size, _ in kept.values())), made.bytes, leaders)


def _with_adapters(model: Any, lora: config.Lora) -> Any:
    try:
        from peft import LoraConfig, get_peft_model

        return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **lora.model_dump()))
    except ImportError as error:
        raise InputError(
            "LoRA needs peft", where="training.lora", mend="pip install 'idealmix[lora]'"
        ) from error
    except (ValueError, TypeError) as error:
        raise InputError(
            f"these adapters cannot be put on the model: {error}", where="training.lora"
        ) from error


def _hollow(model: nn.Module) -> None:
    """Parameters and buffers on the CPU that take no memory: one number each, seen at every place."""
    made: dict[int, Any] = {}
    for module in model.modules():
        for name, parameter in module._parameters.items():
            if parameter is not None:
                empty = nn.Parameter(_nothing(parameter, parameter.dtype), parameter.requires_grad)
                module._parameters[name] = made.setdefault(id(parameter), empty)
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = _nothing(buffer, buffer.dtype)


def _nothing(like: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.zeros((), dtype=dtype).expand(like.shape)


@contextmanager
def _quiet() -> Iterator[None]:
    """Without warnings: the measurement itself gives them."""
    with quiet(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
