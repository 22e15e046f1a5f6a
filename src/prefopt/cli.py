"""The command line: verbs that read arguments, call the library and print what it answers."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.table import Table

from .cli_common import (
    Json,
    Overrides,
    Seed,
    err,
    leave_processes,
    out,
)
from .cli_data import data_app
from .cli_models import eval_, generate, merge
from .errors import PrefoptError, of_the_machine

app = typer.Typer(
    help="Preference optimisation for language, image and video models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
app.add_typer(data_app, name="data")


@app.callback()
def _options(
    debug: Annotated[bool, typer.Option("--debug", help="show the traceback of an error")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="warnings only")] = False,
) -> None:
    """Preference optimisation for language, image and video models."""
    os.environ["PREFOPT_DEBUG"] = "1" if debug else ""
    logging.basicConfig(level=logging.WARNING, format="%(message)s", force=True)
    logging.getLogger("prefopt").setLevel(logging.WARNING if quiet else logging.INFO)


@app.command()
def train(
    what: Annotated[
        str, typer.Argument(metavar="METHOD|RUN.yaml", help="a method, a recipe, a file.py, or a YAML run")
    ],
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="model folder or hub name")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="file, folder or hub name")] = None,
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="run folder; given again, the run goes on")
    ] = None,
    config: Annotated[
        Path | None, typer.Option("--config", "-c", help="YAML that METHOD and options are laid over")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would happen, and stop")] = False,
) -> None:
    """Align a model. Resumes if the output folder holds an unfinished run of the same configuration."""
    from . import recipes
    from .config import make, override, read_yaml

    content: dict[str, Any] = read_yaml(config) if config else {}
    if what.endswith((".yaml", ".yml")):
        if config is not None:
            raise PrefoptError(f"--config {config} has no effect: {what} is the configuration; give one of them")
        content = read_yaml(Path(what))
    else:
        given = content.get("method")
        same = isinstance(given, dict) and given.get("name") == what
        content["method"] = given if same else {"name": what}
    for key, value in (("model", model), ("data", data), ("output", output)):
        if value is not None:
            old = content.get(key)
            content[key] = {**old, "path": value} if isinstance(old, dict) else value
    made = make(override(content, overrides or []))
    from .training.run import train as run

    recipe = recipes.load_all().get(made.method["name"])
    outcome = run(made, dry_run=dry_run) if recipe is None else recipe.run(made, dry_run=dry_run)
    _print_outcome(outcome)


def _print_outcome(outcome: Any) -> None:
    if os.environ.get("RANK", "0") != "0":
        return
    if outcome.estimate is not None and outcome.status == "dry run":
        table = Table(show_header=False, box=None)
        for name, value in outcome.estimate.lines().items():
            table.add_row(name, value)
        out.print(table)
        out.print("dry run: nothing was trained or written")
    elif outcome.status.startswith("dry run"):
        out.print(outcome.status, soft_wrap=True)
    elif outcome.status == "was finished":
        out.print(f"{outcome.folder} holds this run, finished; nothing to do")
    elif outcome.status == "finished":
        out.print(f"[green]finished[/green]: the model is in {outcome.folder}", soft_wrap=True)
        out.print(f"next: prefopt eval {outcome.folder}   and   prefopt report {outcome.folder}", soft_wrap=True)
    else:
        out.print(f"{outcome.status}: start the same command again to go on")


@app.command(name="methods")
def methods_(
    name: Annotated[str | None, typer.Argument(help="one method, in full")] = None,
    tags: Annotated[
        list[str] | None, typer.Option("--tag", "-t", help="only those with this tag of the survey; given again: and")
    ] = None,
    as_json: Json = False,
) -> None:
    """What there is: place among all methods, needs, hyperparameters with defaults and ranges, paper."""
    from .catalogue import methods
    from .objectives.taxonomy import told

    if name is not None and tags:
        raise PrefoptError(f"--tag has no effect beside the name {name}: give one of them")
    found = methods(name, tags or ())
    if as_json:
        print(json.dumps(found if name is None else found[0], indent=2))
    elif name is not None:
        _print_method(found[0])
    else:
        table = Table("method", "family", "tags", "needs", "hyperparameters", "paper", box=None, header_style="bold")
        for m in found:
            keys = ", ".join(f"{h['name']}={h['default']}" for h in m["hyperparameters"])
            differs = ", ".join(leaves for _, leaves in told(m["place"], brief=True))
            table.add_row(m["name"], m["family"], differs, ", ".join(m["needs"]), keys, m["paper"])
        out.print(table)
        if tags and not found:
            out.print(f"no method carries {' and '.join(tags)}")


def _print_method(m: dict[str, Any]) -> None:
    from .objectives.taxonomy import told

    out.print(f"[bold]{m['name']}[/bold]  ({m['family']}{', arXiv ' + m['paper'] if m['paper'] else ''})")
    out.print(m["description"], markup=False, highlight=False)
    out.print(f"needs: {', '.join(m['needs'])}")
    if m["beta"]:
        out.print(f"beta multiplies: {m['beta']}")
    record = Table("place", "tags (vocabulary of arXiv 2503.11701)", box=None, header_style="bold")
    for dimension, leaves in told(m["place"]):
        record.add_row(dimension, leaves)
    out.print(record)
    table = Table("hyperparameter", "default", "values", box=None, header_style="bold")
    for h in m["hyperparameters"]:
        table.add_row(h["name"], str(h["default"]), h["values"])
    out.print(table)
    for kind, why in m.get("parts", {}).items():
        out.print(f"takes {kind}" if not why else f"no {kind}: {why}", markup=False, highlight=False, soft_wrap=True)


@app.command(name="papers")
def papers_(as_json: Json = False) -> None:
    """The papers that prefopt follows, each with its method or recipe and its reproduction's verdict."""
    from dataclasses import asdict

    from .papers import papers

    found = papers()
    if as_json:
        print(json.dumps([asdict(p) for p in found], indent=2))
        return
    table = Table(
        "paper", "arXiv", "what it brings", "modality", "here as", "claim in small", box=None, header_style="bold"
    )
    for p in found:
        table.add_row(p.slug, p.arxiv, p.title, p.modality, p.status, p.verdict or "-")
    out.print(table)


