"""Equations as MathML: their elements and TeX's spaces, written by hand here, and a font that has all of it."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from fontTools.ttLib import TTFont

from pages.mathml import Unsupported, mathml
from tools.mathfont import TALL, WIDE, characters

ROOT = Path(__file__).parents[2]
N = "\N{NO-BREAK SPACE}"


def elements(latex, block=False):
    """The formula's elements, without their spaces and other attributes."""
    found = re.sub(r"<mspace[^>]*></mspace>|</?math[^>]*>", "", mathml(latex, block))
    return re.sub(r"<(\w+)[^>]*>", r"<\1>", found)


def spaces(latex, block=False):
    """What stands between the symbols, in eighteenths of an em, as TeX counts: a·4·+·4·b."""
    found = re.sub(r'<mo[^>]* lspace="(.*?)" rspace="(.*?)">(.*?)</mo>', r"~\1~\3~\2~", mathml(latex, block))
    found = re.sub(r'<mspace width="(.*?)"></mspace>', r"~\1~", found)
    found = re.sub(r"<[^>]*>", "", found)
    return re.sub(r"~([\d.]+)em~", lambda em: f"·{round(float(em[1]) * 18)}·" if float(em[1]) else "", found)


@pytest.mark.parametrize(
    "latex, expected",
    [
        ("x_i", "<msub><mi>x</mi><mi>i</mi></msub>"),
        ("x_i^{2n}", "<msubsup><mi>x</mi><mi>i</mi><mrow><mn>2</mn><mi>n</mi></mrow></msubsup>"),
        (r"\frac1B", "<mfrac><mn>1</mn><mi>B</mi></mfrac>"),
        (r"\frac 12", "<mfrac><mn>1</mn><mn>2</mn></mfrac>"),
        (r"\tfrac{t}{T}", "<mfrac><mi>t</mi><mi>T</mi></mfrac>"),
        (r"\sqrt{d_k}", "<msqrt><mrow><msub><mi>d</mi><mi>k</mi></msub></mrow></msqrt>"),
        (r"\mathcal L + \mathbb R \mathbf q", "<mi>ℒ</mi><mo>+</mo><mi>ℝ</mi><mi>𝐪</mi>"),
        (r"\mathrm{head}_1 \ell", "<msub><mi>head</mi><mn>1</mn></msub><mi>ℓ</mi>"),
        (r"\text{if } s > 0.5", f"<mtext>if{N}</mtext><mi>s</mi><mo>&gt;</mo><mn>0.5</mn>"),
        (r"\text{점수} a", "<mtext>점수</mtext><mi>a</mi>"),
        (r"\hat a_b", "<msub><mover><mi>a</mi><mo>ˆ</mo></mover><mi>b</mi></msub>"),
        (r"\overline{|d|}", "<mover><mrow><mo>|</mo><mi>d</mi><mo>|</mo></mrow><mo>‾</mo></mover>"),
        (r"\{1\}", "<mo>{</mo><mn>1</mn><mo>}</mo>"),
        ("f''", "<msup><mi>f</mi><mo>′′</mo></msup>"),
        (r"\left[ x \right.", "<mrow><mo>[</mo><mi>x</mi></mrow>"),
        (
            r"\begin{cases} 1 & x < 0 \\ 2 & y \\ \end{cases}",
            "<mrow><mo>{</mo><mtable><mtr><mtd><mn>1</mn></mtd><mtd><mi>x</mi><mo>&lt;</mo><mn>0</mn></mtd></mtr>"
            "<mtr><mtd><mn>2</mn></mtd><mtd><mi>y</mi></mtd></mtr></mtable></mrow>",
        ),
    ],
)
def test_elements(latex, expected):
    assert elements(latex) == elements(latex, block=True) == expected


@pytest.mark.parametrize(
    "latex, in_line, display",
    [
        (r"\sum_i^N", "<msubsup><mo>∑</mo><mi>i</mi><mi>N</mi></msubsup>", "munderover"),
        (r"\max_x", "<msub><mi>max</mi><mi>x</mi></msub>", "munder"),
        (r"\operatorname*{top-\mathit k}_d", "<msub><mrow><mi>top-</mi><mi>k</mi></mrow><mi>d</mi></msub>", "munder"),
        (r"\log_2", "<msub><mi>log</mi><mn>2</mn></msub>", "msub"),
        (r"\operatorname{top-}_d", "<msub><mrow><mi>top-</mi></mrow><mi>d</mi></msub>", "msub"),
        (r"\tfrac{\max_x}{2}", "<mfrac><mrow><msub><mi>max</mi><mi>x</mi></msub></mrow><mn>2</mn></mfrac>", "msub"),
    ],
)
def test_limits_stand_below_in_a_display_and_beside_in_a_line(latex, in_line, display):
    assert elements(latex) == in_line
    beside = re.search("msub(sup)?", in_line)[0]
    assert elements(latex, block=True) == re.sub(rf"\b{beside}\b", display, in_line)


