"""Figures that follow the page's light and dark mode, and figures that move.

A chapter draws with matplotlib, says in words what is to be seen, and leaves
the rest to this module::

    figure, axes = figures.new()
    axes.plot(steps, losses, color=figures.ANCHOR)
    axes.set(title="The loss falls", xlabel="step", ylabel="loss")
    figures.show(figure, alt="A falling curve from 5.5 to 1.2 nats.")

`show` gives one still figure, `slider` one that moves. Both become inline SVG
without any library: the same bytes on every run, so that a stored notebook can
be compared with a new run. Black stands for the page's text colour and white
for the page's background; every other colour should be one of `COLOURS`. Text
is set in the page's own font, so keep formulas in it to sub- and superscripts.
"""

import contextlib
import hashlib
import html
import io
import re
import sys
import textwrap
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import matplotlib
from cycler import cycler
from jinja2 import Environment, FileSystemLoader
from matplotlib.backends.backend_svg import FigureCanvasSVG, RendererSVG
from matplotlib.figure import Figure

# From Okabe and Ito's colour-blind-safe palette, those that stand out on white
# and on a dark page alike (contrast at least 3 : 1).
ANCHOR = "#0072b2"  # blue
POSITIVE = "#009e73"  # green
NEGATIVE = "#d55e00"  # vermillion
GUIDE = "#cc79a7"  # pink
NEUTRAL = "#6b6b6b"  # grey
COLOURS = (ANCHOR, NEGATIVE, POSITIVE, GUIDE, NEUTRAL)

# A phone shows a figure about 340 pixels wide: text of 10 points in a figure of
# 5.2 inches is 9 pixels high there. Wider figures would be read by no one.
MAX_WIDTH = 5.2
ZOOM = 1.15  # on a wide page, 10 points are shown as 15 pixels

STYLE = {
    "axes.axisbelow": True,
    "axes.facecolor": "none",
    "axes.formatter.min_exponent": 5,  # 0.01 is easier to read than a small power of ten
    "axes.grid": True,
    "axes.prop_cycle": cycler(color=COLOURS, linestyle=["-", "--", "-.", ":", (0, (6, 2, 1, 2, 1, 2))]),
    "axes.spines.right": False,
    "axes.spines.top": False,
    "axes.titlelocation": "left",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titley": 1.0,  # no axis is on top, and to look for one takes a tenth of the time
    "figure.facecolor": "none",
    "figure.titlesize": 11,
    "figure.titleweight": "bold",
    "grid.alpha": 0.15,
    "grid.color": "black",
    "image.interpolation": "none",  # pixels stay pixels, and few bytes
    "legend.edgecolor": "none",
    "svg.fonttype": "none",
    "svg.hashsalt": "mathlib",
    "xtick.bottom": False,  # the grid marks the ticks
    "ytick.left": False,
}

HTML = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, trim_blocks=True)


def new(width=MAX_WIDTH, height=3.2, columns=1, **subplots_kw):
    """A figure in the book's style, and its axes (an array if there are several).

    >>> figure, axes = new()
    >>> figure, (left, right) = new(columns=2, sharey=True)
    """
    with style():
        figure = Figure(figsize=(width, height), layout="constrained")
        return figure, figure.subplots(ncols=columns, **subplots_kw)


def show(figure, *, alt):
    """One still figure; `alt` says in words what it shows.

    >>> figure, axes = new()
    >>> _ = axes.plot([0, 1, 2], [5.5, 2.0, 1.2])
    >>> _ = axes.set(title="The loss falls", xlabel="step", ylabel="loss")
    >>> show(figure, alt="A falling curve from 5.5 to 1.2.")
    Figure: A falling curve from 5.5 to 1.2.
    """
    alt = _words("alt", alt)
    with style():
        frame = ("", alt, _svg(figure, alt))
    return Display(_figure([frame]), f"Figure: {alt}")


