"""The frame on a reproduction that takes no time."""

import json
import pickle
from pathlib import Path

import pytest
from matplotlib.figure import Figure
from PIL import Image

from prefopt import papers
from prefopt.errors import PrefoptError
from prefopt.reproductions import Demand, Reproduction, load_all, reproduce
from prefopt.reproductions.bench import Event, Progress
from prefopt.reproductions.table import table
from prefopt.studies import pool


class Toy:
    """Counts its steps; `stop` raises `error` in a step of that seed."""

    def __init__(self):
        self.done, self.stop, self.error = [], None, KeyboardInterrupt()

    def run(self, bench):
        def compute():
            if self.stop == bench.seed:
                raise self.error
            self.done.append(bench.seed)
            return {"x": bench.seed / 10}

        first = bench.once("first", compute)
        (bench.folder / "picture.png").parent.mkdir(exist_ok=True)
        Image.new("RGB", (4, 4)).save(bench.folder / "picture.png")
        return first | {"second": bench.once("second", lambda: [1, 2])}

    def reproduction(self, least=0.05, settings=None):
        return Reproduction(
            slug="toy",
            paper="0000.00000",
            claim="A toy works.",
            setting="Nothing is trained.",
            demands=(Demand("x", lambda m: m["x"], least=least),),
            settings=settings or {"rates": (1, 2)},
            run=self.run,
            plot=lambda seeds: Figure(figsize=(len(seeds), 1)),
            steps=2,
            remarks=("There is no paper.",),
            keeps=("picture.png",),
        )


@pytest.fixture
def toy():
    return Toy()


def test_a_verdict_with_its_files(toy, tmp_path):
    outcome = reproduce(toy.reproduction(), 3, tmp_path)
    assert outcome.verdict == "holds" and toy.done == [1, 2, 3]
    found = json.loads((tmp_path / "toy.json").read_text())
    assert found["verdict"] == "holds" and found["slug"] == "toy" and found["seeds"] == [1, 2, 3]
    assert found["criterion"] == ["x: at least 0.05 on every seed"] and found["settings"] == {"rates": [1, 2]}
    assert found["measurements"][1] == {"x": 0.2, "second": [1, 2]}
    assert found["checks"][0]["seeds"] == [0.1, 0.2, 0.3] and found["checks"][0]["mean"] == pytest.approx(0.2)
    assert found["versions"]["torch"] and found["seconds"] >= 0 and found["cpu_seconds"] >= 0
    assert Image.open(tmp_path / "toy.png").size == (450, 150)
    assert Image.open(tmp_path / "toy-picture.png").size == (4, 4)
    said = outcome.summary()
    assert "met: x: at least 0.05 on every seed; measured 0.1, 0.2, 0.3" in said and "the claim holds" in said


def test_a_demand_that_is_not_met_fails_the_claim(toy, tmp_path):
    outcome = reproduce(toy.reproduction(least=0.15), 2, tmp_path)
    assert outcome.verdict == "fails" and json.loads((tmp_path / "toy.json").read_text())["verdict"] == "fails"
    assert "NOT MET" in outcome.summary() and "on 2 of the 3 seeds" in outcome.summary()


def test_finished_steps_are_not_done_again(toy, tmp_path):
    toy.stop = 2
    with pytest.raises(KeyboardInterrupt):
        reproduce(toy.reproduction(), 3, tmp_path)
    assert toy.done == [1] and not (tmp_path / "toy.json").exists()
    toy.stop = None
    reproduce(toy.reproduction(), 3, tmp_path)
    assert toy.done == [1, 2, 3]
    reproduce(toy.reproduction(least=0.5), 4, tmp_path)  # another criterion on the same measurements, one seed more
    assert toy.done == [1, 2, 3, 4]
    assert json.loads((tmp_path / "toy.json").read_text())["verdict"] == "fails"


def test_work_of_other_settings_is_refused(toy, tmp_path):
    reproduce(toy.reproduction(), 1, tmp_path)
    with pytest.raises(PrefoptError, match="other settings"):
        reproduce(toy.reproduction(settings={"rates": (1, 3)}), 1, tmp_path)
    assert toy.done == [1]


def test_a_damaged_step_is_named(toy, tmp_path):
    reproduce(toy.reproduction(), 1, tmp_path)
    step = tmp_path / "runs" / "toy" / "seed-1" / "first.json"
    step.write_text(step.read_text()[:10])
    with pytest.raises(PrefoptError, match=r"first\.json is damaged"):
        reproduce(toy.reproduction(), 1, tmp_path)


def test_wrong_inputs(toy, tmp_path):
    with pytest.raises(PrefoptError, match="no reproduction of 'dppo'; there are: .*dpo"):
        reproduce("dppo", 3, tmp_path)
    with pytest.raises(PrefoptError, match="at least one seed"):
        reproduce(toy.reproduction(), 0, tmp_path)
    with pytest.raises(PrefoptError, match="jobs = 0: a verdict needs at least one job"):
        reproduce(toy.reproduction(), 1, tmp_path, jobs=0)
    (tmp_path / "file").write_text("")
    with pytest.raises(PrefoptError, match="cannot be written"):
        reproduce(toy.reproduction(), 1, tmp_path / "file")


def test_progress_counts_all_seeds(toy, tmp_path, caplog):
    caplog.set_level("INFO", "prefopt")
    reproduce(toy.reproduction(), 2, tmp_path)
    assert [r.getMessage().split(",")[0] for r in caplog.records] == [f"toy: step {n} of 4" for n in (1, 2, 3, 4)]
    caplog.clear()
    reproduce(toy.reproduction(), 3, tmp_path)
    assert [r.getMessage().split(",")[0] for r in caplog.records] == ["toy: step 5 of 6", "toy: step 6 of 6"]


