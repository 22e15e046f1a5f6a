"""Image runs from configuration to a folder that plain diffusers loads, for every kind of pipeline."""

import json

import numpy as np
import pytest
import torch
from PIL import Image

from prefopt.config import make
from prefopt.data.latents import to_pixels
from prefopt.errors import PrefoptError
from prefopt.training.run import make_method, train
from prefopt.training.tasks.denoising import diffusion_task
from prefopt.worlds.shapes.pipelines import tiny_pipeline
from prefopt.worlds.shapes.render import render, scenes

KINDS = ["sd", "sd-v", "sdxl", "sd3"]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    made = {}
    for kind in KINDS:
        made[kind] = tmp_path_factory.mktemp(kind)
        tiny_pipeline(kind).save_pretrained(made[kind])
    return made


@pytest.fixture(autouse=True)
def cache(tmp_path_factory, monkeypatch):
    place = tmp_path_factory.getbasetemp() / "cache"
    monkeypatch.setenv("PREFOPT_CACHE", str(place))
    return place


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return write_pairs(tmp_path_factory.mktemp("data"), 8)


def write_pairs(folder, n, size=(32, 32), edit=lambda row, index: row):
    rng, all_ = np.random.default_rng(0), scenes()
    rows = []
    for i in range(n):
        names = [f"{i}-{side}.png" for side in "ab"]
        for name, scene in zip(names, (all_[i], all_[(i + 7) % 96]), strict=True):
            Image.fromarray(render(scene, rng)).resize(size).save(folder / name)
        rows.append(edit({"prompt": all_[i % 4].caption, "chosen": names[0], "rejected": names[1]}, i))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder / "pairs.jsonl"


def config(model, data, output, /, **sections):
    base = {
        "method": {"name": "diffusion-dpo"},
        "model": {"path": str(model)},
        "data": {"path": str(data)},
        "train": {
            "max_steps": 3,
            "per_device_train_batch_size": 4,
            "learning_rate": 1e-3,
            "logging_steps": 1,
            "use_cpu": True,
        },
        "output": str(output),
    }
    if "method" in sections:
        base["method"] = sections.pop("method")
    return make(base | {k: base.get(k, {}) | v for k, v in sections.items()})


def losses(output):
    rows = [json.loads(line) for line in (output / "metrics.jsonl").read_text().splitlines()]
    return [r["loss"] for r in rows if "loss" in r]


@pytest.mark.parametrize("adapter", [None, {"r": 4}], ids=["full", "lora"])
@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_and_loads_with_plain_diffusers(models, data, tmp_path, kind, adapter):
    from diffusers import DiffusionPipeline

    absent = {"text_encoder_3": None, "tokenizer_3": None} if kind == "sd3" else {}
    output = tmp_path / "run"
    model = {"adapter": adapter} if adapter else {}
    outcome = train(config(models[kind], data, output, model=model))
    assert outcome.status == "finished"
    curve = losses(output)
    assert curve[0] == pytest.approx(np.log(2), abs=1e-3)
    assert all(np.isfinite(curve))
    assert curve[-1] != pytest.approx(curve[0], abs=1e-9)  # the model has moved
    if adapter:
        pipeline = DiffusionPipeline.from_pretrained(models[kind], **absent)
        pipeline.load_lora_weights(output)
    else:
        pipeline = DiffusionPipeline.from_pretrained(output, **absent)
    pipeline.set_progress_bar_config(disable=True)
    picture = pipeline("a red circle in the upper left", num_inference_steps=2).images[0]
    assert picture.size == (32, 32)
    record = json.loads((output / "run.json").read_text())
    assert "adapter_off" in json.dumps(record) if adapter else "frozen" in json.dumps(record)


@pytest.mark.parametrize("method", ["dpo", "ipo", "simpo", "sft", "kto"])
def test_methods_of_text_train_images_unchanged(models, data, tmp_path, method):
    outcome = train(config(models["sd"], data, tmp_path / "run", method={"name": method}))
    assert outcome.status == "finished"
    assert all(np.isfinite(losses(tmp_path / "run")))


def weights(folder):
    from safetensors.torch import load_file

    return load_file(folder / "unet" / "diffusion_pytorch_model.safetensors")


def test_accumulation_is_the_same_step(models, data, tmp_path):
    for name, options in {
        "whole": {},
        "cut": {"per_device_train_batch_size": 1, "gradient_accumulation_steps": 4},
    }.items():
        train(config(models["sd"], data, tmp_path / name, train={"max_steps": 1, "learning_rate": 1e-4, **options}))
    assert losses(tmp_path / "whole") == pytest.approx(losses(tmp_path / "cut"), abs=1e-5)


