"""A bank of fixed draws: of every example the same few noise levels and noises over and over, so that the reference's
errors on them are computed once, kept on disk, and no later epoch or run asks the reference again.

What is kept is found by a digest of all that it depends on: the reference's weights, and the very latents, noise, time
and caption that it saw. So runs with other methods, betas or learning rates share it, and nothing stale is ever read.
Every process appends whole records to a file of its own; a killed one leaves at most half a record, which is not read.
"""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..files import cache_folder

RECORD = np.dtype([("key", "<u8"), ("error", "<f8")])


@dataclass
class Bank:
    """Errors of one reference, by key.

    draws     of each example: epoch e repeats the draws of epoch e mod `draws`
    identity  of the reference and of how it is computed
    place     folder of all banks, by default that of the user's cache
    """

    draws: int
    identity: str
    place: Path = field(default_factory=lambda: cache_folder("bank"))

    def __post_init__(self) -> None:
        folder = self.place / hashlib.sha256(self.identity.encode()).hexdigest()[:16]
        folder.mkdir(parents=True, exist_ok=True)
        self._mine = folder / f"{os.uname().nodename}-{os.getpid()}-{uuid.uuid4().hex[:8]}.bin"
        found = [_records(path) for path in sorted(folder.glob("*.bin"))]
        known = np.concatenate([*found, np.empty(0, RECORD)])
        self._keys, first = np.unique(known["key"], return_index=True)
        self._errors = known["error"][first]
        self._new: dict[int, float] = {}

    def keys(self, tensors: Sequence[Tensor], condition: Mapping[str, Tensor], rows: int) -> list[int]:
        """One key for each of the `rows` images of a group, of all tensors that its denoising depends on."""
        digest = hashlib.blake2b(self.identity.encode(), digest_size=8)
        for name, x in [*enumerate(tensors), *sorted(condition.items())]:
            digest.update(f"{name} {x.dtype} {list(x.shape)}".encode())
            digest.update(x.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        start = int.from_bytes(digest.digest(), "little")
        return [(start + row) % 2**63 for row in range(rows)]

    def find(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Errors [R] (float64, 0 where unknown) of keys [R], and which are known [R]."""
        asked = keys.numpy().astype(np.uint64)
        errors, known = np.zeros(len(asked)), np.zeros(len(asked), bool)
        if len(self._keys):
            at = np.searchsorted(self._keys, asked).clip(max=len(self._keys) - 1)
            known = self._keys[at] == asked
            errors[known] = self._errors[at[known]]
        for n, key in enumerate(asked.tolist()):
            if not known[n] and key in self._new:
                errors[n], known[n] = self._new[key], True
        return torch.from_numpy(errors), torch.from_numpy(known)

    def keep(self, keys: Tensor, errors: Tensor) -> None:
        """Writes errors [R] under keys [R]; they are found from now on, and by every later run."""
        fresh = {k: e for k, e in zip(keys.tolist(), errors.double().tolist(), strict=True) if k not in self._new}
        self._new |= fresh
        records = np.array(list(fresh.items()), RECORD)
        with self._mine.open("ab") as file:
            file.write(records.tobytes())

    def scores(self, keys: Tensor, compute: Callable[[], Tensor]) -> Tensor:
        """[R] what is kept under keys [R] (float64, on the CPU), computed and kept if any of it is unknown."""
        found, known = self.find(keys)
        if not bool(known.all()):
            made = compute().double().cpu()
            self.keep(keys[~known], made[~known])
            found = torch.where(known, found, made)
        return found


def _records(path: Path) -> np.ndarray:
    """The whole records of a file."""
    content = path.read_bytes()
    return np.frombuffer(content[: len(content) // RECORD.itemsize * RECORD.itemsize], RECORD)
