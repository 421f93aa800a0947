"""What furo and the extensions leave to do: what scrolls can be reached by keyboard, what folds needs no script, no id
stands twice on a page, and each page tells in a sentence what it is about."""

import re
from html import escape

from docutils import nodes
from myst_nb.sphinx_ import HideCodeCellNode
from sphinx.locale import _
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx_exercise.nodes import solution_node

# A signature's parameters, which Sphinx writes as a list of definitions that define nothing.
PARAMETERS = re.compile(r'<dl>\s*((?:<dd>.*?</dd>\s*)+)</dl>(?=\s*<span class="sig-paren">)')
# A formula with what touches it: a browser would break the line before a comma.
TOUCHED = re.compile(r'[^\s<>]*<span class="math [^>]*>(?:(?!</span>).)*</span>[^\s<>]*', re.DOTALL)
DESCRIPTION = 200  # letters
# Sheets of which the pages use a few rules, which book.css has for both modes.
SPARED = re.compile(r"mystnb\.|exercise\.css")


def enclose(node, tag, attributes, inside="") -> None:
    """Make an HTML element of a node's children, with some HTML before them."""
    opening = nodes.raw("", f"<{tag} {attributes}>{inside}", format="html")
    replace(node, [opening, *node.children, nodes.raw("", f"</{tag}>", format="html")])


def replace(node, others) -> None:
    """Without its classes and ids, which replace_self would hand on."""
    place = node.parent.index(node)
    node.parent[place : place + 1] = others


class Mend(SphinxPostTransform):
    """The finished page's boxes."""

    default_priority = 600  # after furo, which wraps tables and equations, and after myst-nb, which hides code
    formats = ("html",)

    def run(self, **options) -> None:
        boxes = [*self.document.findall(nodes.container)]
        tables = [box for box in boxes if "table-wrapper" in box["classes"]]
        for number, box in enumerate(tables, start=1):
            name = f'role="region" aria-label="{_("Table")} {number}"'
            enclose(box, "div", f'class="table-wrapper container" tabindex="0" {name}')
        for box in boxes:
            if "math-wrapper" in box["classes"]:
                replace(box, box.children)  # an equation is a box already, and furo gives its id to both
        for section in self.document.findall(nodes.section):
            if section["ids"] in (["exercise-content"], ["solution-content"]):
                section["ids"] = []  # sphinx-exercise calls all of them so
        for code in [*self.document.findall(HideCodeCellNode)]:
            self.hide(code)
        for solution in [*self.document.findall(solution_node)]:
            title = escape(solution.pop(0).astext())
            enclose(solution, "details", f'class="solution" id="{solution["ids"][0]}"', f"<summary>{title}</summary>")

    def hide(self, code) -> None:
        """Under one bar with the next cell's code, where that is hidden too and nothing is shown in between."""
        cell = code.parent
        following = cell.next_node(descend=False, siblings=True)
        if len(cell) == 1 and following and following.children and isinstance(following[0], HideCodeCellNode):
            following[0][:0] = code.children
            cell.parent.remove(cell)
        else:
            enclose(code, "details", 'class="hide"', f"<summary>{_('Code')}</summary>")


def mend_page(app, pagename, templatename, context, doctree) -> None:
    context["css_files"] = [sheet for sheet in context["css_files"] if not SPARED.search(sheet.filename)]
    if app.config.language == "ko":  # titles of what stays English
        tree = context["furo_navigation_tree"]
        context["furo_navigation_tree"] = re.sub(r"<a (?=[^>]*>[^<가-힣]*</a>)", '<a lang="en" ', tree)
    body = context.get("body")
    if not body:
        return
    body = PARAMETERS.sub(
        lambda found: f'<ul class="sig-params">{found[1].replace("<dd>", "<li>").replace("</dd>", "</li>")}</ul>', body
    )
    body = TOUCHED.sub(r'<span class="unbroken">\g<0></span>', body)
    if app.config.language == "ko":  # a line would end, though the word goes on: 독스트링(docstring)의
        body = re.sub(r"([)”’%–])(?=[가-힣])", "\\1\N{WORD JOINER}", body)
        # descriptions of functions, and references, are in English
        body = re.sub(r'<(dl|div) (?=class="(?:py |citation"))', r'<\1 lang="en" ', body)
    # docutils' role for an entry is no longer one, and its list is a list of nothing without it
    body = body.replace('role="doc-biblioentry"', 'role="listitem"')
    # code scrolls where it is wider than the screen (book.js takes it back where it is not)
    context["body"] = body.replace("<pre>", '<pre tabindex="0">')
    context["description"] = description(doctree)


def description(doctree) -> str:
    """The page's first paragraph, without its formulas' source, for those who have not opened it yet."""
    for paragraph in doctree.findall(nodes.paragraph) if doctree else ():
        text = " ".join(paragraph.astext().split())
        if len(text) > 40 and "\\" not in text:
            return text if len(text) <= DESCRIPTION else text[:DESCRIPTION].rsplit(" ", 1)[0] + " …"
    return ""


def setup(app) -> dict:
    app.setup_extension("furo")  # before _config.yml is read, which sets an option of its own
    app.add_post_transform(Mend)
    app.connect("html-page-context", mend_page)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
