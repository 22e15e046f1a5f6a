"""The page of a study, from made-up rows: every section, and what becomes of gaps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from prefopt import cli
from prefopt.errors import PrefoptError
from prefopt.studies.report import findings, headline, ranking, write_study_report
from prefopt.studies.table import Table, read_table, write_table
from prefopt.studies.window import Window, marker


def row(label: str, beta: float, seed: int, reward: float | None, **changes: Any) -> dict[str, Any]:
    ended = reward is not None
    numbers = {"kl": 2 * beta, "kl_se": 0.1, "length": 20.0, "win_start": 0.6, "win_chosen": 0.4, "accuracy": 0.7,
               "chosen_drift": -1.5, "reward": reward, "reward_se": 0.01} if ended else {}  # fmt: skip
    made = {
        "run": f"{label}-{beta}-{seed}", "label": label, "point": {"beta": beta}, "start": "sft", "size": None,
        "seed": seed, "central": beta == 0.1, "status": "finished" if ended else "diverged", "seconds": 3.0,
        "error": None if ended else "the loss is <no> longer finite", **numbers,
    }  # fmt: skip
    return made | changes


@pytest.fixture
def table() -> Table:
    labels = [f"method-{i}" for i in range(10)]  # more than there are colours
    rows = [row(m, b, s, 0.5 + 0.03 * i + b * s / 10) for i, m in enumerate(labels) for b in (0.1, 0.5) for s in (0, 1)]
    rows.append(row("method-0", 0.9, 0, None))
    rows += [row(m, 0.1, 0, 0.4, start="base") for m in labels] + [row(m, 0.1, 0, 0.45, size=64) for m in labels]
    starts = {"sft": {"reward": 0.5, "length": 18.0}, "base": {"reward": 0.2, "length": 9.0}}
    evaluation = {"reward": "a:b", "judge": None}
    configuration = {"methods": dict.fromkeys(labels), "starts": {"sft": "a", "base": "b"}, "seeds": [0, 1],
                     "evaluation": evaluation, "data": {"path": "x/y.jsonl"}}  # fmt: skip
    return Table("made <up>", "reward", 62, rows, starts, [None, 64], [0.5, 0.25], [0.05], ["grids of unequal size"],
                 configuration, {"torch": "2"}, "2026-01-01")  # fmt: skip


def test_the_page_is_whole_and_needs_nothing(table: Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_table(table, tmp_path)
    assert read_table(tmp_path / "results.json") == table
    monkeypatch.setattr("sys.argv", ["prefopt", "report", str(tmp_path)])
    with pytest.raises(SystemExit) as end:
        cli.main()
    assert end.value.code == 0
    page = (tmp_path / "report.html").read_text()
    for section in ("ranking", "frontier", "robustness", "scenarios", "sizes", "runs", "setup"):
        assert f'<section id="{section}">' in page
    assert page.count("<svg") == 8 and "made &lt;up&gt;" in page and "&lt;no&gt; longer" in page
    assert (
        "<script" not in page
        and "src=" not in page
        and "undefined" not in page
        and "nan" not in page.split("</style>")[1]
    )
    for figure in (tmp_path / "figures").glob("*.svg"):
        assert ElementTree.parse(figure).getroot().tag.endswith("svg") and "var(--" not in figure.read_text()
    assert len(list((tmp_path / "figures").iterdir())) == 8
    assert "NaN" not in (tmp_path / "results.json").read_text()
    assert json.loads((tmp_path / "results.json").read_text())["summary"]["sizes"]["method-3"]["sft"][0]["size"] == 64


def test_what_is_said(table: Table) -> None:
    methods = table.summary()["methods"]
    assert headline(table, methods).startswith("method-9 at its best setting brings the reward from 0.500 to 0.795")
    said = {f.title: f.text for f in findings(table, methods)}
    assert "method-0 beta 0.9 diverged" in said and said["Note"] == "Grids of unequal size."
    assert said["Not finished"].startswith("1 of 62 runs")
    lines = ranking(methods, 0.5)
    assert lines[0]["share"] == "100%" and 0 < int(lines[-1]["share"][:-1]) < 15  # bars begin at the start model
    assert methods["method-0"]["diverged"] == 1 and methods["method-0"]["runs"] == 5


def test_little_to_report(table: Table, tmp_path: Path) -> None:
    with pytest.raises(PrefoptError, match="no run of the study has ended"):
        write_study_report(replace(table, rows=[]), tmp_path / "x.html")
    alone = replace(table, rows=table.rows[:1], sizes=[None], planned=1)
    alone.configuration["starts"] = {"sft": "a"}
    page = write_study_report(alone, tmp_path / "one" / "x.html").read_text()
    assert '<section id="sizes">' not in page and '<section id="scenarios">' not in page
    failed = replace(alone, rows=[row("method-0", 0.1, 0, None)])
    assert "diverged" in write_study_report(failed, tmp_path / "two" / "x.html").read_text()
    (tmp_path / "results.json").write_text("{}")
    with pytest.raises(PrefoptError, match="not the results of a study"):
        read_table(tmp_path / "results.json")


def test_runs_far_away_do_not_squeeze_the_others() -> None:
    window = Window.of([1.0, 1.1, 1.2, 1.3, 800.0, float("nan")], keep=[0.9])
    assert (window.low, window.high) == (0.9, 1.3)
    assert window.clip(800.0) == 1.3 and [window.side(v) for v in (0.0, 1.0, 9.0)] == [-1, 0, 1]
    assert Window.of([2.0, 2.0, 5.0]).high == 5.0  # a middle half of nothing says nothing about far
    assert Window.of([], keep=[]) == Window(0.0, 1.0)
    assert [marker(*sides) for sides in ((0, 0), (1, 0), (1, -1), (0, 1))] == ["o", ">", "v", "^"]
