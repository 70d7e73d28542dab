"""config.yaml: every error at once with its line, nothing lost on the way to the run folder and back."""

from __future__ import annotations

import subprocess
import sys
from importlib import resources
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from idealmix import configfile
from idealmix.config import Allocation, Config
from idealmix.decision import Decision, LoopState, next_step
from idealmix.errors import InputError
from idealmix.evaluation.objective import objective_gradient

GOOD = """\
model: some/model
domains: {math: a.jsonl, code: {path: b.jsonl, rows: 10}}
references: {math: {path: ra.jsonl, weight: 2}, code: rb.jsonl}
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "config.yaml"
    path.write_text(text, encoding="utf-8")
    return path


def message(folder: Path, text: str, *overrides: str) -> str:
    with pytest.raises(InputError) as error:
        configfile.load(write(folder, text), overrides)
    return str(error.value)


def test_good_config_resolves_paths_against_its_own_folder(tmp_path: Path) -> None:
    config = configfile.load(write(tmp_path, GOOD))
    assert config.domains["math"].path == str(tmp_path.resolve() / "a.jsonl")
    assert config.output == str(tmp_path.resolve() / "runs" / "my-run")
    assert config.model == "some/model"  # not on disk: a hub name
    assert config.references["math"].weight == 2
    assert config.influence.centred is True  # a held budget


def test_resolved_config_reads_back_unchanged_from_another_folder(tmp_path: Path) -> None:
    config = configfile.load(write(tmp_path, GOOD))
    other = tmp_path / "elsewhere"
    other.mkdir()
    assert configfile.load(write(other, configfile.dump(config))) == config


def test_all_errors_at_once_with_lines_and_nearest_keys(tmp_path: Path) -> None:
    text = message(
        tmp_path,
        GOOD
        + "trainning: {epochs: 2}\n"
        + "influence:\n  curvatur: ekfac\n  damping: -1\n"
        + "allocation: {budget: {unit: tokns}}\n",
    )
    assert "4 errors" in text
    assert "line 4, trainning: unknown key 'trainning'; did you mean 'training'?" in text
    assert "line 6, influence.curvatur: unknown key 'curvatur'; did you mean 'curvature'?" in text
    assert "line 7, influence.damping" in text
    assert "line 8, allocation.budget.unit" in text


def test_what_one_error_would_hide_is_told_too(tmp_path: Path) -> None:
    text = message(
        tmp_path,
        GOOD
        + "training:\n  epochs: many\n  adam_beta_2: 0.9\n  seed: 1\n  fp17: true\n"
        + "influence: {curvatur: x}\n"
        + "scores: {s: {test: maths, exact_match: '('}, t: {test: x}}\n"
        + "allocation: {start: {math: 3}, m: -1}\n"
        + "constraints: {mth: {max_increase: 0.1}}\n"
        + "domain: 1\n",
    )
    for expected in (
        "line 5, training.epochs: ",
        "line 6, training.adam_beta_2: neither idealmix nor TRL's SFTConfig knows the key 'adam_beta_2'; "
        "did you mean 'adam_beta2'?",
        "line 7, training.seed: seed cannot be set: the rows of every step are planned",
        "line 8, training.fp17: neither",
        "line 9, influence.curvatur: ",
        "line 10, scores.s.exact_match: not a regular expression",
        "line 10, scores.s.test: no test set is called 'maths'",
        "line 10, scores.t: give exactly one of",
        "line 11, allocation.start: row counts are missing for code",
        "line 11, allocation.m: ",
        "line 12, constraints.mth: no reference set is called 'mth'; did you mean 'math'?",
        "line 13, domain: unknown key 'domain'",
        "12 errors",
    ):
        assert expected in text


@pytest.mark.parametrize("bad", ["domains: 5", "model: m", "references: {a: {path: 3}}"])
def test_a_block_that_cannot_be_read_does_not_hide_the_rest(tmp_path: Path, bad: str) -> None:
    text = message(tmp_path, bad + "\ntraining: {epochz: 1}\nmethod: magic\n")
    assert "training.epochz: neither idealmix" in text
    assert "did you mean 'epochs'?" in text
    assert "line 3, method" in text


@pytest.mark.parametrize(
    ("command", "expected"),
    [
        ("'t {train_file}'", "does not contain {output_dir}"),
        (
            "'t {model} {train_file} {output_dir}', epochs: 2",
            "training.epochs: backend: command does not use",
        ),
        (
            "'t {model} {train_file} {output_dir}', beta: 2",
            "training.beta: backend: command does not use this",
        ),
    ],
)
def test_what_an_outside_command_cannot_take(tmp_path: Path, command: str, expected: str) -> None:
    text = message(tmp_path, GOOD + f"training: {{backend: command, command: {command}}}\n")
    assert "line 4, training." in text
    assert expected in text


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("scores: {s: {test: maths, exact_match: x}}", "no test set is called 'maths'"),
        ("scores: {s: {test: math}}", "exactly one of exact_match, code_tests, callable and lm_eval"),
        (
            "tests: {math: t.jsonl}\nscores: {s: {test: math, exact_match: '('}}",
            "line 5, scores.s.exact_match: not a regular expression",
        ),
        ("constraints: {mth: {max_increase: 0.1}}", "did you mean 'math'?"),
        ("allocation: {start: {math: 3}}", "row counts are missing for code"),
        ("allocation: {start: {math: 0, code: 0}}", "nothing to train on"),
        ("allocation: {start: {math: -1, code: 2}}", "cannot be negative"),
        ("allocation: {floor: {maths: 0.1}}", "no domain is called 'maths'"),
        ("allocation: {cap: 1.5}", "a share lies between 0 and 1"),
        (
            "influence: {response: finite, curvature: identity}",
            "'finite' works in ekfac's or kfac's eigenbasis",
        ),
        ("training: {backend: command}", "needs training.command"),
        ("training: {command: x}", "only used with backend: command"),
        ("training: {epochs: .nan}", "training.epochs"),
        ("training: {epochs: 0}", "training.epochs"),
        ("method: magic", "line 4, method"),
        ("method: ideal-paper\nallocation: {m: 0.5}", "fixes this to 0.15"),
        ("seed: -1", "line 4, seed"),
        ("model: again", "the key 'model' is given twice"),
        ("tests: [", "not valid YAML"),
        ("tests: {? [a] : b}", "a key must be text"),
        ("tests: {../up: t.jsonl}", "a name is 1 to 64"),
        ("tests: {" + "\u4e00" * 30 + ": t.jsonl}", "a name is 1 to 64 bytes"),
        ("tests: {A: t.jsonl, a: u.jsonl}", "differs from 'A' only by case"),
        ("seed: !!python/name:os.system x", "cannot read"),
    ],
)
def test_bad_configs_are_told_what_and_where(tmp_path: Path, extra: str, expected: str) -> None:
    assert expected in message(tmp_path, GOOD + extra + "\n")


def test_all_weights_zero_is_refused(tmp_path: Path) -> None:
    bad = GOOD.replace("weight: 2", "weight: 0").replace(
        "code: rb.jsonl", "code: {path: rb.jsonl, weight: 0}"
    )
    assert "every weight is 0" in message(tmp_path, bad)


@pytest.mark.parametrize("text", ["", "# nothing\n", "- a\n", "just text\n", "\x00", "a: &x [*x]\n"])
def test_not_a_configuration(tmp_path: Path, text: str) -> None:
    message(tmp_path, text)


def test_missing_and_binary_files(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        configfile.load(tmp_path / "none.yaml")
    (tmp_path / "binary.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="cannot read"):
        configfile.load(tmp_path / "binary.yaml")


def test_overrides(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD)
    config = configfile.load(
        path, ["training.learning_rate=1e-4", "domains.math.rows=5", "training.lora={r: 4}", "seed=7"]
    )
    assert config.training.learning_rate == 1e-4
    assert config.domains["math"].rows == 5  # the short form `math: a.jsonl` grew a block
    assert config.training.lora is not None
    assert config.training.lora.r == 4
    with pytest.raises(InputError, match=r"--set, training\.epochs"):
        configfile.load(path, ["training.epochs=many"])
    with pytest.raises(InputError, match=r"not key\.path=value"):
        configfile.load(path, ["training.epochs"])
    with pytest.raises(InputError, match="not a block"):
        configfile.load(path, ["seed=1", "seed.x=2"])


def test_names_that_yaml_reads_as_something_else(tmp_path: Path) -> None:
    config = configfile.load(write(tmp_path, "model: m\ndomains: {no: a, 1: b}\nreferences: {on: c}\n"))
    assert list(config.domains) == ["no", "1"]
    assert list(config.references) == ["on"]


def test_lists_and_bools_are_not_parsed_from_text(tmp_path: Path) -> None:
    """Fault 12 of the paper's code: bool("False") was true, and two layer names fused into one."""
    config = configfile.load(
        write(tmp_path, GOOD),
        [
            "influence.layers=['*.q_proj', '*.k_proj']",
            "allocation.gate=false",
            "influence.centred=False",
            "allocation.rule=scaled",
        ],
    )
    assert config.influence.layers == ["*.q_proj", "*.k_proj"]
    assert config.allocation.gate is False
    assert config.influence.centred is False


