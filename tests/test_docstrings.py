"""Public functions of three or more parameters name each in a numpydoc section Parameters."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parent.parent / "src" / "gpuclust"
SECTION = re.compile(r"^Parameters\n-{10}\n(.*?)(?=^\w[\w ]*\n-{3,}$|\Z)", re.M | re.S)
LEAST = 3  # parameters, self and cls not counted
Function = ast.FunctionDef | ast.AsyncFunctionDef


def public(body: list[ast.stmt], prefix: str, inside_class: bool = False) -> Iterator[tuple[str, Function, list[str]]]:
    """Public functions and methods of public classes, with their parameters; those inside functions are not."""
    for node in body:
        if isinstance(node, ast.If | ast.Try):
            yield from public([*node.body, *node.orelse, *getattr(node, "finalbody", [])], prefix, inside_class)
        elif isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public(node.body, f"{prefix}.{node.name}", inside_class=True)
        elif isinstance(node, Function) and not node.name.startswith("_"):
            given = node.args
            positional = [*given.posonlyargs, *given.args]
            bound = inside_class and not any(ast.unparse(each) == "staticmethod" for each in node.decorator_list)
            rest = [each for each in (given.vararg, *given.kwonlyargs, given.kwarg) if each]
            yield f"{prefix}.{node.name}", node, [each.arg for each in (*positional[bound:], *rest)]


def named(docstring: str) -> set[str]:
    """The names before the colons of the section, stars off."""
    section = SECTION.search(docstring)
    heads = re.findall(r"^(\S.*?)(?: :.*)?$", section[1], re.M) if section else []
    return {name.strip().lstrip("*") for head in heads for name in head.split(",")}


def lacking(source: str, module: str) -> tuple[int, list[str]]:
    """How many functions were looked at, and those that do not name all their parameters."""
    looked, found = 0, []
    for name, node, parameters in public(ast.parse(source).body, module):
        if len(parameters) >= LEAST:
            looked += 1
            there = named(ast.get_docstring(node) or "")
            if missing := [each for each in parameters if each not in there]:
                found.append(f"{name}: {', '.join(missing)} not named in a Parameters section")
    return looked, found


def test_every_parameter_is_named() -> None:
    looked, found = 0, []
    for path in sorted(SOURCE.rglob("*.py")):
        parts = path.relative_to(SOURCE.parent).with_suffix("").parts
        here, bad = lacking(path.read_text(), ".".join(parts).removesuffix(".__init__"))
        looked += here
        found += bad
    assert looked > 100
    assert not found, "\n" + "\n".join(found)


def test_a_parameter_that_is_not_named_is_found() -> None:
    source = '''
class Shown:
    def method(self, one, two, *others, key=None, **options):
        """Do.

        Parameters
        ----------
        one, *others : int
            Not two : that is text.
        options : as in `other`

        Returns
        -------
        key : int
        """

    def short(self, one, two):
        """Two parameters only."""

def function(one, two, three):
    """one, two, three: no section."""
    def nested(one, two, three): ...

def _hidden(one, two, three): ...
'''
    assert lacking(source, "made_up") == (
        2,
        [
            "made_up.Shown.method: two, key not named in a Parameters section",
            "made_up.function: one, two, three not named in a Parameters section",
        ],
    )
