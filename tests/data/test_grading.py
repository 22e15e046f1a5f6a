"""Key phrases, graded versions and their encoding; labels, order and steps of ranked lists."""

from __future__ import annotations

import json
import random
from itertools import pairwise
from pathlib import Path

import pytest

from prefopt import PrefoptError
from prefopt.data.config import DataConfig
from prefopt.data.encode import Encoder
from prefopt.data.example import Example
from prefopt.data.fields import TeachesNothing, Unreadable
from prefopt.data.grading import Grading, grades, key_phrases, without
from prefopt.data.lists import ALL_EQUAL, TOO_SHORT, as_list, split_steps, with_steps
from prefopt.data.prepare import prepare_text
from prefopt.data.stop_words import ENGLISH
from tests.small_models import tokenizer

STOP = frozenset({"the", "of", "a", "and", "is"})
TEXT = "Large models; the price of large models"


def test_rake_by_the_example() -> None:
    found = key_phrases(TEXT, STOP)
    assert [(p.text, p.score) for p in found] == [("large models", 4.0), ("price", 1.0)]
    assert [TEXT[a:b] for a, b in found[0].spans] == ["Large models", "large models"]


def test_rake_against_its_definition() -> None:
    """Scores by counting, on random texts."""
    g = random.Random(0)
    words = ["the", "of", "red", "well-known", "fox", "it's", "Fox", "runs"]
    for _ in range(50):
        text = "".join(g.choice(words) + g.choice([" ", " ", ", ", "\n", ". "]) for _ in range(12))
        runs: list[list[str]] = []
        for part in text.replace(",", ".").split("."):
            runs.append([])
            for word in part.lower().split():
                if word in STOP:
                    runs.append([])
                else:
                    runs[-1].append(word)
        runs = [r for r in runs if r]
        flat = [(w, len(r)) for r in runs for w in r]
        ratio = {w: sum(n for x, n in flat if x == w) / sum(x == w for x, _ in flat) for w, _ in flat}
        expected = {" ".join(r): sum(ratio[w] for w in r) for r in runs}
        found = key_phrases(text, STOP)
        assert {p.text: p.score for p in found} == pytest.approx(expected)
        assert [p.score for p in found] == sorted((p.score for p in found), reverse=True)
        for p in found:
            assert all(" ".join(text[a:b].lower().split()) == p.text for a, b in p.spans)
            assert len(p.spans) == [" ".join(r) for r in runs].count(p.text)
        for p, q in pairwise(found):
            assert p.score > q.score or p.spans[0] < q.spans[0]


def test_levels_cut_whole_runs_and_keep_the_rest() -> None:
    made = grades(TEXT, (0, 0.5, 1), STOP)
    assert [g.text for g in made] == [TEXT, "; the price of", "; the of"]
    assert all(g.valid for g in made)
    longer = grades("price. the price list", (0, 0.5, 1), STOP)  # cutting a phrase leaves longer runs alone
    assert longer[1].text in ("price. the", ". the price list")
    assert without("a  b\n c", [(3, 4)]) == "a c"


def test_levels_that_cannot_be_told_apart_are_not_valid() -> None:
    assert [g.valid for g in grades("the price", (0, 0.5, 1), STOP)] == [True, False, True]  # 1 phrase: 0, 1, 1 cut
    assert [g.valid for g in grades("a red fox and a fox", (0, 0.25, 0.5, 0.9), STOP)] == [True, False, True, True]
    assert not any(g.valid for g in grades("price", (0, 0.5, 1), STOP))  # nothing would be left
    assert not any(g.valid for g in grades("the of", (0, 0.5, 1), STOP))  # nothing to cut


def encoder(grading: Grading, **data: object) -> Encoder:
    return Encoder(tokenizer(), DataConfig(path="x", **data), grading)  # type: ignore[arg-type]


PAIR = Example("Tell me: ", ("The film is great and the plot is dull.", "the of"), ((0, 1),))


def test_versions_are_encoded_as_answers_to_the_same_prompt() -> None:
    words = encoder(Grading((0.0, 0.5, 1.0)))
    e = words(PAIR)
    assert e.notes["graded_valid"] == [[1, 1, 1], [0, 0, 0]]
    assert [[bool(ids) for ids in levels] for levels in e.graded_ids] == [[False, True, True], [False] * 3]
    texts = [words.tokenizer.decode(ids) for ids in e.graded_ids[0][1:]]
    assert texts == [g.text + "</s>" for g in grades(PAIR.responses[0], (0, 0.5, 1), ENGLISH)[1:]]
    plain = Encoder(tokenizer(), DataConfig(path="x"))(PAIR)  # type: ignore[call-arg]
    assert (e.prompt_ids, e.response_ids) == (plain.prompt_ids, plain.response_ids)
    assert e.tokens == plain.tokens + sum(map(len, e.graded_ids[0]))
    only = encoder(Grading((0.0, 1.0), sides="rejected"))(PAIR)
    assert only.notes["graded_valid"] == [[0, 0], [0, 0]]
    assert not any(ids for levels in only.graded_ids for ids in levels)


