"""A Hugging Face data set: ``datasets.load_dataset("FOLDER")``, or pushed to the hub as it is.

Flows in: a materialised mixture. Flows out: ``data/<domain>.parquet`` and a card. The default configuration is the
whole mixture; each domain is one too. The column ``domain`` holds the names unchanged.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from idealmix import __version__
from idealmix.export.files import stems_of
from idealmix.export.materialised import Materialised
from idealmix.export.parquet import columns, records, write_parquet

_COMMAND = """python -c 'import datasets; print(datasets.load_dataset("."))'"""


def write(mixture: Materialised, output: Path) -> tuple[list[Path], str]:
    """Write the Parquet files and the card."""
    stems, features = stems_of(mixture, reserved=["default"]), columns(mixture)
    (output / "data").mkdir()
    files = [
        write_parquet(output / "data" / f"{stems[domain.name]}.parquet", records(domain), features)
        for domain in mixture.filled
    ]
    card = output / "README.md"
    card.write_text(_card(mixture, stems), encoding="utf-8")
    return [*files, card], _COMMAND


def _card(mixture: Materialised, stems: dict[str, str]) -> str:
    paths = {stem: f"data/{stem}.parquet" for stem in stems.values()}
    configs: list[dict[str, Any]] = [
        {"config_name": "default", "default": True, "data_files": _train(list(paths.values()))}
    ]
    configs += [{"config_name": stem, "data_files": _train([path])} for stem, path in paths.items()]
    front = yaml.safe_dump({"tags": ["idealmix"], "configs": configs}, sort_keys=False)
    lines = [
        f"A training mixture of {sum(mixture.counts.values()):,} rows, written by idealmix {__version__} from the "
        f"run {mixture.run.resolve().name} (seed {mixture.seed}). Repetitions are written out; repeated rows have ids "
        "that end in `#2`, `#3`. `provenance.json` has hashes and sources.",
        "",
        "| domain | configuration | rows | tokens | supervised tokens |",
        "|---|---|---|---|---|",
    ]
    for domain in mixture.domains:
        facts, name = domain.facts, domain.name.replace("|", "\\|")
        lines.append(
            f"| {name} | {stems.get(domain.name, '')} | {domain.rows} | {facts.get('tokens')} "
            f"| {facts.get('supervised_tokens')} |"
        )
    return f"---\n{front}---\n\n# Mixture\n\n" + "\n".join(lines) + "\n"


def _train(paths: list[str]) -> list[dict[str, Any]]:
    return [{"split": "train", "path": paths}]
