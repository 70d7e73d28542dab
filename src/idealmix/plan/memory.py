"""Peak memory of each phase, term by term: pure functions of sizes.

Flows in: a model's `Shape`, its measured layers, batches, and what autograd keeps (`Kept`). Flows out: for each moment of a
phase the bytes that are held then; a phase's peak is the largest. On an accelerator these are the device's bytes, on a CPU
the process's resident memory beyond what its libraries take when they are imported.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from idealmix.plan.shapes import BYTES, Kept, Linear, Shape

Moments = dict[str, float]
"""Bytes held at each named moment."""

# TRL's fused head works on tiles of tokens x vocabulary (trl.kernels.chunked_logprob).
TILE_TOKENS, TILE_VOCABULARY = 4096, 32768
# float32 tiles that are alive at once in its backward: in plain torch every step of the formula makes one (tile, logits twice,
# log p, p, gradient, one-hot twice, and a mask of a quarter); the Triton kernel works in place.
TILES_CPU, TILES_ACCELERATOR = 8.25, 1.0
# Per-sequence gradients are held together up to this many numbers (idealmix.curvature.factors.HELD).
HELD = 2**25
# Positions x vocabulary whose labels are drawn at once (idealmix.curvature.labels.sample), and bytes for each: softmax and
# its float64 running sum, with the float64 copy that it is made from.
SAMPLED, SAMPLED_BYTES = 2**24, 20
# On a CPU torch asks the C library for aligned memory, and glibc does not give the place of a freed tensor to one of the same
# size: so much of what a forward makes and frees stays resident beside what it keeps. From the two fitted models of
# docs/results/plan.md; with MALLOC_MMAP_THRESHOLD_=65536 it is 0. Accelerators have an allocator of their own.
GAPS_TRAINING, GAPS_MEASURING = 0.55, 0.75
# Logits upcast at a time in an evaluation (idealmix.evaluation.loss).
EVALUATED = 2**24


@dataclass(frozen=True)
class Batch:
    """The largest batch of a phase.

    Attributes:
        rows, length: rows and their padded length.
        supervised: positions with a label.
        columns: positions of each row whose logits are made; None: all.
    """

    rows: int
    length: int
    supervised: int
    columns: int | None = None

    @property
    def tokens(self) -> int:
        """Padded."""
        return self.rows * self.length

    @property
    def scored(self) -> int:
        """Positions whose logits are made."""
        return self.rows * (self.length if self.columns is None else self.columns)


def training(
    shape: Shape, batch: Batch, kept: Kept, dtype: str, *, steps: int, accelerator: bool, adamw: bool = True
) -> Moments:
    """A training by TRL: float32 weights where trained, gradients, AdamW's two moments, activations.

    Args:
        kept: of a micro-batch, from `Blueprint.training`.
        dtype: what is computed in.
        steps: AdamW's moments exist from the end of the first step on.
        accelerator: AdamW's step then takes all parameters at once, with a temporary for each (torch's foreach).
        adamw: two moments for each trained parameter; False: none are counted.
    """
    weights, trained = shape.weights(dtype), 4.0 * shape.trained
    state = 2 * trained if adamw else 0.0
    tokens, width = min(batch.tokens, TILE_TOKENS), min(shape.vocabulary, TILE_VOCABULARY)
    tile = float(tokens * width)
    head = (TILES_ACCELERATOR * BYTES[dtype] if accelerator else TILES_CPU * 4) * tile
    if shape.trained == shape.parameters:  # the head's own gradient, float32
        head += 4.0 * shape.vocabulary * shape.hidden
    # a block's backward: gradients at the widest layer (three) and at the residual stream (two)
    block = 4.0 * batch.tokens * (3 * shape.inner + 2 * shape.hidden)
    temporary = trained if accelerator else 8.0 * shape.largest
    return {
        "loss": weights
        + (state if steps > 1 else 0.0)
        + kept.bytes(batch.rows)
        + (0.0 if accelerator else GAPS_TRAINING * batch.rows * kept.passing)
        + max(head, block),
        "step": weights + trained + state + temporary,
        "saving": weights + state + (0.0 if accelerator else trained),
    }


def loading(shape: Shape, dtype: str) -> float:
    """Reading a checkpoint on a CPU: the file's pages count as resident until the weights are copied."""
    return 2 * shape.weights(dtype)


def evaluation(shape: Shape, batch: Batch, dtype: str) -> Moments:
    """Losses without gradients: the weights, one layer's activations, and the logits of every labelled column."""
    w = BYTES[dtype]
    block = w * batch.tokens * (3.0 * shape.inner + 4.0 * shape.hidden)
    logits = batch.tokens * shape.vocabulary  # labels of unequal prompts reach nearly every column
    chunk = min(batch.supervised * shape.vocabulary, EVALUATED)
    return {"loss": shape.weights(dtype) + max(block, w * logits + (w + 8.0) * chunk)}


def generation(shape: Shape, rows: int, length: int, dtype: str) -> Moments:
    """Answers: the weights, keys and values of every token, and the first pass over the prompts."""
    w = BYTES[dtype]
    cache = w * rows * length * shape.cached
    block = w * rows * length * (3.0 * shape.inner + 4.0 * shape.hidden)
    return {"generation": shape.weights(dtype) + cache + block}


