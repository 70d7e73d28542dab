"""What TRL really does with a plan: the rows, the loss, the gradients and the files."""

from __future__ import annotations

import functools
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook
from training_helpers import TinyPool, TinyRow, save_tiny_model, tiny_mixture, tiny_pools
from transformers import LlamaForCausalLM, LlamaModel
from trl import SFTTrainer

from idealmix.config import Training
from idealmix.errors import IdealmixError, InputError
from idealmix.training import train
from idealmix.training.model import load_model
from idealmix.training.order import plan_steps
from idealmix.training.record import TrainingRecord

STILL = 1e-30  # a learning rate that moves nothing: every step sees the base model
POOLS = tiny_pools({"math": 13, "code": 8})


@pytest.fixture(scope="module")
def base(tmp_path_factory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("base"))


def run(base, output, pools=POOLS, *, seed=0, steps=None, segments=0, progress=None, **settings):
    defaults = {"learning_rate": 1e-3, "per_device_train_batch_size": 4, "dtype": "float32"}
    chosen = Training(**(defaults | settings))
    how = {"seed": seed, "steps": steps, "segments": segments, "progress": progress}
    return train(base, tiny_mixture(pools), pools, chosen, output=output, **how)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model" / "model.safetensors")


def row_loss(model, row: TinyRow) -> torch.Tensor:
    """Our own summed loss of a row, unpadded."""
    logits = model(torch.tensor([row.input_ids])).logits[0, :-1]
    return torch.nn.functional.cross_entropy(logits, torch.tensor(row.labels[1:]), reduction="sum")


@pytest.mark.parametrize("packing", [False, True])
def test_the_model_gets_the_pools_rows_and_nothing_else(base, tmp_path, monkeypatch, packing):
    seen_ids, seen_labels = [], []

    def rows_of(tensor, batch):
        if "attention_mask" in batch:
            return [row[mask.bool()].tolist() for row, mask in zip(tensor, batch["attention_mask"])]
        starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
        return [part.tolist() for part in torch.tensor_split(tensor[0], starts[1:])]

    def spy(keep, key, original, self, *args, **inputs):
        batch = inputs if key == "input_ids" else args[1]
        keep.append(rows_of(batch[key], batch))
        return original(self, *args, **inputs)

    loss, forward = SFTTrainer.compute_loss, LlamaModel.forward
    patched = functools.partialmethod(lambda self, *a, **k: spy(seen_labels, "labels", loss, self, *a, **k))
    monkeypatch.setattr(SFTTrainer, "compute_loss", patched)

    @functools.wraps(forward)
    def spied_forward(self, *args, **inputs):
        if self.training:
            seen_ids.append(rows_of(inputs["input_ids"], inputs))
        return forward(self, *args, **inputs)

    monkeypatch.setattr(LlamaModel, "forward", spied_forward)
    run(base, tmp_path, packing=packing, gradient_accumulation_steps=2, epochs=2)
    got = sorted(
        (ids, labels[1:])  # position 0 has nothing before it that could predict it
        for ids_batch, labels_batch in zip(seen_ids, seen_labels, strict=True)
        for ids, labels in zip(ids_batch, labels_batch, strict=True)
    )
    rows = [row for pool in POOLS.values() for row in pool.rows] * 2
    assert got == sorted((row.input_ids, row.labels[1:]) for row in rows)


@pytest.mark.parametrize("accumulation", [1, 4])
@pytest.mark.parametrize("packing", [False, True])
def test_each_steps_loss_is_the_mean_over_its_supervised_tokens(base, tmp_path, accumulation, packing):
    # 21 rows over 4 steps of 5 or 6: with accumulation 4 micro-batches differ in rows and in tokens
    record = run(
        base,
        tmp_path,
        learning_rate=STILL,
        per_device_train_batch_size=8 // accumulation,
        gradient_accumulation_steps=accumulation,
        steps=4,
        packing=packing,
    )
    plan = plan_steps(
        tiny_mixture(POOLS), POOLS, seed=0, epochs=1, micro_batch_rows=8 // accumulation, steps=4
    )
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    for step, loss in zip(plan.steps, record.losses, strict=True):
        rows = [POOLS[plan.domains[domain]].row(int(row)) for domain, row in step]
        count = sum(label != -100 for row in rows for label in row.labels[1:])
        with torch.no_grad():
            ours = sum(row_loss(model, row) for row in rows) / count
        assert loss == pytest.approx(float(ours), abs=1e-5)
    assert record.step_weights == pytest.approx(plan.step_weights)
    assert record.consumed == plan.digest(POOLS)


