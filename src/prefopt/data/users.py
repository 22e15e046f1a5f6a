"""Users as embeddings (PPD, 2501.06655): a table of several cached draws per user, and which of them a pair may be
learnt with.

A draw is made of a few of the user's own pairs, and never serves the pairs that it was made of: the answer would be in
the question. Pairs are known by their content (caption and both images), not by row numbers, so the table holds for any
arrangement of the files.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import PrefoptError
from ..files import write_atomically
from .example import Example

USER = "user_embedding|user"
"""The need of a method that reads who chose."""

WEIGHTS, RECORD = "users.safetensors", "users.json"
SHOWN = 8  # names in a message


@dataclass(frozen=True)
class UserTable:
    """Embeddings [draws, p, d] of every user, and the pairs behind each draw.

    encoder  what made them (see `models.user_encoders`), so that a new user can be embedded alike
    scale    what raw embeddings were divided by: their root mean square over the table
    too_few  users left out, with the number of pairs that they have
    """

    embeddings: Mapping[str, Tensor]
    shots: Mapping[str, Sequence[Sequence[str]]]
    encoder: Mapping[str, Any]
    scale: float = 1.0
    too_few: Mapping[str, int] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_alike(self.embeddings)

    @property
    def shape(self) -> tuple[int, int]:
        """(p, d): tokens of an embedding and their width."""
        first = next(iter(self.embeddings.values()))
        return first.shape[1], first.shape[2]

    def draws(self, user: str, pairs: Sequence[str]) -> Tensor:
        """[n, p, d] the user's draws that were not made of any of these pairs. Raises PrefoptError if there is none."""
        every = self.of(user)
        clean = [i for i, made_of in enumerate(self.shots[user]) if not set(pairs) & set(made_of)]
        if not clean:
            raise PrefoptError(
                f"every embedding of user '{user}' was made of the very pair that is to be learnt: build the table anew "
                "with prefopt data build users, which leaves a draw for each pair, or take this pair out of the data"
            )
        return every[clean]

    def mean(self, user: str) -> Tensor:
        """[p, d] of a user who has been seen: the mean of all draws."""
        return self.of(user).mean(0)

    def of(self, user: str) -> Tensor:
        """[draws, p, d] of a user. Raises PrefoptError, with those that there are, for another."""
        if user not in self.embeddings:
            names = sorted(self.embeddings)
            more = ", ..." if len(names) > SHOWN else ""
            raise PrefoptError(f"the table of users has no '{user}'; it has {', '.join(names[:SHOWN])}{more}")
        return self.embeddings[user]

    def save(self, folder: Path) -> None:
        """Writes WEIGHTS and RECORD; the record last, so that it never describes what is not there."""
        from safetensors.torch import save

        folder.mkdir(parents=True, exist_ok=True)
        names = sorted(self.embeddings)
        tensors = {str(i): self.embeddings[name].contiguous() for i, name in enumerate(names)}
        write_atomically(folder / WEIGHTS, save(tensors))
        record = {"users": names, "shots": {n: list(map(list, self.shots[n])) for n in names}, "scale": self.scale}
        record |= {"encoder": dict(self.encoder), "too_few": dict(self.too_few)}
        write_atomically(folder / RECORD, json.dumps(record, indent=1, ensure_ascii=False) + "\n")

    @classmethod
    def load(cls, folder: str | Path) -> UserTable:
        """Raises PrefoptError for a folder without a table, or with a damaged one."""
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        place = Path(folder).expanduser()
        if not (place / RECORD).is_file():
            raise PrefoptError(f"{folder} holds no table of users ({RECORD}); make one with prefopt data build users")
        try:
            record = json.loads((place / RECORD).read_text(encoding="utf-8"))
            tensors = load_file(place / WEIGHTS)
            embeddings = {name: tensors[str(i)] for i, name in enumerate(record["users"])}
            return cls(embeddings, record["shots"], record["encoder"], record["scale"], record["too_few"])
        except (ValueError, KeyError, OSError, SafetensorError) as error:
            raise PrefoptError(f"{folder}: the table of users is damaged ({error}); build it anew") from None

    @property
    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for name in sorted(self.embeddings):
            digest.update(f"{name} {self.shots[name]}".encode())
            digest.update(self.embeddings[name].contiguous().numpy().tobytes())
        return digest.hexdigest()


