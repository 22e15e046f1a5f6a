"""Runs on the worlds of letters: exact numbers against slow ones, and one seed of each reproduction on them."""

import json
import math

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from prefopt.reproductions import insights_variants, ld_dpo, ln_dpo, simpo
from prefopt.reproductions.small import (
    bench_at,
    configuration,
    distinct,
    encode_pairs,
    history,
    load_model,
    look,
    measure,
    on_pairs,
    run,
)
from prefopt.worlds import copying, language
from prefopt.worlds.copying import make as copying_make

FAST = {"steps": 3, "learning_rate": 1e-2, "batch": 8}


@pytest.fixture(scope="module")
def world():
    return language.build(seed=1, pairs=60, heldout=20, lists=2)


@pytest.fixture
def tiny_copies(monkeypatch):
    """The copy task in a second, and reproductions that take a few steps on it."""
    monkeypatch.setattr(copying_make, "STEPS", 20)
    for module in (simpo, ld_dpo, ln_dpo, insights_variants):
        monkeypatch.setattr(module, "WORLD", module.WORLD | {"pairs": 40, "heldout": 10, "lists": 1, "hidden": 16})
        steps = {"steps": 3} | ({"batch": 8} if "batch" in module.TRAIN else {})
        monkeypatch.setattr(module, "TRAIN", module.TRAIN | steps)
        monkeypatch.setattr(module, "SAMPLES", 16)


def test_exact_numbers_are_the_slow_ones(world):
    policy, start = (load_model(world.model)[0] for _ in range(2))
    with torch.no_grad():
        for p in policy.transformer.h.parameters():
            p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(0)))
    rows = [([3], [0, 1, 2, 5, 5, 11]), ([7, 4], [9]), ([0], [6, 6, 6])]
    seen = look(policy, start, rows, at_once=2)
    for i, (prompt, answer) in enumerate(rows):
        slow = np.zeros(6)
        for t, token in enumerate(answer):
            ids = torch.tensor([prompt + answer[:t]])
            with torch.no_grad():
                lp, lq = (m(input_ids=ids).logits[0, -1].double().log_softmax(-1).numpy() for m in (policy, start))
            p, q = np.exp(lp), np.exp(lq)
            slow += [lp[token], lq[token], (p * (lp - lq)).sum(), (q * (lq - lp)).sum(), -(p * lp).sum(), 1]
        fast = [x[i] for x in (seen.policy, seen.start, seen.kl, seen.reverse_kl, seen.entropy, seen.length)]
        assert fast == pytest.approx(slow, abs=1e-5)
    assert seen.kl.min() > 1e-4


def test_a_start_is_no_distance_from_itself(world):
    found = measure(world.model, language, world, samples=48)
    assert found["kl"] == found["seq_kl_rejected"] == found["chosen_change"] == 0
    assert found["length"] == 6 and found["finished"] == 0
    assert found["entropy_sum"] == pytest.approx(6 * found["entropy"]) and 1.5 < found["entropy"] < math.log(12)
    assert measure(world.model, language, world, samples=48) == found != measure(world.model, language, world, seed=1)
    assert distinct(world.model, language, each=20, prompts=2) == 20


def test_a_run_is_an_ordinary_one_done_once(world, tmp_path):
    bench = bench_at(tmp_path / "b", seed=2)
    sections = {"train": {"logging_steps": 1}, "data": {"limit": 30}}
    method = {"name": "dpo", "beta": 0.5}
    found = run(bench, "dpo", language, world, method, samples=24, sections=sections, **FAST)
    assert found["kl"] > 1e-3 and found["chosen_change"] != 0
    lines = history(bench, "dpo")
    assert [row["step"] for row in lines] == [1, 2, 3] and lines[0]["lengths/chosen"] == 6
    assert lines[0]["loss"] == pytest.approx(math.log(2), abs=1e-5)
    record = json.loads((tmp_path / "b" / "runs" / "dpo" / "run.json").read_text())
    assert record["data"]["train"]["examples"] == 30 and record["method"]["beta"] == 0.5
    assert run(bench_at(tmp_path / "b", seed=2), "dpo", language, world, {"name": "gone"}) == found  # read, not run


def test_sections_win(world):
    made = configuration(language, world, {"name": "dpo"}, seed=0, sections={"data": {"path": "x"}}, **FAST)
    assert made["data"] == {"path": "x", "max_length": 7} and made["train"]["learning_rate"] == 1e-2
    assert made["train"]["lr_scheduler_type"] == "constant" and made["train"]["max_grad_norm"] == 0


def test_pairs_are_read_as_training_reads_them(world):
    policy, tokenizer = load_model(world.model)
    rows = [json.loads(line) for line in world.heldout.read_text().splitlines()]
    encoded = encode_pairs(tokenizer, language, world.heldout, 3)
    assert len(encoded) == 3
    for (prompt, sides), row in zip(encoded, rows, strict=False):
        assert prompt == [language.LETTERS.index(row["prompt"])]
        assert sides == [[language.LETTERS.index(c) for c in row[side]] for side in ("chosen", "rejected")]
    seen = on_pairs(policy, policy, tokenizer, language, world.heldout)
    assert len(seen["chosen"].policy) == 20 and (seen["rejected"].length == 6).all()


# ---- the reproductions, a few steps each