def test_ideal_paper_is_the_paper(tmp_path: Path) -> None:
    config = configfile.load(write(tmp_path, GOOD + "method: ideal-paper\n"))
    assert (config.allocation.m, config.allocation.budget.hold, config.allocation.gate) == (
        0.15,
        False,
        False,
    )
    assert (config.influence.centred, config.influence.layers) == (False, "mlp")


def test_later_errors_get_the_line_of_their_key(tmp_path: Path) -> None:
    path = write(tmp_path, GOOD + "training:\n  lerning_rate: 1\n")
    found = configfile.locate(InputError("unknown", where="training.lerning_rate", mend="m"), path)
    assert found.where == f"{path}, line 5, training.lerning_rate"
    assert (
        configfile.locate(InputError("x", where="training.epochs"), path).where
        == f"{path}, line 4, training.epochs"
    )
    for where in ("some/file.jsonl:3", None):
        assert configfile.locate(InputError("x", where=where), path).where == where


def test_differences_name_the_key() -> None:
    old = {"a": 1, "b": {"c": 2, "d": 3}, "gone": 1}
    assert configfile.differences(old, {"a": 1, "b": {"c": 5, "d": 3}, "new": 0}) == [
        "b.c: 2 -> 5",
        "gone: 1 -> None",
        "new: None -> 0",
    ]


