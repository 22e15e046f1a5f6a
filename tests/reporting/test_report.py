"""The report: complete in itself, honest about what it shows, and content with whatever a run has left."""

import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

from prefopt.errors import PrefoptError
from prefopt.reporting.figures import outcome_figures, training_figures
from prefopt.reporting.health import findings
from prefopt.reporting.plots import smoothed
from prefopt.reporting.report import headline, write_report
from prefopt.reporting.run_folder import Run, read_run
from prefopt.reporting.sections import chosen_samples, data_summary, learnt, number, tiles

from .fake_run import EVALUATION, fake_run


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return fake_run(tmp_path_factory.mktemp("runs") / "reviews-dpo", images=4)


@pytest.fixture(scope="module")
def page(folder):
    return write_report(folder).read_text(encoding="utf-8")


class Balance(HTMLParser):
    """Every tag closed in order; every id once."""

    EMPTY = frozenset({"meta", "img", "br", "link", "use", "path", "hr"})

    def __init__(self):
        super().__init__()
        self.stack, self.ids = [], []

    def handle_starttag(self, tag, attributes):
        self.ids += [v for k, v in attributes if k == "id"]
        if tag not in self.EMPTY:
            self.stack.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.ids += [v for k, v in attributes if k == "id"]

    def handle_endtag(self, tag):
        if tag not in self.EMPTY:
            assert self.stack.pop() == tag


def test_html_is_sound_and_needs_nothing_else(page):
    parser = Balance()
    parser.feed(page)
    assert parser.stack == []
    assert len(parser.ids) == len(set(parser.ids))
    used = set(re.findall(r'(?:href="|url\()#([\w-]+)', page))
    assert used
    assert used <= set(parser.ids)
    assert "<script" not in page
    assert "<link" not in page
    outside = set(re.findall(r'(?:src|href)="(?!#|data:)([^"]*)"', page)) | set(re.findall(r"url\((?!#)[^)]*", page))
    assert not outside


def test_all_parts_are_there(page):
    for part in ("outcome", "samples", "images", "training", "numbers", "data", "setup"):
        assert f'id="{part}"' in page
    assert "DPO raised the mean reward from 0.112 to 0.744" in page
    assert "identical answers" in page
    assert "17, 404, 1033" in page
    assert page.count("data:image/png;base64,") == 8
    assert "label_smoothing: 0.0" in page
    assert "2.13.0" in page
    assert page.count("<svg") == 4 + 7


def test_plots_take_the_pages_colours_in_light_and_dark(page):
    assert "prefers-color-scheme: dark" in page
    plots = "".join(re.findall(r"<svg.*?</svg>", page, re.DOTALL))
    assert "var(--after)" in plots
    assert "DejaVu" not in plots
    assert not re.findall(r"#0[1-7]0[2-8]0[3-9]", plots)


def test_the_report_is_reproducible(folder, page, tmp_path):
    assert write_report(folder, tmp_path / "deep" / "again.html").read_text(encoding="utf-8") == page


@pytest.mark.parametrize(
    "keep", ["config.yaml", "run.json", "metrics.jsonl", "evaluation.json", "samples.jsonl", "images.jsonl"]
)
def test_one_file_is_enough(folder, tmp_path, keep):
    (tmp_path / keep).write_text((folder / keep).read_text())
    text = write_report(tmp_path).read_text(encoding="utf-8")
    Balance().feed(text)
    assert "<h1>" in text


def test_trainer_state_alone_gives_the_curves(folder, tmp_path):
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": [*rows, {"train_runtime": 3.0}]}))
    assert len(training_figures(read_run(tmp_path))) == 7


def test_folders_that_hold_no_run(tmp_path):
    with pytest.raises(PrefoptError, match="not a folder"):
        write_report(tmp_path / "absent")
    with pytest.raises(PrefoptError, match="holds no run"):
        write_report(tmp_path)
    (tmp_path / "run.json").write_text("{")
    with pytest.raises(PrefoptError, match=r"run\.json cannot be read"):
        write_report(tmp_path)


