"""What every test runs under: no network, one thread a process (the tests themselves run side by side); a browser."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import settings

# how long an example takes says what else the machine does, not what the code is worth
settings.register_profile("any machine", deadline=None)
settings.load_profile("any machine")

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

# a shell without job control starts what it puts behind with SIGINT ignored, and every child inherits that: Ctrl-C could not be tried
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

_BROWSER_FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]


@pytest.fixture(scope="session")
def browser() -> Iterator[Any]:
    path = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        path = None
    if path is None:
        if os.environ.get("IDEALMIX_REQUIRE_BROWSER") == "1":
            pytest.fail("no Chromium or no playwright, and IDEALMIX_REQUIRE_BROWSER=1")
        pytest.skip("no Chromium or no playwright")
    with sync_playwright() as p:
        running = p.chromium.launch(executable_path=path, args=_BROWSER_FLAGS)
        yield running
        running.close()
