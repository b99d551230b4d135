"""Expand, then contract: during a rollout the release before serves beside the new one, on the migrated database. What takes
something away from it belongs into a later release, and says so: `contract = "why nothing uses it any more"`."""

import ast
import re
from collections.abc import Iterator

MARK = "contract"
FUNCTION_BODY = re.compile(r"\bCREATE\s+(?:OR\s+REPLACE\s+)?(?:FUNCTION|PROCEDURE)\b.*?\$(\w*)\$.*?\$\1\$", re.I | re.S)
NOISE = re.compile(r"--[^\n]*|/\*.*?\*/|'(?:[^']|'')*'", re.S)
PARENTHESES = re.compile(r"\([^()]*\)")
CREATED = re.compile(r"\bCREATE\s+TABLE\s+(?:IF\s+NOT\s+EXISTS\s+)?([\w.\"]+)", re.I)
ALTERED = re.compile(r"\bALTER\s+TABLE\s+(?:IF\s+EXISTS\s+)?(?:ONLY\s+)?([\w.\"]+)", re.I)
# What a statement does to the release before, each with how it looks.
STATEMENTS = {
    "drops a table": re.compile(r"\bDROP\s+(?:TABLE|VIEW|MATERIALIZED\s+VIEW)\b", re.I),
    "drops a column": re.compile(
        r"\bALTER\s+TABLE\b.*\bDROP\s+(?!CONSTRAINT\b|DEFAULT\b|NOT\b|IDENTITY\b|EXPRESSION\b)\w", re.I | re.S
    ),
    "renames": re.compile(r"\bALTER\s+(?:TABLE|VIEW|TYPE|FUNCTION|SEQUENCE)\b.*\bRENAME\b", re.I | re.S),
    "changes a type": re.compile(
        r"\bALTER\s+TABLE\b.*\bALTER\s+(?:COLUMN\s+)?\S+\s+(?:SET\s+DATA\s+)?TYPE\b", re.I | re.S
    ),
    "wants NOT NULL": re.compile(r"\bSET\s+NOT\s+NULL\b", re.I),
    "adds a column that is NOT NULL without a default": re.compile(
        r"\bADD\s+(?!CONSTRAINT\b)(?![^,]*\b(?:DEFAULT|GENERATED)\b)[^,]*\bNOT\s+NULL\b", re.I
    ),
}
CALLS = {"drop_table": "drops a table", "drop_column": "drops a column", "rename_table": "renames"}
ALTERATIONS = {"new_column_name": "renames", "type_": "changes a type"}


def contractions(tree: ast.Module) -> list[str]:
    """What a migration's upgrade takes away, each in a few words; nothing where it is marked. Tables that it creates itself
    do not count."""
    if any(isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == MARK for node in tree.body):
        return []
    nodes = [node for top in tree.body if getattr(top, "name", "") != "downgrade" for node in ast.walk(top)]
    statements = [statement for node in nodes if (sql := _text(node)) for statement in _statements(sql)]
    created = {name for statement in statements for name in CREATED.findall(statement)}
    created |= {_first_argument(node) for node in nodes if _called(node) == "create_table"}
    kinds = [kind for statement in statements for kind in _of_statement(statement, created)]
    kinds += [kind for node in nodes if isinstance(node, ast.Call) for kind in _of_call(node, created)]
    return list(dict.fromkeys(kinds))


def _text(node: ast.AST) -> str:
    if isinstance(node, ast.JoinedStr):
        return "".join(str(part.value) if isinstance(part, ast.Constant) else "x" for part in node.values)
    return node.value if isinstance(node, ast.Constant) and isinstance(node.value, str) else ""


def _statements(sql: str) -> list[str]:
    """Without comments, literals, what stands in parentheses, and bodies of functions, which are not run now."""
    sql = NOISE.sub(" ", FUNCTION_BODY.sub(" ", sql))
    while (flat := PARENTHESES.sub(" ", sql)) != sql:
        sql = flat
    return sql.split(";")


def _of_statement(statement: str, created: set[str]) -> Iterator[str]:
    if any(name in created for name in ALTERED.findall(statement)):
        return
    for kind, pattern in STATEMENTS.items():
        if pattern.search(statement):
            yield kind


def _of_call(call: ast.Call, created: set[str]) -> Iterator[str]:
    name = _called(call)
    if name in CALLS:
        yield CALLS[name]
    if _first_argument(call) in created:
        return
    if name == "alter_column":
        yield from (ALTERATIONS[keyword.arg] for keyword in call.keywords if keyword.arg in ALTERATIONS)
        if _is_not_null(call):
            yield "wants NOT NULL"
    if name == "add_column" and any(
        isinstance(column, ast.Call)
        and _is_not_null(column)
        and not any(keyword.arg == "server_default" for keyword in column.keywords)
        for column in call.args
    ):
        yield "adds a column that is NOT NULL without a default"


def _called(node: ast.AST) -> str:
    return node.func.attr if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) else ""


def _first_argument(node: ast.AST) -> str:
    return (
        str(node.args[0].value)
        if isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant)
        else ""
    )


def _is_not_null(call: ast.Call) -> bool:
    return any(keyword.arg == "nullable" and ast.unparse(keyword.value) == "False" for keyword in call.keywords)
