"""What MkDocs can't be told in mkdocs.yml: pages that are made, and links as GitHub reads them."""

import os
import pathlib
import re

from mkdocs.structure.files import File

REPOSITORY = pathlib.Path(__file__).resolve().parent.parent
# Files of the repository's top that are pages too.
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
SOURCES = {page: file for file, page in PAGES.items()}
# What stands before the target of an image or a link; then the target, up to a `#`.
LINK = re.compile(r"""(!\[[^\]]*\]\(|\]\(|\b(?:src|href)=")([^)"#\s]+)""")


def on_files(files, config):
    """Adds the pages of the repository's top, and a page of the API for every package."""
    pages = {page: (REPOSITORY / file).read_text("utf-8") for file, page in PAGES.items()}
    api = {}
    for folder in packages():
        name = ".".join(folder.relative_to(REPOSITORY).parts)
        api[name] = f"api/{name}.md"
        pages[api[name]] = api_page(folder, name)
    for page, content in pages.items():
        files.append(File.generated(config, page, content=content))
    (section,) = (entry for entry in config.nav if "API" in entry)
    section["API"] = [{name.removeprefix("mirg_jax."): page} for name, page in api.items()]
    return files


def packages() -> list[pathlib.Path]:
    """Every folder of mirg_jax with modules, itself first."""
    return sorted(path.parent for path in (REPOSITORY / "mirg_jax").rglob("__init__.py"))


def api_page(folder: pathlib.Path, name: str) -> str:
    """The package, then each of its modules; their text comes from the docstrings."""
    modules = sorted(path.stem for path in folder.glob("*.py") if not path.stem.startswith("_"))
    package = f"::: {name}\n    options: {{show_root_heading: false, show_root_toc_entry: false}}"
    parts = [f"# {name}", package, *(f"::: {name}.{module}" for module in modules)]
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown, page, config, **_):
    """Makes links that work on GitHub work in the site.

    What lies in docs/, or is a page of the site, is linked there; other files are linked on GitHub.
    """
    here = page.file.src_uri
    source = REPOSITORY / SOURCES.get(here, f"docs/{here}")

    def rewritten(match: re.Match) -> str:
        start, target = match.groups()
        path = pathlib.Path(os.path.normpath(source.parent / target))
        if not path.is_relative_to(REPOSITORY) or not path.exists():
            return match[0]
        name = path.relative_to(REPOSITORY).as_posix()
        if name in PAGES or (name.startswith("docs/") and path.is_file()):
            place = PAGES.get(name, name.removeprefix("docs/"))
            return start + os.path.relpath(place, os.path.dirname(here) or ".")
        shown = start.startswith(("!", "src"))
        kind = "raw" if shown else "tree" if path.is_dir() else "blob"
        return f"{start}{config.repo_url}/{kind}/main/{name}"

    return LINK.sub(rewritten, markdown)
