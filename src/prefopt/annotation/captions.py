"""`prefopt data build captions`: a caption for each side of a pair of pictures (DCPO, 2502.06023).

c: both by a captioner; p: the prompt for the better, the prompt perturbed for the worse; h: the captioner's for the
better, its caption of the worse perturbed.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal, get_args

from ..data.config import DataConfig
from ..data.example import Example
from ..data.images import image_of
from ..data.messages import text_of
from ..data.portable import portable
from ..data.readers import Row, content_hash
from ..data.rule import Ledger, fit
from ..errors import PrefoptError, first_line
from ..rewards.callables import ask, load_function, source_hash
from .build import examples
from .growing import grow
from .perturb import Perturber, checked, load_perturber

log = logging.getLogger("prefopt")
Way = Literal["c", "p", "h"]
Captioner = Callable[[list[Any], list[str]], list[str]]


def build_captions(
    data: DataConfig,
    output: Path,
    *,
    way: Way,
    captioner: str | Captioner | None = None,
    perturber: str | Perturber | None = None,
    strength: str | None = None,
    seed: int = 0,
    progress: bool = True,
) -> dict[str, Any]:
    """Write the pairs of `data` with a caption for each side into the JSONL `output`, which `prefopt train dcpo` reads.

    captioner: module:function or file.py:function (images, prompts) -> captions, or the folder of an image-to-text model.
    perturber: "words" (built in), module:function (texts, strength) -> texts, or the folder of a paraphraser.
    strength: weak, medium, strong (40, 60, 80), or a number of 0, 20, .., 100. Ties are dropped and counted.
    Returns the record that OUTPUT.job holds. PrefoptError for what does not fit together.
    """
    if way not in get_args(Way):
        raise PrefoptError(f"--way {way}: there are c (captions), p (perturbed prompt) and h (both)")
    needed = {"captioner": way in ("c", "h"), "perturber": way in ("p", "h")}
    if needed["captioner"] != (captioner is not None):
        raise PrefoptError(f"--way {way} {'needs' if needed['captioner'] else 'has no use for'} a captioner")
    if way == "c" and (perturber or strength):
        raise PrefoptError("--way c has no use for a perturber and its strength: nothing is perturbed")
    strength = strength or "medium"
    rows, ledger = _pairs(data)
    say = None if captioner is None else load_captioner(captioner)
    texts = [text_of(e.prompt) for _, e in rows]
    change = load_perturber(perturber or "words", strength, texts, seed) if needed["perturber"] else None
    asked = unchanged = 0

    def make(chunk: Sequence[tuple[Row, Example]]) -> list[dict[str, Any]]:
        nonlocal asked, unchanged
        prompts = [text_of(e.prompt) for _, e in chunk]
        sides = [[e.responses[e.pairs[0][side]] for _, e in chunk] for side in (0, 1)]
        better = prompts if say is None else say(_opened(sides[0], chunk), prompts)
        worse = prompts if say is None else say(_opened(sides[1], chunk), prompts)
        if change is not None:
            before, worse = worse, change(worse)
            asked += len(chunk)
            unchanged += sum(a == b for a, b in zip(before, worse, strict=True))
        return [
            _written(row, example, (z_w, z_l), output.parent)
            for (row, example), z_w, z_l in zip(chunk, better, worse, strict=True)
        ]

    job = {
        "content": [content_hash(p, split=data.split, subset=data.subset) for p in data.paths],
        "data": data.model_dump(include={"layout", "columns", "split", "subset", "limit"}),
        "way": way,
        "captioner": _named(captioner),
        "perturber": None if change is None else _named(perturber or "words"),
        "strength": strength if change is not None else None,
        "seed": seed,
    }
    record = grow(output, job, rows, make, title="captions", progress=progress)
    ledger.report(", ".join(data.paths))
    if unchanged:
        log.warning("%d of %d perturbed captions are what they were: a greater strength?", unchanged, asked)
    return record


def load_captioner(spec: str | Captioner) -> Captioner:
    """What `spec` names, its answers checked: one text that is not empty for each picture."""
    function: Callable[[list[Any], list[str]], Any]
    if callable(spec):
        function, name = spec, getattr(spec, "__name__", type(spec).__name__)
    elif Path(spec).expanduser().is_dir():
        function, name = _ByModel(Path(spec).expanduser()), spec
    else:
        function, name = load_function(spec, ("images", "prompts"), "captioner"), spec

    def say(images: list[Any], prompts: list[str]) -> list[str]:
        who = f"captioner {name!r}"
        return checked(ask(function, who, images, prompts), len(images), who)

    return say


class _ByModel:
    """An image-to-text model of transformers (BLIP, GIT, vision encoder-decoder): greedy captions of up to 64 tokens."""

    def __init__(self, folder: Path):
        import torch
        from transformers import AutoModelForImageTextToText, AutoProcessor

        try:
            self.model: Any = AutoModelForImageTextToText.from_pretrained(folder).eval()
            self.processor = AutoProcessor.from_pretrained(folder)
        except Exception as e:
            raise PrefoptError(
                f"captioner {folder}: transformers cannot load it as an image-to-text model: {first_line(e, 200)}"
            ) from None
        self.model.to("cuda" if torch.cuda.is_available() else "cpu")

    def __call__(self, images: list[Any], prompts: list[str]) -> list[str]:
        import torch

        read = self.processor(images=images, return_tensors="pt").to(self.model.device)
        with torch.no_grad():
            ids = self.model.generate(pixel_values=read["pixel_values"], max_new_tokens=64, do_sample=False)
        return self.processor.batch_decode(ids, skip_special_tokens=True)


def _pairs(data: DataConfig) -> tuple[list[tuple[Row, Example]], Ledger]:
    """The rows that hold one pair of pictures; ties and the like are dropped."""
    ledger, found = Ledger(), []
    for row, whole in examples(data, data.paths, ledger, "image"):
        if whole is None:
            continue
        with ledger.row(row):
            example = fit(whole, data, frozenset({"pairs"}))
            if len(example.responses) != 2 or len(example.pairs) != 1:
                raise PrefoptError(f"{example.origin}: holds {len(example.responses)} pictures; captions are of pairs")
            found.append((row, example))
    ledger.stop_if_unreadable()
    if not found:
        raise PrefoptError(f"{', '.join(data.paths)}: no row holds a pair of pictures with a winner")
    return found, ledger


def _opened(values: Sequence[Any], chunk: Sequence[tuple[Row, Example]]) -> list[Any]:
    return [image_of(v, e) for v, (_, e) in zip(values, chunk, strict=True)]


def _written(row: Row, example: Example, said: tuple[str, str], folder: Path) -> dict[str, Any]:
    """The row's own columns, and a caption for each side in the order of its pictures."""
    kept = portable(dict(row.values), row.base, folder)
    first, second = said if example.pairs[0] == (0, 1) else said[::-1]
    names = ("caption_0", "caption_1") if "jpg_0" in row.values else ("caption_chosen", "caption_rejected")
    if "jpg_0" not in row.values and "chosen" not in row.values:
        return {**kept, "captions": [first, second]}
    return {**kept, names[0]: first, names[1]: second}


def _named(spec: Any) -> str | None:
    """A specification and what it holds, so that an edited function is another job."""
    if spec is None:
        return None
    if callable(spec):
        return f"{getattr(spec, '__name__', spec)} {source_hash(spec)}"
    if ":" in spec and not Path(spec).expanduser().exists():
        return f"{spec} {source_hash(load_function(spec, None, 'function'))}"
    return str(spec)
