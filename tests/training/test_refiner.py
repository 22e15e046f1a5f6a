"""SDXL's refiner: one text encoder, an aesthetic score among five time ids, pictures refined and not drawn."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from prefopt.data.latents import empty_condition, same_for_all
from prefopt.errors import PrefoptError
from prefopt.models.diffusion import image_model
from prefopt.rollout.images import sample_images
from prefopt.training.run import train
from prefopt.worlds.shapes.pipelines import WIDTH, tiny_pipeline

from .test_diffusion_task import config, losses, write_pairs

CAPTION = "a red circle in the upper left"


def refiner(score: bool = True) -> Any:
    """A tiny one, of the parts of the tiny base."""
    from diffusers import StableDiffusionXLImg2ImgPipeline, UNet2DConditionModel

    base = tiny_pipeline("sdxl")
    sizes = {"cross_attention_dim": WIDTH, "projection_class_embeddings_input_dim": 5 * 8 + WIDTH}
    unet: Any = UNet2DConditionModel
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = unet.from_config(dict(base.unet.config) | sizes)
    parts = {name: getattr(base, name) for name in ("vae", "text_encoder_2", "tokenizer_2", "scheduler")}
    parts |= {"text_encoder": None, "tokenizer": None, "unet": network, "force_zeros_for_empty_prompt": False}
    return StableDiffusionXLImg2ImgPipeline(**parts, requires_aesthetics_score=score, add_watermarker=False)


def test_it_is_told_what_its_pipeline_tells_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path))
    pipeline = refiner()
    model = image_model(pipeline)
    square = (model.resolution, model.resolution)
    told = pipeline._get_add_time_ids(square, (0, 0), square, 6.0, 2.5, square, (0, 0), square, torch.float32, WIDTH)
    assert torch.equal(same_for_all(model)["time_ids"], told[0][0])
    assert torch.equal(empty_condition(model)["time_ids"], told[1][0])
    text, empty, pooled, _ = pipeline.encode_prompt(CAPTION, negative_prompt="")
    said = model.encode_captions([CAPTION])
    assert torch.equal(said["text"], text) and torch.equal(said["pooled"], pooled)
    torch.testing.assert_close(empty_condition(model)["text"], empty[0])


@pytest.mark.parametrize("adapter", [None, {"r": 4}], ids=["full", "lora"])
def test_it_trains_and_loads_with_plain_diffusers(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, adapter: dict[str, int] | None
) -> None:
    from diffusers import DiffusionPipeline

    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    start, run = tmp_path / "start", tmp_path / "run"
    refiner().save_pretrained(start)
    model = {"adapter": adapter} if adapter else {}
    options = {"model": model, "denoising": {"timesteps": "refiner", "caption_dropout": 0.5}}
    assert train(config(start, write_pairs(tmp_path, 4), run, **options)).status == "finished"
    curve = losses(run)
    assert curve[0] == pytest.approx(math.log(2), abs=1e-3) and curve[-1] != pytest.approx(curve[0], abs=1e-7)
    pipeline = DiffusionPipeline.from_pretrained(start if adapter else run)
    if adapter:
        pipeline.load_lora_weights(run)
    assert type(pipeline).__name__ == "StableDiffusionXLImg2ImgPipeline" and pipeline.text_encoder is None
    picture = Image.new("RGB", (32, 32), "red")
    assert pipeline(CAPTION, image=picture, num_inference_steps=4, strength=0.5).images[0].size == (32, 32)


def test_what_it_cannot_do_is_said() -> None:
    with pytest.raises(PrefoptError, match="of prompts alone it draws none"):
        sample_images(refiner(), [CAPTION], [0])
    with pytest.raises(PrefoptError, match="6 time ids give 80.*requires_aesthetics_score = true"):
        image_model(refiner(score=False))


@pytest.mark.parametrize(
    "method",
    [
        {"name": "diffusion-dro", "steps": 4},
        {"name": "self-npo", "start": "noise"},
        {"name": "d3po", "steps": 4},
        {"name": "diff-instruct-star", "alpha_rew": 0},
    ],
    ids=lambda method: method["name"],
)
def test_methods_that_begin_with_noise_are_refused(
    method: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path / "cache"))
    refiner().save_pretrained(tmp_path / "model")
    data = write_pairs(tmp_path, 4)
    rollout = {"reward": f"{__file__}:CAPTION"} if method["name"] == "d3po" else {}
    given = config(tmp_path / "model", data, tmp_path / "run", method=method, rollout=rollout)
    with pytest.raises(PrefoptError, match="refines pictures that it is given"):
        train(given)