def slider(draw, values, *, label, alt, unit="", start=0):
    """A figure that moves: `draw(value)` returns the frame for each of `values`.

    `label` names the control, `alt` says what is to be seen: a text, or a
    function from a value to a text. `start` is the index of the first frame.
    In Jupyter the frames are drawn anew by the running kernel.

    >>> def draw(slope):
    ...     figure, axes = new()
    ...     axes.plot([0, 1], [0, slope])
    ...     axes.set(title="A line", xlabel="x", ylabel="y", ylim=(0, 2))
    ...     return figure
    >>> slider(draw, [0.5, 1, 2], label="slope", alt=lambda slope: f"A line of slope {slope}.")
    Figure with a slider: slope from 0.5 to 2. A line of slope 0.5.
    """
    values = list(values)
    if not values:
        raise ValueError("values must hold at least one value, it is empty")
    if start not in range(len(values)):
        raise ValueError(f"start must be the index of one of the {len(values)} values, it is {start!r}")
    label = _words("label", label)
    gap = "" if unit in ("°", "%") else " "
    texts = [f"{_number(value)}{gap}{unit}".strip() for value in values]

    def frame(index):
        value = values[index]
        try:
            with style():
                words = _words("alt", alt(value) if callable(alt) else alt)
                return texts[index], words, _svg(draw(value), f"{label} {index}")
        except Exception as error:
            error.add_note(f"in the frame for {label} = {value!r}")
            raise

    def live():
        import ipywidgets  # only a running kernel needs it

        picture = ipywidgets.HTML(_figure([frames[start]]))
        control = ipywidgets.SelectionSlider(
            options=[(text, index) for index, text in enumerate(texts)],
            value=start,
            description=label,
            style={"description_width": "initial"},
            layout={"width": "min(100%, 34rem)"},
        )

        def redraw(change):
            picture.value = _figure([frame(change["new"])])

        control.observe(redraw, "value")
        return ipywidgets.VBox([picture, control])

    frames = [frame(index) for index in range(len(values))]
    plain = f"Figure with a slider: {label} from {texts[0]} to {texts[-1]}. {frames[start][1]}"
    return Display(_figure(frames, label, start), plain, live)


class Display:
    """What a cell shows: HTML for the page and, where a kernel runs, a live control."""

    def __init__(self, html, plain, live=None):
        self.html, self.plain, self.live = html, plain, live

    def __repr__(self):
        return self.plain

    def _repr_mimebundle_(self, **_):
        bundle = {"text/html": self.html, "text/plain": self.plain}
        shell = sys.modules["IPython"].get_ipython() if "IPython" in sys.modules else None
        if self.live and hasattr(shell, "kernel"):
            bundle = self.live()._repr_mimebundle_() | bundle
        return bundle


@contextlib.contextmanager
def style():
    """The book's settings, whatever the reader's own are; undone on leaving.

    `slider` draws within it. To build a still figure independently of a
    `matplotlibrc`, draw it within it as well.
    """
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(STYLE)
        yield


def _words(name, text):
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{name} must be a text that is not empty, it is {text!r}")
    return " ".join(text.split())


def _number(value):
    if isinstance(value, str):
        return value
    return f"{value:{',' if isinstance(value, int) else '.6g'}}".replace("-", "\N{MINUS SIGN}")


def _figure(frames, label="", start=0):
    """The HTML of frames (value, alt, svg), with a control if there are several."""
    key, template = _digest(repr((frames, label, start))), HTML.get_template("figure.html")
    return template.render(key=key, frames=frames, label=label, start=start, quoted=html.escape)


class _Canvas(FigureCanvasSVG):
    """Where figures are laid out: one renderer for all of them measures a text once, which is half of the work."""

    renderer = RendererSVG(1, 1, io.StringIO())

    def get_renderer(self):
        return self.renderer


def _svg(figure, salt):
    """The figure as compact SVG whose ids depend on its content and on `salt` alone."""
    _check(figure)
    file = io.StringIO()
    canvas, dpi = figure.canvas, figure.dpi
    figure.dpi = 72
    page = _Canvas(figure)
    _finish(figure)
    page.print_svg(file, metadata={"Date": None})  # savefig would draw twice
    figure.set_canvas(canvas)
    figure.dpi = dpi
    root = _clean(ElementTree.fromstring(file.getvalue()))
    width, height = (round(inches * 96 * ZOOM) for inches in figure.get_size_inches())
    root.attrib = {"width": str(width), "height": str(height), "viewBox": root.get("viewBox")}
    # What has no colour of its own is black in SVG; here it is the text's colour.
    root.attrib |= {"fill": "currentColor", "font-size": "10", "stroke-linejoin": "round"}
    text = ElementTree.tostring(root, encoding="unicode").replace(" />", "/>")
    used = list(dict.fromkeys(re.findall(r'(?:url\(|href=")#([^)"]+)', text)))
    text = re.sub(r'(url\(|href=")#([^)"]+)', lambda m: f"{m[1]}#\ue000{used.index(m[2])}", text)
    text = re.sub(r' id="([^"]+)"', lambda m: f' id="\ue000{used.index(m[1])}"' if m[1] in used else "", text)
    return text.replace("\ue000", _digest(salt + text) + "-")


