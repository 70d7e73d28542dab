"""`idealmix view`: the page on loopback, following a run; nothing of a request reaches the disk; no run, no page."""

from __future__ import annotations

import http.client
import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rounds_helpers import project
from test_compare_figures import content
from test_compare_figures import run as compared
from whatif_helpers import Run

import idealmix
from idealmix.disk import write_json
from idealmix.errors import InputError
from idealmix.evaluation.set_loss import SetLoss
from idealmix.rounds.folder import RunFolder
from idealmix.view import progress
from idealmix.view.server import port_of, serve


@pytest.fixture
def served() -> Iterator[Any]:
    running = []

    def start(run: Path) -> int:
        server = serve(run)
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
        thread.start()
        running.append(server)
        return port_of(server)

    yield start
    for server in running:
        server.shutdown()
        server.server_close()


def ask(
    port: int, path: str, method: str = "GET", host: str | None = None
) -> tuple[int, str, dict[str, str]]:
    link = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    link.putrequest(method, path, skip_host=True)
    link.putheader("Host", host or f"127.0.0.1:{port}")
    link.endheaders()
    answer = link.getresponse()
    body = answer.read().decode()
    link.close()
    return answer.status, body, dict(answer.getheaders())


class Going:
    """A run folder that grows as a run's does, phase by phase."""

    def __init__(self, made: Run) -> None:
        self.made, self.run = made, made.folder
        for name in ("result.json", "draw.json", "manifest.json"):
            (self.run / name).rename(self.run / f"later-{name}")
        (self.run / ".phases").mkdir()
        self.folder = RunFolder(self.run)

    def losses(self, shift: float) -> dict[str, Any]:
        rng = np.random.default_rng(3)
        halves = {}
        for half in ("deciding", "gradient"):
            halves[half] = {
                q: SetLoss(
                    q, tuple(f"{q}{half}{k}" for k in range(30)), rng.uniform(2, 9, 30) + shift + 0.1 * rng.normal(0, 1, 30),
                    np.full(30, 5, np.int64),
                ).to_json()
                for q in self.made.references
            }  # fmt: skip
        return halves

    def phase(self, name: str, content: Any) -> None:
        def produce(part: Path) -> None:
            write_json(part if Path(name).suffix else part / "record.json", content)

        self.folder.phase(name, {"n": name}, produce)

    def round(self, index: int, shift: float) -> None:
        part = {
            n: {"rows": k, "tokens": 9 * k, "supervised_tokens": 3 * k} for n, k in self.made.start.items()
        }
        self.phase(f"round-{index}/mixture.json", {"domains": part})
        self.phase(f"round-{index}/train", {"rows": 1, "tokens": 1000, "supervised_tokens": 300, "steps": 12})
        self.phase(f"round-{index}/evaluation.json", self.losses(shift))


def test_a_finished_run(served: Any, tmp_path: Path) -> None:
    port = served(Run(tmp_path / "run", 1).folder)
    status, html, headers = ask(port, "/")
    assert status == 200
    assert "connect-src 'self'" in html
    assert headers["Cache-Control"] == "no-store"
    assert headers["Content-Type"] == "text/html; charset=utf-8"
    state = ask(port, "/state")[1]
    assert f'content="{state}"' in html
    assert ask(port, "/state", "HEAD")[:2] == (200, "")


@pytest.mark.parametrize(
    "path",
    [
        "/config.yaml",
        "/../../etc/passwd",
        "/%2e%2e/result.json",
        "//etc/passwd",
        "/?x",
        "/state/",
        "/..%00",
        "http://x/",
    ],
)
def test_nothing_else_is_served(served: Any, tmp_path: Path, path: str) -> None:
    port = served(Run(tmp_path / "run", 1).folder)
    assert ask(port, path)[:2] == (404, "There is only the page at /.")


def test_other_hosts_and_methods_are_refused(served: Any, tmp_path: Path) -> None:
    port = served(Run(tmp_path / "run", 1).folder)
    assert ask(port, "/", host="evil.example")[0] == 403
    assert ask(port, "/", host=f"localhost:{port}")[0] == 200
    assert ask(port, "/", "POST")[0] == 501


def test_a_run_that_is_going(tmp_path: Path, served: Any) -> None:
    going = Going(Run(tmp_path / "run", 1))
    port = served(going.run)
    assert "nothing is evaluated yet" in ask(port, "/")[1]
    going.phase("base/evaluation.json", going.losses(3.0))
    begun = going.folder.begin("round-0/mixture.json", {"n": "round-0/mixture.json"})
    before = ask(port, "/state")[1]
    html = ask(port, "/")[1]
    assert "base/evaluation.json" in html
    assert "round-0/mixture.json" in html
    shutil.rmtree(begun.part, ignore_errors=True)
    going.round(0, 0.0)
    assert ask(port, "/state")[1] != before
    assert "Under way: 1 of at most 3 rounds so far." in ask(port, "/")[1]
    going.phase("round-0/influence.json", going.made.matrix.to_json())
    result = json.loads((going.run / "later-result.json").read_text(encoding="utf-8"))
    going.phase("round-0/allocation.json", result["rounds"][0]["allocation"])
    going.phase("round-0/replicate-1", {})
    write_json(going.run / "round-0/replicate-1/evaluation.json", going.losses(0.01))
    going.round(1, -1.0)
    found = progress.partial(going.run)
    assert found is not None
    assert [r["decision"] for r in found["rounds"]] == ["start", "better"]
    assert found["best"] == 1
    assert found["rounds"][1]["difference"]["value"] == pytest.approx(-0.2, abs=0.01)
    assert found["replicates"]["count"] == 1
    html = ask(port, "/")[1]
    assert "Under way: 2 of at most 3 rounds so far." in html
    assert "They come when the run has ended." in html


