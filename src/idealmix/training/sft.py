"""Trains a mixture by TRL: from the base model to a checkpoint, its record and its second moments.

Works in one process and under ``accelerate launch`` or ``torchrun``: every process calls ``train_by_trl``.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast_object_list
from safetensors.torch import save_file
from transformers import PrinterCallback
from trl import SFTConfig

from idealmix import config
from idealmix.disk import settle, writing
from idealmix.errors import IdealmixError, InputError
from idealmix.training import Progress
from idealmix.training.arguments import trainer_arguments
from idealmix.training.checkpoints import Checkpoints
from idealmix.training.model import computing_dtype, load_model, load_tokenizer
from idealmix.training.optimiser import constants, second_moments
from idealmix.training.order import StepPlan, consumption_digest, plan_steps
from idealmix.training.packed import check_packing
from idealmix.training.planned import PlannedTrainer
from idealmix.training.quiet import quiet
from idealmix.training.record import TrainingRecord
from idealmix.training.segments import KeepSegments, middles, trained_parameters
from idealmix.training.stop import StopBetweenSteps

if TYPE_CHECKING:
    from idealmix.data.mixture import Mixture
    from idealmix.data.pools import Pool

_NOT_COMPUTED = {"output_dir", "save_steps", "save_strategy", "report_to"}


def train_by_trl(
    model: str | Path,
    mixture: Mixture,
    pools: Mapping[str, Pool],
    settings: config.Training,
    *,
    seed: int,
    output: Path,
    steps: int | None = None,
    segments: int = 0,
    progress: Progress | None = None,
) -> TrainingRecord:
    """See ``idealmix.training.train``.

    Precision: weights that are trained are kept and saved in float32. With ``dtype: bfloat16`` (or ``auto`` on
    a bfloat16 checkpoint) the forward pass computes in bfloat16 and frozen weights under adapters are stored
    so: updates at usual learning rates are smaller than bfloat16 can add to a weight.
    """
    began = time.monotonic()
    path = str(Path(model).resolve()) if Path(model).is_dir() else str(model)
    dtype = computing_dtype(path, settings.dtype)
    plan = plan_steps(
        mixture,
        pools,
        seed=seed,
        epochs=settings.epochs,
        micro_batch_rows=settings.per_device_train_batch_size,
        accumulation=settings.gradient_accumulation_steps,
        processes=int(os.environ.get("WORLD_SIZE", "1")),  # set by accelerate launch and torchrun
        steps=steps,
    )
    arguments = trainer_arguments(settings, plan, seed=seed, dtype=dtype, folder=output / "checkpoints")
    checkpoints = Checkpoints(output / "checkpoints", _key(path, plan, pools, arguments, settings, segments))
    if _has_ended(checkpoints, output, plan.processes):
        return TrainingRecord.read(output / "record.json")
    with StopBetweenSteps() as stop:
        with quiet(), writing(output):
            trainer = _trainer(path, plan, pools, settings, arguments, dtype, progress)
            trainer.add_callback(stop)
            kept = _keep_segments(trainer, segments, output / "segments")
            _run(trainer, _checkpoint(trainer, checkpoints))
            if trainer.state.global_step < len(plan.steps):
                stop.go_through()
            consumed = _checked_consumption(trainer, plan, pools)
            trained: Any = trainer.model
            moments = second_moments(trained, trainer.optimizer)
            _save(trainer, trainer.processing_class, output, moments)
            trainer.accelerator.wait_for_everyone()
        steps_log = [entry for entry in trainer.state.log_history if "learning_rate" in entry]
        warnings = []
        if not moments:
            warnings.append(
                f"{settings.optim} keeps no second moments like AdamW's: the finite response treats it as plain gradient descent"
            )
        if hasattr(getattr(trainer.model, "config", None), "output_router_logits"):
            warnings.append(
                "mixture-of-experts model: its load-balancing loss is switched off while training"
            )
        record = TrainingRecord(
            backend="trl",
            seed=seed,
            steps=len(plan.steps),
            rows=plan.rows,
            tokens=plan.tokens,
            supervised_tokens=plan.supervised_tokens,
            step_weights=plan.step_weights,
            token_shares=plan.token_shares,
            model_path="model",
            seconds=time.monotonic() - began,
            step_sizes=[entry["learning_rate"] for entry in steps_log],
            losses=[entry["loss"] for entry in steps_log],
            gradient_norms=[entry["grad_norm"] for entry in steps_log if "grad_norm" in entry],
            optimiser=constants(trainer.optimizer, trainer.args),
            segments=kept,
            trained="lora" if settings.lora else "full",
            dtype=dtype,
            processes=plan.processes,
            consumed=consumed,
            arguments={key: value for key, value in arguments.items() if key != "output_dir"},
            warnings=warnings,
        )
        if trainer.is_world_process_zero():
            with writing(output):
                settle(output)
                record.write(output / "record.json")
    if trainer.is_world_process_zero():
        checkpoints.remove()
    trainer.accelerator.wait_for_everyone()
    return record


def _has_ended(checkpoints: Checkpoints, output: Path, processes: int) -> bool:
    """Whether this very training was stopped after its end.

    One process looks and tells the others: it then removes what this is seen by.
    """
    leads, found = True, [False]
    if processes > 1:
        leads = PartialState(cpu=not torch.accelerator.is_available()).is_main_process
    if leads:
        found = [checkpoints.ours() and (output / "record.json").is_file()]
    if processes > 1:
        broadcast_object_list(found)
    if leads and found[0]:
        checkpoints.remove()
    return found[0]


def _trainer(
    path: str,
    plan: StepPlan,
    pools: Mapping[str, Pool],
    settings: config.Training,
    arguments: dict[str, Any],
    dtype: str,
    progress: Progress | None,
) -> PlannedTrainer:
    tokenizer = load_tokenizer(path)
    model = load_model(path, dtype if settings.lora else "float32")
    if settings.packing:
        check_packing(model, plan, pools, tokenizer.pad_token_id)
    adapters = _adapters(settings.lora, path)
    try:
        trainer = PlannedTrainer(
            model=model,
            args=SFTConfig(**arguments),
            processing_class=tokenizer,
            peft_config=adapters,
            plan=plan,
            pools=pools,
            packing=settings.packing,
            progress=progress,
        )
    except torch.OutOfMemoryError as error:
        raise _out_of_memory() from error
    except (ValueError, TypeError, ImportError) as error:
        raise InputError(f"the trainer refuses these settings: {error}", where="training") from error
    except RuntimeError as error:
        if "Callback" not in str(error):
            raise
        raise InputError(  # so transformers words a tracker that is not installed
            f"{settings.report_to!r} cannot be reported to: {error}",
            where="training.report_to",
            mend="install the tracker, or set report_to: none",
        ) from error
    trainer.remove_callback(PrinterCallback)
    return trainer


def _keep_segments(trainer: PlannedTrainer, segments: int, folder: Path) -> list[int]:
    """After which steps a stage will be kept; none without segments."""
    if not segments:
        return []

    def state() -> Any:
        model: Any = trainer.model
        return trained_parameters(model), second_moments(model, trainer.optimizer)

    kept = middles(len(trainer.plan.steps), segments)
    trainer.add_callback(KeepSegments(kept, folder, state, trainer.is_world_process_zero()))
    return kept


def _adapters(lora: config.Lora | None, path: str) -> Any:
    if lora is None:
        return None
    if (Path(path) / "adapter_config.json").is_file():
        raise InputError(
            "the base model is itself a folder of adapters",
            where=path,
            mend="merge them into their base first",
        )
    try:
        from peft import LoraConfig
    except ImportError as error:
        raise InputError(
            "LoRA needs peft", where="training.lora", mend="pip install 'idealmix[lora]'"
        ) from error
    return LoraConfig(task_type="CAUSAL_LM", **lora.model_dump())


def _run(trainer: PlannedTrainer, checkpoint: Path | None) -> None:
    if checkpoint is not None:
        trainer.recall_consumed(checkpoint)
    try:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    except torch.OutOfMemoryError as error:
        raise _out_of_memory() from error


def _out_of_memory() -> IdealmixError:
    return IdealmixError(
        "the accelerator's memory is too small for this training",
        where="training",
        mend="set gradient_checkpointing: true, or lower per_device_train_batch_size and raise "
        "gradient_accumulation_steps by as much (with either, the same steps are trained, up to rounding), or train "
        "adapters (lora); a run whose training is changed needs another `output`",
    )


def _key(
    path: str,
    plan: StepPlan,
    pools: Mapping[str, Pool],
    arguments: dict[str, Any],
    settings: config.Training,
    segments: int,
) -> str:
    """What a checkpoint must have been made by to be gone on from."""
    # where the run folder lies (it may be moved) and how the training is watched are not part of it
    unmoved = {name: value for name, value in arguments.items() if name not in _NOT_COMPUTED}
    settled = settings.model_dump(exclude=_NOT_COMPUTED)
    facts = [path, plan.digest(pools), plan.processes, plan.micro_batches, unmoved, settled, segments]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _checkpoint(trainer: PlannedTrainer, checkpoints: Checkpoints) -> Path | None:
    """The newest whole checkpoint of this very training; those of another one are removed."""
    newest = checkpoints.newest()
    trainer.accelerator.wait_for_everyone()
    if trainer.is_world_process_zero():
        checkpoints.claim()
    trainer.accelerator.wait_for_everyone()
    return newest


def _checked_consumption(trainer: PlannedTrainer, plan: StepPlan, pools: Mapping[str, Pool]) -> str:
    """The digest of what was really consumed, after it was compared with the plan."""
    steps = trainer.consumed_steps()
    digest = consumption_digest(plan.domains, steps, pools)
    if digest != plan.digest(pools) or trainer.state.global_step != len(plan.steps):
        raise IdealmixError(
            f"{sum(map(len, steps))} rows in {trainer.state.global_step} steps were consumed, not the "
            f"{plan.rows} rows in {len(plan.steps)} steps of the mixture",
            where="training",
            mend="this is a fault in idealmix or an untested version of transformers: please report it",
        )
    return digest


def _save(trainer: PlannedTrainer, tokenizer: Any, output: Path, moments: dict[str, torch.Tensor]) -> None:
    """The checkpoint (weights or adapters, tokenizer) and the second moments; only the main process writes."""
    state = trainer.accelerator.get_state_dict(trainer.model_wrapped)
    if not trainer.is_world_process_zero():
        return
    folder = output / "model"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    model = trainer.accelerator.unwrap_model(trainer.model_wrapped)
    model.save_pretrained(folder, state_dict=state, safe_serialization=True)
    tokenizer.save_pretrained(folder)
    if moments:
        save_file(moments, output / "second_moments.safetensors")
