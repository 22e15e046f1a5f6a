"""DDIM-InPO and SmPO from the command line's configuration to a folder: every kind of pipeline, resume, bad input."""

import json

import pytest
import torch

from prefopt.errors import PrefoptError
from prefopt.training.run import train
from prefopt.worlds.shapes.pipelines import tiny_pipeline

from .test_diffusion_task import config, losses, weights, write_pairs

INPO = {"name": "inpo", "inversion_steps": 3}
SMPO = {"name": "smpo", "inversion_steps": 3, "reward_min": None, "reward_max": None}


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}
    for kind in ("sd", "sd-v", "sdxl", "sd3"):
        made[kind] = tmp_path_factory.mktemp(kind)
        tiny_pipeline(kind).save_pretrained(made[kind])
    return made


def scored(folder, chosen=lambda i: 0.2 + 0.01 * i, rejected=lambda i: 0.15):
    def edit(row, i):
        return row | {"chosen_reward_score": chosen(i), "rejected_reward_score": rejected(i)}

    folder.mkdir(parents=True, exist_ok=True)
    return write_pairs(folder, 8, edit=edit)


@pytest.mark.parametrize("adapter", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("method", [INPO, SMPO], ids=["inpo", "smpo"])
@pytest.mark.parametrize("kind", ["sd", "sd-v", "sdxl"])
def test_every_diffusion_pipeline_trains(models, tmp_path, kind, method, adapter):
    data = scored(tmp_path / "data")
    model = {"adapter": adapter} if adapter else {}
    outcome = train(config(models[kind], data, tmp_path / "run", method=method, model=model))
    assert outcome.status == "finished"
    curve = losses(tmp_path / "run")
    assert curve[0] == pytest.approx(0.6931, abs=2e-3)
    assert curve[-1] != pytest.approx(curve[0], abs=1e-7)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    if method is SMPO:
        assert record["data"]["ranges"]["reward_score"] == [0.15, pytest.approx(0.27)]


def test_flow_models_are_refused(models, tmp_path):
    with pytest.raises(PrefoptError, match="this model is a flow model"):
        train(config(models["sd3"], scored(tmp_path / "data"), tmp_path / "run", method=INPO))


def test_a_run_that_was_cut_is_the_run_that_was_not(models, tmp_path):
    data = scored(tmp_path / "data")
    options = {"method": INPO | {"inversion_eta": 0.3}, "train": {"save_steps": 2}}
    train(config(models["sd"], data, tmp_path / "whole", **options))
    train(config(models["sd"], data, tmp_path / "cut", **options), stop_after=2)
    train(config(models["sd"], data, tmp_path / "cut", **options))
    whole, cut = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(whole[k], cut[k]) for k in whole)


def test_pairs_of_equal_scores_leave_the_weights_as_they_were(models, tmp_path):
    data = scored(tmp_path / "data", rejected=lambda i: 0.2 + 0.01 * i)
    train(config(models["sd"], data, tmp_path / "run", method=SMPO, train={"weight_decay": 0.0, "max_steps": 2}))
    before, after = weights(models["sd"]), weights(tmp_path / "run")
    assert all(torch.equal(before[k], after[k]) for k in before)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"chosen": lambda i: 0.2, "rejected": lambda i: 0.2}, "every 'reward_score' is 0.2"),
        ({"chosen": lambda i: float("nan")}, "chosen_reward_score"),
        ({"chosen": lambda i: "good"}, "chosen_reward_score"),
        ({"chosen": lambda i: None}, "chosen_reward_score"),
    ],
    ids=["equal", "nan", "text", "missing"],
)
def test_scores_that_say_nothing_are_refused(models, tmp_path, values, words):
    data = scored(tmp_path / "data", **values)
    with pytest.raises(PrefoptError, match=words):
        train(config(models["sd"], data, tmp_path / "run", method=SMPO))
    assert not list((tmp_path / "run").glob("checkpoint-*"))


def test_scores_that_are_not_there_are_asked_for(models, tmp_path):
    (tmp_path / "data").mkdir()
    with pytest.raises(PrefoptError, match="chosen_reward_score"):
        train(config(models["sd"], write_pairs(tmp_path / "data", 4), tmp_path / "run", method=SMPO))


def test_a_scheduler_that_clips_is_refused(tmp_path):
    pipeline = tiny_pipeline("sdxl")  # loading a Stable Diffusion pipeline, diffusers itself switches it off
    pipeline.scheduler.register_to_config(clip_sample=True)
    pipeline.save_pretrained(tmp_path / "model")
    with pytest.raises(PrefoptError, match="clip_sample"):
        train(config(tmp_path / "model", scored(tmp_path / "data"), tmp_path / "run", method=INPO))
