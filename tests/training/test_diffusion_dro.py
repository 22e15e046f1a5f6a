"""Diffusion-DRO from the configuration to a folder that plain diffusers loads; its snapshot, its mean, its experts."""

import json

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from prefopt.config import make
from prefopt.data.example import Example
from prefopt.data.experts import best_images
from prefopt.errors import PrefoptError
from prefopt.training.average import Average
from prefopt.training.run import make_method, train
from prefopt.training.tasks.denoising import diffusion_task
from prefopt.worlds.shapes.pipelines import tiny_pipeline

KINDS = ["sd", "sd-v", "sdxl", "sd3"]
FIT = """
from prefopt import Loss, Responses, method, over_responses


@method("fit")
def fit(r: Responses) -> Loss:
    \"\"\"The mean error, on a noise of each image's own.\"\"\"
    return Loss(fit=over_responses(-r.noised("own_path").policy.mean()))
"""
CAPTION = "a red circle in the upper left"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}
    for kind in KINDS:
        made[kind] = tmp_path_factory.mktemp(kind)
        tiny_pipeline(kind).save_pretrained(made[kind])
    return made


@pytest.fixture(scope="module")
def experts(tmp_path_factory):
    folder, g = tmp_path_factory.mktemp("experts"), np.random.default_rng(0)
    for i in range(8):
        Image.fromarray(g.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}.png")
    rows = [{"prompt": CAPTION, "image": f"{i}.png", "score": float(i)} for i in range(8)]
    (folder / "experts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder / "experts.jsonl"


def config(model, data, output, /, **sections):
    base = {
        "method": {"name": "diffusion-dro", "steps": 4},
        "model": {"path": str(model)},
        "data": {"path": str(data)},
        "train": {
            "max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1, "use_cpu": True,
            "disable_tqdm": True, "warmup_steps": 0,
        },
        "output": str(output),
    }  # fmt: skip
    return make(base | {k: base.get(k, {}) | v for k, v in sections.items()})


def rows(output, key="loss"):
    found = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [r[key] for r in found if key in r]


def weights(output):
    return load_file(output / "unet" / "diffusion_pytorch_model.safetensors")


@pytest.mark.parametrize("adapter", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_and_loads_with_plain_diffusers(models, experts, tmp_path, kind, adapter):
    from diffusers import DiffusionPipeline

    absent = {"text_encoder_3": None, "tokenizer_3": None} if kind == "sd3" else {}
    model = {"adapter": adapter} if adapter else {}
    train(config(models[kind], experts, tmp_path / "run", model=model))
    assert rows(tmp_path / "run")[0] == pytest.approx(0.001, abs=1e-6)  # policy = snapshot = reference: the margin
    assert rows(tmp_path / "run", "own")[0] == pytest.approx(0, abs=1e-6)
    assert rows(tmp_path / "run", "active")[0] == 1
    pipeline = DiffusionPipeline.from_pretrained(models[kind] if adapter else tmp_path / "run", **absent)
    if adapter:
        pipeline.load_lora_weights(tmp_path / "run")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline(CAPTION, num_inference_steps=2).images[0].size == (32, 32)


def test_the_first_step_is_that_of_supervised_fine_tuning(models, experts, tmp_path):
    """policy = reference = snapshot: the own half has no gradient, the expert half that of its mean error."""
    sgd = {"optim": "sgd", "max_steps": 1, "max_grad_norm": 0.0, "learning_rate": 1e-2}
    (tmp_path / "fit.py").write_text(FIT)
    train(config(models["sd"], experts, tmp_path / "dro", train=sgd, denoising={"caption_dropout": 0.0}))
    fit = make(
        config(models["sd"], experts, tmp_path / "fit", train=sgd, denoising={"caption_dropout": 0.0}).model_dump()
        | {"method": {"name": str(tmp_path / "fit.py")}}
    )
    train(fit)
    one, two = weights(tmp_path / "dro"), weights(tmp_path / "fit")
    for key in one:
        torch.testing.assert_close(one[key], two[key], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("refresh", [1, 2])
def test_a_stopped_run_goes_on_bit_for_bit(models, experts, tmp_path, refresh):
    keys = {"method": {"refresh": refresh}, "denoising": {"ema_decay": 0.9}, "train": {"save_steps": 1}}
    train(config(models["sd"], experts, tmp_path / "whole", **keys))
    for _ in range(4):
        train(config(models["sd"], experts, tmp_path / "cut", **keys), stop_after=1)
    train(config(models["sd"], experts, tmp_path / "cut", **keys))
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_accumulation_is_the_same_run(models, experts, tmp_path):
    for name, keys in {
        "whole": {},
        "cut": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    }.items():
        train(config(models["sd"], experts, tmp_path / name, train=keys | {"optim": "sgd", "learning_rate": 1e-2}))
    assert rows(tmp_path / "whole") == pytest.approx(rows(tmp_path / "cut"), abs=1e-5)


def test_a_snapshot_that_waits_is_another_network(models, experts, tmp_path):
    made = [config(models["sd"], experts, tmp_path / "run", method={"refresh": n}) for n in (1, 5)]
    tasks = [diffusion_task(c, make_method(c)) for c in made]
    assert tasks[0].moving == {}
    assert (tasks[1].moving["teacher"].alpha, tasks[1].moving["teacher"].every) == (1.0, 5)


def test_the_mean_is_diffusers_and_what_is_saved(models, experts, tmp_path):
    outputs = {}
    for decay in (None, 0.5):
        keys = {"denoising": {"ema_decay": decay}} if decay else {}
        train(config(models["sd"], experts, tmp_path / str(decay), **keys))
        outputs[decay] = weights(tmp_path / str(decay))
    assert any(not torch.equal(outputs[None][k], outputs[0.5][k]) for k in outputs[None])
    assert rows(tmp_path / "None") == rows(tmp_path / "0.5")  # the mean is looked at by nobody
    net = torch.nn.Linear(1, 1, bias=False)
    mean, seen, value = Average(net, 0.5), [], None
    for n in range(5):
        net.weight.data.fill_(float(n))
        mean.after(n + 1, net)
        d = 0.0 if n == 0 else min(0.5, (1 + n) / (10 + n))
        value = float(n) if value is None else d * value + (1 - d) * n
        seen.append(value)
        assert float(mean.state(net)["mean.0"]) == pytest.approx(value, rel=1e-6)
    again = Average(torch.nn.Linear(1, 1, bias=False), 0.5)
    again.load(mean.state(net))
    again.into(net)
    assert net.weight.item() == pytest.approx(seen[-1], rel=1e-6)


def test_the_best_images_become_experts():
    def pair(prompt, images, scores):
        return Example(prompt, tuple(images), ((0, 1),), {"score": scores}, file="x", row=1)

    given = [
        pair("p", ["a", "b"], (1.0, 5.0)),
        pair("p", ["b", "c"], (5.0, 3.0)),
        pair("q", ["d", "e"], (9.0, float("nan"))),
    ]
    best = best_images(given, 2, ["x"])
    assert [(e.prompt, e.responses, e.pairs) for e in best] == [("p", ("b",), ()), ("q", ("d",), ())]
    assert len(best_images(given, 99, ["x"])) == 4
    with pytest.raises(PrefoptError, match="none has a score"):
        best_images([Example("p", ("a",), (), {}, file="x", row=1)], 2, ["x"])


def refused(match, models, data, tmp_path, /, **sections):
    with pytest.raises(PrefoptError, match=match):
        train(config(models["sd"], data, tmp_path / "run", **sections))


def test_bad_input_is_refused(models, experts, tmp_path):
    refused("diffusion-dro.margin", models, experts, tmp_path, method={"margin": -1.0})
    refused(r"steps = 1001 of the sampler must lie in 1 .. 1000", models, experts, tmp_path, method={"steps": 1001})
    refused("caption_dropout", models, experts, tmp_path, denoising={"caption_dropout": 1.5})
    refused("ema_decay", models, experts, tmp_path, denoising={"ema_decay": 1.0})
    refused("another kind of model", models, experts, tmp_path, reference={"path": str(models["sd-v"])})
    (experts.parent / "none.jsonl").write_text(json.dumps({"prompt": CAPTION, "rejected": "0.png"}) + "\n")
    refused("none.jsonl", models, experts.parent / "none.jsonl", tmp_path)
    (experts.parent / "gone.jsonl").write_text(json.dumps({"prompt": CAPTION, "image": "gone.png"}) + "\n")
    refused("gone.png", models, experts.parent / "gone.jsonl", tmp_path)
    (experts.parent / "bare.jsonl").write_text(json.dumps({"prompt": CAPTION, "image": "0.png"}) + "\n")
    refused("none has a score", models, experts.parent / "bare.jsonl", tmp_path, data={"top": 5})
