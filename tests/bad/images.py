"""Bad image data and image models: what Diffusion-DPO, DDIM-InPO and SmPO must not be given."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from PIL import Image

from tests.bad import Place, Table
from tests.bad.models import change

bad = Table()
CAPTION = "a red circle in the upper left"


def picture(p: Place, name: str, size: tuple[int, int] = (32, 32), shade: int = 0) -> str:
    Image.new("RGB", size, (shade, 90, 30)).save(p.tmp / name)
    return str(p.tmp / name)


def pair(p: Place, number: int = 0, **more: Any) -> dict[str, Any]:
    sides = {s: picture(p, f"{number}-{s}.png", shade=n + 2 * number) for n, s in enumerate(("chosen", "rejected"))}
    return {"prompt": CAPTION, **sides, **more}


def pipeline(p: Place, kind: Any = "sd", **scheduler: Any) -> Path:
    """A tiny pipeline in the folder `model`, its scheduler's configuration changed."""
    from prefopt.worlds.shapes.pipelines import tiny_pipeline

    tiny_pipeline(kind).save_pretrained(p.tmp / "model")
    if scheduler:
        change(p.tmp / "model" / "scheduler" / "scheduler_config.json", **scheduler)
    return p.tmp / "model"


def images(p: Place, *more: str, model: Any = None, rows: Any = None, method: str = "diffusion-dpo") -> list[str]:
    data = p.rows(*(rows or [pair(p, n) for n in range(4)]))
    return p.train("train.max_steps=1", *more, method=method, model=model or p.fixture("image_model"), data=data)


def case(name: str, *words: str, overrides: str = "", method: str = "diffusion-dpo", **row: Any) -> None:
    """Good pictures; the overrides, or columns of a row, are bad."""

    def command(p: Place) -> list[str]:
        return images(p, *overrides.split(), rows=[pair(p), pair(p, 1, **row)] if row else None, method=method)

    command.__name__ = f"images_{name}"
    bad(*words)(command)


case("beta", "diffusion-dpo.beta = 0", overrides="method.beta=0")
case("half_factor", "half_factor = -1", overrides="method.half_factor=-1")
case("caption_dropout", "denoising.caption_dropout", overrides="denoising.caption_dropout=1.5")
case("timesteps", "denoising.timesteps", overrides="denoising.timesteps=odd")
case("flow_key", "denoising.flow_shift has no effect", overrides="denoising.flow_shift=3")
case("beta_schedule", "flow models", "beta_schedule = constant", overrides="method.beta_schedule=(1-s)^2")
case("own_noise", "shared_noise", "ddim_inversion", overrides="denoising.shared_noise=false", method="inpo")
case("inversion_steps", "2000 steps", "1 .. 1000", overrides="method.inversion_steps=2000", method="inpo")
case("no_inversion", "inversion_steps = 0", overrides="method.inversion_steps=0", method="inpo")
case("eta", "inpo.inversion_eta = -1", overrides="method.inversion_eta=-1", method="inpo")
case("gamma", "smpo.gamma = 0", overrides="method.gamma=0", method="smpo")
case("no_scores", "chosen_reward_score", "data build scores", method="smpo")
case("prompt_null", "row 2", "'prompt' is null", prompt=None)
case("side_null", "row 2", "rejected", rejected=None)


@bad("row 2", "label_0", "expected 0, 0.5 (a tie) or 1")
def images_label(p: Place) -> list[str]:
    row = pair(p)
    flat = {"caption": CAPTION, "jpg_0": row["chosen"], "jpg_1": row["rejected"], "label_0": 1}
    return images(p, rows=[flat, flat | {"label_0": 0.7}])


@bad("4 of 4 rows teach nothing", "a tie")
def images_all_ties(p: Place) -> list[str]:
    row = pair(p)
    flat = {"caption": CAPTION, "jpg_0": row["chosen"], "jpg_1": row["rejected"], "label_0": 0.5}
    return images(p, rows=[flat] * 4)


@bad("differ in size", "row 1", "48 x 32", "mixed_sizes = resize")
def images_of_two_sizes(p: Place) -> list[str]:
    return images(p, rows=[pair(p) | {"rejected": picture(p, "wide.png", (48, 32))}])


@bad("row 1", "pixels", "more than")
def images_enormous(p: Place) -> list[str]:
    Image.new("1", (9000, 9000)).save(p.tmp / "huge.png")
    return images(p, rows=[pair(p) | {"rejected": str(p.tmp / "huge.png")}])


@bad("prediction_type 'noise'", "expected epsilon, v_prediction, sample")
def images_prediction(p: Place) -> list[str]:
    return images(p, model=pipeline(p, prediction_type="noise"))


@bad("cannot load this pipeline", "NoSuchScheduler")
def images_scheduler(p: Place) -> list[str]:
    folder = pipeline(p)
    change(folder / "model_index.json", scheduler=["diffusers", "NoSuchScheduler"])
    return images(p, model=folder)


