"""Make pages/_static/math.woff, the equations' font: what the built pages show of TeX Gyre Pagella Math.

A test fails when an equation shows what the font lacks. Then run this after a build, with the whole font at hand
(version 1.632: tex-gyre-math on CTAN, fonts-texgyre-math in Debian): python tools/mathfont.py texgyrepagella-math.otf

Chromium leaves room for a bracket's or a root's widest size beside all of them; this font's differ little in width.
"""

import html
import re
import string
import sys
import unicodedata
from pathlib import Path

from fontTools.subset import Options, Subsetter
from fontTools.ttLib import TTFont

ROOT = Path(__file__).parents[1]
NAME = "Mathlib Book Math"  # its licence asks for another name for what was changed


def characters(pages: str) -> set[str]:
    """What the pages' equations show, and ASCII for those to come."""
    equations = "".join(re.findall(r"<math[ >].*?</math>", pages, re.DOTALL))
    found = {*html.unescape(re.sub("<[^>]*>", "", equations)), *string.printable}
    # A browser shows a letter that stands alone as its italic (that of h is Planck's constant), and draws roots itself.
    for char in map(chr, range(0x1D400, 0x1D800)):
        italic = unicodedata.name(char, "").startswith("MATHEMATICAL ITALIC")
        if italic and unicodedata.normalize("NFKC", char) in found:
            found.add(char)
    return found | {"ℎ", "√"}


def make(source: str, pages: str, target: Path) -> None:
    font = TTFont(source, lazy=False, recalcTimestamp=False)
    # An index hangs as deep with a power above it or without, and from p as deep as from s; TeX's would not.
    constants = font["MATH"].table.MathConstants
    constants.SubscriptShiftDown.Value, constants.SubscriptTopMax.Value = 160, 360
    constants.SubscriptBaselineDropMin.Value = -300
    constants.SuperscriptBaselineDropMax.Value = 400

    options = Options(notdef_outline=True, hinting=False, name_IDs=[0, 1, 2, 4, 5, 6])
    options.drop_tables += ["FFTM", "GDEF", "GPOS", "GSUB"]
    subsetter = Subsetter(options)
    subsetter.populate(text="".join(characters(pages)))
    subsetter.subset(font)
    for record in font["name"].names:
        if record.nameID in (1, 4, 6):
            record.string = NAME.replace(" ", "") if record.nameID == 6 else NAME
    font["CFF "].cff.fontNames[0] = NAME.replace(" ", "")
    font["CFF "].cff.topDictIndex[0].FullName = font["CFF "].cff.topDictIndex[0].FamilyName = NAME
    font.flavor = "woff"
    font.save(target)


if __name__ == "__main__":
    built = [path.read_text(encoding="utf-8") for path in ROOT.glob("_build/html/**/*.html")]
    make(sys.argv[1], "".join(built), ROOT / "pages" / "_static" / "math.woff")
