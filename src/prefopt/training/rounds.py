"""Training data that are made while a run trains: rounds of roll-outs of the policy of the moment, inside ONE run.

A round is a pass of transformers' Trainer (or several over the same data). When it begins, the policy as it is then
makes the round's data, cut into pieces: processes share the pieces, each is written whole or not at all under
OUTPUT/rounds/NNN, and what is there is never made again. All draws depend on (seed, round, place) only, so a run that is
killed, in a round or between two, goes on bit for bit: optimiser, schedule and reference are those of the one run.

What is made, and how examples come of it, is a `Maker`'s matter; nothing here knows of images or text.
"""

from __future__ import annotations

import logging
import shutil
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

import numpy as np
import torch
from safetensors.torch import load_file, save
from torch import Tensor, nn
from transformers import TrainingArguments

from ..errors import PrefoptError
from ..files import write_atomically
from ..scoring.modes import inference
from . import checkpoints
from .processes import decided_by_main, on_all
from .sampler import StepSampler

if TYPE_CHECKING:
    from .trainer import Trainer

log = logging.getLogger("prefopt")
FOLDER = "rounds"


class Made(NamedTuple):
    """A round's examples, and numbers about it for the log."""

    examples: Sequence[Any]
    told: Mapping[str, float]


class Maker(Protocol):
    """What a modality and a method bring."""

    pieces: int  # that a round is cut into: each is made, written and shared out by itself
    most: int  # examples that a round makes at most
    together: int  # consecutive examples that one optimiser step sees together (the times of one trajectory)
    cost: int  # of an example, as `Examples.tokens` counts
    blank: Any  # an example of the right shape, for what is estimated before there is one

    def piece(self, policy: nn.Module, number: int, piece: int, folder: Path) -> Mapping[str, Tensor]:
        """Roll-outs of one piece of a round by the policy as it is now. It may write further files into `folder`."""
        ...

    def made(self, number: int, pieces: Sequence[Mapping[str, Tensor]], folder: Path) -> Made:
        """The examples of a whole round. PrefoptError where nothing can be learnt from it; Waiting for people."""
        ...


class Waiting(PrefoptError):
    """The round cannot go on before people have done their part; started again, the run goes on."""


class Rounds:
    """A data set whose examples are those of the current round.

    passes: over a round's data before the next one. keep: all rounds stay on disk (what people have marked); else those
    that no checkpoint needs any more are removed.
    """

    def __init__(self, maker: Maker, output: Path, rounds: int, passes: int = 1, keep: bool = False):
        self.maker, self.folder, self.rounds, self.passes, self.keep = maker, output / FOLDER, rounds, passes, keep
        self.updates = 1  # optimiser steps of a pass
        self._examples: Sequence[Any] = ()

    def __len__(self) -> int:
        return len(self._examples) or self.maker.most

    def __getitem__(self, index: int) -> Any:
        return self._examples[index] if self._examples else self.maker.blank

    @property
    def tokens(self) -> np.ndarray:
        return np.full(len(self), self.maker.cost)

    @property
    def steps(self) -> int:
        """Optimiser steps of a round."""
        return self.updates * self.passes

    def settle(self, given: Mapping[str, Any], args: TrainingArguments, per_step: int) -> None:
        """Write the length of the run into transformers' arguments. given: the section `train` as configured.

        Raises PrefoptError for another length, and for steps that do not divide a round.
        """
        for key, usual in (("max_steps", -1), ("num_train_epochs", 1)):
            if given.get(key) not in (None, usual):
                raise PrefoptError(f"train.{key} has no effect: rollout.rounds says how long this method trains")
        most, together = self.maker.most, self.maker.together
        if most % per_step or per_step % together:
            whole = f", in wholes of {together}" if together > 1 else ""
            raise PrefoptError(
                f"a round makes up to {most} examples{whole}, and an optimiser step takes {per_step} "
                "(train.per_device_train_batch_size x gradient_accumulation_steps x processes): the second must divide "
                "the first" + (f" and be a multiple of {together}" if together > 1 else "")
            )
        self.updates = most // per_step
        args.num_train_epochs = self.rounds * self.passes

    def begin(self, number: int, policy: nn.Module, args: TrainingArguments, *, inside: bool) -> Mapping[str, float]:
        """Make round `number`, or read it where it was made already; what is told of it. All processes call this.

        inside: the run goes on in the middle of the round, whose weights at the start are gone. PrefoptError where its
        files are, too.
        """
        folder = self.folder / f"{number:03d}"
        places = [folder / f"piece-{i:03d}.safetensors" for i in range(self.maker.pieces)]

        def make() -> None:
            missing = [i for i, place in enumerate(places) if not place.exists()]
            if missing and inside:
                raise PrefoptError(
                    f"{places[missing[0]]} is gone: the round that this run is in the middle of. Put it back, or start "
                    "again in another folder"
                )
            folder.mkdir(parents=True, exist_ok=True)
            for i in missing:
                if i % args.world_size == args.process_index:
                    write_atomically(places[i], save(_plain(self.maker.piece(policy, number, i, folder))))

        on_all(args, make)
        made = on_all(args, lambda: self.maker.made(number, [_read(p) for p in places], folder))
        self._examples = made.examples
        if not self.keep:
            decided_by_main(args, lambda: self._forget(Path(str(args.output_dir))))
        return made.told

    def _forget(self, output: Path) -> None:
        """Remove the rounds before that of the oldest checkpoint: nothing goes back behind it."""
        whole = [int(p.parent.name.split("-")[-1]) for p in output.glob(f"checkpoint-*/{checkpoints.WHOLE}")]
        first = min(whole, default=0) // self.steps
        for folder in self.folder.iterdir():
            if folder.name.isdigit() and int(folder.name) < first:
                shutil.rmtree(folder)


