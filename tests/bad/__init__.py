"""The table of bad inputs: what is typed, and the words that the one answer must hold."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest


@dataclass
class Place:
    """An empty folder with good things at hand; a case spoils one of them."""

    tmp: Path
    fixture: Callable[[str], Any]
    monkeypatch: pytest.MonkeyPatch

    @property
    def model(self) -> Path:
        return self.fixture("text_model")

    @property
    def pairs(self) -> Path:
        return self.fixture("pairs_file")

    @property
    def output(self) -> Path:
        return self.tmp / "run"

    def train(
        self, *more: str, method: str = "dpo", model: Any = None, data: Any = None, output: Any = None
    ) -> list[str]:
        """`prefopt train` as typed; what is not given is good."""
        given = {"-m": model or self.model, "-d": data or self.pairs, "-o": output or self.output}
        return ["train", method, *more, *(str(x) for option in given.items() for x in option)]

    def rows(self, *rows: Any, name: str = "data.jsonl", good: int = 0) -> Path:
        """A JSONL file of these rows (text: as it is), behind some good ones."""
        pair = {"prompt": "Which film?", "chosen": "The long one.", "rejected": "The short one."}
        path = self.tmp / name
        lines = [row if isinstance(row, str) else json.dumps(row) + "\n" for row in [*[pair] * good, *rows]]
        path.write_text("".join(lines))
        return path

    def file(self, name: str, content: str | bytes = "") -> Path:
        path = self.tmp / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return path


@dataclass(frozen=True)
class Case:
    name: str
    words: tuple[str, ...]
    command: Callable[[Place], list[str]]


class Table:
    """Cases, collected by a decorator."""

    def __init__(self) -> None:
        self.cases: list[Case] = []

    def __call__(self, *words: str) -> Callable[[Callable[[Place], list[str]]], None]:
        return lambda f: self.cases.append(Case(f.__name__, words, f))

    def train(self, name: str, overrides: str, *words: str, **options: Any) -> None:
        """A case that spoils nothing but what is typed behind `prefopt train`."""
        self.cases.append(Case(name, words, lambda p: p.train(*overrides.split(), **options)))
