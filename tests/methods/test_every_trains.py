"""Every registered method trains for two steps, whole and as an adapter, on made-up data with what its needs ask for."""

from __future__ import annotations

import functools
import gc
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from tests.small_models import sentence
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

from prefopt import PrefoptError
from prefopt.config import make
from prefopt.data.side_notes import GOLD_NOTES, SIDE_NOTES
from prefopt.methods import load_all
from prefopt.objectives.method import METHODS, Method
from prefopt.training.needs import how_to_give
from prefopt.training.run import train
from prefopt.training.tasks.generations import GENERATIONS

load_all()
N = 8
WIDTH = 2
"""Numbers of a note whose length the method leaves open."""
LIKELY = {"source_sums": -20.0, "source_counts": 12.0}
"""What numbers of a note are near to, where they are not near to 0.5."""


@pytest.fixture(scope="module", autouse=True)
def _what_is_imported_is_no_garbage() -> Iterator[None]:
    """The trainer collects garbage several times a run: most of a short run's time, with all that is imported."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture(scope="module")
def before(text_model: Path) -> Callable[[bool], torch.Tensor]:
    """What the model says before training, with a head of words or of one reward."""
    return functools.cache(lambda reward: logits(text_model, text_model, reward, adapter=False))


def rows(needs: Mapping[str, Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
    """Pairs, or lists of three where the method reads groups, with a column for every annotation that it asks for."""
    g = random.Random(0)
    notes = {k.removeprefix("notes:"): spec for k, spec in needs.items() if k.startswith("notes:")}
    for i in range(N):
        row: dict[str, Any] = {"prompt": f"{i}. {sentence(g)} "}
        if "group" in notes:
            yield row | {"responses": [f"{sentence(g)} {sentence(g)}" for _ in range(3)], "scores": [60, 10, -40]}
            continue
        row |= {"chosen": f"{sentence(g)} {sentence(g)}", "rejected": sentence(g)}
        if "extras:gold" in needs:
            row["gold"] = sentence(g)
        for name, spec in notes.items():
            row |= columns(name, spec, i, g)
        yield row


def columns(name: str, spec: Mapping[str, Any], i: int, g: random.Random) -> dict[str, Any]:
    """The columns of one annotation; none where the library makes it itself."""
    if name in SIDE_NOTES or name in GOLD_NOTES or name == "score":
        return {f"{side}_{name}": value(name, spec, g) for side in ("chosen", "rejected")}
    if spec.get("dtype") == "int" and "below" in spec:
        return {name: f"number {i % spec['below']}"}
    if spec.get("dtype") == "step":
        return {} if "T" in spec["shape"].split() else {name: 1}
    least = max(0.0, spec.get("within", (0.0, 1.0))[0])
    return {name: least + g.random()} if spec["shape"] == "P" and "dtype" not in spec else {}


def value(name: str, spec: Mapping[str, Any], g: random.Random) -> Any:
    sizes = [int(a) if a.isdigit() else WIDTH for a in spec["shape"].split()[1:]]
    made = [
        LIKELY.get(name, 0.5) * (1 if name.endswith("counts") else 0.5 + g.random()) for _ in range(sum(sizes) or 1)
    ]
    return made if sizes else made[0]


REWARD = """
import torch

def brightness(prompts, images):
    return [sum(image.convert("L").tobytes()) for image in images]

def steps(images, prompts, timesteps):
    return 100 * images.mean((1, 2, 3))

def differentiable(images, prompts):
    return images.mean((1, 2, 3))
"""
REWARDS = {"one_step": "differentiable", "trajectories": "brightness", "pools": "steps"}


def own_data(m: Method, train: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Of methods whose policy makes its own data: a reward, and a round of two steps where it comes in rounds."""
    kind = next((k.removeprefix("generation:") for k in m.needs() if k.startswith("generation:")), None)
    if kind is None:
        return {}
    (folder.parent / "taste.py").write_text(REWARD)
    reward = {"reward": f"{folder.parent / 'taste.py'}:{REWARDS[kind]}"}
    rounds = {"rounds": 1, "prompts_per_round": 2} if "rounds" in GENERATIONS[kind].rollout else {}
    if rounds:
        del train["max_steps"]
        train["per_device_train_batch_size"] = {"trajectories": 20, "pools": 16}[kind]
    return {"rollout": reward | rounds, "train": train}