@pytest.mark.parametrize("accumulation", [1, 4])
def test_step_weights_are_the_weights_of_the_gradients_that_reach_the_optimiser(base, tmp_path, accumulation):
    """With equal rows in a domain, the mean gradient over steps is sum_i v_i gbar_i: solve it for v."""
    rng = np.random.default_rng(0)
    pools = {}
    for name, size, length in (("long", 3, 24), ("short", 9, 3), ("middle", 7, 9)):
        ids = rng.integers(2, 40, length).tolist()
        rows = [TinyRow(f"{number}", ids, [-100, *ids[1:]]) for number in range(size)]
        pools[name] = TinyPool(name, rows)
    seen: list[torch.Tensor] = []

    def keep(optimiser, *_):
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        seen.append(torch.cat([p.grad.flatten() for p in sorted(parameters, key=lambda p: p.shape)]).double())

    hook = register_optimizer_step_pre_hook(keep)
    try:
        record = run(
            base,
            tmp_path,
            pools,
            learning_rate=STILL,
            max_grad_norm=0.0,
            per_device_train_batch_size=4 // accumulation,
            gradient_accumulation_steps=accumulation,
        )
    finally:
        hook.remove()
    assert len(seen) == record.steps == 5
    model = LlamaForCausalLM.from_pretrained(base, dtype=torch.float32)
    means = []
    decay = [p for p in model.parameters() if p.dim() > 1]  # the optimiser's order: decayed, then the rest
    order = decay + [p for p in model.parameters() if p.dim() <= 1]
    for pool in pools.values():
        model.zero_grad()
        (row_loss(model, pool.row(0)) / int(pool.supervised[0])).backward()
        means.append(torch.cat([p.grad.flatten() for p in sorted(order, key=lambda p: p.shape)]).double())
    mean = torch.stack(seen).mean(0)
    solved = torch.linalg.lstsq(torch.stack(means, 1), mean[:, None]).solution.flatten()
    assert solved.tolist() == pytest.approx(list(record.step_weights.values()), abs=1e-5)
    # the distinction matters here: the large-batch limit is visibly another vector
    gap = [abs(record.step_weights[name] - record.token_shares[name]) for name in pools]
    assert max(gap) > 0.02


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(base, tmp_path):
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        run(base, tmp_path / name, seed=seed)
    first, same, other = (weights(tmp_path / name) for name in "abc")
    assert all(torch.equal(first[key], same[key]) for key in first)
    assert any(not torch.equal(first[key], other[key]) for key in first)


def test_accumulation_packing_and_checkpointing_change_nothing_but_rounding(base, tmp_path):
    run(base, tmp_path / "plain", steps=5)
    variants = {
        "accumulated": {"per_device_train_batch_size": 1},
        "packed": {"packing": True},
        "checkpointed": {"gradient_checkpointing": True},
    }
    plain = weights(tmp_path / "plain")
    for name, settings in variants.items():
        run(base, tmp_path / name, steps=5, **settings)
        for key, value in weights(tmp_path / name).items():
            # AdamW's first steps divide by |g|: rounding of tiny gradients is magnified up to the step
            assert (value - plain[key]).abs().max() < 2e-4, (name, key)


def test_the_record_tells_the_training(base, tmp_path):
    seen = []
    record = run(
        base, tmp_path, epochs=2, warmup_steps=2, progress=lambda *facts: seen.append(facts), adam_beta2=0.95
    )
    assert record == TrainingRecord.read(tmp_path / "record.json")
    assert record.steps == len(record.losses) == len(record.step_sizes) == 11
    assert record.rows == 42
    assert record.step_sizes[0] == 0  # warm-up starts at zero
    assert max(record.step_sizes) == pytest.approx(1e-3)
    assert record.optimiser == {
        "name": "AdamW",
        "betas": [0.9, 0.95],
        "eps": 1e-8,
        "weight_decay": 0.0,
        "max_grad_norm": 1.0,
    }
    assert len(record.gradient_norms) == 11
    assert min(record.gradient_norms) > 0
    assert record.segments == []
    assert record.model_folder(tmp_path) == tmp_path / "model"
    assert [facts[:2] for facts in seen] == [(number, 11) for number in range(1, 12)]
    assert [facts[2]["loss"] for facts in seen] == record.losses
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "model",
        "record.json",
        "second_moments.safetensors",
    ]


