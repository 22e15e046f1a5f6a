"""From a configuration to image examples with cached latents, and the record of what happened to every row."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from ..errors import PrefoptError
from ..models.diffusion import ImageModel
from .config import DataConfig
from .example import ENUMERATED, Example
from .experts import best_images
from .image_examples import read_split, stop_if_empty
from .images import check_image, is_moving
from .latents import ImageSet, encode_examples
from .own_captions import look_at_captions
from .prepare import carried
from .rule import CAPTIONS, PROMPT_PAIRS, class_counts, log, refuse_one_class, with_prompt_pairs
from .side_notes import SIDE_NOTES
from .store import enumerate_names
from .users import USER, UserTable, users_of


@dataclass(frozen=True)
class Pictures:
    """The examples of a run, read and checked, and the record of the rows."""

    train: list[Example]
    eval: list[Example]
    record: dict[str, Any]
    users: list[Tensor] = field(default_factory=list)  # [n, p, d] of each example, those of `eval` last


@dataclass(frozen=True)
class PreparedImages:
    """The image data of a run and its record (counts, dropped rows by reason, sizes, fingerprint, notes)."""

    train: ImageSet
    eval: ImageSet | None
    record: dict[str, Any]


def prepare_images(
    data: DataConfig,
    model: ImageModel,
    *,
    needs: Iterable[str] = (),
    flip: bool = False,
    mixed_sizes: bool = False,
    progress: bool = True,
) -> PreparedImages:
    """Reads and checks every row, then encodes what the cache does not hold.

    `needs` as in `prepare_text`. `flip`: training images are mirrored at random. `mixed_sizes`: images of one
    prompt may differ in size. Raises PrefoptError by the rule for rows, before anything is encoded.
    """
    needs = frozenset(needs)
    read = read_pictures(data, needs)
    train, held_out = read.train, read.eval
    record = read.record | {"images": _sizes(train, model.resolution)}
    if (mixed := record["images"]["examples_of_mixed_size"]) and not mixed_sizes:
        raise PrefoptError(
            f"{', '.join(data.paths)}: the images of {mixed} prompts differ in size (the first: "
            f"{_first_mixed(train)}); make them alike, or set denoising.mixed_sizes = resize: each is then resized and "
            "cropped for itself"
        )
    if CAPTIONS in needs:
        record["captions"], remarks = look_at_captions(train, model.tokens_read)
        for remark in remarks:
            log.warning("%s: %s", ", ".join(data.paths), remark)
    encoded = encode_examples(train, model, flip=flip, progress=progress)
    evaluated = encode_examples(held_out, model, held_out=True, progress=progress) if held_out else None
    _tell_of_equal(encoded, data, CAPTIONS in needs)
    if read.users:
        encoded = replace(encoded, users=read.users[: len(train)])
        evaluated = evaluated and replace(evaluated, users=read.users[len(train) :])
    return PreparedImages(encoded, evaluated, record | {"fingerprint": encoded.fingerprint})


def _tell_of_equal(encoded: ImageSet, data: DataConfig, own_captions: bool) -> None:
    """Pairs of one picture under two names: a margin of 0, whatever the model. PrefoptError where there are no others."""
    pairs = [
        images[a] == images[b] for e, images in zip(encoded.examples, encoded.images, strict=True) for a, b in e.pairs
    ]
    if own_captions or not any(pairs):
        return
    said = f"{', '.join(data.paths)}: {sum(pairs)} of {len(pairs)} pairs are of equal pictures under two names"
    if all(pairs):
        raise PrefoptError(f"{said}, so there is nothing to prefer; give the pictures that were compared")
    log.warning("%s: they teach nothing", said)


def read_pictures(data: DataConfig, needs: Iterable[str] = ()) -> Pictures:
    """Every row, read and checked by the rule for rows; what is held out is set apart."""
    asked = frozenset(needs) | frozenset(data.use)
    train, held_out, record = read_split(data, asked)
    if data.top is not None:
        train = best_images(train, data.top, data.paths)
    stop_if_empty(train, held_out, data, record["rows"])
    if PROMPT_PAIRS in asked:
        train, held_out = with_prompt_pairs(train), with_prompt_pairs(held_out)
    if "label" in asked:
        labels = Counter(bool(x) for e in train for x in e.notes["label"])
        refuse_one_class(set(labels), data.paths)
        record["labels"] = class_counts(labels)
    users: list[Tensor] = []
    if USER in asked:
        table = None if data.users is None else UserTable.load(data.users)
        train, users, record["users"] = users_of(train, table)
        held_out, theirs, _ = users_of(held_out, table) if held_out else (held_out, [], {})
        users += theirs
        if few := record["users"]["rows_of_users_with_too_few_pairs"]:
            log.warning("%s: %d rows dropped: of users with too few pairs for an embedding", ", ".join(data.paths), few)
    numbered, notes = _numbered([*train, *held_out], asked)
    train, held_out = numbered[: len(train)], numbered[len(train) :]
    record |= {"paths": data.paths, "train": {"examples": len(train)}, "ranges": _ranges(train, asked, data.paths)}
    record |= notes | ({"eval": {"examples": len(held_out)}} if held_out else {})
    return Pictures(train, held_out, record, users)


def _numbered(examples: Sequence[Example], asked: frozenset[str]) -> tuple[list[Example], dict[str, Any]]:
    """Examples with the notes that all of them have, names as numbers; and what the record says about it."""
    sums = Counter(name for e in examples for name in e.notes if carried(name, asked))
    kept = sorted(name for name, n in sums.items() if n == len(examples))
    names = {n: enumerate_names({v for e in examples for v in e.notes[n]}) for n in kept if n in ENUMERATED}

    def values(name: str, example: Example) -> list[Any]:
        given = list(example.notes[name])
        return [names[name].index(v) for v in given] if name in names else given

    numbered = [replace(e, notes={n: values(n, e) for n in kept}) for e in examples]
    available = [*kept, *(["pairs"] if all(e.pairs for e in examples) else [])]
    partial = {name: n for name, n in sums.items() if name not in kept}
    return numbered, {"notes": available, "names": names, "incomplete_notes": partial}


def _ranges(examples: Sequence[Example], asked: frozenset[str], paths: Sequence[str]) -> dict[str, list[float]]:
    """Least and largest of the numbers that a method asks for. Raises PrefoptError where scores are all the same."""
    found = {}
    for name in sorted(asked & set(SIDE_NOTES)):
        numbers = [x for e in examples for x in e.notes.get(name, ()) if isinstance(x, float)]
        if numbers:
            found[name] = [min(numbers), max(numbers)]
    if len(set(found.get("reward_score", (0, 1)))) == 1:
        raise PrefoptError(
            f"{', '.join(paths)}: every 'reward_score' is {found['reward_score'][0]:g}, so no response is better than "
            "another; score them anew (prefopt data build scores --add reward_score=...)"
        )
    return found


def _sizes(examples: Sequence[Example], resolution: int) -> dict[str, Any]:
    """How many images the resize rule touches, and how many examples mix sizes: worth a look before training."""
    counts = {"resolution": resolution, "resized": 0, "enlarged": 0, "examples_of_mixed_size": 0, "moving": 0}
    for example in examples:
        sizes = [check_image(r, Path(example.file).parent) for r in example.responses]
        counts["resized"] += sum(size != (resolution, resolution) for size in sizes)
        counts["enlarged"] += sum(min(size) < resolution for size in sizes)
        counts["examples_of_mixed_size"] += len(set(sizes)) > 1
        counts["moving"] += sum(is_moving(r, Path(example.file).parent) for r in example.responses)
    if counts["moving"]:
        log.warning("%d images have several frames: only the first is read", counts["moving"])
    return counts


def _first_mixed(examples: Sequence[Example]) -> str:
    """Where the first images of differing size stand, and their sizes."""
    for example in examples:
        sizes = [check_image(r, Path(example.file).parent) for r in example.responses]
        if len(set(sizes)) > 1:
            return f"{example.origin}, {' and '.join(f'{w} x {h}' for w, h in sizes)}"
    return ""
