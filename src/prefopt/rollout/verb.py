"""What `prefopt generate` does: load a model, read prompts, write samples that training reads."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ..config import ModelConfig, read_yaml
from ..data.config import DataConfig
from ..data.source import read_prompts
from ..errors import PrefoptError
from ..files import read_jsonl, write_atomically
from ..rewards.load import load_reward
from .images import ImageSampling, sample_images
from .samples import append_rows, generate_file, whole_chunks
from .text import Sampling, prompt_encoder

TEMPLATE_KEYS = ("strings", "chat_template", "system", "thinking")


def template_keys(model: Path) -> list[str]:
    """How a run folder's model was fed in training, as overrides of a data section; nothing for other folders."""
    note = model / "config.yaml"
    section = read_yaml(note).get("data") if note.is_file() else None
    if not isinstance(section, dict):
        return []
    return [f"{key}={json.dumps(section[key])}" for key in TEMPLATE_KEYS if section.get(key) is not None]


def generate_text(model: str, data: DataConfig, output: Path, sampling: Sampling, reward: str | None) -> int:
    """Sample every prompt into the JSONL `output`; with a reward its rows are ranked lists. Returns prompts sampled now.

    Template, system message and thinking rule are those of `data`.
    """
    from ..models.text import load_text_model
    from ..scoring.identity import identity_of

    prompts = [e.prompt for e in _prompts(data)]
    scorer = None if reward is None else load_reward(reward)
    loaded = load_text_model(ModelConfig(path=model), trainable=False)
    output.parent.mkdir(parents=True, exist_ok=True)
    return generate_file(
        loaded.model,
        loaded.tokenizer,
        prompts,
        output,
        sampling,
        encoder=prompt_encoder(loaded.tokenizer, data),
        identity=identity_of(loaded.model),
        reward=scorer,
    )


def generate_images(
    model: str,
    data: DataConfig,
    output: Path,
    number: int,
    seed: int,
    sampling: ImageSampling,
    reward: Sequence[str] = (),
    negative: str | None = None,
    shown: int = 0,
    **user: Any,
) -> int:
    """Pictures of every prompt as PNG files in the folder `output`, with images.jsonl beside them; goes on where it was.

    Row by row {prompt, responses, seeds}, and of one reward `scores`, of several `scores` by name and `reward_scores`,
    whose votes rankdpo reads. negative: a model whose denoiser is the negative branch of guidance. shown: the pictures of
    so many prompts in grid.png too, a row for each. user: for whom the pictures are, of a model that
    knows users (see `open_pipeline`).
    """
    from ..models.opening import open_pipeline

    prompts = [str(e.prompt) for e in _prompts(data)]
    scorers = [load_reward(r) for r in reward]
    output.mkdir(parents=True, exist_ok=True)
    job = {"model": model, "prompts": prompts, "n": number, "seed": seed, "sampling": asdict(sampling)}
    special = {k: v for k, v in ({"negative": negative} | user).items() if v}
    chunk = max(1, sampling.batch_size // number)
    done = _claimed(output, job | special | ({"rewards": list(reward)} if reward else {}), chunk, len(prompts))
    pipeline = open_pipeline(model, **special) if done < len(prompts) else None
    for start in range(done, len(prompts), chunk):
        part = prompts[start : start + chunk]
        texts = [p for p in part for _ in range(number)]
        seeds = [seed + (start + i) * number + j for i in range(len(part)) for j in range(number)]
        images = sample_images(pipeline, texts, seeds, sampling)
        scores = {scorer.name: scorer(texts, images) for scorer in scorers}
        _write(output, texts, seeds, images, scores, number)
    if shown:
        _draw_grid(output, shown)
    return len(prompts) - done


def _draw_grid(output: Path, shown: int) -> None:
    """grid.png: a row of pictures for each of the first prompts."""
    from PIL import Image

    from .images import grid

    rows = read_jsonl(output / "images.jsonl")[:shown]
    pictures = [[Image.open(output / name).convert("RGB") for name in row["responses"]] for row in rows]
    half = output / f".grid.{os.getpid()}.png"
    grid(pictures, scale=max(1, 64 // min(pictures[0][0].size))).save(half)
    os.replace(half, output / "grid.png")


def _prompts(data: DataConfig) -> Sequence[Any]:
    examples, _ = read_prompts(data)
    if not examples:
        raise PrefoptError(f"{', '.join(data.paths)}: no prompt in it")
    return examples


def _claimed(output: Path, job: dict[str, Any], chunk: int, total: int) -> int:
    """How many prompts are done. PrefoptError if the folder holds another job."""
    note = output / "images.jsonl.job"  # no data file: the folder as a whole is read as data
    rows = output / "images.jsonl"
    known = json.loads(note.read_text()) if note.exists() else None
    if known is None and any(not p.name.startswith(".") for p in output.iterdir()):  # hidden: what a kill may leave
        raise PrefoptError(f"output {output} holds other files; nothing is overwritten: give a new folder")
    begun = rows.exists() and rows.stat().st_size > 0
    if begun and known != job:
        raise PrefoptError(f"output {output} holds samples of another job (see {note.name}); give a new folder")
    if known != job:
        write_atomically(note, json.dumps(job, indent=1))
    return whole_chunks(rows, chunk, total) if begun else 0


def _write(
    output: Path, texts: list[str], seeds: list[int], images: list[Any], scores: dict[str, list[float]], number: int
) -> None:
    """One row a prompt, in the ranked-list layout, appended after its pictures are on disk."""
    rows = []
    for start in range(0, len(texts), number):
        names = []
        for i in range(start, start + number):
            names.append(f"{seeds[i]:08d}.png")
            images[i].save(output / names[-1])
        row: dict[str, Any] = {"prompt": texts[start], "responses": names, "seeds": seeds[start : start + number]}
        found = {name: values[start : start + number] for name, values in scores.items()}
        if len(found) == 1:
            row["scores"] = next(iter(found.values()))
        elif found:
            row |= {"scores": found, "reward_scores": [list(each) for each in zip(*found.values(), strict=True)]}
        rows.append(row)
    append_rows(output / "images.jsonl", rows)
