"""Running a reproduction: seeds, resumption, the verdict's file and the plot."""

from __future__ import annotations

import functools
import importlib
import json
import os
import pkgutil
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import PrefoptError
from ..files import write_atomically
from ..training.folder import versions
from .bench import Bench, Progress
from .claim import Judgement, Measurements, Reproduction, statement
from .jobs import side_by_side
from .table import write_table


@dataclass(frozen=True)
class Outcome:
    """A reproduction that was run: its verdict and where it is written."""

    reproduction: Reproduction
    judgement: Judgement
    seeds: int
    path: Path

    @property
    def verdict(self) -> str:
        return self.judgement.verdict

    def summary(self) -> str:
        """The claim, every demand with what was measured, and the verdict."""
        lines = [f"claim: {self.reproduction.claim}"]
        for check in self.judgement.checks:
            each = ", ".join(f"{value:.3g}" for value in check.seeds)
            lines.append(f"  {'met' if check.met else 'NOT MET'}: {check.criterion}; measured {each}")
        if self.seeds < self.reproduction.seeds:
            lines.append(
                f"  on {self.seeds} of the {self.reproduction.seeds} seeds that the verdict is meant to rest on"
            )
        lines.append(f"verdict: the claim {self.verdict} ({self.path} and {self.path.with_suffix('.png').name})")
        return "\n".join(lines)


@functools.cache
def load_all() -> dict[str, Reproduction]:
    """Slug -> reproduction: every module of this package that defines REPRODUCTION."""
    package = __package__ or "prefopt.reproductions"
    folder = [str(Path(__file__).parent)]
    modules = [importlib.import_module(f"{package}.{m.name}") for m in pkgutil.iter_modules(folder) if m.name[0] != "_"]
    found = [m.REPRODUCTION for m in modules if hasattr(m, "REPRODUCTION")]
    return {r.slug: r for r in sorted(found, key=lambda r: r.slug)}


def find(slug: str) -> Reproduction:
    """PrefoptError with what there is, for any other slug."""
    found = load_all()
    if slug not in found:
        raise PrefoptError(f"there is no reproduction of '{slug}'; there are: {', '.join(found)}")
    return found[slug]


def reproduce(
    slug: str | Reproduction,
    seeds: int = 3,
    output: Path | str = Path("reproductions"),
    *,
    jobs: int = 1,
    progress: bool = True,
) -> Outcome:
    """Run a claim on seeds 1..`seeds` and judge it by the criterion that its module fixed.

    Writes SLUG.json, SLUG.png and README.md (a table of all verdicts there) into `output`, and the work into
    `output`/runs/SLUG: started again, it goes on where it was stopped. Seed 0 is left to pilots. jobs: so many seeds run
    side by side, each in a process with its share of the cores; with as many threads (OMP_NUM_THREADS) the numbers are
    those of a run of one seed after the other, to the bit.
    Raises PrefoptError for an unknown slug, fewer than one seed or job, an output that holds work of other settings, or
    a seed that failed beside others.
    """
    reproduction = find(slug) if isinstance(slug, str) else slug
    for name, number in (("seeds", seeds), ("jobs", jobs)):
        if number < 1:
            raise PrefoptError(f"{name} = {number}: a verdict needs at least one {name.removesuffix('s')}")
    place = Path(output).expanduser()
    work = place / "runs" / reproduction.slug
    _claim(place, work, reproduction)
    jobs = min(jobs, seeds)
    shown = Progress(reproduction.slug, seeds * reproduction.steps, shown=progress, seeds=seeds, jobs=jobs)
    benches = [Bench(seed, work / f"seed-{seed}", shown) for seed in range(1, seeds + 1)]
    if jobs > 1:
        side_by_side(reproduction, benches, shown)
    measured = [reproduction.run(bench) for bench in benches]
    path = place / f"{reproduction.slug}.json"
    outcome = Outcome(reproduction, reproduction.judge(measured), seeds, path)
    _draw(reproduction, measured, path.with_suffix(".png"))
    for name in reproduction.keeps:
        shutil.copy(work / "seed-1" / name, place / f"{reproduction.slug}-{name}")
    write_atomically(path, json.dumps(_record(outcome, measured, shown), indent=1, ensure_ascii=False) + "\n")
    write_table(place)
    return outcome


def _claim(place: Path, work: Path, reproduction: Reproduction) -> None:
    """Make the folders; refuse work that was done with other settings, which would be judged as if it were these."""
    settings = json.dumps(dict(reproduction.settings), sort_keys=True, indent=1) + "\n"
    kept = work / "settings.json"
    try:
        work.mkdir(parents=True, exist_ok=True)
        (place / "runs" / ".gitignore").write_text("*\n", encoding="utf-8")
        if kept.exists() and kept.read_text(encoding="utf-8") != settings:
            raise PrefoptError(
                f"{work} holds runs of '{reproduction.slug}' with other settings; nothing is overwritten: "
                "give another --output, or remove that folder"
            )
        write_atomically(kept, settings)
    except OSError as error:
        raise PrefoptError(f"--output {place} cannot be written: {error.strerror or error}") from None


def _draw(reproduction: Reproduction, measured: Sequence[Measurements], path: Path) -> None:
    figure = reproduction.plot(measured)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.png")
    figure.savefig(temporary, dpi=150, metadata={"Software": None})
    os.replace(temporary, path)


def _record(outcome: Outcome, measured: Sequence[Measurements], spent: Progress) -> dict[str, Any]:
    found = statement(outcome.reproduction)
    return {
        **{key: found[key] for key in ("slug", "paper", "claim")},
        "verdict": outcome.verdict,
        "checks": [check.to_json() for check in outcome.judgement.checks],
        **{key: found[key] for key in ("setting", "criterion", "remarks", "settings")},
        "seeds": list(range(1, outcome.seeds + 1)),
        "planned_seeds": outcome.reproduction.seeds,
        "measurements": list(measured),
        "seconds": round(spent.seconds),
        "cpu_seconds": round(spent.cpu_seconds),
        "date": time.strftime("%Y-%m-%d"),
        "versions": versions() | {"cores": str(os.cpu_count())},
    }
