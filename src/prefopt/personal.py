"""Pictures to a user's taste, without the trainer (PPD, 2501.06655): a user branch in any pipeline of diffusers.

    pipeline = DiffusionPipeline.from_pretrained(start)   # the model that training started from
    users = load_users(pipeline, "run")                   # the folder of `prefopt train ppd`
    users.choose("anna")                                  # one who was seen in training
    users.choose({"anna": 0.3, "ben": 0.7})               # between two tastes
    users.choose(users.embed("four_pairs.jsonl"))         # one who was not, by a few examples
    users.choose(None)                                    # nobody: the start's own pictures, bit for bit
    pipeline("a red circle").images

Beside pipelines it needs nothing of prefopt's trainer.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .data.config import DataConfig
from .data.users import RECORD, UserTable, mixed
from .errors import PrefoptError
from .models.user_branch import load_user_branch


class Users:
    """The user branch of a pipeline, and the users that it knows; made by `load_users`."""

    def __init__(self, pipeline: Any, table: UserTable | None, width: int):
        self.pipeline, self.table, self._width = pipeline, table, width
        self._chosen: Tensor | None = None
        self._guided_only = False
        pipeline.unet.register_forward_pre_hook(self._put_in, with_kwargs=True)

    @property
    def names(self) -> list[str]:
        """Users with an embedding."""
        return [] if self.table is None else sorted(self.table.embeddings)

    def embedding(self, name: str) -> Tensor:
        """[p, d] the mean of a known user's draws. Raises PrefoptError for a user who is not known."""
        return self._known().mean(name)

    def embed(self, pairs: str | Path | DataConfig, seed: int = 0) -> Tensor:
        """[p, d] of a new user: a file with as many of his pairs as known users were embedded by (four, as a rule)."""
        from .annotation.users import embed_pairs

        data = pairs if isinstance(pairs, DataConfig) else DataConfig(path=str(pairs))  # type: ignore[call-arg]
        return embed_pairs(data, self._known(), seed)

    def choose(self, user: str | Mapping[str, float] | Tensor | None, *, prompt_only: bool = False) -> None:
        """For whom the next pictures are: a name, shares of names (divided by their sum), an embedding [p, d], or nobody.

        prompt_only: the negative branch of guidance is computed without the user, who is then what guidance strengthens
        beside the text; by default both branches know him.
        Raises PrefoptError for names that are not known, shares that are negative or all zero, other sizes.
        """
        if isinstance(user, str):
            user = self.embedding(user)
        elif isinstance(user, Mapping):
            user = mixed(user, self.embedding)
        if user is not None and (user.dim() != 2 or user.shape[1] != self._width):
            raise PrefoptError(f"an embedding is [p, {self._width}] here, this one is {list(user.shape)}")
        self._chosen, self._guided_only = user, prompt_only

    def _known(self) -> UserTable:
        if self.table is None:
            raise PrefoptError(
                "the folder holds no table of users (its rows had embeddings of their own): give embeddings"
            )
        return self.table

    def _put_in(
        self, unet: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        added = dict(kwargs.get("added_cond_kwargs") or {})
        if "image_embeds" in added:
            return args, kwargs
        noisy = args[0] if args else kwargs["sample"]
        user = torch.zeros(1, self._width) if self._chosen is None else self._chosen
        rows = user.to(noisy).expand(len(noisy), -1, -1)
        if self._guided_only and self.pipeline.do_classifier_free_guidance:
            rows = torch.cat([torch.zeros_like(rows[: len(rows) // 2]), rows[len(rows) // 2 :]])
        return args, {**kwargs, "added_cond_kwargs": added | {"image_embeds": [rows]}}


def load_users(pipeline: Any, folder: str | Path, *, lam: float | None = None) -> Users:
    """Puts a folder's user branch into the pipeline that it was trained on. lam: another weight than in training.

    Raises PrefoptError for a folder without a branch, and for a pipeline of another architecture.
    """
    place = Path(folder).expanduser()
    if not hasattr(pipeline, "unet"):
        raise PrefoptError(f"a {type(pipeline).__name__} has no UNet that a user branch could be put into")
    width = load_user_branch(pipeline.unet, place, lam)
    return Users(pipeline, UserTable.load(place) if (place / RECORD).is_file() else None, width)


def parse_users(text: str) -> str | dict[str, float]:
    """ "anna", or "anna=0.3,ben=0.7". Raises PrefoptError for shares that are no numbers."""
    if "=" not in text:
        return text
    shares = {}
    for part in text.split(","):
        name, _, share = part.rpartition("=")
        try:
            shares[name.strip()] = float(share)
        except ValueError:
            raise PrefoptError(f"--user {text}: write NAME, or NAME=SHARE,NAME=SHARE") from None
    return shares
