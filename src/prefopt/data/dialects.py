"""Layouts of other tools and of well-known data sets, recognised by their columns."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefopt.data import fields
from prefopt.data.example import Message
from prefopt.data.fields import TeachesNothing, Unreadable
from prefopt.data.layouts import Draft, early, last_turn, layout, pair
from prefopt.data.messages import assistant, is_messages, messages, user
from prefopt.data.row_fields import Fields, conversation


@layout("pickapic", "jpg_0", "jpg_1", "label_0", "caption")
def pickapic(f: Fields) -> Draft:
    """{"jpg_0": image, "jpg_1": image, "label_0": 0, 0.5 or 1, "caption": "..."}"""
    if f.has("has_label") and not fields.boolean(f.get("has_label"), "has_label"):
        raise TeachesNothing("a row without a label")
    images = f.answers("jpg_0", "jpg_1")
    label, better = _first_wins(f)
    return Draft(f.text("caption"), images, [(better, 1 - better)], {"label_probability": [max(label, 1 - label)]})


@layout("double_captions", "jpg_0", "jpg_1", "label_0", "caption_0", "caption_1", when=lambda v: "caption" not in v)
def double_captions(f: Fields) -> Draft:
    """{"jpg_0": image, "jpg_1": image, "label_0": 0, 0.5 or 1, "caption_0": "...", "caption_1": "..."}"""
    images = f.answers("jpg_0", "jpg_1")
    label, better = _first_wins(f)
    said = f.text("prompt") if f.has("prompt") else f.text(f"caption_{better}")  # a prompt is what groups rows
    return Draft(said, images, [(better, 1 - better)], {"label_probability": [max(label, 1 - label)]})


def _first_wins(f: Fields) -> tuple[float, int]:
    """The label of the first image, and which image is the better one."""
    label = fields.number(f.need("label_0"), "label_0")
    if label not in (0, 0.5, 1):
        raise Unreadable(f"'label_0' is {label:g}, expected 0, 0.5 (a tie) or 1")
    return label, 0 if label >= 0.5 else 1


@layout("ultrafeedback", "instruction", "completions", when=lambda v: _are_objects(v["completions"], "response"))
def ultrafeedback(f: Fields) -> Draft:
    """{"instruction": ..., "completions": [{"response": ..., "annotations": ...}, ...]}"""
    given = f.items("completions")
    answers = [fields.text(fields.need(c, "response"), "response") for c in given]
    ratings: list[dict[str, float]] = []
    for completion in given:
        aspects = completion.get("annotations") or {}
        if not isinstance(aspects, Mapping):
            raise Unreadable(f"'annotations' is {fields.short(aspects)}, expected an object of ratings")
        rated = {name: fields.rating(_rating(a), f"{name} rating") for name, a in aspects.items() if a is not None}
        for column, name in (("overall_score", "overall"), ("fine-grained_score", "fine_grained")):
            if completion.get(column) is not None:
                rated[name] = fields.rating(completion[column], column)
        ratings.append(rated)
    names = dict.fromkeys(name for rated in ratings for name in rated)
    notes = {f"scores/{n}": [rated.get(n, float("nan")) for rated in ratings] for n in names}
    return Draft(f.text("instruction"), answers, notes=notes)


def _rating(aspect: Any) -> Any:
    """An aspect is {"Rating": ...}, or a list of such, one per side of the question."""
    if isinstance(aspect, list):
        aspect = aspect[0] if aspect else {}
    return aspect.get("Rating") if isinstance(aspect, Mapping) else aspect


def _are_objects(value: Any, key: str) -> bool:
    return isinstance(value, list) and all(isinstance(x, Mapping) and key in x for x in value)


@layout("nectar", "prompt", "answers", when=lambda v: _are_objects(v["answers"], "answer"))
def nectar(f: Fields) -> Draft:
    """{"prompt": ..., "answers": [{"answer": ..., "rank": 1}, ...]}"""
    return _ranked(f, "prompt", "answers", "answer")


@layout("ranked_completions", "context", "completions", when=lambda v: _are_objects(v["completions"], "completion"))
def ranked_completions(f: Fields) -> Draft:
    """{"context": messages, "completions": [{"rank": 0, "completion": messages}, ...]}"""
    return _ranked(f, "context", "completions", "completion")


def _ranked(f: Fields, prompt: str, column: str, key: str) -> Draft:
    given = f.items(column)
    answers = [f.answer(fields.need(a, key), key) for a in given]
    shared, answers = conversation(f.turns(prompt), answers)
    return Draft(shared, answers, notes={"rank": [fields.number(fields.need(a, "rank"), "rank") for a in given]})


@layout("halos", "prompt", "output_A", "output_B", "label")
def halos(f: Fields) -> Draft:
    """{"prompt": ..., "output_A": ..., "output_B": ..., "label": 1 if A is better, else 0}"""
    sides = [
        f.answer(v[0] if isinstance(v, list) and len(v) == 1 and isinstance(v[0], list) else v, name)
        for name in ("output_A", "output_B")
        for v in [f.need(name)]
    ]
    draft = pair(f, f.turns("prompt"), (sides if fields.boolean(f.need("label"), "label") else sides[::-1]))
    if f.has("reward_difference"):
        draft.notes["margin"] = [abs(fields.number(f.get("reward_difference"), "reward_difference"))]
    return draft


@layout("argilla", "instruction", "chosen_response", "rejected_response")
def argilla(f: Fields) -> Draft:
    """{"instruction": ..., "chosen_response": ..., "rejected_response": ...}"""
    return pair(f, _chat(f, "instruction"), f.answers("chosen_response", "rejected_response"))


@layout("intel", "question", "chosen", "rejected")
def intel(f: Fields) -> Draft:
    """{"system": ..., "question": ..., "chosen": ..., "rejected": ...}"""
    return pair(f, _chat(f, "question"), f.answers("chosen", "rejected"))


@layout("alpaca", "instruction", "chosen", "rejected")
def alpaca(f: Fields) -> Draft:
    """{"instruction": ..., "input": ..., "system": ..., "history": [[...]], "chosen": ..., "rejected": ...}"""
    return pair(f, _alpaca_prompt(f), f.answers("chosen", "rejected"))


@layout("alpaca_kto", "instruction", "output", "kto_tag")
def alpaca_kto(f: Fields) -> Draft:
    """{"instruction": ..., "input": ..., "output": ..., "kto_tag": true}"""
    prompt, answers = conversation(_alpaca_prompt(f), f.answers("output"))
    label = fields.boolean(f.need("kto_tag"), "kto_tag")
    return Draft(prompt, answers, notes={"label": [label]})


@layout("alpaca_demonstrations", "instruction", "output")
def alpaca_demonstrations(f: Fields) -> Draft:
    """{"instruction": ..., "input": ..., "output": ...}"""
    prompt, answers = conversation(_alpaca_prompt(f), f.answers("output"))
    return Draft(prompt, answers)


def _alpaca_prompt(f: Fields) -> list[Message]:
    """History turns, then instruction and input joined by a line break, as LLaMA-Factory does."""
    asked = f.text("instruction")
    extra = fields.text(f.get("input"), "input") if f.has("input") else ""
    past = []
    for turn in f.items("history") if f.has("history") else []:
        question, answer = fields.items(turn, "history", 2)
        past += [user(fields.text(question, "history")), assistant(fields.text(answer, "history"))]
    return [*past, user(f"{asked}\n{extra}" if extra.strip() else asked)]


@layout("icr", "input", "chosen", "rejected", when=lambda v: "prompt" not in v and "instruction" not in v)
def icr(f: Fields) -> Draft:
    """{"system": ..., "input": ..., "chosen": ..., "rejected": ...}"""
    return pair(f, _chat(f, "input"), f.answers("chosen", "rejected"))


@layout("sharegpt", "conversations", "chosen", "rejected")
def sharegpt(f: Fields) -> Draft:
    """{"conversations": [{"from": "human", "value": ...}], "chosen": {"from": "gpt", ...}, "rejected": {...}}"""
    return pair(f, messages(f.need("conversations"), "conversations"), f.answers("chosen", "rejected"))


@layout("sharegpt_kto", "conversations", "kto_tag")
def sharegpt_kto(f: Fields) -> Draft:
    """{"conversations": [..., {"from": "gpt", "value": ...}], "kto_tag": true}"""
    return _labelled_turn(f, "conversations", "kto_tag")


@layout("sharegpt_demonstrations", "conversations")
def sharegpt_demonstrations(f: Fields) -> Draft:
    """{"conversations": [..., {"from": "gpt", "value": ...}]}"""
    prompt, answers = last_turn(f, "conversations")
    return Draft(prompt, answers)


@layout("openai_pairs", "messages", "chosen", "rejected")
def openai_pairs(f: Fields) -> Draft:
    """{"messages": [...], "chosen": {"role": "assistant", ...}, "rejected": {...}}"""
    return pair(f, messages(f.need("messages"), "messages"), f.answers("chosen", "rejected"))


@layout("rejected_response", "messages", when=lambda v: {"rejected_response", "rejected_messages"} & set(v) != set())
def rejected_response(f: Fields) -> Draft:
    """{"messages": [..., {"role": "assistant", ...}], "rejected_response": text, or "rejected_messages": [...]}"""
    better = messages(f.need("messages"), "messages")
    if f.has("rejected_messages"):
        return pair(f, None, [better, messages(f.need("rejected_messages"), "rejected_messages")])
    worse = f.need("rejected_response")
    prompt, (answer,) = last_turn(f, "messages")
    sides = [
        answer,
        messages(worse, "rejected_response")
        if is_messages(worse)
        else [assistant(fields.text(worse, "rejected_response"))],
    ]
    return Draft(prompt, sides, [(0, 1)], remarks=early(sides))


@layout("labelled_messages", "messages", "label")
def labelled_messages(f: Fields) -> Draft:
    """{"messages": [..., {"role": "assistant", ...}], "label": true}"""
    return _labelled_turn(f, "messages", "label")


def _labelled_turn(f: Fields, name: str, label: str) -> Draft:
    prompt, answers = last_turn(f, name)
    notes = {"label": [fields.boolean(f.need(label), label)]}
    return Draft(prompt, answers, notes=notes)


def _chat(f: Fields, name: str) -> list[Message]:
    """A prompt that its layout defines as a user's turn."""
    given = f.turns(name)
    if isinstance(given, str):
        return [user(given)]
    if not given:
        raise Unreadable(f"{name!r} holds no message", "message")
    return given
