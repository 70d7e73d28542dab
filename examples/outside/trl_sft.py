"""A training of one's own with TRL, for `training: {backend: command}`.

    command: "python examples/outside/trl_sft.py {model} {train_file} {output_dir}"

`RecordTraining` tells idealmix the optimiser's steps, so that `influence: {response: finite}` can be asked for. Without it the
default response works as well.
"""

import sys

from datasets import load_dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from idealmix.training.watched import RecordTraining


def main(model: str, train_file: str, output_dir: str) -> None:
    rows = load_dataset("json", data_files=train_file, split="train").select_columns(["messages"])
    settings = SFTConfig(
        output_dir=output_dir,
        num_train_epochs=1,
        learning_rate=1e-3,
        per_device_train_batch_size=16,
        max_length=512,
        assistant_only_loss=True,  # the loss that idealmix measures influence for
        logging_steps=1,  # the gradient's norm of every step: clipping is then known
        save_strategy="no",
        report_to="none",
        bf16=False,
    )
    tokenizer = AutoTokenizer.from_pretrained(model)
    trainer = SFTTrainer(
        model=model,
        args=settings,
        train_dataset=rows,
        processing_class=tokenizer,
        callbacks=[RecordTraining(segments=3)],
    )
    trainer.train()
    trainer.save_model(output_dir)


if __name__ == "__main__":
    main(*sys.argv[1:])
