"""TRL's ``SFTTrainer``, fed by a plan: the rows reach the model as the pools hold them, in the plan's order.

TRL's own preparation (truncation, dropping, shuffling, packing) and accelerate's resharding are bypassed; its
loss, optimiser, schedule, clipping, mixed precision and distribution are used as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import datasets
import numpy as np
import torch
from torch.utils.data import DataLoader, Dataset
from trl import SFTTrainer
from trl.trainer.sft_trainer import DataCollatorForLanguageModeling

from idealmix.errors import IdealmixError, InputError
from idealmix.training import Progress
from idealmix.training.checkpoints import seal
from idealmix.training.order import Slot, StepPlan

if TYPE_CHECKING:
    from idealmix.data.pools import Pool

IGNORED = -100


class PlannedRows(Dataset):
    """Rows by slot, read from the pools when they are needed."""

    def __init__(self, domains: Sequence[str], pools: Mapping[str, Pool]) -> None:
        self.pools = [pools[name] for name in domains]

    def __len__(self) -> int:
        return sum(len(pool) for pool in self.pools)

    def __getitem__(self, slot: Slot) -> dict[str, Any]:
        row = self.pools[slot.domain].row(slot.row)
        labels = [IGNORED] * len(row.labels) if slot.filler else row.labels
        return {"input_ids": row.input_ids, "labels": labels, "slot": slot}


class PlannedCollator:
    """TRL's collator, and beside it ``rows``: the (domain, pool row) pairs of the batch, fillers left out.

    Args:
        packing: flatten the batch into one sequence; positions restart at every row, so attention stays
            inside the rows and no padding is computed.
    """

    def __init__(self, pad_token_id: int, packing: bool) -> None:
        self.inner = DataCollatorForLanguageModeling(pad_token_id=pad_token_id, padding_free=packing)

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        batch = self.inner([{key: row[key] for key in ("input_ids", "labels")} for row in examples])
        slots = [(row["slot"].domain, row["slot"].row) for row in examples if not row["slot"].filler]
        batch["rows"] = torch.tensor(slots, dtype=torch.int64).reshape(-1, 2)
        return batch


class PlannedTrainer(SFTTrainer):
    """``SFTTrainer`` on a ``StepPlan``; keeps what each micro-batch fed to the model.

    Attributes:
        consumed: per micro-batch of this process an int array (rows, 2) of domain and pool row.
    """

    # TRL's compute_loss divides by the step's supervised tokens of all micro-batches and ranks, so nothing
    # may divide by the number of micro-batches again, whatever the model's own forward accepts.
    loss_is_scaled_for_ga: Any = True

    def __init__(
        self,
        *,
        plan: StepPlan,
        pools: Mapping[str, Pool],
        packing: bool,
        progress: Progress | None,
        **trl: Any,
    ) -> None:
        self.plan, self.pools, self.progress = plan, pools, progress
        self.consumed: list[np.ndarray] = []
        collator = PlannedCollator(trl["processing_class"].pad_token_id, packing)
        # TRL insists on a datasets.Dataset; get_train_dataloader below is what feeds the model.
        stand_in = datasets.Dataset.from_dict({"input_ids": [[0]], "labels": [[IGNORED]]})
        super().__init__(train_dataset=stand_in, data_collator=collator, **trl)
        # Decides that labels are counted, and that the shift drops position 0; transformers guesses both
        # from the model's class, while TRL's fused loss always counts and shifts.
        self.model_accepts_loss_kwargs = True
        self._loss_shifts_labels = True
        self._share = plan.share_of(self.args.process_index)

    def get_train_dataloader(self) -> DataLoader:
        """This process's micro-batches of the plan, not resharded by accelerate."""
        return DataLoader(
            PlannedRows(self.plan.domains, self.pools),
            batch_sampler=self._share,  # type: ignore[arg-type]
            collate_fn=self.data_collator,
            pin_memory=self.args.device.type == "cuda",
        )

    def create_optimizer(self, model: Any = None) -> torch.optim.Optimizer:
        """TRL's own; one that lacks its package or an option is the user's to mend."""
        try:
            return super().create_optimizer(model)
        except torch.OutOfMemoryError:
            raise
        except (ImportError, RuntimeError, ValueError, TypeError) as error:
            name = getattr(self.args.optim, "value", self.args.optim)
            raise InputError(
                f"the optimiser {name} cannot be made: {error}",
                where="training.optim",
                mend="install or set what it asks for, or use optim: adamw_torch",
            ) from error

    def training_step(
        self, model: Any, inputs: dict[str, Any], num_items_in_batch: Any = None
    ) -> torch.Tensor:
        """One micro-batch: checked against the plan, then trained by TRL."""
        rows = inputs.pop("rows").cpu().numpy()
        planned = [slot[:2] for slot in self._share[len(self.consumed)] if not slot.filler]
        if not np.array_equal(rows, np.array(planned).reshape(-1, 2)):
            raise IdealmixError(
                f"step {self.state.global_step + 1} got other rows than planned: {self._named(rows)}",
                where="training",
                mend="this is a fault in idealmix or an untested version of transformers: please report it",
            )
        self.consumed.append(rows)
        loss = super().training_step(model, inputs, num_items_in_batch)
        if not torch.isfinite(loss):
            self._stop_not_finite("loss", rows)
        return loss

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Each step's figures go to the trainer's history and to the progress hook."""
        super().log(logs, start_time)
        if "learning_rate" not in logs:
            return
        if not np.isfinite(logs.get("grad_norm", 0.0)):
            self._stop_not_finite("gradient", np.concatenate(self.consumed[-self.plan.micro_batches :]))
        if self.progress is not None and self.is_world_process_zero():
            facts: dict[str, Any] = {
                key: logs[key] for key in ("loss", "learning_rate", "grad_norm") if key in logs
            }
            self.progress(self.state.global_step, len(self.plan.steps), facts)

    def _stop_not_finite(self, what: str, rows: np.ndarray) -> None:
        step = len(self.consumed[:-1]) // self.plan.micro_batches + 1
        raise IdealmixError(
            f"the {what} of step {step} is not finite; its rows: {self._named(rows)}",
            where="training",
            mend="look at these rows, lower training.learning_rate, or use training.dtype: float32",
        )

    def _named(self, rows: np.ndarray, most: int = 8) -> str:
        names = [f"{self.plan.domains[d]}/{self.pools[self.plan.domains[d]].ids[r]}" for d, r in rows]
        more = f" and {len(names) - most} more" if len(names) > most else ""
        return ", ".join(names[:most]) + more

    def consumed_steps(self) -> list[np.ndarray]:
        """Per optimiser step the (rows, 2) that all processes together consumed; call it on every process."""
        width = max(len(batch) for batch in self.consumed)
        padded = np.full((len(self.consumed), width, 2), -1, dtype=np.int64)
        for number, batch in enumerate(self.consumed):
            padded[number, : len(batch)] = batch
        mine = torch.from_numpy(padded).to(self.args.device)
        mine = self.accelerator.pad_across_processes(mine, dim=1, pad_index=-1)
        everyone = self.accelerator.gather(mine[None]).cpu().numpy()  # process, micro-batch, row, 2
        together = everyone.reshape(len(everyone), len(self.plan.steps), -1, 2).swapaxes(0, 1)
        return [step.reshape(-1, 2)[step.reshape(-1, 2)[:, 0] >= 0] for step in together]

    # What follows keeps checkpoints inside the training complete, and nothing else leaves the machine.

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        folder = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        folder.mkdir(parents=True, exist_ok=True)
        flat = np.concatenate(self.consumed)
        sizes = np.array([len(batch) for batch in self.consumed])
        np.savez(folder / f"consumed-{self.args.process_index}.npz", rows=flat, sizes=sizes)
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()
        if self.is_world_process_zero():
            seal(folder)

    def recall_consumed(self, checkpoint: Path) -> None:
        """What this process had consumed when ``checkpoint`` was written."""
        with np.load(checkpoint / f"consumed-{self.args.process_index}.npz", allow_pickle=False) as saved:
            self.consumed = np.split(saved["rows"], np.cumsum(saved["sizes"])[:-1])

    def floating_point_ops(self, inputs: dict[str, Any]) -> int:
        """Not counted: walking all parameters for every micro-batch costs more than a small model's step."""
        return 0

    def create_model_card(self, *args: Any, **kwargs: Any) -> None:
        """None is written."""

    def _send_telemetry(self) -> None:
        """None is sent."""