@dataclass(frozen=True)
class Matrices:
    """Bytes of one of each measured layer's matrices, float32: (d_out, d_in), A by leader, A by layer, S."""

    whole: float
    a: float
    a_each: float
    s: float
    largest: float
    widest: int

    @classmethod
    def of(cls, layers: Sequence[Linear]) -> Matrices:
        """Of these layers."""
        return cls(
            whole=4.0 * sum(each.d_in * each.d_out for each in layers),
            a=4.0 * sum(each.d_in**2 for each in layers if each.name == each.leader),
            a_each=4.0 * sum(each.d_in**2 for each in layers),
            s=4.0 * sum(each.d_out**2 for each in layers),
            largest=4.0 * max(each.d_in * each.d_out for each in layers),
            widest=max(max(each.d_in, each.d_out) for each in layers),
        )


def influence(
    shape: Shape,
    layers: Sequence[Linear],
    passes: Mapping[str, tuple[Batch, Kept]],
    dtype: str,
    *,
    curvature: str,
    references: int,
    samples: int,
    accelerator: bool,
    sampled: bool = True,
    on_disk: bool = False,
) -> Moments:
    """The influence stage. Each line mirrors one step of `influence_stage.measure`; change both together.

    Args:
        passes: the largest batch of each pass, by the moments' names, and what is kept of it, from `Blueprint.measuring`.
        dtype: of the weights (frozen ones; adapters are float32).
        references: reference sets.
        samples: of domains that have rows: drawn and unused ones.
        accelerator: else what the C library does not give out again counts too (`GAPS_MEASURING`).
        sampled: the curvature's labels are drawn from the model.
        on_disk: what the curvature consists of and the responses lie in a scratch folder, one layer's in memory at a time.
    """
    m, every = Matrices.of(layers), 0.0 if on_disk else 1.0
    model = shape.weights(dtype)

    def passing(name: str, below: float) -> float:
        """Activations, and logits with their gradients, which are gone when the backward pass comes to what lies `below`."""
        batch, kept = passes[name]
        gaps = 0.0 if accelerator else GAPS_MEASURING * batch.rows * kept.passing
        drawn = sampled and name in ("covariances", "eigenvalues")
        return kept.bytes(batch.rows) + gaps + max(_head(shape, batch, dtype, sampled=drawn), below)

    def rows(name: str) -> float:
        """The gradients of rows that are held together."""
        return float(min(passes[name][0].rows, max(1, HELD * 4 // int(m.largest)))) * m.largest

    def signal(name: str) -> float:
        """Inputs and gradients of a layer, and their float32 copies."""
        return 8.0 * passes[name][0].tokens * (m.widest + shape.hidden)

    # one layer's responses are put side by side when a pass first asks for them
    queries = max(references, samples) * m.largest
    factors = m.a + m.s if curvature != "identity" else 0.0
    sums = m.whole if curvature == "ekfac" else 0.0  # lambda
    roots = m.a_each + m.s if curvature == "kfac" else 0.0  # Cholesky factors of every layer
    held = model + every * (factors + roots + sums)
    return {
        "covariances": model + factors + passing("covariances", signal("covariances")) if factors else 0.0,
        "eigendecompositions": model + factors + _decomposition(m.widest, curvature),
        "eigenvalues": model
        + every * factors
        + sums
        + passing("eigenvalues", max(signal("eigenvalues"), rows("eigenvalues") + 2 * m.largest))
        if sums
        else 0.0,
        "references": held
        + (every * (references - 1) + 1) * m.whole
        + passing("references", m.largest + signal("references")),
        "domains": held
        + (every * (references + samples - 1) + 1) * m.whole
        + passing("domains", max(signal("domains"), rows("domains") + queries + m.largest)),
        "reference rows": held
        + every * samples * m.whole
        + passing("reference rows", max(signal("reference rows"), rows("reference rows") + queries)),
    }


def _head(shape: Shape, batch: Batch, dtype: str, *, sampled: bool) -> float:
    """The loss of one batch: the logits that are made, those with a label in float32, their log-probabilities, and the gradients of both."""
    w, logits = BYTES[dtype], batch.scored * shape.vocabulary
    labelled = batch.supervised * shape.vocabulary
    wide = 4 * labelled + (w * labelled if dtype != "float32" else 0)
    drawing = SAMPLED_BYTES * min(labelled, SAMPLED) if sampled else 0
    forward = w * logits + wide + max(4 * labelled, drawing)
    backward = max(12 * labelled, 4 * labelled + w * logits + (wide - 4 * labelled))
    return float(max(forward, backward))


def _decomposition(size: int, curvature: str) -> float:
    """Workspace for the widest factor: LAPACK's divide and conquer wants 2 d^2 beside vectors and input. Up to 256 on a
    CPU in float64 (idealmix.curvature.linalg). Cholesky needs a copy.
    """
    number = 8 if size <= 256 else 4
    return float(size**2 * (4 + 4 * number)) if curvature == "ekfac" else 8.0 * size**2


def peak(moments: Mapping[str, float]) -> float:
    """The largest moment."""
    return max(moments.values())
