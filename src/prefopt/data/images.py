"""Images out of what rows hold: paths, bytes, base64, PIL images, and the {bytes, path} of `datasets`."""

from __future__ import annotations

import base64
import binascii
import hashlib
import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from prefopt.data.fields import Unreadable, short
from prefopt.errors import PrefoptError

if TYPE_CHECKING:
    from PIL.Image import Image

    from prefopt.data.example import Example

MAX_PIXELS = 64 * 1024 * 1024
"""Larger images are refused: they are decompression bombs or mistakes, and no diffusion model takes them."""


def load_image(value: Any, *, base: Path = Path(), file: str = "", row: int = 0) -> Image:
    """The image, decoded, as PIL RGB (transparency over white, EXIF rotation applied).

    Relative paths start from `base`. Raises PrefoptError with file and row for what is missing, corrupt or larger
    than `MAX_PIXELS`.
    """
    try:
        return _rgb(_open(value, base))
    except Unreadable as error:
        raise PrefoptError(f"{file} row {row}: {error}. Mend or remove the row") from error


def image_of(value: Any, example: Example) -> Image:
    """A response (or another picture) of an example, its paths being those of the example's file; see `load_image`."""
    return load_image(value, base=Path(example.file).parent, file=example.file, row=example.row)


def check_image(value: Any, base: Path = Path()) -> tuple[int, int]:
    """Width and height, from the image's head alone. Raises Unreadable."""
    return _open(value, base).size


class Look(NamedTuple):
    """What there is to say about a picture that was decoded whole."""

    size: tuple[int, int]
    moving: bool  # several frames, of which the first is read
    digest: bytes  # equal for equal pictures


def look_at(value: Any, base: Path = Path()) -> Look:
    """Decodes the picture whole (a JPEG at an eighth, which reads all of it), for the doctor. Raises Unreadable."""
    image = _open(value, base)
    size, moving = image.size, is_moving(image)
    try:
        image.draft("RGB", (1, 1))
        digest = hashlib.blake2b(image.tobytes(), digest_size=16).digest()
    except (OSError, ValueError, SyntaxError) as error:
        raise Unreadable(f"image {short(_named(value))} cannot be decoded ({error})", "image") from error
    return Look(size, moving, digest + repr(size).encode())


def is_moving(value: Any, base: Path = Path()) -> bool:
    """Has it several frames? Only the first is ever read."""
    return bool(getattr(_open(value, base), "is_animated", False))


def _named(value: Any) -> Any:
    return (
        (value.get("path") or "bytes") if isinstance(value, Mapping) else value if isinstance(value, str) else "bytes"
    )


def is_image(value: Any) -> bool:
    """Whether a response is an image: bytes, a PIL image, {bytes, path}, or text that names an image file."""
    if isinstance(value, (bytes, bytearray)):
        return True
    if isinstance(value, Mapping):
        return "bytes" in value or "path" in value
    if isinstance(value, (str, Path)):
        text = str(value)
        return text.startswith("data:image/") or (
            len(text) < 4096 and "\n" not in text and Path(text).suffix.lower() in IMAGE_SUFFIXES
        )
    return hasattr(value, "convert") and hasattr(value, "size")


IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})


def _open(value: Any, base: Path) -> Image:
    from PIL import Image, UnidentifiedImageError

    if isinstance(value, Image.Image):
        return _sized(value, "image")
    source, name = _source(value, base)
    try:
        return _sized(Image.open(source), name)
    except Image.DecompressionBombError as error:
        raise Unreadable(f"{name} is too large ({error})", "image") from error
    except FileNotFoundError as error:
        raise Unreadable(f"{name} does not exist", "image") from error
    except (UnidentifiedImageError, OSError, ValueError, SyntaxError) as error:
        unknown = isinstance(error, UnidentifiedImageError)  # whose words hold an address in memory
        why = "no known format" if unknown else getattr(error, "strerror", None) or error
        raise Unreadable(f"{name} cannot be decoded as an image ({why})", "image") from error


def _source(value: Any, base: Path) -> tuple[Any, str]:
    """What PIL opens, and its name for messages."""
    if isinstance(value, Mapping):
        name = f"image {short(value.get('path') or 'bytes')}"
        if value.get("bytes") is not None:
            source, _ = _source(value["bytes"], base)
            return source, name
        if value.get("path"):
            return _source(value["path"], base)
        raise Unreadable("image has neither bytes nor a path", "image")
    if isinstance(value, (bytes, bytearray)):
        return io.BytesIO(value), "image bytes"
    if isinstance(value, str) and value.startswith("data:image/"):
        return _decoded(value.partition(",")[2])
    if isinstance(value, (str, Path)):
        if not str(value).strip():
            raise Unreadable("image path is empty", "image")
        if len(str(value)) > 4096:  # no path is so long: bytes that went through JSON
            return _decoded(str(value))
        if "://" in str(value)[:12]:
            raise Unreadable(f"image {value} is a web address; download it, and give the file", "image")
        return base / Path(value).expanduser(), f"image {value}"
    raise Unreadable(f"image is {type(value).__name__}, expected a path, bytes or a PIL image", "image")


def _decoded(text: str) -> tuple[Any, str]:
    try:
        return io.BytesIO(base64.b64decode(text, validate=True)), "base64 image"
    except binascii.Error as error:
        raise Unreadable(f"image is no valid base64 ({error})", "image") from error


def _sized(image: Image, name: str) -> Image:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise Unreadable(f"{name} has {width} x {height} pixels, more than the {MAX_PIXELS} that are accepted", "image")
    if image.mode == "F" or (image.mode == "I" and image.format != "PNG"):
        raise Unreadable(
            f"{name} holds numbers of 32 bits, and nobody says which is white; save it with 8 or 16 bits", "image"
        )
    return image


def _rgb(image: Image) -> Image:
    import numpy as np
    from PIL import Image as pil
    from PIL import ImageOps

    try:
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I"):  # 16 bits: a plain conversion would cut at 255
            image = pil.fromarray((np.asarray(image) / 257).round().clip(0, 255).astype("uint8"))
        if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
            image = image.convert("RGBA")
            return pil.alpha_composite(pil.new("RGBA", image.size, "white"), image).convert("RGB")
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError) as error:
        raise Unreadable(f"image cannot be decoded ({error})", "image") from error