def test_seeds_side_by_side(toy, tmp_path, caplog):
    caplog.set_level("INFO", "prefopt")
    reproduce(toy.reproduction(), 3, tmp_path / "serial", progress=False)
    toy.done.clear()
    outcome = reproduce(toy.reproduction(), 3, tmp_path / "beside", jobs=2)
    assert outcome.verdict == "holds" and toy.done == []  # by other processes, and not again by this one
    one, other = (json.loads((tmp_path / name / "toy.json").read_text()) for name in ("serial", "beside"))
    assert all(one[key] == other[key] for key in ("verdict", "checks", "measurements", "seeds"))
    told = [r.getMessage().split(", ") for r in caplog.records]
    assert [words[0] for words in told] == [f"toy: step {n} of 6" for n in range(1, 7)]
    assert {words[1] for words in told} == {f"seed {n}: {step}" for n in (1, 2, 3) for step in ("first", "second")}
    assert all((tmp_path / "beside" / "runs" / "toy" / f"seed-{n}" / "log.txt").is_file() for n in (1, 2, 3))


@pytest.mark.parametrize(
    ("error", "told"), [(PrefoptError("no room"), "no room"), (ZeroDivisionError("a bug"), "ZeroDivisionError: a bug")]
)
def test_a_seed_that_fails_beside_others_is_named(toy, tmp_path, monkeypatch, capfd, error, told):
    def work_off(tasks, jobs, hear):
        """One after the other, in this process."""
        monkeypatch.setattr(pool, "say", hear)
        for number, (function, arguments, _) in enumerate(tasks):
            try:
                function(*arguments)
                yield pool.End(number)
            except PrefoptError as e:
                yield pool.End(number, str(e))
            except Exception as e:
                yield pool.End(number, f"{type(e).__name__}: {e}")

    monkeypatch.setattr(pool, "work_off", work_off)
    toy.stop, toy.error = 2, error
    with pytest.raises(PrefoptError, match=rf"toy, seed 2: {told} \(.*seed-2/log\.txt has what it printed\)"):
        reproduce(toy.reproduction(), 3, tmp_path, jobs=3)
    traceback_of_the_error = f"{type(error).__name__}: {error}\n"  # its last line
    assert (traceback_of_the_error in capfd.readouterr().err) == (not isinstance(error, PrefoptError))
    assert toy.done == [1] and not (tmp_path / "toy.json").exists()
    toy.stop = None
    assert reproduce(toy.reproduction(), 3, tmp_path).verdict == "holds" and toy.done == [1, 2, 3]


def test_every_reproduction_can_be_given_to_a_process():
    for reproduction in load_all().values():
        assert pickle.loads(pickle.dumps(reproduction.run)) is reproduction.run


def test_a_step_that_begins_again_after_a_kill_is_told_once(caplog):
    caplog.set_level("INFO", "prefopt")
    told = Progress("toy", 2)
    for step in ("a", "a", "b"):
        told.hear(Event(1, Path(f"1/{step}.json")))
    assert [r.getMessage() for r in caplog.records] == ["toy: step 1 of 2, seed 1: a", "toy: step 2 of 2, seed 1: b"]


@pytest.mark.parametrize(("jobs", "minutes"), [(1, 8), (3, 4)])
def test_what_is_left_is_shared_by_the_jobs(jobs, minutes):
    told = Progress("toy", 9, seeds=3, jobs=jobs)
    for seed, step in ((1, "a"), (1, "b"), (1, "c"), (2, "a"), (3, "a"), (3, "a")):  # one is heard of twice
        told.hear(Event(seed, Path(f"{seed}/{step}.json"), 120.0, 60.0))
    assert told.done == 5 and told.seconds == 600 and told.cpu_seconds == 300
    assert told.minutes_left == pytest.approx(minutes)  # 4 steps of 2 minutes, 2 of them of one seed


def test_the_table_names_every_verdict(toy, tmp_path):
    reproduce(toy.reproduction(), 2, tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert text == table(tmp_path)
    assert "| [toy](#toy) |" in text and "**holds**" in text and "0.100, 0.200" in text
    assert "![toy](toy.png)" in text and "![toy](toy-picture.png)" in text and "There is no paper." in text


def test_work_is_kept_out_of_a_checkout(toy, tmp_path):
    reproduce(toy.reproduction(), 1, tmp_path)
    assert (tmp_path / "runs" / ".gitignore").read_text() == "*\n"


COMMITTED = papers.Path(papers.__file__).parents[2] / "docs" / "reproductions"


@pytest.mark.skipif(not COMMITTED.is_dir(), reason="not a checkout")
def test_the_committed_page_is_current():
    assert (COMMITTED / "README.md").read_text() == table(COMMITTED), "run prefopt.reproductions.table.write_table"


@pytest.mark.parametrize("path", sorted(COMMITTED.glob("*.json")), ids=lambda p: p.stem)
def test_committed_verdicts_belong_to_what_is_here(path):
    """The verdict follows from the committed measurements by today's criterion, with today's settings."""
    found = json.loads(path.read_text())
    reproduction = load_all()[path.stem]
    judged = reproduction.judge(found["measurements"])
    assert found["verdict"] == judged.verdict == papers.verdict(path.stem)
    assert found["criterion"] == [d.criterion for d in reproduction.demands]
    assert found["settings"] == json.loads(json.dumps(reproduction.settings))
    assert len(found["seeds"]) >= reproduction.seeds
    assert path.with_suffix(".png").stat().st_size > 5000
