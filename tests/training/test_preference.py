"""Preference models of pictures: the card's equation, the plain model at the start, a run from the command line's
configuration, and the judge that comes out."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import BlipImageProcessor

from prefopt import Responses, get_method
from prefopt.config import make
from prefopt.errors import PrefoptError
from prefopt.models.preference import PreferenceModel, TimeModulation, as_clip_reads
from prefopt.rewards.images import clip_words, load_clip, load_processor, load_scorer
from prefopt.rewards.step_aware import load_step_judge
from prefopt.training.run import make_method, train
from prefopt.training.tasks.preference import preference_task
from tests.small_clip import draw, save_clip

PROMPTS = ["a red circle in the upper left", "two blue squares at the top"]
D = torch.float64


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_clip(tmp_path_factory.mktemp("clip"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Ten pairs in Pick-a-Pic's layout, three of them ties; one prompt has six, the other four. Red is better."""
    folder = tmp_path_factory.mktemp("pairs")
    g = np.random.default_rng(0)
    rows = []
    for i in range(10):
        for side in "01":
            pixels = g.integers(0, 120, (32, 32, 3), dtype=np.uint8)
            pixels[..., 0] += np.uint8(130 if (side == "0") == (i % 2 == 0) else 0)
            Image.fromarray(pixels).save(folder / f"{i}-{side}.png")
        label = 0.5 if i in (1, 4, 6) else float(i % 2 == 0)
        row = {"jpg_0": f"{i}-0.png", "jpg_1": f"{i}-1.png", "label_0": label, "caption": PROMPTS[i % 5 == 0 or i > 7]}
        rows.append(row)
    (folder / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder / "pairs.jsonl"


def config(clip: Path, pairs: Path, output: Path, **sections: Any) -> Any:
    base: dict[str, Any] = {
        "method": {"name": "clip-preference"},
        "model": {"path": str(clip)},
        "data": {"path": str(pairs)},
        "train": {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "logging_steps": 1},
        "output": str(output),
    }
    base["train"] |= {"use_cpu": True, "disable_tqdm": True, "save_strategy": "no"}
    return make(
        {
            k: base.get(k, {}) | sections.get(k, {}) if isinstance(base.get(k, {}), dict) else base[k]
            for k in {**base, **sections}
        }
    )


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [r["loss"] for r in rows if "loss" in r]


@pytest.mark.parametrize("per_prompt", [True, False])
def test_the_loss_is_the_cards(per_prompt: bool) -> None:
    g = torch.Generator().manual_seed(1)
    s = torch.randn(10, generator=g, dtype=D).requires_grad_()
    q, n = torch.tensor([1.0, 0.5, 0.0, 0.7, 1.0], dtype=D), torch.tensor([2, 1, 2, 5, 3])
    total: Any = torch.zeros((), dtype=D)
    weights = 0.0
    for i in range(5):
        s_0, s_1, q_0 = s[i], s[5 + i], float(q[i])
        loss = q_0 * torch.log(1 + torch.exp(s_1 - s_0)) + (1 - q_0) * torch.log(1 + torch.exp(s_0 - s_1))
        loss = loss + (math.log(0.5) if q_0 == 0.5 else 0.0)
        weight = 1 / float(n[i]) if per_prompt else 1.0
        total, weights = total + weight * loss, weights + weight
    (wanted,) = torch.autograd.grad(total / weights, s, retain_graph=True)
    batch = Responses.of(pairs="halves", reward_logps=s, label_probability=q, prompt_pairs=n)
    found = get_method("clip-preference", **({} if per_prompt else {"per_prompt": False}))(batch).scalar
    (gradient,) = torch.autograd.grad(found, s)
    assert found.item() == pytest.approx((total / weights).item(), abs=1e-12)
    assert torch.allclose(gradient, wanted, atol=1e-12)


def test_a_step_aware_model_starts_as_the_plain_one_at_every_time(clip: Path) -> None:
    net = load_clip(str(clip), "test").eval()
    words = clip_words(load_processor(str(clip), "test").tokenizer, net, PROMPTS)
    pixels = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    group = torch.tensor([0, 1, 1, 0])
    plain = PreferenceModel.of(net, step_aware=False)(pixels, words, group)
    aware = PreferenceModel.of(net, step_aware=True)
    for time in (torch.zeros(4), torch.tensor([0, 5, 500, 999])):
        assert torch.allclose(aware(pixels, words, group, time), plain, atol=1e-5)
    assert plain.std() > 0.1
    with pytest.raises(PrefoptError, match="needs the time"):
        aware(pixels, words, group)


def test_the_modulated_tower_is_the_cards(clip: Path) -> None:
    """Block by block, vector by vector, for one picture at one time."""
    net = load_clip(str(clip), "test").eval().double()
    aware = PreferenceModel.of(net, step_aware=True).double()
    draw(aware.modulation, 7)
    for layer in aware.modulation.blocks:  # type: ignore[union-attr]
        layer.bias.data += 0.3  # type: ignore[operator,union-attr]
    pixels = torch.randn(1, 3, 16, 16, generator=torch.Generator().manual_seed(2), dtype=D)
    found = aware._pooled(pixels, torch.tensor([37]))
    half = 128
    angles = [37 * math.exp(-math.log(10000) * i / half) for i in range(half)]
    c = torch.tensor([math.cos(a) for a in angles] + [math.sin(a) for a in angles], dtype=D)
    m: Any = aware.modulation
    first, last = m.embed[0], m.embed[2]
    silu = lambda x: x / (1 + torch.exp(-x))
    c = silu(last.weight @ silu(first.weight @ c + first.bias) + last.bias)
    tower = net.vision_model
    h = tower.pre_layrnorm(tower.embeddings(pixels))
    width = h.shape[-1]
    for layer, made in zip(tower.encoder.layers, m.blocks, strict=True):
        v = (made.weight @ c + made.bias).reshape(6, width)
        h = h + v[2] * layer.self_attn(layer.layer_norm1(h) * (1 + v[1]) + v[0], attention_mask=None)[0]
        h = h + v[5] * layer.mlp(layer.layer_norm2(h) * (1 + v[4]) + v[3])
    v = (m.pooled.weight @ c + m.pooled.bias).reshape(2, width)
    wanted = tower.post_layernorm(h[:, 0]) * (1 + v[1]) + v[0]
    assert torch.allclose(found, wanted, atol=1e-5)  # the library's wave is float32
    assert not torch.allclose(found, aware._pooled(pixels, torch.tensor([700])), atol=1e-3)


def test_only_gates_start_at_one() -> None:
    made = TimeModulation(4, 2)
    assert [float(x.detach().sum()) for x in (made.pooled.weight, made.pooled.bias)] == [0.0, 0.0]
    assert made.blocks[1].bias.reshape(6, 4)[:, 0].tolist() == [0, 0, 1, 0, 0, 1]  # type: ignore[operator]


def test_decoded_pictures_are_read_as_the_processor_reads_them(clip: Path) -> None:
    read = load_processor(str(clip), "test").image_processor
    # smooth pictures: the two libraries' bicubic rules part at edges only
    y, x = np.mgrid[0:24, 0:40] / 40
    pixels = np.stack([x, y, 1 - x], -1)
    picture = Image.fromarray((pixels * 255).round().astype(np.uint8))
    wanted = read(picture, return_tensors="pt")["pixel_values"]
    tensor = torch.from_numpy(np.asarray(picture).copy()).permute(2, 0, 1)[None].float() / 127.5 - 1
    assert torch.allclose(as_clip_reads(tensor, read), wanted, atol=0.03)
    blip = BlipImageProcessor(size={"height": 12, "width": 10})  # no shorter side, and no crop
    wanted = blip(picture, return_tensors="pt")["pixel_values"]
    assert torch.allclose(as_clip_reads(tensor, blip), wanted, atol=0.03)


def test_a_run_makes_a_plain_clip_folder_that_scores(clip: Path, pairs: Path, tmp_path: Path) -> None:
    cfg = config(clip, pairs, tmp_path / "run", train={"max_steps": 12, "learning_rate": 3e-3})
    task = preference_task(cfg, make_method(cfg))
    assert len(task.train) == 10  # ties stay
    assert sorted(float(e.notes["prompt_pairs"][0]) for e in (task.train[i] for i in range(10)))[::9] == [4, 6]
    assert task.train[1].notes["label_probability"] == [0.5]
    train(cfg)
    curve = losses(tmp_path / "run")
    assert curve[-1] < curve[0]
    scorer = load_scorer(f"pickscore:{tmp_path / 'run'}")
    base = pairs.parent
    right = 0
    for i in (0, 2, 3, 5, 7, 8, 9):
        images = [Image.open(base / f"{i}-{side}.png") for side in "01"]
        a, b = scorer.score(images, [PROMPTS[0]] * 2)
        right += (a > b) == (i % 2 == 0)
    assert right >= 6


def test_accumulation_is_the_same_step(clip: Path, pairs: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file

    whole = config(clip, pairs, tmp_path / "a", train={"max_steps": 1})
    cut = {"max_steps": 1, "per_device_train_batch_size": 1, "gradient_accumulation_steps": 4}
    train(whole)
    train(config(clip, pairs, tmp_path / "b", train=cut))
    assert losses(tmp_path / "a") == pytest.approx(losses(tmp_path / "b"), abs=1e-5)
    one, two = (load_file(tmp_path / x / "model.safetensors") for x in "ab")
    assert all(torch.allclose(one[k], two[k], atol=1e-5) for k in one)


@pytest.mark.parametrize("step_aware", [False, True])
def test_a_stopped_run_goes_on_bit_for_bit(
    step_aware: bool, clip: Path, pairs: Path, image_model: Path, tmp_path: Path
) -> None:
    from safetensors.torch import load_file

    more: dict[str, Any] = {"train": {"max_steps": 4, "save_steps": 1, "save_strategy": "steps"}}
    if step_aware:
        more |= {"method": {"step_aware": True}, "sources": {"base": {"path": str(image_model)}}}
    train(config(clip, pairs, tmp_path / "whole", **more))
    for _ in range(4):
        outcome = train(config(clip, pairs, tmp_path / "cut", **more), stop_after=1)
    if outcome.status == "interrupted":
        train(config(clip, pairs, tmp_path / "cut", **more))
    files = ["model.safetensors", *(["time_modulation.safetensors"] if step_aware else [])]
    for name in files:
        one, two = (load_file(tmp_path / x / name) for x in ("whole", "cut"))
        assert all(torch.equal(one[k], two[k]) for k in one)


def test_a_step_aware_run_makes_a_judge(clip: Path, pairs: Path, image_model: Path, tmp_path: Path) -> None:
    more = {"method": {"step_aware": True, "guidance": 2.0}, "sources": {"base": {"path": str(image_model)}}}
    train(config(clip, pairs, tmp_path / "run", **more, train={"max_steps": 3, "learning_rate": 1e-2}))
    judge = load_step_judge(f"step-aware:{tmp_path / 'run'}")
    images = torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(0)) * 2 - 1
    times = [judge.score(images, [PROMPTS[0]] * 3, torch.full((3,), t)) for t in (0, 900)]
    assert times[0].shape == (3,)
    assert not torch.allclose(times[0], times[1], atol=1e-4)  # it knows the time
    pictures = [Image.new("RGB", (32, 32), "red")]
    assert len(load_scorer(f"step-aware:{tmp_path / 'run'}").score(pictures, PROMPTS[:1])) == 1


def test_the_predicted_picture_is_one_guided_step_of_the_frozen_pipeline(
    clip: Path, pairs: Path, image_model: Path, tmp_path: Path
) -> None:
    from prefopt.scoring.base import Draw

    more = {"method": {"step_aware": True, "guidance": 3.0}, "sources": {"base": {"path": str(image_model)}}}
    cfg = config(clip, pairs, tmp_path / "run", **more)
    task = preference_task(cfg, make_method(cfg))
    batch: Any = task.scorer.collate([Draw(task.train[0]), Draw(task.train[3])])
    found, time = task.scorer.predicted(batch.images)  # type: ignore[attr-defined]
    model = task.scorer.predicted.model  # type: ignore[attr-defined]
    for row in range(4):
        g, z = row // 2, batch.images
        t = int(z.t[g])
        a = float(model.schedule.alphas_cumprod[t].sqrt())
        sigma = math.sqrt(1 - a * a)
        seen = a * z.latents[row] + sigma * z.noise[g]
        with torch.no_grad():
            texts = [z.condition["text"][g], task.scorer.predicted.draws.empty["text"]]  # type: ignore[attr-defined]
            c, u = (model.denoiser(seen[None], t, encoder_hidden_states=x[None]).sample[0] for x in texts)
            eps = u + 3.0 * (c - u)
            clean = (seen - sigma * eps) / a
            pixels = model.pipeline.vae.decode(clean[None] / model.pipeline.vae.config.scaling_factor).sample[0]
        assert int(time[row]) == t
        assert torch.allclose(found[row], pixels, atol=1e-3 * float(pixels.abs().max()))


def test_other_judges_and_their_refusals(tmp_path: Path) -> None:
    images = torch.zeros(2, 3, 8, 8)
    images[1] += 1
    brightness = load_step_judge(lambda prompts, pictures: [float(np.asarray(p).mean()) for p in pictures])
    assert brightness.score(images, ["a", "b"], torch.tensor([1, 2])).tolist() == [128.0, 255.0]
    timed = load_step_judge(lambda pictures, prompts, t: t.float() * 2)
    assert timed.score(images, ["a", "b"], torch.tensor([1, 2])).tolist() == [2.0, 4.0]
    for judge, words in {
        "short": (lambda pictures, prompts, t: [1.0], "returned 1 scores for 2"),
        "hole": (lambda pictures, prompts, t: [1.0, float("nan")], "no number"),
    }.values():
        with pytest.raises(PrefoptError, match=words):
            load_step_judge(judge).score(images, ["a", "b"], torch.tensor([1, 2]))
    with pytest.raises(PrefoptError, match="must take"):
        load_step_judge(lambda x: x)


@pytest.mark.parametrize(
    ("sections", "words"),
    [
        ({"method": {"step_aware": True}}, "sources.base.path"),
        ({"sources": {"base": {"path": "x"}}}, "sources.base has no effect"),
        ({"model": {"adapter": {"r": 2}}}, "trained whole"),
        ({"data": {"max_length": 7}}, "data.max_length has no effect"),
        ({"denoising": {"random_flip": True}}, "denoising.random_flip has no effect"),
        ({"method": {"name": "dpo"}, "data": {"max_dropped": 0.5}}, "lacks"),
    ],
)
def test_refusals(sections: dict[str, Any], words: str, clip: Path, pairs: Path, tmp_path: Path) -> None:
    with pytest.raises(PrefoptError, match=words):
        train(config(clip, pairs, tmp_path / "run", **sections))
    assert not (tmp_path / "run" / "model.safetensors").exists()
