"""One name per thing: modules, public types and shared constants of src have names of their own."""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

SOURCE = Path(__file__).parents[1] / "src"
TREES = {
    path.relative_to(SOURCE).as_posix(): ast.parse(path.read_text(encoding="utf-8"))
    for path in sorted(SOURCE.rglob("*.py"))
}
# Modules whose folder says the difference.
MODULES = {
    "picture": "tasks: what a caller asks for; media: what was made, on its way into a reply",
    "recipe": "bundle: what a recipe is; a family's: its own one",
}


def defined(tree: ast.Module) -> Iterator[str]:
    """Yield the public names of a module's own classes, aliases and constants."""
    for node in tree.body:
        match node:
            case ast.ClassDef(name=name):
                yield name
            case ast.AnnAssign(target=ast.Name(id=name)):
                yield name
            case ast.Assign(targets=targets):
                yield from (one.id for one in targets if isinstance(one, ast.Name))


def read_elsewhere() -> set[tuple[str, str]]:
    """Return (module, name) of what another file imports, or reads of an imported module."""
    used = set()
    for tree in TREES.values():
        modules: dict[str, str] = {}
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and node.module:
                for alias in node.names:
                    used.add((node.module, alias.name))
                    modules[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        for node in ast.walk(tree):
            if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
                used.add((modules.get(node.value.id, ""), node.attr))
    return used


def places(*, constants: bool) -> dict[str, list[str]]:
    """Return the files that define each public type, or each constant.

    A single letter is a type variable, which names nothing.
    """
    found = defaultdict(list)
    for file, tree in TREES.items():
        for name in dict.fromkeys(defined(tree)):
            if name[0].isupper() and len(name) > 1 and name.isupper() == constants:
                found[name].append(file)
    return found


def find_family(file: str) -> str | None:
    match = re.fullmatch(r"worker/families/(\w+)/\w+\.py", file)
    return None if match is None else match[1]


def is_one_per_family(files: list[str]) -> bool:
    families = [find_family(file) for file in files]
    return None not in families and len(set(families)) == len(files)


def test_no_two_modules_share_a_name() -> None:
    """Two families may have a module of one name each."""
    files = defaultdict(list)
    for file in TREES:
        files[Path(file).stem].append(file)
    shared = {
        stem: found
        for stem, found in files.items()
        if len(found) > 1 and not is_one_per_family(found)
    }
    assert shared.keys() == {"__init__", *MODULES}, shared


def test_no_two_public_types_share_a_name() -> None:
    shared = {name: files for name, files in places(constants=False).items() if len(files) > 1}
    assert shared == {}


def test_a_constant_that_other_files_read_shares_its_name_with_none() -> None:
    """One that only its own file reads is named by that file; two families may have one each."""
    used = read_elsewhere()
    shared = {
        name: files
        for name, files in places(constants=True).items()
        if len(files) > 1
        and not is_one_per_family(files)
        and any((file.removesuffix(".py").replace("/", "."), name) in used for file in files)
    }
    assert shared == {}
