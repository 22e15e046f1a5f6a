"""Papers of several steps from one command, on a tiny model."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from prefopt import PrefoptError
from prefopt.recipes import load_all
from tests.recipes.test_steps import config, weights
from tests.small_models import save_text_model

TASTE = "def short(prompts, responses):\n    return [-float(len(r)) for r in responses]\n"


def run(name: str, model: Path, data: Path, out: Path, **sections: Any) -> Path:
    assert load_all()[name].run(config(name, model, data, out, **sections)).status == "finished"
    return out


def logged(folder: Path, key: str) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [row[key] for row in rows if key in row]


def test_tgdpo_is_guided_by_its_first_run(
    text_model: Path, pairs_file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(
        "PREFOPT_CACHE", str(tmp_path / "cache")
    )  # others may have stored the reference in other batches
    hyper = {"base": {"alpha": 1.0, "reward_beta": 1.0}, "first_train": {"learning_rate": 1e-2}}
    sections = {"hyper": hyper, "read": {"eval_fraction": 0.3}}
    out = run("tgdpo-from-pairs", text_model, pairs_file, tmp_path / "out", **sections)
    AutoModelForCausalLM.from_pretrained(out)
    record = json.loads((out / "guided" / "run.json").read_text())
    assert record["sources"]["models"]["token_reward"]["path"] == str(out / "first")
    chosen = logged(out / "guided", "token_reward/chosen")
    assert chosen[0] != 0  # the policy starts as its reference, the token reward does not
    assert logged(out / "guided", "rewards/margins")[0] == 0
    assert logged(out / "guided", "eval_token_reward/chosen")
    alone = run("tgdpo-from-pairs", text_model, pairs_file, tmp_path / "alone", **sections)
    assert weights(alone) == weights(out)


def test_a_source_is_read_from_the_store_and_must_be_the_same_again(
    text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    from prefopt.training.run import train

    other = save_text_model(tmp_path / "other", num_hidden_layers=1)
    c = config("tgdpo", text_model, pairs_file, tmp_path / "out", sources={"token_reward": str(other)})
    train(c, stop_after=1)
    save_text_model(tmp_path / "other", num_hidden_layers=3)
    with pytest.raises(PrefoptError, match="the sources are not what this run was started with"):
        train(c)


@pytest.mark.parametrize(
    ("method", "sections", "words"),
    [
        ("tgdpo", {}, "set sources.token_reward.path to its folder"),
        ("tgdpo", {"sources": {"token_reward": "./nowhere"}}, "sources.token_reward.path = ./nowhere"),
        ("tgdpo", {"sources": {"token_rewards": "x"}}, "tgdpo asks for token_reward"),
        ("dpo", {"sources": {"token_reward": "x"}}, "dpo asks for no other model's scores"),
        ("dpo", {"sources": {"reference": "x"}}, "reference.path names the reference"),
        ("madpo", {}, "prefopt data build scores --add reward_score"),
        ("infifpo", {}, "prefopt data build scores --add sources"),
    ],
    ids=str,
)
def test_what_is_lacking_is_said_with_the_key(
    method: str, sections: dict[str, Any], words: str, text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    from prefopt.training.run import train

    with pytest.raises(PrefoptError) as error:
        train(config(method, text_model, pairs_file, tmp_path / "out", **sections))
    assert words in str(error.value)
    assert "scores:" not in str(error.value)


def test_a_source_of_another_vocabulary_is_refused(
    text_model: Path, pairs_file: Path, tmp_path: Path, tokenizer: Any
) -> None:
    from prefopt.training.run import train

    other = save_text_model(tmp_path / "other")
    tokenizer.save_pretrained(other)
    c = config("tgdpo", text_model, pairs_file, tmp_path / "out", sources={"token_reward": str(other)})
    with pytest.raises(PrefoptError, match="tokenizer is not the policy's.*prefopt data build scores"):
        train(c)


@pytest.mark.parametrize("adapter", [False, True])
def test_madpo_trains_its_reward_model_first(adapter: bool, text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    sections: dict[str, Any] = {"hyper": {"reward_train": {"max_steps": 2}}}
    if adapter:
        sections["model_keys"] = {"adapter": {"r": 4}}
    out = run("madpo-from-pairs", text_model, pairs_file, tmp_path / "out", **sections)
    rows = [json.loads(line) for line in (out / "scored" / "train.jsonl").read_text().splitlines()]
    assert len({row["chosen_reward_score"] for row in rows}) > 1
    assert logged(out / "policy", "weights")[0] != 1
    assert json.loads((out / "reward" / "run.json").read_text())["steps"] == 2


def test_infifpo_with_sources_of_other_tokenizers(
    text_model: Path, pairs_file: Path, tmp_path: Path, tokenizer: Any
) -> None:
    from transformers import LlamaConfig, LlamaForCausalLM

    words = tmp_path / "words"
    torch.manual_seed(0)
    LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(tokenizer), hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2
        )
    ).save_pretrained(words)
    tokenizer.save_pretrained(words)
    other = save_text_model(tmp_path / "other", num_hidden_layers=1)
    out = run(
        "infifpo-from-pairs", text_model, pairs_file, tmp_path / "out", hyper={"models": [str(words), str(other)]}
    )
    assert logged(out / "policy", "loss")[0] > 0.6931  # the fused margin is never below the pivot's own
    assert logged(out / "policy", "disparity")[0] > 0.5


def test_modpo_sweeps_over_weights(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    (tmp_path / "taste.py").write_text(TASTE)
    short = f"{tmp_path}/taste.py:short"
    hyper = {"margin_data": [str(pairs_file)], "margins": [short], "weights": [0.5, 1.0], "objectives": [short] * 3}
    sections = {"rollout": {"max_new_tokens": 4, "prompts_per_round": 2, "samples_per_prompt": 2}, "hyper": hyper}
    out = run("modpo-sweep", text_model, pairs_file, tmp_path / "out", **sections)
    front = json.loads((out / "front.json").read_text())
    assert [p["w"] for p in front["policies"]] == [0.5, 1.0]
    assert all(len(p["rewards"]) == 3 for p in front["policies"])
    row = json.loads((out / "scored" / "train.jsonl").read_text().splitlines()[0])
    assert row["chosen_margin_rewards"][1] == -len(row["chosen"])
    assert not torch.equal(*(load_file(out / w / "model.safetensors")["model.norm.weight"] for w in ("w-0.5", "w-1")))
    from prefopt.evaluation.run import evaluate_run

    with pytest.raises(PrefoptError, match=r"holds several models \(margin-1, .*w-0.5, w-1.*name one of them"):
        evaluate_run(out)


@pytest.mark.parametrize(
    ("name", "hyper", "words"),
    [
        ("modpo-sweep", {}, "give the other objectives"),
        ("modpo-sweep", {"margins": ["a:b"], "weights": [0.0]}, "must lie in (0, 1]"),
        ("modpo-sweep", {"margins": ["a:b"], "weights": [0.5, 0.5]}, "each given once"),
        ("modpo-sweep", {"margins": ["a:b"], "objectives": ["a:b"]}, "give 2 rewards"),
        ("modpo-sweep", {"margins": ["a:b"], "base": {"w": [0.3, 0.7]}}, "method.base.w has no effect"),
        ("modpo-sweep", {"margin_data": ["x.jsonl"], "margin": "simpo"}, "method.margin = simpo"),
        ("tgdpo-from-pairs", {"base": "dpo"}, "it asks for no token reward"),
        ("madpo-from-pairs", {"base": "dpo"}, "it asks for no reward scores"),
        ("madpo-from-pairs", {"reward_model": "x", "reward_train": {"max_steps": 1}}, "reward_train has no effect"),
        ("infifpo-from-pairs", {}, "method.models is empty"),
    ],
    ids=str,
)
def test_refusals(
    name: str, hyper: dict[str, Any], words: str, text_model: Path, pairs_file: Path, tmp_path: Path
) -> None:
    with pytest.raises(PrefoptError) as error:
        load_all()[name].run(config(name, text_model, pairs_file, tmp_path / "out", hyper=hyper))
    assert words in str(error.value)
    assert not (tmp_path / "out").exists()
