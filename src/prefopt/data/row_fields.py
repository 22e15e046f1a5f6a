"""What a layout sees of a row: its columns under their canonical names, read with types and refusals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from prefopt.data import fields
from prefopt.data.example import Message, Turns
from prefopt.data.fields import TeachesNothing, Unreadable, short
from prefopt.data.images import check_image
from prefopt.data.messages import assistant, is_messages, messages, part, said, user

Modality = Literal["text", "image"]


@dataclass(frozen=True)
class Fields:
    """A row's values, the folder its paths start from, and whether its responses are texts or images."""

    values: Mapping[str, Any]
    base: Path = Path()
    modality: Modality = "text"

    def has(self, name: str) -> bool:
        return self.values.get(name) is not None

    def get(self, name: str) -> Any:
        return self.values.get(name)

    def need(self, name: str) -> Any:
        return fields.need(self.values, name)

    def text(self, name: str) -> str:
        return fields.text(self.need(name), name)

    def items(self, name: str, length: int | None = None) -> list[Any]:
        return fields.items(self.need(name), name, length)

    def turns(self, name: str) -> Turns:
        return turns(self.need(name), name)

    def answer(self, value: Any, name: str) -> Any:
        """A response: text or messages, or an image whose head was looked at."""
        if value is None:
            raise Unreadable(f"{name!r} is null", "missing")
        if self.modality == "image":
            return located(value, self.base)
        return turns(value, name)

    def answers(self, *names: str) -> list[Any]:
        return [self.answer(self.need(name), name) for name in names]


def turns(value: Any, name: str) -> Turns:
    """Text or chat messages, whichever the value claims to be."""
    if isinstance(value, str):
        return fields.valid(value, name)
    if is_messages(value):
        return messages(value, name)
    raise Unreadable(f"{name!r} is {type(value).__name__} {short(value)}, expected text or chat messages")


def located(value: Any, base: Path) -> Any:
    """The image value, checked, its path made independent of the data file's place."""
    check_image(value, base)
    if isinstance(value, str) and len(value) <= 4096 and not value.startswith("data:image/"):
        return str(base / Path(value).expanduser())
    if isinstance(value, Mapping) and value.get("bytes") is None:
        return str(base / Path(value["path"]).expanduser())
    return value


def conversation(prompt: Turns | None, answers: Sequence[Any]) -> tuple[Turns, list[Any]]:
    """Prompt and answers as all text or all messages.

    Answers that hold the whole conversation (implicit prompt, or UltraFeedback's way of giving both) are parted from
    their common prompt.
    """
    if prompt is not None and all(isinstance(a, str) for a in [prompt, *answers]):
        return prompt, list(answers)
    if prompt is None and any(isinstance(a, str) for a in answers):
        raise Unreadable("'prompt' is missing, and the answers are no conversations that could hold it", "missing")
    listed = [[assistant(a)] if isinstance(a, str) else a for a in answers]
    whole = [bool(a) and a[0]["role"] != "assistant" for a in listed]
    if prompt is None or (listed and all(whole)):
        shared, rests = part(listed)
        if prompt is not None:
            _check_holds(shared, prompt)
    else:
        shared, rests = [user(prompt)] if isinstance(prompt, str) else prompt, listed
        if any(whole):
            raise Unreadable("one answer holds the whole conversation, another only the answer", "message")
    for rest in rests:
        if not rest:
            raise TeachesNothing("an empty answer")
        if rest[-1]["role"] != "assistant":
            raise TeachesNothing("an answer ends in a turn that is not the assistant's")
    return shared, rests


def _check_holds(shared: list[Message], prompt: Turns) -> None:
    wanted = prompt if isinstance(prompt, str) else said(prompt[-1]) if prompt else ""
    if wanted.strip() and not any(wanted.strip() in said(m) for m in shared):
        raise Unreadable(f"the conversations do not hold the row's prompt {short(wanted)}", "message")
