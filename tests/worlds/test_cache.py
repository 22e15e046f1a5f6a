"""The cache of worlds: built once, whole or not at all."""

import json
import multiprocessing
import time

import pytest

from prefopt.errors import PrefoptError
from prefopt.worlds.cache import build_once, default_cache


def _make(folder):
    (folder / "model").mkdir()
    (folder / "model" / "config.json").write_text("{}")
    for part in ("train", "heldout", "prompts", "lists"):
        (folder / f"{part}.jsonl").write_text('{"prompt": "a"}\n')
    return {"mean": 0.5}


def _ask(cache, make=_make, **settings):
    return build_once("toy", version="1", settings={"seed": 0, **settings}, make=make, cache=cache)


def _slow_make(folder):
    with (folder.parent / "builds.txt").open("a") as file:
        file.write("built\n")
    time.sleep(0.3)
    return _make(folder)


def _slow_ask(cache):
    _ask(cache, _slow_make)


def test_parts_facts_and_settings(tmp_path):
    world = _ask(tmp_path)
    assert world.model.is_dir() and world.train.exists() and world.lists.exists()
    assert world.sft is None and world.unpaired is None
    assert world.facts == {"mean": 0.5} and world.settings == {"seed": 0}


def test_second_call_builds_nothing(tmp_path):
    first = _ask(tmp_path)
    assert _ask(tmp_path, make=None) == first
    assert _ask(tmp_path, seed=1).root != first.root


def test_version_is_part_of_the_key(tmp_path):
    assert build_once("toy", version="2", settings={"seed": 0}, make=_make, cache=tmp_path) != _ask(tmp_path)


@pytest.mark.parametrize(
    "harm",
    [
        lambda w: w.train.write_text("x"),
        lambda w: w.train.unlink(),
        lambda w: (w.root / "world.json").write_text('{"files": '),
        lambda w: (w.root / "world.json").unlink(),
    ],
)
def test_damaged_world_is_built_again(tmp_path, harm):
    world = _ask(tmp_path)
    harm(world)
    assert _ask(tmp_path) == world
    assert world.train.read_text() == '{"prompt": "a"}\n'


def test_failed_build_leaves_nothing(tmp_path):
    def fail(folder):
        (folder / "train.jsonl").write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        _ask(tmp_path, fail)
    assert [p.name for p in tmp_path.iterdir() if p.is_dir()] == []
    assert _ask(tmp_path).facts == {"mean": 0.5}


def test_leftover_of_a_killed_build_is_removed(tmp_path):
    world = _ask(tmp_path)
    left = tmp_path / f"{world.root.name}.building-old"
    left.mkdir()
    world.train.unlink()
    _ask(tmp_path)
    assert not left.exists()


def test_two_processes_build_once(tmp_path):
    context = multiprocessing.get_context("fork")
    both = [context.Process(target=_slow_ask, args=(tmp_path,)) for _ in range(2)]
    for process in both:
        process.start()
    for process in both:
        process.join()
    assert [process.exitcode for process in both] == [0, 0]
    assert (tmp_path / "builds.txt").read_text() == "built\n"


def test_cache_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(PrefoptError, match="PREFOPT_CACHE"):
        _ask(tmp_path / "file")


def test_default_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("PREFOPT_CACHE", str(tmp_path))
    assert default_cache() == tmp_path / "worlds"
    monkeypatch.delenv("PREFOPT_CACHE")
    assert default_cache().parts[-3:] == (".cache", "prefopt", "worlds")


def test_manifest_lists_every_file(tmp_path):
    world = _ask(tmp_path)
    files = json.loads((world.root / "world.json").read_text())["files"]
    assert set(files) == {"model/config.json", "train.jsonl", "heldout.jsonl", "prompts.jsonl", "lists.jsonl"}
