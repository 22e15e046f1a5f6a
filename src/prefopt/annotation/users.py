"""Building a table of users: several embeddings of each, made of few of the user's pairs, one of them clean for every pair."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm.auto import tqdm

from ..data.config import DataConfig
from ..data.example import Example
from ..data.images import image_of
from ..data.source import read_image_examples
from ..data.users import UserTable, pair_keys
from ..errors import PrefoptError
from ..files import write_atomically
from ..models.user_encoders import ONE_HOT, Shot, UserEncoder, user_encoder


def build_users(
    data: DataConfig, output: Path, encoder: str, *, shots: int = 4, draws: int = 4, seed: int = 0,
    layer: int | None = None, tokens: int | None = None, progress: bool = True,
) -> dict[str, Any]:  # fmt: skip
    """Writes a `UserTable` into `output` and returns what it came to; goes on where it was stopped.

    data     pairs of images with a `user` (or `user_id`)
    encoder  a vision-language model's folder, "module:function" or "file.py:function", or "one-hot"
    shots    pairs behind an embedding (N); users with fewer than N + 1 are left out and counted
    draws    embeddings of a user; more where few pairs would else leave a pair without a clean one
    Raises PrefoptError for data without users, and for settings that cannot be.
    """
    if shots < 1 or draws < 1:
        raise PrefoptError(f"shots = {shots} and draws = {draws} must be at least 1")
    examples, _ = read_image_examples(data, needs=("user",))
    users = by_user(examples)
    output.mkdir(parents=True, exist_ok=True)
    if encoder == ONE_HOT:
        names = sorted(users)
        codes = {name: torch.eye(len(names))[i][None, None] for i, name in enumerate(names)}
        table = UserTable(codes, {name: [[]] for name in names}, {"encoder": ONE_HOT})
    else:
        made = user_encoder(encoder, layer, tokens)
        table = _encoded(users, made, output, shots, draws, seed, progress)
    table.save(output)
    accuracy = told_apart(table.embeddings)
    return {"users": len(table.embeddings), "too_few": len(table.too_few), "told_apart": accuracy, "shape": table.shape}


Pairs = dict[str, tuple[Example, int]]
"""Key of a pair -> its example and its place among the example's pairs."""


def by_user(examples: Sequence[Example]) -> dict[str, Pairs]:
    """Every user's pairs; the same images may belong to two users with opposite labels, but count once for each."""
    users: dict[str, Pairs] = {}
    for example in examples:
        for number, key in enumerate(pair_keys(example)):
            users.setdefault(str(example.notes["user"][0]), {})[key] = (example, number)
    return users


def _encoded(
    users: Mapping[str, Pairs], encoder: UserEncoder, output: Path, shots: int, draws: int, seed: int, progress: bool
) -> UserTable:
    enough = {name: pairs for name, pairs in users.items() if len(pairs) > shots}
    too_few = {name: len(pairs) for name, pairs in users.items() if name not in enough}
    if not enough:
        raise PrefoptError(
            f"no user has more than {shots} pairs: an embedding of {shots} would hold the pair to be learnt"
        )
    parts = output / "parts"
    parts.mkdir(exist_ok=True)
    raw, chosen = {}, {}
    for name, pairs in tqdm(enough.items(), desc="users to embeddings", disable=not progress):
        rng = np.random.default_rng([seed, *hashlib.sha256(name.encode()).digest()[:8]])
        chosen[name] = draw_shots(sorted(pairs), shots, draws, rng)
        flips = rng.random((len(chosen[name]), shots)) < 0.5
        raw[name] = _of_user(pairs, chosen[name], flips, encoder, parts / f"{_digest(name)}.json")
    scale = float(torch.cat([x.flatten() for x in raw.values()]).double().square().mean().sqrt())
    if not scale > 0:
        raise PrefoptError(
            f"the encoder {encoder.record()['encoder']} embeds every user as zeros: nothing tells them apart"
        )
    return UserTable(
        {n: x / scale for n, x in raw.items()}, chosen, encoder.record() | {"shots": shots}, scale, too_few
    )