def trained(m: Method, folder: Path, model: Path, data: Path, sources: list[str], adapter: bool) -> list[float]:
    """Losses of both steps of a run in `folder`."""
    config: dict[str, Any]
    small = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0}
    quiet = {"logging_steps": 1, "disable_tqdm": True, "save_strategy": "no"}
    config = {"method": m.record(), "data": {"path": str(data)}, "output": str(folder), "train": small | quiet}
    if "notes:step_index" in m.needs():
        config["data"]["step_marker"] = r"\bThe\b"
    config["model"] = {"path": str(model), "adapter": {"r": 2} if adapter else None}
    config |= own_data(m, config["train"], folder)
    train(make(config | {"sources": {name: {"path": str(model)} for name in sources}}))
    logged = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    numbers = {k: v for row in logged for k, v in row.items() if isinstance(v, float)}
    assert all(math.isfinite(v) for v in numbers.values()), numbers
    return [row["loss"] for row in logged if "loss" in row]


def logits(folder: Path, start: Path, reward: bool, adapter: bool) -> torch.Tensor:
    """What plain transformers and peft make of the folder."""
    auto: Any = AutoModelForSequenceClassification if reward else AutoModelForCausalLM
    more = {"num_labels": 1} if reward else {}
    torch.manual_seed(0)
    if adapter:
        model = PeftModel.from_pretrained(auto.from_pretrained(start, **more), folder)
    else:
        model, told = auto.from_pretrained(folder, output_loading_info=True, **more)
        assert folder == start or not any(told[k] for k in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    with torch.no_grad():
        return model(torch.arange(5, 25)[None]).logits


@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "adapter"])
@pytest.mark.parametrize("name", sorted(k for k, f in METHODS.items() if f.family != "diffusion"))
def test_text(name: str, adapter: bool, text_model: Path, before: Any, tmp_path: Path) -> None:
    m = METHODS[name]()
    needs = m.needs()
    data, folder = tmp_path / "rows.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows(needs)))
    scores = [k for k in needs if k.startswith("scores:")]
    sources = [k.removeprefix("scores:") for k in scores if "sources." in how_to_give(k, "text")]
    losses = trained(m, folder, text_model, data, sources, adapter)
    assert len(losses) == 2
    reward = "scores:reward" in needs
    after = logits(folder, text_model, reward, adapter)
    assert after.isfinite().all()
    assert not torch.allclose(after, before(reward))


@pytest.mark.parametrize("adapter", [False, True], ids=["whole", "adapter"])
@pytest.mark.parametrize("name", sorted(k for k, f in METHODS.items() if f.family == "diffusion"))
def test_images(name: str, adapter: bool, image_model: Path, image_pairs: Path, tmp_path: Path) -> None:
    m = METHODS[name]()
    asked = {k.removeprefix("notes:") for k in m.needs()} & set(SIDE_NOTES)
    captions = {f"caption_{side}": f"a {side} one" for side in ("chosen", "rejected")}
    captions = captions if "conditions:captions" in m.needs() else {}
    who = {"user_embedding": [0.5, 1.0]} if "conditions:user" in m.needs() else {}
    captions |= who
    if asked or captions:
        given = [json.loads(line) for line in image_pairs.read_text().splitlines()]
        columns = captions | {
            f"{side}_{note}": x for note in asked for side, x in (("chosen", 0.25), ("rejected", 0.15))
        }
        files = [{s: str(image_pairs.parent / row[s]) for s in ("chosen", "rejected")} for row in given]
        image_pairs = tmp_path / "rows.jsonl"
        image_pairs.write_text("".join(json.dumps(r | f | columns) + "\n" for r, f in zip(given, files, strict=True)))
    if who and adapter:
        with pytest.raises(PrefoptError, match="leave the adapter out"):
            trained(m, tmp_path / "run", image_model, image_pairs, [], adapter)
        return
    losses = trained(m, tmp_path / "run", image_model, image_pairs, [], adapter)
    assert len(losses) == 2
