"""What the benchmarks import of prefopt is there: they are run by hand, and would not notice that something has moved."""

from __future__ import annotations

import ast
import importlib
import importlib.util
from pathlib import Path

import pytest

FILES = sorted((Path(__file__).parents[1] / "benchmarks").glob("*.py"))


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_imports_are_there(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("prefopt"):
            module = importlib.import_module(str(node.module))
            for name in node.names:
                own = hasattr(module, name.name)
                assert own or importlib.util.find_spec(f"{node.module}.{name.name}"), f"{node.module}.{name.name}"
