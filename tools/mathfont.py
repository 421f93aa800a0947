"""Makes pages/_static/math.woff, the equations' font: TeX Gyre Pagella Math, less what pages/mathml.py never writes.

Chromium leaves room for a bracket's or a root's widest size beside all of them; this font's differ little in width.

To be run again when mathml.py has learnt a symbol, with the whole font at hand (version 1.632, tex-gyre-math on CTAN
and in Linux distributions): python -m tools.mathfont texgyrepagella-math.otf
"""

import string
import sys
import unicodedata
from pathlib import Path

from pages.mathml import ACCENTS, ALPHABETS, LETTERS, SYMBOLS, UPRIGHT, letter

NAME = "Mathlib Book Math"
OVERLINE = "‾"
TALL = "()[]{}|‖⟨⟩⌊⌋√∑∏"  # what comes in several sizes, or grows
WIDE = "⏟" + OVERLINE


def characters() -> set[str]:
    """All that an equation can show, but for what a \\text may say beyond ASCII."""
    found = set(map(chr, range(32, 127))) | set("\N{NO-BREAK SPACE}√⏟′") | set(ACCENTS.values())
    found |= {symbol for _, symbol in SYMBOLS.values()} | set(LETTERS.values()) | set(UPRIGHT.values())
    for alphabet in ALPHABETS.values():
        cases = string.ascii_uppercase if alphabet in ("SCRIPT", "DOUBLE-STRUCK") else string.ascii_letters
        found |= {letter(alphabet, char) for char in cases}
    # Browsers show a Greek letter in <mi> as its italic.
    return found | {italic for char in LETTERS.values() if (italic := italic_greek(char))}


def italic_greek(char: str) -> str:
    name = unicodedata.name(char)
    name = {"GREEK LUNATE EPSILON SYMBOL": "EPSILON SYMBOL", "GREEK PHI SYMBOL": "PHI SYMBOL"}.get(name, name)
    try:
        return unicodedata.lookup(f"MATHEMATICAL ITALIC {name.removeprefix('GREEK ').replace(' LETTER', '')}")
    except KeyError:
        return ""


def make(source: str, target: Path) -> None:
    from copy import deepcopy

    from fontTools.subset import Options, Subsetter
    from fontTools.ttLib import TTFont

    font = TTFont(source, lazy=False)
    # It has an overline for combining only: MathML's is a character of its own.
    variants = font["MATH"].table.MathVariants
    wide = dict(zip(variants.HorizGlyphCoverage.glyphs, variants.HorizGlyphConstruction, strict=True))
    names = font.getBestCmap()
    line = wide[names[0x305]].MathGlyphVariantRecord[1].VariantGlyph
    wide[line] = deepcopy(wide[names[0x305]])
    wide[line].MathGlyphVariantRecord, wide[line].VariantCount = [], 0
    for table in font["cmap"].tables:
        table.cmap[ord(OVERLINE)] = line
    names = font.getBestCmap()
    tall = dict(zip(variants.VertGlyphCoverage.glyphs, variants.VertGlyphConstruction, strict=True))
    for side, found, kept in (("Horiz", wide, WIDE), ("Vert", tall, TALL)):
        glyphs = sorted({names[ord(char)] for char in kept} & set(found), key=font.getGlyphID)
        getattr(variants, f"{side}GlyphCoverage").glyphs = glyphs
        setattr(variants, f"{side}GlyphConstruction", [found[glyph] for glyph in glyphs])
        setattr(variants, f"{side}GlyphCount", len(glyphs))

    # An index hangs as deep with a power above it or without; TeX's would not.
    constants = font["MATH"].table.MathConstants
    constants.SubscriptShiftDown.Value, constants.SubscriptTopMax.Value = 160, 360
    constants.SuperscriptBaselineDropMax.Value = 400

    options = Options(flavor="woff", notdef_outline=True, hinting=False, name_IDs=[0, 1, 2, 4, 5, 6])
    options.drop_tables += ["FFTM", "GDEF", "GPOS", "GSUB"]
    subsetter = Subsetter(options)
    subsetter.populate(unicodes=map(ord, characters()))
    subsetter.subset(font)
    for record in font["name"].names:  # its licence asks for another name for what was changed
        if record.nameID in (1, 4, 6):
            record.string = NAME.replace(" ", "") if record.nameID == 6 else NAME
    font["CFF "].cff.fontNames[0] = NAME.replace(" ", "")
    font["CFF "].cff.topDictIndex[0].FullName = font["CFF "].cff.topDictIndex[0].FamilyName = NAME
    font.flavor = "woff"
    font.recalcTimestamp = False
    font.save(target)


if __name__ == "__main__":
    make(sys.argv[1], Path(__file__).parents[1] / "pages" / "_static" / "math.woff")