def test_a_stopped_run_goes_on_bit_for_bit(models, data, tmp_path):
    saving = {"train": {"max_steps": 4, "save_steps": 1, "save_strategy": "steps"}}
    train(config(models["sd"], data, tmp_path / "whole", **saving))
    for _ in range(4):
        outcome = train(config(models["sd"], data, tmp_path / "cut", **saving), stop_after=1)
    outcome = (
        train(config(models["sd"], data, tmp_path / "cut", **saving)) if outcome.status == "interrupted" else outcome
    )
    one, two = weights(tmp_path / "whole"), weights(tmp_path / "cut")
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_evaluation_uses_held_out_data_with_its_captions(models, data, tmp_path):
    options = {"data": {"eval_path": str(data)}, "train": {"eval_strategy": "steps", "eval_steps": 3}}
    cfg = config(models["sd"], data, tmp_path / "run", **options)
    train(cfg)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("eval_loss" in r for r in rows)
    task = diffusion_task(cfg, make_method(cfg))
    assert task.eval[0].held_out
    assert not task.train[0].held_out


def test_ties_are_dropped_and_counted(models, tmp_path):
    def pick_a_pic(row, i):
        label = 0.5 if i in (2, 5) else float(i % 2)
        return {"caption": row["prompt"], "jpg_0": row["chosen"], "jpg_1": row["rejected"], "label_0": label}

    data = write_pairs(tmp_path, 8, edit=pick_a_pic)
    cfg = config(models["sd"], data, tmp_path / "run", data={"max_dropped": 0.5})
    task = diffusion_task(cfg, make_method(cfg))
    assert len(task.train) == 6
    assert [d["count"] for d in task.record["data"]["dropped"].values()] == [2]


def test_images_are_encoded_once(models, data, tmp_path, cache, monkeypatch):
    from prefopt.models.diffusion import ImageModel

    cfg = config(models["sd"], data, tmp_path / "run")
    first = diffusion_task(cfg, make_method(cfg))
    monkeypatch.setattr(ImageModel, "encode_images", lambda *_: pytest.fail("encoded again"))
    monkeypatch.setattr(ImageModel, "encode_captions", lambda *_: pytest.fail("encoded again"))
    second = diffusion_task(cfg, make_method(cfg))
    assert torch.equal(first.train[3].mean, second.train[3].mean)
    assert first.train.fingerprint == second.train.fingerprint
    assert not list(cache.rglob("*.part"))


def test_mixed_sizes_are_resized_cropped_and_counted(models, tmp_path):
    data = write_pairs(tmp_path, 4, size=(48, 32))
    Image.new("RGB", (20, 40), "red").save(tmp_path / "1-a.png")
    cfg = config(models["sd"], data, tmp_path / "run")
    with pytest.raises(
        PrefoptError, match=r"1 prompts differ in size .*row 2, 20 x 40 and 48 x 32.*mixed_sizes = resize"
    ):
        diffusion_task(cfg, make_method(cfg))
    cfg = config(models["sd"], data, tmp_path / "run", denoising={"mixed_sizes": "resize"})
    task = diffusion_task(cfg, make_method(cfg))
    sizes = task.record["data"]["images"]
    assert (sizes["resized"], sizes["enlarged"], sizes["examples_of_mixed_size"]) == (8, 1, 1)
    assert task.train[1].mean.shape == (2, 1, 4, 8, 8)


def test_the_crop_is_centred_and_the_range_is_minus_one_to_one():
    image = Image.new("RGB", (64, 32), "black")
    image.paste("white", (16, 0, 48, 32))
    assert torch.equal(to_pixels(image, 32), torch.ones(3, 32, 32))
    assert torch.equal(to_pixels(Image.new("RGB", (8, 8)), 16), -torch.ones(3, 16, 16))


def test_flips_are_encoded_too_and_mirror_the_image(models, data, tmp_path):
    cfg = config(models["sd"], data, tmp_path / "run", denoising={"random_flip": True})
    task = diffusion_task(cfg, make_method(cfg))
    plain = config(models["sd"], data, tmp_path / "run")
    views, single = task.train[0].mean, diffusion_task(plain, make_method(plain)).train[0].mean
    assert views.shape[:2] == (2, 2)
    assert torch.equal(views[:, :1], single)
    assert not torch.allclose(views[:, 0], views[:, 1])


def refused(match, /, *args, **sections):
    """Making the configuration or starting the run says why it cannot be."""
    with pytest.raises(PrefoptError, match=match):
        train(config(*args, **sections))


