"""Pipelines of every kind: recognised, made trainable, saved, and loaded again by plain diffusers."""

import json
from pathlib import Path

import pytest
import torch

from prefopt.errors import PrefoptError
from prefopt.models.diffusion import image_model, load_image_model, make_trainable, save_image_model
from prefopt.scoring.conditioning import predict, time_ids
from prefopt.worlds.shapes.pipelines import tiny_pipeline

KINDS = ["sd", "sd-v", "sdxl", "sd3"]
CAPTION = "a red circle in the upper left"


def answer(pipeline, net=None):
    """The denoiser's answer to a fixed input."""
    model = image_model(pipeline)
    condition = model.encode_captions([CAPTION]) | {"time_ids": time_ids(model.resolution)[None]}
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return predict(net or model.denoiser, model.kind, noisy, torch.tensor([500]), condition)


def train_a_little(model, net):
    optimizer = torch.optim.AdamW([p for p in net.parameters() if p.requires_grad], lr=1e-2)
    condition = model.encode_captions([CAPTION, ""]) | {"time_ids": time_ids(model.resolution).expand(2, 6)}
    for _ in range(2):
        out = predict(net, model.kind, torch.ones(2, 4, 8, 8), torch.tensor([3, 700]), condition)
        optimizer.zero_grad()
        out.square().mean().backward()
        optimizer.step()


def without_t5(kind):
    """What plain diffusers wants to be told about an SD3 without T5, before and after training alike."""
    return {"text_encoder_3": None, "tokenizer_3": None} if kind == "sd3" else {}


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    made = {}
    for kind in KINDS:
        made[kind] = tmp_path_factory.mktemp(kind)
        tiny_pipeline(kind).save_pretrained(made[kind])
    return made


@pytest.mark.parametrize(
    ("kind", "found", "prediction"),
    [("sd", "sd", "epsilon"), ("sd-v", "sd", "v_prediction"), ("sdxl", "sdxl", "epsilon"), ("sd3", "sd3", "flow")],
)
def test_kind_and_prediction_are_recognised(folders, kind, found, prediction):
    model = load_image_model(folders[kind])
    assert (model.kind, model.schedule.prediction, model.resolution) == (found, prediction, 32)
    assert not any(p.requires_grad for m in [*model.frozen.values(), model.denoiser] for p in m.parameters())
    assert load_image_model(folders[kind], resolution=64).resolution == 64