def test_chat_answers_lose_their_last_turns_words() -> None:
    turns = [{"role": "assistant", "content": PAIR.responses[0]}]
    chat = Example(
        [{"role": "user", "content": "Tell me"}], (turns, [{"role": "assistant", "content": "Warm."}]), ((0, 1),)
    )
    e = encoder(Grading((0.0, 1.0)), chat_template="plain")(chat)
    assert e.notes["graded_valid"] == [[1, 1], [1, 1]]
    assert grades(PAIR.responses[0], (0, 1))[1].text in tokenizer().decode(e.graded_ids[0][1])


def test_hidden_versions_leave_out_the_tokens_of_the_cut_phrases() -> None:
    words = encoder(Grading((0.0, 0.5, 1.0), "hidden"))
    e = words(PAIR)
    assert not any(ids for levels in e.graded_ids for ids in levels)
    left = [
        words.tokenizer.decode([i for i, on in zip(e.response_ids[0], mask, strict=True) if on])
        for mask in e.graded_mask[0]
    ]
    assert left[0] == PAIR.responses[0] + "</s>"
    squeezed = [g.text.replace(" ", "") + "</s>" for g in grades(PAIR.responses[0], (0, 0.5, 1), ENGLISH)]
    assert [x.replace(" ", "") for x in left] == squeezed


def test_versions_that_truncation_makes_equal_are_not_valid() -> None:
    long = Example("Tell me: ", ("The plot of the film is warm. " * 6 + "Great camera!", "Dull."), ((0, 1),))
    e = encoder(Grading((0.0, 0.2, 1.0)), max_length=30)(long)
    kept = [tuple(ids or e.response_ids[0]) for ids, ok in zip(e.graded_ids[0], e.notes["graded_valid"][0]) if ok]
    assert len(kept) == len(set(kept))


def prepared(tmp_path: Path, rows: list[dict], needs: set[str], grading: Grading | None = None, **data: object):
    path = tmp_path / "data.jsonl"
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = DataConfig(path=str(path), **data)  # type: ignore[arg-type]
    return prepare_text(config, tokenizer(), needs=needs, grading=grading, cache=tmp_path / "cache", progress=False)


def test_columns_of_versions_are_taken_as_they_are(tmp_path: Path) -> None:
    row = {
        "prompt": "p",
        "chosen": "a warm film",
        "rejected": "dull",
        "chosen_degraded": ["a warm film", "a film", "a"],
    }
    grading, needs = Grading((0.0, 0.5, 1.0)), {"pairs", "graded"}
    e = prepared(tmp_path, [row | {"rejected_degraded": ["dull", "", "dull"]}] * 2, needs, grading).train[0]
    assert e.notes["graded_valid"] == [[1, 1, 1], [0, 0, 0]]
    assert [tokenizer().decode(ids) for ids in e.graded_ids[0][1:]] == ["a film</s>", "a</s>"]
    with pytest.raises(PrefoptError, match="2 graded versions of an answer, and the method has 3 levels"):
        prepared(tmp_path, [row | {"chosen_degraded": ["a warm film", "a"]}], needs, grading)
    with pytest.raises(PrefoptError, match="is not the answer itself"):
        prepared(tmp_path, [row | {"chosen_degraded": ["a", "b", "c"]}], needs, grading)


def test_data_without_any_version_is_refused_and_stop_words_change_them(tmp_path: Path) -> None:
    rows = [{"prompt": "p", "chosen": "zig", "rejected": "zag"}]
    with pytest.raises(PrefoptError, match="no answer has two graded versions"):
        prepared(tmp_path, rows, {"pairs", "graded"}, Grading((0.0, 1.0)))
    (tmp_path / "stop.txt").write_text("Zag\nand\n")
    rows = [{"prompt": "p", "chosen": "zig and zag", "rejected": "zag"}]
    made = prepared(tmp_path, rows, {"pairs", "graded"}, Grading((0.0, 1.0)), stop_words=str(tmp_path / "stop.txt"))
    assert [tokenizer().decode(ids) for ids in made.train[0].graded_ids[0][1:]] == ["and zag</s>"]
    with pytest.raises(PrefoptError, match="data.stop_words"):
        prepared(tmp_path, rows, {"pairs", "graded"}, Grading((0.0, 1.0)), stop_words=str(tmp_path / "none.txt"))