def check_alike(embeddings: Mapping[str, Tensor]) -> None:
    """Raises PrefoptError where embeddings [draws, p, d] are none, not finite, or of different sizes."""
    if not embeddings:
        raise PrefoptError("there is no user with an embedding")
    first = next(iter(embeddings))
    for name, x in embeddings.items():
        if x.dim() != 3 or x.shape[1:] != embeddings[first].shape[1:]:
            raise PrefoptError(
                f"the embedding of user '{name}' has {list(x.shape[1:])} tokens and numbers, that of '{first}' "
                f"{list(embeddings[first].shape[1:])}: all users need the same"
            )
        if not bool(torch.isfinite(x).all()):
            raise PrefoptError(f"the embedding of user '{name}' is not finite")


def mixed(shares: Mapping[str, float], embedding: Any) -> Tensor:
    """sum_r w_r u_r of the embeddings `embedding(name)` [p, d]; shares are divided by their sum.

    Raises PrefoptError for shares that are negative, not finite or all zero.
    """
    total = sum(shares.values())
    if not shares or not all(0 <= w < float("inf") for w in shares.values()) or not total > 0:
        told = ", ".join(f"{n}={w:g}" for n, w in shares.items()) or "nothing"
        raise PrefoptError(f"shares of users ({told}) must not be negative, and not all zero")
    return sum(w / total * embedding(name) for name, w in shares.items())  # type: ignore[return-value]


def pair_keys(example: Example) -> list[str]:
    """What each pair of an example is known by: a hash of its caption and of both images, whichever won."""
    from .latents import content_of

    digests = [hashlib.sha256(content_of(image, example)).digest() for image in example.responses]
    caption = str(example.prompt).encode()
    return [
        hashlib.sha256(caption + b"".join(sorted((digests[a], digests[b])))).hexdigest()[:24] for a, b in example.pairs
    ]


def inline(value: Any, where: str) -> Tensor:
    """[1, p, d] of a row's own `user_embedding`: d numbers, or p lists of them. Raises PrefoptError for anything else."""
    try:
        x = torch.tensor(value, dtype=torch.float32)
    except (TypeError, ValueError):
        x = torch.zeros(())
    if x.dim() == 1:
        x = x[None]
    if x.dim() != 2 or not x.numel() or not bool(torch.isfinite(x).all()):
        raise PrefoptError(f"{where}: 'user_embedding' must be d finite numbers, or p lists of d")
    return x[None]


def users_of(
    examples: Sequence[Example], table: UserTable | None
) -> tuple[list[Example], list[Tensor], dict[str, Any]]:
    """Examples with the embeddings [n, p, d] that each may be learnt with, and what the record says about users.

    Rows of users whom the table left out (too few pairs) are dropped and counted. Raises PrefoptError where a row has
    neither an embedding nor a user of the table, where sizes differ, and where only leaking embeddings are left.
    """
    kept: list[Example] = []
    found: list[Tensor] = []
    dropped = 0
    for example in examples:
        own, user = example.notes.get("user_embedding"), example.notes.get("user")
        if table is not None and user is not None:
            if user[0] in table.too_few:
                dropped += 1
                continue
            try:
                draws = table.draws(user[0], pair_keys(example))
            except PrefoptError as error:
                raise PrefoptError(f"{example.origin}: {error}") from None
        elif own is not None:
            draws = inline(own, example.origin)
        else:
            raise PrefoptError(
                f"{example.origin}: a user and no 'user_embedding'; make embeddings of the users' own pairs with prefopt "
                "data build users, and name the folder in data.users"
            )
        if found and draws.shape[1:] != found[0].shape[1:]:
            raise PrefoptError(
                f"{example.origin}: an embedding of {list(draws.shape[1:])}, the first one has {list(found[0].shape[1:])}"
            )
        notes = {k: v for k, v in example.notes.items() if k != "user_embedding"}
        kept.append(Example(**{**vars(example), "notes": notes}))
        found.append(draws)
    if not kept:
        raise PrefoptError("no row is left: all are of users with too few pairs")
    names = {e.notes["user"][0] for e in kept if "user" in e.notes}
    record: dict[str, Any] = {
        "users": len(names),
        "rows_of_users_with_too_few_pairs": dropped,
        "tokens": list(found[0].shape[1:]),
    }
    return kept, found, record | ({} if table is None else {"table": table.fingerprint})
