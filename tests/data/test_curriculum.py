"""The ordering of Curry-DPO, against a slow computation from its definition, and by its particulars."""

from __future__ import annotations

import math
import random
from typing import Any

import pytest

from prefopt import PrefoptError
from prefopt.data.curriculum import FEW, TIED, RankedPair, curriculum, parts


def names(stages: list[list[RankedPair]]) -> list[list[tuple[int, int, int]]]:
    return [[tuple(p[:3]) for p in stage] for stage in stages]  # type: ignore[misc]


def test_the_papers_case() -> None:
    """Four ranked responses, three stages: R1 against R4, R3, R2; the first prompt's are shuffled."""
    made = curriculum([[2.0, 4.0, 1.0, 3.0], [4.0, 3.0, 2.0, 1.0]])
    assert names(made.stages) == [[(0, 1, 2), (1, 0, 3)], [(0, 1, 0), (1, 0, 2)], [(0, 1, 3), (1, 0, 1)]]
    assert [p.gap for p in made.stages[0]] == [3.0, 3.0]
    assert made.dropped == {}


def test_global_pools_all_pairs() -> None:
    made = curriculum([[10.0, 1.0, 9.0], [5.0, 4.0, 3.0]], 2, scope="global")
    assert names(made.stages) == [[(0, 0, 1), (1, 0, 2)], [(0, 0, 2), (1, 0, 1)]]  # gaps 9, 2 | 1, 1
    uneven = curriculum([[4.0, 1.0, 2.0, 3.0], [2.0, 0.5, 1.0]], 3, scope="global")
    assert [len(s) for s in uneven.stages] == [2, 2, 1]


def test_equal_gaps_keep_prompts_then_responses_in_order() -> None:
    made = curriculum([[0.0, 1.0, 0.0], [0.0, 0.0, 1.0]], 2, scope="global")
    assert names(made.stages) == [[(0, 1, 0), (0, 1, 2)], [(1, 2, 0), (1, 2, 1)]]
    assert names(curriculum([[0.0, 1.0, 0.0]], 2).stages) == [[(0, 1, 0)], [(0, 1, 2)]]


def test_ties_with_the_best_give_no_pair_and_the_first_best_is_chosen() -> None:
    made = curriculum([[3.0, 3.0, 1.0, 2.0], [2.0, 2.0, 2.0], [1.0, 0.0]], 2)
    assert names(made.stages) == [[(0, 0, 2), (2, 0, 1)], [(0, 0, 3)]]
    assert made.dropped == {TIED: [1]}


def test_more_pairs_than_stages_are_cut_in_contiguous_parts() -> None:
    made = curriculum([[6.0, 5.0, 4.0, 3.0, 2.0, 1.0]], 3)
    assert names(made.stages) == [[(0, 0, 5), (0, 0, 4)], [(0, 0, 3), (0, 0, 2)], [(0, 0, 1)]]


def test_fewer_pairs_than_stages_fill_the_easy_ones_unless_dropped() -> None:
    lists = [[3.0, 2.0, 1.0, 0.0], [1.0, 0.0]]
    assert [len(s) for s in curriculum(lists).stages] == [2, 1, 1]
    whole = curriculum(lists, min_pairs=3)
    assert [len(s) for s in whole.stages] == [1, 1, 1]
    assert whole.dropped == {FEW: [1]}


def test_log_probabilities_order_and_may_be_negative() -> None:
    """Scores still say who is better; hardest is where the starting model thinks otherwise."""
    made = curriculum([[3.0, 2.0, 1.0]], 2, criterion="logp", logps=[[-9.0, -4.0, -20.0]])
    assert names(made.stages) == [[(0, 0, 2)], [(0, 0, 1)]]
    assert [s[0].gap for s in made.stages] == [11.0, -5.0]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("scope", ["local", "global"])
def test_against_the_definition(seed: int, scope: Any) -> None:
    g = random.Random(seed)
    scores = [[float(g.randint(0, 4)) for _ in range(g.randint(2, 7))] for _ in range(12)]
    logps = [[g.choice([-1.0, -2.5, -4.0]) for _ in q] for q in scores]
    stages, criterion = g.randint(1, 3), g.choice(["score", "logp"])
    expected: list[list[tuple[int, int, int]]] = [[] for _ in range(stages)]
    pool = []
    for i, q in enumerate(scores):
        b = q.index(max(q))
        found = []
        for r in range(len(q)):
            if q[b] - q[r] > 0:
                gap = q[b] - q[r] if criterion == "score" else logps[i][b] - logps[i][r]
                found.append((-gap, i, r, b))
        found.sort()
        pool += found
        for j, (_, i, r, b) in enumerate(found):
            sizes = [len(found) // stages + (s < len(found) % stages) for s in range(stages)]
            stage = next(s for s in range(stages) if j < sum(sizes[: s + 1]))
            expected[stage].append((i, b, r))
    if scope == "global":
        pool.sort()
        expected, rest = [], pool
        for s in range(stages):
            size = len(pool) // stages + (s < len(pool) % stages)
            expected.append([(i, b, r) for _, i, r, b in rest[:size]])
            rest = rest[size:]
    given = {"logps": logps} if criterion == "logp" else {}
    made = curriculum(scores, stages, criterion=criterion, scope=scope, **given)  # type: ignore[arg-type]
    assert names(made.stages) == expected


def test_parts() -> None:
    assert [list(r) for r in parts(7, 3)] == [[0, 1, 2], [3, 4], [5, 6]]
    assert [list(r) for r in parts(2, 3)] == [[0], [1], []]


@pytest.mark.parametrize(
    ("scores", "options", "words"),
    [
        ([[1.0]], {}, "prompt 1 has 1 responses"),
        ([[1.0, 2.0], []], {}, "prompt 2 has 0 responses"),
        ([[1.0, math.nan]], {}, "scores that are not finite"),
        ([[1.0, math.inf]], {}, "scores that are not finite"),
        ([[1.0, 1.0]], {"stages": 1}, "stage 1 of 1 has no pair: 0 of 1 prompts"),
        ([[1.0, 2.0]], {"stages": 0}, "stages = 0: must be at least 1"),
        ([[1.0, 2.0]], {"min_pairs": 0}, "min_pairs = 0"),
        ([[1.0, 2.0, 3.0]], {"stages": 3}, "stage 3 of 3 has no pair: .* at most 2 each"),
        ([[1.0, 2.0]], {"stages": 2, "scope": "global"}, "stage 2 of 2 has no pair: 1 of 1 prompts give 1 pairs;"),
        ([[1.0, 2.0]], {"criterion": "length"}, "criterion = 'length': must be score or logp"),
        ([[1.0, 2.0]], {"scope": "world"}, "scope = 'world': must be local or global"),
        ([[1.0, 2.0]], {"criterion": "logp"}, "needs the starting model's log-probabilities"),
        ([[1.0, 2.0]], {"logps": [[1.0, 2.0]]}, "no effect with criterion = 'score'"),
        ([[1.0, 2.0]], {"criterion": "logp", "logps": [[1.0]]}, "one number for every score"),
        ([[1.0, 2.0]], {"criterion": "logp", "logps": [[1.0, math.nan]]}, "logps that are not finite"),
    ],
)
def test_refusals(scores: Any, options: dict[str, Any], words: str) -> None:
    with pytest.raises(PrefoptError, match=words):
        curriculum(scores, **options)
