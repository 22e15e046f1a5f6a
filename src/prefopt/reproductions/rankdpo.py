"""RankDPO (2410.18013): lists of several generators, labelled by the votes of several reward models, ranked by DCG weights."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..files import write_jsonl
from .bars import bars
from .bench import Bench
from .claim import Demand, Measurements, Reproduction
from .in_blobs import TRAIN, Parts, grid, look, world
from .measure_images import win_rate

if TYPE_CHECKING:
    from matplotlib.figure import Figure

LISTS, HELD_OUT = 768, 128
WRONG = (0.0, 0.15, 0.3, 0.45)  # share of pictures of another caption, for each of the four generators
NOISE = (0.0, 0.03, 0.06, 0.1)  # added to their pictures, of u
PROXIES = ("brightness", "brightness", "brightness", "remainder", "remainder")  # the half of the truth that each sees
PROXY_NOISE = {"brightness": 0.3, "remainder": 0.06}  # its own noise
BETA, RATE, STEPS = 1000.0, 1e-4, 80
JUDGE = {
    "max_steps": 300,
    "learning_rate": 1e-3,
    "lr_scheduler_type": "linear",
}  # a preference model of the world's pairs
DRAWS = 8  # noise levels that the score of a held-out picture is averaged over
DPO = {"name": "diffusion-dpo", "beta": 2 * BETA}  # the same beta in its convention
RUNS: dict[str, tuple[dict[str, Any], str, dict[str, Any]]] = {  # method, which lists, how they are read
    "random": (DPO, "random", {"pairing": "best_worst"}),
    "one": (DPO, "one", {"pairing": "all"}),
    "votes": (DPO, "votes", {"pairing": "all"}),
    "rankdpo": ({"name": "rankdpo", "beta": BETA}, "scored", {}),
}
NAMES = {
    "base": "start",
    "random": "DPO, random labels",
    "one": "DPO, one proxy",
    "votes": "DPO, five proxies' votes",
    "rankdpo": "RankDPO",
}
COLOURS = {"base": "#8a8a8a", "random": "#b9a44c", "one": "#7fa8b8", "votes": "#1f6f8b", "rankdpo": "#3f7d4e"}


def run(bench: Bench) -> Measurements:
    """Four generators draw, five proxies score; the start is tuned in four ways on equal lists."""
    parts = bench.once("world", lambda: world(bench))
    data = bench.once("lists", lambda: _lists(bench, parts["model"]))
    base = bench.once("base", lambda: look(bench, "base", Path(parts["model"])))
    found: dict[str, Any] = {"base": {"reward": float(np.mean(base))}}
    for name in RUNS:
        tuned = bench.once(name, partial(_tune, bench, name, parts["model"], data))
        rewards = tuned["rewards"]
        found[name] = {
            "reward": float(np.mean(rewards)),
            "win_rate": win_rate(rewards, base),
            "ndcg": tuned["ndcg"],
        }
    found["judge"] = {"accuracy": bench.once("judge", lambda: judge(bench, parts))}
    grid(bench.folder, NAMES)
    return found


def judge(bench: Bench, parts: Parts) -> float:
    """Accuracy on held-out pairs of a preference model that prefopt trains from nothing on the world's labelled pairs."""
    from ..evaluation.run import evaluate_run
    from ..worlds.blobs.clip import save_tiny_clip

    clip = save_tiny_clip(bench.folder / "clip", bench.seed)
    train = {**TRAIN, **JUDGE, "seed": bench.seed}
    data = {"path": parts["train"]}
    folder = bench.train("judge", {"method": "clip-preference", "model": str(clip), "data": data, "train": train})
    found = evaluate_run(folder, data=parts["heldout"], limit=None, progress=False)
    return float(found["preference"]["accuracy"]["value"])


