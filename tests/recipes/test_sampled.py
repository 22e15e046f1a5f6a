"""Recipes that sample: what their data hold, what they train on, and what they refuse."""

from __future__ import annotations

import collections
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from prefopt import PrefoptError
from prefopt.models.text import load_tokenizer
from prefopt.recipes import load_all
from prefopt.recipes.apl import uncertain, widest
from prefopt.recipes.rso import accept
from tests.small_models import write_pairs

from .test_steps import config, weights

SMALL = {"rounds": 2, "prompts_per_round": 8, "max_new_tokens": 6}
LOG2 = math.log(2)
FAST = {"max_steps": 2, "warmup_steps": 0, "lr_scheduler_type": "constant", "learning_rate": 1e-2}


@pytest.fixture
def taste(tmp_path: Path) -> str:
    (tmp_path / "taste.py").write_text(
        "def letters(prompts, responses):\n    return [r.count('e') for r in responses]\n"
        "def hate(prompts, responses):\n    return [-1.0 for r in responses]\n"
        "def length(prompts, responses):\n    return [float(len(r)) for r in responses]\n"
    )
    return f"{tmp_path}/taste.py"


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def run(name: str, model: Path, data: Path, out: Path, **sections: Any) -> Path:
    sections["train"] = FAST | sections.get("train", {})
    assert load_all()[name].run(config(name, model, data, out, **sections)).status == "finished"
    AutoModelForCausalLM.from_pretrained(out)
    return out


def refused(name: str, model: Path, data: Path, out: Path, message: str, **sections: Any) -> None:
    with pytest.raises(PrefoptError, match=message):
        load_all()[name].run(config(name, model, data, out, **sections))
    assert not out.exists()


def first_loss(run: Path) -> float:
    return next(r["loss"] for r in rows(run / "metrics.jsonl") if "loss" in r)


def identity(run: Path) -> tuple[str, str]:
    record = json.loads((run / "run.json").read_text())
    return record["model"]["fingerprint"], record["reference"]["identity"]