@bad("'flow'", "diffusion UNet", "cannot have been trained")
def images_flow_scheduler_of_a_unet(p: Place) -> list[str]:
    folder = pipeline(p)
    change(folder / "model_index.json", scheduler=["diffusers", "FlowMatchEulerDiscreteScheduler"])
    place = folder / "scheduler" / "scheduler_config.json"
    place.write_text(json.dumps({"_class_name": "FlowMatchEulerDiscreteScheduler", "num_train_timesteps": 1000}))
    return images(p, model=folder)


@bad("StableDiffusionXLPipeline", "no supported kind")
def images_sdxl_without_pooled_text(p: Place) -> list[str]:
    folder = pipeline(p, "sdxl")
    change(folder / "model_index.json", text_encoder_2=[None, None], tokenizer_2=[None, None])
    return images(p, model=folder)


@bad("'ddim_inversion'", "flow model")
def images_inversion_of_a_flow(p: Place) -> list[str]:
    return images(p, model=pipeline(p, "sd3"), method="inpo")


@bad("turbo", "flow model")
def images_turbo_of_a_flow(p: Place) -> list[str]:
    return images(p, "denoising.timesteps=turbo", model=pipeline(p, "sd3"))


@bad("clip_sample", "false")
def images_clipped(p: Place) -> list[str]:
    return images(p, model=pipeline(p, "sdxl", clip_sample=True), method="inpo")


@bad("every 'reward_score' is 0.2")
def images_equal_scores(p: Place) -> list[str]:
    same = {"chosen_reward_score": 0.2, "rejected_reward_score": 0.2}
    return images(p, rows=[pair(p, n, **same) for n in range(3)], method="smpo")


@bad("'chosen_reward_score' is", "nan")
def images_score_nan(p: Place) -> list[str]:
    rows = [pair(p, n, chosen_reward_score=0.2 + n, rejected_reward_score=0.1) for n in range(3)]
    rows[1]["chosen_reward_score"] = float("nan")
    return images(p, rows=rows, method="smpo")


@bad("EDMEulerScheduler", "another rule", "scheduler of its training")
def images_scheduler_of_other_levels(p: Place) -> list[str]:
    folder = pipeline(p)
    change(folder / "model_index.json", scheduler=["diffusers", "EDMEulerScheduler"])
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps({"_class_name": "EDMEulerScheduler"}))
    return images(p, model=folder)


@bad("no VAE", "4 channels", "save the pipeline with the VAE")
def images_without_vae(p: Place) -> list[str]:
    folder = pipeline(p)
    change(folder / "model_index.json", vae=[None, None])
    return images(p, model=folder)


@bad("vae", "decoder.conv_out.weight", "not finite")
def images_damaged_vae(p: Place) -> list[str]:
    from safetensors.torch import load_file, save_file

    path = pipeline(p) / "vae" / "diffusion_pytorch_model.safetensors"
    weights = load_file(path)
    weights["decoder.conv_out.weight"][0] = float("nan")
    save_file(weights, path, metadata={"format": "pt"})
    return images(p, model=path.parents[1])


@bad("2 of 2 pairs are of equal pictures", "nothing to prefer")
def images_equal_under_two_names(p: Place) -> list[str]:
    rows = [pair(p, n) | {"rejected": picture(p, f"again-{n}.png", shade=2 * n)} for n in range(2)]
    return images(p, rows=rows)


@bad("numbers of 32 bits", "row 1", "8 or 16 bits")
def images_of_floats(p: Place) -> list[str]:
    Image.new("F", (32, 32)).save(p.tmp / "floats.tiff")
    return images(p, rows=[pair(p) | {"rejected": str(p.tmp / "floats.tiff")}])


@bad("row 1", "web address", "download")
def images_on_the_web(p: Place) -> list[str]:
    return images(p, rows=[pair(p) | {"rejected": "https://example.org/a.png"}])


@bad("images that cannot be decoded", "truncated", "not sound")
def doctor_decodes_images_whole(p: Place) -> list[str]:
    whole = Image.effect_noise((64, 64), 90)
    whole.save(p.tmp / "half.png")
    half = p.file("half.png", (p.tmp / "half.png").read_bytes()[:1500])
    return ["data", "check", str(p.rows(pair(p) | {"rejected": str(half)}))]


@bad("row 2", "reward_scores", "1 numbers for a response, and 2 in")
def images_judged_by_fewer(p: Place) -> list[str]:
    lists = [{"prompt": CAPTION, "responses": list(pair(p, n).values())[1:]} for n in range(2)]
    scores: list[Any] = [[[1, 2], [2, 3]], [[1], [2]]]
    rows = [row | {"reward_scores": given} for row, given in zip(lists, scores, strict=True)]
    return images(p, rows=rows, method="rankdpo")
