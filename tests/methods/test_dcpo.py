"""DCPO: each side under its own caption; the card's equation on a real network, equal captions = Diffusion-DPO."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from prefopt import get_method
from prefopt.config import make
from prefopt.errors import PrefoptError
from prefopt.scoring.base import Draw
from prefopt.training.engine import responses
from prefopt.training.run import make_method, train
from prefopt.training.tasks.denoising import diffusion_task
from prefopt.worlds.shapes.pipelines import tiny_pipeline

CAPTIONS = ["a red circle in the upper left", "two blue squares at the top", "a green triangle in the lower right"]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    made = {}
    for kind in ("sd", "sd-v", "sdxl", "sd3"):
        made[kind] = tmp_path_factory.mktemp(kind)
        tiny_pipeline(kind).save_pretrained(made[kind])  # type: ignore[arg-type]
    return made


def write(folder: Path, edit: Any = lambda row, i: row) -> Path:
    """Six pairs with a caption for each side."""
    g = np.random.default_rng(0)
    folder.mkdir(exist_ok=True)
    rows = []
    for i in range(6):
        for side in "01":
            Image.fromarray(g.integers(0, 255, (32, 32, 3), dtype=np.uint8)).save(folder / f"{i}-{side}.png")
        row = {"prompt": CAPTIONS[0], "chosen": f"{i}-0.png", "rejected": f"{i}-1.png"}
        row |= {"caption_chosen": CAPTIONS[i % 3], "caption_rejected": CAPTIONS[(i + 1) % 3]}
        rows.append(edit(row, i))
    (folder / "rows.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    return folder / "rows.jsonl"


def config(model: Path, rows: Path, output: Path, /, **sections: Any) -> Any:
    few = {"max_steps": 2, "per_device_train_batch_size": 3, "learning_rate": 1e-3, "logging_steps": 1}
    base: dict[str, Any] = {"method": {"name": "dcpo"}, "model": {"path": str(model)}, "output": str(output)}
    base |= {"data": {"path": str(rows), "max_dropped": 0.5}, "train": few | {"use_cpu": True, "save_strategy": "no"}}
    base["denoising"] = {}
    return make({k: v | sections.get(k, {}) if isinstance(v, dict) else v for k, v in base.items()})


def losses(folder: Path) -> list[float]:
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [r["loss"] for r in rows if "loss" in r]


@pytest.mark.parametrize("forced", [False, True])
@pytest.mark.parametrize("kind", ["sd", "sd-v", "sdxl", "sd3"])
def test_the_loss_is_the_cards(models: dict[str, Path], tmp_path: Path, kind: str, forced: bool) -> None:
    """Network by network and image by image, from the pipeline's own parts; swapping the captions changes it."""
    if forced and kind != "sd-v":
        return
    how = {"beta": 40.0} | ({"force_epsilon_target": True} if forced else {})
    rows = write(tmp_path / "data")
    cfg = config(models[kind], rows, tmp_path / "run", method=how)
    method = make_method(cfg)
    task = diffusion_task(cfg, method)
    with torch.no_grad():
        for p in task.model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))
    batch: Any = task.scorer.collate([Draw(task.train[i]) for i in range(3)])
    found = method(responses(batch, task.scorer.score(task.model, batch, method.needs()), {}, {}, {})).scalar

    from prefopt.models.diffusion import load_image_model

    plain, reference = load_image_model(models[kind]), task.scorer.reference  # type: ignore[attr-defined]
    data = [json.loads(line) for line in rows.read_text().splitlines()]
    wanted = []
    for pair in range(3):
        errors: dict[tuple[str, int], float] = {}
        for side, column in enumerate(("caption_chosen", "caption_rejected")):
            row = 2 * pair + side
            said = plain.encode_captions([data[pair][column]])
            x, eps, t = batch.latents[row], batch.noise[pair], batch.t[pair]
            level = plain.schedule.level(t[None])
            a, b = float(level.signal), float(level.sigma)
            seen = a * x + b * eps
            goal = {"sd": eps, "sdxl": eps, "sd-v": a * eps - b * x, "sd3": eps - x}[kind]
            goal = eps if forced else goal
            for name, net in (("policy", task.model), ("reference", reference)):
                more: dict[str, Any] = {"encoder_hidden_states": said["text"]}
                time: Any = t
                if kind == "sd3":
                    more["pooled_projections"], time = said["pooled"], (1000 * t.float())[None]
                if kind == "sdxl":
                    ids = torch.tensor([[32.0, 32, 0, 0, 32, 32]])
                    more["added_cond_kwargs"] = {"text_embeds": said["pooled"], "time_ids": ids}
                with torch.no_grad():
                    answer = net(seen[None].float(), timestep=time, **more).sample[0]
                errors[name, side] = float((answer.double() - goal.double()).square().mean())
        gap = lambda name: errors[name, 0] - errors[name, 1]
        logit = 0.5 * 40.0 * (gap("reference") - gap("policy"))
        wanted.append(float(torch.log1p(torch.exp(torch.tensor(-logit, dtype=torch.float64)))))
    assert float(found.detach()) == pytest.approx(np.mean(wanted), abs=2e-4)
    assert abs(float(found.detach()) - np.log(2)) > 0.01

    swapped = write(
        tmp_path / "swapped",
        lambda r, i: r | {"caption_chosen": r["caption_rejected"], "caption_rejected": r["caption_chosen"]},
    )
    other = diffusion_task(config(models[kind], swapped, tmp_path / "run", method=how), method)
    turned: Any = other.scorer.collate([Draw(other.train[i]) for i in range(3)])
    again = method(responses(turned, task.scorer.score(task.model, turned, method.needs()), {}, {}, {})).scalar
    assert float(again.detach()) != pytest.approx(float(found.detach()), abs=1e-4)


