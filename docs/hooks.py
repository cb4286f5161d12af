"""What the site takes from elsewhere in the repository, and links that hold in both places.

Pages link to each other as files do: `../CHANGELOG.md`, `../examples/fig3.py`. In the site these stand beside the
pages of docs/, and their links lead there.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[1]
ELSEWHERE = {
    "README.md": "readme.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "SECURITY.md": "security.md",
    "kernels/README.md": "kernels.md",
    **{path: path for path in sorted(f"examples/{file.name}" for file in (ROOT / "examples").glob("*.py"))},
}
"""File of the repository → its place in the site."""

_LINK = re.compile(r"(\]\()(?![a-z]+:|#)([^)#\s]+)")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the files from elsewhere."""
    for source, place in ELSEWHERE.items():
        files.append(File.generated(config, place, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Let links lead to the places that the files have in the site."""
    sources = {place: source for source, place in ELSEWHERE.items()}
    folder = posixpath.dirname(sources.get(page.file.src_uri, f"docs/{page.file.src_uri}"))
    here = posixpath.dirname(page.file.src_uri) or "."

    def moved(link: re.Match[str]) -> str:
        target = posixpath.normpath(posixpath.join(folder, link[2]))
        return link[1] + posixpath.relpath(ELSEWHERE.get(target, target.removeprefix("docs/")), here)

    return _LINK.sub(moved, markdown)
