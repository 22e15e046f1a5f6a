"""The rule for rows, and what lists and pairs become."""

from __future__ import annotations

import math
from typing import Any

import pytest

from prefopt.data.config import DataConfig
from prefopt.data.example import Example
from prefopt.data.fields import TeachesNothing, Unreadable
from prefopt.data.pairing import keep_responses, pair_up, preference, to_labelled
from prefopt.data.rule import Ledger, fit
from prefopt.errors import PrefoptError

PAIR = Example("q", ("good", "bad"), ((0, 1),))
LIST = Example("q", ("a", "b", "c", "d"), notes={"score": [0.2, 0.9, 0.2, 0.5]})
SILENT = {"role": "assistant", "content": ""}
PAIRS = frozenset({"pairs"})


def config(**options: Any) -> DataConfig:
    return DataConfig(path="none", **options)


@pytest.mark.parametrize(("pairing", "pairs"), [
    ("best_worst", ((1, 2),)),
    ("best_rest", ((1, 3), (1, 0), (1, 2))),
    ("adjacent", ((1, 3), (3, 0))),
    ("all", ((1, 3), (1, 0), (1, 2), (3, 0), (3, 2))),
])  # fmt: skip
def test_pairings_leave_ties_out(pairing: Any, pairs: Any) -> None:
    made = pair_up(LIST, config(pairing=pairing))
    assert made.pairs == pairs
    scores = LIST.notes["score"]
    assert made.notes["margin"] == [scores[a] - scores[b] for a, b in pairs]


def test_lists_need_a_choice_unless_they_are_pairs() -> None:
    with pytest.raises(
        PrefoptError, match=r"list of 4 responses: set data\.pairing to one of best_worst, best_rest, adjacent, all"
    ):
        pair_up(LIST, config())
    assert pair_up(keep_responses(LIST, [0, 1]), config()).pairs == ((1, 0),)
    with pytest.raises(Unreadable, match="nothing that orders them"):
        pair_up(Example("q", ("a", "b")), config())


def test_missing_ratings_make_no_pair_and_notes_follow() -> None:
    unknown = Example("q", ("a", "b", "c"), notes={"score": [math.nan, 1, 2], "annotator": ["7"], "weight": [3.0]})
    made = pair_up(unknown, config(pairing="all"))
    assert made.pairs == ((2, 1),)
    several = pair_up(
        Example("q", ("a", "b", "c"), notes={"score": [3, 1, 2], "annotator": ["7"]}), config(pairing="all")
    )
    assert several.notes["annotator"] == ["7"] * 3


def test_objectives_are_chosen_by_name() -> None:
    notes = {"scores/help": [1.0, 2.0], "scores/truth": [5.0, math.nan]}
    rated = Example("q", ("a", "b"), notes=notes, file="f", row=3)
    assert pair_up(rated, config(objective="help")).pairs == ((1, 0),)
    assert pair_up(rated, config(objective="mean")).pairs == ((0, 1),)
    with pytest.raises(PrefoptError, match=r"f row 3: .*help, truth.*set data\.objective"):
        pair_up(rated, config())
    with pytest.raises(Unreadable, match=r"'wit'.*it has help, truth"):
        pair_up(rated, config(objective="wit"))


def test_soft_labels() -> None:
    assert preference(0.9, 0.5) == pytest.approx(0.9)
    assert preference(0.9, 0.1) == pytest.approx(81 / 82)
    assert preference(0.3, 0.3) == 0.5
    soft = pair_up(LIST, config(pairing="best_worst", soft_labels="logistic"))
    assert soft.notes["label_probability"] == [pytest.approx(1 / (1 + math.exp(-0.7)))]
    with pytest.raises(Unreadable, match=r"needs scores in \[0, 1\]"):
        preference(3, 1)
    own = Example("q", ("a", "b"), ((0, 1),), {"score": [1, 0], "label_probability": [0.7], "margin": [9]})
    kept = pair_up(own, config(soft_labels="logistic"))
    assert (kept.notes["label_probability"], kept.notes["margin"]) == ([0.7], [9])


@pytest.mark.parametrize(("example", "reason"), [
    (Example("q", ("same ", "same"), ((0, 1),)), "identical answers"),
    (Example("q", ("", "bad"), ((0, 1),)), "an empty answer"),
    (Example("q", ("good", " \n"), ((0, 1),)), "an empty answer"),
    (Example("q", ([SILENT], [{"role": "assistant", "content": "x"}]), ((0, 1),)), "an empty answer"),
    (Example(" ", ("good", "bad"), ((0, 1),)), "an empty prompt"),
    (Example("q", ("good", "bad"), ((0, 1),), {"label_probability": [0.5]}), "a tie"),
    (Example("q", ("good", "bad"), (), {"score": [1, 1]}), "a tie"),
])  # fmt: skip
def test_what_teaches_nothing(example: Example, reason: str) -> None:
    with pytest.raises(TeachesNothing, match=reason):
        fit(example, config(pairing="all"), PAIRS)