@pytest.mark.parametrize("kind", ["sd", "sdxl", "sd3"])
def test_equal_captions_are_diffusion_dpo_bit_for_bit(
    models: dict[str, Path], tmp_path: Path, kind: str, caplog: pytest.LogCaptureFixture
) -> None:
    rows = write(tmp_path / "data", lambda r, i: r | {"caption_chosen": r["prompt"], "caption_rejected": r["prompt"]})
    dropout = {"denoising": {"caption_dropout": 0.3}, "method": {"beta": 500.0}}
    with caplog.at_level(logging.WARNING):
        train(config(models[kind], rows, tmp_path / "dcpo", **dropout))
    assert "identical in all 6 pairs" in caplog.text
    train(
        config(models[kind], rows, tmp_path / "dpo", **(dropout | {"method": {"name": "diffusion-dpo", "beta": 500.0}}))
    )
    assert losses(tmp_path / "dcpo") == losses(tmp_path / "dpo")
    from safetensors.torch import load_file

    part = "transformer" if kind == "sd3" else "unet"
    one, two = (load_file(next((tmp_path / x / part).glob("*.safetensors"))) for x in ("dcpo", "dpo"))
    assert all(torch.equal(one[k], two[k]) for k in one)


def test_both_captions_are_dropped_or_none(models: dict[str, Path], tmp_path: Path) -> None:
    rows = write(tmp_path / "data")
    cfg = config(models["sd"], rows, tmp_path / "run", denoising={"caption_dropout": 0.5})
    scorer: Any = (task := diffusion_task(cfg, make_method(cfg))).scorer
    dropped = []
    for epoch in range(20):
        text = scorer.collate([Draw(task.train[0], epoch)]).condition["text"]
        empty = [torch.equal(x, scorer.empty["text"]) for x in text]
        assert empty[0] == empty[1]
        dropped.append(empty[0])
    assert 0 < sum(dropped) < 20
    plain = config(models["sd"], rows, tmp_path / "run")
    assert diffusion_task(plain, make_method(plain)).scorer.caption_dropout == 0.0  # type: ignore[attr-defined]


