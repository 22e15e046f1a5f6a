"""What the columns of a row mean: one small function per layout, in one registry.

To add a layout, write one function `Fields -> Draft` under `@layout(name, columns)`; other tools' layouts are in
`dialects.py`. What all layouts share (annotations, tools, images, gold) is read by `interpret.py`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from prefopt.data import fields
from prefopt.data.fields import TeachesNothing, Unreadable
from prefopt.data.messages import is_messages, is_transcript, merged, part, transcript
from prefopt.data.row_fields import Fields, conversation


@dataclass(frozen=True)
class Draft:
    """What a layout makes of a row; see `Example` for the meaning of the fields."""

    prompt: Any
    responses: list[Any]
    pairs: list[tuple[int, int]] = field(default_factory=list)
    notes: dict[str, Any] = field(default_factory=dict)
    steps: list[list[str]] | None = None
    remarks: tuple[str, ...] = ()


@dataclass(frozen=True)
class Layout:
    """A layout: its name, the columns that mark it, a further test on a row's values, and how it is read."""

    name: str
    columns: tuple[str, ...]
    read: Callable[[Fields], Draft]
    when: Callable[[Mapping[str, Any]], bool]
    example: str  # one row, for messages and the documentation

    def fits(self, values: Mapping[str, Any]) -> bool:
        return all(c in values for c in self.columns) and self.when(values)


SIDES = ("chosen", "rejected")
LAYOUTS: dict[str, Layout] = {}
"""Every layout by name. `auto` takes the one with the most columns of those that fit, the first of equals."""


def layout(
    name: str, *columns: str, when: Callable[[Mapping[str, Any]], bool] = lambda v: True
) -> Callable[[Any], Any]:
    """Registers a reading function; its docstring's first line is the example row."""

    def register(read: Callable[[Fields], Draft]) -> Callable[[Fields], Draft]:
        LAYOUTS[name] = Layout(name, columns, read, when, (read.__doc__ or "").strip().splitlines()[0])
        return read

    return register


def pair(f: Fields, prompt: Any, sides: list[Any]) -> Draft:
    """One pair, better side first, under a prompt (None: the prompt is inside the answers)."""
    if f.modality == "text":
        prompt, sides = conversation(prompt, sides)
    elif prompt is None:
        raise Unreadable("'prompt' is missing", "missing")
    return Draft(prompt, sides, [(0, 1)], remarks=early(sides))


def early(answers: list[Any]) -> tuple[str, ...]:
    """A remark where answers go over several turns: the sides part before the last turn."""
    return ("diverges early",) if any(isinstance(a, list) and len(a) > 1 for a in answers) else ()


@layout("transcripts", "chosen", "rejected", when=lambda v: "prompt" not in v and is_transcript(v["chosen"]))
def transcripts(f: Fields) -> Draft:
    r"""{"chosen": "\n\nHuman: ...\n\nAssistant: ...", "rejected": "\n\nHuman: ...\n\nAssistant: ..."}"""
    sides = [transcript(f.text(name), name) for name in ("chosen", "rejected")]
    if any(s[-1]["role"] != "assistant" for s in sides):
        raise TeachesNothing("an answer ends in a turn that is not the assistant's")
    prompt, answers = part(sides)
    return Draft(merged(prompt), [merged(a) for a in answers], [(0, 1)], remarks=early(answers))


@layout(
    "transcript_prompts",
    "prompt",
    "chosen",
    "rejected",
    when=lambda v: (
        is_transcript(v["prompt"]) and v["prompt"].rstrip().endswith("\n\nAssistant:") and isinstance(v["chosen"], str)
    ),
)
def transcript_prompts(f: Fields) -> Draft:
    r"""{"prompt": "\n\nHuman: ...\n\nAssistant:", "chosen": " ...", "rejected": " ..."}"""
    prompt = merged(transcript(f.text("prompt"), "prompt")[:-1])
    return pair(f, prompt, [f.text("chosen").strip(), f.text("rejected").strip()])