def test_ties_stay_where_soft_labels_are_used() -> None:
    tie = Example("q", ("good", "bad"), ((0, 1),), {"label_probability": [0.5]})
    assert fit(tie, config(use=["label_probability"]), PAIRS) == tie


def test_lists_lose_only_what_is_empty_and_unpaired() -> None:
    ranked = Example("q", ("a", "", "b", "a"), notes={"score": [4, 3, 2, 1]})
    made = fit(ranked, config(pairing="all"), PAIRS)
    assert made.responses == ("a", "b", "a")
    assert made.pairs == ((0, 1), (1, 2))
    assert made.notes["score"] == [4, 2, 1]
    assert made.notes["margin"] == [2, 1]
    best = fit(LIST, config(pairing="best_worst"), PAIRS)
    assert (best.responses, best.pairs) == (("b", "c"), ((0, 1),))
    assert fit(LIST, config(pairing="best_worst"), PAIRS | {"score"}).responses == LIST.responses


def test_pairs_become_labelled_responses_and_never_the_reverse() -> None:
    made = fit(
        Example("q", ("good", "bad"), ((0, 1),), {"weight": [2.0], "margin": [1.0]}), config(), frozenset({"label"})
    )
    assert (made.pairs, made.notes) == ((), {"label": [True, False], "weight": [2.0, 2.0]})
    ranked = to_labelled(pair_up(LIST, config(pairing="all")))
    assert (ranked.responses, ranked.notes["label"]) == (("a", "b", "c", "d"), [False, True, False, True])
    single = Example("q", ("good",), (), {"label": [True]})
    assert fit(single, config(), frozenset({"label"})) == single
    assert fit(single, config(), frozenset({"pairs|label"})) == single
    assert fit(PAIR, config(), frozenset({"pairs|label"})) == PAIR
    with pytest.raises(Unreadable, match="an unpaired response with a label, and the method compares pairs"):
        fit(single, config(), PAIRS)
    with pytest.raises(Unreadable, match="a single response, and the method compares pairs"):
        fit(Example("q", ("a",)), config(), PAIRS)
    for need in ("label", "pairs|label"):
        with pytest.raises(Unreadable, match="without 'label'"):
            fit(Example("q", ("a",)), config(), frozenset({need}))
    assert fit(Example("q", ("a",)), config(), frozenset({"pairs|demonstrations"})).responses == ("a",)


def test_one_of_several_annotations_may_do() -> None:
    rated = Example("q", ("a",), (), {"score": [1.0]})
    assert fit(rated, config(), frozenset({"advantage|score"})) == rated
    with pytest.raises(Unreadable, match=r"has no .advantage\|rank"):
        fit(rated, config(), frozenset({"advantage|rank"}))


def test_needs_are_asked_of_every_row() -> None:
    for need in ("margin", "gold", "annotator", "step_index", "hardness"):
        with pytest.raises(Unreadable, match=f"has no '{'steps' if need == 'step_index' else need}'"):
            fit(PAIR, config(), PAIRS | {need})
    with pytest.raises(Unreadable, match="a prompt and no response"):
        fit(Example("q", ()), config(), frozenset())


def test_the_ledger_lists_and_stops() -> None:
    ledger = Ledger()
    for i in range(1, 101):
        ledger.rows += 1
        with ledger.row(Example("q", (), file="f", row=i)):
            if i % 20 == 0:
                raise TeachesNothing("identical answers")
    dropped = {"identical answers": {"count": 5, "rows": {"f": [20, 40, 60, 80, 100]}}}
    assert ledger.record() == {"rows": 100, "kept": 95, "dropped": dropped}
    ledger.stop_if_unreadable()
    ledger.stop_if_too_many_dropped(0.05)
    with pytest.raises(
        PrefoptError, match=r"(?s)5 of 100 rows teach nothing \(5.0%.*5 x identical answers: f rows 20, 40"
    ):
        ledger.stop_if_too_many_dropped(0.04)
    for i in range(30):
        with ledger.row(Example("q", (), file="f", row=i)):
            raise Unreadable("'chosen' is null")
    with pytest.raises(PrefoptError, match=r"(?s)30 of 100 rows.*f row 0: 'chosen' is null.*and 22 more"):
        ledger.stop_if_unreadable()
