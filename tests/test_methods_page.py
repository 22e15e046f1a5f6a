"""The page of all methods is what the registry says."""

from __future__ import annotations

from pathlib import Path

from prefopt.catalogue import methods
from prefopt.methods_page import page
from prefopt.objectives.aliases import ALIASES, SHARED
from prefopt.trl_names import TRL

PAGE = Path(__file__).parents[1] / "docs" / "methods.md"


def test_the_page_is_current() -> None:
    assert PAGE.read_text() == page() + "\n", "run python -m prefopt.methods_page > docs/methods.md"


def test_it_names_all_there_is() -> None:
    text = PAGE.read_text()
    assert all(f"| `{m['name']}` |" in text for m in methods())
    assert all(f"| `{name}` |" in text for name in ALIASES)
    assert all(f"| {name.upper()} |" in text for name in SHARED)
    assert all(f"| {s.trainer} |" in text for s in TRL)
    assert text.isascii()


def test_what_other_names_lead_to_is_here() -> None:
    names = {m["name"] for m in methods()}
    assert {s.method for s in TRL} <= names
    assert {slug for slug, _ in ALIASES.values()} <= names
