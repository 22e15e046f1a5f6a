"""The three properties followed in a run: what they measure, that they change nothing, and what they cost."""

from __future__ import annotations

import json
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from prefopt import PrefoptError, get_method
from prefopt.config import DiagnosticsConfig, make
from prefopt.scoring.tabular import Choice, TabularScorer
from prefopt.training.properties import Properties, follow, judged
from prefopt.training.run import train
from prefopt.training.task import Task
from tests.training.small import trainer


def rows(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def looks(folder: Path) -> list[dict[str, Any]]:
    return [r for r in rows(folder) if "properties/logps_chosen" in r]


def configured(text_model: Path, pairs_file: Path, folder: Path, *overrides: str, **sections: Any) -> Any:
    from prefopt.config import override

    content: dict[str, Any] = {
        "method": {"name": "dpo"},
        "model": {"path": str(text_model)},
        "data": {"path": str(pairs_file)},
        "train": {"max_steps": 6, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "logging_steps": 2,
                  "save_steps": 2, "disable_tqdm": True, "seed": 3},
        "diagnostics": {"every": 2, "pairs": 5, "max_new_tokens": 6},
        "output": str(folder),
    }  # fmt: skip
    return make(override(content | sections, overrides))


METHODS: dict[str, dict[str, Any]] = {
    "dpo": {},
    "3d-properties": {"sft_gamma": 0.1},
    "simpo": {},
    "orpo": {},
    "ipo": {},
    "tdpo": {},
}


@pytest.mark.parametrize("name", METHODS)
def test_any_pairwise_method_is_followed(name: str, text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    method = {"name": name, **METHODS[name]}
    train(configured(text_model, pairs_file, tmp_path / "run", method=method))
    found = looks(tmp_path / "run")
    assert [r["step"] for r in found] == [0, 2, 4, 6]
    first, last = found[0], found[-1]
    for side in ("chosen", "rejected", "unseen"):
        change = last[f"properties/logps_{side}"] - first[f"properties/logps_{side}"]
        assert last[f"properties/{side}"] == pytest.approx(change)
        assert first[f"properties/{side}"] == 0
        assert change != 0
    assert first["properties/entropy"] > 0
    assert {"properties/log_gradient_chosen", "properties/log_gradient_rejected", "properties/log10_rejected"} <= set(
        last
    )
    assert "properties/drop_ratio" in last and "properties/drop_ratio" not in first
    assert sum("loss" in r for r in rows(tmp_path / "run")) == 4, "the steps' own rows are all there"


def test_it_changes_no_weight_and_no_row_of_the_training(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    saved = []
    for name, every in (("with", 1), ("without", 0)):
        diagnostics = {"every": every, "pairs": 5, "max_new_tokens": 6} if every else {}
        train(configured(text_model, pairs_file, tmp_path / name, diagnostics=diagnostics))
        own = [{k: v for k, v in r.items() if k != "tokens_per_second"} for r in rows(tmp_path / name) if "loss" in r]
        saved.append(((tmp_path / name / "model.safetensors").read_bytes(), own))
    assert saved[0] == saved[1]
    assert not (tmp_path / "without" / "unseen.json").exists()


def test_a_resumed_run_ends_with_the_same_looks(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    train(configured(text_model, pairs_file, tmp_path / "whole"))
    for _ in range(3):
        train(configured(text_model, pairs_file, tmp_path / "parts"), stop_after=2)
    train(configured(text_model, pairs_file, tmp_path / "parts"))
    assert looks(tmp_path / "parts") == looks(tmp_path / "whole")
    assert (tmp_path / "parts" / "unseen.json").read_text() == (tmp_path / "whole" / "unseen.json").read_text()


@pytest.mark.parametrize(("broken", "words"), [(None, "unseen.json is gone"), ("{", "unseen.json is damaged")])
def test_a_resumed_run_wants_the_answers_it_follows(broken, words, text_model: Path, pairs_file: Path, tmp_path: Path):
    train(configured(text_model, pairs_file, tmp_path / "run"), stop_after=2)
    file = tmp_path / "run" / "unseen.json"
    file.unlink() if broken is None else file.write_text(broken)
    with pytest.raises(PrefoptError, match=words):
        train(configured(text_model, pairs_file, tmp_path / "run"))


def test_without_samples_held_out_answers_are_the_unseen(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    none = {"every": 3, "pairs": 4, "samples": 0}
    train(configured(text_model, pairs_file, tmp_path / "none", diagnostics=none))
    assert "properties/unseen" not in looks(tmp_path / "none")[-1]
    train(configured(text_model, pairs_file, tmp_path / "held", "data.eval_fraction=0.3", diagnostics=none))
    assert "properties/unseen" in looks(tmp_path / "held")[-1]
    assert not (tmp_path / "held" / "unseen.json").exists()


def test_an_adapter_is_followed_too(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    train(configured(text_model, pairs_file, tmp_path / "run", "model.adapter.r=4", "diagnostics.every=4"))
    assert [r["step"] for r in looks(tmp_path / "run")] == [0, 4, 6]  # the end is looked at, whatever divides it


def test_images_have_drop_and_dispersion_in_their_own_units(
    image_model: Path, image_pairs: Path, tmp_path: Path
) -> None:
    overrides = (f"data.eval_path={image_pairs}", "model.adapter.r=2", "method.name=diffusion-dpo")
    diagnostics = {"every": 2, "pairs": 3}
    train(configured(image_model, image_pairs, tmp_path / "run", *overrides, diagnostics=diagnostics))
    last = looks(tmp_path / "run")[-1]
    assert {"properties/chosen", "properties/rejected", "properties/unseen", "properties/margin"} <= set(last)
    assert not {"properties/log10_rejected", "properties/log_gradient_chosen", "properties/entropy"} & set(last)


# ---- the numbers


def test_the_numbers_are_those_of_the_pairs_followed(tmp_path: Path) -> None:
    t = trainer(tmp_path / "run", n=8, batch=3)
    t._initialise_method()
    t.model_wrapped = t.model
    p = follow(t, DiagnosticsConfig(every=1, pairs=5, samples=0), np.arange(8))
    with torch.no_grad():
        for w in t.model.parameters():
            w.add_(0.05 * torch.randn_like(w))  # away from the reference
    seen = p.look()
    indices = np.sort(np.random.default_rng((0, 2)).permutation(8)[:5])
    beta, w, l, slope_w, slope_l, margin = 0.1, [], [], [], [], []
    reference = trainer(tmp_path / "other", n=8).model
    for i in indices:
        e = t.task.train[int(i)]
        sums = []
        for model in (t.model, reference):
            for a in e.response_ids:
                ids = torch.tensor([e.prompt_ids + a])
                logp = type(model).forward(model, input_ids=ids).logits[0].double().log_softmax(-1)
                at = range(len(e.prompt_ids) - 1, ids.shape[1] - 1)
                sums.append(sum(float(logp[t, ids[0, t + 1]]) for t in at))
        h_w, h_l = sums[0] - sums[2], sums[1] - sums[3]
        q = 1 / (1 + math.exp(beta * (h_w - h_l)))
        w.append(sums[0]), l.append(sums[1]), margin.append(beta * (h_w - h_l))
        slope_w.append(math.log(beta * q) - sums[0]), slope_l.append(math.log(beta * q) - sums[1])
    mean = lambda x: sum(x) / len(x)
    want = {
        "logps_chosen": mean(w), "logps_rejected": mean(l), "margin": mean(margin),
        "log10_rejected": math.log10(mean([math.exp(x) for x in l])),
        "log_gradient_chosen": mean(slope_w), "log_gradient_rejected": mean(slope_l),
    }  # fmt: skip
    assert seen.keys() == want.keys()
    for k, v in want.items():
        assert seen[k] == pytest.approx(v, rel=1e-4, abs=1e-4), k


@pytest.mark.parametrize("name", ["simpo", "orpo", "cpo"])
def test_slopes_spread_over_tokens_and_count_every_term_as_of_one_pair(name: str, tmp_path: Path) -> None:
    """d(loss of a pair)/d(mean over its tokens' shift): by finite differences of the whole loss times the pairs."""
    t = trainer(tmp_path / "run", name=name, n=6, batch=6)
    t.model_wrapped = t.model
    p = follow(t, DiagnosticsConfig(every=1, pairs=6, samples=0), np.arange(6))
    step = t._plan(p.followed)
    ((batch, known, _),) = step.ready
    with torch.no_grad():
        r, _ = t._run(t.model, batch, known, step)
    precise = {k: s.like(s.values.double()) for k, s in r.scores.items()}
    r = r.replace(scores=precise, extras={k: x.replace(scores={n: s.like(s.values.double()) for n, s in x.scores.items()})
                                         for k, x in r.extras.items()})  # fmt: skip
    found = p._slopes(r, step, 6)
    for row in range(12):
        values = []
        for eps in (1e-5, -1e-5):
            s = precise["policy"]
            moved = s.values.clone()
            moved[row] += eps * s.count[row] / s.count[row].sum()
            values.append(t.method(r.replace(scores={**precise, "policy": s.like(moved)})).scalar.item())
        assert found[row].item() == pytest.approx(6 * (values[0] - values[1]) / 2e-5, rel=1e-4, abs=1e-7)


def test_gradients_of_lost_responses_do_not_overflow() -> None:
    """log pi of -800: the probability and its gradient are no numbers any more, their logarithms are."""
    p = object.__new__(Properties)
    p.text, p.trainer = True, SimpleNamespace(task=SimpleNamespace(record={}))
    x = {"chosen": torch.tensor([-2.0, -900.0]), "rejected": torch.tensor([-800.0, -3.0]), "margin": torch.tensor([1.0, 1.0]),
         "slope_chosen": torch.tensor([-0.01, -0.0]), "slope_rejected": torch.tensor([0.01, 0.0])}  # fmt: skip
    found = p._of_pairs({k: v.double() for k, v in x.items()})
    assert found["log_gradient_rejected"] == pytest.approx(math.log(0.01) + 800)
    assert found["log_gradient_chosen"] == pytest.approx(math.log(0.01) + 2)
    assert found["log10_rejected"] == pytest.approx((-3 - math.log(2)) / math.log(10))


def history(*numbers: tuple[float, float, float]) -> list[dict[str, float]]:
    names = ("logps_chosen", "logps_rejected", "margin")
    return [{f"properties/{n}": x for n, x in zip(names, row, strict=True)} for row in numbers]


@pytest.mark.parametrize(
    ("course", "degrading"),
    [
        ([(-5.0, -5.0, 0.0)], 0.0),
        ([(-5.0, -5.0, 0.0), (-6.0, -9.0, 1.0)], 0.0),  # one window is not two
        ([(-5.0, -5.0, 0.0), (-6.0, -9.0, 1.0), (-7.0, -12.0, 2.0)], 1.0),
        ([(-5.0, -5.0, 0.0), (-6.0, -9.0, 1.0), (-7.0, -9.0, 0.5)], 0.0),  # the margin fell
        ([(-6.0, -5.0, 0.0), (-5.0, -9.0, 1.0), (-7.0, -12.0, 2.0)], 0.0),  # the chosen rose in between
        ([(-5.0, -5.0, 3.0), (-4.0, -5.0, 0.0), (-6.0, -9.0, 1.0), (-7.0, -12.0, 2.0)], 1.0),
    ],
)
def test_degradation_is_a_falling_chosen_side_under_a_rising_margin(course, degrading) -> None:
    *before, now = history(*course)
    found = judged(before, now, 2)
    assert found["properties/degrading"] == degrading
    assert found["properties/chosen"] == course[-1][0] - course[0][0]
    if before:
        (a, b, _), (c, d, _) = course[-2:]
        assert found["properties/drop_ratio"] == abs((d - b) / (c - a))


def test_the_toy_degrades_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A policy of one shared logit per response, trained through the real trainer: the flag and its warning."""
    from transformers import TrainingArguments

    from prefopt.training.trainer import Trainer

    class Shared(torch.nn.Module):
        """Whatever is taken from response 1 is taken, times two, from response 0 as well; 2 gets it."""

        def __init__(self) -> None:
            super().__init__()
            self.z = torch.nn.Parameter(torch.zeros(1, 1, dtype=torch.float64))

        def forward(self) -> torch.Tensor:
            return torch.cat([-self.z, -2 * self.z, 3 * self.z], 1)

    class Listed(list):
        tokens = np.full(2, 2)

    examples = Listed([Choice(0, [0, 1], [[0, 1]])] * 2)
    model = Shared()
    task = Task(model, examples, None, TabularScorer(torch.full((1, 3), 1 / 3, dtype=torch.float64)), lambda *_: None,
                {"reference_is_start": True})  # fmt: skip
    args = TrainingArguments(
        output_dir=str(tmp_path), max_steps=8, per_device_train_batch_size=2, learning_rate=0.5, optim="sgd",
        lr_scheduler_type="constant", max_grad_norm=0.0, save_strategy="no", report_to="none", logging_steps=4,
        remove_unused_columns=False, disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    t = Trainer(task, get_method("dpo", beta=0.5), args, 2)
    t.add_callback(follow(t, DiagnosticsConfig(every=1, pairs=2, patience=2), np.arange(2)))
    t.train()
    found = looks(tmp_path)
    assert [r["properties/degrading"] for r in found] == [0, 0] + [1] * 7
    assert found[-1]["properties/rejected"] < found[-1]["properties/chosen"] < 0
    assert sum("degradation" in r.message for r in caplog.records) == 1
    gap = [r["properties/log_gradient_rejected"] - r["properties/log_gradient_chosen"] for r in found]
    for g, r in zip(gap, found, strict=True):  # |dL/dpi-| / |dL/dpi+| = pi+ / pi-
        assert g == pytest.approx(r["properties/logps_chosen"] - r["properties/logps_rejected"], abs=1e-12)


# ---- refusals


@pytest.mark.parametrize(
    ("method", "diagnostics", "words"),
    [
        ("dpo", {"pairs": 9}, "diagnostics.pairs has no effect: .* diagnostics.every is 0"),
        (
            "dpo",
            {"every": 5, "samples": 0, "max_new_tokens": 9},
            "max_new_tokens has no effect: diagnostics.samples is 0",
        ),
        ("kto", {"every": 5}, "diagnostics.every has no effect: kto compares no pairs"),
        ("bt-reward", {"every": 5}, "bt-reward compares no pairs of responses by the policy's scores"),
        ("dpo", {"every": -1}, "diagnostics.every"),
        ("dpo", {"every": 5, "patience": 0}, "diagnostics.patience"),
        ("dpo", {"evry": 5}, "did you mean 'diagnostics.every'"),
    ],
)
def test_keys_that_would_do_nothing_are_refused(method, diagnostics, words, text_model, pairs_file, tmp_path):
    with pytest.raises(PrefoptError, match=words):
        train(configured(text_model, pairs_file, tmp_path / "run", method={"name": method}, diagnostics=diagnostics))
    assert not (tmp_path / "run").exists()


def test_pictures_are_not_sampled(image_model: Path, image_pairs: Path, tmp_path: Path) -> None:
    diagnostics = {"every": 5, "samples": 2}
    with pytest.raises(PrefoptError, match="diagnostics.samples has no effect: pictures are not drawn"):
        train(configured(image_model, image_pairs, tmp_path / "run", diagnostics=diagnostics))


def test_data_without_pairs_are_refused_and_nothing_is_left(text_model: Path, tmp_path: Path) -> None:
    """A pointwise method takes pairs or labelled rows; only pairs can be followed."""
    rows = [{"prompt": f"a {i}", "completion": "b c", "label": i % 2 == 0} for i in range(8)]
    data = tmp_path / "labelled.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    config = configured(text_model, data, tmp_path / "run", method={"name": "npo"})
    with pytest.raises(PrefoptError, match="diagnostics.every: the data holds no pairs"):
        train(config)
    assert not (tmp_path / "run").exists()


def test_scenarios_are_told_apart(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    """Whose samples the two sides are: four groups of pairs, whose means add up to that of all."""
    pairs = [json.loads(line) for line in pairs_file.read_text().splitlines()]
    kinds = [("on", "on"), ("off", "on"), ("on", "off"), ("on", "on")]
    told = [p | dict(zip(("chosen_source", "rejected_source"), kinds[i % 4], strict=True)) for i, p in enumerate(pairs)]
    data = tmp_path / "told.jsonl"
    data.write_text("".join(json.dumps(r) + "\n" for r in told))
    train(configured(text_model, data, tmp_path / "run", diagnostics={"every": 3, "pairs": len(told), "samples": 0}))
    last = looks(tmp_path / "run")[-1]
    names = ["off-on", "on-off", "on-on"]
    assert sorted(k.split("/")[-1] for k in last if k.startswith("properties/chosen/")) == names
    kept = json.loads((tmp_path / "run" / "run.json").read_text())["data"]
    assert kept["names"]["scenario"] == names
    share = {n: sum("-".join(kinds[i % 4]) == n for i in range(len(told))) / len(told) for n in names}
    for side in ("chosen", "rejected"):
        mean = sum(share[n] * last[f"properties/{side}/{n}"] for n in names)
        assert mean == pytest.approx(last[f"properties/{side}"], rel=1e-5)


def test_a_scenario_must_be_on_or_off(text_model: Path, tmp_path: Path) -> None:
    data = tmp_path / "told.jsonl"
    row = {"prompt": "a", "chosen": "b c", "rejected": "d", "chosen_source": "policy", "rejected_source": "on"}
    data.write_text(json.dumps(row) + "\n")
    with pytest.raises(PrefoptError, match="'chosen_source' is 'policy', expected on .* or off"):
        train(configured(text_model, data, tmp_path / "run"))
