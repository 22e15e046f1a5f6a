"""Bad output folders, disks, runs and files of other verbs."""

from __future__ import annotations

import errno
import os
import shutil
from collections import namedtuple
from pathlib import Path

from filelock import FileLock

from prefopt.config import make
from prefopt.training.run import train
from tests.bad import Place, Table
from tests.bad.images import pair

bad = Table()
SHORT = ("train.max_steps=3", "train.per_device_train_batch_size=4", "train.learning_rate=1e-3", "train.save_steps=1")
KEYS = {"max_steps": 3, "per_device_train_batch_size": 4, "learning_rate": 1e-3, "save_steps": 1}


def started(p: Place, **changes: object) -> None:
    """A run that was interrupted after its first step."""
    content = {"method": "dpo", "model": str(p.model), "data": str(p.pairs), "output": str(p.output), "train": KEYS}
    train(make(content | changes), stop_after=1)


@bad("run", "is a file", "folder")
def output_is_a_file(p: Place) -> list[str]:
    return p.train(output=p.file("run", "precious"))


@bad("holds other files", "thesis.tex", "new folder")
def output_holds_other_files(p: Place) -> list[str]:
    p.file("run/thesis.tex", "precious")
    return p.train()


@bad("another configuration", "method.beta", "0.1", "0.2", "nothing is overwritten")
def output_holds_another_run(p: Place) -> list[str]:
    started(p)
    return p.train(*SHORT, "method.beta=0.2")


@bad("another configuration", "method.name", "'dpo' there", "'ipo' now")
def output_holds_another_method(p: Place) -> list[str]:
    started(p)
    return p.train(*SHORT, method="ipo")


@bad("run.json", "damaged")
def run_record_damaged(p: Place) -> list[str]:
    started(p)
    (p.output / "run.json").write_text('{"status": "run')
    return p.train(*SHORT)


@bad("config.yaml", "damaged")
def run_configuration_damaged(p: Place) -> list[str]:
    started(p)
    (p.output / "config.yaml").write_text("")
    return p.train(*SHORT)


@bad("another process")
def output_in_use(p: Place) -> list[str]:
    p.output.mkdir()
    lock = FileLock(str(p.output) + ".lock", thread_local=False)
    lock.acquire()
    HELD.append(lock)
    return p.train()


HELD: list[FileLock] = []


@bad("cannot be written")
def output_below_a_file(p: Place) -> list[str]:
    return p.train(output=p.file("notes.txt", "precious") / "run")


@bad("disk", "MiB", "train.save_total_limit")
def disk_full(p: Place) -> list[str]:
    usage = namedtuple("usage", "total used free")
    p.monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10, 10, 4096))
    return p.train(*SHORT)


@bad("data", "fingerprint", "new output folder")
def data_changed_between(p: Place) -> list[str]:
    data = p.tmp / "own.jsonl"
    shutil.copy(p.pairs, data)
    started(p, data=str(data))
    data.write_text(data.read_text().replace("plot", "story"))
    return p.train(*SHORT, data=data)


@bad("model", "fingerprint")
def model_changed_between(p: Place) -> list[str]:
    from transformers import AutoModelForCausalLM

    folder = Path(shutil.copytree(p.model, p.tmp / "model"))
    started(p, model=str(folder))
    model = AutoModelForCausalLM.from_pretrained(folder)
    model.lm_head.weight.data.mul_(1.01)
    model.save_pretrained(folder)
    return p.train(*SHORT, model=folder)


@bad("checkpoint-1", "damaged")
def checkpoint_damaged(p: Place) -> list[str]:
    started(p)
    for path in (p.output / "checkpoint-1").glob("*.safetensors"):
        path.write_bytes(path.read_bytes()[:-100])
    return p.train(*SHORT)


@bad("reference", "PREFOPT_CACHE")
def reference_store_damaged(p: Place) -> list[str]:
    from prefopt.scoring.store import default_folder

    cache = own_cache(p)
    started(p)
    for path in default_folder().glob("*.sqlite*"):
        path.write_bytes(b"no database" * 1000)
    shutil.rmtree(p.output)
    assert cache.is_dir()
    return p.train(*SHORT)


