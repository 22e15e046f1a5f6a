"""Chat messages: normalised, checked, and split into a prompt and what answers it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from typing import Any

from prefopt.data.example import Message
from prefopt.data.fields import TeachesNothing, Unreadable, short, valid

_ROLES = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "prompter": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "function_call": "assistant",
    "tool": "tool",
    "observation": "tool",
    "function": "tool",
    "ipython": "tool",
}
_KEPT = ("tool_calls", "tool_call_id", "name", "reasoning_content", "train")


def is_messages(value: Any) -> bool:
    """Whether a value claims to be chat messages (a list of objects, or a single one with a role)."""
    if isinstance(value, Mapping):
        return "role" in value or "from" in value
    return (
        isinstance(value, Sequence)
        and not isinstance(value, (str, bytes))
        and (not value or isinstance(value[0], Mapping))
    )


def messages(value: Any, name: str) -> list[Message]:
    """Messages in the canonical form; role/content and from/value are understood, a single message is a list of one."""
    if isinstance(value, Mapping):
        value = [value]
    if isinstance(value, (str, bytes)) or not isinstance(value, Sequence):
        raise Unreadable(f"{name!r} is {type(value).__name__} {short(value)}, expected a list of messages", "message")
    return [_message(m, f"{name}[{i}]") for i, m in enumerate(value)]


def _message(raw: Any, where: str) -> Message:
    if not isinstance(raw, Mapping):
        raise Unreadable(
            f"{where} is {type(raw).__name__} {short(raw)}, expected a message with role and content", "message"
        )
    said = raw.get("role", raw.get("from"))
    if said is None:
        raise Unreadable(f"{where} has no role", "message")
    role = _ROLES.get(str(said).lower())
    if role is None:
        raise Unreadable(f"{where} has the unknown role {short(said)}; known are {', '.join(_ROLES)}", "message")
    content = raw.get("content", raw.get("value"))
    message: Message = {"role": role, "content": content}
    message.update({k: raw[k] for k in _KEPT if raw.get(k) is not None})
    thought = raw.get("thinking")
    if thought is not None and "reasoning_content" not in message:
        message["reasoning_content"] = thought
    loss = raw.get("loss", raw.get("weight"))  # the names of ms-swift and OpenAI for the same flag
    if loss is not None and "train" not in message:
        message["train"] = loss
    if said == "function_call" and "tool_calls" not in message:
        message.update(content=None, tool_calls=[_sharegpt_call(content, where)])
    _check(message, where)
    return message


def _sharegpt_call(content: Any, where: str) -> dict[str, Any]:
    """ShareGPT writes a call as the text {"name": ..., "arguments": {...}}."""
    try:
        call = json.loads(content)
        return {"type": "function", "function": {"name": call["name"], "arguments": call.get("arguments", {})}}
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise Unreadable(f"{where} is no function call ({short(content)})", "message") from error


def _check(message: Message, where: str) -> None:
    content = message["content"]
    if content is None and not message.get("tool_calls"):
        raise Unreadable(f"{where} has no content", "message")
    if content is not None and not isinstance(content, str) and not _is_parts(content):
        raise Unreadable(f"{where} has content {short(content)}, expected text or a list of typed parts", "message")
    valid(said(message), where)
    thought = message.get("reasoning_content")
    if thought is not None and not isinstance(thought, str):
        raise Unreadable(f"{where} has reasoning_content {short(thought)}, expected text", "message")
    if "train" in message:
        if message["train"] not in (True, False, 0, 1):
            raise Unreadable(f"{where} has train {short(message['train'])}, expected true or false", "message")
        message["train"] = bool(message["train"])
    if message.get("tool_calls"):
        message["tool_calls"] = [_call(c, where) for c in message["tool_calls"]]


def _is_parts(content: Any) -> bool:
    return isinstance(content, Sequence) and all(
        isinstance(p, Mapping)
        and isinstance(p.get("type"), str)
        and (p["type"] != "text" or isinstance(p.get("text"), str))
        for p in content
    )


def _call(call: Any, where: str) -> dict[str, Any]:
    """A tool call as {type, function: {name, arguments: object}}; arguments spelt as JSON text are parsed."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Unreadable(f"{where} has a malformed tool call {short(call)}", "message")
    arguments = function.get("arguments") or {}
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments)
        except ValueError as error:
            raise Unreadable(
                f"{where} has a tool call whose arguments are no JSON: {short(arguments)}", "message"
            ) from error
    kept = {k: call[k] for k in ("id",) if call.get(k) is not None}
    return kept | {"type": "function", "function": {"name": function["name"], "arguments": arguments}}


