"""A study from the command line: runs that end, one that fails and one that diverges, kills, and what is kept."""

from __future__ import annotations

import csv
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml

from prefopt.errors import PrefoptError
from prefopt.studies.config import make_study
from prefopt.studies.plan import plan
from prefopt.studies.run import run_study
from prefopt.studies.table import read_table
from prefopt.studies.work import do_run, measure_start
from tests.studies.small import content

BROKEN = '''
import torch
from prefopt import Loss, method, over_pairs

@method("broken")
def broken(r):
    """Good on the made-up batch, and raises in training."""
    w, l = r.pairs()
    if r.policy.values.dtype == torch.float32:
        raise RuntimeError("a bug of this method")
    return Loss(preference=over_pairs(l.policy.sum() - w.policy.sum()))
'''
METHODS: dict[str, Any] = {
    "dpo": {"grid": {"beta": [0.1, 0.5]}},
    "wild": {"method": "simpo", "settings": {"train.learning_rate": 1e30}},
}


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory, text_model: Path, pairs_file: Path) -> tuple[dict[str, Any], Path]:
    """A study that was run once: two runs that end, one that raises, one that leaves the finite numbers."""
    tmp = tmp_path_factory.mktemp("study")
    (tmp / "broken.py").write_text(BROKEN)
    methods = METHODS | {"broken": {"method": str(tmp / "broken.py")}}
    given = content(tmp, text_model, pairs_file, methods=methods, sizes=["all", 8], keep="samples")
    with pytest.MonkeyPatch.context() as here:
        here.setenv("PREFOPT_CACHE", str(tmp / "cache"))  # another test may have stored the same reference
        outcome = run_study(make_study(given))
    assert (outcome.planned, outcome.finished, outcome.failed, outcome.missing) == (7, 3, 4, 0)
    return given, outcome.folder


def results(folder: Path) -> dict[str, dict[str, Any]]:
    return {p.parent.name: json.loads(p.read_text()) for p in folder.glob("runs/*/result.json")}


def test_failures_are_results_and_the_others_go_on(done: tuple[dict[str, Any], Path]) -> None:
    _, folder = done
    rows = read_table(folder / "results.json").rows
    assert {(r["label"], r["status"]) for r in rows} == {
        ("dpo", "finished"),
        ("wild", "diverged"),
        ("broken", "failed"),
    }
    assert all("RuntimeError: a bug of this method" in r["error"] for r in rows if r["label"] == "broken")
    assert all("finite" in r["error"] for r in rows if r["label"] == "wild")
    found = json.loads((folder / "results.json").read_text())["summary"]
    worst = min(r["reward"] for r in rows if r["status"] == "finished" and r["size"] is None)
    worst = min(worst, read_table(folder / "results.json").starts["start"]["reward"])
    assert found["methods"]["wild"]["best"] == found["methods"]["broken"]["best"] == worst
    assert found["methods"]["wild"]["diverged"] == found["methods"]["broken"]["failed"] == 1
    assert [p["size"] for p in found["sizes"]["dpo"]["start"]] == [8, None]
    page = (folder / "report.html").read_text()
    assert (
        "a bug of this method" in page
        and "diverged" in page
        and "<script" not in page
        and "http" not in page.split("</style>")[1]
    )


