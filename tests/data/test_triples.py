"""Triples of gold, chosen and rejected: made of rated lists, or given and checked."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.config import DataConfig
from prefopt.data.example import Example
from prefopt.data.fields import TeachesNothing, Unreadable
from prefopt.data.prepare import prepare_text
from prefopt.data.rule import fit
from prefopt.data.validate import check_data
from prefopt.errors import PrefoptError
from tests.data.families import tokenizer
from tests.data.test_layouts import write

TRIPLE = frozenset({"pairs", "gold"})
LIST = Example("q", ("c", "a", "e", "b", "d"), notes={"score": [3.0, 5.0, 1.0, 4.0, 2.0]})


def made(example: Example, needs: frozenset[str] = TRIPLE, **options: Any) -> tuple[Any, ...]:
    found = fit(example, DataConfig(path="none", **({"pairing": "triple"} | options)), needs)
    ((w, l),) = found.pairs
    assert len(found.responses) == 2
    return found.gold, found.responses[w], found.responses[l], found.notes.get("margin")


@pytest.mark.parametrize(("rank", "chosen", "margin"), [(2, "b", 3.0), (3, "c", 2.0), (4, "d", 1.0)])
def test_gold_is_the_best_chosen_of_its_rank_rejected_the_last(rank: int, chosen: str, margin: float) -> None:
    assert made(LIST, chosen_rank=rank) == ("a", chosen, "e", [margin])


def test_ranks_and_objectives_order_as_well() -> None:
    ranked = Example("q", ("x", "y", "z"), notes={"rank": [3, 1, 2]})
    assert made(ranked) == ("y", "z", "x", None)
    several = Example("q", ("x", "y", "z"), notes={"scores/kind": [1.0, 2.0, 3.0], "scores/brief": [3.0, 1.0, 2.0]})
    assert made(several, objective="kind") == ("z", "y", "x", [1.0])
    assert made(several, objective="brief") == ("x", "z", "y", [1.0])


def test_a_method_without_gold_sees_the_same_pair() -> None:
    assert made(LIST, frozenset({"pairs"})) == made(LIST)


@pytest.mark.parametrize(
    ("answers", "scores", "options", "why"),
    [
        (["a", "b"], [2, 1], {}, "fewer than 3 distinct"),
        (["a", "b", "c"], [3, 2, 1], {"chosen_rank": 3}, "fewer than 4 distinct"),
        (["a", "b", " a "], [3, 2, 1], {}, "fewer than 3 distinct"),
        (["a", "b", " "], [3, 2, 1], {}, "fewer than 3 distinct"),
        (["a", "b", "c"], [3, 2, math.nan], {}, "fewer than 3 distinct"),
        (["a", "b", "c"], [3, 3, 1], {}, "a tie of gold and chosen"),
        (["a", "b", "c"], [3, 1, 1], {}, "a tie of chosen and rejected"),
        (["a", "b", "c"], [1, 1, 1], {}, "a tie of gold and chosen"),
    ],
)
def test_what_is_dropped(answers: list[str], scores: list[float], options: dict[str, Any], why: str) -> None:
    with pytest.raises(TeachesNothing, match=why):
        made(Example("q", tuple(answers), notes={"score": scores}), **options)


def test_a_repetition_counts_once_at_its_best() -> None:
    repeated = Example("q", ("a", "b", "a", "c"), notes={"score": [1.0, 3.0, 4.0, 2.0]})
    assert made(repeated) == ("a", "b", "c", [1.0])


def test_what_cannot_be_ordered_is_refused() -> None:
    with pytest.raises(Unreadable, match="nothing that orders them"):
        made(Example("q", ("a", "b", "c")))
    with pytest.raises(Unreadable, match="has 'gold'"):
        made(Example("q", ("a", "b", "c"), notes={"score": [3, 2, 1]}, gold="d"))
    with pytest.raises(Unreadable, match=r"no 'gold'.*pairing = triple"):
        fit(Example("q", ("a", "b"), ((0, 1),)), DataConfig(path="none"), TRIPLE)


def given(**scores: float) -> Example:
    notes: dict[str, Any] = {"gold_score": [scores["gold"]]} if "gold" in scores else {}
    notes |= {"score": [scores["chosen"], scores["rejected"]]} if "chosen" in scores else {}
    return Example("q", ("good", "bad"), ((0, 1),), notes, gold="best")


def test_given_triples_are_checked_by_their_scores() -> None:
    config = DataConfig(path="none")
    assert fit(given(), config, TRIPLE).gold == "best"
    assert fit(given(gold=3, chosen=2, rejected=1), config, TRIPLE).gold == "best"
    for scores, words in (
        ({"chosen": 1, "rejected": 2}, "chosen response 1 and its rejected one 2"),
        ({"gold": 1, "chosen": 3, "rejected": 2}, "gold response 1 and its chosen one 3"),
    ):
        with pytest.raises(Unreadable, match=words):
            fit(given(**scores), config, TRIPLE)
    with pytest.raises(TeachesNothing, match="gold and chosen"):
        fit(given(gold=2, chosen=2, rejected=1), config, TRIPLE)
    with pytest.raises(TeachesNothing, match="chosen and rejected"):
        fit(given(gold=2, chosen=1, rejected=1), config, TRIPLE)


@pytest.mark.parametrize(("needs", "kept"), [(TRIPLE, True), (frozenset({"pairs"}), False)])
def test_a_gold_that_nobody_asked_for_takes_no_room(needs: frozenset[str], kept: bool, tmp_path: Path) -> None:
    config = DataConfig(path=str(write(tmp_path / "d.jsonl", rows(0, 3))))
    found = prepare_text(config, tokenizer("plain"), needs=needs, cache=tmp_path / "cache", progress=False)
    assert (found.train[0].gold_ids is not None) == kept


def test_chosen_rank_needs_triples() -> None:
    with pytest.raises(ValueError, match="chosen_rank has no effect"):
        DataConfig(path="none", pairing="all", chosen_rank=3)


def rows(same: int, n: int = 100) -> list[dict[str, Any]]:
    return [
        {"prompt": f"q {i}", "chosen": f"good {i}", "rejected": "bad", "gold": f"good {i}" if i < same else f"best {i}",
         "gold_score": 3, "chosen_score": 2, "rejected_score": 1}
        for i in range(n)
    ]  # fmt: skip


@pytest.mark.parametrize(("same", "told"), [(1, False), (2, True)])
def test_gold_identical_to_chosen_is_warned_of(
    same: int, told: bool, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write(tmp_path / "d.jsonl", rows(same))
    config = DataConfig(path=str(path))
    with caplog.at_level(logging.WARNING, logger="prefopt"):
        found = prepare_text(config, tokenizer("plain"), needs=TRIPLE, cache=tmp_path / "cache", progress=False)
    assert ("gold identical to chosen" in caplog.text) == told
    assert found.record["encoding"]["gold identical to chosen"] == same
    finding = next(f for f in check_data(config, needs=TRIPLE).findings if f.title == "gold identical to chosen")
    assert (finding.severity, finding.count) == ("warn", same)


def test_drops_are_counted_and_too_many_stop_the_run(tmp_path: Path) -> None:
    ties = [{"prompt": f"q {i}", "responses": ["a", "b", "c"], "scores": [2, 2, 1]} for i in range(3)]
    good = [{"prompt": f"p {i}", "responses": ["a", "b", "c"], "scores": [3, 2, 1]} for i in range(7)]
    path = tmp_path / "d.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in ties + good))
    with pytest.raises(PrefoptError, match="3 x a tie of gold and chosen"):
        prepare_text(DataConfig(path=str(path), pairing="triple"), tokenizer("plain"), needs=TRIPLE,
                     cache=tmp_path / "cache", progress=False)  # fmt: skip
    found = prepare_text(DataConfig(path=str(path), pairing="triple", max_dropped=0.5), tokenizer("plain"),
                         needs=TRIPLE, cache=tmp_path / "cache", progress=False)  # fmt: skip
    assert found.record["dropped"]["a tie of gold and chosen"]["count"] == 3
    assert len(found.train) == 7
    one = found.train[0]
    assert [tokenizer("plain").decode(x).strip() for x in (one.gold_ids, *one.response_ids)] == [
        "a</s>",
        "b</s>",
        "c</s>",
    ]
