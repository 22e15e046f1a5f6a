"""The page of all verdicts, made from their files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from ..files import write_atomically

HEAD = """# Reproductions

Each paper's headline claim in small, with the criterion that was fixed before the runs. `prefopt reproduce SLUG` runs
one again, with `--jobs 3` three seeds side by side; stopped and started again, it goes on. This page is made from the
JSON files beside it. CPU time is that of the runs, without worlds that were built before.
"""


def table(folder: Path) -> str:
    """Markdown of every verdict in the folder, by slug; equal files give equal text."""
    found = [json.loads(path.read_text(encoding="utf-8")) for path in sorted(folder.glob("*.json"))]
    rows = [f"| [{r['slug']}](#{r['slug']}) | {_arxiv(r['paper'])} | **{r['verdict']}** | {_cost(r)} |" for r in found]
    overview = ["| reproduction | paper | verdict | cost |", "|---|---|---|---|", *rows]
    return HEAD + "\n" + "\n".join(overview) + "\n" + "".join(_section(r, folder) for r in found)


def write_table(folder: Path) -> Path:
    """Writes README.md into the folder."""
    path = folder / "README.md"
    write_atomically(path, table(folder))
    return path


def _section(r: dict[str, Any], folder: Path) -> str:
    lines = [
        f"\n## {r['slug']}\n",
        f"{r['claim']}\n",
        f"{r['setting']}\n",
        "| demand | measured (seeds) | mean ± s.e. | |",
        "|---|---|---|---|",
        *[
            f"| {c['criterion']} | {', '.join(map(_number, c['seeds']))} | {_number(c['mean'])} ± {_number(c['se'])} "
            f"| {'met' if c['met'] else '**not met**'} |"
            for c in r["checks"]
        ],
        "",
        *[f"- {remark}" for remark in r["remarks"]],
        "",
        *[
            f"![{r['slug']}]({path.name})\n"
            for path in sorted(folder.glob(f"{r['slug']}*.png"))
            if _own(path, r["slug"])
        ],
    ]
    return "\n".join(lines).rstrip("\n") + "\n"


def _own(path: Path, slug: str) -> bool:
    """Whether a picture belongs to this slug, and not to a longer one that begins alike."""
    longer = [p.stem for p in path.parent.glob("*.json") if len(p.stem) > len(slug)]
    return not any(path.stem == other or path.stem.startswith(f"{other}-") for other in longer)


def _arxiv(paper: str) -> str:
    return f"[{paper}](https://arxiv.org/abs/{paper})"


def _cost(r: dict[str, Any]) -> str:
    return f"{len(r['seeds'])} seeds, {r['cpu_seconds'] / 60:.0f} min of CPU time, {r['date']}"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:.3f}"