def test_bad_input_is_refused_before_training(models, data, tmp_path):
    out = tmp_path / "run"
    sd = models["sd"]
    refused("caption_dropout", sd, data, out, denoising={"caption_dropout": 1.5})
    refused("predicts epsilon", sd, data, out, denoising={"flow_shift": 3.0})
    refused("nothing to store", sd, data, out, reference={"kind": "store"})
    refused("needs model.adapter", sd, data, out, reference={"kind": "adapter_off"})
    refused("another kind of model", sd, data, out, reference={"path": str(models["sd-v"])})
    refused("multiple of 4", sd, data, out, denoising={"resolution": 30})
    refused("model.attention has no effect", sd, data, out, model={"attention": "eager"})
    refused("beta", sd, data, out, method={"name": "diffusion-dpo", "beta": 0.0})
    assert not (out / "model_index.json").exists()


@pytest.mark.parametrize(
    ("match", "edit"),
    [
        ("does not exist", lambda row, i: row | ({"chosen": "nowhere.png"} if i == 3 else {})),
        ("row 4", lambda row, i: row | ({"chosen": None} if i == 3 else {})),
        ("row 2", lambda row, i: row | ({"prompt": None} if i == 1 else {})),
    ],
)
def test_rows_that_cannot_be_read_stop_the_run(models, tmp_path, match, edit):
    refused(match, models["sd"], write_pairs(tmp_path, 6, edit=edit), tmp_path / "run")


def test_all_ties_and_empty_files_stop_the_run(models, tmp_path):
    tie = lambda row, i: {"caption": row["prompt"], "jpg_0": row["chosen"], "jpg_1": row["rejected"], "label_0": 0.5}
    refused("6 of 6 rows", models["sd"], write_pairs(tmp_path, 6, edit=tie), tmp_path / "run")
    (tmp_path / "none.jsonl").write_text("")
    refused("none.jsonl", models["sd"], tmp_path / "none.jsonl", tmp_path / "run")


def test_a_corrupt_image_stops_the_run(models, tmp_path):
    data = write_pairs(tmp_path, 4)
    (tmp_path / "2-b.png").write_bytes(b"no image")
    refused("row 3", models["sd"], data, tmp_path / "run")


def test_a_reference_of_another_path_is_used(models, data, tmp_path):
    other = tmp_path / "other"
    pipeline = tiny_pipeline("sd")
    with torch.no_grad():
        for p in pipeline.unet.parameters():
            p.mul_(1.1)
    pipeline.save_pretrained(other)
    cfg = config(models["sd"], data, tmp_path / "run", reference={"path": str(other)})
    task = diffusion_task(cfg, make_method(cfg))
    assert not task.record["reference_is_start"]
    assert task.record["reference"]["identity"] != task.record["model"]["fingerprint"]


def test_not_finite_latents_are_refused(models, data, tmp_path, monkeypatch):
    from prefopt.models.diffusion import ImageModel

    def broken(self, pixels):
        x = torch.full((len(pixels), 4, 8, 8), float("nan"))
        return x, x

    monkeypatch.setattr(ImageModel, "encode_images", broken)
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "fresh"))
    cfg = config(models["sd"], data, tmp_path / "run")
    with pytest.raises(PrefoptError, match=r"row 1: .*not finite"):
        diffusion_task(cfg, make_method(cfg))


def test_dropout_of_the_base_is_refused_where_the_base_is_the_reference(data, tmp_path):
    """With the adapter off the same network would answer at random; a frozen copy does not drop anything."""
    pipeline = tiny_pipeline("sd")
    own = {k: v for k, v in pipeline.unet.config.items() if not k.startswith("_")}
    pipeline.unet = type(pipeline.unet).from_config(own | {"dropout": 0.1})
    pipeline.save_pretrained(tmp_path / "model")
    lora = {"adapter": {"r": 2}}
    with pytest.raises(PrefoptError, match=r"the base model's dropout .* is active; set reference.kind = frozen"):
        train(config(tmp_path / "model", data, tmp_path / "run", model=lora))


def test_the_record_says_whether_the_reference_is_the_start(models, data, tmp_path):
    """Only then policy and reference must agree before the first step."""
    other = {"path": str(models["sd"]), "kind": "frozen"}
    for sections, start in (({}, True), ({"model": {"adapter": {"r": 2}}}, True), ({"reference": other}, False)):
        cfg = config(models["sd"], data, tmp_path / "run", **sections)
        assert diffusion_task(cfg, make_method(cfg)).record["reference_is_start"] is start
