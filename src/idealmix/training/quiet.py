"""Keeps transformers, trl, peft and datasets from printing: the run has its own progress lines."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

_TALKERS = ("transformers", "trl", "accelerate", "peft", "datasets")


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Inside: no progress bars, no log lines below ERROR and no warnings from those libraries."""
    import datasets
    from transformers.utils import logging as hf_logging

    levels = {name: logging.getLogger(name).level for name in _TALKERS}
    bars = hf_logging.is_progress_bar_enabled(), datasets.are_progress_bars_disabled()
    for name in _TALKERS:
        logging.getLogger(name).setLevel(logging.ERROR)
    hf_logging.disable_progress_bar()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for name, level in levels.items():
            logging.getLogger(name).setLevel(level)
        if bars[0]:
            hf_logging.enable_progress_bar()
        if not bars[1]:
            datasets.enable_progress_bars()
