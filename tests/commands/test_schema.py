"""Tests of `ftcli schema`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from jsonschema import Draft202012Validator

from ftcli.recipe.parsing import parse_yaml
from tests.conftest import CONFIGS, Ftcli


def test_schema_matches_shipped_file(ftcli: Ftcli) -> None:
    outcome = ftcli("schema")
    assert outcome.code == 0
    assert outcome.err == ""
    assert outcome.out == (CONFIGS / "recipe.schema.json").read_text(encoding="utf-8")
    assert ftcli("schema", "--json").out == outcome.out


def test_schema_validates_recipes(work_dir: Path, ftcli: Ftcli) -> None:
    validator = Draft202012Validator(ftcli("schema").json)
    text = (work_dir / "r.yaml").read_text()
    assert validator.is_valid(parse_yaml(text, "r.yaml").data)
    (error,) = validator.iter_errors(parse_yaml(text.replace("val:", "vall:"), "r.yaml").data)
    assert error.message == "Additional properties are not allowed ('vall' was unexpected)"


def test_schema_is_referenced_by_shipped_recipes() -> None:
    for path in CONFIGS.glob("*.yaml"):
        start, _, target = path.read_text(encoding="utf-8").splitlines()[1].partition("=")
        assert start == "# yaml-language-server: $schema"
        assert (path.parent / target).samefile(CONFIGS / "recipe.schema.json")


def test_schema_imports_no_torch() -> None:
    code = (
        "import sys; from ftcli.cli import main; sys.argv = ['ftcli', 'schema']\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "print(sorted({'torch', 'torchvision', 'timm', 'sklearn', 'numpy', 'matplotlib'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1] == "[]"