def test_an_underbrace_has_its_label_below_in_a_line_too():
    for block in (True, False):
        inner = "<munder><mrow><mi>N</mi><mi>c</mi></mrow><mo>⏟</mo></munder>"
        assert elements(r"\underbrace{N c}_{\text{once}}", block) == f"<munder>{inner}<mtext>once</mtext></munder>"


@pytest.mark.parametrize(
    "latex, expected",
    [
        ("a + b", "a·4·+·4·b"),
        ("a = -b", "a·5·=·5·−b"),
        ("(-b)", "(−b)"),
        (r"-\log x", "−·3·log·3·x"),
        (r"\log(x), y", "log(x),·3·y"),
        (r"\log\frac12", "log·3·12"),
        (r"a \mid b \|c\|", "a·5·∣·5·b‖c‖"),
        (r"x_{i = 1} + e^{-a \cdot b}", "xi=1·4·+·4·e−a⋅b"),
        (r"x^*y", "x∗y"),
        (r"a \;\ge\; b", "a·10·≥·10·b"),
        (r"a\,b\qquad c", "a·3·b·36·c"),
        (r"f\left(x\right)", "f·3·(x)"),
        (r"f\!\left(x\right)", "f(x)"),
        (r"1{,}000", "1,000"),
        (r"f\bigl(x\bigr) - y", "f(x)·4·−·4·y"),
    ],
)
def test_spaces(latex, expected):
    assert spaces(latex) == expected


def test_a_fraction_in_a_line_is_as_tight_as_an_index():
    assert spaces(r"\frac{a + b}{2}") == "a+b2"
    assert spaces(r"\frac{a + b}{2}", block=True) == "a·4·+·4·b2"


def test_an_index_hangs_from_p_where_it_hangs_from_s():
    assert mathml("p_i + s_i").count("<mpadded") == 1
    assert '<msub><mpadded depth="0"><mi>p</mi></mpadded><mi>i</mi></msub>' in mathml("p_i")


def test_letters_are_slanted_and_greek_capitals_are_not():
    assert mathml(r"x \Sigma") == '<math><mi>x</mi><mi mathvariant="normal">Σ</mi></math>'


def test_brackets_have_the_size_that_was_asked_for():
    assert 'stretchy="true"' in mathml(r"\left( x \right)") and 'stretchy="false"' in mathml("(")
    assert re.findall(r'minsize="(.*?)" maxsize="(.*?)"', mathml(r"\bigl( \Bigr)")) == [("1.2em",) * 2, ("1.8em",) * 2]


@pytest.mark.parametrize(
    "latex",
    [r"\unheard x", "x^1^2", "x_1_2", "{", "}", r"\frac{1}", r"\left( x", r"\left x \right)", r"\text{a $x$}"]
    + [r"\text{a", r"\mathbb{\pi}", r"\sqrt[3]{x}", r"\begin{align} x \end{align}", r"\begin{cases} x", "점수", "a & b"]
    + [r"\begin{cases} x \end{aligned}", "\\", r"a \! b", "x_", r"\hat", r"\operatorname{\beta}", r"\bigl x", "$"],
)
def test_what_it_cannot_read_is_an_error(latex):
    with pytest.raises(Unsupported):
        mathml(latex)


def test_an_equation_that_cannot_be_read_fails_the_build_and_is_named(tmp_path):
    tmp_path.joinpath("conf.py").write_text(
        "extensions = ['sphinx.ext.autodoc', 'pages.sphinx']\nhtml_math_renderer = 'mathml'\n"
    )
    tmp_path.joinpath("index.rst").write_text("Title\n=====\n\nText\n\n:math:`\\unheard{x} < 1`\n")
    command = [sys.executable, "-m", "sphinx", "-W", "-q", str(tmp_path), str(tmp_path / "out")]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert run.returncode
    assert r"index.rst:6:equation \unheard{x} < 1: \unheard is not known here" in run.stderr


def test_the_font_has_all_that_an_equation_can_show():
    font = TTFont(ROOT / "pages" / "_static" / "math.woff")
    names = font.getBestCmap()
    assert {char for char in characters() if ord(char) not in names} == set()
    variants = font["MATH"].table.MathVariants
    for coverage, chars in ((variants.VertGlyphCoverage, TALL), (variants.HorizGlyphCoverage, WIDE)):
        assert {names[ord(char)] for char in chars} == set(coverage.glyphs)
