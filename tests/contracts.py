"""A contract for import-linter that knows the features by the list of features itself."""

import ast
from pathlib import Path

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, output

FEATURES = Path(__file__).parent.parent / "src" / "hw_server" / "features.py"
ABOVE = ("hw_server.features", "hw_server.cli.")
NOT_FOR_FEATURES = ("hw_server.app", "hw_server.server", "hw_server.cli", "hw_server.embedded")


def feature_packages() -> list[str]:
    """`hw_server.authors` and the like: what `features.py` imports from the package."""
    return [
        f"hw_server.{name.name}"
        for node in ast.walk(ast.parse(FEATURES.read_text()))
        if isinstance(node, ast.ImportFrom) and node.module == "hw_server"
        for name in node.names
    ]


class FeaturesContract(Contract):  # type: ignore[misc]
    """Nothing of the platform imports a feature, no feature imports another, nor what starts them all."""

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
        illegal += [
            f"{module} imports {imported}"
            for feature in features
            for module in sorted({feature, *graph.find_descendants(feature)})
            for imported in sorted(graph.find_modules_directly_imported_by(module))
            if f"{imported}.".startswith(tuple(f"{name}." for name in NOT_FOR_FEATURES))
        ]
        return ContractCheck(kept=not illegal, metadata={"illegal": illegal})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for line in check.metadata["illegal"]:
            output.print_error(line)
