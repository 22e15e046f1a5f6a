"""The world of chains modulo ten: its lists tell the truth about every step, and its model is what it was fitted to."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from prefopt.worlds import chains
from prefopt.worlds.chains import STEPS, Chains
from prefopt.worlds.letters import answers, load

ARITHMETIC = {"+": int.__add__, "-": int.__sub__, "*": int.__mul__}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Chains:
    folder = tmp_path_factory.mktemp("chains")
    return chains.build(folder, seed=5, lists=200, heldout=40, demonstrations=60, fitted=150)


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def by_hand(asked: str) -> list[int]:
    """Results one after the other, by Python's own arithmetic."""
    found = [int(asked[0])]
    for operation, operand in zip(asked[1:-1:2], asked[2:-1:2], strict=True):
        found.append(ARITHMETIC[operation](found[-1], int(operand)) % 10)
    return found[1:]


def test_the_example_of_the_module() -> None:
    assert chains.right("3+4*2-1*5a") == ["+47", "*24", "-13", "*55"]
    assert by_hand("3+4*2-1*5a") == [7, 4, 3, 5]
    assert chains.value("3+4*2-1*5a", ["+47", "*25", "-13", "*51"]) == 0.5


def test_right_answers_and_values(world: Chains) -> None:
    for row in rows(world.train):
        truth = by_hand(row["prompt"])
        assert [int(step[-1]) for step in row["steps"][0]] == truth
        for text, steps, value in zip(row["responses"], row["steps"], row["values"], strict=True):
            assert text == "".join(steps)
            assert [s[:2] for s in steps] == [row["prompt"][1 + 2 * k : 3 + 2 * k] for k in range(STEPS)]
            assert value == sum(int(s[-1]) == t for s, t in zip(steps, truth, strict=True)) / STEPS
        assert row["values"][0] == 1.0


def test_branches_leave_the_right_answer_and_one_is_wrong_from_the_start(world: Chains) -> None:
    shared = []
    for row in rows(world.train):
        best, *branches, wrong = row["steps"]
        assert len(branches) == chains.BRANCHES
        assert wrong[0][:2] == best[0][:2]
        assert wrong[0] != best[0]
        shared += [sum(a == b for a, b in zip(branch, best, strict=True)) / STEPS for branch in branches]
    assert 0.4 < sum(shared) / len(shared) < 0.8  # kept up to a random step, then each wrong with a probability of 1/2


def test_steps_go_on_from_what_stands(world: Chains) -> None:
    """A step is computed from the result before it, right or wrong, unless it is itself a mistake."""
    follows = []
    for row in rows(world.train):
        for steps in row["steps"]:
            for before, step in pairwise(steps):
                follows.append(int(step[2]) == chains.result(int(before[2]), step[0], int(step[1])))
    assert 0.5 < sum(follows) / len(follows) < 0.9


def test_scores_are_the_truth_with_noise_and_the_right_answer_first(world: Chains) -> None:
    errors = []
    for row in rows(world.train):
        assert row["scores"][0] == 100.0 > max(row["scores"][1:])
        assert min(row["scores"]) >= -100.0
        inside = [(s, v) for s, v in zip(row["scores"], row["values"], strict=True) if -99 < s < 98]
        errors += [s - (200 * v - 100) for s, v in inside]
    assert abs(sum(errors) / len(errors)) < 6
    assert 10 < (sum(e * e for e in errors) / len(errors)) ** 0.5 < 25


def test_another_seed_is_another_world_and_held_out_prompts_are_apart(world: Chains, tmp_path: Path) -> None:
    train, heldout = ([r["prompt"] for r in rows(f)] for f in (world.train, world.heldout))
    assert (len(train), len(heldout)) == (200, 40)
    assert not set(train) & set(heldout)
    again = [chains.tree(chains.prompt(random.Random(s)), random.Random(s)) for s in (1, 1, 2)]
    assert again[0] == again[1] != again[2]


def test_the_model_writes_chains(world: Chains) -> None:
    """After some batches it writes the operations of the prompt, and the results better than by guessing."""
    model, tokenizer = load(world.model)
    asked = [r["prompt"] for r in rows(world.train)][:60]
    said = [g[0].text for g in answers(model, tokenizer, asked, 1, chains.ANSWER, seed=1)]
    operations = [
        s[k : k + 2] == a[1 + 2 * (k // 3) : 3 + 2 * (k // 3)] for s, a in zip(said, asked, strict=True) for k in (0, 3)
    ]
    assert sum(operations) / len(operations) > 0.9
    results = [s[2:3] == str(by_hand(a)[0]) for s, a in zip(said, asked, strict=True)]
    assert sum(results) / len(results) > 0.15


def test_a_folder_that_is_there_is_taken(world: Chains) -> None:
    before = (world.model / "model.safetensors").stat().st_mtime_ns
    chains.build(world.model.parent, seed=5, lists=200, heldout=40, demonstrations=60, fitted=150)
    assert (world.model / "model.safetensors").stat().st_mtime_ns == before
