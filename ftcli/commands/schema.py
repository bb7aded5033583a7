"""`ftcli schema`."""

from __future__ import annotations

from ftcli.commands.options import JSON
from ftcli.console import print_result


def schema(as_json: JSON = False) -> None:
    """Print the JSON Schema of recipes. Editors use it to complete and check recipes."""
    from ftcli.recipe.json_schema import build_json_schema
    from ftcli.results import SchemaResult

    print_result(SchemaResult(build_json_schema()), as_json=as_json)