def test_second_moments_are_adams_bias_corrected_and_named_as_parameters(base, tmp_path):
    seen = []

    def keep(optimiser, *_):
        parameters = [p for group in optimiser.param_groups for p in group["params"]]
        seen.append({tuple(p.shape): p.grad.clone() for p in parameters})

    hook = register_optimizer_step_pre_hook(keep)
    try:
        run(base, tmp_path, steps=3, adam_beta2=0.9)
    finally:
        hook.remove()
    moments = load_file(tmp_path / "second_moments.safetensors")
    model = load_model(tmp_path / "model")
    assert set(moments) == {name for name, _ in model.named_parameters()}
    embedding = moments["model.embed_tokens.weight"]
    # tied or not, this shape is shared with lm_head only where untied: the tiny model's down_proj is unique
    name = "model.layers.1.mlp.down_proj.weight"
    grads = [step[(32, 48)] for step in seen]  # the last parameter of that shape wins: layer 1
    average = torch.zeros_like(grads[0])
    for grad in grads:
        average = 0.9 * average + 0.1 * grad**2
    torch.testing.assert_close(moments[name], average / (1 - 0.9**3))
    assert embedding.dtype == torch.float32


def test_stages_of_the_training_are_kept_where_they_are_asked_for(base, tmp_path):
    whole, short = tmp_path / "whole", tmp_path / "short"
    record = run(base, whole, steps=6, segments=2, lr_scheduler_type="constant", max_grad_norm=0.5)
    assert record.segments == [2, 5]  # the middles of steps 1 to 3 and 4 to 6
    run(base, short, steps=6, segments=6, lr_scheduler_type="constant", max_grad_norm=0.5)
    for number, step in enumerate(record.segments, 1):
        for file in ("parameters.safetensors", "second_moments.safetensors"):
            kept = load_file(whole / "segments" / str(number) / file)
            assert set(kept) == {name for name, _ in load_model(whole / "model").named_parameters()}
            for name, value in load_file(short / "segments" / str(step) / file).items():
                assert torch.equal(value, kept[name])
    end = dict(load_model(short / "model").named_parameters())
    for name, value in load_file(short / "segments" / "6" / "parameters.safetensors").items():
        assert torch.equal(value, end[name])
    assert record.clipped_steps == pytest.approx(
        [size * min(1, 0.5 / norm) for size, norm in zip(record.step_sizes, record.gradient_norms)]
    )


def test_bfloat16_computes_in_it_and_keeps_float32_weights(tmp_path, base):
    stored = save_tiny_model(tmp_path / "stored", dtype=torch.bfloat16)
    record = run(stored, tmp_path / "half", dtype="bfloat16")
    assert record.dtype == "bfloat16"
    assert all(value.dtype == torch.float32 for value in weights(tmp_path / "half").values())
    if not torch.cuda.is_available():  # a CPU without bfloat16 instructions is many times slower in it
        assert run(stored, tmp_path / "auto", dtype="auto").dtype == "float32"
    exact = run(stored, tmp_path / "exact", dtype="float32")
    assert record.losses == pytest.approx(exact.losses, abs=0.03)
    assert record.losses != exact.losses


def test_lora_trains_adapters_that_load_again(base, tmp_path):
    record = run(base, tmp_path, lora={"r": 4, "lora_alpha": 8}, learning_rate=1e-2, epochs=3)
    assert record.trained == "lora"
    assert record.losses[-1] < record.losses[0]
    model = load_model(tmp_path / "model")
    moments = load_file(tmp_path / "second_moments.safetensors")
    names = {name for name, _ in model.named_parameters()}
    assert set(moments) <= names
    assert all("lora_" in name for name in moments)
    assert not any("lm_head" in name for name in moments)
    original = load_model(base)
    ids = torch.tensor([POOLS["math"].row(0).input_ids])
    assert not torch.allclose(model(ids).logits, original(ids).logits)
    with model.disable_adapter():
        torch.testing.assert_close(model(ids).logits, original(ids).logits)
    with pytest.raises(InputError, match="itself a folder of adapters"):
        run(tmp_path / "model", tmp_path / "again", lora={"r": 4})


