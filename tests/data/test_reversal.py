"""Preferences turned round: pairs, labels, scores and ranks of every kind of data, and what has no reverse."""

import json

import pytest

from prefopt import PrefoptError, get_method
from prefopt.config import make
from prefopt.data.config import DataConfig
from prefopt.data.rule import Ledger
from prefopt.data.source import read_examples
from prefopt.training.effect import refuse_without_effect

PAIR = {"prompt": "which?", "chosen": "good", "rejected": "bad", "margin": 2.0, "label_probability": 0.8, "weight": 3}
LIST = {"prompt": "which?", "responses": ["first", "second", "third"], "scores": [0.2, 0.9, 0.5]}


def read(tmp_path, row, needs, **settings):
    path = tmp_path / "rows.jsonl"
    path.write_text(json.dumps(row) + "\n")
    config = DataConfig(path=str(path), swap_preferences=True, **settings)
    ledger = Ledger()
    (example,) = read_examples(config, config.paths, ledger, needs=needs)
    return example


def test_pairs_are_exchanged_and_what_is_said_of_them_stays(tmp_path):
    e = read(tmp_path, PAIR, {"pairs"})
    assert [e.responses[i] for i in e.pairs[0]] == ["bad", "good"]
    assert (e.notes["margin"], e.notes["label_probability"], e.notes["weight"]) == ([2.0], [0.8], [3.0])


def test_lists_become_pairs_from_the_worst_on(tmp_path):
    e = read(tmp_path, LIST, {"pairs", "score"}, pairing="best_worst")
    assert [e.responses[i] for i in e.pairs[0]] == ["first", "second"]
    assert dict(zip(e.responses, e.notes["score"], strict=True))["second"] == -0.9
    ranked = {"prompt": "which?", "responses": ["a", "b", "c"], "ranks": [1, 3, 2]}
    e = read(tmp_path, ranked, {"pairs", "rank"}, pairing="all")
    assert e.notes["rank"] == [3, 1, 2]
    assert all(e.notes["rank"][better] < e.notes["rank"][worse] for better, worse in e.pairs)


def test_labels_are_inverted(tmp_path):
    assert read(tmp_path, {"prompt": "a", "completion": "b", "label": True}, {"label"}).notes["label"] == [False]
    e = read(tmp_path, PAIR, {"label"})
    assert dict(zip(e.responses, e.notes["label"], strict=True)) == {"good": False, "bad": True}


def test_whose_samples_the_sides_are_follows(tmp_path):
    row = PAIR | {"chosen_source": "on", "rejected_source": "off"}
    assert read(tmp_path, row, {"pairs"}).notes["scenario"] == ["off-on"]


def test_ties_are_dropped_all_the_same(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(PAIR | {"label_probability": p}) + "\n" for p in (0.5, 0.9)))
    config = DataConfig(path=str(path), swap_preferences=True)
    assert len(list(read_examples(config, config.paths, ledger := Ledger(), needs={"pairs"}))) == 1
    assert ledger.dropped_counts == {"a tie": 1}


@pytest.mark.parametrize(
    ("method", "why"),
    [
        ("self-npo", "reads no preferences"),
        ("triple-tpo", "the reverse of 'gold'"),
        ("tree-tpo", "the reverse of 'common_steps'"),
    ],
)
def test_where_it_has_no_meaning_it_is_refused(method, why):
    config = make({"method": method, "model": "m", "data": {"path": "d", "swap_preferences": True}, "output": "o"})
    with pytest.raises(PrefoptError, match=f"data.swap_preferences has no effect: .*{why}"):
        refuse_without_effect(config, get_method(method), "text" if method != "self-npo" else "diffusion")


def test_methods_of_whole_lists_read_negated_scores():
    config = make({"method": "lipo", "model": "m", "data": {"path": "d", "swap_preferences": True}, "output": "o"})
    refuse_without_effect(config, get_method("lipo"), "text")
