"""A contract for import-linter that knows the features by the list of features itself."""

import ast
from pathlib import Path

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output

FEATURES = Path(__file__).parent.parent / "src" / "hw_server" / "features.py"
ABOVE = ("hw_server.features", "hw_server.cli.")


def feature_packages() -> list[str]:
    """`hw_server.authors` and the like: what `features.py` imports from the package."""
    return [
        f"hw_server.{name.name}"
        for node in ast.walk(ast.parse(FEATURES.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "hw_server"
        for name in node.names
    ]


class FeaturesContract(Contract):  # type: ignore[misc]
    """Nothing of the platform imports a feature, and no feature imports another."""

    type_name = "features"

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        features = feature_packages()
        illegal = [
            f"{importer} imports {imported}"
            for feature in features
            for imported in sorted({feature, *graph.find_descendants(feature)})
            for importer in sorted(graph.find_modules_that_directly_import(imported))
            if not importer.startswith(ABOVE) and not f"{importer}.".startswith(f"{feature}.")
        ]
        return ContractCheck(kept=not illegal, metadata={"illegal": illegal})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["illegal"]:
            output.print_error(line)
