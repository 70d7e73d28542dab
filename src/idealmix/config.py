"""The schema of ``config.yaml``: what a run is made of, every key with its default.

Flows in: plain mappings (``configfile`` reads them from YAML). Flows out: checked, frozen settings that the
rooms below take as arguments. No torch, no file access.
"""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator


class Settings(BaseModel):
    """Base of every block: unknown keys refused, values fixed after reading."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def _path_alone(value: Any) -> Any:
    """``mathematics: file.jsonl`` is short for ``mathematics: {path: file.jsonl}``."""
    return {"path": value} if isinstance(value, str) else value


class Source(Settings):
    """Where rows come from: a local file or folder, or a Hugging Face dataset's name."""

    path: str = Field(
        min_length=1, description="a file (.jsonl, .json, .csv, .parquet), a folder, or a hub dataset"
    )
    name: str | None = Field(None, description="the hub dataset's configuration")
    split: str = Field("train", description="the hub dataset's split")
    rows: int | None = Field(None, gt=0, description="use a seeded sample of this many rows; null: all")


class ReferenceSource(Source):
    """A reference set: held-out good answers for one capability; never trained on."""

    weight: float = Field(
        1.0, ge=0, allow_inf_nan=False, description="weight of this capability in the objective"
    )


class Score(Settings):
    """A score: ``exact_match`` (a regex that takes the answer out), tests of generated code or a Python callable on a test set or on a reference set's deciding half, or lm-eval's task."""

    test: str | None = Field(
        None,
        description="the test set's name: scored once, after the choice; none for lm_eval, which brings its own rows",
    )
    reference: str | None = Field(
        None,
        description="instead of test, a reference set's name: its deciding half is scored after every training",
    )
    max_decrease: float | None = Field(
        None,
        ge=0,
        allow_inf_nan=False,
        description="with reference: the largest accepted fall from round 0; a mixture that falls by more is not kept; null: watched only",
    )
    exact_match: str | None = Field(None, description="regex; its first group (or whole match) is the answer")
    code_tests: str | None = Field(
        None,
        min_length=1,
        description="a .jsonl of tests by row id, as HumanEval's or MBPP's: generated code is run in a process of its own, "
        "10 s and 1 GiB, without network or writing",
    )
    callable: str | None = Field(None, description="'module:function', called with (model, tokenizer, rows)")
    lm_eval: str | None = Field(
        None, min_length=1, description="a task of lm-evaluation-harness, or a local task's .yaml"
    )
    metric: str | None = Field(
        None,
        description="of lm_eval's task, such as acc_norm or 'exact_match,strict-match'; null: its first",
    )
    max_new_tokens: int = Field(
        256, gt=0, description="length limit of a generated answer; lm_eval's tasks have their own"
    )
    rows: int | None = Field(None, gt=0, description="score only the first this many rows; null: all")

    @model_validator(mode="after")
    def _one_kind(self) -> Score:
        kinds = (self.exact_match, self.code_tests, self.callable, self.lm_eval)
        if sum(kind is not None for kind in kinds) != 1:
            raise ValueError("give exactly one of exact_match, code_tests, callable and lm_eval")
        if self.lm_eval is None and (self.test is None) == (self.reference is None):
            raise ValueError("name either the test set with test, or a reference set with reference")
        if self.lm_eval is not None and (self.test or self.reference):
            raise ValueError("a task of lm_eval brings its own rows: leave test and reference out")
        if self.max_decrease is not None and self.reference is None:
            raise ValueError("max_decrease is for scores on a reference set: no test set and no task decides")
        if self.metric is not None and self.lm_eval is None:
            raise ValueError("metric is of lm_eval's tasks alone")
        return self


def _task_alone(value: Any) -> Any:
    """``gsm8k: lm_eval:gsm8k`` is short for ``gsm8k: {lm_eval: gsm8k}``."""
    if isinstance(value, str) and value.startswith("lm_eval:"):
        return {"lm_eval": value.removeprefix("lm_eval:")}
    return value


