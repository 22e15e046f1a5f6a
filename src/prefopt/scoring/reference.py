"""What a policy is measured against: always an object with an identity, never "whatever the model is now"."""

from __future__ import annotations

import contextlib
import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from tqdm.auto import tqdm

from ..errors import PrefoptError
from ..objectives.scores import Scores
from .base import Draw, within
from .batch import TextBatch
from .entry import core, head_of, install
from .identity import identity_of, idle_adapter
from .kernel import Head
from .store import Store

log = logging.getLogger(__name__)
Answers = Mapping[str, Mapping[str, Tensor]]  # row set -> what was wanted of it -> numbers


class ReferenceModel(Protocol):
    """Log-probabilities of a fixed model, without gradient."""

    identity: str  # hash of the weights that it was made from
    runs: bool  # it can be computed in the step, so it can give whole distributions (exact KL) and score new text

    def scores(self, model: nn.Module, batch: TextBatch, row_set: str) -> Scores: ...
    def scores_of(self, model: nn.Module, batch: TextBatch, row_sets: Sequence[str]) -> dict[str, Scores]: ...
    def answers(
        self, model: nn.Module, batch: TextBatch, want: Mapping[str, Sequence[str]]
    ) -> Answers: ...  # if it runs
    def network(self, model: nn.Module) -> nn.Module: ...  # the model that runs
    def head(self) -> Head | None: ...  # of that model; None: the policy's, without adapter


class DrawSet(Protocol):
    """A data set as the trainer draws from it."""

    examples: Any  # with .tokens [n]: what each example costs

    def __len__(self) -> int: ...
    def draw(self, index: int, epoch: int = 0) -> Draw: ...


Wanted = tuple[int, int, int, list[str]]


