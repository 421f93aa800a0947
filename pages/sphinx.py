"""The book's Sphinx extension: addresses, old ones too, downloads that run elsewhere, links from functions to their
chapters and from sentences to claims, and warnings for notebooks that were not run through. _config.yml names it;
equations and theme are its other two parts."""

import json
import os
import re
import warnings
from pathlib import Path

from sphinx.util import logging

from pages import editions, equations

logger = logging.getLogger(__name__)

CHAPTER_LINE = re.compile(r"\s*Chapter: (?P<stem>\w+)(?: \(eq\. (?P<label>[\w-]+)\))?\s*")


def repository() -> tuple[str, str] | None:
    """The repository's and the published book's address, as a GitHub Actions run tells them."""
    server, name = os.environ.get("GITHUB_SERVER_URL"), os.environ.get("GITHUB_REPOSITORY")
    if not server or not name:
        return None
    owner, _, project = name.partition("/")
    site = f"https://{owner.lower()}.github.io/"
    if project.lower() != f"{owner.lower()}.github.io":
        site += f"{project}/"
    return f"{server}/{name}", site


# [helps](labs/06_gist.ipynb#claim-gist-mask "holds")
CLAIM_LINK = re.compile(r"\]\(labs/\w+\.ipynb#(?=claim-)")
# These read files of the repository, so they run in a clone only.
IN_CLONE = {"chapters/index", "chapters/labs/08_capstone", "chapters/performance"}
# Colab opens what is in a branch, and publish.yml pushes the downloads to this one.
DOWNLOADS = "notebooks"


def set_addresses(app, config) -> None:
    """What the pages link to, where it is known, and whether there are two editions."""
    folder = "ko/" if config.language == "ko" else ""
    config.html_context |= {"folder": folder, "editions": folder or Path(app.outdir, "ko").exists()}
    if repository():
        url, site = repository()
        config.html_baseurl = site + folder
        name, branch = os.environ["GITHUB_REPOSITORY"], os.environ.get("GITHUB_REF_NAME", "main")
        config.html_context |= {"repository": url, "repository_name": name, "branch": branch}
        config.html_context |= {"in_clone": IN_CLONE, "downloads": f"{DOWNLOADS}/{folder}"}


def complete_downloads(app, exception) -> None:
    """Open each notebook that the pages offer for download with a cell that says what to install."""
    sources = Path(app.outdir) / "_sources"
    for path in [] if exception else sources.rglob("*.ipynb"):
        text, docname = path.read_text(encoding="utf-8"), path.relative_to(sources).with_suffix("").as_posix()
        if app.env.metadata[docname].get("korean"):
            text = editions.in_korean(Path(app.srcdir), docname.removeprefix("chapters/"), text)
        notebook = json.loads(text)
        if notebook["cells"][0].get("id") == "install":
            continue  # the page was built before, and did not change
        source = install(docname)
        cell = {"cell_type": "code", "id": "install", "metadata": {}, "execution_count": None, "outputs": []}
        notebook["cells"].insert(0, cell | {"source": source})
        path.write_text(json.dumps(notebook, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def install(docname) -> str:
    found = repository()
    if found and docname not in IN_CLONE:
        return (
            "# Where the book's package is missing, as on Colab, this installs it.\n"
            "import importlib.util\n\n"
            'if not importlib.util.find_spec("mathlib"):\n'
            f'    %pip install -q "mathlib-book[book] @ git+{found[0]}"'
        )
    place = found[0] if found else "the book's repository"
    return f'# Runs in a clone of {place},\n# in its folder chapters, after: pip install ".[book]"'


def link_chapter(app, what, name, obj, options, lines) -> None:
    """Turn a docstring's line "Chapter: 01_infonce (eq. info-nce)" into links."""
    for index, line in enumerate(lines):
        if match := CHAPTER_LINE.fullmatch(line):
            equation = f", equation :eq:`{match['label']}`" if match["label"] else ""
            lines[index : index + 1] = ["", f"*Chapter:* :doc:`/chapters/{match['stem']}`{equation}", ""]
            return


def link_claims(app, docname, source) -> None:
    """A claim's link names its lab, which a notebook's reader can open; here labels are known without."""
    source[0] = CLAIM_LINK.sub(r"](#", source[0])


def lead_on(app, pagename, templatename, context, doctree) -> None:
    """What an address of a chapter or a lab once led to stands in the lab, perhaps under another name."""
    file = Path(app.confdir, "mathlib", "book", "measured.json")
    claims = json.loads(file.read_text(encoding="utf-8"))["claims"] if file.exists() else []
    folder, _, stem = pagename.rpartition("/")
    lab = "" if folder == "chapters/labs" else f"labs/{stem}.html"
    moved = {
        label: f"{lab}#{claim['label']}"
        for claim in claims
        for label in (claim["label"], *claim["was"])
        if claim["lab"] == stem and f'id="{label}"' not in context["body"]
    }
    if moved:
        context["body"] += f"<script>const moved = {json.dumps(moved, sort_keys=True)}</script>"


def warn_of_bad_cells(app, docname, source) -> None:
    """The build does not run the chapters, so a cell that failed, or was not run in its place, is looked for here."""
    if not str(app.env.doc2path(docname)).endswith(".ipynb"):
        return
    code = [cell for cell in json.loads(source[0])["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, start=1):
        if cell["execution_count"] != number:
            logger.warning("code cell %s was not run in its place", number, location=docname)
        expected = "raises-exception" in cell["metadata"].get("tags", [])
        for output in [] if expected else cell["outputs"]:
            if output["output_type"] == "error":
                error = f"{output['ename']}: {output['evalue']}"
                logger.warning("code cell %s stores an error: %s", number, error, location=docname)


def setup(app) -> dict:
    # sphinx_external_toc looks at every live object, torch's deprecated ones too
    warnings.filterwarnings("ignore", message="`torch.distributed.reduce_op`")
    app.setup_extension("pages.theme")
    app.setup_extension("pages.editions")
    app.connect("config-inited", set_addresses)
    app.add_html_math_renderer("mathml", (equations.visit_inline, None), (equations.visit_block, None))
    app.connect("build-finished", complete_downloads)
    # Before napoleon, which would read on into the line as part of a section.
    app.connect("autodoc-process-docstring", link_chapter, priority=400)
    app.connect("source-read", warn_of_bad_cells)
    app.connect("source-read", link_claims)
    app.connect("html-page-context", lead_on)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
