"""Images from everything that rows hold; what is corrupt or enormous is refused with its row."""

from __future__ import annotations

import base64
import io
from pathlib import Path

import pytest
from PIL import Image

from prefopt.data import images
from prefopt.data.images import is_image, load_image
from prefopt.errors import PrefoptError


@pytest.fixture
def png() -> bytes:
    stream = io.BytesIO()
    Image.new("RGB", (5, 4), (10, 20, 30)).save(stream, "PNG")
    return stream.getvalue()


def test_all_forms(tmp_path: Path, png: bytes) -> None:
    (tmp_path / "x.png").write_bytes(png)
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    forms = ["x.png", str(tmp_path / "x.png"), png, {"bytes": png, "path": None}, {"bytes": None, "path": "x.png"}, uri,
             Image.open(io.BytesIO(png))]  # fmt: skip
    for form in forms:
        image = load_image(form, base=tmp_path)
        assert (image.mode, image.size, image.getpixel((0, 0))) == ("RGB", (5, 4), (10, 20, 30))
        assert is_image(form)
    assert not any(map(is_image, ["a text", "see x.png\nbelow", ["x"], 3]))


def test_transparency_lies_over_white() -> None:
    assert load_image(Image.new("RGBA", (1, 1), (0, 0, 0, 0))).getpixel((0, 0)) == (255, 255, 255)


def test_rotation_of_cameras_is_applied() -> None:
    image, stream = Image.new("RGB", (5, 4)), io.BytesIO()
    exif = image.getexif()
    exif[0x0112] = 6  # orientation: a quarter turn
    image.save(stream, "JPEG", exif=exif)
    assert load_image(stream.getvalue()).size == (4, 5)


def test_refusals_name_the_row(tmp_path: Path, png: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    where = {"base": tmp_path, "file": "d.jsonl", "row": 7}
    cases = [(b"junk", "cannot be decoded"), ("no.png", "does not exist"), (3, "is int, expected"),
             ({}, "neither bytes nor"), (png[:-30], "cannot be decoded"), ("", "path is empty")]  # fmt: skip
    for value, message in cases:
        with pytest.raises(PrefoptError, match=f"d.jsonl row 7: .*{message}"):
            load_image(value, **where)
    monkeypatch.setattr(images, "MAX_PIXELS", 19)
    with pytest.raises(PrefoptError, match="row 7: image bytes has 5 x 4 pixels"):
        load_image(png, **where)