def test_a_vae_that_overflows_in_half_precision_decodes_in_float32():
    model = image_model(tiny_pipeline("sdxl").to(torch.float16))
    vae, seen = model.pipeline.vae, []
    vae.decoder.register_forward_pre_hook(lambda _, args: seen.append(args[0].dtype))
    latents = torch.randn(1, *model.latent_shape, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        pixels = model.decode_latents(latents)
    assert (seen[-1], vae.dtype, pixels.dtype) == (torch.float32, torch.float16, torch.float32)
    with_gradient = latents.clone().requires_grad_()
    model.decode_latents(with_gradient).square().sum().backward()
    assert seen[-1] == torch.float32 and bool(with_gradient.grad.isfinite().all())
    vae.to(torch.float16).register_to_config(force_upcast=False)
    with torch.no_grad():
        model.decode_latents(latents)
    assert seen[-1] == torch.float16


def test_flow_times_reach_a_bfloat16_network_unrounded():
    model = image_model(tiny_pipeline("sd3").to(torch.bfloat16))
    condition, seen = model.encode_captions([CAPTION]), []
    model.denoiser.register_forward_pre_hook(lambda _, args, kw: seen.append(kw["timestep"]), with_kwargs=True)
    with torch.no_grad():
        predict(model.denoiser, "sd3", torch.zeros(1, 4, 8, 8), torch.tensor([997.3], dtype=torch.float64), condition)
    torch.testing.assert_close(seen[0], torch.tensor([997.3]))


@pytest.mark.parametrize("kind", KINDS)
def test_full_training_saves_a_pipeline_that_diffusers_loads(folders, tmp_path, kind):
    from diffusers import DiffusionPipeline

    model = load_image_model(folders[kind])
    before = answer(model.pipeline)
    net = make_trainable(model)
    assert all(p.requires_grad for p in net.parameters())
    train_a_little(model, net)
    save_image_model(model, tmp_path)
    loaded = DiffusionPipeline.from_pretrained(tmp_path, **without_t5(kind))
    after = answer(loaded)
    assert not torch.allclose(after, before)
    torch.testing.assert_close(after, answer(model.pipeline))
    loaded.set_progress_bar_config(disable=True)
    picture = loaded(CAPTION, num_inference_steps=2).images[0]
    assert picture.size == (32, 32)


@pytest.mark.parametrize("kind", KINDS)
def test_lora_saves_weights_that_load_lora_weights_reads(folders, tmp_path, kind):
    from diffusers import DiffusionPipeline

    model = load_image_model(folders[kind])
    before = answer(model.pipeline)
    net = make_trainable(model, {"r": 4, "alpha": 12, "dropout": 0.0, "target_modules": None})
    torch.testing.assert_close(answer_of(model, net), before)
    train_a_little(model, net)
    after = answer_of(model, net)
    save_image_model(model, tmp_path)
    assert [p.name for p in tmp_path.iterdir()] == ["pytorch_lora_weights.safetensors"]
    loaded = DiffusionPipeline.from_pretrained(folders[kind], **without_t5(kind))
    loaded.load_lora_weights(tmp_path)
    again = answer(loaded)
    assert not torch.allclose(again, before, atol=1e-3)
    torch.testing.assert_close(again, after, rtol=1e-4, atol=1e-5)  # alpha, which is not r, came along


def answer_of(model, net):
    condition = model.encode_captions([CAPTION]) | {"time_ids": time_ids(model.resolution)[None]}
    noisy = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return predict(net, model.kind, noisy, torch.tensor([500]), condition)


def test_sdxl_text_is_both_encoders_and_pooled_is_the_last(folders):
    model = load_image_model(folders["sdxl"])
    encoded = model.encode_captions([CAPTION])
    pipeline, outputs = model.pipeline, []
    for tokenizer, encoder in (
        (pipeline.tokenizer, pipeline.text_encoder),
        (pipeline.tokenizer_2, pipeline.text_encoder_2),
    ):
        ids = tokenizer([CAPTION], padding="max_length", return_tensors="pt").input_ids
        with torch.no_grad():
            outputs.append(encoder(ids, output_hidden_states=True))
    torch.testing.assert_close(encoded["text"], torch.cat([o.hidden_states[-2] for o in outputs], -1))
    torch.testing.assert_close(encoded["pooled"], outputs[1].text_embeds)


@pytest.mark.parametrize("kind", ["sd", "sd3"])
def test_latents_decode_back_as_the_pipeline_does_it(folders, kind):
    model = load_image_model(folders[kind])
    vae = model.pipeline.vae
    vae.register_to_config(scaling_factor=0.5, shift_factor=0.3)
    pixels = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    mean, std = model.encode_images(pixels)
    with torch.no_grad():
        posterior = vae.encode(pixels).latent_dist
    torch.testing.assert_close(mean, (posterior.mean - 0.3) * 0.5)
    torch.testing.assert_close(std, posterior.std * 0.5)


@pytest.mark.parametrize(
    "pixels",
    [
        torch.zeros(1, 3, 32, 32, dtype=torch.uint8),
        torch.full((1, 3, 32, 32), 200.0),
        torch.full((1, 3, 32, 32), float("nan")),
    ],
)
def test_pixels_out_of_range_are_refused(folders, pixels):
    with pytest.raises(PrefoptError, match=r"\[-1, 1\]"):
        load_image_model(folders["sd"]).encode_images(pixels)


def edited(folder: Path, tmp_path: Path, part: str, file: str, **changes) -> Path:
    import shutil

    copy = tmp_path / "edited"
    shutil.copytree(folder, copy)
    path = copy / part / file
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return copy


def test_folders_that_do_not_fit_are_refused(folders, tmp_path):
    def refused(match, path, **options):
        with pytest.raises(PrefoptError, match=match):
            load_image_model(path, **options)

    refused("no such folder", tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    refused("no model_index.json", tmp_path / "empty")
    refused(
        "prediction_type 'score'",
        edited(folders["sd"], tmp_path, "scheduler", "scheduler_config.json", prediction_type="score"),
    )
    refused("multiple of 4", folders["sd"], resolution=30)
    refused("positive", folders["sd"], resolution=-4)


def test_damaged_weights_are_refused(folders, tmp_path):
    import shutil

    copy = tmp_path / "damaged"
    shutil.copytree(folders["sd"], copy)
    weights = copy / "unet" / "diffusion_pytorch_model.safetensors"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(PrefoptError, match="cannot load this pipeline"):
        load_image_model(copy)


def test_parts_that_do_not_belong_together_are_refused():
    import diffusers

    pipeline = tiny_pipeline("sd3")
    pipeline.scheduler = tiny_pipeline("sd").scheduler
    with pytest.raises(PrefoptError, match="flow transformer cannot"):
        image_model(pipeline)
    pipeline = tiny_pipeline("sd")
    pipeline.unet = tiny_pipeline("sdxl").unet
    with pytest.raises(PrefoptError, match="no supported kind"):
        image_model(pipeline)
    pipeline = tiny_pipeline("sd")
    pipeline.unet = diffusers.UNet2DConditionModel(
        sample_size=8, in_channels=9, out_channels=4, block_out_channels=(16, 16), norm_num_groups=8,
        down_block_types=("DownBlock2D", "DownBlock2D"), up_block_types=("UpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
    )  # fmt: skip
    with pytest.raises(PrefoptError, match="inpainting"):
        image_model(pipeline)


def test_an_adapter_that_fits_nothing_is_refused(folders):
    with pytest.raises(PrefoptError, match=r"model\.adapter"):
        make_trainable(load_image_model(folders["sd"]), {"r": 2, "target_modules": ["nothing_of_this_name"]})