def text_of(prompt: Any) -> str:
    """A prompt's text, whatever its layout; turns are lines."""
    return prompt if isinstance(prompt, str) else "\n".join(map(content, prompt))


def said(message: Message) -> str:
    """The text of a message's content, parts joined."""
    content = message["content"]
    if content is None:
        return ""
    return content if isinstance(content, str) else "".join(p.get("text", "") for p in content)


def user(content: str) -> Message:
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    return {"role": "assistant", "content": content}


def with_system(conversation: list[Message], system: str | None) -> list[Message]:
    """The conversation with this system message in front, unless it has one."""
    if not system or (conversation and conversation[0]["role"] == "system"):
        return conversation
    return [{"role": "system", "content": system}, *conversation]


def part(sides: Sequence[list[Message]]) -> tuple[list[Message], list[list[Message]]]:
    """Splits conversations into their common prompt and what each goes on with.

    The prompt is the longest common prefix of whole messages from which every side goes on with an assistant's
    turn; so a shared assistant turn that another assistant turn follows belongs to the answers.
    Raises TeachesNothing where there is no such boundary.
    """
    shared = 0
    for column in zip(*sides, strict=False):
        if any(m != column[0] for m in column):
            break
        shared += 1
    if shared == min(map(len, sides)):
        shared -= 1  # one side ends where the others go on, or all are equal: its last turn is an answer
    while shared > 0 and not (
        sides[0][shared - 1]["role"] != "assistant" and all(s[shared]["role"] == "assistant" for s in sides)
    ):
        if any(s[shared]["role"] != "assistant" for s in sides):
            raise TeachesNothing("the sides part in a turn that is not the assistant's")
        shared -= 1
    if shared <= 0:
        raise TeachesNothing("the sides share no turn boundary")
    return list(sides[0][:shared]), [list(s[shared:]) for s in sides]


_TURN = re.compile(r"(?:^|\n\n)(Human|Assistant):")


def is_transcript(value: Any) -> bool:
    """Whether a text is a transcript in the manner of HH-RLHF."""
    return isinstance(value, str) and _TURN.match(value) is not None and "\n\nAssistant:" in value


def transcript(value: str, name: str) -> list[Message]:
    """`\\n\\nHuman: ...\\n\\nAssistant: ...` as messages; white space around a turn is no part of it."""
    pieces = _TURN.split(value)
    if pieces[0].strip():
        raise Unreadable(f"{name!r} does not begin with a turn of Human or Assistant: {short(pieces[0])}", "message")
    if len(pieces) < 3:
        raise Unreadable(f"{name!r} is no transcript of Human and Assistant: {short(value)}", "message")
    return [
        (user if who == "Human" else assistant)(words.strip())
        for who, words in zip(pieces[1::2], pieces[2::2], strict=True)
    ]


def merged(conversation: list[Message]) -> list[Message]:
    """Neighbouring turns of one speaker as one turn, which is what chat templates accept."""
    result: list[Message] = []
    for message in conversation:
        if result and result[-1]["role"] == message["role"]:
            result[-1] = result[-1] | {"content": f"{result[-1]['content']}\n\n{message['content']}"}
        else:
            result.append(message)
    return result


def content(message: Message) -> str:
    """What a message says, thinking and calls included, as one text."""
    calls = "".join(str(c) for c in message.get("tool_calls") or ())
    return said(message) + (message.get("reasoning_content") or "") + calls


def is_empty(response: Any) -> bool:
    """No text in an assistant's last turn, or no text at all; images are never empty."""
    if isinstance(response, str):
        return not response.strip()
    if isinstance(response, list):
        return not response or not content(response[-1]).strip()
    return False


def same(first: Any, second: Any) -> bool:
    """Equal texts, up to white space around them, or equal bytes."""
    if isinstance(first, str) and isinstance(second, str):
        return first.strip() == second.strip()
    if isinstance(first, list) and isinstance(second, list):
        return [(m["role"], content(m).strip()) for m in first] == [(m["role"], content(m).strip()) for m in second]
    return type(first) is type(second) and bool(first == second)