@layout("pairs", "prompt", "chosen", "rejected")
def pairs(f: Fields) -> Draft:
    """{"prompt": text or messages, "chosen": text, messages or image, "rejected": likewise}"""
    return pair(f, f.turns("prompt"), f.answers("chosen", "rejected"))


@layout("implicit_prompt", "chosen", "rejected", when=lambda v: is_messages(v["chosen"]) or is_messages(v["rejected"]))
def implicit_prompt(f: Fields) -> Draft:
    """{"chosen": [messages of the whole conversation], "rejected": [...]}"""
    return pair(f, None, f.answers("chosen", "rejected"))


@layout("step_pairs", "prompt", "chosen_steps", "rejected_steps")
def step_pairs(f: Fields) -> Draft:
    """{"prompt": ..., "chosen_steps": [{"text": ..., "score": 0.9}, ...], "rejected_steps": [...]}"""
    sides = [steps_of(f.need(name), name) for name in ("chosen_steps", "rejected_steps")]
    return _stepped(f, sides, [(0, 1)])


@layout("step_dpo", "prompt", "initial_reason_steps", "chosen", "rejected")
def step_dpo(f: Fields) -> Draft:
    """{"prompt": ..., "initial_reason_steps": the right steps so far, "chosen": the next step, "rejected": a wrong one}"""
    before = f.text("initial_reason_steps") if f.has("initial_reason_steps") else ""
    shared = [before] if before.strip() else []
    sides = [([*shared, f.text(name)], [math.nan] * (1 + len(shared))) for name in SIDES]
    draft = _stepped(f, sides, [(0, 1)])
    return replace(draft, notes={"wrong_step": [1.0 + len(shared)]})


@layout("steps", "prompt", "steps", when=lambda v: "responses" not in v)
def steps(f: Fields) -> Draft:
    """{"prompt": ..., "steps": [{"text": ..., "score": 1.0}, ...], "label": true}, or one such list per response"""
    given = f.items("steps")
    several = bool(given) and all(isinstance(s, list) for s in given)
    sides = [steps_of(s, "steps") for s in (given if several else [given])]
    draft = _stepped(f, sides, [])
    if f.has("label") and not several:
        draft.notes["label"] = [fields.boolean(f.get("label"), "label")]
    return draft


@layout("stepwise", "prompt", "completions", "labels")
def stepwise(f: Fields) -> Draft:
    """{"prompt": ..., "completions": ["step 1", "step 2"], "labels": [true, false]}"""
    texts = [fields.text(t, "completions") for t in f.items("completions")]
    labels = [float(fields.boolean(x, "labels")) for x in f.items("labels", len(texts))]
    return _stepped(f, [(separated(texts), labels)], [])


def steps_of(given: Any, name: str) -> tuple[list[str], list[float]]:
    """Texts and scores (nan where missing) of the steps of one response."""
    texts, scores = [], []
    for i, step in enumerate(fields.items(given, name)):
        where = f"{name}[{i}]"
        if isinstance(step, str):
            step = {"text": step}
        if not isinstance(step, Mapping):
            raise Unreadable(f"{where} is {type(step).__name__}, expected text or an object with text and score")
        word = next((w for w in ("text", "step", "content") if w in step), "text")
        texts.append(fields.text(fields.need(step, word), where))
        if not texts[-1].strip():
            raise Unreadable(f"{where} is an empty step")
        scores.append(fields.rating(step.get("score", step.get("label")), f"{where} score"))
    return separated(texts), scores


def separated(texts: list[str]) -> list[str]:
    """Steps with a line break after each but the last, unless they bring their own."""
    return [t if i == len(texts) - 1 or t.endswith("\n") else t + "\n" for i, t in enumerate(texts)]


def _stepped(f: Fields, sides: list[tuple[list[str], list[float]]], made: list[tuple[int, int]]) -> Draft:
    if any(not texts for texts, _ in sides):
        raise TeachesNothing("an empty answer")
    prompt, responses = conversation(f.turns("prompt"), ["".join(texts) for texts, _ in sides])
    return Draft(prompt, responses, made, {"step_score": [s for _, s in sides]}, [texts for texts, _ in sides])


