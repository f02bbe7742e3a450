"""What surrounds the code: licence, citation, packaging, and checkers of one version everywhere."""

import pathlib
import re
import tomllib

import pytest
import yaml
from conftest import REPOSITORY
from packaging.requirements import Requirement
from setuptools import Distribution

PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
PACKAGE = REPOSITORY / "mirg_jax"
EXTRAS = {"cuda12", "cuda13", "docs", "plan", "tables", "test", "tpu", "wandb"}
NEEDS = "additional_dependencies"


@pytest.fixture(scope="module")
def built():
    """The project as setuptools reads it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(REPOSITORY)
        distribution = Distribution()
        distribution.parse_config_files(["pyproject.toml"])
        return distribution


def requirements(name: str) -> set[Requirement]:
    """The lines of a requirements file, without comments."""
    lines = (re.sub(r"(^|\s)#.*", "", line).strip() for line in (REPOSITORY / name).open())
    return {Requirement(line) for line in lines if line}


def test_the_licence_is_apache_2():
    text = (REPOSITORY / "LICENSE").read_text()
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    sections = re.findall(r"^   (\d)\. ", text, re.MULTILINE)
    assert sections == list("123456789") and "END OF TERMS AND CONDITIONS" in text
    assert PROJECT["license"] == "Apache-2.0"


def test_the_citation_is_of_this_version():
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text())
    assert citation["cff-version"] == "1.2.0" and citation["authors"]
    ours = {"title": "name", "version": "version", "license": "license"}
    assert all(citation[here] == PROJECT[there] for here, there in ours.items())
    assert citation["repository-code"] == PROJECT["urls"]["Homepage"]
    (paper,) = citation["references"]
    assert paper["title"].startswith("MIRG-RL") and len(paper["authors"]) == 5


def test_the_changelog_has_this_version():
    versions = re.findall(r"^## \[([^\]]+)\]", (REPOSITORY / "CHANGELOG.md").read_text(), re.M)
    assert versions[0] == "Unreleased" and PROJECT["version"] in versions


def test_requirements_are_listed_once(built):
    assert set(map(Requirement, built.install_requires)) == requirements("requirements.txt")
    assert set(built.extras_require) == EXTRAS
    for extra, lines in built.extras_require.items():
        assert set(map(Requirement, lines)) == requirements(f"requirements-{extra}.txt")
    files = {path.stem for path in REPOSITORY.glob("requirements-*.txt")}
    assert files == {f"requirements-{extra}" for extra in EXTRAS}


def test_every_folder_is_packaged(built):
    folders = {path.parent.relative_to(REPOSITORY) for path in PACKAGE.rglob("*.py")}
    assert {".".join(folder.parts) for folder in folders} <= set(built.packages)


def test_every_file_is_packaged():
    (patterns,) = PYPROJECT["tool"]["setuptools"]["package-data"].values()
    files = [path for path in PACKAGE.rglob("*") if path.is_file() and path.suffix != ".pyc"]
    data = [path for path in files if path.suffix != ".py"]
    missed = [path for path in data if not any(map(path.match, patterns))]
    assert not missed
    for pattern in patterns:
        assert any(path.match(pattern) for path in data), f"{pattern} matches nothing"
    assert (PACKAGE / "py.typed").exists()


def test_ruff_is_of_one_version():
    hooks = yaml.safe_load((REPOSITORY / ".pre-commit-config.yaml").read_text())["repos"]
    assert {repo["repo"] for repo in hooks} == {"local"}
    needs = [need for repo in hooks for hook in repo["hooks"] for need in hook[NEEDS]]
    (ruff,) = (one for one in requirements("requirements-test.txt") if one.name == "ruff")
    assert {need for need in needs if need.startswith("ruff")} == {str(ruff)}
    assert re.fullmatch(r"==[\d.]+", str(ruff.specifier))


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md"])
def test_what_is_named_exists(name):
    text = (REPOSITORY / name).read_text()
    links = re.findall(r"\]\((?!https?:|#)([^)#]+)", text)
    files = re.findall(
        r"`((?:benchmarks|configs|docs|mirg_jax|scripts|tests)/[\w./]*|[\w-]+\.(?:toml|yml|cff))`",
        text,
    )
    missing = {path for path in [*links, *files] if not pathlib.Path(REPOSITORY, path).exists()}
    assert not missing


def test_every_page_is_in_the_sites_contents():
    class Loader(yaml.SafeLoader):
        """Of YAML that names Python functions."""

    Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda *_: None)
    config = yaml.load((REPOSITORY / "mkdocs.yml").read_text(), Loader)
    listed = re.findall(r"[\w/]+\.md", str(config["nav"]))
    pages = {path.name for path in (REPOSITORY / "docs").glob("*.md")}
    assert pages <= set(listed) and len(listed) == len(set(listed))
