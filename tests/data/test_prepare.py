"""The whole way from files to a stored, tokenised set."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.config import DataConfig
from prefopt.data.prepare import Prepared, prepare_text
from prefopt.errors import PrefoptError
from tests.data.families import tokenizer
from tests.data.test_layouts import write

QUESTIONS = ["What is the capital of France?", "hello there", "How are you?", "Who is it?"]


def rows(count: int = 40, **more: Any) -> list[dict[str, Any]]:
    return [
        {"prompt": f"{QUESTIONS[i // 2 % 4]} {i // 2}", "chosen": f" good {i}", "rejected": " bad", **more}
        for i in range(count)
    ]


def prepare(path: Path, *needs: str, tok: Any = None, **options: Any) -> Prepared:
    cache = path.parent / "cache"
    return prepare_text(
        DataConfig(path=str(path), **options), tok or tokenizer("plain"), needs=needs, cache=cache, progress=False
    )


def test_examples_come_back_as_they_were_encoded(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", rows())
    made = prepare(path, "pairs")
    tok = tokenizer("plain")
    assert len(made.train) == 40
    assert made.eval is None
    seventh = made.train[7]
    assert tok.decode(seventh.prompt_ids) == "<s>Who is it? 3"
    assert [tok.decode(r) for r in seventh.response_ids] == [" good 7</s>", " bad</s>"]
    assert (seventh.index, seventh.row, seventh.file, seventh.pairs, seventh.notes) == (7, 8, str(path), [[0, 1]], {})
    assert seventh.gold_ids is None
    assert made.train.tokens[7] == seventh.tokens == len(seventh.prompt_ids) + sum(map(len, seventh.response_ids))
    assert made.record["rows"] == made.record["train"]["examples"] == 40
    assert made.record["fingerprint"] == made.train.fingerprint


def test_notes_gold_and_names(tmp_path: Path) -> None:
    data = rows(margin=0.5, weight=2, gold=" best", scores={"help": [1, None]})
    for i, row in enumerate(data):
        row["annotator"] = ["2", "10", "1"][i % 3]
        row["domain"] = "law" if i else None
    data[3]["label_probability"] = 0.8
    path = write(tmp_path / "d.jsonl", data)
    made = prepare(path, "pairs", "gold", use=["margin"])
    assert made.record["names"] == {"annotator": ["1", "2", "10"]}
    assert [made.train[i].notes["annotator"] for i in range(3)] == [[1], [2], [0]]
    assert made.record["incomplete_notes"] == {"domain": 39}
    together = made.train.__getitems__([5, 0, 5])
    assert repr(together) == repr([made.train[i] for i in (5, 0, 5)])  # some notes are nan
    first = made.train[0]
    assert set(first.notes) == {"margin", "annotator", "scores/help"}  # weight was not asked for
    assert first.notes["margin"] == [0.5]
    assert math.isnan(first.notes["scores/help"][1])
    assert tokenizer("plain").decode(first.gold_ids or []) == " best</s>"
    with pytest.raises(PrefoptError, match="has no 'label_probability'"):
        prepare(path, "pairs", use=["label_probability"])


def test_methods_may_ask_for_columns_of_their_own(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", rows(hardness=3, psi=[1, 2]))
    made = prepare(path, "pairs", "hardness", "psi")
    assert made.train[0].notes == {"hardness": [3.0], "psi": [1.0, 2.0]}
    assert prepare(path, "pairs").train[0].notes == {}


def test_steps_and_labels_are_stored(tmp_path: Path) -> None:
    data = [
        {"prompt": f"q {i}", "steps": [{"text": "one", "score": 1}, {"text": "two"}], "label": i == 0} for i in range(3)
    ]
    made = prepare(write(tmp_path / "d.jsonl", data), "label", "step_index")
    notes = made.train[0].notes
    assert notes["label"] == [True]
    assert set(notes["step_index"][0]) == {1, 2}
    assert notes["step_score"][0][0] == 1


def test_eval_fraction_is_deterministic_and_shares_no_prompt(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", rows(200))
    made = prepare(path, "pairs", eval_fraction=0.25)
    assert made.eval is not None
    sides = [{tuple(s[i].prompt_ids) for i in range(len(s))} for s in (made.train, made.eval)]
    assert len(sides[0]) + len(sides[1]) == 100  # every prompt occurs twice
    assert not sides[0] & sides[1]
    assert 30 <= len(made.eval) <= 76
    assert len(made.eval) + len(made.train) == 200
    other = prepare(path, "pairs", eval_fraction=0.25, seed=1)
    assert other.eval is not None
    assert {tuple(other.eval[i].prompt_ids) for i in range(len(other.eval))} != sides[1]
    with pytest.raises(PrefoptError, match="no example is left for eval"):
        prepare(write(tmp_path / "e.jsonl", rows(1)), "pairs", eval_fraction=1e-9)


def test_eval_path(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", rows(annotator="a"))
    held_out = write(tmp_path / "e.jsonl", rows(6, annotator="b"))
    made = prepare(path, "pairs", eval_path=str(held_out))
    assert made.eval is not None
    assert (len(made.train), len(made.eval)) == (40, 6)
    assert made.record["names"] == {"annotator": ["a", "b"]}
    assert made.eval[0].notes == {"annotator": [1]}
    assert made.record["eval_data"]["rows"] == 6


def test_the_rule_stops_before_anything_is_stored(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [*rows(), {"prompt": "q", "chosen": None, "rejected": "x"}])
    with pytest.raises(PrefoptError, match=r"(?s)1 of 41 rows cannot be read.*row 41: 'chosen' is null"):
        prepare(path, "pairs")
    path = write(tmp_path / "d.jsonl", [*rows(), *[{"prompt": "q", "chosen": "x", "rejected": "x"}] * 3])
    with pytest.raises(PrefoptError, match=r"3 of 43 rows teach nothing \(7.0%"):
        prepare(path, "pairs")
    assert not list((tmp_path / "cache").glob("*"))
    made = prepare(path, "pairs", max_dropped=0.1)
    assert made.record["dropped"] == {"identical answers": {"count": 3, "rows": {str(path): [41, 42, 43]}}}


def test_rows_dropped_by_length_count_too(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", [*rows(), {"prompt": "hello there " * 50, "chosen": "x", "rejected": "y"}])
    made = prepare(path, "pairs", max_length=60)
    assert made.record["dropped"] == {"a prompt over the limit": {"count": 1, "rows": {str(path): [41]}}}
    with pytest.raises(PrefoptError, match="1 x a prompt over the limit"):
        prepare(path, "pairs", max_length=60, max_dropped=0.01)


def test_fingerprint_follows_everything_that_matters(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", rows())
    first = prepare(path, "pairs")
    prints = {first.record["fingerprint"]}
    other = [(("label",), {}), (("pairs",), {"max_length": 99}), (("pairs",), {"thinking": "strip"}),
             (("pairs",), {"chat_template": "plain"}), (("pairs",), {"tok": tokenizer("llama3")})]  # fmt: skip
    for needs, options in other:
        prints.add(prepare(path, *needs, **options).record["fingerprint"])
    write(path, rows(39))
    prints.add(prepare(path, "pairs").record["fingerprint"])
    assert len(prints) == 7
    assert len(first.train) == 40


def test_a_prepared_set_is_opened_not_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "d.jsonl", rows())
    first = prepare(path, "pairs")
    monkeypatch.setattr("prefopt.data.prepare.read_examples", None)
    again = prepare(path, "pairs")
    assert again.record == first.record
    assert again.train[3] == first.train[3]
    assert not [f for f in (tmp_path / "cache").iterdir() if f.name != first.train.fingerprint]


def test_an_interrupted_preparation_is_made_anew(tmp_path: Path) -> None:
    path = write(tmp_path / "d.jsonl", rows())
    fingerprint = prepare(path, "pairs").train.fingerprint
    (tmp_path / "cache" / fingerprint / "record.json").unlink()
    assert len(prepare(path, "pairs").train) == 40
    json.loads((tmp_path / "cache" / fingerprint / "record.json").read_text())


def test_images_in_text_data_are_refused(tmp_path: Path) -> None:
    from PIL import Image

    Image.new("RGB", (2, 2)).save(tmp_path / "x.png")
    with pytest.raises(PrefoptError, match="images or videos, which text models cannot see"):
        prepare(write(tmp_path / "d.jsonl", rows(image="x.png")), "pairs")


def test_what_was_dropped_is_said_each_time(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = write(tmp_path / "d.jsonl", [*rows(), {"prompt": "q", "chosen": "x", "rejected": "x"}])
    for _ in range(2):
        caplog.clear()
        prepare(path, "pairs")
        assert "of 41 rows dropped: 1 x identical answers" in caplog.text
