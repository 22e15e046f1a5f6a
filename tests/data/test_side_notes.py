"""Numbers about single responses in data files: where they stand, and that they are whole in every row."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.config import DataConfig
from prefopt.data.example import Example
from prefopt.data.rule import Ledger
from prefopt.data.source import read_examples
from prefopt.data.validate import check_data
from prefopt.errors import PrefoptError

PAIR = {"prompt": "which?", "chosen": "good", "rejected": "bad"}
LIST = {"prompt": "which?", "responses": ["a", "b", "c"], "scores": [3, 2, 1]}
SCORES = {"chosen_reward_score": 1.5, "rejected_reward_score": -2}
SUMS = {"chosen_source_sums": [-1.0, -2], "rejected_source_sums": [-3, -4.5]}
COUNTS = {"chosen_source_counts": [1, 2], "rejected_source_counts": [3, 4]}


def examples(folder: Path, rows: list[dict[str, Any]], *needs: str, **keys: Any) -> list[Example]:
    path = folder / "rows.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    ledger = Ledger()
    found = list(read_examples(DataConfig(path=str(path), **keys), [str(path)], ledger, needs={"pairs", *needs}))
    ledger.stop_if_unreadable()
    return found


def test_beside_a_pair_and_beside_a_list(tmp_path: Path) -> None:
    (pair,) = examples(tmp_path, [PAIR | SCORES | SUMS | COUNTS], "reward_score", "source_sums", "source_counts")
    assert pair.notes["reward_score"] == [1.5, -2.0]
    assert pair.notes["source_sums"] == [[-1.0, -2.0], [-3.0, -4.5]]
    assert pair.notes["source_counts"] == [[1.0, 2.0], [3.0, 4.0]]
    row = LIST | {"reward_score": [1, 2, 3], "margin_rewards": [[1, 2], [3, 4], [5, 6]]}
    (listed,) = examples(tmp_path, [row], "reward_score", "margin_rewards", pairing="best_worst")
    assert listed.pairs == ((0, 1),)  # the one between is in no pair, and its numbers go with it
    assert listed.notes["reward_score"] == [1.0, 3.0]
    assert listed.notes["margin_rewards"] == [[1.0, 2.0], [5.0, 6.0]]


def test_columns_of_other_names_are_mapped(tmp_path: Path) -> None:
    row = PAIR | {"reward_chosen": 2, "reward_rejected": 1}
    names = {"chosen_reward_score": "reward_chosen", "rejected_reward_score": "reward_rejected"}
    (pair,) = examples(tmp_path, [row], "reward_score", columns=names)
    assert pair.notes["reward_score"] == [2.0, 1.0]


def test_they_are_read_only_where_they_are_asked_for(tmp_path: Path) -> None:
    (pair,) = examples(tmp_path, [PAIR | {"chosen_reward_score": "n/a"}])
    assert "reward_score" not in pair.notes


def test_gold_and_empty_answers(tmp_path: Path) -> None:
    gold = {"gold": "best", "gold_source_sums": [-1, -2], "gold_source_counts": [1, 1]}
    needs = ("source_sums", "source_counts", "gold", "gold_source_sums", "gold_source_counts")
    (pair,) = examples(tmp_path, [PAIR | SUMS | COUNTS | gold], *needs)
    assert pair.notes["gold_source_sums"] == [[-1.0, -2.0]]
    row = LIST | {"responses": ["a", "", "c"], "reward_score": [1, None, 3]}
    (listed,) = examples(tmp_path, [row], "reward_score", pairing="best_worst")
    assert listed.notes["reward_score"] == [1.0, 3.0]


@pytest.mark.parametrize(
    ("change", "need", "words"),
    [
        ({}, "margin_rewards", "'chosen_margin_rewards' and 'rejected_margin_rewards'"),
        ({"rejected_reward_score": None}, "reward_score", "'rejected_reward_score' is null"),
        ({"chosen_reward_score": float("nan")}, "reward_score", "finite"),
        ({"chosen_reward_score": "high"}, "reward_score", "finite"),
        ({"reward_score": [1, 2]}, "reward_score", "say the same"),
        ({"chosen_source_sums": [-1, 0.5]}, "source_sums", "log-probability of 0 or less"),
        ({"chosen_source_counts": [1, 0]}, "source_counts", "tokens of 1 or more"),
        ({"chosen_source_counts": [1, 1.5]}, "source_counts", "tokens of 1 or more"),
        ({"chosen_source_sums": [-1]}, "source_sums", "1 and 2 numbers for different responses"),
        ({"chosen_source_sums": []}, "source_sums", "empty list"),
        ({"chosen_source_sums": -1}, "source_sums", "expected a list"),
    ],
    ids=str,
)
def test_what_is_not_whole_is_an_error_with_the_row(
    change: dict[str, Any], need: str, words: str, tmp_path: Path
) -> None:
    whole = PAIR | SCORES | SUMS | COUNTS
    if need != "margin_rewards":
        examples(tmp_path, [whole], need)
    with pytest.raises(PrefoptError, match=r"rows\.jsonl row 2: ") as error:
        examples(
            tmp_path, [whole | {"chosen_margin_rewards": [1], "rejected_margin_rewards": [2]}, whole | change], need
        )
    assert words in str(error.value)


def test_as_many_numbers_in_every_row_and_in_both_columns(tmp_path: Path) -> None:
    more = {"chosen_source_sums": [-1, -2, -3], "rejected_source_sums": [-3, -4, -5]}
    with pytest.raises(PrefoptError, match=r"row 2: 'source_sums' has 3 numbers for a response, and 2 in .*row 1"):
        examples(tmp_path, [PAIR | SUMS, PAIR | more], "source_sums")
    with pytest.raises(PrefoptError, match="'source_sums' has 3 numbers for a response, 'source_counts' 2"):
        examples(tmp_path, [PAIR | more | COUNTS], "source_sums", "source_counts")
    with pytest.raises(PrefoptError, match="has 2 entries for 3 responses"):
        examples(tmp_path, [LIST | {"reward_score": [1, 2]}], "reward_score", pairing="all")


@pytest.mark.parametrize(
    ("scores", "words"),
    [((1.0, 1.0), "the same on both sides of all 3 pairs"), ((0.0, 1.0), "is its sign reversed"), ((1.0, 0.0), "")],
)
def test_the_doctor_looks_at_reward_scores(scores: tuple[float, float], words: str, tmp_path: Path) -> None:
    row = PAIR | {"chosen_reward_score": scores[0], "rejected_reward_score": scores[1]}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row | {"prompt": f"{i}?"}) + "\n" for i in range(3)))
    report = check_data(DataConfig(path=str(path)), needs={"pairs", "reward_score"}, progress=False)
    assert report.sound
    told = [f.detail for f in report.findings if f.title == "reward scores"]
    assert len(told) == bool(words)
    assert all(words in t for t in told)
