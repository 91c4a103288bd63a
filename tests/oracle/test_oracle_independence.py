"""An oracle that shared code with the library would agree with its mistakes."""

import ast
from pathlib import Path

import pytest

ORACLES = sorted(path for path in Path(__file__).parent.glob("*.py") if not path.name.startswith("test_"))


@pytest.mark.parametrize("path", ORACLES, ids=lambda path: path.stem)
def test_an_oracle_imports_numpy_and_other_oracles_only(path):
    imported = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            imported.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            imported.add(node.module)
    assert {name for name in imported if not name.startswith("tests.oracle.")} <= {"numpy"}


def test_every_rule_has_an_oracle_of_the_same_name():
    rules = [path for path in ORACLES if path.stem != "variants"]  # those of the lab's ablations
    names = {path.stem for path in rules}
    assert names == {"fadam", "fadafactor", "adafisher", "adam", "adafactor", "naturaladam"}
    for path in rules:
        functions = {
            node.name for node in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(node, ast.FunctionDef)
        }
        assert path.stem in functions
