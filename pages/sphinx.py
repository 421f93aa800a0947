"""The book's Sphinx extension: the repository's address, links from functions to their chapters, warnings
for notebooks that were not run through, equations as MathML, downloads that run elsewhere, and pages that load only
what they use.

Nothing here is imported by mathlib or by a chapter.
"""

import json
import os
import re
import warnings
from pathlib import Path

from sphinx.util import logging

from pages import equations

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


def set_addresses(app, config) -> None:
    found = repository()
    if not found:
        return
    url, site = found
    config.html_theme_options |= {
        "repository_url": url,
        "repository_branch": os.environ.get("GITHUB_REF_NAME", "main"),
        "use_repository_button": True,
        "use_issues_button": True,
    }
    config.html_baseurl = site


# These read files of the repository, so they run in a clone only.
IN_CLONE = {"chapters/index", "chapters/performance"}
# Colab opens what is in a branch, and publish.yml pushes the downloads to this one.
DOWNLOADS = "notebooks"


def add_launch_buttons(app, pagename, templatename, context, doctree) -> None:
    """The theme's own would open the chapter as it is committed, which installs nothing."""
    if not repository() or context.get("page_source_suffix") != ".ipynb":
        return
    name, branch = os.environ["GITHUB_REPOSITORY"], os.environ.get("GITHUB_REF_NAME", "main")
    links = {"Binder": f"https://mybinder.org/v2/gh/{name}/{branch}?urlpath=lab/tree/{pagename}.ipynb"}
    if pagename not in IN_CLONE:
        links["Colab"] = f"https://colab.research.google.com/github/{name}/blob/{DOWNLOADS}/{pagename}.ipynb"
    buttons = [
        {"type": "link", "text": text, "tooltip": f"Run on {text}", "icon": "fas fa-play", "url": url}
        for text, url in links.items()
    ]
    group = {"type": "group", "tooltip": "Run this page", "icon": "fas fa-rocket", "label": "launch-buttons"}
    context["header_buttons"].append({**group, "buttons": buttons})


def complete_downloads(app, exception) -> None:
    """Open each notebook that the pages offer for download with a cell that says what to install."""
    sources = Path(app.outdir) / "_sources"
    for path in [] if exception else sources.rglob("*.ipynb"):
        notebook = json.loads(path.read_text(encoding="utf-8"))
        if notebook["cells"][0].get("id") == "install":
            continue  # the page was built before, and did not change
        source = install(path.relative_to(sources).with_suffix("").as_posix())
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


# What a page may load: nothing from outside, in any reader's browser.
POLICY = "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline'; style-src 'self' 'unsafe-inline'"


def forbid_outside(app, pagename, templatename, context, doctree) -> None:
    """The head's first tag, since it holds for what comes after it."""
    policy = f'<meta http-equiv="Content-Security-Policy" content="{POLICY}"/>'
    context["metatags"] = policy + context.get("metatags", "")


def link_chapter(app, what, name, obj, options, lines) -> None:
    """Turn a docstring's line "Chapter: 01_infonce (eq. info-nce)" into links."""
    for index, line in enumerate(lines):
        match = CHAPTER_LINE.fullmatch(line)
        if not match:
            continue
        stem, label = match["stem"], match["label"]
        docname = next((doc for doc in app.env.found_docs if doc.rpartition("/")[2] == stem), None)
        if docname:
            text = f"*Chapter:* :doc:`/{docname}`" + (f", equation :eq:`{label}`" if label else "")
        else:
            text = f"*Chapter:* {stem}"
        lines[index : index + 1] = ["", text, ""]
        return


def warn_of_bad_cells(app, docname, source) -> None:
    """The build does not run the chapters, so a cell that failed, or was never run, is looked for here."""
    path = app.env.doc2path(docname)
    if not str(path).endswith(".ipynb"):
        return
    code = [cell for cell in json.loads(source[0])["cells"] if cell["cell_type"] == "code"]
    for number, cell in enumerate(code, start=1):
        where = f"{path}: code cell {number}"
        if cell["execution_count"] != number:
            logger.warning("%s was not run in its place", where)
        for output in cell["outputs"]:
            expected = "raises-exception" in cell["metadata"].get("tags", [])
            if output["output_type"] == "error" and not expected:
                logger.warning("%s stores an error: %s: %s", where, output["ename"], output["evalue"])


NO_BOXES = "[/* book.js */]"
BOXES = re.compile(r'document\.querySelectorAll\(\["pre",[^\]]*\]\.join\(", "\)\)')
ICON_CLASS = re.compile(r"\bfa-[a-z-]+")
ICON_RULE = re.compile(r"([^{}]*):before\{content:\"([^\"]*)\"\}")
THEME_ICON = re.compile(r"--pst-icon-[\w-]+:\"([^\"]*)\"")


# A signature's parameters, which Sphinx writes as a list of definitions that define nothing.
PARAMETERS = re.compile(r'<dl>\s*((?:<dd>.*?</dd>\s*)+)</dl>(?=\s*<span class="sig-paren">)')
DESCRIPTION = 200  # letters