def draw_shots(keys: Sequence[str], shots: int, draws: int, rng: np.random.Generator) -> list[list[str]]:
    """`draws` sets of `shots` pairs; further ones are added until for every pair there is a set without it."""
    made = [[keys[i] for i in rng.choice(len(keys), shots, replace=False)] for _ in range(draws)]
    while common := set(made[0]).intersection(*made[1:]):
        rest = [k for k in keys if k != min(common)]
        made.append([rest[i] for i in rng.choice(len(rest), shots, replace=False)])
    return made


def _of_user(
    pairs: Pairs, chosen: Sequence[Sequence[str]], flips: np.ndarray, encoder: UserEncoder, part: Path
) -> Tensor:
    """[draws, p, d] of one user, kept in a file of its own until the table is whole."""
    job = {"encoder": encoder.record(), "shots": chosen, "flips": flips.tolist()}
    if part.is_file():
        kept = json.loads(part.read_text(encoding="utf-8"))
        if kept["job"] == json.loads(json.dumps(job)):
            return torch.tensor(kept["embedding"])
    made = [encoder(shots_of(pairs, keys, flip)) for keys, flip in zip(chosen, flips, strict=True)]
    for x in made:
        if x.shape != made[0].shape:
            raise PrefoptError(f"the encoder answered {list(x.shape)} and {list(made[0].shape)}: sizes must not change")
    stacked = torch.stack(made)
    write_atomically(part, json.dumps({"job": job, "embedding": stacked.tolist()}))
    return stacked


def shots_of(pairs: Pairs, keys: Sequence[str], flips: Sequence[bool] | np.ndarray) -> list[Shot]:
    """The pairs of these keys as an encoder reads them."""
    found = []
    for key, flip in zip(keys, flips, strict=True):
        example, number = pairs[key]
        better, worse = (image_of(example.responses[i], example) for i in example.pairs[number])
        found.append(Shot(str(example.prompt), better, worse, not bool(flip)))
    return found


def embed_pairs(data: DataConfig, table: UserTable, seed: int = 0) -> Tensor:
    """[p, d] of a new user: his pairs (as many as the table's users were embedded by) by the table's encoder.

    Raises PrefoptError for other numbers of pairs, and for tables whose users are codes.
    """
    record = {k: v for k, v in table.encoder.items() if k != "shots"}
    encoder = user_encoder(**record)
    examples, _ = read_image_examples(data)
    pairs = {key: (e, i) for e in examples for i, key in enumerate(pair_keys(e))}
    if len(pairs) != table.encoder["shots"]:
        raise PrefoptError(
            f"{', '.join(data.paths)}: {len(pairs)} different pairs; a user is embedded by {table.encoder['shots']} here"
        )
    flips = np.random.default_rng(seed).random(len(pairs)) < 0.5
    made = encoder(shots_of(pairs, list(pairs), flips)) / table.scale
    if made.shape != torch.Size(table.shape):
        raise PrefoptError(f"the encoder answered {list(made.shape)}, the table's users are {list(table.shape)}")
    return made


def told_apart(embeddings: Mapping[str, Tensor], best: int = 16) -> dict[str, float]:
    """Share of draws whose user is the nearest (or among the 16 nearest) by the mean of the other draws.

    Users with one draw are left out; NaN-free: with no one left, an empty record.
    """
    several = {n: x.flatten(1) for n, x in embeddings.items() if len(x) > 1}
    if len(several) < 2:
        return {}
    means = torch.stack([x.mean(0) for x in several.values()])
    ranks = []
    for i, x in enumerate(several.values()):
        for k in range(len(x)):
            others = means.clone()
            others[i] = (x.sum(0) - x[k]) / (len(x) - 1)
            distance = (others - x[k]).norm(dim=1)
            ranks.append(int((distance < distance[i]).sum()))
    return {
        "nearest": float(np.mean([r == 0 for r in ranks])),
        f"among_{best}": float(np.mean([r < best for r in ranks])),
    }


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:24]
