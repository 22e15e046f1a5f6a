"""The command line: verbs that read arguments, call the library and print what it answers."""

from __future__ import annotations

import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from .errors import PrefoptError

app = typer.Typer(
    help="Preference optimisation for language, image and video models.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
data_app = typer.Typer(help="Look at preference data before a model does.", no_args_is_help=True)
app.add_typer(data_app, name="data")
out = Console()
err = Console(stderr=True)

Overrides = Annotated[list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="section.key=value")]
Json = Annotated[bool, typer.Option("--json", help="print JSON")]


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
    what: Annotated[str, typer.Argument(metavar="METHOD|RUN.yaml", help="a method, a recipe, a file.py, or a YAML run")],
    overrides: Overrides = None,
    model: Annotated[str | None, typer.Option("--model", "-m", help="model folder or hub name")] = None,
    data: Annotated[str | None, typer.Option("--data", "-d", help="file, folder or hub name")] = None,
    output: Annotated[str | None, typer.Option("--output", "-o", help="run folder; given again, the run goes on")] = None,
    config: Annotated[Path | None, typer.Option("--config", "-c", help="YAML that METHOD and options are laid over")] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would happen, and stop")] = False,
) -> None:
    """Align a model. Resumes if the output folder holds an unfinished run of the same configuration."""
    from . import recipes
    from .config import make, override, read_yaml

    content: dict[str, Any] = read_yaml(config) if config else {}
    if what.endswith((".yaml", ".yml")):
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
    if outcome.estimate is not None and outcome.status == "dry run":
        table = Table(show_header=False, box=None)
        for name, value in outcome.estimate.lines().items():
            table.add_row(name, value)
        out.print(table)
        out.print("dry run: nothing was trained or written")
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
    as_json: Json = False,
) -> None:
    """What there is: family, needs, hyperparameters with defaults and ranges, paper."""
    from .catalogue import methods

    found = methods(name)
    if as_json:
        print(json.dumps(found if name is None else found[0], indent=2))
    elif name is not None:
        _print_method(found[0])
    else:
        table = Table("method", "family", "needs", "hyperparameters", "paper", box=None, header_style="bold")
        for m in found:
            keys = ", ".join(f"{h['name']}={h['default']}" for h in m["hyperparameters"])
            table.add_row(m["name"], m["family"], ", ".join(m["needs"]), keys, m["paper"])
        out.print(table)


def _print_method(m: dict[str, Any]) -> None:
    out.print(f"[bold]{m['name']}[/bold]  ({m['family']}{', arXiv ' + m['paper'] if m['paper'] else ''})")
    out.print(m["description"], markup=False, highlight=False)
    out.print(f"needs: {', '.join(m['needs'])}")
    if m["beta"]:
        out.print(f"beta multiplies: {m['beta']}")
    table = Table("hyperparameter", "default", "values", box=None, header_style="bold")
    for h in m["hyperparameters"]:
        table.add_row(h["name"], str(h["default"]), h["values"])
    out.print(table)


@app.command(name="papers")
def papers_(as_json: Json = False) -> None:
    """The 47 papers, each with its method or recipe and its reproduction's verdict."""
    from dataclasses import asdict

    from .papers import papers

    found = papers()
    if as_json:
        print(json.dumps([asdict(p) for p in found], indent=2))
        return
    table = Table("paper", "arXiv", "what it brings", "modality", "here as", "claim in small", box=None, header_style="bold")
    for p in found:
        table.add_row(p.slug, p.arxiv, p.title, p.modality, p.status, p.verdict or "-")
    out.print(table)


@app.command()
def report(
    run: Annotated[Path, typer.Argument(help="run folder")],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="HTML file; default RUN/report.html")] = None,
) -> None:
    """Write one self-contained HTML page about a run."""
    from .reporting.report import write_report

    out.print(f"report: {write_report(run, output)}", soft_wrap=True)


def main() -> None:
    """Entry point: a PrefoptError becomes one message and exit code 2, never a traceback."""
    try:
        app(standalone_mode=True)
    except PrefoptError as e:
        if os.environ.get("PREFOPT_DEBUG"):
            raise
        err.print("[bold red]error:[/bold red] ", end="")
        err.print(str(e), markup=False, highlight=False, soft_wrap=True)
        sys.exit(2)
    except KeyboardInterrupt:
        err.print("stopped; start the same command again to go on")
        sys.exit(130)
