"""What comes from outside cannot run, and cannot write outside of the output: docs/security.md, line by line."""

from __future__ import annotations

import ast
import contextlib
import json
import pickle
import shutil
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from data_helpers import make_tokenizer
from export_helpers import chat, run_folder
from report_helpers import sample
from rounds_helpers import idealmix, project, save_model
from training_helpers import save_tiny_model, tiny_mixture, tiny_pools

import idealmix as package
from idealmix import config
from idealmix.data.materialise import export_jsonl
from idealmix.data.mixture import draw
from idealmix.data.pools import load_pool
from idealmix.data.tokenise import Encoder
from idealmix.errors import IdealmixError, InputError
from idealmix.export import TARGETS, export
from idealmix.report import build
from idealmix.training import train
from idealmix.training.checkpoints import seal
from idealmix.training.command import filled_in
from idealmix.training.model import load_model

SOURCES = sorted(Path(package.__file__).parent.rglob("*.py"))
# The one place that runs code: what a model wrote, in a process of its own with limits.
RUNS_CODE = {"sandbox_child.py"}


class Pwn:
    """Unpickled, it writes a file."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.target, "executed"))


# --- the source -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: path.name)
def test_no_source_unpickles_evaluates_or_asks_a_shell(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = (
                [node.module or ""]
                if isinstance(node, ast.ImportFrom)
                else [each.name for each in node.names]
            )
            assert not {"pickle", "dill", "cloudpickle", "marshal", "shelve", "joblib"} & {
                name.split(".")[0] for name in names
            }
        if not isinstance(node, ast.Call):
            continue
        called = ast.unparse(node.func)
        given = {word.arg: ast.unparse(word.value) for word in node.keywords}
        assert called not in {
            "eval",
            "os.system",
            "os.popen",
            "yaml.load",
            "yaml.unsafe_load",
            "torch.load",
            "pickle.load",
        }
        assert called != "exec" or path.name in RUNS_CODE
        assert given.get("shell", "False") == "False"
        assert given.get("trust_remote_code", "False") == "False"
        if called in ("np.load", "numpy.load"):
            assert given.get("allow_pickle") == "False"
        if called.rpartition(".")[2] == "from_pretrained" and called.startswith("Auto"):
            assert given.get("trust_remote_code") == "False"
        if called == "AutoModelForCausalLM.from_pretrained":
            assert given.get("use_safetensors") == "True"


# --- files that carry code ------------------------------------------------------------------------------------


def test_a_pickle_beside_safetensors_is_not_opened(tmp_path: Path) -> None:
    model = save_model(tmp_path / "model")
    for name in ("pytorch_model.bin", "training_args.bin", "optimizer.pt"):
        (model / name).write_bytes(pickle.dumps(Pwn(tmp_path / "executed")))
    load_model(model)
    assert not (tmp_path / "executed").exists()
    (model / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"stored by pickle, which can run any code.*(?s:.*)save_pretrained"):
        load_model(model)
    assert not (tmp_path / "executed").exists()


def test_adapters_by_pickle_are_refused(tmp_path: Path) -> None:
    model, adapters = save_model(tmp_path / "model"), tmp_path / "adapters"
    adapters.mkdir()
    facts = {"peft_type": "LORA", "base_model_name_or_path": str(model), "r": 2, "target_modules": ["q_proj"]}
    (adapters / "adapter_config.json").write_text(json.dumps(facts))
    (adapters / "adapter_model.bin").write_bytes(pickle.dumps(Pwn(tmp_path / "executed")))
    with pytest.raises(InputError, match=r"adapter_model\.safetensors"):
        load_model(adapters)
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"])
def test_a_checkpoint_that_was_tampered_with_does_not_run(tmp_path: Path, name: str) -> None:
    """Even one with a right seal: whoever writes into the run folder can seal."""
    base, pools = save_tiny_model(tmp_path / "base"), tiny_pools({"math": 9})
    settings = config.Training(
        per_device_train_batch_size=4, dtype="float32", epochs=2, save_steps=1, learning_rate=1e-3
    )

    def stop(done: int, total: int, facts: Any) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(base, tiny_mixture(pools), pools, settings, seed=0, output=tmp_path / "out", progress=stop)
    checkpoint = tmp_path / "out" / "checkpoints" / "checkpoint-2"
    assert (checkpoint / name).is_file()
    (checkpoint / name).write_bytes(pickle.dumps(Pwn(tmp_path / "executed")))
    seal(checkpoint)
    try:
        train(base, tiny_mixture(pools), pools, settings, seed=0, output=tmp_path / "out")
    except (IdealmixError, pickle.UnpicklingError):
        pass
    else:
        assert name == "training_args.bin"  # which is written by the trainer and never read
    assert not (tmp_path / "executed").exists()


# --- commands -------------------------------------------------------------------------------------------------


def test_a_command_is_words_and_no_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pools = tiny_pools({"math": 3})
    command = "echo {train_file} {output_dir} ; touch executed && touch executed $(touch executed) `touch executed` > executed"
    settings = config.Training(backend="command", command=command)
    with pytest.raises(IdealmixError, match="checkpoint"):
        train(
            save_tiny_model(tmp_path / "m"),
            tiny_mixture(pools),
            pools,
            settings,
            seed=0,
            output=tmp_path / "o",
        )
    assert (
        "; touch executed && touch executed $(touch executed)" in (tmp_path / "o" / "command.log").read_text()
    )
    assert not (tmp_path / "executed").exists()


def test_a_path_stays_one_word_whatever_it_holds() -> None:
    hostile = "/m {output_dir}; rm -rf ~ $(id) 'x"
    words = filled_in(
        "t --m={model} {train_file} {output_dir}", model=hostile, train_file="f", output_dir="o"
    )
    assert words == ["t", f"--m={hostile}", "f", "o"]


# --- the page -------------------------------------------------------------------------------------------------

PAYLOADS = [
    "<script>alert(1)</script>",
    "</script><script>alert(1)</script>",
    "<img src=x onerror=alert(1)>",
    '"><svg onload=alert(1)>',
    "' onmouseover='alert(1)",
    "javascript:alert(1)",
    "{{ 7 * 7 }}${7*7}",
    "<!--<script>",
    "]]><style>*{display:none}</style>",
]


class Harmless(HTMLParser):
    """Fails on anything of a payload that became an element or an attribute that runs."""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        assert not [name for name in values if name.startswith("on")]
        links = [
            values.get(name, "").strip().lower()
            for name in ("href", "src", "action", "formaction", "xlink:href")
        ]
        assert not [link for link in links if link.startswith("javascript:")]
        assert tag not in ("img", "iframe", "object", "embed") or values.get("src", "").startswith("data:")

    def handle_data(self, data: str) -> None:
        assert self.cdata_elem is None or "<script>alert(1)" not in data


def hostile(value: Any, names: dict[str, str]) -> Any:
    """A result with every free text turned into payloads and every name into a hostile one."""
    if isinstance(value, dict):
        return {names.get(key, key): hostile(inner, names) for key, inner in value.items()}
    if isinstance(value, list):
        return [hostile(inner, names) for inner in value]
    return names.get(value, value) if isinstance(value, str) else value


@pytest.fixture
def hostile_page(tmp_path: Path) -> Path:
    result = sample()
    names = dict(zip((*result["domains"], "retention"), PAYLOADS))
    result = hostile(result, names)
    result |= {"model": PAYLOADS[0], "name": PAYLOADS[1], "warnings": PAYLOADS, "ended": PAYLOADS[2]}
    for one in result["rounds"]:
        one["reason"] = " ".join(PAYLOADS)
    path = tmp_path / "report.html"
    path.write_text(build(result), encoding="utf-8")
    return path


def test_no_element_comes_from_a_payload(hostile_page: Path) -> None:
    html = hostile_page.read_text(encoding="utf-8")
    Harmless().feed(html)
    for payload in PAYLOADS[:4]:
        assert payload not in html
    assert "&lt;script&gt;alert(1)&lt;/script&gt;" in html


def runs_nothing(browser: Any, *pages: Path) -> None:
    context = browser.new_context()
    page, ran = context.new_page(), []
    page.on("dialog", lambda dialog: (ran.append(dialog.message), dialog.dismiss()))
    page.on("pageerror", lambda error: ran.append(str(error)))
    page.on(
        "request",
        lambda request: ran.append(request.url) if not request.url.startswith(("file:", "data:")) else None,
    )
    for path in pages:
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        page.evaluate(
            "document.querySelectorAll('*').forEach(e => e.dispatchEvent(new MouseEvent('mouseover', {bubbles: true})))"
        )
        page.wait_for_timeout(200)
        assert ran == [], path.name
    context.close()


def test_no_payload_runs_in_a_browser(browser: Any, hostile_page: Path) -> None:
    runs_nothing(browser, hostile_page)


@pytest.mark.slow
def test_hostile_rows_run_in_no_page_of_a_real_run(browser: Any, tmp_path: Path) -> None:
    path = project(tmp_path)
    rows = [
        {"id": f"../../{payload}", "prompt": f"next {payload}", "response": payload, payload: payload}
        for payload in PAYLOADS
    ]
    with (tmp_path / "count" / "train.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps(row) + "\n" for row in rows)
    with (tmp_path / "count" / "reference.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(json.dumps({**row, "prompt": f"after {row['prompt']}"}) + "\n" for row in rows)
    outside = {each for each in tmp_path.rglob("*") if each.is_file()}
    for command in (
        ["run", str(path)],
        ["diagnose", str(path), "--noise"],
        ["export", str(tmp_path / "run"), "--to", "trl"],
    ):
        ended = idealmix(*command)
        assert ended.returncode == 0, ended.stderr
    pages = sorted((tmp_path / "run").rglob("*.html"))
    assert len(pages) >= 2
    for page in pages:
        Harmless().feed(page.read_text(encoding="utf-8"))
    runs_nothing(browser, *pages)
    written = {each for each in tmp_path.rglob("*") if each.is_file()} - outside
    assert all(each.is_relative_to(tmp_path / "run") for each in written)


# --- paths ----------------------------------------------------------------------------------------------------

ELSEWHERE = ["../../evil", "/var/evil", "..", ".", "a/../../evil", "C:\\evil", "evil\0", "-rf", "a" * 300]


def everything(folder: Path) -> set[Path]:
    return {path.relative_to(folder) for path in folder.rglob("*")}


@pytest.mark.parametrize("target", list(TARGETS))
def test_ids_and_names_of_a_run_cannot_leave_the_export(tmp_path: Path, target: str) -> None:
    """Also where somebody has written the run folder by hand."""
    rows = {"plain": [chat(row_id, "a", "b") for row_id in ELSEWHERE[:6]], "..": [chat("x", "a", "b")]}
    run = run_folder(tmp_path / "deep" / "er" / "run", rows)
    before = everything(tmp_path)
    output = tmp_path / "deep" / "out"
    with contextlib.suppress(IdealmixError):  # a target may refuse such names
        export(run, target, output)
    new = everything(tmp_path) - before
    assert all((tmp_path / path).is_relative_to(output) for path in new)


@pytest.mark.parametrize("target", list(TARGETS))
@pytest.mark.parametrize("place", ["/etc/passwd", "../../secret.jsonl"])
def test_a_manifest_cannot_name_files_outside_of_the_run(tmp_path: Path, target: str, place: str) -> None:
    run = run_folder(tmp_path / "a" / "run", {"plain": [chat("x", "a", "b")]})
    shutil.copy(run / "mixture" / "plain.jsonl", tmp_path / "a" / "secret.jsonl")
    manifest = run / "mixture" / "manifest.json"
    content = json.loads(manifest.read_text(encoding="utf-8"))
    content["domains"]["plain"]["file"] = place
    manifest.write_text(json.dumps(content), encoding="utf-8")
    with pytest.raises(InputError):
        export(run, target, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ELSEWHERE)
def test_the_configuration_refuses_names_that_could_leave_the_folder(tmp_path: Path, name: str) -> None:
    from idealmix import configfile

    with pytest.raises(InputError):
        configfile.from_mapping(
            {"model": "m", "domains": {name: "a.jsonl"}, "references": {"r": "r.jsonl"}}, folder=tmp_path
        )


def test_rows_ids_make_no_files(tmp_path: Path) -> None:
    source = tmp_path / "deep" / "rows.jsonl"
    source.parent.mkdir()
    source.write_text(
        "".join(json.dumps({"id": row_id, "text": "a b"}) + "\n" for row_id in ELSEWHERE), encoding="utf-8"
    )
    pool = load_pool("x", config.Source(path=str(source)), Encoder(make_tokenizer(), 64), seed=0)
    before = everything(tmp_path)
    export_jsonl(
        draw({"x": pool}, {"x": len(pool)}, 0, max_repeats=1), tmp_path / "deep" / "out", {"x": pool}
    )
    assert {path.as_posix() for path in everything(tmp_path) - before} == {
        "deep/out", "deep/out/x.jsonl", "deep/out/manifest.json",
    }  # fmt: skip
