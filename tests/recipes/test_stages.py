"""Recipes in stages: which pairs each stage holds, what it is measured against, and that theory holds exactly."""

from __future__ import annotations

import json
import math
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModelForCausalLM

from prefopt import PrefoptError, get_method, recipes
from prefopt.config import make
from prefopt.data.curriculum import curriculum
from prefopt.scoring.tabular import TabularScorer, fit, pairs_of
from tests.small_models import sentence

KEYS: dict[str, Any] = {"learning_rate": 1e-2, "logging_steps": 1, "per_device_train_batch_size": 4,
                        "disable_tqdm": True, "save_strategy": "no", "lr_scheduler_type": "constant",
                        "warmup_steps": 0}  # fmt: skip
LOG2 = math.log(2)


@pytest.fixture(scope="module")
def lists(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """12 prompts with four rated responses each."""
    g = random.Random(3)
    rows = [
        {
            "prompt": f"Film {i}: ",
            "responses": [sentence(g) + f" {k}" for k in range(4)],
            "scores": g.sample(range(9), 4),
        }
        for i in range(12)
    ]
    path = tmp_path_factory.mktemp("lists") / "lists.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


def run(model: Path, data: Any, out: Path, name: str = "curry-dpo", /, **sections: Any) -> Path:
    hyper = sections.pop("hyper", {})
    content = {"method": {"name": name, "kl_prompts": 0, **hyper}, "model": str(model), "data": {"path": str(data)},
               "output": str(out), "train": KEYS}  # fmt: skip
    if name == "tr-dpo":
        del content["method"]["kl_prompts"]
    for section, keys in sections.items():
        content[section] = {**content[section], **keys} if isinstance(content.get(section), dict) else keys
    recipes.load_all()[name].run(make(content))
    return out


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def first_losses(out: Path, stages: int = 3) -> list[float]:
    return [
        next(r["loss"] for r in rows(out / f"stage-{s}/run/metrics.jsonl") if "loss" in r) for s in range(1, stages + 1)
    ]


def record(out: Path, stage: int) -> dict[str, Any]:
    return json.loads((out / f"stage-{stage}/run/run.json").read_text())


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def test_curry_from_lists_to_a_model(text_model: Path, lists: Path, tmp_path: Path) -> None:
    out = run(text_model, lists, tmp_path / "run", hyper={"kl_prompts": 5})
    given = rows(lists)
    expected = curriculum([r["scores"] for r in given]).stages
    for number, stage in enumerate(expected, 1):
        held = rows(out / f"stage-{number}/pairs.jsonl")
        assert [(r["prompt"], r["chosen"], r["rejected"], r["gap"]) for r in held] == [
            (
                given[p.prompt]["prompt"],
                given[p.prompt]["responses"][p.chosen],
                given[p.prompt]["responses"][p.rejected],
                p.gap,
            )
            for p in stage
        ]
        assert all(r["chosen_score"] - r["rejected_score"] == r["gap"] for r in held)
    # at the first step of every stage policy = reference
    assert first_losses(out) == pytest.approx([LOG2] * 3, abs=1e-6)
    identities = [(record(out, s)["model"]["fingerprint"], record(out, s)["reference"]["identity"]) for s in (1, 2, 3)]
    assert all(model == reference for model, reference in identities)
    assert len(set(identities)) == 3
    # fresh schedules, steps counted on, the last model the recipe's own
    assert [r["learning_rate"] for r in rows(out / "metrics.jsonl") if "loss" in r] == [1e-2] * 9
    assert [r["step"] for r in rows(out / "metrics.jsonl") if "loss" in r] == list(range(1, 10))
    final, last = weights(out), weights(out / "stage-3/run")
    assert all(torch.equal(final[k], last[k]) for k in final)
    AutoModelForCausalLM.from_pretrained(out)
    kl = [json.loads((out / f"stage-{s}/kl.json").read_text()) for s in (1, 2, 3)]
    assert all(k["prompts"] == 5 and k["k3"]["value"] > 0 for k in kl)
    assert kl[2]["k3"]["value"] > kl[0]["k3"]["value"]


def test_a_reference_that_stays_is_the_first_model(text_model: Path, lists: Path, tmp_path: Path) -> None:
    out = run(text_model, lists, tmp_path / "run", hyper={"update_reference": False})
    found = first_losses(out)
    assert found[0] == pytest.approx(LOG2, abs=1e-6)
    assert all(abs(x - LOG2) > 1e-3 for x in found[1:])
    assert len({record(out, s)["reference"]["identity"] for s in (1, 2, 3)}) == 1
    assert record(out, 1)["reference"]["identity"] == record(out, 1)["model"]["fingerprint"]


def test_reversed_and_global(text_model: Path, lists: Path, tmp_path: Path) -> None:
    out = run(text_model, lists, tmp_path / "run", hyper={"reverse": True, "scope": "global", "stages": 2},
              train={"max_steps": 1})  # fmt: skip
    gaps = [[r["gap"] for r in rows(out / f"stage-{s}/pairs.jsonl")] for s in (1, 2)]
    assert max(gaps[0]) <= min(gaps[1])
    assert sum(map(len, gaps)) == 36
    assert all(part == sorted(part, reverse=True) for part in gaps)


def test_gaps_of_log_probabilities(text_model: Path, lists: Path, tmp_path: Path) -> None:
    """They are those of the first model, summed over the response with its end token."""
    out = run(text_model, lists, tmp_path / "run", hyper={"criterion": "logp", "stages": 2}, train={"max_steps": 1})
    from prefopt.models.text import load_tokenizer

    model, words = AutoModelForCausalLM.from_pretrained(text_model), load_tokenizer(str(text_model))
    row = rows(lists)[0]
    sums = []
    for answer in row["responses"]:
        prompt = words(row["prompt"], add_special_tokens=False)["input_ids"]
        ids = words(row["prompt"] + answer, add_special_tokens=False)["input_ids"] + [words.eos_token_id]
        with torch.no_grad():
            logps = torch.log_softmax(model(torch.tensor([ids])).logits[0, :-1].float(), -1)
        sums.append(sum(logps[t - 1, ids[t]].item() for t in range(len(prompt), len(ids))))
    assert json.loads((out / "logps.json").read_text())[0] == pytest.approx(sums, abs=1e-3)
    best = max(range(4), key=row["scores"].__getitem__)
    expected = sorted((sums[best] - sums[r] for r in range(4) if r != best), reverse=True)
    found = [r["gap"] for s in (1, 2) for r in rows(out / f"stage-{s}/pairs.jsonl") if r["prompt"] == row["prompt"]]
    assert found == pytest.approx(expected, abs=2e-3)


def test_with_adapters_and_other_methods(text_model: Path, lists: Path, tmp_path: Path) -> None:
    out = run(text_model, lists, tmp_path / "lora", model={"path": str(text_model), "adapter": {"r": 4}},
              hyper={"stages": 2, "kl_prompts": 2})  # fmt: skip
    assert first_losses(out, 2) == pytest.approx([LOG2] * 2, abs=1e-5)
    assert json.loads((out / "adapter_config.json").read_text())["base_model_name_or_path"] == str(text_model)
    fixed = run(text_model, lists, tmp_path / "fixed", model={"path": str(text_model), "adapter": {"r": 4}},
                hyper={"stages": 2, "update_reference": False})  # fmt: skip
    assert abs(first_losses(fixed, 2)[1] - LOG2) > 1e-3
    simpo = run(text_model, lists, tmp_path / "simpo", hyper={"stages": 2, "base": {"name": "simpo", "beta": 3.0}})
    assert record(simpo, 2)["method"]["beta"] == 3.0
    assert "reference" not in record(simpo, 2)


def test_held_out_lists_and_margins(text_model: Path, lists: Path, tmp_path: Path) -> None:
    out = run(text_model, lists, tmp_path / "run", hyper={"stages": 2}, data={"eval_path": str(lists), "use": ["margin"]},
              train={"max_steps": 2, "eval_strategy": "steps", "eval_steps": 1})  # fmt: skip
    assert len(rows(out / "held-out.jsonl")) == 36
    assert any("eval_loss" in r for r in rows(out / "stage-2/run/metrics.jsonl"))


def test_ties_and_repetitions_make_no_pair(text_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "lists.jsonl"
    made = [
        {"prompt": "a", "responses": ["one", "two", "three"], "scores": [3, 3, 1]},
        {"prompt": "b", "responses": ["one", " one ", "three"], "scores": [3, 2, 1]},
        {"prompt": "c", "responses": ["one", "two", "three"], "ranks": [2, 1, 3]},
        {"prompt": "d", "responses": ["one", "two"], "scores": [1, 1]},
    ]
    path.write_text("".join(json.dumps(r) + "\n" for r in made))
    out = run(
        text_model, path, tmp_path / "run", data={"max_dropped": 0.5}, hyper={"stages": 1}, train={"max_steps": 1}
    )
    held = rows(out / "stage-1/pairs.jsonl")
    assert [(r["prompt"], r["chosen"], r["rejected"]) for r in held] == [
        ("a", "one", "three"), ("b", "one", "three"), ("c", "two", "three"), ("c", "two", "one"),
    ]  # fmt: skip
    assert [r["from"].split()[-1] for r in held] == ["1", "2", "3", "3"]


LIST = {"prompt": "a", "responses": ["one", "two", "three"], "scores": [3, 2, 1]}


@pytest.mark.parametrize(
    ("row", "sections", "words"),
    [
        (LIST, {"hyper": {"stages": 0}}, "stages = 0"),
        (LIST, {"hyper": {"stages": 3}}, "stage 3 of 3 has no pair"),
        (LIST, {"hyper": {"scope": "world"}}, "curry-dpo.scope = 'world'"),
        (LIST, {"hyper": {"criterion": "length"}}, "curry-dpo.criterion = 'length'"),
        (LIST, {"hyper": {"base": {"name": "dpo", "beta": 0}}}, "dpo.beta = 0"),
        (LIST, {"hyper": {"base": "sft"}}, "sft does not compare pairs"),
        (LIST, {"hyper": {"base": "bt-reward"}}, "bt-reward does not compare pairs"),
        (LIST, {"hyper": {"base": "simpo", "update_reference": False}}, "update_reference has no effect: simpo"),
        (LIST, {"hyper": {"kl_prompts": -1}}, "kl_prompts = -1"),
        (LIST, {"data": {"pairing": "all"}}, "data.pairing has no effect"),
        (LIST, {"reference": {"path": "elsewhere"}}, "every stage has a reference of its own"),
        (LIST, {"reference": {"kind": "adapter_off"}}, "adapter_off"),
        (LIST | {"scores": [3, 2]}, {}, "row 1"),
        (LIST | {"scores": [3, 2, None]}, {}, "row 1: has a response without a score"),
        (LIST | {"scores": [1, 1, 1]}, {}, "1 x a tie of all scores"),
        ({"prompt": "a", "responses": ["one"], "scores": [3]}, {}, "row 1: has 1 responses"),
        ({"prompt": "a", "chosen": "one", "rejected": "two"}, {}, "nothing that orders"),
    ],
    ids=lambda x: str(x)[:60],
)
def test_curry_refusals(row: Any, sections: dict[str, Any], words: str, text_model: Path, tmp_path: Path) -> None:
    path = tmp_path / "lists.jsonl"
    path.write_text(json.dumps(row) + "\n")
    with pytest.raises(PrefoptError, match=words):
        run(text_model, path, tmp_path / "run", **sections)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["lists.jsonl"]


# ---- sDPO


def test_sdpo_cuts_the_rows_or_takes_file_by_file(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    out = run(
        text_model, pairs_file, tmp_path / "cut", "sdpo", hyper={"chunks": 3, "kl_prompts": 2}, data={"limit": 20}
    )
    held = [rows(out / f"stage-{s}/data.jsonl") for s in (1, 2, 3)]
    assert [len(h) for h in held] == [7, 7, 6]
    assert [r for h in held for r in h] == rows(pairs_file)[:20]
    assert first_losses(out) == pytest.approx([LOG2] * 3, abs=1e-6)
    assert (out / "stage-3/kl.json").is_file()
    files = [out / f"stage-{s}/data.jsonl" for s in (1, 2, 3)]
    named = run(text_model, "", tmp_path / "named", "sdpo", data={"path": [str(f) for f in files]})
    one, two = weights(out), weights(named)
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({}, "method.chunks says in how many parts"),
        ({"hyper": {"chunks": 1}}, "method.chunks = 1"),
        ({"hyper": {"chunks": 30}}, "the data have 24 rows"),
        ({"hyper": {"chunks": 2}, "reference": {"path": "x"}}, "every stage has a reference of its own"),
    ],
    ids=str,
)
def test_sdpo_refusals(
    sections: dict[str, Any], words: str, text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(PrefoptError, match=words):
        run(text_model, pairs_file, tmp_path / "run", "sdpo", **sections)
    assert not list(tmp_path.iterdir())


# ---- TR-DPO


def test_tr_dpo_is_its_base_with_a_reference_that_moves(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    out = run(text_model, pairs_file, tmp_path / "run", "tr-dpo", hyper={"tau": 2, "alpha": 0.5})
    same = {"mixup_alpha": 0.5, "sync_steps": 2}
    content = {"method": "dpo", "model": str(text_model), "data": str(pairs_file), "output": str(tmp_path / "plain"),
               "train": KEYS, "reference": same}  # fmt: skip
    from prefopt.training.run import train

    train(make(content))
    one, two = weights(out), weights(tmp_path / "plain")
    assert all(torch.equal(one[k], two[k]) for k in one)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"hyper": {"alpha": 0.0}}, "method.alpha = 0"),
        ({"hyper": {"tau": 0}}, "method.tau = 0"),
        ({"hyper": {"base": "simpo"}}, "uses no reference model"),
        ({"reference": {"sync_steps": 3}}, "are method.alpha and method.tau here"),
        ({"reference": {"kind": "store"}}, "cannot move"),
    ],
    ids=str,
)
def test_tr_dpo_refusals(
    sections: dict[str, Any], words: str, text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(PrefoptError, match=words):
        run(text_model, pairs_file, tmp_path / "run", "tr-dpo", **sections)


# ---- what theory says


class LogLinear(nn.Module):
    """pi(y | x) = softmax of features [X, Y, d] times theta."""

    def __init__(self, features: torch.Tensor):
        super().__init__()
        self.features = features
        self.theta = nn.Parameter(torch.zeros(features.shape[-1], dtype=features.dtype))

    def forward(self) -> torch.Tensor:
        return self.features @ self.theta


@pytest.mark.parametrize("update", [True, False])
def test_of_a_log_linear_policy_the_order_of_stages_changes_nothing_if_the_reference_moves(update: bool) -> None:
    """Each stage then adds an increment that does not depend on where it starts; with a fixed reference it does."""
    g = torch.Generator().manual_seed(0)
    features = torch.randn(6, 4, 5, generator=g, dtype=torch.float64)
    stages = curriculum(torch.randn(6, 4, generator=g).tolist()).stages
    ends = []
    for order in (stages, stages[::-1]):
        policy = LogLinear(features)
        first = torch.softmax(policy(), -1).detach()
        for stage in order:
            reference = torch.softmax(policy(), -1).detach() if update else first
            batch = pairs_of(*(torch.tensor(x) for x in list(zip(*stage, strict=True))[:3]))
            fit(get_method("dpo"), policy, TabularScorer(reference), batch, 20, lambda p: torch.optim.Adam(p, 0.1))
        ends.append(policy.theta.detach().clone())
    assert torch.allclose(*ends, atol=1e-9) == update
