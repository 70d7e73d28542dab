"""The Gauss-Newton matrix of a model's loss as a function v -> H v: never built, nothing approximated.

Flows in: a model, the mixture's batches, names of parameters. Flows out: products with flat float64 vectors, the loss's
gradient as such a vector, and the matrix's diagonal.

    H = (1/T) sum over rows n, supervised positions t of  w_n J' (diag p - p p') J

J: of the logits by the parameters, p = softmax(logits), w_n the row's repetitions, T = sum of w_n over supervised
positions. The middle matrix is the exact Hessian of the loss by the logits: no labels. A product is one forward pass
with tangents (J v, Pearlmutter 1994) and one backward pass (J' u), as in Schraudolph (Neural Computation 14, 2002).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional
from torch.nn.attention import SDPBackend, sdpa_kernel

from idealmix.curvature.batch import IGNORED, Batch
from idealmix.curvature.precision import wide
from idealmix.curvature.processes import Processes
from idealmix.curvature.task import CausalTask, Task
from idealmix.errors import IdealmixError, InputError


class GaussNewton:
    """Of some of a model's parameters; the others stay as they are.

    Args:
        model: any module; used in evaluation mode, left as it was.
        batches: the mixture's rows, repetitions as weights; the same list on every process.
        names: of parameters, as in ``named_parameters``; None: all of them.
        task: how to get logits and targets.
        processes: who shares the batches.

    Raises:
        InputError: no parameter has one of the names.
        IdealmixError: no row has a supervised token.
    """

    def __init__(
        self,
        model: nn.Module,
        batches: Sequence[Batch],
        names: Sequence[str] | None = None,
        task: Task | None = None,
        processes: Processes | None = None,
    ) -> None:
        every = dict(model.named_parameters())
        self.names = list(every) if names is None else list(names)
        unknown = [name for name in self.names if name not in every]
        if unknown:
            raise InputError(
                f"no parameter is called {unknown[0]!r}: it is tied to another one, or quantised",
                where="influence.layers",
                mend="exact curvature needs layers whose weights are parameters of their own",
            )
        self._asked = _Asked(model, task or CausalTask())
        self._values = {name: every[name].detach() for name in self.names}
        self._processes = processes or Processes()
        self._batches = self._processes.share(batches)
        self.supervised = sum(self._processes.gather(sum(map(self._weight, self._batches))))
        if not self.supervised:
            raise IdealmixError("no row has a supervised token", mend="check the rows' labels")

    @property
    def size(self) -> int:
        """Numbers in a vector."""
        return sum(value.numel() for value in self._values.values())

    def flat(self, tensors: Mapping[str, Tensor]) -> Tensor:
        """One float64 vector from tensors by parameter name."""
        return torch.cat([tensors[name].detach().double().flatten() for name in self.names])

    def named(self, vector: Tensor) -> dict[str, Tensor]:
        """The inverse of `flat`, float64."""
        parts = vector.split([self._values[name].numel() for name in self.names])
        return {name: part.view_as(self._values[name]) for name, part in zip(self.names, parts)}

    def product(self, vector: Tensor) -> Tensor:
        """H v: (size,) -> (size,), float64; passes in the model's own precision.

        Raises:
            IdealmixError: an operation of the model has no forward-mode derivative, or the product is not finite.
        """
        direction = {n: part.to(self._values[n].dtype) for n, part in self.named(vector).items()}
        total = torch.zeros_like(vector)
        with self._quiet():
            for batch in self._batches:
                total += self._batch_product(batch, direction)
        return self._whole(total) / self.supervised

    def gradient(self, batches: Sequence[Batch]) -> Tensor:
        """The gradient of the token-mean loss over other rows, with the data's labels: (size,), float64."""
        mine = self._processes.share(batches)
        counted = sum(self._processes.gather(sum(map(self._weight, mine))))
        total = self.zeros()
        with self._quiet():
            for batch in map(self._moved, mine):
                values, where = self._leaves(), self._where(batch)
                scores = self._asked.logits(values, batch)[where]
                targets = self._asked.task.targets(batch)[where]
                each = functional.cross_entropy(scores.to(wide(scores.dtype)), targets, reduction="none")
                total += self._pulled(each @ batch.weights.to(each)[where.nonzero()[:, 0]], values, None)
        return self._whole(total) / counted

    def diagonal(self, probes: int, seed: int = 0) -> Tensor:
        """H's diagonal, estimated: (size,), float64. Means over many of its entries are much surer than one entry.

        For u = sqrt(p) e - p (sqrt(p)' e) with e standard normal, J' u has mean 0 and covariance J' (diag p - p p') J, so
        the diagonal is the mean of its square. Tokens are independent: a batch needs one pass.

        Args:
            probes: passes over the rows; the relative error falls with the root of probes times batches.
            seed: of e.
        """
        total = self.zeros()
        with self._quiet():
            for batch in map(self._moved, self._batches):
                generator = torch.Generator(batch.input_ids.device).manual_seed(
                    1_000_003 * seed + batch.index
                )
                for _ in range(probes):
                    values = self._leaves()
                    logits = self._asked.logits(values, batch)
                    p, rows, upward = self._supervised(logits, batch)
                    e = p.sqrt() * torch.randn(p.shape, generator=generator, dtype=p.dtype, device=p.device)
                    u = (e - p * e.sum(-1, keepdim=True)) * batch.weights.to(p).sqrt()[rows, None]
                    total += self._pulled(logits, values, upward(u)).square()
        return self._whole(total) / self.supervised / probes

    def _batch_product(self, batch: Batch, direction: Mapping[str, Tensor]) -> Tensor:
        values, batch = self._leaves(), self._moved(batch)
        try:
            with forward_ad.dual_level():
                duals = {n: forward_ad.make_dual(value, direction[n]) for n, value in values.items()}
                logits, tangent = forward_ad.unpack_dual(self._asked.logits(duals, batch))
        except (NotImplementedError, RuntimeError) as error:
            if "forward" not in str(error).lower():
                raise
            raise IdealmixError(
                f"an operation of the model has no forward-mode derivative ({str(error).splitlines()[0]})",
                where="influence.curvature",
                mend="load the model with attn_implementation='eager', or use curvature: ekfac",
            ) from error
        if tangent is None:
            raise IdealmixError(
                "the logits do not depend on the selected parameters", where="influence.layers"
            )
        p, rows, upward = self._supervised(logits, batch)
        moved = tangent.detach()[self._where(batch)].to(p)
        back = p * (moved - (p * moved).sum(-1, keepdim=True)) * batch.weights.to(p)[rows, None]
        return self._pulled(logits, values, upward(back))

    def _where(self, batch: Batch) -> Tensor:
        """(B, L) bool: supervised positions."""
        return (self._asked.task.targets(batch) != IGNORED) & batch.real

    def _supervised(self, logits: Tensor, batch: Batch) -> tuple[Tensor, Tensor, Callable[[Tensor], Tensor]]:
        """softmax at the supervised positions (N, V), their rows (N,), and the way back: (N, V) -> (B, L, V)."""
        where = self._where(batch)

        def upward(values: Tensor) -> Tensor:
            whole = torch.zeros_like(logits)
            whole[where] = values.to(logits.dtype)
            return whole

        scores = logits.detach()[where]
        return scores.to(wide(scores.dtype)).softmax(-1), where.nonzero()[:, 0], upward

    def _pulled(self, outputs: Tensor, values: Mapping[str, Tensor], upward: Tensor | None) -> Tensor:
        found = torch.autograd.grad(outputs, list(values.values()), upward, allow_unused=True)
        parts = [torch.zeros_like(v) if g is None else g for g, v in zip(found, values.values())]
        return torch.cat([part.double().flatten() for part in parts])

    def _leaves(self) -> dict[str, Tensor]:
        return {name: value.clone().requires_grad_() for name, value in self._values.items()}

    def _weight(self, batch: Batch) -> float:
        return float(batch.weights @ self._where(batch).sum(1).double())

    def zeros(self) -> Tensor:
        """(size,) float64, where the parameters are."""
        device = next(iter(self._values.values())).device
        return torch.zeros(self.size, dtype=torch.float64, device=device)

    def _moved(self, batch: Batch) -> Batch:
        return batch.to(next(iter(self._values.values())).device)

    def _whole(self, total: Tensor) -> Tensor:
        total = self._processes.all_sum(total)
        if not bool(torch.isfinite(total).all()):
            raise IdealmixError(
                "a product with the Gauss-Newton matrix is not finite",
                where="influence.curvature",
                mend="load the model in float32; curvature: ekfac names the layer and the rows",
            )
        return total

    @contextmanager
    def _quiet(self) -> Iterator[None]:
        """Evaluation mode, other parameters frozen, and attention's plain kernel: the fused ones have no tangents."""
        model = self._asked.model
        modes = [(module, module.training) for module in model.modules()]
        wanted = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
        try:
            model.eval().requires_grad_(False)
            with torch.enable_grad(), sdpa_kernel(SDPBackend.MATH):
                yield
        finally:
            for module, mode in modes:
                module.training = mode
            for parameter, flag in wanted:
                parameter.requires_grad_(flag)


class _Asked(nn.Module):
    """A model and its task as one module, so that parameters can be replaced for one call."""

    def __init__(self, model: nn.Module, task: Task) -> None:
        super().__init__()
        self.model, self.task = model, task

    def forward(self, batch: Batch) -> Tensor:
        return self.task.logits(self.model, batch)

    def logits(self, values: Mapping[str, Tensor], batch: Batch) -> Tensor:
        """(B, L, V), a function of `values`."""
        return functional_call(self, {f"model.{name}": value for name, value in values.items()}, (batch,))
