"""What the pages say of the code is so, and their links lead somewhere."""

import ast
import re
from pathlib import Path

import pytest

from envs import BMVTrackEnv

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]


def text(page):
    return page.read_text(encoding="utf-8")


def anchors(page):
    """What ``#`` may be followed by in a link to a page: its headings, as GitHub spells them."""
    prose = re.sub(r"^```.*?^```$", "", text(page), flags=re.MULTILINE | re.DOTALL)
    headings = re.findall(r"^#+ (.*)$", prose, flags=re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)\s]+)\)", text(page)):
        if re.match(r"https?://", target):
            continue
        name, _, anchor = target.partition("#")
        linked = page.parent / name if name else page
        assert linked.exists(), target
        assert not anchor or anchor in anchors(linked), target


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.name)
def test_every_page_is_linked_from_the_readme(page):
    assert f"(docs/{page.name})" in text(ROOT / "README.md")


def test_every_script_has_its_line_in_the_readme():
    readme = text(ROOT / "README.md")
    for script in (ROOT / "scripts").glob("*.py"):
        assert f"python scripts/{script.name}" in readme, script.name


def test_the_environment_page_is_the_docstring():
    docstring = ast.get_docstring(_class("envs/bmvtrack_env.py", BMVTrackEnv.__name__))
    assert text(DOCS / "environment.md").endswith(f"\n\n{docstring}\n")


def test_every_package_is_typed_once_installed_as_its_classifier_says():
    packaging = text(ROOT / "pyproject.toml")
    (packages,) = re.findall(r"packages\.find\]\ninclude = \[(.*)\]", packaging)
    for package in re.findall(r"\w+", packages):
        assert (ROOT / package / "py.typed").is_file(), package
        assert f'\n{package} = ["py.typed"' in packaging


def _class(path, name):
    nodes = ast.parse(text(ROOT / path)).body
    return next(node for node in nodes if isinstance(node, ast.ClassDef) and node.name == name)


def layer(module):
    """``bmvtrack.data.bank`` → ``data``, ``envs.state`` → ``envs``; None for other packages."""
    package, *inner = module.split(".")
    if package == "bmvtrack":
        return inner[0] if inner else None
    return package if package in ("envs", "agents", "scripts") else None


def imports(path):
    """Names of the modules that a file imports, wherever in it."""
    for node in ast.walk(ast.parse(text(path))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def names_in_the_picture():
    """Names of modules, and other words, in the picture of the architecture, in its order."""
    picture = text(DOCS / "architecture.md").split("```")[1]
    return list(dict.fromkeys(re.findall(r"[a-z_0-9]+", picture)))


def test_every_module_is_in_the_picture_of_the_architecture():
    names = set(names_in_the_picture())
    for folder in ("bmvtrack", "envs", "agents"):
        for path in (ROOT / folder).rglob("[!_]*.py"):
            parts = set(path.stem.split("_"))  # saliency_report: there as saliency (…, report)
            assert path.stem in names or parts <= names, path


def test_imports_point_up_in_the_picture_of_the_architecture():
    order = names_in_the_picture()
    found = 0
    for folder in ("bmvtrack", "envs", "agents", "scripts"):
        for path in (ROOT / folder).rglob("*.py"):
            mine = layer(".".join(path.relative_to(ROOT).with_suffix("").parts))
            if mine in ("__init__", "__main__"):
                continue
            assert mine in order, f"{mine} is missing in the picture"
            for other in filter(None, map(layer, imports(path))):
                if other not in (mine, "__version__"):
                    found += 1
                    assert order.index(other) < order.index(mine), f"{path} imports {other}"
    assert found > 300