class StoredReference:
    """Per-token log-probs from the store: the default. The reference model itself is not in memory in training.

    autocast: the dtype that forwards run under, if any (values differ by its rounding, so it is in the identity).
    """

    runs = False

    def __init__(self, model: nn.Module, folder: Path | None = None, autocast: torch.dtype | None = None):
        self.identity = identity_of(model, autocast)
        self.autocast = autocast
        self.store = Store(self.identity, folder)

    def prepare(
        self,
        model: nn.Module,
        collate: Callable[[Sequence[Draw]], TextBatch],
        sets: Sequence[DrawSet],
        tokens: int = 8192,
        progress: bool = True,
        title: str = "reference log-probs",
    ) -> int:
        """Fill the store with everything that `sets` will ask for, in batches of `tokens`, longest first.

        `model` is the reference, before training. Processes share the work, and the store. Returns how many
        examples this process computed. Raises PrefoptError if other processes' results are not in the store.
        """
        rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
        quiet = not progress or rank > 0
        wanted = self._wanted(collate, sets, quiet)
        with self.store.filling() if world == 1 and self._lacking(wanted) else contextlib.nullcontext():
            # looked up again: another run of the same reference may have been before this one
            todo = self._lacking(wanted)  # the heaviest first: memory runs out at once or never
            batches = [[todo[i] for i in part] for part in within([item[0] for item in todo], tokens)]
            mine = _in_step(batches, rank, world)
            with (
                _as_it_is(model),
                tqdm(total=sum(map(len, mine)), desc=title, unit="ex", disable=quiet or not mine) as bar,
            ):
                for part in mine:
                    self._compute(model, collate([sets[s].draw(i) for _, s, i in part]))
                    bar.update(len(part))
        done = sum(map(len, mine))
        if world > 1:
            dist.barrier()
            if self._lacking(wanted):
                raise PrefoptError(
                    f"{self.store.path}: other processes' reference log-probs are not in this store; "
                    "set PREFOPT_CACHE to a folder that all machines share"
                )
        return done

    def _wanted(self, collate: Callable[..., TextBatch], sets: Sequence[DrawSet], quiet: bool) -> list[Wanted]:
        """(cost, set, index, keys) of every example."""
        wanted: list[Wanted] = []
        for s, draws in enumerate(sets):
            costs = draws.examples.tokens
            for i in tqdm(range(len(draws)), desc="looking up the reference", unit="ex", delay=2, disable=quiet):
                batch = collate([draws.draw(i)])
                parts = (batch, *batch.apart.values())
                wanted.append((int(costs[i]), s, i, [key for p in parts for keys in p.keys.values() for key in keys]))
        return wanted

    def _lacking(self, wanted: Sequence[Wanted]) -> list[tuple[int, int, int]]:
        """(cost, set, index) of the examples of which anything is missing, the heaviest first; of equal ones the first.

        So after a kill, which leaves whole batches done, the batches that remain are those that would have come.
        """
        missing = self.store.missing(key for *_, keys in wanted for key in keys)
        todo = []
        for cost, s, i, keys in sorted(wanted, key=lambda x: x[:3], reverse=True):
            if missing.intersection(keys):
                missing.difference_update(keys)
                todo.append((cost, s, i))
        return todo

    def _compute(self, model: nn.Module, batch: TextBatch) -> None:
        device = next(model.parameters()).device
        made: dict[str, np.ndarray] = {}
        for part in (batch, *batch.apart.values()):
            part = part.to(device)
            with torch.autocast(device.type, self.autocast, enabled=self.autocast is not None):
                answers = model(tree=part.layout, rows=part.rows, want=("logps",))
            for name, rows in part.rows.items():
                values = answers[name]["logps"].float().cpu().numpy()
                found = zip(part.keys[name], values, rows.lengths, strict=True)
                made |= {key: v[:n] for key, v, n in found}
        self.store.put(made)  # in one transaction: a batch is there or not

    def scores(self, model: nn.Module, batch: TextBatch, row_set: str) -> Scores:
        return self.scores_of(model, batch, [row_set])[row_set]

    def scores_of(self, model: nn.Module, batch: TextBatch, row_sets: Sequence[str]) -> dict[str, Scores]:
        found = self.store.get(key for name in row_sets for key in batch.keys[name])
        out = {}
        for name in row_sets:
            rows, keys = batch.rows[name], batch.keys[name]
            if absent := sum(key not in found for key in keys):
                raise PrefoptError(
                    f"{self.store.path}: {absent} of {len(keys)} reference log-probs of a batch ('{name}') are not in "
                    "the store; prepare it with this data first, or use reference.kind = frozen"
                )
            values = np.zeros(tuple(rows.mask.shape), dtype=np.float32)
            for r, key in enumerate(keys):
                values[r, : len(found[key])] = found[key]
            device = rows.mask.device
            out[name] = Scores(torch.from_numpy(values).to(device, non_blocking=True), rows.mask.float())
        return out

    def answers(self, model: nn.Module, batch: TextBatch, want: Mapping[str, Sequence[str]]) -> Answers:
        raise PrefoptError(
            "the exact KL needs the reference's whole distributions, masks its hidden states; the store holds log-probs "
            "of tokens: set reference.kind = frozen, or train an adapter"
        )

    def network(self, model: nn.Module) -> nn.Module:
        raise PrefoptError("a stored reference runs no model")

    def head(self) -> Head | None:
        raise PrefoptError("a stored reference runs no model")


class _Running:
    """References that compute in the step."""

    runs = True

    def scores(self, model: nn.Module, batch: TextBatch, row_set: str) -> Scores:
        return self.scores_of(model, batch, [row_set])[row_set]

    def scores_of(self, model: nn.Module, batch: TextBatch, row_sets: Sequence[str]) -> dict[str, Scores]:
        answers = self.answers(model, batch, dict.fromkeys(row_sets, ("logps",)))
        return {name: Scores(answers[name]["logps"], batch.rows[name].mask.float()) for name in row_sets}

    @torch.no_grad()
    def answers(self, model: nn.Module, batch: TextBatch, want: Mapping[str, Sequence[str]]) -> Answers:
        """One forward for all that is wanted (see `entry.install`)."""
        return self.network(model)(tree=batch.layout, rows={name: batch.rows[name] for name in want}, want=want)

    def network(self, model: nn.Module) -> nn.Module:
        return model