# ---- ranked lists


def ranked(*scores: float, **more: object) -> Example:
    return Example("p", tuple(f"answer {i}" for i in range(len(scores))), notes={"score": list(scores)}, **more)  # type: ignore[arg-type]


def config(**given: object) -> DataConfig:
    return DataConfig(path="x", **given)  # type: ignore[arg-type]


def test_labels_by_range_by_list_and_by_rank() -> None:
    e = ranked(100, -100, 50, 50)
    assert as_list(e, config()).notes["value"] == [1, 0, 0.75, 0.75]
    assert as_list(e, config(score_range=(-100, 300))).notes["value"] == [0.5, 0, 0.375, 0.375]
    assert as_list(ranked(3, 1, 2), config(list_labels="minmax")).notes["value"] == [1, 0, 0.5]
    assert as_list(ranked(9, 1, 2, 2), config(list_labels="rank")).notes["value"] == [1, 0, 0.5, 0.5]
    pair = Example("p", ("good", "bad"), ((0, 1),))
    assert as_list(pair, config()).notes["value"] == [1, 0]


def test_the_best_comes_first_or_the_list_is_refused() -> None:
    e = ranked(10, 50, 20, steps=(("a",), ("b",), ("c",)))
    made = as_list(e, config())
    assert made.responses == ("answer 1", "answer 2", "answer 0")
    assert made.steps == (("b",), ("c",), ("a",))
    assert made.notes["score"] == [50, 20, 10]
    assert made.notes["value"] == sorted(made.notes["value"], reverse=True)
    with pytest.raises(Unreadable, match="first answer is not"):
        as_list(e, config(best_first="error"))
    assert as_list(ranked(50, 10, 20), config(best_first="error")).responses[1] == "answer 1"


def test_lists_that_teach_nothing_or_break_their_range() -> None:
    with pytest.raises(TeachesNothing, match=TOO_SHORT):
        as_list(ranked(50), config())
    with pytest.raises(TeachesNothing, match=TOO_SHORT):
        as_list(ranked(50, float("nan")), config())
    with pytest.raises(TeachesNothing, match=ALL_EQUAL):
        as_list(ranked(50, 50), config())
    with pytest.raises(Unreadable, match=r"outside data.score_range = \[-100, 100\]"):
        as_list(ranked(101, 50), config())
    with pytest.raises(PrefoptError, match="list_labels = rank"):
        as_list(Example("p", ("a", "b"), notes={"rank": [1.0, 2.0]}), config())
    with pytest.raises(ValueError, match="score_range"):
        config(score_range=(1, 1))
    with pytest.raises(ValueError, match="no effect"):
        config(score_range=(0, 1), list_labels="rank")


def test_steps_by_a_marker() -> None:
    import re

    text = "\nStep 1: add.\nStep 2: divide.\nStep 3: done.\n"
    steps = split_steps(text, re.compile(r"(?=^Step \d)", re.MULTILINE))
    assert "".join(steps) == text
    assert [s.strip() for s in steps] == ["Step 1: add.", "Step 2: divide.", "Step 3: done."]
    assert split_steps("no marker", re.compile("Step")) == ["no marker"]
    made = with_steps(Example("p", (text, "none")), r"^Step \d")
    assert made.steps is not None
    assert [len(s) for s in made.steps] == [3, 1]
    with pytest.raises(Unreadable, match="data.step_marker"):
        with_steps(Example("p", ("a",)), None)


def test_a_list_gets_the_same_number_of_steps_in_every_answer(tmp_path: Path) -> None:
    row = {"prompt": "p", "steps": [["one.", "two.", "three."], ["one.", "four."]], "scores": [100, -20]}
    needs = {"value", "step_index", "common_steps"}
    made = prepared(tmp_path, [row], needs)
    for index in made.train[0].notes["step_index"]:
        assert index == sorted(index)
        assert (index[0], index[-1]) == (1, 2)
    alone = prepared(tmp_path, [row], {"value", "step_index"}).train[0].notes["step_index"]
    assert [max(x) for x in alone] == [3, 2]
    with pytest.raises(PrefoptError, match="empty step"):
        prepared(tmp_path, [row | {"steps": [["one.", " "], ["b"]]}], needs)
    with pytest.raises(PrefoptError, match="finite number"):
        prepared(tmp_path, [row | {"scores": ["high", 1]}], needs)
    unmarked = {"prompt": "p", "responses": ["Step 1", "none"], "scores": [9, 1]}
    made = prepared(tmp_path, [unmarked], needs, step_marker=r"^Step")
    assert made.record["encoding"]["answers of one step"] == 2