class Constraint(Settings):
    """A no-regression limit on one reference set, honoured by allocation and by the decision."""

    max_increase: float = Field(
        ge=0,
        allow_inf_nan=False,
        description="largest accepted rise of the loss above the mean of round 0's trainings, nats per token; a mixture that exceeds it "
        "significantly is not kept",
    )


class Lora(Settings):
    """Low-rank adapters (peft's names)."""

    r: int = Field(16, gt=0, description="rank")
    lora_alpha: float = Field(
        32.0, gt=0, allow_inf_nan=False, description="scale; the update is lora_alpha / r times the product"
    )
    lora_dropout: float = Field(0.0, ge=0, lt=1, description="dropout on the adapters' input")
    target_modules: str | list[str] = Field("all-linear", description="which layers get adapters")


class Training(BaseModel):
    """How a mixture is trained. Keys that are not listed here go to TRL's ``SFTConfig`` as they are."""

    model_config = ConfigDict(extra="allow", frozen=True)

    backend: Literal["trl", "command"] = Field(
        "trl", description="who trains: TRL here, or an outside command"
    )
    command: str | None = Field(
        None, description="for backend: command; {model} {train_file} {output_dir} are filled in"
    )
    epochs: float = Field(1.0, gt=0, allow_inf_nan=False, description="passes over the mixture")
    learning_rate: float = Field(1.0e-5, gt=0, allow_inf_nan=False, description="peak learning rate")
    max_length: int = Field(
        512, gt=1, description="tokens a row; longer rows are cut at the end, and counted"
    )
    lora: Lora | None = Field(None, description="train low-rank adapters; null: all parameters")
    per_device_train_batch_size: int = Field(8, gt=0, description="rows in a micro-batch of one process")
    gradient_accumulation_steps: int = Field(1, gt=0, description="micro-batches of one optimiser step")
    dtype: Literal["auto", "float32", "bfloat16"] = Field(
        "auto", description="what is computed in; auto: the checkpoint's own, float32 on a CPU"
    )
    gradient_checkpointing: bool = Field(False, description="less memory, more time")
    packing: bool = Field(False, description="flatten each micro-batch into one padding-free sequence")
    lr_scheduler_type: str = Field("linear", description="transformers' schedule name")
    warmup_steps: int = Field(0, ge=0, description="optimiser steps of warm-up")
    weight_decay: float = Field(0.0, ge=0, allow_inf_nan=False, description="AdamW's weight decay")
    max_grad_norm: float = Field(1.0, ge=0, allow_inf_nan=False, description="gradient clipping; 0: none")
    optim: str = Field("adamw_torch", description="transformers' optimiser name")
    save_steps: int | None = Field(None, gt=0, description="checkpoint inside the phase every so many steps")
    report_to: str | list[str] = Field("none", description="experiment trackers, passed through")

    @model_validator(mode="after")
    def _command_given(self) -> Training:
        if self.backend == "command" and not self.command:
            raise ValueError("backend: command needs training.command")
        if self.backend != "command" and self.command:
            raise ValueError("training.command is only used with backend: command")
        return self

    @property
    def extra_arguments(self) -> dict[str, Any]:
        """Keys of the block that this schema does not name: they go to the trainer."""
        return dict(self.__pydantic_extra__ or {})


