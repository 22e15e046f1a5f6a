"""Build a world once and find it again: atomic, locked, checked.

A world is a folder with fixed names (see `World`) and a `world.json` that lists every file with its SHA-256. It is
built in a temporary folder beside its place and renamed into it: a killed build leaves nothing that looks finished.
"""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock

from prefopt.errors import PrefoptError
from prefopt.files import cache_folder

log = logging.getLogger(__name__)

MANIFEST = "world.json"


@dataclass(frozen=True)
class World:
    """Where the parts of a built world lie. Parts that a world does not have are None.

    root        the folder of the world
    model       folder in the plain library's format (transformers model with tokenizer, diffusers pipeline)
    train       JSONL, one preference pair per row
    heldout     JSONL, pairs of prompts that are not in `train`, labelled without noise
    prompts     JSONL, one held-out prompt per row, to sample from
    sft         JSONL, demonstrations (prompt, completion)
    lists       JSONL, ranked lists (prompt, responses, scores)
    unpaired    JSONL, (prompt, completion, label)
    objectives  JSONL, lists with one score per response and objective
    settings    what the world was built with
    facts       what the builder measured (for example the mean true reward of the model's samples)
    """

    root: Path
    model: Path
    train: Path
    heldout: Path
    prompts: Path
    sft: Path | None = None
    lists: Path | None = None
    unpaired: Path | None = None
    objectives: Path | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def default_cache() -> Path:
    """$PREFOPT_CACHE/worlds, or ~/.cache/prefopt/worlds."""
    return cache_folder("worlds")


def build_once(
    name: str,
    *,
    version: str,
    settings: Mapping[str, Any],
    make: Callable[[Path], Mapping[str, Any]],
    cache: Path | str | None = None,
) -> World:
    """The world `name` with these settings: from the cache if it is there and whole, else built by `make`."""
    return _open(folder_once(name, version=version, settings=settings, make=make, cache=cache))


def folder_once(
    name: str,
    *,
    version: str,
    settings: Mapping[str, Any],
    make: Callable[[Path], Mapping[str, Any]],
    cache: Path | str | None = None,
) -> Path:
    """`build_once` for a folder that is not a whole world, such as the model that several worlds share.

    `make(folder)` writes the parts under the names of `World` (`model/`, `train.jsonl`, ...) into an empty folder and
    returns the facts to remember. `settings` must be JSON; together with `version` (raise it whenever the built files
    change) they are the key. Two processes that ask at once build once. A folder with a missing or changed file is
    built anew. Raises PrefoptError if the cache cannot be written.
    """
    place = Path(cache).expanduser() if cache is not None else default_cache()
    record = {"name": name, "version": version, "settings": dict(settings)}
    root = place / f"{name}-{_key(record)}"
    try:
        place.mkdir(parents=True, exist_ok=True)
        with FileLock(place / f"{root.name}.lock"):
            fault = _fault(root)
            if fault is not None:
                if root.exists():
                    log.warning("%s: %s; building it again", root, fault)
                _build(root, record, make)
    except OSError as error:
        raise PrefoptError(
            f"cannot build the world '{name}' in {place}: {error}. Give a folder that can be written, with about "
            "100 MB free, by setting PREFOPT_CACHE."
        ) from error
    return root


def _key(record: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:12]


def _build(root: Path, record: Mapping[str, Any], make: Callable[[Path], Mapping[str, Any]]) -> None:
    """Make the folder under another name, then put it in place. The caller holds the lock."""
    for left in root.parent.glob(f"{root.name}.building-*"):  # of a build that was killed: we hold the lock
        shutil.rmtree(left, ignore_errors=True)
    work = Path(tempfile.mkdtemp(prefix=f"{root.name}.building-", dir=root.parent))
    try:
        facts = dict(make(work))
        files = {str(path.relative_to(work)): _sha256(path) for path in sorted(work.rglob("*")) if path.is_file()}
        manifest = {**record, "facts": facts, "files": files}
        (work / MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        work.chmod(0o755)  # mkdtemp makes it private; a cache may be shared
        if root.exists():
            shutil.rmtree(root)
        work.rename(root)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _fault(root: Path) -> str | None:
    """What keeps the folder from being used, or None if every file is there and unchanged."""
    try:
        files = json.loads((root / MANIFEST).read_text(encoding="utf-8"))["files"]
    except (OSError, ValueError, KeyError, TypeError):
        return f"no readable {MANIFEST}"
    for name, digest in files.items():
        path = root / name
        if not path.is_file() or _sha256(path) != digest:
            return f"{name} is missing or was changed"
    return None


def _open(root: Path) -> World:
    manifest = json.loads((root / MANIFEST).read_text(encoding="utf-8"))
    optional = {part: root / f"{part}.jsonl" for part in ("sft", "lists", "unpaired", "objectives")}
    return World(
        root=root,
        model=root / "model",
        train=root / "train.jsonl",
        heldout=root / "heldout.jsonl",
        prompts=root / "prompts.jsonl",
        settings=manifest["settings"],
        facts=manifest["facts"],
        **{part: path for part, path in optional.items() if path.exists()},
    )


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