def _leaves(data: object, prefix: str = "") -> set[str]:
    return {f"{prefix}{key}" for key in data} if isinstance(data, dict) else set()


def test_template_is_valid_and_names_every_key() -> None:
    text = resources.files("idealmix").joinpath("template.yaml").read_text(encoding="utf-8")
    data = yaml.safe_load(text)
    Config.model_validate(data)
    for block in ("allocation", "influence"):
        known = set(Config.model_fields[block].default.model_fields_set) or set(
            type(Config.model_fields[block].default).model_fields
        )
        shown = _leaves(data[block])
        shown |= {key for key in known if f"\n  # {key}: " in text}  # its default follows from another key
        absent = known - shown - {"gate", "batch_tokens"}  # for experts: docs/config.md
        assert not absent, f"{block}: {absent}"
    assert set(data) == set(Config.model_fields)


_scalars = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
_values = st.recursive(
    _scalars,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=6), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=150, deadline=None)
@given(
    key=st.sampled_from([*Config.model_fields, "tests.x", "training.foo", "allocation.budget"]), value=_values
)
def test_any_value_anywhere_is_accepted_or_refused_clearly(key: str, value: object) -> None:
    data = yaml.safe_load(GOOD)
    target = data
    *parents, last = key.split(".")
    for part in parents:
        target = target.setdefault(part, {})
    target[last] = value
    try:
        configfile.check(data)
    except InputError as error:
        refusal = error
    else:
        return
    assert refusal.exit_code == 2
    assert "error" in str(refusal)


@settings(max_examples=150, deadline=None)
@given(text=st.text(max_size=200) | st.binary(max_size=100))
def test_any_file_is_accepted_or_refused_clearly(
    tmp_path_factory: pytest.TempPathFactory, text: str | bytes
) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "config.yaml"
    path.write_bytes(text if isinstance(text, bytes) else text.encode("utf-8", "surrogatepass"))
    with pytest.raises(InputError):
        configfile.load(path)


def test_the_config_page_is_written_from_the_schema() -> None:
    script = Path(__file__).parent.parent / "scripts" / "write_config_reference.py"
    done = subprocess.run(
        [sys.executable, str(script), "--check"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_worst_goes_in_small_steps(tmp_path: Path) -> None:
    """Its slope is that of one set: along curves that set would get all that the others can give."""
    path = write(tmp_path, GOOD)
    alone = configfile.load(path, ["objective=worst"]).allocation
    assert (alone.rule, alone.m) == ("scaled", 0.15)
    assert configfile.load(path, ["objective=worst", "allocation.patience=2"]).allocation.rule == "scaled"
    assert configfile.load(path, ["objective=relative"]).allocation.rule == "curves"
    assert "worst has the slope of one set" in message(
        tmp_path, GOOD, "objective=worst", "allocation.rule=curves"
    )


def test_what_worst_and_patience_say_is_what_they_do():
    """Weights only choose among the losses of ``worst``; patience is what is borne, not what ends the loop."""
    slopes = objective_gradient({"a": 2.0, "b": 1.0, "c": 9.0}, {"a": 0.1, "b": 5.0, "c": 0.0}, "worst")
    assert {name for name, slope in slopes.items() if slope} == {"a"}
    assert "largest loss, in nats, among the sets of positive weight" in described(Config, "objective")
    ended = LoopState.start({"a": 1}, m=0.1, rounds=9, patience=1)
    worse = Decision("worse", 1.0, 0.1, 9.0, 1.0, (), "")
    assert (once := next_step(ended, worse)).action != "end"
    assert next_step(once, worse).action == "end"
    assert "borne; one more ends the loop" in described(Allocation, "patience")


def described(block, key):
    return block.model_fields[key].description
