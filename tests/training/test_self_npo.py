"""Self-NPO runs: data with and without images, kinds of pipelines, the teacher's past in checkpoints, what is refused."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from prefopt.errors import PrefoptError
from prefopt.training.run import make_method, train
from prefopt.training.tasks.denoising import diffusion_task
from prefopt.worlds.shapes.pipelines import tiny_pipeline

from .test_diffusion_task import config, losses, write_pairs

NPO = {"name": "self-npo", "evaluations": 3, "ema": 0.5}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}
    for kind in ("sd", "sd-v", "sdxl", "sd3"):
        made[kind] = tmp_path_factory.mktemp(kind)
        tiny_pipeline(kind).save_pretrained(made[kind])
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path_factory.getbasetemp() / "cache"))


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data"), 8)


@pytest.fixture(scope="module")
def prompts(data):
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    path = data.parent / "prompts.jsonl"
    path.write_text("".join(json.dumps({"prompt": row["prompt"]}) + "\n" for row in rows))
    return path


def tensors(folder):
    return {p.name: load_file(p) for p in folder.rglob("*.safetensors")}


@pytest.mark.parametrize("adapter", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["sd", "sd-v", "sdxl"])
def test_it_trains_on_captions_alone_and_on_images(models, data, prompts, tmp_path, kind, adapter):
    from diffusers import DiffusionPipeline

    model = {"adapter": adapter} if adapter else {}
    for name, rows, method in (("images", data, NPO), ("captions", prompts, NPO | {"start": "noise"})):
        out = tmp_path / name
        assert train(config(models[kind], rows, out, method=method, model=model)).status == "finished"
        assert len(losses(out)) == 3 and all(np.isfinite(losses(out)))
        pipeline = DiffusionPipeline.from_pretrained(models[kind] if adapter else out)
        if adapter:
            pipeline.load_lora_weights(out)
    assert sum(p.requires_grad for p in pipeline.unet.parameters()) >= 0


@pytest.mark.parametrize("adapter", [None, {"r": 4}], ids=["full", "lora"])
def test_a_stopped_run_goes_on_bit_for_bit_with_its_teacher(models, data, tmp_path, adapter):
    options = {"method": NPO, "model": {"adapter": adapter} if adapter else {}}
    options["train"] = {"max_steps": 4, "save_steps": 1, "save_strategy": "steps"}
    train(config(models["sd"], data, tmp_path / "whole", **options))
    for _ in range(4):
        train(config(models["sd"], data, tmp_path / "cut", **options), stop_after=1)
    train(config(models["sd"], data, tmp_path / "cut", **options))
    last = [tensors(tmp_path / name / "checkpoint-4") for name in ("whole", "cut")]
    assert "teacher.safetensors" in last[0]
    for name, values in last[0].items():
        assert all(torch.equal(x, last[1][name][k]) for k, x in values.items()), name
    assert losses(tmp_path / "whole") == losses(tmp_path / "cut")
    student, teacher = (last[0][n] for n in ("model.safetensors", "teacher.safetensors"))
    if adapter:  # of an adapter the merged weights follow
        assert not any("lora" in k for k in teacher)
    else:  # neither a copy nor the start
        some = "conv_in.weight"
        start = load_file(models["sd"] / "unet" / "diffusion_pytorch_model.safetensors")[some]
        assert not torch.equal(student[some], teacher[some]) and not torch.equal(teacher[some], start)


def test_the_teacher_is_the_mean_of_the_policys_past(models, data, tmp_path):
    cfg = config(models["sd"], data, tmp_path / "run", method=NPO)
    task = diffusion_task(cfg, make_method(cfg))
    follow = task.moving["teacher"]
    start = {k: v.clone() for k, v in follow.reference.state_dict().items()}
    with torch.no_grad():
        for p in task.model.parameters():
            p.add_(1.0)
    follow.after(1, task.model)
    for name, value in follow.reference.state_dict().items():
        torch.testing.assert_close(value, start[name] + 0.5)
    assert task.scorer.teacher is follow.reference
    assert task.scorer.caption_dropout == 0.0  # of this way of noising; a configuration may say otherwise
    said = config(models["sd"], data, tmp_path / "run", method=NPO, denoising={"caption_dropout": 0.3})
    assert diffusion_task(said, make_method(said)).scorer.caption_dropout == 0.3


def test_accumulation_is_the_same_step(models, prompts, tmp_path):
    for name, options in {
        "whole": {},
        "cut": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    }.items():
        cfg = config(
            models["sd"], prompts, tmp_path / name, method=NPO | {"start": "noise"}, train={"max_steps": 1, **options}
        )
        train(cfg)
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "cut"), rel=1e-4)


def test_half_precision_has_a_float32_teacher(models, data, tmp_path):
    cfg = config(models["sd"], data, tmp_path / "run", method=NPO, model={"dtype": "bfloat16", "adapter": {"r": 2}})
    task = diffusion_task(cfg, make_method(cfg))
    assert next(task.moving["teacher"].reference.parameters()).dtype == torch.float32
    assert train(cfg).status == "finished"


def test_bad_input_is_refused_before_training(models, data, prompts, tmp_path):
    def refused(match, *args, **sections):
        with pytest.raises(PrefoptError, match=match):
            train(config(*args, tmp_path / "run", **sections))

    refused("defined on the noise levels of a diffusion model", models["sd3"], data, method=NPO)
    refused("must divide the model's 1000 timesteps", models["sd"], data, method=NPO | {"grid": 30})
    refused("evaluations", models["sd"], data, method=NPO | {"evaluations": 0})
    refused("ema", models["sd"], data, method=NPO | {"ema": 1.0})
    refused("a prompt and no response", models["sd"], prompts, method=NPO)  # captions alone: start = noise
    refused("reference.kind has no effect", models["sd"], data, method=NPO, reference={"kind": "frozen"})
    assert not (tmp_path / "run").exists() or not list((tmp_path / "run").glob("checkpoint-*"))
