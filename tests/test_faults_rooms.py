"""The faults of the paper's released code that concern data, influence, allocation and configuration.

As in ``test_faults``: each check passes on the package as it is, and must fail with the fault put in.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from curvature_helpers import tiny as tiny_model
from data_helpers import make_tokenizer, template
from influence_helpers import DirectInfluence, mixture_of, pools_of, settings
from test_faults import Fault

from idealmix import config, configfile, configlines, influence_stage
from idealmix.allocation import allocate
from idealmix.curvature import layers as layers_room
from idealmix.data import mixture as mixture_room
from idealmix.data.conversation import Conversation
from idealmix.data.tokenise import IGNORED, Encoded, Encoder
from idealmix.errors import InputError
from idealmix.slopes import Slopes

# --- 6 and 7: what is supervised ---------------------------------------------------------------------------------


def conversation(words: int) -> Conversation:
    prompt = "What is 2 + 2? " * words
    turns = [{"role": "user", "content": prompt}, {"role": "assistant", "content": "It is 4."}]
    return Conversation("a", turns, None, None)


def check_the_answer_is_supervised_whatever_the_prompts_length() -> None:
    tokenizer = make_tokenizer(template("qwen2_5"), eos="<|im_end|>")
    for words in (1, 40, 400):
        found = Encoder(tokenizer, 10_000).encode(conversation(words))
        kept = [token for token, label in zip(found.input_ids, found.labels, strict=True) if label != IGNORED]
        assert tokenizer.decode(kept).strip() == "It is 4.<|im_end|>"


def masks_128_tokens(patch: pytest.MonkeyPatch) -> None:
    original = Encoder.encode

    def encode(self: Encoder, row: Conversation) -> Encoded:
        ids = original(self, row).input_ids[:256]
        return Encoded(ids, [IGNORED] * min(128, len(ids)) + ids[128:], False)

    patch.setattr(Encoder, "encode", encode)


def check_the_end_token_is_learned_though_it_pads() -> None:
    tokenizer = make_tokenizer(template("qwen2_5"), eos="<|im_end|>")
    assert tokenizer.pad_token_id == tokenizer.eos_token_id
    found = Encoder(tokenizer, 512).encode(conversation(1))
    assert [label for label in found.labels if label != IGNORED][-1] == tokenizer.eos_token_id


def masks_pads_by_value(patch: pytest.MonkeyPatch) -> None:
    original = Encoder.encode

    def encode(self: Encoder, row: Conversation) -> Encoded:
        found = original(self, row)
        pad = self.tokenizer.pad_token_id
        return Encoded(found.input_ids, [IGNORED if x == pad else x for x in found.labels], found.truncated)

    patch.setattr(Encoder, "encode", encode)


# --- 10: the domain's share of the tokens ------------------------------------------------------------------------


def check_alpha_has_the_domains_share() -> None:
    domains, references = pools_of({"x": 9, "y": 4}), pools_of({"q": 5}, seed=1)
    mixture = mixture_of({name: pool.ids for name, pool in domains.items()})
    tokens = {name: float(pool.supervised.sum()) for name, pool in domains.items()}
    v = {name: count / sum(tokens.values()) for name, count in tokens.items()}
    wanted = DirectInfluence(tiny_model(), mixture, domains, references, v, 0.0, dense="identity").drawn
    found = influence_stage.measure(
        tiny_model(), mixture, domains, references, settings(curvature="identity", centred=False)
    )
    np.testing.assert_allclose(found.alpha_drawn, wanted, rtol=1e-8)


def forgets_the_share(patch: pytest.MonkeyPatch) -> None:
    patch.setattr(influence_stage, "_token_shares", lambda domains, rows: dict.fromkeys(domains, 1.0))


# --- 11: resampling, noise, seeds --------------------------------------------------------------------------------


def check_any_volume_can_be_drawn() -> None:
    pool = pools_of({"x": 10})["x"]
    pool.tokens, pool.digest = np.ones(10, dtype=int), "d"
    for count in (0, 3, 25, 40):
        other = pools_of({"y": 1})["y"]
        other.tokens, other.digest = np.ones(1, dtype=int), "e"
        drawn = _drawn({"x": pool, "y": other}, {"x": count, "y": 1})
        assert drawn is not None, count
        assert len(drawn["x"]) == count
        times = [drawn["x"].count(row) for row in pool.ids]
        assert max(times) - min(times) <= 1  # whole repetitions, then a remainder


def _drawn(pools: dict, counts: dict[str, int]) -> dict[str, list[str]] | None:
    try:
        return mixture_room.draw(pools, counts, 0, max_repeats=4).row_ids
    except InputError:
        return None


def stops_at_twice_the_pool(patch: pytest.MonkeyPatch) -> None:
    original = mixture_room.draw

    def draw(pools: dict, counts: dict[str, int], seed: int, *, max_repeats: int) -> object:
        if any(count > 2 * len(pools[name]) or count <= 0 for name, count in counts.items()):
            raise InputError("sample larger than population")
        return original(pools, counts, seed, max_repeats=max_repeats)

    patch.setattr(mixture_room, "draw", draw)


def check_noise_moves_nothing() -> None:
    moved = 0
    for seed in range(20):
        noise = np.random.default_rng(seed).normal(size=4)
        one, nan = np.ones(4), np.full(4, np.nan)
        names = ["a", "b", "c", "d"]
        slopes = Slopes(names, nan, nan, nan, noise, one, one * 50)
        step = allocate(
            dict.fromkeys(names, 100), dict.fromkeys(names, 100), dict.fromkeys(names, 1.0), slopes, config.Allocation()
        )  # fmt: skip
        moved += not step.equilibrium
    assert moved <= 4  # 5% are expected; 15% were applied to every one


def has_no_gate(patch: pytest.MonkeyPatch) -> None:
    from idealmix.allocation import step

    patch.setattr(step, "holm", lambda p: np.ones(len(p), dtype=bool))


def check_the_seed_decides_the_rows() -> None:
    pool = pools_of({"x": 50})["x"]
    pool.tokens, pool.digest = np.ones(50, dtype=int), "d"
    one, same, other = (
        mixture_room.draw({"x": pool}, {"x": 20}, seed, max_repeats=1).row_ids["x"] for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


def has_no_seed(patch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng()
    patch.setattr(mixture_room, "seeded_order", lambda ids, *key: rng.permutation(len(ids)))


# --- 12: arguments -----------------------------------------------------------------------------------------------


def check_false_is_false() -> None:
    found = configfile.from_mapping(
        {"model": "m", "domains": {"a": "a"}, "references": {"a": "b"}},
        ["allocation.gate=false", "allocation.budget.hold=False"],
        folder=Path.cwd(),
    )
    assert found.allocation.gate is False
    assert found.allocation.budget.hold is False


def parses_by_bool(patch: pytest.MonkeyPatch) -> None:
    original = configlines._plain

    def plain(node: yaml.Node, *rest: object) -> object:
        if isinstance(node, yaml.ScalarNode) and node.value.lower() in ("true", "false"):
            return bool(node.value)
        return original(node, *rest)

    patch.setattr(configlines, "_plain", plain)


def check_every_named_layer_is_measured() -> None:
    model = tiny_model()
    every = [layer.name for layer in layers_room.select_layers(model, "linear")]
    one, two = every[0], every[1]
    try:
        found = [layer.name for layer in layers_room.select_layers(model, [one, two])]
    except InputError:
        found = []
    assert found == [one, two]
    with pytest.raises(InputError):
        layers_room.select_layers(model, [one + two])  # what a missing comma makes of them is not ignored


def fuses_names(patch: pytest.MonkeyPatch) -> None:
    original = layers_room.select_layers
    patch.setattr(
        layers_room, "select_layers",
        lambda model, spec: original(model, spec if isinstance(spec, str) else "".join(spec)),
    )  # fmt: skip


def case(
    number: str, what: str, check: Callable[[], None], inject: Callable[[pytest.MonkeyPatch], None]
) -> Fault:
    return Fault(number, what, check, inject)


FAULTS = [
    case(
        "6", "masks 128 tokens", check_the_answer_is_supervised_whatever_the_prompts_length, masks_128_tokens
    ),
    case("7", "pads by value", check_the_end_token_is_learned_though_it_pads, masks_pads_by_value),
    case("10", "forgets the share of tokens", check_alpha_has_the_domains_share, forgets_the_share),
    case("11", "stops at twice the pool", check_any_volume_can_be_drawn, stops_at_twice_the_pool),
    case("11b", "moves on noise", check_noise_moves_nothing, has_no_gate),
    case("11c", "has no seed", check_the_seed_decides_the_rows, has_no_seed),
    case("12", "bool('False')", check_false_is_false, parses_by_bool),
    case("12b", "fuses layer names", check_every_named_layer_is_measured, fuses_names),
]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: f"{fault.number}: {fault.what}")
def test_fault(fault: Fault, monkeypatch: pytest.MonkeyPatch) -> None:
    fault.check()
    with monkeypatch.context() as patch:
        fault.inject(patch)
        with pytest.raises((AssertionError, pytest.fail.Exception)):
            fault.check()


def test_every_fault_of_the_list_has_its_check() -> None:
    from test_faults import FAULTS as OTHERS

    assert {str(n) for n in range(1, 13)} <= {fault.number for fault in (*FAULTS, *OTHERS)}