@layout("unpaired", "prompt", "completion", "label")
def unpaired(f: Fields) -> Draft:
    """{"prompt": ..., "completion": text, messages or image, "label": true}"""
    prompt, responses = single(f, "prompt", "completion")
    return Draft(prompt, responses, notes={"label": [fields.boolean(f.need("label"), "label")]})


@layout("lists", "prompt", "responses")
def lists(f: Fields) -> Draft:
    """{"prompt": ..., "responses": [...], "scores": [...] or {"name": [...]}, or "ranks": [1, ...], or "pairs"}"""
    answers = [f.answer(a, f"responses[{i}]") for i, a in enumerate(f.items("responses"))]
    prompt: Any = f.turns("prompt")
    if f.modality == "text":
        prompt, answers = conversation(prompt, answers)
    if not answers:
        raise TeachesNothing("an empty answer")
    given = [] if not f.has("pairs") else [_index_pair(p, len(answers)) for p in f.items("pairs")]
    return Draft(prompt, answers, given, steps=_list_steps(f, answers))


def _index_pair(value: Any, responses: int) -> tuple[int, int]:
    match fields.items(value, "pairs"):
        case [int(better), int(worse)] if (
            min(better, worse) >= 0 and max(better, worse) < responses and better != worse
        ):
            return better, worse
    raise Unreadable(f"'pairs' has the entry {value}, expected two different positions below {responses}, better first")


def _list_steps(f: Fields, answers: list[Any]) -> list[list[str]] | None:
    """Steps given beside the responses they are parts of."""
    if not f.has("steps"):
        return None
    result = [steps_of(s, f"steps[{i}]")[0] for i, s in enumerate(f.items("steps", len(answers)))]
    for i, (answer, parts) in enumerate(zip(answers, result, strict=True)):
        position = 0
        for text in parts:
            found = answer.find(text.strip(), position) if isinstance(answer, str) else -1
            if found < 0:
                raise Unreadable(f"steps[{i}] are not the parts of responses[{i}] in their order")
            position = found + len(text.strip())
    return result


@layout("demonstrations", "prompt", "completion", when=lambda v: "label" not in v)
def demonstrations(f: Fields) -> Draft:
    """{"prompt": ..., "completion": ...}"""
    prompt, responses = single(f, "prompt", "completion")
    return Draft(prompt, responses)


@layout("conversations_only", "messages", when=lambda v: not {"rejected_response", "rejected_messages"} & set(v))
def conversations_only(f: Fields) -> Draft:
    """{"messages": [messages of a whole conversation, ending with the assistant]}"""
    prompt, responses = last_turn(f, "messages")
    return Draft(prompt, responses)


@layout("prompts", "prompt", when=lambda v: not {"chosen", "rejected", "completion", "responses", "steps"} & set(v))
def prompts(f: Fields) -> Draft:
    """{"prompt": ...} (an image model imitates the `image` beside it, if there is one)"""
    shown = f.modality == "image" and f.has("image")
    return Draft(f.turns("prompt"), f.answers("image") if shown else [])


def single(f: Fields, prompt: str, answer: str) -> tuple[Any, list[Any]]:
    """Prompt and one answer."""
    asked, given = f.turns(prompt), f.answer(f.need(answer), answer)
    return (asked, [given]) if f.modality == "image" else conversation(asked, [given])


def last_turn(f: Fields, name: str) -> tuple[Any, list[Any]]:
    """A conversation as a prompt and its last run of assistant (and tool) turns."""
    given = f.turns(name)
    if isinstance(given, str):
        raise Unreadable(f"{name!r} is text, expected chat messages", "message")
    if not given or given[-1]["role"] != "assistant":
        raise TeachesNothing("an answer ends in a turn that is not the assistant's")
    start = max((i for i, m in enumerate(given) if m["role"] in ("user", "system")), default=-1) + 1
    if start == 0:
        raise TeachesNothing("the sides share no turn boundary")
    return given[:start], [given[start:]]