def _lists(bench: Bench, model: str) -> dict[str, str]:
    """Pictures of the generators, joined by their prompts and scored: one file for each way of labelling."""
    from diffusers import DiffusionPipeline

    from ..data.votes import votes
    from ..models import pixels
    from ..rollout.images import sample_images
    from ..worlds import blobs

    assert pixels  # a part of the pipeline
    rng = np.random.default_rng((bench.seed, 11))
    total = LISTS + HELD_OUT
    prompts = [str(rng.choice(blobs.captions())) for _ in range(total)]
    pipeline = DiffusionPipeline.from_pretrained(model, local_files_only=True)
    folder = bench.folder / "lists"
    folder.mkdir(parents=True, exist_ok=True)
    drawn = []
    for g, (wrong, noise) in enumerate(zip(WRONG, NOISE, strict=True)):
        asked = [str(rng.choice(blobs.captions())) if rng.random() < wrong else p for p in prompts]
        seeds = rng.integers(2**31, size=total).tolist()
        images = sample_images(pipeline, asked, seeds, blobs.SAMPLING, progress=False)
        drawn.append([_noisier(image, noise, rng) for image in images])
        for n, image in enumerate(drawn[-1]):
            image.save(folder / f"{n}-{g}.png")
    rows: dict[str, list[dict[str, Any]]] = {"scored": [], "random": [], "one": [], "votes": [], "heldout": []}
    for n, prompt in enumerate(prompts):
        scores = _scores(prompt, [images[n] for images in drawn], rng)
        row = {"prompt": prompt, "responses": [f"{n}-{g}.png" for g in range(len(WRONG))]}
        if n >= LISTS:
            rows["heldout"].append(row | {"phi": votes(scores)})
            continue
        rows["scored"].append(row | {"reward_scores": scores})
        rows["random"].append(row | {"scores": rng.random(len(WRONG)).tolist()})
        rows["one"].append(row | {"scores": [s[0] for s in scores]})
        rows["votes"].append(row | {"scores": votes(scores)})
    for name, made in rows.items():
        write_jsonl(folder / f"{name}.jsonl", made)
    return {name: str(folder / f"{name}.jsonl") for name in rows}


def _noisier(image: Any, noise: float, rng: np.random.Generator) -> Any:
    from PIL import Image

    from ..worlds.blobs.truth import GREY

    pixels = np.asarray(image).astype(np.float64)
    grey = pixels + 255 / GREY[0] * noise * rng.standard_normal(pixels.shape[:2])[..., None]
    return Image.fromarray(np.clip(np.round(grey), 0, 255).astype(np.uint8))


def _scores(prompt: str, images: Sequence[Any], rng: np.random.Generator) -> list[list[float]]:
    """Picture -> what each proxy says: its half of the truth in a unit of its own, and noise."""
    from ..worlds.blobs.truth import CEILING, REMAINDER, parts

    seen = parts([prompt] * len(images), images)
    halves = {
        "brightness": np.minimum(seen["brightness"], CEILING),
        "remainder": -REMAINDER * np.asarray(seen["remainder"]),
    }
    columns = [
        10.0**unit * (halves[half] + PROXY_NOISE[half] * rng.standard_normal(len(images)))
        for unit, half in enumerate(PROXIES)
    ]
    return np.stack(columns, 1).tolist()


def _tune(bench: Bench, name: str, model: str, data: dict[str, str]) -> dict[str, Any]:
    method, lists, how = RUNS[name]
    train = {**TRAIN, "learning_rate": RATE, "max_steps": STEPS, "seed": bench.seed}
    read = {"path": data[lists], "max_dropped": 0.5, **how}
    folder = bench.train(name, {"method": method, "model": model, "data": read, "train": train})
    return {"rewards": look(bench, name, folder), "ndcg": ndcg(folder, Path(model), Path(data["heldout"]), bench.seed)}


def ndcg(model: Path, start: Path, lists: Path, seed: int) -> float:
    """Mean NDCG (gains 2^phi - 1) of held-out lists in the order of the implicit reward, averaged over DRAWS levels."""
    import torch

    from ..config import DataConfig
    from ..data.latents import empty_condition
    from ..data.prepare_images import prepare_images
    from ..models.diffusion import load_image_model
    from ..objectives.scores import Scores
    from ..scoring.base import Draw, only
    from ..scoring.denoising import DenoisingScorer

    tuned, reference = load_image_model(model), load_image_model(start)
    read = DataConfig(path=str(lists), max_dropped=1.0)  # type: ignore[call-arg]
    data = prepare_images(read, reference, needs={"phi"}, progress=False).train
    scorer = DenoisingScorer(
        reference.kind, reference.schedule, empty_condition(reference), seed=seed, caption_dropout=0.0,
        reference=reference.denoiser, notes=["phi"],
    )  # fmt: skip
    found = []
    with torch.no_grad():
        for i in range(len(data)):
            batch = scorer.collate([Draw(data[i], epoch) for epoch in range(DRAWS)])
            scored = scorer.score(tuned.denoiser, batch, {"scores:policy": {}, "scores:reference": {}})
            scores = only(Scores, scored["responses"])
            s = (scores["policy"] - scores["reference"]).sum().view(DRAWS, -1).mean(0).numpy()
            gains = 2 ** np.asarray(data[i].notes["phi"]) - 1
            discount = 1 / np.log(2 + np.arange(len(gains)))
            ideal = float((np.sort(gains)[::-1] * discount).sum())
            found.append(float((gains[np.argsort(-s, kind="stable")] * discount).sum()) / ideal)
    return float(np.mean(found))