def test_spin_plays_against_its_last_self(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    out = run("spin", text_model, pairs_file, tmp_path / "out", rollout=SMALL)
    own = {(r["prompt"], r["chosen"]) for r in rows(pairs_file)}
    for number in (1, 2):
        found = rows(out / f"round-{number}/pairs.jsonl")
        assert {(r["prompt"], r["chosen"]) for r in found} <= own
        said = {(r["prompt"], *r["responses"]) for r in rows(out / f"round-{number}/samples.jsonl")}
        assert {(r["prompt"], r["rejected"]) for r in found} <= said
        model, reference = identity(out / f"round-{number}/run")
        assert model == reference
        assert first_loss(out / f"round-{number}/run") == pytest.approx(LOG2, abs=1e-5)
    assert weights(out) == weights(out / "round-2/run") != weights(out / "round-1/run")


def test_spin_takes_demonstrations(text_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "demonstrations.jsonl"
    data.write_text(
        "".join(json.dumps({"prompt": f"{i}: ", "completion": "The film is warm."}) + "\n" for i in range(9))
    )
    out = run("spin", text_model, data, tmp_path / "out", rollout=SMALL | {"rounds": 1})
    assert {r["chosen"] for r in rows(out / "round-1/pairs.jsonl")} == {"The film is warm."}


def test_rso_accepts_as_the_optimal_policy_would(
    text_model: Path, pairs_file: Path, taste: str, tmp_path: Path
) -> None:
    rollout = {"reward": f"{taste}:letters", "samples_per_prompt": 6, "max_new_tokens": 6}
    out = run("rso", text_model, pairs_file, tmp_path / "out", rollout=rollout, hyper={"accepted": 4})
    found = rows(out / "pairs.jsonl")
    assert all(r["chosen_score"] > r["rejected_score"] for r in found)
    assert all(r["chosen"].count("e") == r["chosen_score"] for r in found)
    prompts = collections.Counter(r["prompt"] for r in found)
    assert max(prompts.values()) <= 2 * max(collections.Counter(r["prompt"] for r in rows(pairs_file)).values())
    record = json.loads((out / "run/run.json").read_text())
    assert record["method"]["loss_type"] == "hinge"


def test_rejection_samples_what_it_says() -> None:
    """Many candidates of three scores: accepted in proportion to exp(score / temperature)."""
    g = np.random.default_rng(0)
    scores = np.repeat([0.0, 0.5, 1.0], 4000)
    kept = [scores[i] for i in accept(scores.tolist(), 1500, 0.5, g)]
    share = [kept.count(s) / len(kept) for s in (0.0, 0.5, 1.0)]
    expected = np.exp(np.array([0, 1, 2])) / np.exp(np.array([0, 1, 2])).sum()
    assert share == pytest.approx(expected, abs=0.04)
    assert sorted(accept([1.0, -900.0, 3.0], 3, 0.1, g)) == [0, 1, 2]  # the bound follows what is left
    assert accept([1.0, -900.0, 3.0], 1, 1e-3, g) == [2]


def test_fdpo_drops_what_the_policy_has_outgrown(
    text_model: Path, pairs_file: Path, taste: str, tmp_path: Path
) -> None:
    rollout = {"rounds": 2, "max_new_tokens": 24, "reward": f"{taste}:length"}
    out = run("fdpo", text_model, pairs_file, tmp_path / "out", rollout=rollout)
    given = rows(pairs_file)
    for number in (1, 2):
        said = [r["responses"][0] for r in rows(out / f"round-{number}/samples.jsonl")]
        kept = [(r["prompt"], r["chosen"]) for r in rows(out / f"round-{number}/pairs.jsonl")]
        expected = [(r["prompt"], r["chosen"]) for r, y in zip(given, said, strict=True) if len(y) <= len(r["chosen"])]
        assert kept == expected
        assert 0 < len(kept) < len(given)
    first, second = (identity(out / f"round-{n}/run") for n in (1, 2))
    assert first[1] == second[1] == first[0] != second[0]  # measured from the first model throughout
    rollout["reward"] = f"{taste}:hate"
    assert len(
        rows(run("fdpo", text_model, pairs_file, tmp_path / "all", rollout=rollout) / "round-1/pairs.jsonl")
    ) == len(given)


def test_xpo_compares_with_the_reference_and_knows_whose_is_whose(
    text_model: Path, pairs_file: Path, taste: str, tmp_path: Path
) -> None:
    out = run("xpo-rounds", text_model, pairs_file, tmp_path / "out", rollout=SMALL | {"reward": f"{taste}:length"})
    for number in (1, 2):
        place = out / f"round-{number}"
        who = {k: {(r["prompt"], *r["responses"]) for r in rows(place / f"{k}.jsonl")} for k in ("policy", "reference")}
        for r in rows(place / "pairs.jsonl"):
            assert {r["chosen_from_reference"], r["rejected_from_reference"]} == {0, 1}
            for side in ("chosen", "rejected"):
                source = "reference" if r[f"{side}_from_reference"] else "policy"
                assert (r["prompt"], r[side]) in who[source]
            assert len(r["chosen"]) > len(r["rejected"])
    assert identity(out / "round-1/run")[1] == identity(out / "round-2/run")[1]
    assert any("loss" in r for r in rows(out / "metrics.jsonl"))


def test_hypo_has_samples_beside_its_pairs(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    rollout = {"rounds": 2, "max_new_tokens": 6, "reference": "start"}
    out = run("hypo-rounds", text_model, pairs_file, tmp_path / "out", rollout=rollout)
    given = {(r["prompt"], r["chosen"], r["rejected"]) for r in rows(pairs_file)}
    for number in (1, 2):
        for r in rows(out / f"round-{number}/rows.jsonl"):
            assert (r["prompt"], *r["responses"][:2]) in given
            assert (r["pairs"], r["on_policy"]) == ([[0, 1]], [0, 0, 1])
    logged = [r["kl"] for n in (1, 2) for r in rows(out / f"round-{n}/run/metrics.jsonl") if "kl" in r]
    assert logged[0] == pytest.approx(0, abs=1e-5)  # policy = reference
    assert all(k != 0 for k in logged[1:])


def test_sacpo_is_measured_from_its_first_step(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    safety = write_pairs(tmp_path / "safety.jsonl", 12)
    hyper = {"safety_data": str(safety), "safety": {"beta": 0.4}}
    out = run("sacpo", text_model, pairs_file, tmp_path / "out", hyper=hyper)
    first, second = (identity(out / n) for n in ("helpful", "safe"))
    assert first[0] == first[1]
    assert second[0] == second[1] != first[0]
    assert json.loads((out / "safe/run.json").read_text())["method"]["beta"] == 0.4
    assert weights(out) == weights(out / "safe") != weights(out / "helpful")
    other = run("sacpo", text_model, pairs_file, tmp_path / "other", hyper=hyper | {"safety_first": True})
    assert weights(other) == weights(other / "helpful")
    assert identity(other / "safe")[0] == first[0]


def test_apl_asks_for_labels_where_it_is_uncertain(
    text_model: Path, pairs_file: Path, taste: str, tmp_path: Path
) -> None:
    rollout = SMALL | {"samples_per_prompt": 3, "reward": f"{taste}:length"}
    out = run("apl", text_model, pairs_file, tmp_path / "out", rollout=rollout, hyper={"acquired": 0.5})
    words = load_tokenizer(str(text_model))
    models = [AutoModelForCausalLM.from_pretrained(p) for p in (out / "round-1/run", text_model)]
    sampled = rows(out / "round-2/samples.jsonl")
    sums = np.zeros((2, len(sampled), 3))
    for i, row in enumerate(sampled):
        prompt = words(row["prompt"], add_special_tokens=False)["input_ids"]
        for j, y in enumerate(row["responses"]):
            ids = prompt + words(y, add_special_tokens=False)["input_ids"] + [words.eos_token_id]
            for k, model in enumerate(models):
                with torch.no_grad():
                    logps = torch.log_softmax(model(torch.tensor([ids])).logits[0].float(), -1)
                sums[k, i, j] = sum(logps[t - 1, ids[t]].item() for t in range(len(prompt), len(ids)))
    uncertain_ones = sorted(np.argsort(sums[0].mean(1))[:4])
    expected = set()
    for i in uncertain_ones:
        gap = sums[0, i] - sums[1, i]
        a, b = (sampled[i]["responses"][k] for k in (gap.argmax(), gap.argmin()))
        if len(a) != len(b):
            expected.add((sampled[i]["prompt"], *((a, b) if len(a) > len(b) else (b, a))))
    assert {(r["prompt"], r["chosen"], r["rejected"]) for r in rows(out / "round-2/pairs.jsonl")} == expected


def test_what_is_acquired() -> None:
    logps = [np.array(x) for x in ([-1.0, -2.0], [-9.0, -7.0], [-3.0, -3.0], [-8.0, -8.5])]
    assert uncertain(logps, 0.5) == [1, 3]
    assert uncertain(logps, 0.01) == [3]
    assert widest(np.array([0.1, -2.0, 0.4])) == (2, 1)
    assert widest(np.zeros(3)) == (0, 1)


@pytest.mark.parametrize(
    ("name", "sections", "message"),
    [
        ("spin", {"rollout": {"reward": "a:b"}}, "rollout.reward has no effect"),
        ("spin", {"rollout": {"reference": "round"}}, "rollout.reference has no effect"),
        ("spin", {"hyper": {"base": "kto"}}, "does not compare pairs"),
        ("spin", {"read": {"pairing": "all"}}, "data.pairing has no effect"),
        ("spin", {}, "prompts_per_round = 256, and the data has 24"),
        ("fdpo", {"rollout": {"reward": "nowhere:f"}}, "nowhere"),
        ("rso", {"rollout": {"reward": "nowhere:f"}}, "nowhere"),
        ("apl", {"rollout": {"reward": "nowhere:f"}}, "nowhere"),
        ("rso", {}, "rollout.reward or rollout.judge"),
        ("rso", {"rollout": {"reward": "a:b"}, "hyper": {"accepted": 1}}, "a pair needs two"),
        ("rso", {"rollout": {"reward": "a:b"}, "hyper": {"accepted": 9}}, "draw more"),
        ("rso", {"rollout": {"reward": "a:b", "rounds": 2}}, "rollout.rounds has no effect"),
        ("fdpo", {}, "rollout.reward"),
        ("fdpo", {"rollout": {"reward": "a:b", "prompts_per_round": 4}}, "prompts_per_round has no effect"),
        ("fdpo", {"rollout": {"reward": "a:b"}, "read": {"use": ["weight"]}}, "data.use has no effect"),
        ("xpo-rounds", {"rollout": {"reward": "a:b"}, "hyper": {"base": "dpo"}}, "no optimism"),
        ("xpo-rounds", {"rollout": {"reward": "a:b", "samples_per_prompt": 9}}, "samples_per_prompt has no effect"),
        ("hypo-rounds", {"hyper": {"base": "dpo"}}, "no samples of the policy"),
        ("hypo-rounds", {"rollout": {"judge": "a:b"}}, "rollout.judge has no effect"),
        ("apl", {}, "rollout.reward or rollout.judge"),
        ("apl", {"rollout": {"reward": "a:b", "reference": "round"}}, "no meaning"),
        ("apl", {"rollout": {"reward": "a:b"}, "hyper": {"acquired": 0.0}}, "acquired"),
        ("sacpo", {}, "method.safety_data"),
        ("sacpo", {"hyper": {"safety_data": "x.jsonl"}, "reference": {"kind": "adapter_off"}}, "second step"),
        ("spin", {"reference": {"kind": "adapter_off"}}, "second round"),
    ],
)
def test_refused_before_anything_is_made(
    name: str, sections: dict[str, Any], message: str, text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    refused(name, text_model, pairs_file, tmp_path / "out", message, **sections)
