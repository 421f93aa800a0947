"""The book's equations as MathML, written when it is built: a reader's browser typesets them itself.

Of LaTeX it reads what the book uses. Anything else is a warning, which fails the build; a new symbol is a line in
SYMBOLS (and a glyph in _static/math.woff: tools/mathfont.py). Spaces are TeX's (The TeXbook, chapter 18).
"""

import re
import unicodedata
from html import escape
from typing import NamedTuple

from docutils import nodes
from sphinx.locale import _
from sphinx.util import logging
from sphinx.util.math import get_node_equation_number

logger = logging.getLogger(__name__)


def pairs(text: str) -> dict[str, str]:
    words = text.split()
    return dict(zip(words[::2], words[1::2], strict=True))


# What a symbol is to its neighbours (TeX's classes): an ordinary one, a large operator, a binary one, a relation, ...
SYMBOLS = {
    "ord": r"/ / | | . . @ @ \| ‖ \% %",
    "op": r"\sum ∑ \prod ∏",
    "bin": r"+ + - − * ∗ \cdot ⋅ \times × \pm ± \cap ∩ \cup ∪ \setminus ∖ \circ ∘ \odot ⊙",
    "rel": r"= = < < > > : : \le ≤ \ge ≥ \ll ≪ \gg ≫ \ne ≠ \approx ≈ \equiv ≡ \sim ∼ \propto ∝ \in ∈ \notin ∉ \subset ⊂"
    r" \subseteq ⊆ \mid ∣ \perp ⟂ \succ ≻ \prec ≺ \to → \mapsto ↦ \Rightarrow ⇒ \Longleftrightarrow ⟺ \iff ⟺",
    "open": r"( ( [ [ \{ { \lvert | \lVert ‖ \langle ⟨ \lfloor ⌊",
    "close": r") ) ] ] \} } \rvert | \rVert ‖ \rangle ⟩ \rfloor ⌋",
    "punct": ", , ; ;",
    "inner": r"\ldots … \cdots ⋯",
}
SYMBOLS = {name: (kind, symbol) for kind, text in SYMBOLS.items() for name, symbol in pairs(text).items()}
# Letters, slanted by the browser, and what is upright.
LETTERS = pairs(
    r"\alpha α \beta β \gamma γ \delta δ \epsilon ϵ \varepsilon ε \zeta ζ \eta η \theta θ \kappa κ \lambda λ \mu μ"
    r" \nu ν \xi ξ \pi π \rho ρ \sigma σ \tau τ \phi ϕ \varphi φ \chi χ \psi ψ \omega ω \partial ∂ \ell ℓ"
)
UPRIGHT = pairs(
    r"\Gamma Γ \Delta Δ \Theta Θ \Lambda Λ \Xi Ξ \Pi Π \Sigma Σ \Phi Φ \Psi Ψ \Omega Ω"
    r" \nabla ∇ \infty ∞ \top ⊤ \forall ∀ \exists ∃"
)
FUNCTIONS = {rf"\{name}": name for name in "arccos cos det exp ln log sin tan tanh".split()}
LIMITS = {rf"\{name}": name for name in "inf lim max min sup".split()}  # what stands under them, in a display
DEEP = set("fgjpqyJQβγζημξρφϕχψ")  # below which a browser would hang an index lower than others
ALPHABETS = {r"\mathbf": "BOLD", r"\mathbb": "DOUBLE-STRUCK", r"\mathcal": "SCRIPT", r"\mathit": "ITALIC"}
ACCENTS = pairs(r"\hat ˆ \tilde ˜ \bar ¯ \overline ‾ \dot ˙")
SIZES = {"big": 1.2, "Big": 1.8, "bigg": 2.4, "Bigg": 3.0}
THIN, MEDIUM, THICK = 3, 4, 5  # eighteenths of an em
SPACES = {r"\!": -THIN, r"\,": THIN, r"\:": MEDIUM, r"\;": THICK, r"\ ": 6, "~": 6, r"\quad": 18, r"\qquad": 36}
# Between an atom and the next; those of the second table disappear in indices.
KINDS = ["ord", "op", "bin", "rel", "open", "close", "punct", "inner"]
ALWAYS = {("ord", "op"), ("op", "ord"), ("op", "op"), ("close", "op"), ("inner", "op")}
IN_LINE = [
    #  ord     op      bin     rel     open    close   punct   inner       after
    [0,      0,      MEDIUM, THICK,  0,      0,      0,      THIN],    # ord
    [0,      0,      0,      THICK,  0,      0,      0,      THIN],    # op
    [MEDIUM, MEDIUM, 0,      0,      MEDIUM, 0,      0,      MEDIUM],  # bin
    [THICK,  THICK,  0,      0,      THICK,  0,      0,      THICK],   # rel
    [0,      0,      0,      0,      0,      0,      0,      0],       # open
    [0,      0,      MEDIUM, THICK,  0,      0,      0,      THIN],    # close
    [THIN,   THIN,   0,      THIN,   THIN,   THIN,   THIN,   THIN],    # punct
    [THIN,   0,      MEDIUM, THICK,  THIN,   0,      THIN,   THIN],    # inner
]  # fmt: skip
DISPLAY, TEXT, SCRIPT = range(3)
SPACE = '<mspace width="{}"></mspace>'
TOKEN = re.compile(r"\s*(\\operatorname\*|\\[A-Za-z]+|\\.|'+|\d+(?:\.\d+)?|.|$)", re.DOTALL)