class Influence(Settings):
    """How influence is measured."""

    curvature: Literal["ekfac", "kfac", "exact", "woodbury", "identity"] = Field(
        "ekfac",
        description="approximation of the Gauss-Newton matrix; exact: none, some hundred times slower, for small models; "
        "woodbury: all layers together through the rows, for LoRA; identity: the gradient dot product, a baseline",
    )
    response: Literal["converged", "finite", "unrolled"] = Field(
        "converged",
        description="converged: the paper's inverse; finite: the training that was done, seen from its end; "
        "unrolled: in three segments, each with its own model and curvature",
    )
    fisher: Literal["sampled", "empirical"] = Field("sampled", description="labels behind the curvature")
    centred: Literal["auto"] | bool = Field("auto", description="auto: true with a held budget, else false")
    layers: str | list[str] = Field("linear", description="linear, mlp, or name patterns (fnmatch)")
    damping: float = Field(
        1.0e-3, gt=0, allow_inf_nan=False, description="relative to a layer's mean eigenvalue"
    )
    sample_fraction: float = Field(
        0.5, gt=0, le=1, description="share of each domain's rows that is measured"
    )
    least_rows: int = Field(
        128,
        gt=0,
        description="least number of each domain's drawn rows, and of its unused ones, that is measured whatever the share (all, if there "
        "are fewer); finds better what small domains are made of, and costs it where there are many",
    )
    curvature_fraction: Literal["auto"] | Annotated[float, Field(gt=0, le=1)] = Field(
        "auto",
        description="share of the measured rows that the curvature rests on; auto: enough for the widest layer",
    )
    batch_tokens: int = Field(
        4096,
        gt=0,
        description="padded tokens in one pass's batch, of evaluation too; four times as many where answers are generated",
    )
    store: Literal["auto", "memory", "disk"] = Field(
        "auto", description="where large matrices lie; auto: on disk where memory would exceed training's own"
    )


class Budget(Settings):
    """What stays equal between mixtures."""

    unit: Literal["tokens", "supervised_tokens", "rows"] = Field("tokens", description="what is counted")
    hold: bool = Field(True, description="false: volume is free, as in the paper")
    size: int | None = Field(None, gt=0, description="amount in that unit; null: all rows of all pools")


class Allocation(Settings):
    """How counts follow from influence."""

    budget: Budget = Field(Budget(), description="what stays equal between mixtures")
    rule: Literal["curves", "equalise", "scaled", "exponentiated"] = Field(
        default_factory=lambda known: "curves" if known["budget"].hold else "scaled",
        description="curves: to the best mixture within reach along learning curves fitted to all losses so far, influence saying who helps whom "
        "(the default of a held budget); equalise: towards equal gains for each unit of a held budget, by one power law; scaled: beta_i = - m slope_i / max |slope|, "
        "the paper's (the default of a free volume, and of the objective worst); exponentiated: shares times exp(- eta dL/dshare)",
    )
    m: float = Field(
        default_factory=lambda known: {"curves": 7.0, "equalise": 3.0, "scaled": 0.15, "exponentiated": 1.0}[
            known["rule"]
        ],
        gt=0,
        allow_inf_nan=False,
        description="largest relative change of a domain in one round; by default 7 for curves (a domain at most grows to eight times, or "
        "shrinks to an eighth; 3 at most where there are no curves), 3 for equalise, 0.15 for scaled, 1 for exponentiated",
    )
    start: Literal["natural", "uniform"] | dict[str, int] = Field(
        "natural", description="mixture of round 0: by pool size, equal, or row counts"
    )
    floor: float | dict[str, float] = Field(
        0.0, description="smallest share of a domain, in the budget's unit"
    )
    cap: float | dict[str, float] | None = Field(
        None, description="largest share of a domain, in the budget's unit"
    )
    max_repeats: int = Field(4, gt=0, description="largest number of times that one row is drawn")
    gate: bool = Field(
        True,
        description="move only what stands out of its standard error (with curves, which weigh every domain by its errors: move only if "
        "some domain stands out)",
    )
    keep: Literal["leaning", "better"] = Field(
        "leaning",
        description="which mixture the next step starts from, and which is taken in the end. leaning: the one that measured lowest, even where the "
        "difference may be chance (and says so); better: only one that stands out of its error",
    )
    rounds: int = Field(
        3,
        gt=0,
        description="trainings of the loop, round 0 included; may be raised later, and the same folder goes on",
    )
    patience: int = Field(
        1, ge=0, description="rounds in a row without improvement that are borne; one more ends the loop"
    )
    replicates: int = Field(2, ge=0, description="extra seeds of round 0: the seed's share of the error")


