"""Rounds of image roll-outs from the command line's configuration to a folder that plain diffusers loads."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prefopt.config import make
from prefopt.errors import PrefoptError
from prefopt.training.run import train
from prefopt.worlds.shapes.pipelines import tiny_pipeline

KINDS = ["sd", "sd-v", "sdxl"]
CAPTIONS = ["a red circle in the upper left", "a blue square in the lower right", "a green circle in the upper left"]
REWARD = """
import torch
import numpy as np

def bright(prompts, images):
    return [float(np.asarray(i).mean()) for i in images]

def flat(prompts, images):
    return [1.0 for _ in images]

def nothing(prompts, images):
    return [float("nan") for _ in images]

def parts(prompts, images):
    colours = {"red": 0, "blue": 2}
    return {k: [float(np.asarray(i)[..., c].mean()) for i in images] for k, c in colours.items()}

def steps(images, prompts, timesteps):
    assert len(set(timesteps.tolist())) == 1
    return 20 * images.mean((1, 2, 3))

def short(images, prompts, timesteps):
    return images.mean((1, 2, 3))[:-1]

def level(images, prompts, timesteps):
    return torch.zeros(len(images))
"""
METHODS = {
    "d3po": {"name": "d3po", "steps": 4, "guidance": 2.0},
    "spo-step": {"name": "spo-step", "steps": 5, "guidance": 2.0, "divert_start_step": 1, "pool": 3, "threshold": 0.0},
    "multi": {"name": "spo-step", "steps": 5, "guidance": 2.0, "divert_start_step": 1, "pool": 2, "threshold": 0.0,
              "inner_steps": 1},
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}
    for kind in [*KINDS, "sd3"]:
        made[kind] = tmp_path_factory.mktemp(kind)
        tiny_pipeline(kind).save_pretrained(made[kind])
    return made


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    place = tmp_path_factory.mktemp("data")
    (place / "prompts.jsonl").write_text("".join(json.dumps({"prompt": c}) + "\n" for c in CAPTIONS))
    (place / "taste.py").write_text(REWARD)
    return place


@pytest.fixture
def run(models, folder, tmp_path):
    def configured(name, /, kind="sd", output="run", reward=None, method=(), train=(), rollout=(), **sections):
        usual = "steps" if name != "d3po" else "bright"
        base = {
            "method": METHODS[name] | dict(method),
            "model": {"path": str(models[kind])},
            "data": {"path": str(folder / "prompts.jsonl")},
            "rollout": {"rounds": 2, "prompts_per_round": 4, "batch_size": 2, "reward": f"{folder}/taste.py:{reward or usual}"}
            | dict(rollout),
            "train": {
                "per_device_train_batch_size": 8, "learning_rate": 1e-3, "logging_steps": 1, "use_cpu": True,
                "disable_tqdm": True, "warmup_steps": 0,
            } | dict(train),
            "output": str(tmp_path / output),
        }  # fmt: skip
        return make({k: v if v is not None else {} for k, v in (base | sections).items()})

    return configured


def rows(output):
    return [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]


def weights(output):
    return load_file(output / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("adapter", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("name", METHODS)
def test_every_kind_trains_and_loads_with_plain_diffusers(run, models, tmp_path, name, kind, adapter):
    from diffusers import DiffusionPipeline

    model = {"path": str(models[kind])} | ({"adapter": adapter} if adapter else {})
    assert train(run(name, kind, model=model)).status == "finished"
    logged = rows(tmp_path / "run")
    losses = [r["loss"] for r in logged if "loss" in r]
    assert len(losses) == 4
    assert losses[0] == pytest.approx(np.log(2), abs=1e-4)
    assert [r["rollout/round"] for r in logged if "rollout/round" in r] == [0, 1]
    if adapter:
        pipeline = DiffusionPipeline.from_pretrained(models[kind])
        pipeline.load_lora_weights(tmp_path / "run")
    else:
        pipeline = DiffusionPipeline.from_pretrained(tmp_path / "run")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(CAPTIONS[0], num_inference_steps=2).images[0].size == (32, 32)
    record = json.loads((tmp_path / "run" / "run.json").read_text())
    assert record["reference"]["kind"] == ("adapter_off" if adapter else "frozen")


@pytest.mark.parametrize("name", METHODS)
def test_accumulation_is_the_same_run(run, tmp_path, name):
    for output, keys in {
        "whole": {},
        "cut": {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 4},
    }.items():
        train(run(name, output=output, train=keys | {"optim": "sgd"}))
    one, two = ([r["loss"] for r in rows(tmp_path / x) if "loss" in r] for x in ("whole", "cut"))
    assert one == pytest.approx(two, abs=1e-5)


@pytest.mark.parametrize("adapter", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("name", METHODS)
def test_a_stopped_run_goes_on_bit_for_bit(run, tmp_path, name, adapter):
    def changed():
        model = run(name).model.model_dump() | ({"adapter": {"r": 4}} if adapter else {})
        return {"model": model, "train": {"save_steps": 1, "per_device_train_batch_size": 8}}

    train(run(name, output="whole", **changed()))
    for _ in range(4):
        outcome = train(run(name, output="cut", **changed()), stop_after=1)
    train(run(name, output="cut", **changed()))
    assert outcome.status in ("interrupted", "finished")
    place = "pytorch_lora_weights.safetensors" if adapter else "unet/diffusion_pytorch_model.safetensors"
    one, two = (load_file(tmp_path / x / place) for x in ("whole", "cut"))
    assert all(torch.equal(one[k], two[k]) for k in one)
    a, b = ([(r["step"], r.get("loss"), r.get("rollout/reward")) for r in rows(tmp_path / x)] for x in ("whole", "cut"))
    assert a == b


def test_people_mark_the_pictures_and_the_run_goes_on(run, tmp_path):
    keys = {
        "rollout": {"reward": "people", "prompts_per_round": 2},
        "method": {"samples": 3},
        "train": {"per_device_train_batch_size": 12},
    }
    for number in range(2):
        outcome = train(run("d3po", **keys))
        assert "6 pictures" in outcome.status
        assert f"round {number}" in outcome.status
        place = tmp_path / "run" / "rounds" / f"{number:03d}"
        assert len(list(place.glob("*.png"))) == 6
        sheet = (place / "to-mark.csv").read_text().splitlines()
        assert sheet[0] == "picture,prompt,mark"
        if number == 0:  # the same start again waits again
            assert "6 pictures" in train(run("d3po", **keys)).status
            (place / "marks-broken.csv").write_text("\n".join(sheet))
            with pytest.raises(PrefoptError, match="line 2, mark: '' is no number"):
                train(run("d3po", **keys))
            (place / "marks-broken.csv").unlink()
        for who, marks in {"ann": [5, 1, 3, 2, 2, 2], "bob": [4, 2, 3, 2, 2, 2]}.items():
            filled = [f"{line}{m}" for line, m in zip(sheet[1:], marks, strict=True)]
            (place / f"marks-{who}.csv").write_text("\n".join([sheet[0], *filled]))
    assert train(run("d3po", **keys)).status == "finished"
    told = [r for r in rows(tmp_path / "run") if "rollout/round" in r]
    assert [r["rollout/round"] for r in told] == [0, 1]
    assert all(r["rollout/ties"] == 0.5 and r["rollout/reward"] == 2.5 for r in told)


def test_vectors_of_scores_are_compared_by_pareto(run, tmp_path):
    train(run("d3po", reward="parts", output="both"))
    train(run("d3po", reward="parts#red", output="one"))
    both, one = ([r["rollout/ties"] for r in rows(tmp_path / x) if "rollout/ties" in r] for x in ("both", "one"))
    assert one == [0, 0]
    assert max(both) <= 1


def test_a_part_of_the_steps_is_trained_on(run, tmp_path):
    train(run("d3po", method={"timestep_fraction": 0.5}, train={"per_device_train_batch_size": 4}))
    assert len([r for r in rows(tmp_path / "run") if "loss" in r]) == 4


@pytest.mark.parametrize(
    ("name", "keys", "match"),
    [
        ("d3po", {"reward": "flat"}, r"round 0: all 4 pairs are ties.* scores go from 1 to 1, within one prompt by at most 0"),
        ("d3po", {"reward": "nothing"}, r"not finite"),
        ("d3po", {"rollout": {"reward": None}}, r"no verdict on the pictures: set rollout.reward"),
        ("d3po", {"method": {"eta": 0.0}}, r"d3po.eta = 0.0: must be in \(0, 1\]"),
        ("d3po", {"method": {"steps": 1000}}, r"1000 sampler steps do not fit"),
        ("d3po", {"method": {"beta": 0.0}}, r"d3po.beta"),
        ("d3po", {"method": {"clip": 1.0}}, r"d3po.clip"),
        ("d3po", {"method": {"samples": 1}}, r"at least two roll-outs"),
        ("d3po", {"train": {"per_device_train_batch_size": 6}}, r"in wholes of 4, and an optimiser step takes 6"),
        ("d3po", {"train": {"max_steps": 3}}, r"train.max_steps has no effect: rollout.rounds"),
        ("d3po", {"rollout": {"samples_per_prompt": 3}}, r"rollout.samples_per_prompt has no effect"),
        ("d3po", {"denoising": {"caption_dropout": 0.1}}, r"denoising.caption_dropout has no effect"),
        ("d3po", {"kind": "sd3"}, r"flow model's sampler are deterministic"),
        ("spo-step", {"kind": "sd3"}, r"flow model's sampler are deterministic"),
        ("spo-step", {"reward": "short"}, r"returned 1 scores for 2"),
        ("spo-step", {"reward": "level"}, r"no pool is clear enough .* scores go from 0 to 0"),
        ("spo-step", {"reward": "bright#"}, r"no function|bright"),
        ("spo-step", {"rollout": {"reward": None}}, r"no judge of the steps"),
        ("spo-step", {"method": {"pool": 1}}, r"at least two candidates"),
        ("spo-step", {"method": {"threshold": 1.0}}, r"spo-step.threshold"),
        ("spo-step", {"method": {"divert_start_step": 4}}, r"divert_start_step = 4 must lie in 0 .. 3"),
        ("spo-step", {"method": {"inner_steps": 2}}, r"runs past the last step"),
        ("spo-step", {"method": {"eta": 0.0}}, r"spo-step.eta"),
    ],
)  # fmt: skip
def test_bad_input_is_refused(run, tmp_path, name, keys, match):
    with pytest.raises(PrefoptError, match=match):
        train(run(name, **keys))
    assert not (tmp_path / "run" / "model_index.json").exists()


@pytest.mark.parametrize("key", ["clip_sample", "thresholding"])
def test_a_scheduler_that_clips_is_refused(run, models, tmp_path, key):
    pipeline = tiny_pipeline("sdxl")  # Stable Diffusion's own pipeline switches clip_sample off when it is loaded
    pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **{key: True})
    pipeline.save_pretrained(tmp_path / "clips")
    with pytest.raises(PrefoptError, match=f"has {key} = true"):
        train(run("d3po", model={"path": str(tmp_path / "clips")}))


def test_an_empty_list_of_prompts_is_refused(run, tmp_path):
    (tmp_path / "none.jsonl").write_text("")
    with pytest.raises(PrefoptError, match=r"none.jsonl"):
        train(run("spo-step", data={"path": str(tmp_path / "none.jsonl")}))
