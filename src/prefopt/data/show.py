"""What the model will see: tokens coloured by prompt, scored response and unscored response."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from rich.console import Group, RenderableType
from rich.panel import Panel
from rich.text import Text

from prefopt.data.config import DataConfig
from prefopt.data.encode import Encoded, Encoder
from prefopt.data.rule import Ledger
from prefopt.data.source import read_examples
from prefopt.errors import PrefoptError

PROMPT, SCORED, MASKED = ("cyan", "bright_cyan"), ("green", "bright_green"), ("grey50", "grey70")
"""Two shades each, so that neighbouring tokens can be told apart."""


def show_examples(data: DataConfig, tokenizer: Any, *, n: int = 3, needs: Iterable[str] = ()) -> list[RenderableType]:
    """The first `n` usable examples as the model will see them (see `legend`). Rows that are dropped are skipped.

    Raises PrefoptError where no row can be shown.
    """
    ledger, encoder = Ledger(), Encoder(tokenizer, data)
    shown: list[RenderableType] = []
    for example in read_examples(data, data.paths, ledger, needs={*needs, *data.use}):
        with ledger.row(example):
            shown.append(show_encoded(encoder(example), tokenizer))
        if len(shown) == n:
            return shown
    if not shown:
        ledger.stop_if_unreadable()
        ledger.stop_if_too_many_dropped(0.0)
        raise PrefoptError(f"{', '.join(data.paths)}: holds no rows")
    return shown


def legend() -> Text:
    return Text.assemble(
        ("prompt", PROMPT[0]), "  ", ("response, scored", SCORED[0]), "  ", ("response, not scored", MASKED[0])
    )


def show_encoded(example: Encoded, tokenizer: Any) -> RenderableType:
    """One example: its prompt once, then every response, then what is known about them."""
    parts: list[RenderableType] = [tokens(tokenizer, example.prompt_ids, [PROMPT] * len(example.prompt_ids))]
    better = {p[0] for p in example.pairs}
    worse = {p[1] for p in example.pairs}
    sides = list(zip(example.response_ids, example.response_mask))
    names = [_side(i, i in better, i in worse) for i in range(len(sides))]
    if example.gold_ids and example.gold_mask:
        sides, names = [*sides, (example.gold_ids, example.gold_mask)], [*names, "gold"]
    for name, (ids, mask) in zip(names, sides):
        scored = sum(mask)
        parts.append(Text(f"\n{name}: {len(ids)} tokens, {scored} scored", "bold"))
        parts.append(tokens(tokenizer, ids, [SCORED if m else MASKED for m in mask]))
    notes = {"pairs": example.pairs} if len(example.pairs) > 1 else {}
    notes |= {k: v for k, v in example.notes.items() if k != "step_index"}
    if notes:
        parts.append(Text("\n" + "\n".join(f"{k}: {v}" for k, v in notes.items()), "dim"))
    title = f"{example.file} row {example.row}: prompt {len(example.prompt_ids)} tokens, tree {example.tokens}"
    return Panel(Group(*parts), title=title, title_align="left")


def _side(i: int, wins: bool, loses: bool) -> str:
    kind = {(True, False): "chosen", (False, True): "rejected", (True, True): "chosen and rejected"}.get(
        (wins, loses), "unpaired"
    )
    return f"response {i} ({kind})"


def tokens(tokenizer: Any, ids: Sequence[int], colours: Sequence[tuple[str, str]]) -> Text:
    """Token texts in alternating shades; line breaks stay, and are made visible. A character that several tokens
    make up together takes the colour of the last of them."""
    text, start = Text(), 0
    for i in range(len(ids)):
        piece = tokenizer.decode(
            list(ids[start : i + 1]), skip_special_tokens=False, clean_up_tokenization_spaces=False
        )
        if "\ufffd" in piece and i + 1 < len(ids) and i - start < 8:
            continue
        text.append(piece.replace("\n", "↵\n"), colours[i][i % 2])
        start = i + 1
    return text
