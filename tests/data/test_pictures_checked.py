"""What the doctor and training say of pictures and captions that can be read, but not as they are."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from prefopt.data.config import DataConfig
from prefopt.data.images import load_image
from prefopt.data.latents import encode_captions
from prefopt.data.validate import check_data
from prefopt.models.diffusion import load_image_model

CAPTION = "a red circle in the upper left"
LONG = " ".join([CAPTION] * 9)


def found(folder: Path, *rows: dict[str, Any], model: Path | None = None) -> dict[str, str]:
    """Titles and details of the doctor's findings."""
    (folder / "d.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = DataConfig(path=str(folder / "d.jsonl"))  # type: ignore[call-arg]
    report = check_data(data, tokenizer=model and str(model), progress=False)
    assert report.sound
    return {f.title: f.detail for f in report.findings}


def saved(folder: Path, name: str, shade: int, size: tuple[int, int] = (8, 8)) -> str:
    Image.new("RGB", size, (shade, 1, 2)).save(folder / name)
    return name


def test_sixteen_bits_are_scaled_and_not_cut(tmp_path: Path) -> None:
    grey = np.linspace(0, 65535, 64, dtype=np.uint16).reshape(8, 8)
    Image.fromarray(grey).save(tmp_path / "deep.png")
    read = np.asarray(load_image(str(tmp_path / "deep.png")))
    assert read.shape == (8, 8, 3)
    assert np.abs(read[..., 0] - grey / 257).max() <= 0.5


def test_the_doctor_tells_what_is_special_about_pictures(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (8, 8), (i, 0, 0)) for i in (9, 99)]
    frames[0].save(tmp_path / "moving.gif", save_all=True, append_images=frames[1:])
    a, b = saved(tmp_path, "a.png", 5), saved(tmp_path, "b.png", 5)
    wide = saved(tmp_path, "wide.png", 7, (16, 8))
    told = found(
        tmp_path,
        {"prompt": "one", "chosen": a, "rejected": "moving.gif"},
        {"prompt": "two", "chosen": a, "rejected": b},
        {"prompt": "three", "chosen": a, "rejected": wide},
    )
    assert "first frame" in told["images of several frames"]
    assert "two names" in told["pairs of equal pictures"]
    assert "8 x 8 and 16 x 8" in told["images of differing size"]


def test_captions_that_are_cut_are_told(tmp_path: Path, image_model: Path, caplog: pytest.LogCaptureFixture) -> None:
    rows = [{"prompt": p, "chosen": saved(tmp_path, f"{i}.png", i), "rejected": saved(tmp_path, f"{i}b.png", 50 + i)}
            for i, p in enumerate((CAPTION, LONG))]  # fmt: skip
    assert "12 tokens" in found(tmp_path, *rows, model=image_model)["captions that are cut"]
    assert "captions that are cut" not in found(tmp_path, rows[0], model=image_model)
    model = load_image_model(image_model)
    with caplog.at_level(logging.WARNING, logger="prefopt"):
        encode_captions([CAPTION, LONG, LONG], model, cache=tmp_path, progress=False)
    assert "2 of 3 captions are longer" in caplog.text


def test_empty_lines_at_the_end_are_none(tmp_path: Path) -> None:
    rows = [{"prompt": "one", "chosen": saved(tmp_path, "a.png", 5), "rejected": saved(tmp_path, "b.png", 6)}]
    (tmp_path / "d.jsonl").write_text(json.dumps(rows[0]) + "\n\n \n")
    report = check_data(DataConfig(path=str(tmp_path / "d.jsonl")), progress=False)  # type: ignore[call-arg]
    assert report.sound
    assert report.rows == 1
