"""The toy language and the copy task: what is built, what is true of it, and that it trains."""

import json
import math
import random
from statistics import fmean

import numpy as np
import pytest
import torch

from prefopt.config import make
from prefopt.errors import PrefoptError
from prefopt.rollout.text import Sampling, generate
from prefopt.training.run import train
from prefopt.worlds import copying, language
from prefopt.worlds.cache import World
from prefopt.worlds.copying import make as copying_make
from prefopt.worlds.language import make as language_make
from prefopt.worlds.letters import Judge, load


@pytest.fixture(scope="module")
def toy(cache) -> World:
    return language.build(cache, seed=3, pairs=400, heldout=100, lists=20)


@pytest.fixture(scope="module")
def copied(cache, quick) -> World:
    return copying.build(cache, seed=3, pairs=200, heldout=50, lists=20, layers=1, hidden=48)


@pytest.fixture(scope="module")
def quick():
    """Fewer steps of fitting: these tests are about everything else."""
    steps, copying_make.STEPS = copying_make.STEPS, 120
    yield
    copying_make.STEPS = steps


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


# ---- truths


def test_the_reward_of_the_language_counts_letters():
    assert language.reward(["a", "b", "k"], ["aabccd", "aabccd", "eeffgg"]) == [0.0, 0.0, 0.0]
    assert language.reward(["a", "b"], ["aaabbb", "aaabbb"]) == [6.0, -6.0]
    g = random.Random(0)
    for _ in range(50):
        x, y = g.choice(language.LETTERS), "".join(g.choices(language.LETTERS, k=6))
        tokens = [ord(c) - ord("a") for c in y]
        good, bad = ({0, 1}, {2, 3}) if (ord(x) - ord("a")) % 2 == 0 else ({2, 3}, {0, 1})
        assert language.reward([x], [y]) == [sum(t in good for t in tokens) - sum(t in bad for t in tokens)]


def test_the_rewards_of_copying():
    prompts, responses = ["abcd"] * 4, ["abcd", "aaq", "", "qq"]
    assert copying.share(prompts, responses) == [1.0, pytest.approx(2 / 3), 0.0, 0.0]
    assert copying.coverage(prompts, responses) == [1.0, 0.25, 0.0, 0.0]
    assert copying.noise(prompts, responses) == [0.0, pytest.approx(1 / 3), 0.0, 1.0]
    assert copying.covered(prompts, responses) == [1.0, pytest.approx(0.25 - 1 / 3), 0.0, -1.0]
    assert copying.concise(prompts, responses) == [1 - 4 / 32, 0.25 - 3 / 32, 0.0, -2 / 32]


# ---- what is built


def test_the_language_is_what_its_card_says(toy):
    model, tokenizer = load(toy.model)
    assert tokenizer("cdl").input_ids == [2, 3, 11]
    assert tokenizer.decode([2, 3, 11]) == "cdl"
    assert len(tokenizer) == 13 and model.config.n_positions == 7
    train_rows = rows(toy.train)
    assert len(train_rows) == 400 and len(rows(toy.heldout)) == 100 and len(rows(toy.lists)) == 20
    assert {row["prompt"] for row in rows(toy.prompts)} == set(language.LETTERS)
    for row in train_rows:
        for side in ("chosen", "rejected"):
            assert len(row[side]) == 6 and set(row[side]) <= set(language.LETTERS)
            assert language.reward([row["prompt"]], [row[side]]) == [row[f"{side}_score"]]
    assert all(row["chosen_score"] > row["rejected_score"] for row in rows(toy.heldout))
    assert 0.55 < toy.facts["labels_that_agree_with_reward"] < 0.75 and abs(toy.facts["mean_reward"]) < 0.5
    assert all(len(set(row["responses"])) == 4 for row in rows(toy.lists))
    assert sum(row["label"] for row in rows(toy.unpaired)) == 400


def test_the_reference_has_learned_its_chain_and_never_ends(toy):
    model, _ = load(toy.model)
    batches = list(language_make._batches(np.random.default_rng([3, 0])))
    fresh = torch.cat([ids for ids, _ in batches[-20:]])
    with torch.no_grad():
        logps = model(input_ids=fresh).logits.log_softmax(-1)
    assert logps[..., 12].max() < -40
    found = -logps[:, :-1].gather(2, fresh[:, 1:, None]).mean()
    n = len(language.LETTERS)
    chain = 0.6 * np.random.default_rng([3, 0]).dirichlet([0.3] * n, size=n) + 0.4 / n
    true = -np.log(chain)[fresh[:, :-1], fresh[:, 1:]].mean()
    assert true - 0.02 < found < true + 0.05 < math.log(n)


def test_samples_of_copying_follow_the_prompt_and_stop(copied):
    model, tokenizer = load(copied.model)
    assert tokenizer("abq").input_ids == [1, 3, 4, 19]
    found = generate(model, tokenizer, copying.prompts(200, 99), Sampling(max_new_tokens=16), progress=False)
    texts = [group[0].text for group in found]
    assert fmean(copying.share(copying.prompts(200, 99), texts)) > 0.5 > 8 / 17
    assert 5 < fmean(map(len, texts)) < 9 and fmean(group[0].finished for group in found) > 0.9
    for row in rows(copied.train):
        assert len(set(row["prompt"])) == 4 and copying.share([row["prompt"]], [row["chosen"]]) == [row["chosen_score"]]