def test_an_interrupted_training_goes_on_from_its_checkpoint(base, tmp_path):
    run(base, tmp_path / "whole", epochs=2, save_steps=3)

    def stop(done, total, facts):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path / "cut", epochs=2, save_steps=3, progress=stop)
    (tmp_path / "cut" / "checkpoints" / "checkpoint-4").mkdir()  # as a kill while writing leaves it
    seen = []
    record = run(base, tmp_path / "cut", epochs=2, save_steps=3, progress=lambda *f: seen.append(f[0]))
    assert seen[0] == 4
    whole = TrainingRecord.read(tmp_path / "whole" / "record.json")
    assert (record.losses, record.step_sizes, record.consumed) == (
        whole.losses,
        whole.step_sizes,
        whole.consumed,
    )
    again, first = weights(tmp_path / "cut"), weights(tmp_path / "whole")
    assert all(torch.equal(first[key], again[key]) for key in first)
    assert not (tmp_path / "cut" / "checkpoints").exists()


def test_a_checkpoint_of_another_training_is_not_gone_on_from(base, tmp_path):
    def stop(done, total, facts):
        if done == 5:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(base, tmp_path, epochs=2, save_steps=3, progress=stop)
    seen = []
    run(base, tmp_path, epochs=2, save_steps=3, seed=1, progress=lambda *f: seen.append(f[0]))
    assert seen[0] == 1


def test_a_loss_that_is_not_finite_names_the_step_and_the_rows(tmp_path):
    bad = save_tiny_model(tmp_path / "bad")
    state = load_file(bad / "model.safetensors")
    state["model.embed_tokens.weight"][7] = float("nan")
    from safetensors.torch import save_file

    save_file(state, bad / "model.safetensors", metadata={"format": "pt"})
    pools = tiny_pools({"math": 6})
    rows = [
        TinyRow(row.id, [i if i != 7 else 8 for i in row.input_ids], row.labels) for row in pools["math"].rows
    ]
    rows[3] = TinyRow("poisoned", [4, 7, 5], [-100, 7, 5])
    pools = {"math": TinyPool("math", rows)}
    with pytest.raises(
        IdealmixError, match=r"loss of step \d+ is not finite; its rows: math/poisoned$|poisoned\n"
    ):
        run(bad, tmp_path / "out", pools, per_device_train_batch_size=1)


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("label_smoothing_factor", 0.1, "objective"),
        ("loss_type", "dft", "objective"),
        ("neftune_noise_alpha", 5, "objective"),
        ("router_aux_loss_coef", 0.01, "objective"),
        ("use_liger_kernel", True, "objective"),
        ("assistant_only_loss", True, "same labels"),
        ("completion_only_loss", True, "same labels"),
        ("max_steps", 10, "planned"),
        ("num_train_epochs", 2, "planned"),
        ("dataloader_drop_last", True, "planned"),
        ("shuffle_dataset", True, "planned"),
        ("group_by_length", True, "planned"),
        ("train_sampling_strategy", "group_by_length", "planned"),
        ("trust_remote_code", True, "own code"),
        ("bf16", True, "dtype"),
        ("output_dir", "x", "folder"),
    ],
)
def test_options_that_fight_the_method_are_refused_with_the_reason(base, tmp_path, key, value, why):
    with pytest.raises(InputError, match=why) as caught:
        run(base, tmp_path, **{key: value})
    assert f"training.{key}" in str(caught.value)


def test_unknown_options_name_the_nearest_and_neutral_ones_pass(base, tmp_path):
    with pytest.raises(InputError, match="did you mean 'adam_beta2'"):
        run(base, tmp_path, adam_beta_2=0.9)
    with pytest.raises(InputError, match="refuses these settings"):
        run(base, tmp_path, lr_scheduler_type="lineal")
    assert run(base, tmp_path, label_smoothing_factor=0.0, loss_type="nll", steps=2).steps == 2


def test_adafactor_trains_and_keeps_no_second_moments(base, tmp_path):
    record = run(base, tmp_path, optim="adafactor", steps=2)
    assert record.optimiser["name"] == "Adafactor"
    assert record.optimiser["betas"] is record.optimiser["eps"] is None
    assert "adafactor keeps no second moments" in record.warnings[0]
    assert not (tmp_path / "second_moments.safetensors").exists()


