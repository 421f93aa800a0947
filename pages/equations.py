"""Equations as MathML, written when the book is built: a reader's browser typesets them itself."""

import re

from docutils import nodes
from math_core import LatexError, LatexToMathML
from sphinx.locale import _
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)
converter = LatexToMathML(fancy_error=False)
# Letters of an inline formula that may be wider than a telephone.
WIDE = 25


def typeset(node, block: bool) -> str:
    latex = node.astext()
    try:
        mathml = converter.convert_with_local_state(latex, displaystyle=block)
    except LatexError as error:  # which begins with the place: "2: Unknown command ..."
        logger.warning("cannot read the equation %s, at letter %s", latex, error, location=node)
        return ""
    if block or len(re.sub("<[^>]*>", "", mathml)) > WIDE:
        mathml = mathml.replace("<math", '<math tabindex="0"', 1)  # it scrolls in its box, by keyboard too
    # which of two styles of script letters: our font has one, and another font could be taken for the other
    return mathml.replace("\N{VARIATION SELECTOR-1}", "")


def visit_inline(translator, node) -> None:
    start = translator.starttag(node, "span", "", CLASS="math notranslate nohighlight")
    translator.body.append(f"{start}{typeset(node, block=False)}</span>")
    raise nodes.SkipNode


def visit_block(translator, node) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if node["number"]:
        translator.body.append(f'<span class="eqno">({get_node_equation_number(translator, node)})')
        translator.add_permalink_ref(node, _("Link to this equation"))
        translator.body.append("</span>")
    translator.body.append(f"{typeset(node, block=True)}</div>\n")
    raise nodes.SkipNode
