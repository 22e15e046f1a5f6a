"""The worlds of ranked lists, `formatted` and `rated`: what is built, and what is true of it."""

import json
import re
from statistics import fmean

import pytest

from prefopt.errors import PrefoptError
from prefopt.worlds import formatted, rated
from prefopt.worlds.cache import World
from prefopt.worlds.formatted import make as formatted_make
from prefopt.worlds.formatted.truth import LIKES
from prefopt.worlds.letters import answers, load
from prefopt.worlds.rated import make as rated_make


@pytest.fixture(scope="module")
def quick():
    """Fewer steps of fitting: these tests are about everything else."""
    before = formatted_make.STEPS, rated_make.STEPS
    formatted_make.STEPS = rated_make.STEPS = 100
    yield
    formatted_make.STEPS, rated_make.STEPS = before


@pytest.fixture(scope="module")
def marks(cache, quick) -> World:
    return formatted.build(cache, seed=3, lists=40)


@pytest.fixture(scope="module")
def noisy(cache, quick) -> World:
    return rated.build(cache, seed=3, lists=60)


def rows(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_validity_and_the_reward_of_the_format_task():
    texts = ["(ab)", "(abcdef)", "(a)", "(abcdefg)", "ab)", "((ab)", "(ab))", "", "(a(b)"]
    assert formatted.valid(["ab"] * 9, texts) == [1, 1, 0, 0, 0, 0, 0, 0, 0]
    found = formatted.reward(["ab"] * 3, ["(ccd)", "ccd", "(c)"])
    assert found == [pytest.approx(2 * fmean([(LIKES["a"][c] + LIKES["b"][c]) / 2 for c in "ccd"])), 0.0, 0.0]
    assert all(sum(row.values()) == pytest.approx(0, abs=1e-12) for row in LIKES.values())


def test_lists_of_the_format_task_are_valid_and_ranked_without_ties(marks):
    for row, triple in zip(rows(marks.lists), rows(marks.train), strict=True):
        assert formatted.valid([row["prompt"]] * 4, row["responses"]) == [1.0] * 4
        assert row["scores"] == formatted.reward([row["prompt"]] * 4, row["responses"])
        ranked = [r for _, r in sorted(zip(row["scores"], row["responses"], strict=True), reverse=True)]
        assert (triple["gold"], triple["chosen"], triple["rejected"]) == (ranked[0], ranked[1], ranked[3])
        assert triple["gold_score"] > triple["chosen_score"] > triple["rejected_score"]


def test_longer_lists_have_a_longer_second_best(cache, quick):
    world = formatted.build(cache, seed=3, lists=20, longer=True)
    assert all(len(r["chosen"]) > len(r["rejected"]) for r in rows(world.train))


def test_the_model_of_the_format_task_hardly_knows_it(marks):
    asked = formatted.prompts(300, 9)
    said = [g[0].text for g in answers(*load(marks.model), asked, 1, formatted.TOKENS, seed=1)]
    assert fmean(formatted.valid(asked, said)) < 0.15
    assert all(re.fullmatch(r"[a-j()]*", s) for s in said)


def test_the_reward_of_the_rated_task_is_a_sum():
    one, two = rated.reward(["abc"] * 2, ["d", "e"])
    assert rated.reward(["abc", "cab"], ["de", "de"]) == [pytest.approx(one + two)] * 2
    assert rated.reward(["abc"], [""]) == [0]


def test_ratings_are_the_truth_with_noise(noisy):
    errors, spread = [], noisy.facts["spread"]
    for row in rows(noisy.lists):
        assert row["true"] == rated.reward([row["prompt"]] * 4, row["responses"])
        errors += [(a - b) / spread for a, b in zip(row["scores"], row["true"], strict=True)]
    assert abs(fmean(errors)) < 0.1
    assert 0.45 < fmean(e * e for e in errors) ** 0.5 < 0.75
    for row, pair in zip(rows(noisy.lists), rows(noisy.train), strict=True):
        assert pair["chosen_score"] == max(row["scores"])
        assert pair["rejected_score"] == min(row["scores"])
    held_out = rows(noisy.heldout)
    for side in ("chosen", "rejected"):
        truth = rated.reward([r["prompt"] for r in held_out], [r[side] for r in held_out])
        assert truth == [r[f"{side}_score"] for r in held_out]


def test_another_seed_is_another_world(cache, quick, marks, noisy):
    for world, build in ((marks, formatted.build), (noisy, rated.build)):
        other = build(cache, seed=4, lists=20)
        assert rows(other.lists)[0] != rows(world.lists)[0]
        assert other.root != world.root
    with pytest.raises(PrefoptError, match="lists = 0"):
        formatted.build(cache, lists=0)
    with pytest.raises(PrefoptError, match="noise = -1"):
        rated.build(cache, noise=-1)
