"""Diffusion-DPO (2311.12908): its pictures are preferred over those of the start, and of fine-tuning on the winners."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from . import diffusion_dpo_blobs
from .bars import bars_in
from .bench import Bench
from .claim import Demand, Measurements, Reproduction
from .measure_images import (
    accuracy_on_pairs,
    captions_of,
    pictures,
    relabelled,
    rewards,
    side_by_side,
    win_rate,
)

if TYPE_CHECKING:
    from matplotlib.figure import Figure, FigureBase

DPO = {"name": "diffusion-dpo", "beta": 500}
RUNS: dict[str, tuple[dict[str, Any], float]] = {  # method and learning rate
    "sft-weak": ({"name": "sft"}, 1e-5),
    "sft-strong": ({"name": "sft"}, 1e-4),
    "dpo": (DPO, 1e-4),
    "shuffled": (DPO, 1e-4),
}
TRAIN: dict[str, Any] = {
    "max_steps": 120,
    "per_device_train_batch_size": 32,
    "lr_scheduler_type": "linear",
    "logging_steps": 20,
    "save_steps": 60,
}
EACH = 32  # pictures of each of the 16 held-out captions
DRAWS = 10  # noise levels that the implicit reward of a pair is averaged over
SHOWN = 8  # captions in the picture, the first ones
NAMES = {
    "base": "start",
    "sft-weak": "SFT, rate 1e-5",
    "sft-strong": "SFT, rate 1e-4",
    "dpo": "Diffusion-DPO",
    "shuffled": "labels shuffled",
}
COLOURS = {"base": "#8a8a8a", "sft-weak": "#dd9a86", "sft-strong": "#c8553d", "dpo": "#1f6f8b", "shuffled": "#b9a44c"}


def run(bench: Bench) -> Measurements:
    """Both worlds: of shapes, with captions that no pair has, and of blobs, with what needs many runs."""
    return {**in_shapes(bench), "blobs": diffusion_dpo_blobs.run(bench)}


def in_shapes(bench: Bench) -> dict[str, Any]:
    """Build the seed's world, tune its model in three ways, and look at equal captions and noise."""
    from ..worlds import shapes
    from ..worlds.shapes.building import SAMPLING

    world = bench.once("world", lambda: _world(bench.seed))
    captions = captions_of(Path(world["prompts"]))

    def look(name: str, model: Path) -> list[float]:
        said, images = pictures(model, captions, EACH, SAMPLING, first_noise=10_000 * bench.seed)
        for n in range(SHOWN):
            path = bench.folder / "shown" / f"{name}-{n}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            images[n * EACH].save(path)
        return rewards(said, images, shapes.reward)

    def tune(name: str) -> dict[str, Any]:
        data = world["train"]
        if name == "shuffled":
            data = str(relabelled(Path(data), bench.folder / "shuffled.jsonl", bench.seed))
        method, rate = RUNS[name]
        train = {**TRAIN, "learning_rate": rate, "seed": bench.seed}
        content = {"method": method, "model": world["model"], "data": {"path": data}, "train": train}
        folder = bench.train(name, content)
        accuracy = accuracy_on_pairs(folder, Path(world["model"]), Path(world["heldout"]), draws=DRAWS, seed=bench.seed)
        return {"rewards": look(name, folder), "implicit_accuracy": accuracy}

    base = bench.once("base", lambda: look("base", Path(world["model"])))
    found: dict[str, Any] = {"base": {"reward": float(np.mean(base))}}
    for name in RUNS:
        tuned = bench.once(name, partial(tune, name))
        found[name] = {
            "reward": float(np.mean(tuned["rewards"])),
            "win_rate": win_rate(tuned["rewards"], base),
            "implicit_accuracy": tuned["implicit_accuracy"],
        }
    _show(bench.folder, captions[:SHOWN])
    return found


def _world(seed: int) -> dict[str, str]:
    from ..worlds import shapes

    world = shapes.build(seed=seed)
    return {name: str(getattr(world, name)) for name in ("model", "train", "heldout", "prompts")}


def _show(folder: Path, captions: Sequence[str]) -> None:
    """The first noise of the first held-out captions, whatever came of it."""
    from PIL import Image

    rows = [
        (shown, [Image.open(folder / "shown" / f"{name}-{n}.png") for n in range(SHOWN)])
        for name, shown in NAMES.items()
    ]
    side_by_side(rows, captions, folder / "pictures.png")


def plot(seeds: Sequence[Measurements]) -> Figure:
    """A row of panels for each world: bars are means, dots are seeds."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.6), layout="constrained")
    above, below = figure.subfigures(2, 1, squeeze=False)[:, 0]
    _plot_shapes(above, seeds)
    of_blobs = diffusion_dpo_blobs
    bars_in(below, [seed["blobs"] for seed in seeds], of_blobs.NAMES, of_blobs.PANELS, of_blobs.COLOURS)
    return figure


def _plot_shapes(figure: FigureBase, seeds: Sequence[Measurements]) -> None:
    """True reward, win rate over the start, and implicit accuracy."""
    panels = (
        ("reward", "shapes: true reward", ("base", *RUNS), None),
        ("win_rate", "win rate over the start", tuple(RUNS), 0.5),
        ("implicit_accuracy", "held-out implicit accuracy", tuple(RUNS), 0.5),
    )
    for axes, (key, title, names, level) in zip(figure.subplots(1, 3), panels, strict=True):
        for x, name in enumerate(names):
            values = [seed[name][key] for seed in seeds]
            axes.bar(x, np.mean(values), width=0.62, color=COLOURS[name], alpha=0.75)
            axes.plot([x] * len(values), values, "o", color="#222222", markersize=3)
        if level is not None:
            axes.axhline(level, color="#444444", linewidth=0.9, dashes=(3, 3))
        axes.set_xticks(range(len(names)), [NAMES[name] for name in names], fontsize=7, rotation=30, ha="right")
        axes.set_ylim(0, 1)
        axes.set_title(title, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)


def above_rest(m: Measurements) -> float:
    """Reward of DPO above the best of the start and the SFT runs: the baseline's rate is chosen by the truth itself."""
    return m["dpo"]["reward"] - max(found["reward"] for name, found in m.items() if name.startswith(("base", "sft")))


