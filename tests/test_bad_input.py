"""Every bad input is answered by one message that says what, where and how to mend it, and by exit code 2.

Nothing is overwritten and nothing is left behind: the whole folder that the command ran in, byte for byte, is what it
was before. The table is in tests/bad/.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path

import pytest

from prefopt import cli
from tests.bad import Case, Place, data, folders, images, judges, models, settings

CASES = [c for module in (data, settings, models, folders, images, judges) for c in module.bad.cases]


def test_the_table_is_long() -> None:
    names = [c.name for c in CASES]
    assert len(names) >= 45
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_is_refused(
    case: Case,
    tmp_path: Path,
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    command = case.command(Place(tmp_path, request.getfixturevalue, monkeypatch))
    before = tree(tmp_path)
    capsys.readouterr()
    monkeypatch.setattr(sys, "argv", ["prefopt", *command])
    with pytest.raises(SystemExit) as end:
        cli.main()
    stdout, stderr = capsys.readouterr()
    assert end.value.code == 2, f"{stdout}\n{stderr}"
    assert "Traceback" not in stdout + stderr
    said = stdout + stderr if command[0] == "data" else stderr
    if command[:2] != ["data", "check"]:
        assert said.count("error: ") == 1, said
        said = said.split("error: ", 1)[1]
    assert len(said) < 1500, said
    line = " ".join(said.split())
    absent = [word for word in case.words if word.lower() not in line.lower()]
    assert not absent, line
    assert tree(tmp_path) == before


def tree(folder: Path) -> dict[str, str]:
    """Every file and folder with what it holds."""
    return {
        str(p.relative_to(folder)): hashlib.md5(p.read_bytes()).hexdigest() if p.is_file() else ""
        for p in sorted(folder.rglob("*"))
    }