class AdapterOffReference(_Running):
    """The policy with its adapter switched off: no second copy of the weights."""

    def __init__(self, model: nn.Module):
        if why := adapter_off_obstacle(model):
            raise PrefoptError(
                f"the policy without its adapter cannot be the reference: {why}; set reference.kind = store"
            )
        self.identity = identity_of(model)

    def head(self) -> Head | None:
        return None

    def answers(self, model: nn.Module, batch: TextBatch, want: Mapping[str, Sequence[str]]) -> Answers:
        # PEFT's own disable_adapter() also switches requires_grad of the adapter; its flag alone is what forwards read
        layers: list[Any] = [m for m in model.modules() if hasattr(m, "_disable_adapters")]
        before = [m._disable_adapters for m in layers]
        try:
            for m in layers:
                m._disable_adapters = True
            return super().answers(model, batch, want)
        finally:
            for m, off in zip(layers, before, strict=True):
                m._disable_adapters = off


class FrozenReference(_Running):
    """A model of its own, in memory: the last resort, and the way to another model than the starting one."""

    def __init__(self, model: nn.Module):
        """`model` is kept as it is; `FrozenReference.copy_of` copies the policy."""
        self.model = install(model).eval().requires_grad_(False)
        self.identity = identity_of(model)

    @classmethod
    def copy_of(cls, policy: nn.Module, merged: bool = False) -> FrozenReference:
        """The policy as it is now; `merged`: its adapter, if it has one, merged into plain weights."""
        copied: Any = copy.deepcopy(policy)
        return cls(copied.merge_and_unload() if merged and hasattr(copied, "merge_and_unload") else copied)

    def head(self) -> Head | None:
        return head_of(self.model)

    def network(self, model: nn.Module) -> nn.Module:
        device = next(model.parameters()).device
        if next(self.model.parameters()).device != device:
            self.model.to(device)
        return self.model


def adapter_off_obstacle(model: nn.Module) -> str | None:
    """Why switching the adapter off would not give the starting policy; None if it does."""
    if not hasattr(core(model), "peft_config") and not any(hasattr(m, "_disable_adapters") for m in model.modules()):
        return "the model has no adapter"
    layers = {id(p) for m in model.modules() if hasattr(m, "lora_A") for n, p in m.named_parameters() if "lora_" in n}
    if others := [name for name, p in model.named_parameters() if p.requires_grad and id(p) not in layers]:
        return f"'{others[0]}' trains too, and is no LoRA weight"
    if not idle_adapter(model):
        return "the adapter has been trained before, so the model without it is not the start"
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and module.p > 0 and "lora_dropout" not in name:
            return f"the dropout '{name}' of the base model is active"
        if getattr(module, "neftune_noise_alpha", None):
            return f"'{name}' adds noise to embeddings (NEFTune)"
    if rate := getattr(core(model).config, "attention_dropout", 0.0):
        return f"the base model drops attention weights (attention_dropout = {rate})"
    return None


@contextlib.contextmanager
def _as_it_is(model: nn.Module) -> Iterator[None]:
    """Evaluation mode without gradient; each module's own mode comes back."""
    modes = [(m, m.training) for m in model.modules()]
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        for module, training in modes:
            module.training = training


def _in_step(batches: list[list[tuple[int, int, int]]], rank: int, world: int) -> list[list[tuple[int, int, int]]]:
    """This process's batches, equally many on all (sharded models compute together): the last ones come twice."""
    if not batches:
        return []
    rounds = -(-len(batches) // world)
    return [batches[(i * world + rank) % len(batches)] for i in range(rounds)]