REPRODUCTION = Reproduction(
    slug="diffusion-dpo",
    paper="2311.12908",
    claim="Pictures of a model tuned by Diffusion-DPO are preferred over those of its start, and score above those of "
    "fine-tuning on the winners; the tuned model orders unseen pairs as their judge does.",
    setting=(
        "World `shapes`, one for each seed: a small Stable Diffusion model draws coloured shapes from captions, and "
        "640 pairs of its own pictures are labelled by a Bradley-Terry judge of the true reward (in [0, 1]). "
        "Diffusion-DPO, SFT on the winners with two learning rates, and Diffusion-DPO on labels drawn by a coin start "
        "from the same model and take the same number of steps on the same pairs. The models draw 32 pictures of each "
        "of 16 held-out captions from equal noise; implicit accuracy is that on 128 held-out pairs of these captions, "
        "over 10 noise levels. "
        f"World `blobs`, one for each seed: 2,048 pairs of drawn 8x8 pictures of one bright blob, labelled by a judge of "
        f"the true reward at temperature {diffusion_dpo_blobs.CLEAR:g}. From one start, {diffusion_dpo_blobs.STEPS} steps of "
        f"32 pairs: Diffusion-DPO in the gentle setting (beta {diffusion_dpo_blobs.BETA:g}, rate "
        f"{diffusion_dpo_blobs.RATE:g}), the same with beta {diffusion_dpo_blobs.SMALL_BETA:g}, with noise of its own for "
        "each picture of a pair, with labels by the true reward (`prefopt data build labels`), by a judge at temperature "
        f"{diffusion_dpo_blobs.NOISY:g}, and by a coin and its reverse; SFT on the winners with two learning rates. 512 "
        "pictures each from equal noise, implicit accuracy on 256 held-out pairs."
    ),
    demands=(
        Demand("win rate of Diffusion-DPO over its start at equal noise", lambda m: m["dpo"]["win_rate"], least=0.65),
        Demand("reward of Diffusion-DPO above the best of start and SFT runs", above_rest, least=0.03),
        Demand(
            "win rate of Diffusion-DPO on shuffled labels over the start",
            lambda m: m["shuffled"]["win_rate"],
            most=0.56,
            over="mean",
        ),
        Demand(
            "accuracy of DPO's implicit reward on held-out pairs",
            lambda m: m["dpo"]["implicit_accuracy"],
            least=0.7,
            over="mean",
        ),
        *diffusion_dpo_blobs.DEMANDS,
    ),
    settings={
        "runs": RUNS,
        "train": TRAIN,
        "each": EACH,
        "draws": DRAWS,
        "world": "shapes",
        "blobs": diffusion_dpo_blobs.SETTINGS,
    },
    run=run,
    plot=plot,
    steps=2 + len(RUNS) + diffusion_dpo_blobs.BENCH_STEPS,
    remarks=(
        "The paper tunes SD 1.5 and SDXL on people's choices; here the judge, and the scorer, is the known true reward.",
        "That SFT beats the start is not demanded. The paper itself sees SFT hurt a start that has seen better pictures "
        "than the winners (SDXL), and so it is here: the start learned from the renderer's own pictures, the winners "
        "are samples of the start. What was looked into (seed 0): SFT of the same rate and steps on the renderer's "
        "pictures raises the reward (0.521 to 0.543), on the winners it lowers it (to 0.493); a further pass through "
        "the VAE costs the winners nothing (0.601, 0.602). So what hurts is to learn the errors of one's own sampler.",
        "Random labels must not help; that they hurt is no failure: both denoising errors rise whatever the labels say.",
        "Both denoising errors of a tuned model rise, that of the losers more; the paper's beta of 2000 to 5000 was "
        "replaced by 500 for a model of a million parameters.",
        "A pilot on seed 0, which is not judged, decided beta, learning rate and number of steps and that the control "
        "has an upper bound only; the other bounds are those of an earlier version of the world, where the accuracy "
        "came out as 0.68, 0.60, 0.59 and missed its bound. It was kept. On the pilot it was 0.65 to 0.69 with three "
        "rates, three betas and twice the steps: none of the 16 held-out captions was trained on, and 80 captions "
        "with 8 pairs each teach better pictures of the others, but not yet a good judge of them.",
        "Sums in floating point depend on the number of threads, and with them the world: built and run on two threads an "
        "earlier time, the same code and seeds gave 0.030, 0.108, 0.033 above the best of start and SFT, which met that demand, "
        "and an accuracy of 0.62, 0.76, 0.65, which did not. The figures here are of one thread, worlds and all from nothing.",
        *diffusion_dpo_blobs.REMARKS,
    ),
    keeps=("pictures.png", diffusion_dpo_blobs.GRID),
)
