"""Other frozen models that a text method asks for by name (`sources`): per-token scores, stored like the reference's.

A source is in memory only while the store is filled; training reads the store.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ...config import ModelConfig, RunConfig
from ...errors import PrefoptError
from ...models.text import TextModel, load_text_model
from ...scoring.batch import TextBatch
from ...scoring.entry import install
from ...scoring.reference import DrawSet, StoredReference

OTHER_TOKENIZER = (
    "its tokenizer is not the policy's, so their log-probabilities of the same tokens cannot be compared; a model with "
    "another tokenizer can give sums over whole responses: prefopt data build scores --add sources=FOLDER (infifpo)"
)


def another_model(path: str, config: RunConfig, policy: TextModel, key: str) -> nn.Module:
    """The frozen model of the folder that `key` names; it must read the same token ids as the policy."""
    try:
        other = load_text_model(ModelConfig(path=path, dtype=config.model.dtype), trainable=False)
    except PrefoptError as e:
        raise PrefoptError(str(e).replace("model.path", key, 1)) from None
    if other.tokenizer.get_vocab() != policy.tokenizer.get_vocab():
        raise PrefoptError(f"{key} = {path}: {OTHER_TOKENIZER}")
    return install(other.model)


class Sources:
    """The configured sources of a run. `stores` answers by name once `prepare` has been called."""

    def __init__(self, config: RunConfig, policy: TextModel, autocast: torch.dtype | None):
        self.stores: dict[str, StoredReference] = {}
        self._models: dict[str, nn.Module] = {}
        for name, source in config.sources.items():
            model = another_model(source.path, config, policy, f"sources.{name}.path")
            self.stores[name], self._models[name] = StoredReference(model, autocast=autocast), model
        self.paths = {name: str(Path(s.path).expanduser()) for name, s in config.sources.items()}

    def prepare(self, collate: Callable[..., TextBatch], sets: Sequence[DrawSet], device: torch.device | str) -> None:
        """Fill the stores on `device`, one model after the other, and let each go."""
        for name, store in self.stores.items():
            model = self._models.pop(name).to(device)
            store.prepare(model, collate, sets, title=f"scores of {name}")
            del model

    def record(self) -> Mapping[str, Any]:
        """Paths, identities, and one fingerprint of them all."""
        named = {n: {"path": self.paths[n], "identity": s.identity} for n, s in self.stores.items()}
        whole = " ".join(f"{n}={s.identity}" for n, s in sorted(self.stores.items()))
        return {"fingerprint": hashlib.sha256(whole.encode()).hexdigest()[:32], "models": named} if named else {}