class Unsupported(ValueError):
    """LaTeX that the book does not use as yet."""


class Atom(NamedTuple):
    kind: str  # one of KINDS, or "space"
    tag: str
    body: str
    attributes: str = ""
    limits: bool = False
    space: int = 0

    def markup(self, more="") -> str:
        return f"<{self.tag}{self.attributes}{more}>{self.body}</{self.tag}>"


def mathml(latex: str, block: bool = False) -> str:
    """The formula as a <math> element; Unsupported where it says something that is not read here."""
    row = Reader(latex).row(("",), DISPLAY if block else TEXT)
    return f'<math display="block">{row}</math>' if block else f"<math>{row}</math>"


def letter(alphabet: str, char: str) -> str:
    """A letter of a mathematical alphabet: some are older in Unicode than their alphabet, and lie elsewhere."""
    name = f"{alphabet} {'CAPITAL' if char.isupper() else 'SMALL'} {char.upper()}"
    try:
        return unicodedata.lookup(f"MATHEMATICAL {name}")
    except KeyError:
        return unicodedata.lookup({"ITALIC SMALL H": "PLANCK CONSTANT"}.get(name, name))


def em(eighteenths: int) -> str:
    return f"{eighteenths / 18:.3g}em"


def group(row: str) -> str:
    """The row as one element."""
    return row if re.fullmatch(r"<(m[ion]|mtext)\b[^<]*</\1>", row) else f"<mrow>{row}</mrow>"


def spaced(atoms: list[Atom], style: int, before: str) -> str:
    """The atoms' markup with TeX's spaces between them."""
    gap, gaps, solid = 0, [], []
    for atom in atoms:
        if atom.kind == "space":
            gap += atom.space
        else:
            gaps.append(gap)
            solid.append(atom)
            gap = 0
    kinds = [atom.kind for atom in solid]
    for index, kind in enumerate(kinds):
        left = kinds[index - 1] if index else before
        right = kinds[index + 1] if index + 1 < len(kinds) else "close"
        if kind == "bin" and (left in ("", "bin", "op", "rel", "open", "punct") or right in ("rel", "close", "punct")):
            kinds[index] = kind = "ord"  # a sign, or a symbol on its own
        if (left, kind) in ALWAYS:
            gaps[index] += THIN
        elif left and style != SCRIPT:
            gaps[index] += IN_LINE[KINDS.index(left)][KINDS.index(kind)]
    gaps.append(gap)
    if min(gaps) < 0:
        raise Unsupported("less space than none")
    # A space beside a bare operator is the operator's, as browsers put in their own where it names none.
    out, bare = "", [atom.tag == "mo" for atom in solid] + [False]
    for index, atom in enumerate(solid):
        if gaps[index] and not bare[index] and not (index and bare[index - 1]):
            out += SPACE.format(em(gaps[index]))
        right = 0 if bare[index + 1] else gaps[index + 1]
        own = bare[index] and (atom.body not in "()[]{}" or gaps[index] or right)
        out += atom.markup(f' lspace="{em(gaps[index])}" rspace="{em(right)}"' if own else "")
    return out + (SPACE.format(em(gap)) if gap and not (solid and bare[-2]) else "")


