"""What a run starts from: the tokenised pools, the reference sets in two halves, the test sets, all checked.

Flows in: the resolved configuration. Flows out: `Inputs`, and the digests that the phases' keys are made of.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from idealmix.config import Config
from idealmix.errors import InputError
from idealmix.rounds.watch import Watch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from idealmix.data.pools import Pool


@dataclass(frozen=True)
class Inputs:
    """The data of a run, in memory-mapped pools.

    Attributes:
        tokenizer: the model's own.
        domains: training pools by name.
        gradient_halves: the half of each reference set whose gradient the influence uses.
        deciding_halves: the half of each reference set that decides between mixtures.
        tests: test sets by name.
        reports: what became of every source's rows, ``{"domains.math": {...}}``.
        model_digest: of a local base model's files; None for a hub name.
    """

    tokenizer: PreTrainedTokenizerBase
    domains: dict[str, Pool]
    gradient_halves: dict[str, Pool]
    deciding_halves: dict[str, Pool]
    tests: dict[str, Pool]
    reports: dict[str, dict[str, Any]]
    model_digest: str | None

    @property
    def warnings(self) -> list[str]:
        """What the user should know about the data, in sentences."""
        return [f"{name}: {text}" for name, report in self.reports.items() for text in report["warnings"]]

    def digests(self, block: str) -> dict[str, str]:
        """Content hashes of one block's sets, for keys and the manifest."""
        sets: Mapping[str, Pool] = getattr(self, block)
        return {name: pool.digest for name, pool in sets.items()}

    def facts(self) -> dict[str, Any]:
        """Rows, tokens and supervised tokens of every set, for the manifest."""
        sizes = {
            block: {
                name: {
                    "rows": len(pool),
                    "tokens": int(pool.tokens.sum()),
                    "supervised_tokens": int(pool.supervised.sum()),
                    "sha256": pool.digest,
                }
                for name, pool in getattr(self, block).items()
            }
            for block in ("domains", "gradient_halves", "deciding_halves", "tests")
        }
        return {**sizes, "sources": self.reports}


def load_inputs(config: Config, watch: Watch) -> Inputs:
    """Load, tokenise and check every set that the configuration names.

    Raises:
        InputError: a file, row, name or overlap is wrong (see `idealmix.data`), or a training setting.
    """
    from idealmix.data.leaks import alike, check_leaks
    from idealmix.data.pools import load_pool, split_reference
    from idealmix.data.tokenise import Encoder
    from idealmix.evaluation.scores import check_rows, check_score
    from idealmix.training.check import check_training
    from idealmix.training.model import load_tokenizer

    check_training(config.training, config.model)
    for name, setting in config.scores.items():
        check_score(name, setting)
    tokenizer = load_tokenizer(config.model)
    encoder = Encoder(tokenizer, config.training.max_length)
    sources = {
        (block, name): source
        for block in ("domains", "references", "tests")
        for name, source in getattr(config, block).items()
    }
    reports = {}
    pools: dict[str, dict[str, Pool]] = {"domains": {}, "references": {}, "tests": {}}
    for done, ((block, name), source) in enumerate(sources.items()):
        watch.advance(done, len(sources), f"{block}.{name}")
        pool = load_pool(name, source, encoder, seed=config.seed)
        pools[block][name] = pool
        reports[f"{block}.{name}"] = pool.report.to_dict()
        for warning in pool.report.warnings:
            watch.warn(f"{block}.{name}: {warning}")
    check_leaks(pools["domains"], pools["references"], pools["tests"])
    for name, text in alike(pools["domains"]):
        reports[f"domains.{name}"]["warnings"].append(text)
        watch.warn(f"domains.{name}: {text}")
    halves = {}
    for name, pool in pools["references"].items():
        if len(pool) < 4:
            raise InputError(
                f"this reference set has {len(pool)} usable rows; one half gives gradients, the other decides",
                where=f"references.{name}",
                mend="give it at least 4 rows; 30 to 300 serve well",
            )
        halves[name] = split_reference(pool, config.seed)
    for name, setting in config.scores.items():
        if setting.test is not None:
            check_rows(name, setting, pools["tests"][setting.test])
        elif setting.reference is not None:
            check_rows(name, setting, halves[setting.reference][1])
    return Inputs(
        tokenizer=tokenizer,
        domains=pools["domains"],
        gradient_halves={name: half[0] for name, half in halves.items()},
        deciding_halves={name: half[1] for name, half in halves.items()},
        tests=pools["tests"],
        reports=reports,
        model_digest=model_digest(config.model),
    )


def model_digest(path: str) -> str | None:
    """SHA-256 of a local model's files; None: a hub's, whose revision is its name."""
    if not Path(path).is_dir():
        return None
    digest = hashlib.sha256()
    for file in sorted(p for p in Path(path).iterdir() if p.suffix in (".json", ".safetensors", ".jinja")):
        with open(file, "rb") as handle:
            content = hashlib.file_digest(handle, "sha256").hexdigest()
        digest.update(f"{file.name}\0{content}\0".encode())
    return digest.hexdigest()
