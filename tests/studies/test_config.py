"""Studies that cannot be run are refused before anything is, each with one message that names the key."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from prefopt.errors import PrefoptError
from prefopt.studies.check import check
from prefopt.studies.config import laid_over, make_study
from prefopt.studies.plan import plan
from tests.studies.small import content

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "unknown key": ({"seed": [1]}, "unknown key 'seed'; did you mean 'seeds'"),
    "unknown key of a method": ({"methods": {"dpo": {"gird": {}}}}, "methods.dpo.gird'; did you mean 'methods.dpo.grid'"),
    "unknown key of the evaluation": ({"evaluation": {"rewards": "x"}}, "did you mean 'evaluation.reward'"),
    "unknown method": ({"methods": ["dpoo"]}, "no method 'dpoo'; did you mean 'dpo'"),
    "unknown hyperparameter": ({"methods": {"dpo": {"grid": {"betta": [1]}}}}, "dpo has no hyperparameter 'betta'"),
    "value out of range": ({"methods": {"dpo": {"grid": {"beta": [0.1, -1]}}}}, "dpo beta=-1, start start, seed 0: dpo.beta"),
    "unknown key of a run": ({"methods": {"dpo": {"grid": {"train.learning_rat": [1]}}}}, "train.learning_rate"),
    "no runs": ({"methods": {"dpo": {"grid": {"beta": []}}}}, "methods.dpo.grid.beta is empty"),
    "no methods": ({"methods": {}}, "lacks `methods`"),
    "no seeds": ({"seeds": []}, "seeds is empty"),
    "a line's seed that is none": ({"methods": {"dpo": {"seeds": [1]}}}, "methods.dpo.seeds: [1] not among seeds = [0]"),
    "a seed twice": ({"seeds": [1, 1]}, "names a value twice"),
    "a setting twice": ({"methods": {"dpo": {"points": [{"beta": 1}, {"beta": 1}]}}}, "same setting is named twice"),
    "points of different keys": ({"methods": {"dpo": {"points": [{"beta": 1}, {}]}}}, "every point sets the same keys; beta"),
    "grid and points": ({"methods": {"dpo": {"grid": {"beta": [1]}, "points": [{"beta": 1}]}}}, "exclude each other"),
    "set and varied": (
        {"methods": {"dpo": {"grid": {"beta": [1]}, "settings": {"beta": 1}}}}, "beta is both in `settings` and varied",
    ),
    "the same run twice": ({"methods": {"dpo": None, "again": {"method": "dpo"}}}, "two runs of the study are the same"),
    "nothing to compare by": ({"evaluation": {"limit": 3}}, "needs a `reward` or a `judge`"),
    "a reward that is not there": ({"evaluation": {"reward": "nowhere.py:f"}}, "nowhere.py"),
    "more rows than there are": ({"sizes": ["all", 4000]}, "4000 rows are asked for"),
    "an empty subset": ({"sizes": [0]}, "at least 1 row"),
    "limit beside sizes": ({"data": {"path": "x", "limit": 3}, "sizes": [4]}, "data.limit has no effect"),
    "seed in train": ({"train": {"seed": 3}}, "train.seed has no effect in a study"),
    "two models": ({"starts": {"a": "x"}}, "model.path has no effect beside `starts`"),
    "a label that is no name": ({"methods": {"a/b": {"method": "dpo"}}}, "a label is made of letters"),
    "a reward model": ({"methods": ["bt-reward"]}, "makes a reward model"),
    "a key without effect": ({"methods": {"simpo": {"grid": {"reference.kind": ["frozen"]}}}}, "reference.kind has no effect"),
    "a method that lacks its data": ({"methods": ["triple-tpo"]}, "gold"),
    "the model varied": ({"methods": {"dpo": {"grid": {"model.path": ["a"]}}}}, "set `starts`"),
    "crossed by a name that is no line": ({"sizes": [4, 8], "crossed": ["dppo"]}, "line of `crossed` 'dppo'; did you mean 'dpo'"),
    "crossed twice": ({"sizes": [4, 8], "crossed": ["dpo", "dpo"]}, "names a value twice"),
    "nothing to cross with": ({"crossed": ["dpo"]}, "crossed has no effect with one start and one size"),
    "jobs": ({"jobs": 0}, "jobs = 0"),
}  # fmt: skip


def examine(given: dict[str, Any]) -> list[str]:
    study = make_study(given)
    return check(study, plan(study))


@pytest.mark.parametrize("case", BAD)
def test_bad_studies(case: str, tmp_path: Path, text_model: Path, pairs_file: Path) -> None:
    changes, words = BAD[case]
    given = content(tmp_path, text_model, pairs_file, **changes)
    with pytest.raises(PrefoptError) as raised:
        examine(given)
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)
    assert not (tmp_path / "out").exists()


def test_warnings(tmp_path: Path, text_model: Path, pairs_file: Path) -> None:
    study = make_study(content(tmp_path, text_model, pairs_file))
    told = " | ".join(check(study, plan(study)))
    assert "dpo is tried with 2 settings, simpo with 1" in told and "one seed" in told
    same = {"path": str(tmp_path / "train.jsonl"), "eval_path": str(tmp_path / "train.jsonl")}
    study = make_study(content(tmp_path, text_model, pairs_file, data=same))
    assert any("are also in" in w for w in check(study, plan(study)))


def test_runs_are_named_by_what_they_depend_on(tmp_path: Path, text_model: Path, pairs_file: Path) -> None:
    def names(**changes: Any) -> dict[str, str]:
        return {run.title: run.name for run in plan(make_study(content(tmp_path, text_model, pairs_file, **changes)))}

    first = names()
    assert len(first) == 3 and len(set(first.values())) == 3
    assert names(jobs=4, keep="models", output=str(tmp_path / "other"), name="other") == first
    more = names(methods={"dpo": {"grid": {"beta": [0.1, 0.5, 1.0]}}, "simpo": None}, seeds=[0, 1])
    assert first.items() <= more.items() and len(more) == 8  # what was done stays done when the grid grows
    evaluation = {"reward": f"{tmp_path / 'reward.py'}:score", "limit": 5}
    assert not set(names(evaluation=evaluation).values()) & set(first.values())
    data = {"path": str(tmp_path / "train.jsonl"), "eval_path": str(tmp_path / "held.jsonl"), "max_length": 99}
    assert not set(names(data=data).values()) & set(first.values())
    study = make_study(content(tmp_path, text_model, pairs_file))
    (tmp_path / "held.jsonl").write_text((tmp_path / "train.jsonl").read_text())
    assert not {run.name for run in plan(study)} & set(first.values())  # the same path, other rows


def test_runs_are_named_by_what_their_sources_hold(tmp_path: Path, text_model: Path, pairs_file: Path) -> None:
    def names(folder: Path) -> list[str]:
        line = {"method": "tis-dpo", "settings": {"sources.positive": str(folder), "sources.negative": str(text_model)}}
        return [r.name for r in plan(make_study(content(tmp_path, text_model, pairs_file, methods={"tis": line})))]

    source, elsewhere = tmp_path / "source", tmp_path / "elsewhere"
    shutil.copytree(text_model, source)
    first = names(source)
    shutil.copytree(source, elsewhere)
    assert names(elsewhere) == first
    (source / "config.json").write_text("{}")
    assert names(source) != first


def test_other_starts_and_sizes_take_the_central_setting(tmp_path: Path, text_model: Path, pairs_file: Path) -> None:
    def runs(**changes: Any) -> list[tuple[Any, ...]]:
        given = content(tmp_path, text_model, pairs_file, sizes=["all", 4, 8], **changes)
        given["starts"] = {
            "sft": given.pop("model"),
            "base": {"path": str(text_model), "dtype": "float32", "revision": "x"},
        }
        return [(r.label, r.point.get("beta"), r.start, r.size) for r in plan(make_study(given))]

    found = runs()
    assert [r for r in found if r[1] == 0.5] == [("dpo", 0.5, "sft", None)]
    assert len(found) == 1 + 2 * 2 * 3 and len(set(found)) == len(found)
    assert len(runs(cross="full")) == 3 * 2 * 3
    axes = [(r[2], r[3]) for r in runs(cross="axes") if r[0] == "simpo"]
    assert axes == [("sft", None), ("sft", 4), ("sft", 8), ("base", None)]
    some = runs(crossed=["simpo"])
    assert [r for r in some if r[0] == "dpo"] == [("dpo", 0.1, "sft", None), ("dpo", 0.5, "sft", None)]
    assert [r for r in some if r[0] == "simpo"] == [r for r in found if r[0] == "simpo"]
    assert len(runs(cross="full", crossed=["dpo"])) == 2 * 2 * 3 + 1


def test_a_line_may_have_fewer_seeds(tmp_path: Path, text_model: Path, pairs_file: Path) -> None:
    given = content(tmp_path, text_model, pairs_file, methods={"dpo": {"seeds": [2]}, "ipo": None}, seeds=[1, 2])
    study = make_study(given)
    assert [(r.label, r.seed) for r in plan(study)] == [("ipo", 1), ("dpo", 2), ("ipo", 2)]
    assert "fewer than 2 seeds: dpo 1" in check(study, plan(study))


def test_keys_go_where_they_belong(tmp_path: Path, text_model: Path, pairs_file: Path) -> None:
    methods = {"dpo": {"grid": {"beta": [0.2], "train.learning_rate": [1e-4]}, "settings": {"data.max_length": 64}}}
    given = content(tmp_path, text_model, pairs_file, methods=methods, sizes=[8], seeds=[7])
    (run,) = plan(make_study(given))
    config = run.config("x")
    assert config.method == {"name": "dpo", "beta": 0.2} and config.data.max_length == 64 and config.data.limit == 8
    assert config.train["learning_rate"] == 1e-4 and config.train["seed"] == 7
    assert config.data.eval_path is None  # the study measures, its runs only train
    assert given["train"].get("seed") is None and given["data"]["eval_path"]  # what was given is as it was


def test_overrides() -> None:
    found = laid_over(
        {"data": "a", "jobs": 1}, ["jobs=2", "seeds=[1, 2]", "train.max_steps=3", "methods.dpo.grid.beta=[1]"]
    )
    assert found["jobs"] == 2 and found["seeds"] == [1, 2] and found["train"] == {"max_steps": 3}
    assert found["methods"] == {"dpo": {"grid": {"beta": [1]}}}
    with pytest.raises(PrefoptError, match="names no section"):
        laid_over({}, ["job=2"])
