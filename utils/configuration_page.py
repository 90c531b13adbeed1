"""Print docs/configuration.md: every key of conf.json, as `Config` declares it.

example:
  python -m utils.configuration_page > docs/configuration.md
"""

import ast
import dataclasses
import inspect
import json
import textwrap
from pathlib import Path
from typing import Any

from .config import Config

HEAD = """# Configuration

`conf.json` is flat. Unknown keys, wrong types and values out of range are refused with the key and what is allowed.
The values are those of the repository's `conf.json`, the recipe of the released weights; keys that it leaves out are
shown with their defaults. `--set KEY=VALUE` overrides one for a run.

| key | value | meaning |
|---|---|---|
"""


def configuration_page(shown: dict[str, Any]) -> str:
    """Return the page, with the values of `shown` where it has them."""
    [declaration] = ast.parse(textwrap.dedent(inspect.getsource(Config))).body
    assert isinstance(declaration, ast.ClassDef)
    meanings: dict[str, str] = {}
    name = ""
    for node in declaration.body:
        if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            name = node.target.id
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and name:
            meanings[name] = " ".join(str(node.value.value).split())
            name = ""
    rows = []
    for item in dataclasses.fields(Config):
        is_optional = item.default is not dataclasses.MISSING
        value = json.dumps(shown.get(item.name, item.default if is_optional else None))
        rows.append(f"| `{item.name}` | `{value}` | {meanings[item.name]}{' *Optional.*' * is_optional} |")
    return HEAD + "\n".join(rows) + "\n"


if __name__ == "__main__":
    conf = Path(__file__).parent.parent / "conf.json"
    print(configuration_page(json.loads(conf.read_text(encoding="utf-8"))), end="")