def enter_round(trainer: Trainer, epoch: int) -> None:
    """At the start of a pass: where the policy makes its own data, it makes the round's, or reads what it made."""
    rounds = trainer.task.rounds
    if rounds is None:
        return
    policy: Any = trainer.accelerator.unwrap_model(trainer.model)
    number, since = epoch // rounds.passes, trainer.state.global_step % rounds.steps
    with inference(policy), torch.no_grad(), trainer.compute_loss_context_manager():
        told = rounds.begin(number, policy, trainer.args, inside=since > 0)
    if since == 0:
        trainer.log({"rollout/round": float(number)} | {f"rollout/{k}": v for k, v in told.items()})


def _plain(piece: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: x.detach().cpu().contiguous() for name, x in piece.items()}


def _read(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except Exception as e:
        raise PrefoptError(f"{path} is damaged ({e}); put it back, or start again in another folder") from e


class RoundSampler(StepSampler):
    """Deals the current round's examples, however many there are, into the same number of optimiser steps every time.

    So the length of the run is known before the first roll-out. A step is as large as configured where a round makes all
    that it can, else smaller; where there are fewer examples than steps, some are seen twice.
    """

    def __init__(self, rounds: Rounds, per_step: int, micro: int, rank: int, world: int, seed: int):
        super().__init__(rounds.tokens, per_step, micro, rank, world, seed)
        self.rounds = rounds

    def __len__(self) -> int:
        return self.rounds.updates * self.micro

    def steps(self, epoch: int) -> Iterator[np.ndarray]:
        self.costs = self.rounds.tokens
        wholes = np.arange(len(self.costs)).reshape(-1, self.rounds.maker.together)
        order = np.random.default_rng((self.seed, epoch)).permutation(len(wholes))
        order = np.resize(order, max(len(order), self.rounds.updates))
        yield from (wholes[some].flatten() for some in np.array_split(order, self.rounds.updates))


def places(total: int, size: int) -> list[range]:
    """`total` places of a round in pieces of `size`."""
    return [range(start, min(start + size, total)) for start in range(0, total, size)]


def chosen(count: int, total: int, seed: int, number: int) -> list[int]:
    """Which of `count` prompts stand at the `total` places of a round: each once before any twice."""
    rng = np.random.default_rng((seed, number))
    passes: list[np.ndarray] = [rng.permutation(count) for _ in range(-(-total // count))]
    return np.concatenate(passes)[:total].tolist()