def test_the_official_columns_turn_with_the_label(models: dict[str, Path], tmp_path: Path) -> None:
    """Images AND captions follow the label; ties go."""

    def official(row: dict[str, Any], i: int) -> dict[str, Any]:
        label = 0.5 if i == 4 else float(i % 2)
        return {"jpg_0": row["chosen"], "jpg_1": row["rejected"], "label_0": label} | {
            "caption_0": row["caption_chosen"], "caption_1": row["caption_rejected"]
        }  # fmt: skip

    cfg = config(models["sd"], write(tmp_path / "a", official), tmp_path / "run")
    task = diffusion_task(cfg, make_method(cfg))
    assert len(task.train) == 5
    for i, of in ((0, (1, 0)), (1, (0, 1))):
        example = task.train.examples[i]  # type: ignore[attr-defined]
        (w, l) = example.pairs[0]
        assert (w, l) == of
        assert example.captions == (CAPTIONS[i % 3], CAPTIONS[(i + 1) % 3])  # beside jpg_0 and jpg_1
    named = write(tmp_path / "b", lambda r, i: official(r, i) | {"caption": r["prompt"]})
    again = config(models["sd"], named, tmp_path / "run")
    assert diffusion_task(again, make_method(again)).train.examples[0].prompt == CAPTIONS[0]  # type: ignore[attr-defined]


def test_captions_that_differ_too_late_are_counted(
    models: dict[str, Path], tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    long = "a red circle in the upper left in the upper left in the upper left"  # 12 tokens are read
    rows = write(
        tmp_path / "data",
        lambda r, i: r | ({"caption_chosen": long, "caption_rejected": f"{long} top"} if i < 2 else {}),
    )
    cfg = config(models["sdxl"], rows, tmp_path / "run")
    with caplog.at_level(logging.WARNING):
        task = diffusion_task(cfg, make_method(cfg))
    assert task.record["data"]["captions"] == {"pairs": 6, "identical": 0, "identical_after_truncation": 2}
    assert "2 of 6 pairs have captions that differ only beyond" in caplog.text


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda r, i: {k: v for k, v in r.items() if k != "caption_rejected"} if i == 2 else r, "caption_rejected"),
        (lambda r, i: {k: v for k, v in r.items() if "caption_" not in k}, "no caption of its own"),
        (lambda r, i: r | ({"caption_chosen": "  "} if i == 1 else {}), "row 2: 'caption_chosen' is empty"),
        (lambda r, i: r | ({"caption_chosen": 7} if i == 1 else {}), "expected text"),
        (lambda r, i: r | ({"captions": ["one"]} if i == 3 else {}), "1 entries for 2"),
        (
            lambda r, i: {
                "jpg_0": r["chosen"],
                "jpg_1": r["rejected"],
                "label_0": 0.3,
                "caption_0": "a",
                "caption_1": "b",
            },
            "label_0.* is 0.3",
        ),
    ],
)
def test_bad_captions_stop_the_run(models: dict[str, Path], tmp_path: Path, edit: Any, words: str) -> None:
    with pytest.raises(PrefoptError, match=words):
        train(config(models["sd"], write(tmp_path / "data", edit), tmp_path / "run"))


def test_other_refusals(models: dict[str, Path], tmp_path: Path) -> None:
    rows = write(tmp_path / "data")
    forced = {"method": {"force_epsilon_target": True}}
    with pytest.raises(PrefoptError, match="flow model"):
        train(config(models["sd3"], rows, tmp_path / "run", **forced))
    with pytest.raises(PrefoptError, match="no effect"):
        train(config(models["sd"], rows, tmp_path / "run", **forced))
    with pytest.raises(PrefoptError, match=r"dcpo\.beta"):
        get_method("dcpo", beta=0.0)
    assert "conditions:captions" in get_method("dcpo").needs()
