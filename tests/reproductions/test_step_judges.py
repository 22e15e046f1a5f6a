"""What the reproductions on sampler steps measure: judges on held-out pairs and on candidates, and D3PO's ablation by hand."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import prefopt.reproductions
from prefopt import Responses
from prefopt.methods import load_file
from prefopt.objectives.method import METHODS
from prefopt.reproductions import d3po, spo_judges, spo_step
from prefopt.reproductions.rewards_of_blobs import promised
from prefopt.worlds import blobs


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """An untrained model, and four held-out pairs of a bright blob and a dim one."""
    folder = tmp_path_factory.mktemp("blobs")
    blobs.tiny_pipeline().save_pretrained(folder / "model")
    rng, rows = np.random.default_rng(0), []
    for n, caption in enumerate(blobs.captions()):
        row = {"prompt": caption}
        for side, brightness in (("chosen", 0.9), ("rejected", 0.4)):
            picture = blobs.blob(caption.removeprefix("a blob in the "), brightness, rng)
            Image.fromarray(picture).save(folder / f"{side}-{n}.png")
            row |= {side: f"{side}-{n}.png", f"{side}_score": blobs.reward([caption], [picture])[0]}
        rows.append(row)
    (folder / "heldout.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return {"model": str(folder / "model"), "heldout": str(folder / "heldout.jsonl")}


@pytest.fixture(autouse=True)
def judges(monkeypatch):
    def truth(images, said, times):
        return torch.tensor(promised(images, said, times))

    found = {"truth": truth, "turned": lambda *x: -truth(*x), "silent": lambda images, *_: torch.zeros(len(images))}
    monkeypatch.setattr(spo_judges, "scores", lambda _: found)


def test_held_out_pairs_are_ordered_by_the_truth_where_little_noise_is_left(parts, monkeypatch):
    monkeypatch.setattr(spo_judges, "DRAWS", 2)
    found = spo_judges.on_held_out({}, parts, 5, 0)
    assert list(found["accuracy"]["truth"]) == ["801", "601", "401", "201", "1"]
    assert {name: x["1"] for name, x in found["accuracy"].items()} == {"truth": 1, "turned": 0, "silent": 0.5}
    assert found["log_loss"]["silent"]["801"] == pytest.approx(math.log(2))
    assert found["log_loss"]["truth"]["1"] < 0.1 < 2 < found["log_loss"]["turned"]["1"]


def test_the_last_candidates_are_their_own_ends(parts, monkeypatch):
    monkeypatch.setattr(spo_judges, "STATES", 2)
    found = spo_judges.agreement({}, parts, {"steps": 4, "divert": 2, "pool": 3}, 0)
    assert list(found["truth"]) == ["1", "0"]
    assert {name: x["0"] for name, x in found.items()} == {"truth": 1, "turned": 0, "silent": 0.5}


def test_agreement_leaves_out_what_is_no_pair():
    judged, true = torch.tensor([2.0, -1.0, -3.0, 0.0, 5.0]), torch.tensor([0.1, -0.4, 0.3, 0.2, 0.0])
    assert spo_judges.agreeing(judged, true) == pytest.approx((1 + 1 + 0 + 0.5) / 4)


def test_large_times_are_the_upper_half():
    assert spo_judges.at_large({"901": 0.5, "501": 0.9, "401": 0.1, "1": 0.0}) == pytest.approx(0.7)


def test_calls_of_a_run():
    """Shared steps and the first answer of 64 prompts; four candidates at seven steps; policy and reference on 8 pairs."""
    assert spo_step.calls("spo", [1.0, 0.5]) == [64 * 3 + 256 * 7 + 1024, 64 * 3 + 256 * 7 + 512]
    assert spo_step.calls_until([0.2, 1.1], [10, 20]) == 10
    assert spo_step.calls_until([0.2, 0.3], [10, 20]) == 60


@pytest.fixture
def summed():
    yield load_file(Path(prefopt.reproductions.__file__).with_name("_d3po_sum.py"))
    METHODS.pop("d3po-sum", None)


def test_sums_leave_the_clip_where_means_do_not(summed):
    """Two pairs of steps of 64 elements, in plain numbers."""
    policy, reference, count = [1.28, 0.05, -0.64, 0.02], [0.0, 0.0, 0.0, 0.0], [64.0] * 4
    as_column = [torch.tensor(x, dtype=torch.float64)[:, None] for x in (policy, reference, count)]
    as_column[0].requires_grad_()
    made = Responses.of(as_column[0], as_column[1], mask=as_column[2], pairs="halves")
    loss = summed(beta=2.0)(made)
    losses = [
        math.log1p(math.exp(-2 * (math.log(1.1) - math.log(0.9)))),
        math.log1p(math.exp(-2 * (0.05 - 0.02))),
    ]
    assert float(loss.scalar.detach()) == pytest.approx(sum(losses) / 2)
    assert float(loss.metrics["clipped"].mean()) == 0.5
    gradient = torch.autograd.grad(loss.scalar, as_column[0])[0][:, 0]
    slope = 2 / (1 + math.exp(2 * (0.05 - 0.02))) / 2
    torch.testing.assert_close(gradient, torch.tensor([0.0, -slope, 0.0, slope], dtype=torch.float64))


def test_what_a_log_tells(tmp_path):
    rows = [{"rollout/reward": 0.61234}, {"clipped": 0.2, "loss": 0.7}, {"rollout/reward": 0.7}, {"clipped": 0.6}]
    (tmp_path / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    assert d3po._told(tmp_path) == {"clipped": 0.4, "path": [0.612, 0.7]}


def test_a_file_beside_the_reproduction_is_named_by_its_path():
    assert d3po._with_file({"name": "d3po", "clip": None}) == {"name": "d3po", "clip": None}
    assert Path(d3po._with_file({"name": "_d3po_sum.py"})["name"]).is_file()
