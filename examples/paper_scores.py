"""IFEval and TruthfulQA as functions for `scores: {NAME: {test: SET, callable: 'paper_scores:FUNCTION'}}`.

Flows in: a model, its tokenizer, the rows of a test set, and what says how they are marked, by row id: `sample/instruction/checks.jsonl`
(IFEval's `prompt`, `instruction_id_list` and `kwargs`) or `sample/truthfulness/choices.jsonl` (TruthfulQA's `mc1_targets` and
`mc2_targets`, each a mapping from an answer to 1 or 0). Flows out: one number for each row.

    python examples/paper_scores.py EXTRAS

brings these files, and `sample/coding/tests.jsonl`, from a folder EXTRAS, and puts the rows that IFEval's checks can mark first in
`sample/instruction/test.jsonl`: a score's `rows` then takes these alone. It prints how many they are. IFEval's checks need
pip install 'lm-eval[ifeval]'.

Who reaches the hub takes lm-evaluation-harness's own tasks instead: `lm_eval:ifeval`, `lm_eval:truthfulqa_mc1`.
"""

from __future__ import annotations

import json
import math
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from idealmix.data.conversation import Conversation
from idealmix.data.pools import Row
from idealmix.data.tokenise import Encoder
from idealmix.evaluation.generation import generate
from idealmix.evaluation.loss import reference_loss

SAMPLE = Path(__file__).parent / "sample"
NEW_TOKENS = 320
# their checks need data of nltk's that is fetched from the network
UNMARKED = {"length_constraints:number_sentences", "change_case:capital_word_frequency"}


def ifeval(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> list[float]:
    """1 where every instruction of the prompt is followed (IFEval's strict accuracy, checks of lm-evaluation-harness)."""
    from lm_eval.tasks.ifeval.utils import InputExample, test_instruction_following_strict

    checks = {check["id"]: check for check in read(SAMPLE / "instruction" / "checks.jsonl")}
    turns = [Conversation(row["id"], row["messages"]) for row in rows]
    followed = []
    for row, answer in zip(rows, generate(model, tokenizer, turns, NEW_TOKENS, batch_tokens=2**16)):
        check = checks[row["id"]]
        example = InputExample(0, check["instruction_id_list"], check["prompt"], check["kwargs"])
        followed.append(float(test_instruction_following_strict(example, answer).follow_all_instructions))
    return followed


def truthfulqa_mc1(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> list[float]:
    """1 where the one true answer has the highest likelihood among the choices, its end included."""
    likely = likelihoods(model, tokenizer, rows, "mc1_targets")
    return [float(max(row, key=lambda choice: choice[0])[1]) for row in likely]


def truthfulqa_mc2(model: Any, tokenizer: Any, rows: list[dict[str, Any]]) -> list[float]:
    """The part of the choices' probability that the true ones have."""
    parts = []
    for row in likelihoods(model, tokenizer, rows, "mc2_targets"):
        most = max(value for value, _ in row)
        weights = [(math.exp(value - most), true) for value, true in row]
        parts.append(sum(weight for weight, true in weights if true) / sum(weight for weight, _ in weights))
    return parts


def likelihoods(
    model: Any, tokenizer: Any, rows: list[dict[str, Any]], targets: str
) -> list[list[tuple[float, bool]]]:
    """For each row its choices' log-likelihoods in nats, and whether they are true."""
    marked = {row["id"]: row[targets] for row in read(SAMPLE / "truthfulness" / "choices.jsonl")}
    encoder, asked = Encoder(tokenizer, 10**6), []
    for row in rows:
        for number, text in enumerate(marked[row["id"]]):
            answer = {"role": "assistant", "content": text}
            turns = Conversation(f"{row['id']}#{number}", [*row["prompt"], answer])
            encoded = encoder.encode(turns)
            asked.append(Row(turns.id, encoded.input_ids, encoded.labels))
    loss = reference_loss(model, Choices("choices", asked), batch_tokens=2**14)  # type: ignore[arg-type]
    nats = dict(zip(loss.row_ids, loss.loss_sums))
    return [
        [
            (-float(nats[f"{row['id']}#{number}"]), bool(true))
            for number, true in enumerate(marked[row["id"]].values())
        ]
        for row in rows
    ]


@dataclass(frozen=True)
class Choices:
    """As much of a pool as its loss asks for."""

    name: str
    choices: list[Row]

    def __len__(self) -> int:
        return len(self.choices)

    def row(self, number: int) -> Row:
        return self.choices[number]


def bring(extras: Path) -> None:
    """Copy the marks, and sort the instruction rows."""
    checks, tests = (
        read(extras / "instruction" / "ifeval_checks.jsonl"),
        SAMPLE / "instruction" / "test.jsonl",
    )
    write(SAMPLE / "instruction" / "checks.jsonl", checks)
    write(SAMPLE / "truthfulness" / "choices.jsonl", read(extras / "truthfulness" / "truthfulqa_mc.jsonl"))
    code = [read(extras / "coding" / name) for name in ("humaneval_full.jsonl", "mbpp_tests.jsonl")]
    write(SAMPLE / "coding" / "tests.jsonl", [row for rows in code for row in rows])
    marked = {check["id"] for check in checks if not UNMARKED & set(check["instruction_id_list"])}
    write(tests, sorted(read(tests), key=lambda row: row["id"] not in marked))
    print(f"{sum(row['id'] in marked for row in read(tests))} rows of {tests} have checks")


def read(path: Path) -> list[dict[str, Any]]:
    """Rows of a .jsonl file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]


def write(path: Path, rows: list[dict[str, Any]]) -> None:
    """The same way back."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = [json.dumps(row, ensure_ascii=False) + "\n" for row in rows]
    path.write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    bring(Path(sys.argv[1]))