def test_a_seed_of_simpo(tiny_copies, tmp_path, monkeypatch):
    few = {k: v for k, v in simpo.RUNS.items() if k in ("dpo-0.1", "simpo")}
    monkeypatch.setattr(simpo, "RUNS", few)
    monkeypatch.setattr(simpo, "NAMES", {"start": "start", "simpo": "SimPO"})
    monkeypatch.setattr(simpo, "COUNTED", 2)
    found = simpo.go(bench_at(tmp_path, 1))
    assert found["agreement of simpo"] == 1 and found["calls"] == 1
    assert simpo.best_dpo(found) == found["dpo-0.1"]
    judged = simpo.REPRODUCTION.judge([found])
    assert all(math.isfinite(check.mean) for check in judged.checks)
    assert isinstance(simpo.plot([found]), Figure)


def test_agreement_is_with_the_average(tiny_copies, tmp_path):
    """A model judged by itself: DPO's margins are all zero, and agree with no difference of averages."""
    world = copying.build(seed=1, **simpo.WORLD)
    assert simpo.agreement(world.model, world, simpo.SIMPO) == 1
    assert simpo.agreement(world.model, world, {"name": "dpo", "beta": 0.1}) == 0


def test_a_seed_of_ld_dpo(tiny_copies, tmp_path, monkeypatch):
    kept = ("dpo", "alpha-1", "alpha-0.7", "alpha-0.5", "both-0.5")
    monkeypatch.setattr(ld_dpo, "RUNS", {k: v for k, v in ld_dpo.RUNS.items() if k in kept})
    monkeypatch.setattr(ld_dpo, "NAMES", {"start": "start", "alpha-0.5": "LD"})
    found = ld_dpo.go(bench_at(tmp_path, 1))
    assert found["same weights as DPO"] == 1
    assert found["first loss of both"] == pytest.approx(math.log(2), abs=1e-6)
    assert [row["alpha"] for row in found["sensitivity"]] == list(ld_dpo.ALPHAS)
    assert all(math.isfinite(check.mean) for check in ld_dpo.REPRODUCTION.judge([found]).checks)
    assert isinstance(ld_dpo.plot([found]), Figure)


def test_the_tail_is_what_the_longer_answer_has_beyond_its_partner():
    assert ld_dpo._counted(np.array([-1.0, -2.0, -4.0]), 1, 0.5) == -4.0
    assert ld_dpo._counted(np.array([-1.0, -2.0]), 5, 0.5) == -3.0


def test_a_seed_of_ln_dpo(tiny_copies, tmp_path, monkeypatch):
    monkeypatch.setattr(ln_dpo, "GRID", {name: some[:1] for name, some in ln_dpo.GRID.items()})
    monkeypatch.setattr(ln_dpo, "RATES", (1e-3,))
    monkeypatch.setattr(ln_dpo, "STUDY_STEPS", 2)
    found = ln_dpo.go(bench_at(tmp_path, 1))
    assert ln_dpo.all_finite(found) == 1 and ln_dpo.repeated(found) == 0
    assert len(found["study"]) == 4 and len(ln_dpo.scores(found, "dpo")) == 1
    assert all(math.isfinite(check.mean) for check in ln_dpo.REPRODUCTION.judge([found]).checks)
    assert isinstance(ln_dpo.plot([found]), Figure)
    assert ln_dpo._wins(np.array([1, 2, 3]), np.array([1, 1, 4])) == 0.5


def test_a_seed_of_insights_variants(tiny_copies, tmp_path, monkeypatch):
    some = insights_variants.METHODS
    monkeypatch.setattr(insights_variants, "METHODS", {name: some[name] for name in ("ipo", "kto")})
    monkeypatch.setattr(insights_variants, "STARTS", {"base": 0.1, "sft": 0.7})
    monkeypatch.setattr(insights_variants, "SIZES", (30,))
    found = insights_variants.go(bench_at(tmp_path, 1))
    runs = {f"{start}-{name}" for start in ("base", "sft") for name in ("ipo", "kto")} | {"sft-ipo-30", "sft-kto-30"}
    assert set(found) == {"base", "sft"} | runs
    assert found["base-kto"] != found["sft-kto"] != found["sft-kto-30"]


def test_the_claims_of_insights_variants_on_made_up_rewards():
    reward = {"base": (0.7, 0.3, 0.8, 0.7), "sft": (0.95, 0.9, 0.95, 0.72), "instruct": (0.97, 0.97, 0.97, 0.7)}
    start = {"base": -0.3, "sft": 0.5, "instruct": 0.8}
    m = {name: {"covered": value} for name, value in start.items()}
    for place, values in reward.items():
        m |= {f"{place}-{name}": {"covered": value} for name, value in zip(insights_variants.METHODS, values)}
    for size, values in ((64, (0.2, 0.5, 0.5, 0.7)), (512, (0.9, 0.8, 0.9, 0.7))):
        m |= {f"sft-{name}-{size}": {"covered": value} for name, value in zip(insights_variants.METHODS, values)}
    judged = insights_variants.REPRODUCTION.judge([m])
    assert judged.verdict == "holds"
    measured = [check.mean for check in judged.checks]
    assert measured == pytest.approx([0.25 - 0.15, 0.6, 0.02, 0.75, 0.02, -0.1])
    assert isinstance(insights_variants.plot([m, m]), Figure)
    m["base-ipo"]["covered"] = 0.6
    assert insights_variants.REPRODUCTION.judge([m]).verdict == "fails"