def test_worlds_are_deterministic_and_models_do_not_depend_on_dials(cache, tmp_path, toy):
    again = language.build(tmp_path, seed=3, pairs=400, heldout=100, lists=20)
    for part in ("train", "heldout", "lists", "unpaired"):
        assert getattr(again, part).read_bytes() == getattr(toy, part).read_bytes()
    weights = "model.safetensors"
    assert (again.model / weights).read_bytes() == (toy.model / weights).read_bytes()
    noisy = language.build(cache, seed=3, pairs=300, heldout=100, lists=20, label_noise=1.0)
    assert (noisy.model / weights).read_bytes() == (toy.model / weights).read_bytes()
    assert noisy.facts["labels_that_agree_with_reward"] < 0.45


def test_fewer_pairs_are_the_first_of_more(cache, quick, copied):
    few = copying.build(cache, seed=3, pairs=60, heldout=50, lists=20, layers=1, hidden=48)
    prompts = [row["prompt"] for row in rows(few.train)]
    assert prompts == [row["prompt"] for row in rows(copied.train)][:60]


def test_dials_of_labels(cache, toy):
    clean = language.build(cache, seed=3, pairs=200, heldout=10, lists=5, temperature=0, ties=False)
    assert clean.facts["labels_that_agree_with_reward"] == 1.0
    two = language.build(cache, seed=3, pairs=400, heldout=10, lists=5, temperature=0, ties=False, label_noise=(0, 1))
    for row in rows(two.train):
        assert (row["chosen_score"] > row["rejected_score"]) == (row["annotator"] == 0)
    with pytest.raises(PrefoptError, match="label_noise"):
        language.build(cache, label_noise=1.5)
    with pytest.raises(PrefoptError, match="temperature"):
        language.build(cache, temperature=-1)
    with pytest.raises(PrefoptError, match="reward 'bleu'"):
        copying.build(cache, reward="bleu")
    with pytest.raises(PrefoptError, match="multiple of 4"):
        copying.build(cache, hidden=30)
    with pytest.raises(PrefoptError, match="probabilities"):
        copying.build(cache, pairs_from=1.2)


def test_a_judge_is_bradley_terry():
    def length(prompts, responses):
        return [float(len(r)) for r in responses]

    rng = random.Random(0)
    wins = [Judge(length, 0.5, (0.0,), length_bonus=0.25).first_wins(1.0, 2, 0, rng) for _ in range(4000)]
    assert fmean(wins) == pytest.approx(1 / (1 + math.exp(-1.0)), abs=0.03)
    sides = [("aa", "b"), ("a", "bb"), ("a", "a"), ("", "b"), ("a", "b")]
    kept = Judge(length, math.inf, (0.0,)).pairs(["p"] * 5, sides, rng, ties=False)
    assert [(r["chosen"], r["rejected"]) for r in kept] == [("aa", "b"), ("bb", "a")]


def test_apart_prompts_never_hold_neighbours():
    def couples(prompt):
        return 4 - len({(ord(c) - ord("a")) // 2 for c in prompt})

    assert all(couples(p) == 0 for p in copying.prompts(300, 1, apart=True))
    assert all(couples(p) == 2 and len(set(p)) == 4 for p in copying.prompts(300, 1, apart=False))
    assert any(couples(p) for p in copying.prompts(300, 1))


# ---- training


def configuration(world, output, **data):
    train = {"max_steps": 2, "per_device_train_batch_size": 8, "save_strategy": "no", "disable_tqdm": True}
    content = {"method": {"name": "dpo"}, "model": str(world.model), "data": {"path": str(world.train), **data}}
    return make(content | {"train": train, "output": str(output)})


def test_an_answer_of_the_language_is_six_tokens_in_training_too(toy, tmp_path):
    train(configuration(toy, tmp_path / "run", **language.DATA))
    lines = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert lines[0]["lengths/chosen"] == lines[0]["lengths/rejected"] == 6


def test_a_run_that_forgets_the_length_is_refused(toy, tmp_path):
    with pytest.raises(PrefoptError, match=r"row 1: .* 8 tokens, the model has 7 positions; set data.max_length to 7"):
        train(configuration(toy, tmp_path / "run"))


def test_demonstrations_of_geometric_length(cache, quick):
    """Many are short and some long, so that a taste for length parts the sides further."""
    even, spread = (
        copying.build(cache, seed=3, pairs=60, heldout=10, lists=5, layers=1, hidden=16, spread=x)
        for x in (False, True)
    )
    lengths = [[len(r["completion"]) for r in rows(w.sft)] for w in (even, spread)]
    assert (min(lengths[0]), max(lengths[0])) == (2, 12)
    assert (min(lengths[1]), max(lengths[1])) == (1, 15)
    assert 5 < fmean(lengths[1]) < 6.2
    assert 0.14 < fmean(n == 1 for n in lengths[1]) < 0.2  # one in six
    assert "spread" not in even.settings and spread.settings["spread"]