app.command()(generate)
app.command(name="eval")(eval_)
app.command()(merge)


@app.command()
def reproduce(
    slug: Annotated[str, typer.Argument(help="a paper's slug; `prefopt papers` lists them")],
    seeds: Annotated[int, typer.Option("--seeds", min=1, help="how many seeds are judged")] = 3,
    output: Annotated[Path, typer.Option("--output", "-o", help="folder of verdict and plot")] = Path("reproductions"),
    jobs: Annotated[int, typer.Option("--jobs", min=1, help="seeds that run side by side")] = 1,
) -> None:
    """Run a paper's claim in small: prints a verdict, writes JSON and a plot. Started again, it goes on."""
    from .reproductions import reproduce as run

    verdict = run(slug, seeds, output, jobs=jobs)
    out.print(verdict.summary(), soft_wrap=True, highlight=False)
    if verdict.verdict == "fails":
        raise typer.Exit(1)


@app.command()
def study(
    config: Annotated[Path, typer.Argument(metavar="STUDY.yaml", help="methods, their settings, seeds, and the rest")],
    overrides: Overrides = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="check everything, say what would run, and stop")] = False,
    retry: Annotated[bool, typer.Option("--retry", help="do failed runs again")] = False,
    only_report: Annotated[bool, typer.Option("--report", help="write down what has finished, and stop")] = False,
) -> None:
    """Compare methods over their settings on one model and data. Started again, it goes on where it was stopped."""
    from .config import read_yaml
    from .studies.config import laid_over, make_study
    from .studies.run import run_study
    from .studies.view import render_outcome, render_plan

    made = make_study(laid_over(read_yaml(config), overrides or []))
    outcome = run_study(made, dry_run=dry_run, retry=retry, only_report=only_report)
    for shown in render_plan(made, outcome) if dry_run else render_outcome(made, outcome):
        out.print(shown, soft_wrap=isinstance(shown, str), highlight=False)


@app.command()
def demo(
    output: Annotated[Path, typer.Option("--output", "-o", help="run folder")] = Path("demo"),
    seed: Seed = 0,
) -> None:
    """The main job on the built-in world: build it, align its model, evaluate, report."""
    from .demo import run

    run(output, seed, out)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="folder of a run, or of a study")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file; default RUN/report.html")] = None,
) -> None:
    """Write one self-contained HTML page about a run, or about a study."""
    if (run / "results.json").is_file():
        from .studies.report import write_study_report
        from .studies.table import read_table

        path = write_study_report(read_table(run / "results.json"), output or run / "report.html")
    else:
        from .reporting.report import write_report

        path = write_report(run, output)
    out.print(f"report: {path}", soft_wrap=True)


def main() -> None:
    """Entry point: a PrefoptError becomes one message and exit code 2, never a traceback."""
    code = _answered()
    leave_processes(code)
    sys.exit(code)


def _answered() -> int:
    """Runs the command; its exit code."""
    try:
        app(standalone_mode=True)
    except Exception as e:
        said = str(e) if isinstance(e, PrefoptError) else of_the_machine(e)
        if said is None or os.environ.get("PREFOPT_DEBUG"):
            raise
        if os.environ.get("RANK", "0") == "0":  # the main process says it
            err.print("[bold red]error:[/bold red] ", end="")
            err.print(said, markup=False, highlight=False, soft_wrap=True)
        return 2
    except KeyboardInterrupt:
        err.print("stopped; start the same command again to go on")
        return 130
    except SystemExit as e:
        return e.code if isinstance(e.code, int) else int(e.code is not None)
    return 0
