"""Chat messages to text, by the model's own chat template or a plain one, with the rule for thinking and tool calls."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from prefopt.data.config import DataConfig
from prefopt.data.example import Message, Turns
from prefopt.data.fields import Unreadable
from prefopt.data.messages import assistant, said, user
from prefopt.errors import PrefoptError

PLAIN = """\
{%- if tools %}{{ 'Tools: ' + (tools | tojson) }}{% endif -%}
{%- for message in messages -%}
{%- set text = message.content or '' -%}
{%- if message.role == 'system' %}{{ text }}
{%- elif message.role == 'user' %}{{ '\\n\\nHuman: ' + text }}
{%- elif message.role == 'tool' %}{{ '\\n\\nTool: ' + text }}
{%- else %}{{ '\\n\\nAssistant:' }}{% if text %}{{ ' ' + text }}{% endif %}
{%- for call in message.tool_calls or [] %}{{ ' <tool_call>' + (call.function | tojson) + '</tool_call>' }}{% endfor %}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '\\n\\nAssistant:' }}{% endif -%}
"""
"""For models without a chat template: a transcript in the manner of HH-RLHF; the model's end token closes an answer."""

THINKING = re.compile(r"\s*<think>(.*?)</think>\s*", re.DOTALL)
_PROBE = "prefoptprobe"


def _parsed(text: str, name: str) -> str:
    """The text, if it is Jinja."""
    import jinja2

    try:
        jinja2.Environment(extensions=["jinja2.ext.loopcontrols"], autoescape=False).parse(  # noqa: S701 - only parsed
            re.sub(r"{%-?\s*(end)?generation\s*-?%}", "", text)  # transformers' own tag
        )
    except jinja2.TemplateSyntaxError as error:
        raise PrefoptError(f"data.chat_template: {name} is no Jinja template: line {error.lineno}: {error}") from None
    return text


