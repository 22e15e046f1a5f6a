"""Several scorers, spread in features, held-out pairs and the world's breakdown, in the evaluation of an image run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prefopt.config import make
from prefopt.data.prepare import set_aside
from prefopt.errors import PrefoptError
from prefopt.evaluation.heldout import pictures_held_out
from prefopt.evaluation.image_run import evaluate_image_run
from prefopt.evaluation.images import feature_distance
from prefopt.evaluation.run import evaluate_run, run_config
from prefopt.reporting.report import write_report
from prefopt.rewards.images import image_embedding, load_clip, load_processor, load_scorer
from prefopt.rollout.images import ImageSampling
from prefopt.training.run import train
from prefopt.worlds.shapes.render import render, scenes
from prefopt.worlds.shapes.truth import checks
from tests.small_clip import save_clip

SAMPLING = ImageSampling(steps=2, guidance=1.0)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, image_model: Path, image_pairs: Path) -> Path:
    steps = {"max_steps": 2, "per_device_train_batch_size": 4, "learning_rate": 1e-2, "warmup_steps": 0}
    content: dict[str, Any] = {"method": "dpo", "model": str(image_model), "data": str(image_pairs)}
    return train(make(content | {"output": str(tmp_path_factory.mktemp("run") / "run"), "train": steps})).folder


def test_several_scorers_and_what_they_say_of_spread(run: Path, tmp_path: Path, image_pairs: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    specs = [f"pickscore:{clip}", "prefopt.worlds.shapes.truth:checks"]
    found = evaluate_image_run(
        run, run_config(run), None, str(image_pairs), specs, limit=3, progress=False, sampling=SAMPLING
    )
    rows = [json.loads(line) for line in (run / "images.jsonl").read_text().splitlines()]
    images = {side: [Image.open(run / row[side]) for row in rows] for side in ("before", "after")}
    texts = [row["prompt"] for row in rows]
    scorer = load_scorer(specs[0])
    for side, name in (("before", "start"), ("after", "policy")):
        values = scorer.score(images[side], texts)
        assert found["reward"][name]["value"] == pytest.approx(np.mean(values), abs=1e-5)
        assert found["rewards"][specs[0]][name] == found["reward"][name]
        assert found["objectives"]["colour"][name]["value"] == np.mean(checks(texts, images[side])["colour"])
        model, read = load_clip(str(clip), "test"), load_processor(str(clip), "test")
        with torch.no_grad():
            e = image_embedding(model, read.image_processor(images[side], return_tensors="pt")["pixel_values"]).numpy()
        pairs = [1 - e[i] @ e[j] for i in range(len(e)) for j in range(i) if texts[i] == texts[j]]
        assert found["diversity"]["feature_distance"][name]["value"] == pytest.approx(np.mean(pairs), abs=1e-5)
    assert set(found["win_rates"]) == set(specs)
    assert "ci" in found["win_rate"]
    assert found["preference"]["implicit_accuracy"]["n"] == 3
    html = write_report(run).read_text()
    for words in ("feature distance", "implicit accuracy", "colour"):
        assert words in html.lower().replace("_", " ")


def test_without_a_reward_spread_and_pairs_are_told(run: Path, tmp_path: Path) -> None:
    found = evaluate_image_run(run, run_config(run), None, None, None, limit=1, progress=False, sampling=SAMPLING)
    assert "reward" not in found
    assert set(found["diversity"]) == {"pixel_distance"}
    assert any("flatter" in note for note in found["notes"])
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("a red circle in the upper left\n\ntwo blue squares at the top\n")
    found = evaluate_image_run(run, run_config(run), None, str(prompts), None, 4, progress=False, sampling=SAMPLING)
    assert found["settings"]["prompts"] == 2
    assert "preference" not in found
    assert any("No held-out pairs" in note for note in found["notes"])


def test_what_eval_fraction_holds_out_is_evaluated(image_pairs: Path, tmp_path: Path) -> None:
    rows = [json.loads(line) for line in image_pairs.read_text().splitlines()]
    sides = [{k: str(image_pairs.parent / row[k]) for k in ("chosen", "rejected")} for row in rows]
    file = tmp_path / "pairs.jsonl"
    file.write_text("".join(json.dumps({"prompt": f"circle {n}"} | s) + "\n" for n, s in enumerate(sides)))
    data = make({"method": "dpo", "model": "-", "data": str(file), "output": "-"}).data
    whole, remarks = pictures_held_out(data, None, {"pairs"}, None)
    assert "flatter" in remarks[0]
    shared = data.model_copy(update={"eval_fraction": 0.4, "top": 2})  # experts are chosen for training alone
    aside, remarks = pictures_held_out(shared, None, {"pairs"}, None)
    rest = [e.prompt for e in whole.train if not set_aside(shared, e)]
    assert [e.prompt for e in aside.train] == [e.prompt for e in whole.train if set_aside(shared, e)]
    assert rest and aside.train and not remarks
    assert all(e.pairs for e in aside.train)
    few, remarks = pictures_held_out(shared, str(image_pairs), {"pairs"}, 3)
    assert [e.prompt for e in few.train] == 3 * ["a red circle in the upper left"]
    assert not remarks


def test_feature_distance_by_hand() -> None:
    x = np.array([[1.0, 0], [0, 2.0], [3.0, 0], [1.0, 1.0], [5.0, 5.0]])
    found = feature_distance(x, [0, 0, 0, 1, 2])
    assert found.value == pytest.approx((1 + 0 + 1) / 3)  # of the only prompt with several
    assert found.n == 1


def test_the_breakdown_passes_the_renderer_and_fails_other_captions() -> None:
    g = np.random.default_rng(0)
    shown = scenes()[:8]
    images = [Image.fromarray(render(s, g)) for s in shown]
    right = checks([s.caption for s in shown], images)
    assert all(v == 1 for name in ("reward", "colour", "shape", "place", "count") for v in right[name])
    assert np.nansum(right["one object"]) + np.nansum(right["two objects"]) == 8
    wrong = checks([s.caption for s in scenes()[-8:]], images)
    assert not any(wrong["reward"])
    assert not any(wrong["colour"])


def test_features_and_several_rewards_are_for_pictures(tmp_path: Path, text_model: Path, pairs_file: Path) -> None:
    few = {"max_steps": 1, "per_device_train_batch_size": 2}
    content = {"method": "dpo", "model": str(text_model), "data": str(pairs_file), "output": str(tmp_path / "run")}
    folder = train(make(content | {"train": few})).folder
    with pytest.raises(PrefoptError, match="of diffusion models"):
        evaluate_run(folder, features="x")
    for who in ({"user": "anna"}, {"user_pairs": "x"}, {"prompt_only": True}):
        with pytest.raises(PrefoptError, match="users are of diffusion models"):
            evaluate_run(folder, **who)
    with pytest.raises(PrefoptError, match="only pictures"):
        evaluate_run(folder, reward=["a:b", "c:d"])


def test_a_preference_model_is_told_by_its_pairs(tmp_path: Path, image_pairs: Path, image_model: Path) -> None:
    clip = save_clip(tmp_path / "clip")
    few = {"max_steps": 1, "per_device_train_batch_size": 2, "learning_rate": 1e-3}
    for name, more in {
        "plain": {"method": {"name": "clip-preference"}},
        "aware": {
            "method": {"name": "clip-preference", "step_aware": True}, "sources": {"base": {"path": str(image_model)}}
        },
    }.items():  # fmt: skip
        content = {"model": str(clip), "data": str(image_pairs), "output": str(tmp_path / name), "train": few}
        folder = train(make(content | more)).folder
        found = evaluate_run(folder, limit=4, progress=False)
        assert found["preference"]["accuracy"]["n"] == 4
        times = found.get("accuracy_by_time", {})
        assert bool(times) == (name == "aware")
        assert sum(t["n"] for t in times.values()) in (0, 20)