def mend_page(app, pagename, templatename, context, doctree) -> None:
    body = context.get("body")
    if not body:
        return
    body = PARAMETERS.sub(
        lambda found: f'<ul class="sig-params">{found[1].replace("<dd>", "<li>").replace("</dd>", "</li>")}</ul>', body
    )
    # docutils' role for an entry is no longer one, and its list is a list of nothing without it
    context["body"] = body.replace('role="doc-biblioentry"', 'role="listitem"')
    context["description"] = description(doctree)


# A file that only pages with such a mark make use of.
USED_WITH = {
    "sphinx-design": "sd-",
    "design-tabs": "sd-tab-",
    "proof.css": "proof admonition",
    "exercise.css": 'class="exercise',
}


def load_lightly(app, pagename, templatename, context, doctree) -> None:
    """Leave out what the page has no use for, and let no script hold up the first paint."""
    if not context.get("body"):
        return  # the search page's own scripts call what they have just loaded

    def used(file) -> bool:
        return all(mark in context["body"] for name, mark in USED_WITH.items() if name in str(file.filename))

    for kind in ("css_files", "script_files"):
        context[kind] = [file for file in context[kind] if used(file)]
    tag = context["js_tag"]

    def late(script) -> str:
        html = tag(script)
        # a script within the page adds to these options, so they cannot wait
        wait = "documentation_options" not in html and "defer" not in html
        return html.replace(' src="', ' defer src="', 1) if wait else html

    context["js_tag"] = late


def description(doctree) -> str:
    """The page's first paragraph, without its formulas' source, for those who have not opened it yet."""
    from docutils import nodes

    for paragraph in doctree.findall(nodes.paragraph) if doctree else ():
        text = " ".join(paragraph.astext().split())
        if len(text) > 40 and "\\" not in text:
            return text if len(text) <= DESCRIPTION else text[:DESCRIPTION].rsplit(" ", 1)[0] + " …"
    return ""


def make_light(app, exception) -> None:
    """Drop what no page loads, make a font of the icons that the pages show, and keep no other icons' rules."""
    if exception or app.builder.format != "html":
        return
    static = Path(app.outdir) / "_static"
    for path in static.glob("scripts/fontawesome.js*"):
        path.unlink()

    # it asks for the size of every box as soon as there is a page; book.js asks when a box comes near the screen
    script = static / "scripts" / "pydata-sphinx-theme.js"
    source = BOXES.sub(NO_BOXES, script.read_text(encoding="utf-8"))
    if source.count(NO_BOXES) != 1:  # where Sphinx copied nothing anew, an earlier build has done it
        raise ValueError(f"{script.name} must measure the boxes that scroll in one place, was {source.count(NO_BOXES)}")
    script.write_text(source, encoding="utf-8")

    sheet = static / "styles" / "pydata-sphinx-theme.css"
    theme = sheet.read_text(encoding="utf-8")
    pages = "".join(path.read_text(encoding="utf-8") for path in Path(app.outdir).rglob("*.html"))
    used = set(ICON_CLASS.findall(pages))
    letters = "".join(THEME_ICON.findall(theme))
    for selectors, letter in ICON_RULE.findall(theme):
        if used & set(ICON_CLASS.findall(selectors)):
            letters += letter
    letters = re.sub(r"\\([0-9a-f]+)", lambda code: chr(int(code[1], 16)), letters)
    fonts = static / "vendor" / "fontawesome" / "webfonts"
    for source in sorted(fonts.glob("*.ttf")):
        subset(source, letters, static / f"icons-{source.stem.split('-')[1]}.woff")

    def kept(rule) -> str:
        icons = set(ICON_CLASS.findall(rule[1]))
        return rule[0] if used & icons or not icons else ""

    sheet.write_text(ICON_RULE.sub(kept, theme), encoding="utf-8")
    # spare the trip for a sheet that another one asks for
    first = static / "styles" / "theme.css"
    basic = (static / "basic.css").read_text(encoding="utf-8").replace("url(", "url(../")
    first.write_text(first.read_text(encoding="utf-8").replace('@import "../basic.css";', basic), encoding="utf-8")


def subset(source, letters, target) -> None:
    """Write the font's glyphs for these letters alone."""
    from fontTools.subset import Options, Subsetter, load_font, save_font

    options = Options(flavor="woff", layout_features=[], notdef_outline=True)
    font = load_font(source, options)
    subsetter = Subsetter(options)
    subsetter.populate(text=letters)
    subsetter.subset(font)
    save_font(font, target, options)


def setup(app) -> dict:
    # sphinx_external_toc looks at every live object, torch's deprecated ones too
    warnings.filterwarnings("ignore", message="`torch.distributed.reduce_op`")
    app.connect("config-inited", set_addresses)
    app.add_html_math_renderer("mathml", (equations.visit_inline, None), (equations.visit_block, None))
    app.connect("html-page-context", forbid_outside)
    app.connect("html-page-context", mend_page)
    # After the theme's, which makes the list of buttons.
    app.connect("html-page-context", add_launch_buttons, priority=900)
    app.connect("html-page-context", load_lightly, priority=900)
    app.connect("build-finished", complete_downloads)
    app.connect("build-finished", make_light)
    # Before napoleon, which would read on into the line as part of a section.
    app.connect("autodoc-process-docstring", link_chapter, priority=400)
    app.connect("source-read", warn_of_bad_cells)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
