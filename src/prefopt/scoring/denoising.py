"""Scores of images under a diffusion or flow model: minus the squared error of one denoising step (2311.12908).

The likelihood of an image is out of reach; its bound is a sum of denoising errors over noise levels, and one random
level per step stands for the sum. So `log p(image)` becomes `-||net(z_t, t, caption) - y||^2`, additive over elements
and counted (C*H*W), and every method that reads `Scores` reads images: `.sum()` is the norm of the paper's equation,
`.mean()` the per-element mean of the official code.

Noise, noise level and caption dropout are drawn once per GROUP and shared by all images of its prompt; each image has
its own view and its own sample of the latents' posterior (and its own noise, where the way of noising says so). All are
drawn on the CPU from (seed, epoch, example), so they are the same whatever the batching, the process and the device.
What the networks see is made of them by a way of noising (`noising/`), which may ask the policy of the moment.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import cache, partial
from types import MappingProxyType
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from ..errors import PrefoptError
from ..objectives.scores import Scores
from .bank import Bank
from .base import Draw, Needs, Scored, Shapes, generator_of, moved
from .conditioning import CONDITIONS, Kind, check_condition, predict, repeated
from .entry import core
from .modes import inference, placed, precision, require_frozen
from .noising import Inputs, Network, Noised, Noising, noising_for, noisings
from .schedules import Level, Schedule


class ImageExample(Protocol):
    """One caption with k images: what a data set of images gives to the scorer."""

    index: int
    mean: Tensor  # [k, V, C, H, W] posterior of the latents, in the denoiser's units, of V views (as is, flipped)
    std: Tensor  # [k, V, C, H, W]
    held_out: bool  # evaluated only: its caption is never dropped
    condition: Mapping[str, Tensor]  # "text" [L, D], "pooled" [E], "time_ids" [6]
    captions: Mapping[str, Tensor] | None  # the same [k, ...] of each image's own caption, where that is wanted
    pairs: Sequence[tuple[int, int]]  # (better, worse) indices into the k images
    notes: Mapping[str, Sequence[float]]  # annotations, one per image or one per pair


@dataclass
class ImageBatch:
    """G captions with R images in all. Coefficients as in `schedules`: z_t = signal * latents + sigma * noise."""

    latents: Tensor  # [R, C, H, W]
    noise: Tensor  # [G, C, H, W], or [R, C, H, W] where every image has its own
    signal: Tensor  # [G] float64
    sigma: Tensor  # [G] float64
    time: Tensor  # [G] what the network reads
    t: Tensor  # [G] the same as drawn: an index, or s of flow models
    condition: dict[str, Tensor]  # name -> [G, ...], or [R, ...] where every image has its own caption
    notes: dict[str, Tensor] = field(default_factory=dict)  # "pairs" [P, 2], "group" [R], and the data's own
    drawn: dict[str, Tensor] = field(default_factory=dict)  # [R, ...] what the way of noising draws itself
    apart: dict[str, ImageBatch] = field(default_factory=dict)  # "mismatched": other images under these captions (KTO)
    beside: str = ""  # further rows that the way of noising makes, one for each image to be imitated
    keys: Tensor | None = None  # [R] under which a bank keeps the reference's scores; on the CPU
    filler: bool = False

    @property
    def size(self) -> int:
        """What it costs: images."""
        return len(self.latents)

    @property
    def imitated(self) -> Tensor:
        """Rows of the images that are to be imitated: the better ones of pairs, or all."""
        everything = torch.arange(len(self.latents), device=self.latents.device)
        return self.notes["pairs"][:, 0] if "pairs" in self.notes else everything

    @property
    def caption(self) -> Tensor:
        """[R] which row of `condition` an image is denoised under."""
        shared = len(next(iter(self.condition.values()))) == len(self.t)
        group = self.notes["group"]
        return group if shared else torch.arange(len(group), device=group.device)

    def to(self, device: torch.device | str) -> ImageBatch:
        return moved(self, device, stays=["keys"])

    def counts(self) -> dict[str, Tensor]:
        """{"responses": [R, 1]}: every image sums over all its C*H*W elements; likewise the row sets apart."""
        each = float(self.latents[0].numel())
        own = {"responses": self.latents.new_full((len(self.latents), 1), each)}
        own |= {self.beside: self.latents.new_full((len(self.imitated), 1), each)} if self.beside else {}
        return own | {name: batch.counts()["responses"] for name, batch in self.apart.items()}


class DenoisingScorer:
    """The `Scorer` of images.

    empty           condition of the empty caption, without batch axis
    caption_dropout probability that a whole group is denoised without its caption (keeps guidance working); None: as
                    the way of noising has it
    reference       a frozen network; None: the policy with its adapters switched off
    notes           annotations that the data has
    noising         how inputs are noised; by default the forward process
    teacher         the network that such a way asks, where it asks another than the policy
    bank            of fixed draws, where the reference's scores on them are kept
    own_captions    every image is denoised under its own caption
    further         conditions of the data beside the model's own, with their dropout: an example has them as [choices,
                    ...], of which one is drawn; zeros stand for none, and the reference sees none
    """

    def __init__(
        self,
        kind: Kind,
        schedule: Schedule,
        empty: Mapping[str, Tensor],
        *,
        seed: int = 0,
        caption_dropout: float | None = None,
        reference: nn.Module | None = None,
        notes: Iterable[str] = (),
        noising: Noising | None = None,
        teacher: nn.Module | None = None,
        bank: Bank | None = None,
        own_captions: bool = False,
        further: Mapping[str, float] = MappingProxyType({}),
    ) -> None:
        self.noising = noising or noising_for({})
        usual = 0.0 if schedule.times == "turbo" else self.noising.caption_dropout  # what has no guidance needs none
        self.caption_dropout = usual if caption_dropout is None else caption_dropout
        if not 0 <= self.caption_dropout <= 1:
            raise PrefoptError(f"caption_dropout {caption_dropout} must lie in [0, 1]")
        require_frozen(reference)
        if seed < 0:
            raise PrefoptError(f"seed {seed} must not be negative")
        self.kind, self.schedule, self.empty = kind, schedule, dict(empty)
        if (teacher is None) != (self.noising.teacher_rate is None):
            raise PrefoptError(f"a teacher is needed where the way of noising asks one: '{self.noising.name}'")
        self.seed, self.reference, self.teacher = seed, reference, teacher
        self.notes, self.further, self.own_captions = set(notes), dict(further), own_captions
        self.bank = bank
        if bank is not None and not self.noising.fixed:
            raise PrefoptError(
                f"there is no bank of fixed draws: '{self.noising.name}' depends on the policy of the moment"
            )
        self.noising.check(schedule)
        check_condition(kind, self.empty, "the empty caption")

    def offers(self) -> set[str]:
        scores = {"scores:policy", "scores:reference", "extras:mismatched"}
        known = noisings()
        ways = {f"noising:{name}" for name in known} | {f"extras:{way.apart}" for way in known.values() if way.apart}
        ways |= {"notes:flow_signal"} if self.schedule.prediction == "flow" else set()
        ways |= {f"conditions:{name}" for name in (*self.further, *(["captions"] if self.own_captions else []))}
        return scores | ways | {"notes:group", *(f"notes:{name}" for name in self.notes)}

    def shapes(self, needs: Needs) -> Shapes:
        """Denoising has no features."""
        return {}

    # ---- drawing
    def collate(self, draws: Sequence[Draw]) -> ImageBatch:
        """One batch, all randomness included. Raises PrefoptError for conditions or latents that do not fit."""
        batch = self._batch(draws, [draw.example for draw in draws])
        if all(draw.partner is not None for draw in draws):
            batch.apart["mismatched"] = self._batch(draws, [draw.partner for draw in draws])
        return batch

    def _batch(self, draws: Sequence[Draw], shown: Sequence[ImageExample]) -> ImageBatch:
        """The images of `shown` under the captions and noise of `draws`."""
        groups = [self._group(draw, images) for draw, images in zip(draws, shown, strict=True)]
        t = torch.stack([g["t"] for g in groups])
        level = self.schedule.level(t)
        notes = joined_notes(shown, [len(images.mean) for images in shown])
        if self.schedule.prediction == "flow":
            notes["flow_signal"] = level.signal[notes["group"]]
        return ImageBatch(
            latents=torch.cat([g["latents"] for g in groups]),
            noise=torch.cat([g["noise"] for g in groups]),
            signal=level.signal,
            sigma=level.sigma,
            time=level.time,
            t=t,
            condition={
                n: torch.cat([g["condition"][n] for g in groups]) for n in (*CONDITIONS[self.kind], *self.further)
            },
            notes=notes,
            keys=self._keys(groups),
            drawn={n: torch.cat([g["drawn"][n] for g in groups]) for n in groups[0]["drawn"]},
            beside=self.noising.apart,
        )

    def _group(self, draw: Draw, images: ImageExample) -> dict[str, Any]:
        example: ImageExample = draw.example
        repeated = draw if self.bank is None else draw._replace(epoch=draw.epoch % self.bank.draws)
        generator = generator_of(self.seed, repeated)
        t = self.schedule.draw(generator)
        dropped = bool(torch.rand((), generator=generator) < self.caption_dropout) and not example.held_out
        k, views, *shape = images.mean.shape
        noise = torch.randn((1 if self.noising.shared else k, *shape), generator=generator)
        view = torch.randint(views, (k,), generator=generator)
        mean, std = images.mean[torch.arange(k), view], images.std[torch.arange(k), view]
        latents = mean + std * torch.randn(mean.shape, generator=generator)
        drawn = self.noising.draw(latents.shape, self.schedule, generator)
        check_condition(self.kind, example.condition, f"example {example.index}", self.further)
        condition = self._captions(example, k, dropped)
        for name, rate in self.further.items():
            choices = example.condition[name]
            one = choices[int(torch.randint(len(choices), (), generator=generator))]
            without = bool(torch.rand((), generator=generator) < rate) and not example.held_out
            said = torch.zeros_like(one) if without else one
            condition[name] = said.expand(len(condition["text"]), *said.shape)
        return {"t": t, "noise": noise, "latents": latents, "condition": condition, "drawn": drawn}

    def _captions(self, example: ImageExample, k: int, dropped: bool) -> dict[str, Tensor]:
        """Conditions [1, ...] of the caption, or [k, ...] of the images' own; all of them dropped, or none."""
        if not self.own_captions:
            return {n: x[None] for n, x in (self.empty if dropped else example.condition).items()}
        if example.captions is None or len(example.captions["text"]) != k:
            raise PrefoptError(f"example {example.index}: {k} images do not have a caption each")
        check_condition(self.kind, example.captions, f"a caption of example {example.index}")
        return {n: x.expand(k, *x.shape) for n, x in self.empty.items()} if dropped else dict(example.captions)

    def _keys(self, groups: Sequence[Mapping[str, Any]]) -> Tensor | None:
        if self.bank is None:
            return None
        drawn = [((g["latents"], g["noise"], g["t"]), g["condition"], len(g["latents"])) for g in groups]
        return torch.tensor([key for parts in drawn for key in self.bank.keys(*parts)])

    # ---- scoring
    def score(self, model: nn.Module, batch: ImageBatch, needs: Needs, grad: bool = True) -> Scored:
        """{"responses": {"policy": [R, 1], "reference": [R, 1]}}, as asked; the reference never carries gradient."""
        if grad:
            return self._scores(model, batch, needs)
        with torch.no_grad():
            asked = {name: needs[f"extras:{name}"] for name in batch.apart if f"extras:{name}" in needs}
            found = {name: self._scores(model, batch.apart[name], spec["asked"]) for name, spec in asked.items()}
            return {name: scored["responses"] for name, scored in found.items()}

    def _scores(self, model: nn.Module, batch: ImageBatch, needs: Needs) -> dict[str, dict[str, Scores]]:
        """By row set: the responses, and what the way of noising makes beside them; one forward of each network."""
        group = batch.notes["group"]
        precise = precision(model)
        condition = {n: x[batch.caption] for n, x in batch.condition.items()}

        bare = core(model)  # asked without gradient, by each process as often as its own batch needs
        inputs, sizes = self._inputs(batch, precise), {"responses": len(group)}
        with self._asked(bare, condition, precise) as ask:
            seen = self.noising(inputs, self.schedule, ask)
            if f"extras:{batch.beside}" in needs:
                rows = batch.imitated
                more = self.noising.beside(inputs, rows, self.schedule, ask)
                seen = Noised(*(torch.cat(both) for both in zip(seen, more, strict=True)))
                condition = {n: torch.cat([x, x[rows]]) for n, x in condition.items()}
                sizes[batch.beside] = len(rows)

        def errors(net: nn.Module, said: Mapping[str, Tensor]) -> Scores:
            answer = predict(net, self.kind, seen.noisy, seen.time, said).to(precise)
            each = self.noising.error(answer, seen, self.schedule)
            values = -each.flatten(1).sum(1, keepdim=True)
            return Scores(values, torch.full_like(values, float(seen.goal[0].numel())))

        scores = {}
        if "scores:reference" in needs:
            if self.reference is not None:
                placed(self.reference, group.device)
            with torch.inference_mode():  # a few hundredths faster than no_grad; what comes out of it is copied
                kept = self._kept(batch, partial(self._by_reference, bare, errors, condition), precise)
            scores["reference"] = Scores(kept.values.clone(), kept.count.clone())
        if "scores:policy" in needs:
            scores["policy"] = errors(model, condition)
        parts = dict(
            zip(sizes, torch.arange(sum(sizes.values()), device=group.device).split([*sizes.values()]), strict=True)
        )
        return {part: {name: x[rows] for name, x in scores.items()} for part, rows in parts.items()}

    @contextmanager
    def _asked(self, model: nn.Module, condition: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[Network]:
        """The network that a way of noising may ask, the policy or its teacher; in evaluation mode until it is done."""
        device = condition["text"].device
        net = model if self.teacher is None else placed(self.teacher, device)
        nothing = cache(lambda: {n: x.to(device) for n, x in self.empty.items()})  # goes to the device once a step

        @torch.no_grad()
        def ask(noisy: Tensor, time: Tensor, *, rows: Tensor | None = None, empty: bool = False) -> Tensor:
            said = condition if rows is None else {n: x[rows] for n, x in condition.items()}
            if empty:
                said = {**said, **repeated(nothing(), noisy)}
            return predict(net, self.kind, noisy, time, said).to(dtype)

        with nullcontext() if self.noising.fixed else inference(net):
            yield ask

    def _inputs(self, batch: ImageBatch, dtype: torch.dtype) -> Inputs:
        group = batch.notes["group"]
        noise = batch.noise.to(dtype)
        level = Level(batch.signal.to(dtype)[group], batch.sigma.to(dtype)[group], batch.time[group])
        shared = noise[group] if self.noising.shared else noise
        return Inputs(batch.latents.to(dtype), shared, level, batch.t[group], batch.drawn)

    def _kept(self, batch: ImageBatch, compute: Callable[[], Scores], dtype: torch.dtype) -> Scores:
        """The reference's scores, out of the bank where there is one."""
        if self.bank is None or batch.keys is None:
            return compute()
        values = self.bank.scores(batch.keys, lambda: compute().values[:, 0])
        values = values.to(batch.latents.device, dtype)[:, None]
        return Scores(values, torch.full_like(values, float(batch.latents[0].numel())))

    def _by_reference(
        self,
        model: nn.Module,
        errors: Callable[[nn.Module, Mapping[str, Tensor]], Scores],
        condition: dict[str, Tensor],
    ) -> Scores:
        if self.reference is not None:
            own = {n: x for n, x in condition.items() if n not in self.further}
            return errors(self.reference, own)
        if self.further:  # the branch that reads them is all that is trained: without them, the start
            return errors(model, condition | {n: torch.zeros_like(condition[n]) for n in self.further})
        with adapters_off(model):
            return errors(model, condition)


@contextmanager
def adapters_off(model: nn.Module) -> Iterator[None]:
    """The network without its adapters, wrapped or not. Raises PrefoptError if it has none."""
    layers: list[Any] = [m for m in model.modules() if hasattr(m, "_disable_adapters")]
    if not layers:
        raise PrefoptError("there is no reference: the model has no adapter to switch off; give a frozen copy")
    before = [m._disable_adapters for m in layers]
    try:
        for m in layers:  # peft's own switch would also touch requires_grad; forwards read this flag alone
            m._disable_adapters = True
        yield
    finally:
        for m, off in zip(layers, before, strict=True):
            m._disable_adapters = off


def joined_notes(examples: Sequence[Any], sizes: Sequence[int]) -> dict[str, Tensor]:
    """Annotations of examples with so many images side by side, and who belongs to whom: `group` [R], `pairs` [P, 2]
    rows of the batch."""
    starts = np.cumsum([0, *sizes[:-1]])
    pairs = [(start + w, start + l) for start, e in zip(starts, examples, strict=True) for w, l in e.pairs]
    notes = {name: torch.tensor([v for e in examples for v in e.notes[name]]) for name in examples[0].notes}
    notes["group"] = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    if pairs:
        notes["pairs"] = torch.tensor(pairs, dtype=torch.long)
    return notes