class Reader:
    """Reads a formula from left to right."""

    def __init__(self, latex: str):
        self.latex, self.at = latex, 0

    def peek(self) -> str:
        return TOKEN.match(self.latex, self.at)[1]

    def next(self, *expected: str) -> str:
        found = TOKEN.match(self.latex, self.at)
        if expected and found[1] not in expected:
            raise Unsupported(f"{found[1] or 'the end'} where {' or '.join(expected)} should be")
        self.at = found.end()
        return found[1]

    def word(self) -> str:
        """What stands in braces, as it is written; or one letter."""
        if self.peek() != "{":
            return self.next()
        start = self.at = self.latex.index("{", self.at) + 1
        end = self.latex.find("}", start)
        if end < 0 or re.search(r"[{$\\]", self.latex[start:end]):
            raise Unsupported(f"{self.latex[start:]} is more than text")
        self.at = end + 1
        return self.latex[start:end]

    def row(self, ends: tuple[str, ...], style: int, before: str = "") -> str:
        """Up to one of the ends, which stays unread."""
        atoms = []
        while self.peek() not in ends:
            atoms.append(self.scripted(style))
        return spaced(atoms, style, before)

    def braces(self, style: int) -> str:
        self.next("{")
        row = self.row(("}", ""), style)
        self.next("}")
        return group(row)

    def argument(self, style: int) -> str:
        """A group in braces, or a single token: of 12 that is 1."""
        if self.peek() == "{":
            return self.braces(style)
        if re.fullmatch(r"\d.*", self.peek()):
            self.at = TOKEN.match(self.latex, self.at).start(1) + 1
            return f"<mn>{self.latex[self.at - 1]}</mn>"
        atom = self.atom(style)
        return group(spaced([atom], style, ""))

    def scripted(self, style: int) -> Atom:
        """An atom with its indices, beside it or (a sum's in a display) under and over it."""
        atom = self.atom(style) if self.peek()[:1] not in ("_", "^", "'") else Atom("ord", "mrow", "")
        low = high = ""
        while self.peek()[:1] in ("_", "^", "'"):
            token = self.next()
            if low if token == "_" else high:
                raise Unsupported(f"a second {token}")
            if token == "_":
                low = self.argument(SCRIPT)
            elif token == "^":
                high = self.argument(SCRIPT)
            else:
                high = "<mo>" + "′" * len(token) + "</mo>"
        if not low and not high:
            return atom
        under = atom.limits and (style == DISPLAY or atom.tag == "munder")
        tag = {(1, 0): ("msub", "munder"), (0, 1): ("msup", "mover"), (1, 1): ("msubsup", "munderover")}
        base = atom.markup(' lspace="0em" rspace="0em"' if atom.tag == "mo" else "")
        if low and not under and atom.tag == "mi" and atom.body in DEEP:
            base = f'<mpadded depth="0">{base}</mpadded>'
        return Atom(atom.kind, tag[bool(low), bool(high)][under], base + low + high)

    def atom(self, style: int) -> Atom:
        token = self.next()
        if token in SPACES:
            return Atom("space", "", "", space=SPACES[token])
        if token in SYMBOLS:
            kind, symbol = SYMBOLS[token]
            upright = kind in ("open", "close") or symbol in "|‖∣"
            still = ' stretchy="false"' if upright else ""
            return Atom(kind, "mo", escape(symbol), still, limits=kind == "op")
        if token in LETTERS or re.fullmatch("[A-Za-z]", token):
            return Atom("ord", "mi", LETTERS.get(token, token))
        if token in UPRIGHT:
            return Atom("ord", "mi", UPRIGHT[token], ' mathvariant="normal"')
        if token[:1].isdigit():
            return Atom("ord", "mn", token)
        if token in FUNCTIONS or token in LIMITS:
            return Atom("op", "mi", token[1:], limits=token in LIMITS)
        if token in ALPHABETS:
            return Atom("ord", "mi", "".join(letter(ALPHABETS[token], char) for char in self.word()))
        if token == r"\mathrm":
            word = self.word()
            return Atom("ord", "mi", word, ' mathvariant="normal"' if len(word) == 1 else "")
        if token == r"\text":
            return Atom("ord", "mtext", escape(self.word().replace(" ", "\N{NO-BREAK SPACE}")))
        if token.startswith(r"\operatorname"):
            return self.operator(limits=token.endswith("*"))
        if token == "{":
            self.at -= 1
            return Atom("ord", "mrow", self.braces(style))
        if token in (r"\frac", r"\tfrac"):
            return self.fraction(style, token == r"\tfrac")
        if token == r"\sqrt" and self.peek() != "[":
            return Atom("ord", "msqrt", self.argument(style))
        if token in ACCENTS:
            wide = token == r"\overline"
            accent = f'<mo stretchy="{"true" if wide else "false"}">{ACCENTS[token]}</mo>'
            return Atom("ord", "mover", self.argument(style) + accent, ' accent="true"')
        if token == r"\underbrace":
            return Atom("ord", "munder", self.argument(style) + '<mo stretchy="true">⏟</mo>', limits=True)
        if size := re.fullmatch(r"\\([bB]igg?)([lmr]?)", token):
            kind = {"l": "open", "r": "close", "m": "rel", "": "ord"}[size[2]]
            height = SIZES[size[1]]
            return Atom(kind, "mo", self.delimiter(), f' stretchy="true" minsize="{height}em" maxsize="{height}em"')
        if token == r"\left":
            return self.fenced(style)
        if token == r"\begin":
            return self.table(style)
        raise Unsupported(f"{token or 'the end'} is not known here")

    def operator(self, limits: bool) -> Atom:
        """A function's name: upright, but for letters in \\mathit."""
        self.next("{")
        out = ""
        while self.peek() != "}":
            if self.peek() == r"\mathit":
                self.next()
                out += f"<mi>{self.word()}</mi>"
                continue
            name = re.compile(r"[A-Za-z -]+").match(self.latex, self.at)
            if not name:
                raise Unsupported(f"{self.peek()} in an operator's name")
            self.at = name.end()
            out += f"<mi>{name[0]}</mi>"
        self.next("}")
        return Atom("op", "mrow", out, limits=limits)

    def fraction(self, style: int, small: bool) -> Atom:
        inner = SCRIPT if small else min(style + 1, SCRIPT)
        above, below = self.argument(inner), self.argument(inner)
        return Atom("ord", "mfrac", above + below, ' displaystyle="false"' if small else "")

    def delimiter(self) -> str:
        token = self.next()
        if token == ".":
            return ""
        kind, symbol = SYMBOLS.get(token, ("", ""))
        if kind not in ("open", "close") and symbol not in ("|", "‖", "/"):
            raise Unsupported(f"{token or 'the end'} is no delimiter")
        return escape(symbol)

    def fenced(self, style: int) -> Atom:
        """What stands between \\left and \\right, which grow with it."""
        fences = [self.delimiter()]
        row = self.row((r"\right", ""), style)
        self.next(r"\right")
        fences.append(self.delimiter())
        left, right = (
            f'<mo stretchy="true" form="{form}" lspace="0em" rspace="0em">{fence}</mo>' if fence else ""
            for fence, form in zip(fences, ("prefix", "postfix"), strict=True)
        )
        return Atom("inner", "mrow", left + row + right)

    def table(self, style: int) -> Atom:
        """Cases, or equations set one above the other; its columns' sides are in book.css."""
        name = self.word()
        if name not in ("cases", "aligned"):
            raise Unsupported(f"no environment {name} is known here")
        inner, cells, out = TEXT if name == "cases" else DISPLAY, 0, "<mtr>"
        while True:
            row = self.row(("&", r"\\", r"\end", ""), inner, "ord" if cells % 2 and name == "aligned" else "")
            out += f"<mtd>{row}</mtd>"
            end = self.next("&", r"\\", r"\end")
            cells += 1
            if end == r"\end" or (end == r"\\" and self.peek() == r"\end" and self.next()):
                break
            if end == r"\\":
                out, cells = out + "</mtr><mtr>", 0
        if self.word() != name:
            raise Unsupported(f"{name} without its end")
        if name == "aligned":
            return Atom("ord", "mtable", out + "</mtr>", ' class="aligned" displaystyle="true"')
        brace = '<mo stretchy="true" form="prefix" lspace="0em" rspace="0em">{</mo>'
        return Atom("inner", "mrow", f'{brace}<mtable class="cases">{out}</mtr></mtable>')


def typeset(translator, node, block: bool) -> None:
    try:
        translator.body.append(mathml(node.astext(), block))
    except Unsupported as error:
        logger.warning("equation %s: %s", node.astext(), error, location=node)
        translator.body.append("<math><merror></merror></math>")


def visit_inline(translator, node) -> None:
    translator.body.append(translator.starttag(node, "span", "", CLASS="math notranslate nohighlight"))
    typeset(translator, node, block=False)
    translator.body.append("</span>")
    raise nodes.SkipNode


def visit_block(translator, node) -> None:
    translator.body.append(translator.starttag(node, "div", CLASS="math notranslate nohighlight"))
    if node["number"]:
        translator.body.append(f'<span class="eqno">({get_node_equation_number(translator, node)})')
        translator.add_permalink_ref(node, _("Link to this equation"))
        translator.body.append("</span>")
    typeset(translator, node, block=True)
    translator.body.append("</div>\n")
    raise nodes.SkipNode