def test_every_number_is_there_and_finite(done: tuple[dict[str, Any], Path]) -> None:
    _, folder = done
    with (folder / "results.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["status"] == "finished"]
    wanted = ["reward", "reward_se", "gain", "win_start", "win_chosen", "kl", "kl_se", "kl_per_token", "length", "ended",
              "accuracy", "ratio_accuracy", "chosen_drift", "seconds"]  # fmt: skip
    assert len(rows) == 3
    for row in rows:
        assert all(abs(float(row[name])) < 1e9 for name in wanted)
        assert 0 <= float(row["win_start"]) <= 1 and 1 <= float(row["length"]) <= 8
        assert row["steps"] == "3"


def test_little_is_kept(done: tuple[dict[str, Any], Path]) -> None:
    _, folder = done
    for run, result in results(folder).items():
        names = {p.name for p in (folder / "runs" / run).iterdir()}
        assert not {"run", "checkpoint-3"} & names
        assert ({"metrics.jsonl", "samples.jsonl"} <= names) == (result["status"] == "finished")
    assert not list(folder.rglob("*.safetensors"))
    config = yaml.safe_load((folder / "study.yaml").read_text())
    assert make_study(config).methods.keys() == {"dpo", "wild", "broken"}  # what was run can be run again


def test_the_reference_is_computed_once(done: tuple[dict[str, Any], Path]) -> None:
    _, folder = done
    found = results(folder)
    computed = {
        run: "reference log-probs" in (folder / "runs" / run / "log.txt").read_text()
        for run, result in found.items()
        if result["label"] == "dpo" and result["size"] is None  # the others see other rows
    }
    assert len(computed) == 2 and sum(computed.values()) == 1
    assert len({r["fingerprints"]["reference"] for r in found.values() if r["status"] == "finished"}) == 1


def test_started_again_nothing_is_done_twice(done: tuple[dict[str, Any], Path]) -> None:
    given, folder = done
    times = {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/*")} | {
        p: p.stat().st_mtime_ns for p in folder.glob("starts/*.json")
    }
    before = (folder / "results.csv").read_text()
    outcome = run_study(make_study(given))
    assert outcome.finished == 3 and outcome.failed == 4
    assert all(p.stat().st_mtime_ns == t for p, t in times.items())
    assert (folder / "results.csv").read_text() == before


def test_dry_run_and_other_output(done: tuple[dict[str, Any], Path], tmp_path: Path) -> None:
    given, _ = done
    outcome = run_study(make_study(given | {"output": str(tmp_path / "new")}), dry_run=True)
    assert outcome.missing == 7 and not (tmp_path / "new").exists()
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("not a study")
    with pytest.raises(PrefoptError, match="holds other files"):
        run_study(make_study(given | {"output": str(tmp_path / "mine")}))
    reward = f"{tmp_path / 'nan.py'}:score"
    (tmp_path / "nan.py").write_text("def score(prompts, responses):\n    return [float('nan')] * len(responses)\n")
    evaluation = given["evaluation"] | {"reward": reward}
    with pytest.raises(PrefoptError, match=r"the start model 'start' cannot be measured: .*not finite"):
        run_study(make_study(given | {"evaluation": evaluation, "output": str(tmp_path / "new")}))
    assert not list((tmp_path / "new").glob("runs/*"))  # nothing was trained


def command(given: dict[str, Any], path: Path) -> subprocess.Popen[str]:
    path.write_text(yaml.safe_dump(given))
    argv = [sys.executable, "-m", "prefopt", "study", str(path)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def until(wanted: Any, process: subprocess.Popen[str]) -> None:
    end = time.monotonic() + 240
    while not wanted():
        assert process.poll() is None and time.monotonic() < end, process.communicate()[0]
        time.sleep(0.005)


def test_killed_in_a_run_it_goes_on_there(tmp_path: Path, text_model: Path, pairs_file: Path) -> None:
    """SIGKILL while the second run has a checkpoint: its worker dies with the study, and the second start ends as an
    undisturbed one."""
    given = content(tmp_path, text_model, pairs_file, methods={"dpo": {"grid": {"beta": [0.1, 0.5]}}})
    given["train"]["max_steps"] = 12
    folder = Path(given["output"])
    process = command(given, tmp_path / "study.yaml")
    until(lambda: results(folder) and list(folder.glob("runs/*/run/checkpoint-[3-9]/whole")), process)
    (worker,) = [int(p) for p in children(process.pid)]
    process.send_signal(signal.SIGKILL)
    process.wait()
    (first,) = results(folder)
    end = time.monotonic() + 30
    while alive(worker):
        assert time.monotonic() < end, "the worker outlives its study"
        time.sleep(0.05)
    kept = (folder / "runs" / first / "result.json").stat().st_mtime_ns
    outcome = run_study(make_study(given))
    assert outcome.finished == 2
    assert (folder / "runs" / first / "result.json").stat().st_mtime_ns == kept
    (second,) = set(results(folder)) - {first}
    assert "going on from" in (folder / "runs" / second / "log.txt").read_text()
    study = make_study(given | {"output": str(tmp_path / "whole")})
    (run,) = (run for run in plan(study) if run.name == second)
    measure_start(study, run)
    do_run(study, run)  # left alone
    assert results(tmp_path / "whole")[second]["numbers"] == results(folder)[second]["numbers"]


def children(pid: int) -> list[str]:
    """Worker processes (not the resource tracker) of a process."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = stat.read_text().rsplit(")", 1)[1].split()[1]
            line = (stat.parent / "cmdline").read_text()
        except OSError:
            continue
        if int(parent) == pid and "spawn_main" in line:
            found.append(stat.parent.name)
    return found


def alive(pid: int) -> bool:
    try:
        return (Path("/proc") / str(pid) / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def test_steps_of_a_recipe_are_counted_over_its_parts(tmp_path: Path, text_model: Path, pairs_file: Path) -> None:
    line = {"tgdpo-from-pairs": {"settings": {"train.max_steps": 2}}}
    study = make_study(content(tmp_path, text_model, pairs_file, methods=line))
    assert run_study(study).finished == 1
    with (tmp_path / "out" / "results.csv").open() as file:
        (row,) = csv.DictReader(file)
    assert row["steps"] == "4"  # two of the model that guides, two of its own


def test_what_another_version_began_is_begun_anew(tmp_path: Path, text_model: Path, pairs_file: Path) -> None:
    study = make_study(content(tmp_path, text_model, pairs_file, methods=["simpo"]))
    (run,) = plan(study)
    left = tmp_path / "out" / "runs" / run.name / "run"
    left.mkdir(parents=True)
    (left / "config.yaml").write_text("method: {name: simpo, a_key_of_old: 1}\n")
    measure_start(study, run)
    do_run(study, run)
    assert json.loads((left.parent / "result.json").read_text())["status"] == "finished"
