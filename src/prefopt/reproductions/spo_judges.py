"""Learned judges of single denoising steps in blobs: a step-aware one, a time-blind one, and how right both are at each step.

Both begin as the same untrained CLIPModel and see the same labelled pairs as often. The step-aware one sees what the
world's model predicts of them from noise, with the time; the time-blind one sees them as they are.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .bench import Bench
from .in_blobs import TRAIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from torch import Tensor

    from ..models.diffusion import ImageModel
    from ..rollout.walk import Answer

JUDGE: dict[str, Any] = {
    "per_device_train_batch_size": 64,
    "max_steps": 300,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "cosine",
    "warmup_steps": 20,
}
DRAWS = 4  # noises that a held-out pair is predicted from
STATES = 32  # roll-outs of each caption, whose candidates are finished
TEMPERATURE = 0.1  # of the world's labels
LARGE = 500  # the upper half of the times
PROMISED = "prefopt.reproductions.rewards_of_blobs:promised"
TITLES = {
    "accuracy": "accuracy on held-out pairs",
    "log_loss": "their log-loss",
    "agreement": "agreement on candidates",
}
LINES = {  # of the plot
    "aware": ("step-aware", "#5b4b8a", "-"),
    "told_0": ("the same, told time 0", "#5b4b8a", ":"),
    "blind": ("time-blind", "#c8553d", "-"),
    "truth": ("truth of what is promised", "#8a8a8a", "--"),
}

Score = Callable[["Tensor", Sequence[str], "Tensor"], "Tensor"]
"""(pictures [n, 3, H, W] in [-1, 1], their prompts, times [n]) -> [n]."""
BySteps = dict[str, dict[str, float]]
"""Who judges -> time -> share of pairs that it orders rightly."""


def train_judges(bench: Bench, parts: Mapping[str, str]) -> dict[str, str]:
    """Both judges of the seed, as `rollout.reward` names them."""
    from ..worlds.blobs.clip import save_tiny_clip

    clip = str(save_tiny_clip(bench.folder / "clip", bench.seed))
    train = {**TRAIN, **JUDGE, "seed": bench.seed}
    common = {"model": clip, "data": {"path": parts["train"]}, "train": train}
    aware = {
        "method": {"name": "clip-preference", "step_aware": True, "guidance": 1.0},
        "sources": {"base": {"path": parts["model"]}},
    }
    blind = {"method": {"name": "clip-preference"}}
    return {
        "aware": f"step-aware:{bench.train('judge-aware', {**common, **aware})}",
        "blind": f"pickscore:{bench.train('judge-blind', {**common, **blind})}",
    }


def scores(judges: Mapping[str, str]) -> dict[str, Score]:
    """The judges, the step-aware one told time 0 whatever the time is, and the truth about the promised picture."""
    import torch

    from ..rewards.step_aware import load_step_judge

    found: dict[str, Score] = {name: load_step_judge(spec).score for name, spec in judges.items()}
    aware = found["aware"]
    return found | {
        "told_0": lambda images, said, times: aware(images, said, torch.zeros_like(times)),
        "truth": load_step_judge(PROMISED).score,
    }


def on_held_out(judges: Mapping[str, str], parts: Mapping[str, str], steps: int, seed: int) -> dict[str, BySteps]:
    """Held-out pairs as the world's model predicts them from noise that a pair shares, at each of the grid's times.

    "accuracy"; "log_loss" in nats: what is to be expected if labels are drawn as those of the training pairs were.
    """
    import torch
    from torch.nn.functional import softplus

    from ..models.diffusion import load_image_model
    from ..scoring.schedules import noised
    from ..scoring.transitions import clean_of, grid

    model = load_image_model(parts["model"])
    said, latents, gap = _held_out(model, Path(parts["heldout"]))
    said, latents, gap = said * DRAWS, [x.repeat(DRAWS, 1, 1, 1) for x in latents], gap.repeat(DRAWS)
    chance = torch.sigmoid(gap / TEMPERATURE)
    answer = _answer(model, said)
    random = torch.Generator().manual_seed(seed)
    asked = scores(judges)
    found: dict[str, BySteps] = {what: {name: {} for name in asked} for what in ("accuracy", "log_loss")}
    for t in grid(model.schedule, steps).t:
        times = t.expand(len(said))
        level, noise = model.schedule.level(times), torch.randn(latents[0].shape, generator=random)
        promised = []
        for x in latents:
            seen = noised(x, noise, level.signal.float(), level.sigma.float())
            clean = clean_of(model.schedule, answer(seen, times), seen, times)
            promised.append(model.decode_latents(clean).clamp(-1, 1))
        for name, score in asked.items():
            better, worse = (score(x, said, times) for x in promised)
            logit = better - worse
            loss = chance * softplus(-logit) + (1 - chance) * softplus(logit)
            found["accuracy"][name][str(int(t))] = agreeing(logit, gap)
            found["log_loss"][name][str(int(t))] = float(loss.mean())
    return found


def agreement(judges: Mapping[str, str], parts: Mapping[str, str], how: Mapping[str, int], seed: int) -> BySteps:
    """On all pairs of the candidates of one state, as SPO draws them from the world's model: whether the judge's order is
    that of the true rewards once each candidate was finished by the deterministic sampler. how: steps, divert, pool."""
    import torch

    from ..models.diffusion import load_image_model
    from ..rewards.step_aware import as_pictures
    from ..rollout.walk import sample, walk
    from ..scoring.transitions import clean_of, grid, transition
    from ..worlds import blobs

    model = load_image_model(parts["model"])
    prompts = [caption for caption in blobs.captions() for _ in range(STATES)]
    n, k, schedule = len(prompts), how["pool"], model.schedule
    said = [prompt for prompt in prompts for _ in range(k)]
    one, answer = _answer(model, prompts), _answer(model, said)
    t, to = grid(schedule, how["steps"])
    random = torch.Generator().manual_seed(seed)
    state = torch.randn(n, *model.latent_shape, generator=random)
    asked = scores(judges)
    found: BySteps = {name: {} for name in asked}
    for i, (here, there) in enumerate(zip(t, to, strict=True)):
        moved = transition(schedule, one(state, here.expand(n)), state, here.expand(n), there.expand(n), 1.0)
        drawn = [sample(moved, torch.randn(state.shape, generator=random)) for _ in range(k)]
        state = drawn[0]
        if i < how["divert"]:
            continue
        candidates = torch.stack(drawn, 1).flatten(0, 1)
        times = there.expand(n * k)
        last = i + 1 == len(t)
        clean = candidates if last else clean_of(schedule, answer(candidates, times), candidates, times)
        end = candidates
        for step in walk(answer, schedule, candidates, t[i + 1 :], to[i + 1 :]):
            end = step.next
        true = torch.tensor(blobs.reward(said, as_pictures(model.decode_latents(end)))).unflatten(0, (n, k))
        pictures = model.decode_latents(clean).clamp(-1, 1)
        for name, score in asked.items():
            judged = score(pictures, said, times).unflatten(0, (n, k))
            found[name][str(int(there))] = agreeing(_pairs(judged), _pairs(true))
    return found


def agreeing(judged: Tensor, true: Tensor) -> float:
    """Share of differences (of one shape) of equal sign; what the judge leaves open counts 1/2, what is no pair nothing."""
    signs, kept = (judged.sign() * true.sign()).double(), true != 0
    return float(((signs + 1) / 2)[kept].mean())


def at_large(found: Mapping[str, float]) -> float:
    """The mean over times above LARGE."""
    return float(np.mean([x for t, x in found.items() if int(t) > LARGE]))


def by_time(axes: Axes, seeds: Sequence[BySteps], title: str) -> None:
    """A line for each judge over the times, the mean over seeds."""
    for name, (shown, colour, line) in LINES.items():
        times = list(seeds[0][name])
        means = [np.mean([seed[name][t] for seed in seeds]) for t in times]
        axes.plot([int(t) for t in times], means, line, color=colour, label=shown, linewidth=1.2)
    axes.invert_xaxis()
    axes.set_xlabel("time", fontsize=7)
    axes.set_title(title, fontsize=9)
    axes.spines[["top", "right"]].set_visible(False)


def _pairs(x: Tensor) -> Tensor:
    """[n, k (k - 1) / 2] differences of all pairs of [n, k]."""
    import torch

    first, second = torch.triu_indices(x.shape[1], x.shape[1], 1)
    return x[:, first] - x[:, second]


def _held_out(model: ImageModel, path: Path) -> tuple[list[str], list[Tensor], Tensor]:
    """Prompts, the latents of their better and worse pictures, and by how much the better one's reward is higher."""
    import torch
    from PIL import Image

    from ..data.latents import to_pixels

    rows = [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]
    sides = []
    for side in ("chosen", "rejected"):
        images = [Image.open(path.parent / row[side]).convert("RGB") for row in rows]
        sides.append(model.encode_images(torch.stack([to_pixels(image, image.width) for image in images]))[0])
    gap = torch.tensor([row["chosen_score"] - row["rejected_score"] for row in rows])
    return [row["prompt"] for row in rows], sides, gap


def _answer(model: ImageModel, prompts: Sequence[str]) -> Answer:
    """What the model says under these prompts, without guidance."""
    import torch

    from ..data.latents import empty_condition
    from ..rollout.walk import answers

    told = sorted(set(prompts))
    rows = torch.tensor([told.index(prompt) for prompt in prompts])
    condition = {name: x[rows] for name, x in model.encode_captions(told).items()}
    return answers(model.denoiser, model.kind, model.schedule, condition, empty_condition(model), 1.0)