def test_settings_whose_package_is_missing_are_named(base, tmp_path, monkeypatch):
    monkeypatch.setattr("transformers.integrations.integration_utils.is_wandb_available", lambda: False)
    with pytest.raises(
        InputError, match=r"training\.report_to: 'wandb' cannot be reported to: .*pip install"
    ):
        run(base, tmp_path, report_to="wandb")
    monkeypatch.setattr("transformers.trainer_optimizer.is_bitsandbytes_available", lambda: False)
    with pytest.raises(
        InputError, match=r"training\.optim: the optimiser adamw_8bit cannot be made: .*install"
    ):
        run(base, tmp_path, optim="adamw_8bit")


def test_memory_that_ends_while_the_trainer_is_made_is_told_as_while_it_trains(base, tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(SFTTrainer, "__init__", full)
    with pytest.raises(IdealmixError, match="memory is too small for this training"):
        run(base, tmp_path)


def test_packing_is_refused_where_rows_would_see_each_other(base, tmp_path, monkeypatch):
    forward = LlamaForCausalLM.forward

    @functools.wraps(forward)
    def deaf(self, *args, position_ids=None, **inputs):
        return forward(self, *args, **inputs)

    monkeypatch.setattr(LlamaForCausalLM, "forward", deaf)
    with pytest.raises(InputError, match="see each other"):
        run(base, tmp_path, packing=True)


def test_a_sparse_step_keeps_every_process_busy_with_a_masked_row():
    pools = tiny_pools({"math": 3})
    plan = plan_steps(tiny_mixture(pools), pools, seed=0, epochs=1, micro_batch_rows=1, processes=2)
    shares = [plan.share_of(process) for process in range(2)]
    fillers = [slot for share in shares for batch in share for slot in batch if slot.filler]
    assert len(plan.steps) == 2
    assert len(fillers) == 1


@pytest.mark.slow
def test_two_processes_train_as_one(base, tmp_path):
    """torchrun with gloo: the same rows in each step, the same losses and weights."""
    script = tmp_path / "train_two.py"
    script.write_text(
        "import sys\nfrom pathlib import Path\n"
        f"sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        "from test_training_sft import run\n"
        "run(Path(sys.argv[1]), Path(sys.argv[2]), epochs=2, steps=9, per_device_train_batch_size=2)\n"
    )
    # `accelerate launch --cpu` starts several processes only by MPI; torchrun sets the same environment
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc_per_node", "2", "--standalone"]
    done = subprocess.run(
        [*command, str(script), str(base), str(tmp_path / "two")],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one = run(base, tmp_path / "one", epochs=2, steps=9, per_device_train_batch_size=4)
    two = json.loads((tmp_path / "two" / "record.json").read_text())
    assert two["processes"] == 2
    assert two["consumed"] == one.consumed
    assert two["losses"] == pytest.approx(one.losses, abs=1e-4)
    assert two["step_weights"] == one.step_weights
    mine, theirs = weights(tmp_path / "one"), weights(tmp_path / "two")
    assert all((mine[key] - theirs[key]).abs().max() < 1e-3 for key in mine)


def test_real_pools_and_a_drawn_mixture_reach_the_model_as_they_are(base, tmp_path):
    """The data room's own types: a repeated draw, consumed as mixture.json says."""
    from idealmix import config
    from idealmix.data.mixture import draw
    from idealmix.data.pools import load_pool
    from idealmix.data.tokenise import Encoder
    from idealmix.training.model import load_tokenizer

    pools = {}
    for name, size in (("math", 5), ("code", 7)):
        path = tmp_path / f"{name}.jsonl"
        lines = [{"prompt": f"w3 w{n + 4}", "response": f"w{n + 5} " * (n + 1)} for n in range(size)]
        path.write_text("\n".join(map(json.dumps, lines)))
        pools[name] = load_pool(
            name, config.Source(path=str(path)), Encoder(load_tokenizer(base), 64), seed=0
        )
    mixture = draw(pools, {"math": 8, "code": 3}, 0, max_repeats=2)
    settings = Training(learning_rate=1e-3, per_device_train_batch_size=4, dtype="float32")
    record = train(base, mixture, pools, settings, seed=0, output=tmp_path / "out")
    assert (record.rows, record.tokens) == (mixture.rows, mixture.tokens)
    assert record.supervised_tokens == mixture.supervised_tokens
    shares = {n: t / mixture.supervised_tokens for n, t in mixture.supervised_tokens_by_domain.items()}
    assert record.token_shares == pytest.approx(shares)