def test_a_search_that_is_going(tmp_path: Path, served: Any) -> None:
    run = tmp_path / "run"
    going = Going(Run(run / "search", 1))
    (run / ".phases").mkdir()
    shutil.copy(going.run / "config.yaml", run / "config.yaml")
    port = served(run)
    assert "nothing is evaluated yet" in ask(port, "/")[1]
    before = ask(port, "/state")[1]
    going.round(0, 0.0)
    assert ask(port, "/state")[1] != before
    html = ask(port, "/")[1]
    assert "Under way: 1 of at most 3 rounds so far." in html
    assert "run, search" in html
    (going.run / "later-result.json").rename(going.run / "result.json")
    assert "The search has ended; its mixture is trained at the full size." in ask(port, "/")[1]


def test_the_page_loads_itself_again(browser: Any, tmp_path: Path, served: Any) -> None:
    going = Going(Run(tmp_path / "run", 1))
    port = served(going.run)
    said: list[str] = []
    asked: set[str] = set()
    page = browser.new_page()
    page.on("console", lambda message: said.append(message.text))
    page.on("pageerror", lambda error: said.append(str(error)))
    page.on("request", lambda request: asked.add(request.url))
    page.goto(f"http://127.0.0.1:{port}/")
    going.round(0, 0.0)
    page.wait_for_selector("h1:has-text('1 of at most 3 rounds')", timeout=20_000)
    for name in ("draw.json", "manifest.json", "result.json"):
        (going.run / f"later-{name}").rename(going.run / name)
    page.wait_for_selector("#whatif", state="visible", timeout=20_000)
    assert said == []
    assert {url for url in asked if not url.startswith("data:")} == {
        f"http://127.0.0.1:{port}/",
        f"http://127.0.0.1:{port}/state",
    }
    page.close()


def test_what_is_done_is_told_as_the_result_tells_it(tmp_path: Path) -> None:
    """The page of a going run, taken when a real run has ended, against that run's result.json."""
    told = idealmix.run(project(tmp_path))
    found = progress.partial(told.folder)
    assert found is not None
    assert found["best"] == told.best
    assert found["replicates"] == told["replicates"]
    assert len(told["rounds"]) == 2
    for one, final in zip(found["rounds"], told["rounds"]):
        for key in final:
            if key == "allocation" and final[key]:
                assert {**one[key], **final[key]} == one[key]
            elif key == "reason":  # the result adds what the loop did next
                assert final[key].startswith(one[key])
            else:
                assert one[key] == final[key], key


def test_a_comparison(served: Any, tmp_path: Path) -> None:
    joint, good = ([compared(1.0 + k / 10, 2.0 + x, 0.5) for k in range(3)] for x in (0.0, -0.5))
    (tmp_path / "compare").mkdir()
    write_json(tmp_path / "compare" / "comparison.json", content(joint=joint, good=good))
    port = served(tmp_path)
    html = ask(port, "/")[1]
    assert "comparison</title>" in html
    assert f'content="{ask(port, "/state")[1]}"' in html
    write_json(tmp_path / "compare" / "comparison.json", {"format": 1})
    assert "This cannot be shown." in ask(port, "/")[1]


def test_a_damaged_run_is_told(served: Any, tmp_path: Path) -> None:
    run = Run(tmp_path / "run", 1).folder
    port = served(run)
    for text in ("{", "[]", '{"format": 1, "domains": 3, "references": 3, "rounds": [3], "best": 0}'):
        (run / "result.json").write_text(text, encoding="utf-8")
        status, html, _ = ask(port, "/")
        assert status == 200
        assert "This cannot be shown." in html


def test_no_run_no_page(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such run folder"):
        serve(tmp_path / "absent")
    with pytest.raises(InputError, match="not a run of idealmix"):
        serve(tmp_path)
    (tmp_path / ".phases").mkdir()
    (tmp_path / "config.yaml").write_text("a: [", encoding="utf-8")
    with pytest.raises(InputError, match="not the configuration"):
        serve(tmp_path)


def test_the_command(tmp_path: Path) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "idealmix", "view", str(tmp_path / "absent")], capture_output=True, text=True
    )
    assert refused.returncode == 2
    assert "no such run folder" in refused.stderr
    assert "Traceback" not in refused.stderr
    run = Run(tmp_path / "run", 1).folder
    for number in (signal.SIGINT, signal.SIGTERM):
        with subprocess.Popen(
            [sys.executable, "-m", "idealmix", "view", str(run)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONUNBUFFERED": "1"},
        ) as process:  # fmt: skip
            assert process.stdout
            line = process.stdout.readline()
            port = int(line.split("/")[2].split(":")[1])
            assert line.startswith("http://127.0.0.1:")
            assert ask(port, "/state")[0] == 200
            process.send_signal(number)
            started = time.monotonic()
            out, err = process.communicate(timeout=20)
            assert time.monotonic() - started < 10
            assert process.returncode == 0
            assert out == "ended\n"
            assert err == ""