def own_cache(p: Place) -> Path:
    """A cache beside the case's own folder, so that what it keeps is not taken for something left behind."""
    cache = p.tmp.with_name(p.tmp.name + "-cache")
    p.monkeypatch.setenv("PREFOPT_CACHE", str(cache))
    return cache


@bad("PREFOPT_CACHE", "no space")
def cache_disk_full(p: Place) -> list[str]:
    own_cache(p)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    p.monkeypatch.setattr("prefopt.data.store.Writer.close", full)
    return p.train()


@bad("PREFOPT_CACHE", "no space")
def latents_disk_full(p: Place) -> list[str]:
    own_cache(p)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    p.monkeypatch.setattr("os.fdopen", full)
    return p.train(model=p.fixture("image_model"), data=p.fixture("image_pairs"))


# ---- other verbs
@bad("no run", "config.yaml")
def report_on_no_run(p: Place) -> list[str]:
    p.file("stuff/a.txt", "b")
    return ["report", str(p.tmp / "stuff")]


@bad("nowhere", "not a folder")
def report_on_nothing(p: Place) -> list[str]:
    return ["report", "nowhere"]


@bad("not a run folder", "--against")
def eval_on_no_run(p: Place) -> list[str]:
    return ["eval", str(p.model)]


@bad("no trained model")
def eval_before_the_end(p: Place) -> list[str]:
    started(p)
    return ["eval", str(p.output)]


@bad("--output", "no effect")
def eval_with_output_of_a_run(p: Place) -> list[str]:
    started(p)
    return ["eval", str(p.output), "-o", "elsewhere"]


@bad("module:function", "just-a-word")
def eval_with_unknown_reward(p: Place) -> list[str]:
    return ["eval", str(p.model), "--against", str(p.model), "-d", str(p.pairs), "-o", "x", "--reward", "just-a-word"]


@bad("another job", "samples.jsonl")
def generate_into_a_foreign_file(p: Place) -> list[str]:
    return ["generate", str(p.model), "-p", str(p.pairs), "-o", str(p.file("samples.jsonl", '{"mine": 1}\n'))]


@bad("other files", "new folder")
def generate_images_into_a_foreign_folder(p: Place) -> list[str]:
    p.file("pictures/cat.png", "precious")
    return [
        "generate",
        str(p.fixture("image_model")),
        "-p",
        str(p.fixture("image_pairs")),
        "-o",
        str(p.tmp / "pictures"),
    ]


@bad("top_p", "1.5")
def generate_with_bad_top_p(p: Place) -> list[str]:
    return ["generate", str(p.model), "-p", str(p.pairs), "-o", "x.jsonl", "--top-p", "1.5"]


@bad("nowhere.jsonl", "no such file")
def generate_without_prompts(p: Place) -> list[str]:
    return ["generate", str(p.model), "-p", "nowhere.jsonl", "-o", "x.jsonl"]


@bad("no-such-paper")
def reproduce_unknown(p: Place) -> list[str]:
    return ["reproduce", "no-such-paper", "-o", "there"]


@bad("no-such-method")
def methods_unknown(p: Place) -> list[str]:
    return ["methods", "no-such-method"]


@bad("model.path = ./nowhere", "no such folder")
def show_without_model(p: Place) -> list[str]:
    return ["data", "show", str(p.pairs), "-m", "./nowhere"]


@bad("Permission denied", "made.jsonl.job", "start the same command again", "--debug")
def folder_that_cannot_be_written(p: Place) -> list[str]:
    from prefopt.annotation import growing

    def denied(path: Path, *_: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    p.monkeypatch.setattr(growing, "write_atomically", denied)
    rows = p.rows(*(pair(p, n) for n in range(2)))
    return ["data", "build", "captions", str(rows), "-o", str(p.tmp / "made.jsonl"), "--way", "p"]
