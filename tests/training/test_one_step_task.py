"""Diff-Instruct* runs from the command line to a generator that plain diffusers samples in one step; bad input."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from prefopt import PrefoptError, cli
from prefopt.config import make
from prefopt.models.diffusion import load_image_model
from prefopt.scoring.base import Draw
from prefopt.training.run import make_method, train
from prefopt.training.tasks.one_step import one_step_task
from prefopt.worlds.shapes.pipelines import tiny_pipeline
from tests.small_clip import save_clip

KINDS: list[Any] = ["sd", "sd-v", "sdxl", "sd3"]
CAPTIONS = ["a red circle in the centre", "two blue squares", "a green circle"]
REWARDS = """
import torch

def warm(images, prompts):
    assert images.abs().max() <= 1 and len(images) == len(prompts)
    return (images[:, 0] - images[:, 2]).mean((1, 2))

def batch(images, prompts): return images.mean()
def mixed(images, prompts): return images.mean().expand(len(images)) + images.mean((1, 2, 3))
def counted(images, prompts): return (images > 0).float().mean((1, 2, 3))
def listed(images, prompts): return [0.0 for _ in prompts]
def broken(images, prompts): return images.mean((1, 2, 3)) / 0
def unlike(images, prompts): return images.mean((1, 2, 3, 4))
def few(images): return images.mean((1, 2, 3))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("one-step")
    for kind in KINDS:
        tiny_pipeline(kind).save_pretrained(folder / kind)
    (folder / "rewards.py").write_text(REWARDS)
    rows = [{"prompt": CAPTIONS[i % 3]} for i in range(12)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder


def config(place: Path, output: Path, kind: str = "sd", /, **sections: Any) -> Any:
    base: dict[str, Any] = {
        "method": {"name": "diff-instruct-star", "assistant_steps": 1, "alpha_rew": 5.0},
        "model": {"path": str(place / kind)},
        "data": {"path": str(place / "prompts.jsonl")},
        "rollout": {"reward": f"{place}/rewards.py:warm"},
        "train": {"max_steps": 4, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "warmup_steps": 0}
        | {"logging_steps": 2, "save_steps": 2, "use_cpu": True, "disable_tqdm": True},
        "output": str(output),
    }
    return make(base | {k: base.get(k, {}) | v for k, v in sections.items()})


def one_step(pipeline: Any, seeds: range = range(2)) -> torch.Tensor:
    """The documented call."""
    pipeline.set_progress_bar_config(disable=True)
    noise = [torch.Generator().manual_seed(s) for s in seeds]
    return torch.from_numpy(
        pipeline(
            [CAPTIONS[1]] * len(seeds), num_inference_steps=1, guidance_scale=0.0, generator=noise, output_type="np"
        ).images
    )


def absent(kind: str) -> dict[str, None]:
    return {"text_encoder_3": None, "tokenizer_3": None} if kind == "sd3" else {}


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_trains_and_samples_in_one_step_with_plain_diffusers(place: Path, tmp_path: Path, kind: str) -> None:
    from diffusers import DiffusionPipeline

    cfg = config(place, tmp_path / "run", kind)
    assert train(cfg).status == "finished"
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert any("reward" in r for r in rows)
    assert all(abs(r["loss"]) < 1e5 for r in rows if "loss" in r)
    pictures = one_step(DiffusionPipeline.from_pretrained(tmp_path / "run", **absent(kind)))
    assert pictures.shape == (2, 32, 32, 3)

    # the call makes the very pictures that training rewarded
    task = one_step_task(
        config(place, tmp_path / "other", kind, model={"path": str(tmp_path / "run")}), make_method(cfg)
    )
    scorer: Any = task.scorer
    pipeline = load_image_model(tmp_path / "run")
    said = {k: x.expand(2, *x.shape[1:]) for k, x in pipeline.encode_captions([CAPTIONS[1]]).items()}
    said |= {k: x.expand(2, *x.shape) for k, x in scorer.empty.items() if k == "time_ids"}
    z = torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(s)) for s in range(2)])
    with torch.no_grad():
        made = scorer.decode(scorer.generate(task.model, z, said))
    torch.testing.assert_close(made.permute(0, 2, 3, 1) / 2 + 0.5, pictures, rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3"])
def test_adapters_of_both_networks(place: Path, tmp_path: Path, kind: str) -> None:
    """The assistant is a LoRA on the reference; the generator's loads into the start, with the scheduler beside it."""
    from diffusers import DDIMScheduler, DiffusionPipeline

    run = tmp_path / "run"
    train(config(place, run, kind, model={"adapter": {"r": 2}}))
    assert all("lora" in k for k in load_file(run / "checkpoint-4" / "networks.safetensors"))
    pipeline = DiffusionPipeline.from_pretrained(place / kind, **absent(kind))
    if kind != "sd3":
        pipeline.scheduler = DDIMScheduler.from_pretrained(run, subfolder="scheduler")
    before = one_step(pipeline)
    pipeline.load_lora_weights(str(run))
    assert (one_step(pipeline) - before).abs().max() > 1e-5


def test_made_of_the_reference_at_a_time_and_then_tuned(place: Path, tmp_path: Path) -> None:
    """Score matching makes the generator; the second run finds its time in its scheduler, and its own reference."""
    first, second = tmp_path / "first", tmp_path / "second"
    train(
        config(
            place,
            first,
            method={"name": "diff-instruct-star", "alpha_rew": 0.0, "generator_time": 399},
            rollout={"reward": None},
        )
    )
    assert json.loads((first / "scheduler" / "scheduler_config.json").read_text())["num_train_timesteps"] == 400
    train(config(place, second, model={"path": str(first)}, reference={"path": str(place / "sd")}))
    records = [json.loads((run / "run.json").read_text()) for run in (first, second)]
    assert [r["model"]["generator_time"] for r in records] == [399, 399]
    assert (
        records[0]["model"]["fingerprint"] == records[0]["reference"]["identity"] == records[1]["reference"]["identity"]
    )
    assert records[1]["model"]["fingerprint"] != records[1]["reference"]["identity"]


def test_what_is_saved_is_the_mean(place: Path, tmp_path: Path) -> None:
    """ema <- d ema + (1 - d) theta after each update of the generator, whose own weights are in the checkpoints."""
    run = tmp_path / "run"
    method = {"name": "diff-instruct-star", "assistant_steps": 1, "alpha_rew": 5.0, "ema": 0.75}
    train(config(place, run, method=method, train={"save_total_limit": 9}))
    mean = load_file(place / "sd" / "unet" / "diffusion_pytorch_model.safetensors")
    for step in (2, 4):
        theta = load_file(run / f"checkpoint-{step}" / "model.safetensors")
        mean = {k: 0.75 * x + 0.25 * theta[k] for k, x in mean.items()}
    saved = load_file(run / "unet" / "diffusion_pytorch_model.safetensors")
    for name, x in mean.items():
        torch.testing.assert_close(saved[name], x, rtol=1e-5, atol=1e-6)


def test_assistants_start_as_the_reference_and_stay_their_own(place: Path, tmp_path: Path) -> None:
    for adapter in (None, {"r": 2}):
        cfg = config(place, tmp_path / "run", model={"adapter": adapter})
        task = one_step_task(cfg, make_method(cfg))
        scorer: Any = task.scorer
        batch = scorer.collate([Draw(task.train[i]) for i in range(2)])
        needs = {f"features:{n}": {} for n in ("assistant_score", "reference_score", "empty_score")}
        found = scorer.score(task.model, batch, needs)["responses"]
        torch.testing.assert_close(found["assistant_score"], found["reference_score"])
        assert not torch.allclose(found["empty_score"], found["reference_score"])
        owned = {id(p) for p in task.networks["assistant"].parameters()}
        assert not owned & {id(p) for p in task.model.parameters()}
        with torch.no_grad():
            for p in task.networks["assistant"].parameters():
                p.add_(0.1)
        after = scorer.score(task.model, batch, needs)["responses"]
        assert torch.equal(after["reference_score"], found["reference_score"])
        assert not torch.allclose(after["assistant_score"], found["assistant_score"])


def test_a_scorer_of_pictures_is_a_reward(place: Path, tmp_path: Path) -> None:
    """A CLIP folder, through the decoder and its own preprocessing in torch; equal to what it says of the pictures."""
    from PIL import Image

    from prefopt.rewards.differentiable import load_differentiable
    from prefopt.rewards.images import load_scorer

    clip = save_clip(tmp_path / "clip")
    train(config(place, tmp_path / "run", rollout={"reward": f"pickscore:{clip}"}))
    g = torch.Generator().manual_seed(0)
    coarse = 255 * torch.rand(3, 3, 4, 4, generator=g)  # smooth pictures: PIL rounds what it resizes
    pixels = torch.nn.functional.interpolate(coarse, (32, 32), mode="bilinear").round()
    images = [Image.fromarray(x.permute(1, 2, 0).to(torch.uint8).numpy()) for x in pixels]
    x = (pixels / 127.5 - 1).requires_grad_()
    values = load_differentiable(f"pickscore:{clip}")(x, CAPTIONS)
    assert values.tolist() == pytest.approx(
        load_scorer(f"pickscore:{clip}").score(images, CAPTIONS), rel=0.02, abs=0.02
    )
    values.sum().backward()
    assert x.grad is not None
    assert x.grad.abs().max() > 0


def test_the_reward_reaches_the_generator_through_the_decoder(place: Path, tmp_path: Path) -> None:
    cfg = config(place, tmp_path / "run")
    task = one_step_task(cfg, make_method(cfg))
    scorer: Any = task.scorer
    batch = scorer.collate([Draw(task.train[i]) for i in range(3)])
    scorer.score(task.model, batch, {"scores:reward": {"grad": True}})["responses"]["reward"].values.sum().backward()
    found = [p.grad.clone() for p in task.model.parameters() if p.grad is not None]
    task.model.zero_grad()
    pixels = scorer.decode(scorer.generate(task.model, batch.start, batch.condition))
    (pixels[:, 0] - pixels[:, 2]).mean((1, 2)).sum().backward()
    assert len(found) > 20
    for a, p in zip(found, [p for p in task.model.parameters() if p.grad is not None], strict=True):
        torch.testing.assert_close(a, p.grad)
    assert all(p.grad is None for p in task.networks["assistant"].parameters())


def test_from_the_command_line_to_pictures(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def prefopt(*line: object) -> None:
        monkeypatch.setattr(sys, "argv", ["prefopt", *map(str, line)])
        with pytest.raises(SystemExit) as e:
            cli.main()
        assert e.value.code in (None, 0)

    run, prompts = tmp_path / "run", place / "prompts.jsonl"
    small = [
        "train.max_steps=4",
        "train.per_device_train_batch_size=4",
        "train.learning_rate=1e-3",
        "train.use_cpu=true",
    ]
    keys = [f"rollout.reward={place}/rewards.py:warm", "method.generator_time=399", "method.ema=0.9", *small]
    prefopt("train", "diff-instruct-star", "-m", place / "sd", "-d", prompts, "-o", run, *keys)
    prefopt("generate", run, "-p", prompts, "-o", tmp_path / "pictures", "--steps", 1, "--guidance", 0, "--limit", 3)
    assert len(list((tmp_path / "pictures").glob("0*.png"))) == 3


HALVES: dict[str, dict[str, Any]] = {
    "autocast": {"train": {"bf16": True}},
    "loaded": {"model": {"dtype": "bfloat16"}},
    "loaded, adapters": {"model": {"dtype": "bfloat16", "adapter": {"r": 2}}},
    "recomputed": {"train": {"gradient_checkpointing": True}},
}


@pytest.mark.parametrize("sections", HALVES.values(), ids=HALVES)
def test_half_precision_and_recomputed_activations(place: Path, tmp_path: Path, sections: dict[str, Any]) -> None:
    found = []
    plain = {"model": {k: v for k, v in sections.get("model", {}).items() if k == "adapter"}}
    for name, more in {"plain": plain, "other": sections}.items():
        train(config(place, tmp_path / name, **more))
        rows = [json.loads(line) for line in (tmp_path / name / "metrics.jsonl").read_text().splitlines()]
        found.append([r["loss"] for r in rows if "loss" in r])
    assert found[1] == pytest.approx(found[0], rel=0.03, abs=0.3 if "gradient" not in str(sections) else 1e-4)


def test_held_out_prompts_and_what_a_run_costs(place: Path, tmp_path: Path) -> None:
    data = {"eval_path": str(place / "prompts.jsonl"), "limit": 6}
    cfg = config(place, tmp_path / "run", data=data)
    cost = train(cfg, dry_run=True).estimate
    assert cost is not None
    one = sum(p.numel() for p in load_image_model(place / "sd").denoiser.parameters())
    assert (cost.trainable, cost.parameters, cost.examples) == (2 * one, 2 * one, 6)
    assert cost.flops > 0
    train(cfg)
    rows = [json.loads(line) for line in (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()]
    assert all({"eval_reward", "eval_log_y"} <= r.keys() for r in rows if "eval_loss" in r)
    assert any("eval_loss" in r for r in rows)


# ---- bad input
def refused(match: str, *args: Any, **sections: Any) -> None:
    with pytest.raises(PrefoptError, match=match) as e:
        train(config(*args, **sections))
    assert "\n" not in str(e.value)
    assert not (Path(args[1]) / "model_index.json").exists()


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("batch", r"returned \[\] for 2 pictures: it must give one number for each"),
        ("mixed", "mixes pictures"),
        ("counted", "has no gradient"),
        ("listed", "must return a tensor .* got list"),
        ("broken", "not finite"),
        ("unlike", "failed on pictures as a tensor"),
        ("few", "signature"),
        ("none", "has no function 'none'"),
    ],
)
def test_rewards_that_cannot_train_a_generator(place: Path, tmp_path: Path, name: str, match: str) -> None:
    refused(match, place, tmp_path / "run", rollout={"reward": f"{place}/rewards.py:{name}"})


def test_bad_input_is_refused_before_training(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"

    def method(**keys: Any) -> dict[str, Any]:
        return {"name": "diff-instruct-star"} | keys

    refused("there is no reward: set rollout.reward", place, out, rollout={"reward": None})
    refused("rollout.reward has no effect", place, out, method=method(alpha_rew=0.0))
    refused('neither "module:function"', place, out, rollout={"reward": str(tmp_path)})
    refused("assistant_steps = 0", place, out, method=method(assistant_steps=0))
    refused("alpha_cfg = -1.0", place, out, method=method(alpha_cfg=-1.0))
    refused("must be an integer in 0 .. 999", place, out, method=method(generator_time=1000))
    refused("generator_time = 5 has no effect: a flow generator", place, out, "sd3", method=method(generator_time=5))
    refused("not defined", place, out, "sd3", method=method(t_low=0.0))
    refused("denoising.caption_dropout has no effect", place, out, denoising={"caption_dropout": 0.1})
    refused("denoising.random_flip has no effect", place, out, denoising={"random_flip": True})
    refused("reference.kind has no effect", place, out, reference={"kind": "frozen"})
    refused("reference.mixup_alpha has no effect", place, out, reference={"mixup_alpha": 0.5})
    refused("another kind of model", place, out, reference={"path": str(place / "sdxl")})
    refused("predicts v_prediction where", place, out, reference={"path": str(place / "sd-v")})
    images = tmp_path / "images.jsonl"
    images.write_text(json.dumps({"image": "a.png"}) + "\n")
    refused("prompt", place, out, data={"path": str(images)})
    (tmp_path / "empty.jsonl").write_text("")
    refused("empty.jsonl", place, out, data={"path": str(tmp_path / "empty.jsonl")})


def test_a_text_model_is_no_generator(text_model: Path, pairs_file: Path, tmp_path: Path) -> None:
    cfg = {
        "method": "diff-instruct-star",
        "model": str(text_model),
        "data": str(pairs_file),
        "output": str(tmp_path / "run"),
    }
    with pytest.raises(PrefoptError, match="a generator: it makes its own pictures"):
        train(make(cfg))


def test_other_noise_levels_are_refused(place: Path, tmp_path: Path) -> None:
    from diffusers import DDIMScheduler

    other = tmp_path / "other"
    pipeline = tiny_pipeline("sd")
    pipeline.scheduler = DDIMScheduler.from_config(pipeline.scheduler.config, beta_end=0.02)
    pipeline.save_pretrained(other)
    refused("it has other noise levels", place, tmp_path / "run", reference={"path": str(other)})
