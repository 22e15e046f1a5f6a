"""The survey's benchmark: data for whatever a method reads, one seed on a few methods, and how its table is judged."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
from matplotlib.figure import Figure

from prefopt.methods import load_all
from prefopt.objectives.method import METHODS
from prefopt.reproductions import survey, survey_rows
from prefopt.reproductions.small import bench_at
from prefopt.training.needs import data_needs
from prefopt.worlds.copying import make as copying_make

FEW = ("dpo", "kto", "tgdpo", "triple-tpo", "tree-tpo", "hypo", "modpo", "self-spo", "step-dpo", "infifpo")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(copying_make, "STEPS", 40)
    small = {"layers": 1, "hidden": 16, "pairs": 48, "lists": 24, "heldout": 8}
    monkeypatch.setattr(survey, "WORLD", survey.WORLD | small)
    monkeypatch.setattr(survey, "TRAIN", {"steps": 2, "learning_rate": 1e-3, "batch": 8})
    monkeypatch.setattr(survey, "SAMPLES", 16)
    monkeypatch.setattr(survey, "PAIRS", 8)
    every = survey_rows.lm_methods()
    monkeypatch.setattr(survey, "lm_methods", lambda: {n: every[n] for n in FEW})


def test_a_seed(tiny: None, tmp_path: Path) -> None:
    found = survey.run(bench_at(tmp_path, 1))
    assert set(found) == {"start", *FEW}
    assert all(math.isfinite(x) for row in found.values() for x in row.values())
    assert found["start"]["kl"] == found["start"]["drift"] == 0
    assert all(found[name]["kl"] > 0 for name in FEW)
    assert survey.missing(found) == 0
    assert survey.missing({k: v for k, v in found.items() if k != "kto"}) == 1
    assert survey.missing(found | {"kto": found["kto"] | {"kl": math.nan}}) == 1
    assert isinstance(survey.plot([found, found]), Figure)
    lines = (tmp_path / "table.md").read_text().splitlines()
    assert len(lines) == 2 + len(found)
    assert lines[2].startswith("| start | ")
    own = [json.loads(line) for line in (tmp_path / "sampled.jsonl").read_text().splitlines()]
    assert all(len(r["responses"]) == len(r["on_policy"]) == 3 and r["pairs"] == [[0, 1]] for r in own)


def test_every_method_finds_what_it_reads(tiny: None, tmp_path: Path) -> None:
    """Whatever a registered method asks of the data stands in the rows that it is given."""
    from prefopt.worlds import copying

    world = copying.build(tmp_path / "cache", seed=1, **survey.WORLD)
    pairs = survey_rows.write_pairs(world, tmp_path / "pairs.jsonl", own=False, seed=1)
    row = json.loads(pairs.read_text().splitlines()[0])
    made = {
        "pairs",
        "pairs|label",
        "pairs|demonstrations",
        "label",
        "graded",
        "common_steps",
        "step_index",
        "gold",
        "value",
    }
    for name, needs in survey_rows.lm_methods().items():
        section = survey_rows.data_of(needs, world, pairs, tmp_path / "sampled.jsonl")
        if section["path"] == str(pairs):
            for note in data_needs(needs) - made:
                assert note in row or f"chosen_{note}" in row, (name, note)


def test_which_methods_are_judged() -> None:
    load_all()
    every = survey_rows.lm_methods()
    assert {"dpo", "kto", "lipo", "wpo", "sft"} <= every.keys()
    assert not {"bt-reward", "diffusion-dpo"} & every.keys()
    tagged = survey.length_tagged()
    assert {"simpo", "ln-dpo", "ld-dpo", "r-dpo", "sampo"} <= set(tagged)
    assert all("length_bias" in METHODS[n].tags for n in tagged)


def test_steps_apart() -> None:
    assert [survey_rows._apart(a, b) for a, b in (("abcd", "xbcd"), ("abcdef", "abcdex"), ("abcd", "abcdef"))] == [
        1,
        2,
        2,
    ]