def plot(seeds: Sequence[Measurements]) -> Figure:
    """Reward of every run, and how well the runs order held-out lists."""
    shown = [{**seed, "base": {**seed["base"], "ndcg": float("nan")}} for seed in seeds]
    return bars(shown, NAMES, {"reward": "true reward", "ndcg": "NDCG of held-out lists"}, COLOURS)


REPRODUCTION = Reproduction(
    slug="rankdpo",
    paper="2410.18013",
    claim="Lists of several generators' pictures, labelled by the votes of several reward models and compared under DCG "
    "weights, align a model without people; votes are better than one reward model.",
    setting=(
        "World `blobs`, one model for each seed. Four generators draw a picture for every prompt: the model itself and "
        "three copies that are noisier and more often draw another caption. Five proxies each see one half of the true "
        "reward (brightness, or cleanness) with noise and a unit of their own. On the same lists, for equal steps, rate "
        "and beta: Diffusion-DPO on best and worst of random labels, on all pairs of one proxy, on all pairs by the "
        "votes, and RankDPO. Beside them a CLIP-type preference model "
        "is trained from nothing on 2048 pairs of the world with Bradley-Terry labels (clip-preference). "
        "512 pictures of each run from equal noise; NDCG on 128 held-out lists by the votes."
    ),
    demands=(
        Demand("reward of RankDPO above the start", lambda m: m["rankdpo"]["reward"] - m["base"]["reward"], least=0.08),
        Demand(
            "reward of RankDPO above random labels",
            lambda m: m["rankdpo"]["reward"] - m["random"]["reward"],
            least=0.06,
        ),
        Demand(
            "reward by the votes above that by one proxy",
            lambda m: m["votes"]["reward"] - m["one"]["reward"],
            least=0.0,
            over="mean",
        ),
        Demand(
            "reward of RankDPO above all pairs by the votes",
            lambda m: m["rankdpo"]["reward"] - m["votes"]["reward"],
            least=-0.01,
            over="mean",
        ),
        Demand(
            "NDCG of RankDPO above all pairs by the votes",
            lambda m: m["rankdpo"]["ndcg"] - m["votes"]["ndcg"],
            least=1e-6,
            over="mean",
        ),
        Demand(
            "accuracy on held-out pairs of a preference model trained on the world's noisy labels",
            lambda m: m["judge"]["accuracy"],
            least=0.9,
        ),
    ),
    settings={
        "beta": BETA,
        "rate": RATE,
        "steps": STEPS,
        "train": TRAIN,
        "lists": LISTS,
        "held_out": HELD_OUT,
        "wrong": WRONG,
        "noise": NOISE,
        "proxies": PROXIES,
        "proxy_noise": PROXY_NOISE,
        "draws": DRAWS,
        "judge": JUDGE,
        "runs": RUNS,
        "world": "blobs",
    },
    run=run,
    plot=plot,
    steps=4 + len(RUNS),
    remarks=(
        "The paper's generators are SDXL, SD3, PixArt-Sigma and Stable Cascade, its reward models five networks; here "
        "both are made from one world whose truth is known.",
        "The pilot (seed 0) set the rate: at 3e-5 the start's 0.582 became 0.569 with random labels, 0.637 with one proxy, "
        "0.643 with the votes and 0.655 with RankDPO, NDCG 0.962, 0.965 and 0.966; the judged seeds have 1e-4.",
    ),
    keeps=("pictures.png",),
)