class Search(Settings):
    """Where the mixture is looked for, when not at full size; it is then trained once with the run's own settings."""

    model: str | None = Field(
        None, min_length=1, description="a smaller model to search with; null: the run's own"
    )
    fraction: float = Field(0.1, gt=0, le=1, description="of the budget that each training of the search has")
    lora: bool = Field(False, description="search with low-rank adapters")
    learning_rate: float | None = Field(
        None,
        gt=0,
        allow_inf_nan=False,
        description="the search's own, for adapters or another model; null: the run's",
    )


def _none_is_empty(value: Any) -> Any:
    return {} if value is None else value


class Config(Settings):
    """A run's whole configuration, every default resolved. See docs/config.md."""

    model: str = Field(min_length=1, description="a hub name or a local folder")
    method: str = Field(
        "ideal",
        description="who finds the mixture: ideal, ideal-paper (the paper's rule to the letter), another of docs/methods.md, "
        "or your own as 'module:Class'",
    )
    methods: Annotated[dict[str, dict[str, Any]], BeforeValidator(_none_is_empty)] = Field(
        default_factory=dict,
        description="options of methods by name, such as {random: {k: 5}}; see docs/methods.md",
    )
    domains: dict[str, Annotated[Source, BeforeValidator(_path_alone)]] = Field(
        min_length=1, description="training pools by name"
    )
    references: dict[str, Annotated[ReferenceSource, BeforeValidator(_path_alone)]] = Field(
        min_length=1, description="reference sets by capability"
    )
    tests: Annotated[
        dict[str, Annotated[Source, BeforeValidator(_path_alone)]], BeforeValidator(_none_is_empty)
    ] = Field(default_factory=dict, description="test sets by name: final figures only")
    scores: Annotated[
        dict[str, Annotated[Score, BeforeValidator(_task_alone)]], BeforeValidator(_none_is_empty)
    ] = Field(
        default_factory=dict,
        description="scores by name: on test sets, on the deciding halves of reference sets, or 'lm_eval:TASK'",
    )
    objective: Literal["mean_loss", "relative", "progress", "worst"] = Field(
        "mean_loss",
        description="how the references' losses are joined: weighted mean; the same of each loss over its value in round 0; "
        "progress: of each fall below the base model's loss over round 0's fall (5 % of the base model's loss where that is more); "
        "or worst: the largest loss, in nats, among the sets of positive weight (weights only say which sets count)",
    )
    constraints: Annotated[dict[str, Constraint], BeforeValidator(_none_is_empty)] = Field(
        default_factory=dict, description="no-regression limits by reference set"
    )
    training: Training = Field(Training(), description="how a mixture is trained")
    influence: Influence = Field(Influence(), description="how influence is measured")
    allocation: Allocation = Field(Allocation(), description="how counts follow from influence")
    search: Search | None = Field(
        None,
        description="look for the mixture on a smaller model or a part of the budget; null: at full size",
    )
    seed: int = Field(0, ge=0, description="of every draw, order and sample")
    output: str = Field("runs/my-run", description="the run folder")

    @model_validator(mode="before")
    @classmethod
    def _small_steps_for_worst(cls, data: Any) -> Any:
        """`worst` looks at one set at a time: a rule that goes far by it would ruin the others."""
        if not isinstance(data, dict) or data.get("objective") != "worst":
            return data
        given = data.get("allocation") or {}
        return {**data, "allocation": {"rule": "scaled", **given}} if isinstance(given, dict) else data

    @property
    def final_scores(self) -> dict[str, Score]:
        """Those of test sets and tasks: made once, after the choice, and steering nothing."""
        return {name: one for name, one in self.scores.items() if one.reference is None}

    @property
    def watched_scores(self) -> dict[str, Score]:
        """Those on the deciding halves of reference sets: made after every training."""
        return {name: one for name, one in self.scores.items() if one.reference is not None}