def test_half_a_last_line_is_normal_but_a_broken_one_is_not(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "loss": 0.5}\n{"step": 2, "lo')
    assert len(read_run(tmp_path).metrics) == 1
    (tmp_path / "metrics.jsonl").write_text('{"step": 1,\n{"step": 2}\n')
    with pytest.raises(PrefoptError, match="line 1 is not JSON"):
        read_run(tmp_path)


def test_markup_in_samples_is_shown_not_obeyed(tmp_path):
    row = {
        "prompt": "<b>x</b>",
        "before": "<script>alert(1)</script>",
        "after": "",
        "reward_before": 0,
        "reward_after": 1,
    }
    (tmp_path / "samples.jsonl").write_text(json.dumps(row) + "\n")
    text = write_report(tmp_path).read_text(encoding="utf-8")
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    assert "an empty answer" in text


def test_samples_show_best_typical_and_worst():
    rows = [{"prompt": str(i), "reward_before": 0.0, "reward_after": float(i)} for i in range(11)]
    groups = {name: [r["prompt"] for r in chosen] for name, _, chosen in chosen_samples(rows[::-1])}
    assert groups == {"Best": ["10", "9"], "Typical": ["6", "5"], "Worst": ["1", "0"]}
    assert chosen_samples(rows[:3])[0][0] == "All samples"
    assert chosen_samples([{"prompt": "a"}] * 9)[0][0] == "First samples"
    assert chosen_samples([]) == []


def run_with(evaluation=None, metrics=(), record=None):
    return Run(folder=None, evaluation=evaluation or {}, metrics=list(metrics), record=record or {})


def changed(path, value):
    evaluation = json.loads(json.dumps(EVALUATION))
    node = evaluation
    for key in path[:-1]:
        node = node[key]
    node[path[-1]] = value
    return evaluation


@pytest.mark.parametrize(
    ("path", "value", "title"),
    [
        (("length", "tokens", "policy", "value"), 90.0, "Answers became much longer"),
        (("length", "tokens", "policy", "value"), 9.0, "Answers became much shorter"),
        (("reward", "gain", "ci"), [-0.1, 0.2], "No clear gain"),
        (("reward", "gain", "ci"), [-0.3, -0.2], "The reward fell"),
        (("kl", "k1", "value"), 60.0, "The model moved far from its start"),
        (("finished", "policy", "value"), 0.4, "Answers do not end"),
        (("diversity", "distinct_2", "policy", "value"), 0.3, "Samples became more alike"),
        (("win_rate", "position_bias", "value"), -0.5, "The judge looks at the position"),
    ],
)
def test_health_of_the_outcome(path, value, title):
    assert findings(run_with(EVALUATION)) == []
    assert next(f.title for f in findings(run_with(changed(path, value)))) == title


def test_health_of_the_training():
    steps = range(1, 41)
    falling = [{"step": s, "loss": 0.69 - s / 100, "logps/chosen": -50.0 - s, "grad_norm": 1.0} for s in steps]
    assert [f.title for f in findings(run_with(metrics=falling))] == ["Preferred answers became less likely"]
    flat = [{"step": s, "loss": 0.6931, "grad_norm": 100.0 if s == 20 else 1.0} for s in steps]
    assert [f.title for f in findings(run_with(metrics=flat))] == ["The loss did not move", "The gradient jumps"]
    over = [{"step": s, "loss": 1 / s, "rewards/accuracies": 0.99} for s in steps]
    over.append({"step": 40, "eval_rewards/accuracies": 0.6})
    assert [f.title for f in findings(run_with(metrics=over))] == ["It fits the training pairs better than new ones"]
    both = [{"step": s, "loss": 1 / s, "errors/chosen": 0.001 * s, "errors/rejected": 0.002 * s} for s in steps]
    assert [f.title for f in findings(run_with(metrics=both))] == ["The denoising error rose on both sides"]
    one = [{"step": s, "loss": 1 / s, "errors/chosen": -0.001 * s, "errors/rejected": 0.002 * s} for s in steps]
    assert not findings(run_with(metrics=one))
    broken = [{"step": 1, "loss": float("nan")}]
    assert findings(run_with(metrics=broken))[0].title == "The loss was not finite"
    assert findings(run_with(record={"health": ["masks are dead"]}))[0].text == "masks are dead"


def test_headline_says_when_it_may_be_chance():
    assert "may be chance" in headline(run_with(changed(("reward", "gain", "ci"), [-0.1, 0.2])))
    assert "lowered" in headline(run_with(changed(("reward", "gain", "ci"), [-0.2, -0.1])))


def test_tiles_and_numbers():
    by_label = {t.label: t for t in tiles(EVALUATION)}
    assert list(by_label) == ["Reward", "Win rate", "Preference accuracy", "KL from start", "Length"]
    assert by_label["Reward"].tone == "good"
    assert by_label["Win rate"].bar[1] == 0.84
    assert tiles({}) == []
    assert [number(x) for x in (0, -0.0023, 1.5, 12.34, 12345.6, 1e-7, float("nan"))] == [
        "0", "−0.002", "1.50", "12.3", "12,346", "1.0e−07", "–"]  # fmt: skip
    assert number(0.3891, 7.4) == "0.39"


def test_frontier_needs_two_points_and_shows_all():
    only = run_with({"reward": {"policy": {"value": 1.0}}})
    assert outcome_figures(only) == []
    titles = [f.title for f in outcome_figures(run_with(EVALUATION))]
    assert titles == ["Reward against KL", "Side by side"]


def test_smoothing_is_a_mean_and_keeps_constants():
    line = np.arange(100.0)
    assert smoothed(np.ones(50)) == pytest.approx(1.0)
    assert smoothed(line)[10:90] == pytest.approx(line[10:90])
    assert len(smoothed(np.array([1.0, 2.0]))) == 2


def test_dropped_rows_by_reason_and_file():
    record = {
        "rows": 9,
        "kept": 6,
        "train": {"examples": 5},
        "fingerprint": "f0",
        "dropped": {"a tie": {"count": 2, "rows": {"a.jsonl": [3], "b.jsonl": [4]}}, "none": {"count": 0, "rows": {}}},
        "eval_data": {"dropped": {"an empty answer": {"count": 20, "rows": {"e.jsonl": list(range(20))}}}},
    }
    summary = data_summary({"data": record})
    assert summary["counts"] == {"rows": 9, "kept": 6, "train examples": 5}
    assert summary["dropped"][0] == ("a tie", 2, "a.jsonl 3, b.jsonl 4")
    assert summary["dropped"][1][:2] == ("an empty answer (held-out data)", 20)
    assert summary["dropped"][1][2] == "0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, …"
    assert data_summary({}) == {"counts": {}, "dropped": [], "fingerprint": None}


def test_what_a_method_learnt_is_shown_by_name_lowest_first(tmp_path):
    record = {"learnt": {"eta": {"alice": 0.95, "bob": 0.61}}, "exported": {"file": "examples.jsonl", "rows": 3}}
    assert list(learnt(record)["eta"]) == ["bob", "alice"]
    assert learnt({}) == {}
    (tmp_path / "run.json").write_text(json.dumps(record))
    page = write_report(tmp_path).read_text()
    assert "bob" in page
    assert "0.610" in page
    assert "examples.jsonl" in page


def test_what_a_method_counts_as_a_worry_is_a_finding_unless_it_is_zero(tmp_path):
    rows = [
        {"step": i, "loss": 1.0 - i / 10, "health/infinite_odds": float(i > 2), "health/clamped": 0.0} for i in range(5)
    ]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    page = write_report(tmp_path).read_text()
    assert "infinite odds: not zero from step 3 on" in page
    assert "clamped" not in page
