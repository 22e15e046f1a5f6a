"""Measuring a tuned image model: the truth of its pictures on fixed captions and noise, and its implicit reward."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import read_jsonl, write_jsonl

if TYPE_CHECKING:
    from PIL.Image import Image

    from ..rollout.images import ImageSampling

GREEN, RED = "#4f9d4f", "#c8553d"
Reward = Callable[[Sequence[str], Sequence[Any]], Sequence[float]]


def captions_of(path: Path) -> list[str]:
    """The `prompt` of every row of a JSONL."""
    return [row["prompt"] for row in read_jsonl(path)]


def pictures(
    model: Path, captions: Sequence[str], each: int, sampling: ImageSampling, first_noise: int
) -> tuple[list[str], list[Image]]:
    """`each` pictures of every caption, in order. The noise is that of seeds first_noise, first_noise + 1, ...:
    equal for all models."""
    from ..models.diffusion import load_image_model
    from ..rollout.images import sample_images

    said = [caption for caption in captions for _ in range(each)]
    pipeline = load_image_model(model).pipeline
    return said, sample_images(pipeline, said, [first_noise + n for n in range(len(said))], sampling)


def rewards(said: Sequence[str], images: Sequence[Any], reward: Reward) -> list[float]:
    """Rewards as JSON, to four decimals."""
    return [round(float(value), 4) for value in reward(said, images)]


def win_rate(after: Sequence[float], before: Sequence[float]) -> float:
    """Share of pictures better than the other model's from the same noise, ties 1/2."""
    return float((np.sign(np.subtract(after, before)) / 2 + 0.5).mean())


def accuracy_on_pairs(model: Path, start: Path, pairs: Path, *, draws: int, seed: int) -> float:
    """Share of held-out pairs that the implicit reward, averaged over `draws` noise levels, orders as labelled."""
    from ..config import DataConfig
    from ..data.latents import empty_condition
    from ..data.prepare_images import prepare_images
    from ..evaluation.images import implicit_accuracy
    from ..models.diffusion import load_image_model
    from ..scoring.denoising import DenoisingScorer

    tuned, reference = load_image_model(model), load_image_model(start)
    data = prepare_images(DataConfig(path=str(pairs)), reference)  # type: ignore[call-arg]
    scorer = DenoisingScorer(
        reference.kind,
        reference.schedule,
        empty_condition(reference),
        seed=seed,
        caption_dropout=0.0,
        reference=reference.denoiser,
        notes=data.record["notes"],
    )
    return implicit_accuracy(tuned.denoiser, scorer, data.train, draws=draws).value


def relabelled(pairs: Path, output: Path, seed: int) -> Path:
    """The same pairs with labels by a fair coin: what is left of a method's effect when the labels say nothing."""
    rng = np.random.default_rng(seed)
    rows = []
    for row in read_jsonl(pairs):
        sides = [str((pairs.parent / row[side]).resolve()) for side in ("chosen", "rejected")]
        if rng.random() < 0.5:
            sides.reverse()
        rows.append({"prompt": row["prompt"], "chosen": sides[0], "rejected": sides[1]})
    write_jsonl(output, rows)
    return output


def framed(images: Sequence[Any], right: Sequence[bool]) -> Any:
    """Pictures in a square, each in a green frame if it is right, else in a red one."""
    from PIL import Image, ImageOps

    side = math.ceil(math.sqrt(len(images)))
    cells = [
        ImageOps.expand(image.convert("RGB").resize((48, 48), Image.Resampling.NEAREST), 4, GREEN if good else RED)
        for image, good in zip(images, right, strict=True)
    ]
    sheet = Image.new("RGB", (side * 60, side * 60), "white")
    for n, cell in enumerate(cells):
        sheet.paste(cell, (n % side * 60 + 2, n // side * 60 + 2))
    return sheet


def keep(folder: Path, name: str, images: Sequence[Any]) -> None:
    """What `kept_side_by_side` shows of a run."""
    place = folder / "shown" / name
    place.mkdir(parents=True, exist_ok=True)
    for n, image in enumerate(images):
        image.save(place / f"{n}.png")


def kept_side_by_side(folder: Path, names: Mapping[str, str], captions: Sequence[str]) -> None:
    """`pictures.png`: a row for each run (as it was kept -> as it is called), a column for each of its first pictures."""
    from PIL import Image

    rows = [
        (shown, [Image.open(folder / "shown" / name / f"{n}.png") for n in range(len(captions))])
        for name, shown in names.items()
    ]
    side_by_side(rows, captions, folder / "pictures.png")


def side_by_side(rows: Sequence[tuple[str, Sequence[Any]]], captions: Sequence[str], path: Path) -> None:
    """Rows of pictures with a name each, columns with a caption each, as a PNG."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(0.95 * len(captions) + 1, 0.95 * len(rows) + 0.9), layout="constrained")
    cells = figure.subplots(len(rows), len(captions), squeeze=False)
    for cell_row, (name, images) in zip(cells, rows, strict=True):
        for axes, image in zip(cell_row, images, strict=True):
            axes.imshow(np.asarray(image), interpolation="nearest")
            axes.set_xticks([])
            axes.set_yticks([])
        cell_row[0].set_ylabel(name, rotation=0, ha="right", va="center", fontsize=9)
    for axes, caption in zip(cells[0], captions, strict=True):
        words = caption.split()
        axes.set_title("\n".join((" ".join(words[:3]), " ".join(words[3:]))), fontsize=6)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