def _check(figure):
    """Hold a figure to what every reader needs: words on it, and a legible size."""
    if not isinstance(figure, Figure):
        raise TypeError(f"figure must be a matplotlib Figure, it is {type(figure).__name__}")
    if figure.get_figwidth() > MAX_WIDTH:
        raise ValueError(
            f"width must be at most {MAX_WIDTH} inches, for its text to be legible on a phone,"
            f" it is {figure.get_figwidth():g}"
        )
    drawn = [axes for axes in figure.axes if axes.has_data() and axes.axison]
    if figure.axes and not figure.get_suptitle() and not any(map(_title, figure.axes)):
        raise ValueError("title must state the figure's finding, no axes has one")
    for axes in drawn:
        for side, outer in (("x", figure.get_supxlabel()), ("y", figure.get_supylabel())):
            siblings = getattr(axes, f"get_shared_{side}_axes")().get_siblings(axes)
            if axes.get_label() == "<colorbar>":  # it has one label, on its long side
                siblings, outer = [axes], axes.get_xlabel() or axes.get_ylabel()
            if not outer and not any(getattr(other, f"get_{side}label")() for other in siblings):
                where = f"axes {figure.axes.index(axes)} ({_title(axes) or 'untitled'})"
                raise ValueError(f"{side}label must name the quantity and its unit, {where} has none")


def _title(axes):
    return axes.get_title("left") or axes.get_title("center") or axes.get_title("right")


def _finish(figure):
    """What the style cannot do for artists that were made outside of it."""
    width = figure.get_figwidth() * 72
    if layout := figure.get_layout_engine():
        layout.execute(figure)  # says how much room the axes leave a title
    if figure.get_suptitle():
        figure.suptitle(_wrap(figure.get_suptitle(), width), x=0.01, horizontalalignment="left")
    for axes in figure.axes:
        title = _wrap(_title(axes), width * (1 - axes.get_position().x0))
        for side in ("center", "right", "left"):
            axes.set_title(title if side == "left" else "", loc=side)
        if axes.images:
            axes.grid(False)
        if axes.get_legend():
            axes.get_legend().get_frame().set_edgecolor("none")


def _wrap(title, room):
    # A bold letter of the widest page font takes about 0.62 of its height.
    letters = max(10, int(room / (0.62 * STYLE["axes.titlesize"])))
    return title if "\n" in title else textwrap.fill(title, letters)


def _clean(element):
    """Drop what a page does not need: namespaces, groups, fonts, digits, the invisible."""
    element.tag = element.tag.rpartition("}")[2]
    element.attrib = {name.rpartition("}")[2]: _attribute(name, value) for name, value in element.items()}
    element.tail = None
    if element.tag not in ("text", "tspan") or len(element):
        element.text = None
    if element.tag == "text" and len(element):
        _flow(element)
    children = []
    for child in map(_clean, element):
        bare = child.tag == "g" and not set(child.attrib) - {"id"}
        empty = child.tag in ("g", "defs") and not len(child)
        if bare:
            children.extend(child)
        elif not empty and child.tag not in ("metadata", "style") and child.get("style") != "fill:none":
            children.append(child)
    element[:] = children
    for name in [name for name, value in element.items() if not value]:
        del element.attrib[name]
    return element


def _attribute(name, value):
    if name.endswith("href"):
        return re.sub(r"\s", "", value)
    if name == "style":
        value = re.sub(r"font-family:[^;]*|font-size: 10px|stroke-dashoffset: 0(?=;|$)", "", value)
        value = re.sub(r"\s*([:;])[\s;]*", r"\1", value).strip(";")
    elif name == "transform" and not value.startswith(("matrix", "scale")):
        value = re.sub(r"^rotate\(-?0 .*\)$", "", value)
    if not value.startswith(("matrix", "scale")):
        # Two decimals of a point are enough, and hide the last digit's noise.
        value = re.sub(r"-?\d+\.\d+", lambda match: f"{float(match[0]):.2f}".rstrip("0").rstrip("."), value)
        value = re.sub(r"(?<![\d.])-0(?![\d.])", "0", value)
    if name == "d":
        value = re.sub(r"\s*([A-Za-z])\s*", r"\1", value).strip()
    return value.replace("#000000", "currentColor").replace("#ffffff", "var(--paper)")


def _flow(text):
    """Let a formula run on in the page's font.

    matplotlib places each glyph for its own font; keep only the baseline's steps.
    """
    glyphs = sorted(text, key=lambda glyph: float(glyph.get("x")))
    text[:] = []
    above, style = 0.0, None
    for glyph in glyphs:
        y = float(glyph.get("y"))
        if (y, glyph.get("style")) != (above, style):
            run = ElementTree.SubElement(text, "tspan", dy=f"{y - above:.6f}", style=glyph.get("style"))
            run.text = ""
        run.text += glyph.text
        above, style = y, glyph.get("style")


def _digest(text):
    return "f" + hashlib.sha256(text.encode()).hexdigest()[:8]
