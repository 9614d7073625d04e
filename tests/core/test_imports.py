"""Who knows whom: no module of fastrnn is imported by one that it imports, wherever the import stands."""

import ast
from collections.abc import Iterator
from pathlib import Path

import fastrnn

ROOT = Path(fastrnn.__file__).parent


def modules() -> dict[str, Path]:
    found = {}
    for path in ROOT.rglob("*.py"):
        parts = path.relative_to(ROOT.parent).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imported(name: str, path: Path, known: set[str]) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parts = package.split(".")[: len(package.split(".")) - node.level + 1]
                base = ".".join([*parts, *filter(None, [node.module])])
            for alias in node.names:
                whole = f"{base}.{alias.name}"
                if whole in known:
                    yield whole
                elif base in known and alias.name not in ("_core", "_cuda"):  # which are compiled, and know nobody
                    yield base


def test_no_circle() -> None:
    paths = modules()
    assert len(paths) > 40
    knows = {name: set(imported(name, path, set(paths))) - {name} for name, path in paths.items()}
    while True:  # leaves fall off until a circle is left, or nothing
        leaves = {name for name, others in knows.items() if not others}
        if not leaves:
            break
        knows = {name: others - leaves for name, others in knows.items() if name not in leaves}
    assert knows == {}
