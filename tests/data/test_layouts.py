"""Every layout, its recognition, and what every annotation becomes."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest

from prefopt.data.config import DataConfig
from prefopt.data.example import Example
from prefopt.data.layouts import LAYOUTS
from prefopt.data.rule import Ledger
from prefopt.data.source import read_examples
from prefopt.errors import PrefoptError

U, A, B = ({"role": r, "content": c} for r, c in (("user", "q"), ("assistant", "good"), ("assistant", "bad")))
HUMAN, GPT, BAD = ({"from": f, "value": v} for f, v in (("human", "q"), ("gpt", "good"), ("gpt", "bad")))
CHAT = ([U], ([A], [B]), ((0, 1),))
TEXT = ("q", ("good", "bad"), ((0, 1),))
ONE = ([U], ([A],), ())

ROWS: list[tuple[str, dict[str, Any], tuple[Any, Any, Any], dict[str, Any]]] = [
    ("pairs", {"prompt": "q", "chosen": "good", "rejected": "bad"}, TEXT, {}),
    ("pairs", {"prompt": [U], "chosen": [A], "rejected": [B]}, CHAT, {}),
    ("pairs", {"prompt": "q", "chosen": [U, A], "rejected": [U, B], "score_chosen": 9, "score_rejected": 4}, CHAT,
     {"score": [9.0, 4.0], "margin": [5.0]}),
    ("pairs", {"prompt": "q", "chosen": [A], "rejected": [B]}, CHAT, {}),
    ("pairs", {"prompt": [U], "chosen": "good", "rejected": "bad"}, CHAT, {}),
    ("implicit_prompt", {"chosen": [U, A], "rejected": [U, B]}, CHAT, {}),
    ("transcripts", {"chosen": "\n\nHuman: q\n\nAssistant: good", "rejected": "\n\nHuman: q\n\nAssistant: bad"}, CHAT, {}),
    ("transcript_prompts", {"prompt": "\n\nHuman: q\n\nAssistant:", "chosen": " good", "rejected": " bad"}, CHAT, {}),
    ("unpaired", {"prompt": "q", "completion": "good", "label": "True"}, ("q", ("good",), ()), {"label": [True]}),
    ("demonstrations", {"prompt": "q", "completion": "good"}, ("q", ("good",), ()), {}),
    ("conversations_only", {"messages": [U, A]}, ONE, {}),
    ("labelled_messages", {"messages": [U, A], "label": 0}, ONE, {"label": [False]}),
    ("lists", {"prompt": "q", "responses": ["bad", "good"], "scores": [1, 3]}, ("q", ("bad", "good"), ((1, 0),)),
     {"score": [1.0, 3.0], "margin": [2.0]}),
    ("lists", {"prompt": "q", "responses": ["bad", "good"], "ranks": [2, 1]}, ("q", ("bad", "good"), ((1, 0),)),
     {"rank": [2.0, 1.0]}),
    ("lists", {"prompt": "q", "responses": ["bad", "good"], "pairs": [[1, 0]]}, ("q", ("bad", "good"), ((1, 0),)), {}),
    ("ultrafeedback", {"instruction": "q", "completions": [
        {"response": "bad", "annotations": {"helpfulness": {"Rating": "2"}, "honesty": {"Rating": "N/A"}}},
        {"response": "good", "annotations": {"helpfulness": {"Rating": "5"}, "honesty": {"Rating": "4"}}}]},
     ("q", ("bad", "good"), ((1, 0),)),
     {"scores/helpfulness": [2.0, 5.0], "scores/honesty": [math.nan, 4.0], "margin": [3.0]}),
    ("nectar", {"prompt": "q", "answers": [{"answer": "bad", "rank": 2}, {"answer": "good", "rank": 1}]},
     ("q", ("bad", "good"), ((1, 0),)), {"rank": [2.0, 1.0]}),
    ("ranked_completions", {"context": [U], "completions": [{"rank": 0, "completion": [A]}, {"rank": 1, "completion": [B]}]},
     CHAT, {"rank": [0.0, 1.0]}),
    ("halos", {"prompt": [U], "output_A": [[B]], "output_B": [[A]], "label": 0}, CHAT, {}),
    ("argilla", {"instruction": "q", "chosen_response": "good", "rejected_response": "bad"}, CHAT, {}),
    ("intel", {"question": "q", "chosen": "good", "rejected": "bad", "system": ""}, CHAT, {}),
    ("icr", {"input": "q", "chosen": "good", "rejected": "bad"}, CHAT, {}),
    ("alpaca", {"instruction": "q", "input": "", "chosen": "good", "rejected": "bad"}, CHAT, {}),
    ("alpaca_kto", {"instruction": "q", "output": "good", "kto_tag": True}, ONE, {"label": [True]}),
    ("alpaca_demonstrations", {"instruction": "q", "output": "good"}, ONE, {}),
    ("sharegpt", {"conversations": [HUMAN], "chosen": GPT, "rejected": BAD}, CHAT, {}),
    ("sharegpt_kto", {"conversations": [HUMAN, GPT], "kto_tag": False}, ONE, {"label": [False]}),
    ("sharegpt_demonstrations", {"conversations": [HUMAN, GPT]}, ONE, {}),
    ("openai_pairs", {"messages": [U], "chosen": A, "rejected": B}, CHAT, {}),
    ("rejected_response", {"messages": [U, A], "rejected_response": "bad"}, CHAT, {}),
    ("rejected_response", {"messages": [U, A], "rejected_messages": [U, B]}, CHAT, {}),
    ("steps", {"prompt": "q", "steps": [{"text": "go", "score": 1}, {"text": "od"}], "label": True},
     ("q", ("go\nod",), ()), {"step_score": [[1.0, math.nan]], "label": [True]}),
    ("stepwise", {"prompt": "q", "completions": ["go", "od"], "labels": [True, False]}, ("q", ("go\nod",), ()),
     {"step_score": [[1.0, 0.0]]}),
    ("step_pairs", {"prompt": "q", "chosen_steps": ["good"], "rejected_steps": ["bad"]}, TEXT,
     {"step_score": [[math.nan], [math.nan]]}),
    ("step_dpo", {"prompt": "q", "initial_reason_steps": "so far. ", "chosen": "good", "rejected": "bad"},
     ("q", ("so far. good", "so far. bad"), ((0, 1),)), {"wrong_step": [2.0]}),
    ("step_dpo", {"prompt": "q", "initial_reason_steps": "", "chosen": "good", "rejected": "bad"}, TEXT, {"wrong_step": [1.0]}),
    ("prompts", {"prompt": "q", "id": 3}, ("q", (), ()), {}),
]  # fmt: skip


def write(path: Path, rows: list[Any]) -> Path:
    path.write_text("\n".join(json.dumps(r) for r in rows) + "\n", encoding="utf-8")
    return path


def read(path: Path, *, needs: set[str] = frozenset(), **options: Any) -> tuple[list[Example], Ledger]:  # type: ignore[assignment]
    ledger, config = Ledger(), DataConfig(path=str(path), **options)
    return list(read_examples(config, config.paths, ledger, needs=needs)), ledger


def only(tmp_path: Path, row: dict[str, Any], **options: Any) -> Example:
    examples, ledger = read(write(tmp_path / "data.jsonl", [row]), **options)
    ledger.stop_if_unreadable()
    assert not ledger.dropped_counts
    return examples[0]


def plain(notes: Any) -> str:
    return repr(dict(sorted(notes.items())))


@pytest.mark.parametrize(("name", "row", "expected", "notes"), ROWS, ids=[f"{r[0]}-{i}" for i, r in enumerate(ROWS)])
def test_layout_is_recognised_and_read(tmp_path: Path, name: str, row: dict, expected: Any, notes: dict) -> None:
    several = name == "ultrafeedback"
    needs = {"prompts"} if name == "prompts" else {"pairs"} if expected[2] else set()
    for options in ({}, {"layout": name}):
        example = only(tmp_path, row, needs=needs, **options, **({"objective": "helpfulness"} if several else {}))
        assert (example.prompt, example.responses, example.pairs) == expected
        assert plain(example.notes) == plain(notes)
        assert (example.file, example.row) == (str(tmp_path / "data.jsonl"), 1)


def test_every_layout_has_a_row_here() -> None:
    assert {r[0] for r in ROWS} | {"pickapic", "double_captions"} == set(LAYOUTS)


def test_column_map_and_unknown_columns(tmp_path: Path) -> None:
    row = {"frage": "q", "gut": "good", "schlecht": "bad"}
    columns = {"prompt": "frage", "chosen": "gut", "rejected": "schlecht"}
    assert only(tmp_path, row, columns=columns).responses == ("good", "bad")
    with pytest.raises(PrefoptError, match=r"columns frage, gut, schlecht fit no known layout.*data\.columns"):
        read(tmp_path / "data.jsonl")
    with pytest.raises(PrefoptError, match=r"data\.columns\.margin = abstand: .* has no such column"):
        read(tmp_path / "data.jsonl", columns=columns | {"margin": "abstand"})
    with pytest.raises(PrefoptError, match=r"data\.columns\.promt: .* did you mean 'prompt'"):
        read(tmp_path / "data.jsonl", columns={"promt": "frage"})
    _, ledger = read(
        write(tmp_path / "data.jsonl", [row, row | {"abstand": 1}]), columns=columns | {"margin": "abstand"}
    )
    assert ledger.unreadable[0][1:] == (1, "'abstand' (named in data.columns) is missing")
    with pytest.raises(PrefoptError, match=r"data\.layout 'paris' is unknown"):
        read(tmp_path / "data.jsonl", layout="paris")


def test_one_broken_row_does_not_decide_the_layout(tmp_path: Path) -> None:
    rows = [{"prompt": "q"}] + [{"prompt": "q", "chosen": "good", "rejected": "bad"}] * 3
    examples, ledger = read(write(tmp_path / "data.jsonl", rows))
    assert len(examples) == 3
    assert ledger.unreadable[0][1:] == (1, "'chosen' is missing")


def test_annotations(tmp_path: Path) -> None:
    example = only(tmp_path, {
        "prompt": "q", "chosen": "good", "rejected": "bad", "margin": 0.5, "weight": "2", "label_probability": 0.8,
        "annotator": 7, "domain": "law", "user_id": "u1", "scores": {"help": [3, 1], "truth": [None, 2]},
        "hardness": 4, "gold": "best", "tools": '[{"name": "f"}]', "chat_template_kwargs": {"x": 1}},
        needs={"hardness"})  # fmt: skip
    assert plain(example.notes) == plain({
        "margin": [0.5], "weight": [2.0], "label_probability": [0.8], "annotator": ["7"], "domain": ["law"],
        "user": ["u1"], "scores/help": [3.0, 1.0], "scores/truth": [math.nan, 2.0], "hardness": [4.0]})  # fmt: skip
    assert (example.gold, example.tools, example.template_kwargs) == ("best", [{"name": "f"}], {"x": 1})


def test_a_system_message_makes_chat_of_strings(tmp_path: Path) -> None:
    row = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    system = {"role": "system", "content": "be kind"}
    assert only(tmp_path, row, system="be kind").prompt == [system, U]
    assert only(tmp_path, row | {"system": "own"}, system="be kind").prompt[0]["content"] == "own"
    assert only(tmp_path, {"chosen": [system, U, A], "rejected": [system, U, B]}, system="x").prompt == [system, U]


@pytest.mark.parametrize(("change", "message"), [
    ({"chosen": None}, "'chosen' is null"),
    ({"chosen": 3}, "'chosen' is int 3, expected text or chat messages"),
    ({"chosen": [{"content": "x"}]}, "chosen[0] has no role"),
    ({"chosen": [{"role": "king", "content": "x"}]}, "chosen[0] has the unknown role 'king'"),
    ({"chosen": [{"role": "assistant", "content": 3}]}, "chosen[0] has content 3"),
    ({"chosen": [{"role": "assistant"}]}, "chosen[0] has no content"),
    ({"chosen": [{"role": "assistant", "content": "x", "tool_calls": [3]}]}, "malformed tool call"),
    ({"prompt": "\ud800"}, "'prompt' holds '\\ud800' at 0, which is no character"),
    ({"chosen": [{"role": "assistant", "content": "x\ud800"}]}, "chosen[0]' holds '\\ud800' at 1"),
    ({"margin": "wide"}, "'margin' is 'wide', expected a finite number"),
    ({"weight": -1}, "'weight' is -1, expected a weight of 0 or more"),
    ({"label_probability": 1.5}, "expected a probability between 0 and 1"),
    ({"scores": {"help": [1, 2, 3]}}, "'scores.help' has 3 entries for 2 responses"),
    ({"tools": "{"}, "'tools' is no JSON"),
    ({"annotator": [1, 2]}, "'annotator' has 2 entries"),
    ({"images": ["nowhere.png"]}, "nowhere.png does not exist"),
])  # fmt: skip
def test_rows_that_are_not_what_they_claim(tmp_path: Path, change: dict, message: str) -> None:
    good = {"prompt": "q", "chosen": "good", "rejected": "bad"}
    _, ledger = read(write(tmp_path / "data.jsonl", [good, good | change, good]))
    assert ledger.unreadable_count == 1
    with pytest.raises(PrefoptError) as error:
        ledger.stop_if_unreadable()
    assert message in str(error.value)
    assert "data.jsonl row 2: " in str(error.value)


def test_transcripts_that_part_early(tmp_path: Path) -> None:
    start = "\n\nHuman: q\n\nAssistant: "
    rows = [
        {"chosen": start + "a\n\nAssistant: more", "rejected": start + "b"},
        {"chosen": start + "a\n\nHuman: x\n\nAssistant: c", "rejected": start + "a\n\nHuman: y\n\nAssistant: d"},
        {"chosen": "\n\nHuman: p\n\nAssistant: a", "rejected": start + "b"},
        {"chosen": start + "a\n\nHuman: x", "rejected": start + "b"},
        {"chosen": start + "a", "rejected": start + "a\n\nHuman: x\n\nAssistant: d"},
    ]
    examples, ledger = read(write(tmp_path / "data.jsonl", rows), layout="transcripts")
    assert [e.row for e in examples] == [1, 5]
    assert examples[0].responses[0] == [{"role": "assistant", "content": "a\n\nmore"}]
    assert examples[0].remarks == ("diverges early",)
    assert [m["content"] for m in examples[1].responses[1]] == ["a", "x", "d"]
    assert {r: next(iter(f.values())) for r, f in ledger.dropped.items()} == {
        "the sides part in a turn that is not the assistant's": [2],
        "the sides share no turn boundary": [3],
        "an answer ends in a turn that is not the assistant's": [4],
    }


def test_messages_keep_flags_calls_and_thinking(tmp_path: Path) -> None:
    call = {"function": {"name": "f", "arguments": '{"x": 1}'}}
    turns = [{"role": "gpt", "content": None, "tool_calls": [call], "thinking": "hm", "loss": False},
             {"role": "tool", "content": "1"}, A]  # fmt: skip
    example = only(tmp_path, {"prompt": [U], "chosen": turns, "rejected": [B]})
    first = example.responses[0][0]
    assert first == {
        "role": "assistant", "content": None, "reasoning_content": "hm", "train": False,
        "tool_calls": [{"type": "function", "function": {"name": "f", "arguments": {"x": 1}}}]}  # fmt: skip


def test_pickapic_and_images(tmp_path: Path) -> None:
    from PIL import Image

    from prefopt.data.images import load_image
    from prefopt.data.source import read_image_examples

    for name, colour in (("a", "red"), ("b", "blue")):
        Image.new("RGBA", (4, 3), colour).save(tmp_path / f"{name}.png")
    rows = [{"jpg_0": "a.png", "jpg_1": "b.png", "label_0": x, "caption": "c"} for x in [0, 1] * 10 + [0.5]]
    config = DataConfig(path=str(write(tmp_path / "data.jsonl", rows)))
    examples, record = read_image_examples(config)
    assert [e.pairs for e in examples[:2]] == [((1, 0),), ((0, 1),)]
    assert record["dropped"] == {"a tie": {"count": 1, "rows": {config.path: [21]}}}
    image = load_image(examples[0].responses[0])
    assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (4, 3), (255, 0, 0))
    soft, _ = read_image_examples(config.model_copy(update={"use": ["label_probability"]}))
    assert len(soft) == 21
    (tmp_path / "b.png").write_bytes(b"no image")
    with pytest.raises(PrefoptError, match=r"(?s)21 of 21 rows.*row 1: image .*b\.png cannot be decoded"):
        read_image_examples(config)