@dataclass(frozen=True)
class Templates:
    """Renders prompts and responses as the model will see them. Nothing here tokenises, but for the special tokens.

    `chat` says whether a conversation is rendered by a template (else strings are concatenated as they are).
    """

    tokenizer: Any
    config: DataConfig

    @cached_property
    def template(self) -> str:
        """The Jinja text in use. Raises PrefoptError where `data.chat_template` names nothing that can be used."""
        wanted = self.config.chat_template
        if wanted is None:
            own = getattr(self.tokenizer, "chat_template", None)
            if isinstance(own, dict):
                own = own.get("default")
            return own or PLAIN
        if wanted == "plain":
            return PLAIN
        if "{{" in wanted or "{%" in wanted:
            return _parsed(wanted, "the text")
        path = Path(wanted).expanduser()
        if not path.is_file():
            raise PrefoptError(
                f"data.chat_template {wanted!r}: expected `plain`, a Jinja file, or a Jinja text with "
                "{{ }} or {% %} in it"
            )
        return _parsed(path.read_text(encoding="utf-8"), str(path))

    @property
    def is_plain(self) -> bool:
        return self.template == PLAIN

    @cached_property
    def close(self) -> tuple[str, str]:
        """What the template writes after an answer: up to its end token (included), and the rest.

        Without an end token the first part is what is not white space, and the tokenizer's end token must be added.
        """
        if _PROBE not in (text := self.render([user("u"), assistant(_PROBE)])):
            raise PrefoptError(
                "the chat template does not write the assistant's content; give another (data.chat_template)"
            )
        after = text.rpartition(_PROBE)[2]
        ends = [(after.find(t) + len(t)) for t in self.special_texts if t in after]
        first = min(ends) if ends else len(after.rstrip())
        return after[:first], after[first:]

    @cached_property
    def writes_calls(self) -> bool:
        """Whether the template writes tool calls at all; some leave them out without a word."""
        call = {"type": "function", "function": {"name": _PROBE, "arguments": {}}}
        try:
            return _PROBE in self.render([user("u"), assistant("") | {"tool_calls": [call]}])
        except Unreadable:
            return False

    @cached_property
    def special_texts(self) -> list[str]:
        """Texts of the tokenizer's special tokens, longest first."""
        added = getattr(self.tokenizer, "added_tokens_decoder", {})
        texts = {t.content for t in added.values() if t.special} | set(self.tokenizer.all_special_tokens)
        return sorted(texts, key=len, reverse=True)

    def wraps(self, prompt: Turns) -> bool:
        """Whether a prompt goes through the template: messages always, strings by `data.strings`."""
        if not isinstance(prompt, str):
            return True
        if self.config.strings != "auto":
            return self.config.strings == "chat"
        if self.config.chat_template is None and self.is_plain:
            return False
        return not any(t in prompt for t in self.special_texts)

    def conversation(self, turns: Turns, role: str) -> list[Message]:
        """Turns as messages, thinking treated by the rule and parts joined; a string is a turn without the white space
        around it. Raises Unreadable for media parts."""
        if isinstance(turns, str):
            turns = [user(turns.strip()) if role == "user" else assistant(turns.strip())]
        return [self._message(m) for m in turns]

    def check(self, tools: list[Any] | None) -> None:
        """Raises PrefoptError for a template that writes no answers, Unreadable for one that leaves these tools out."""
        if self.close and tools:
            text, without = (self.render([user("u")], tools=t) for t in (tools, None))
            if text == without:
                raise Unreadable(
                    "the chat template leaves out tools; give one that writes them (data.chat_template)", "message"
                )

    def _message(self, message: Message) -> Message:
        result = {k: v for k, v in message.items() if k != "train"}
        content = message["content"]
        if content is not None and not isinstance(content, str):
            if other := [p["type"] for p in content if p["type"] != "text"]:
                raise Unreadable(f"a message holds {other[0]!r} content, which text models cannot see", "message")
            content = said(message)
        if message["role"] == "assistant":
            content = self._thought(result, content)
        if message.get("tool_calls") and not self.writes_calls:
            raise Unreadable(
                "the chat template leaves out tool calls; give one that writes them (data.chat_template)", "message"
            )
        result["content"] = content if content is not None else ""
        return result

    def _thought(self, message: Message, content: str | None) -> str | None:
        """The rule: `strip` removes thinking; otherwise a template that does not know it gets it inside the content."""
        if self.config.thinking == "strip":
            message.pop("reasoning_content", None)
            return without_thinking(content) if content else content
        if message.get("reasoning_content") and "reasoning_content" not in self.template:
            thought = message.pop("reasoning_content").strip("\n")
            return f"<think>\n{thought}\n</think>\n\n{content or ''}"
        return content

    def render(
        self,
        messages: Sequence[Message],
        *,
        tools: list[Any] | None = None,
        generation: bool = False,
        options: Mapping[str, Any] | None = None,
    ) -> str:
        """The conversation as text, ending with the head of an assistant's turn if `generation`.

        Raises Unreadable where the template refuses the conversation.
        """
        from jinja2 import TemplateError

        try:
            return self.tokenizer.apply_chat_template(
                list(messages),
                tools=tools,
                chat_template=self.template,
                add_generation_prompt=generation,
                tokenize=False,
                **(options or {}),
            )
        except (TemplateError, TypeError, KeyError) as error:
            raise Unreadable(f"the chat template refuses the conversation ({error})", "message") from error


def has_thinking(messages: Iterable[Message]) -> bool:
    """Whether an assistant's turn brings thinking that is not empty."""
    for m in messages:
        inside = THINKING.match(said(m)) if m["role"] == "assistant" else None
        if (m.get("reasoning_content") or "").strip() or (inside and inside.group(1).strip()):
            return True
    return False


def without_thinking(content: str) -> str:
    """An answer without the thinking block at its start."""
    return THINKING.sub("", content, count=1) if THINKING.match(content) else content


def check_reproduced(text: str, messages: Sequence[Message]) -> None:
    """Raises Unreadable where a rendering lost the last answer."""
    answer = said(messages[-1])
    if without_thinking(answer).strip() not in text:
        raise Unreadable("the chat template does not reproduce the answer", "message")
