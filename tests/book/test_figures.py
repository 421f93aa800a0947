"""Figures: the same bytes everywhere, for every reader, on the page and in Jupyter."""

import os
import re
import subprocess
import sys
from html.parser import HTMLParser

import IPython
import matplotlib
import numpy as np
import pytest
from matplotlib.figure import Figure

from mathlib.book import figures

TEMPERATURES = [0.05, 0.1, 1]


def draw(temperature):
    figure, axes = figures.new()
    scores = np.linspace(-1, 1, 21)
    axes.plot(scores, np.exp(scores / temperature), color=figures.NEGATIVE, marker="o", label="a weight")
    axes.set(title="Low temperatures favour the hardest", xlabel=r"score $s_i$", ylabel="weight")
    axes.legend()
    return figure


def moving(**changes):
    arguments = {"label": "temperature", "alt": lambda t: f"A line of slope 1 / {t}."}
    return figures.slider(draw, TEMPERATURES, **arguments | changes)


class Page(HTMLParser):
    """The elements of a piece of HTML: (tag, attributes)."""

    def __init__(self, text):
        super().__init__()
        self.elements, self.open = [], []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag, attributes):
        self.handle_startendtag(tag, attributes)
        if tag != "input":
            self.open.append(tag)

    def handle_startendtag(self, tag, attributes):
        self.elements.append((tag, dict(attributes)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def all(self, tag, attribute=None):
        found = [attributes for name, attributes in self.elements if name == tag]
        return [attributes for attributes in found if not attribute or attribute in attributes]


def test_two_runs_give_the_same_bytes():
    assert moving().html == moving().html
    figure = draw(0.1)
    assert figures.show(figure, alt="A line.").html == figures.show(figure, alt="A line.").html


def test_another_process_with_other_settings_gives_the_same_bytes(tmp_path):
    (tmp_path / "matplotlibrc").write_text("font.size: 20\nlines.linewidth: 5\nsvg.fonttype: path\n")
    code = "import test_figures, sys; sys.stdout.write(test_figures.moving().html)"
    environment = os.environ | {
        "PYTHONHASHSEED": "7",
        "MATPLOTLIBRC": str(tmp_path),
        "PYTHONPATH": os.path.dirname(__file__),
        "PYTHONIOENCODING": "utf-8",
    }
    html = subprocess.check_output([sys.executable, "-c", code], env=environment, encoding="utf-8")
    assert html == moving().html


def test_settings_are_left_alone():
    before = dict(matplotlib.rcParams)
    moving()
    figures.show(draw(1), alt="A line.")
    assert dict(matplotlib.rcParams) == before


def test_ids_are_unique_on_a_page_and_all_links_hit():
    still = draw(0.1)
    page = moving().html + moving(label="t").html + figures.show(still, alt="A line.").html
    ids = re.findall(r' id="([^"]+)"', page)
    assert len(ids) == len(set(ids))
    links = set(re.findall(r'(?:url\(#|href="#| for=")([^)"]+)', page))
    assert links == set(ids)


def test_one_frame_is_shown_and_each_has_its_words():
    page = Page(moving(start=2).html)
    frames = page.all("div", "data-value")
    assert [frame["data-value"] for frame in frames] == ["0.05", "0.1", "1"]
    assert ["hidden" not in frame for frame in frames] == [False, False, True]
    images = page.all("svg")
    assert [image["aria-label"] for image in images] == [f"A line of slope 1 / {t}." for t in TEMPERATURES]
    assert {image["role"] for image in images} == {"img"}


def test_the_control_is_native_labelled_and_hidden_without_script():
    page = Page(moving(start=1, unit="K").html)
    [control] = page.all("input")
    assert control["type"] == "range" and control["aria-valuetext"] == "temperature 0.1 K"
    assert [control[name] for name in ("min", "max", "step", "value")] == ["0", "2", "1", "1"]
    assert [label["for"] for label in page.all("label")] == [control["id"]]
    assert "hidden" in page.all("div", "data-label")[0]
    assert Page(figures.show(draw(1), alt="A line.").html).all("input") == []


def test_words_are_escaped():
    html = moving(label='"a" <b>', alt="<i> & co").html
    assert "<b>" not in html and "<i>" not in html
    assert Page(html).all("svg")[0]["aria-label"] == "<i> & co"


def test_negative_and_named_values_read_well():
    values = [-0.5, np.float32(0.1), "all", 65536]
    html = figures.slider(lambda value: draw(1), values, label="k", alt="A line.").html
    assert re.findall('data-value="([^"]*)"', html) == ["\N{MINUS SIGN}0.5", "0.1", "all", "65,536"]


def test_the_page_decides_fonts_text_colour_and_background():
    html = moving().html
    for left in ("http", "#000000", "#ffffff", "DejaVu", "\ue000", "<metadata", "<?xml", "xmlns", "*{"):
        assert left not in html
    assert "currentColor" in html


def test_a_frame_is_small():
    assert len(figures.show(draw(1), alt="A line.").html) < 12_000


def test_formulas_flow_in_the_page_s_font():
    formula = re.search("<text><tspan.*?</text>", figures.show(draw(1), alt="A line.").html)[0]
    assert re.sub("<[^>]*>", "", formula).replace("\N{NO-BREAK SPACE}", " ") == "score si"
    assert " x=" not in formula


@pytest.mark.parametrize("page", ["#ffffff", "#121212", "#14181e"])
@pytest.mark.parametrize("colour", figures.COLOURS)
def test_colours_stand_out(colour, page):
    def luminance(colour):
        channels = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels]
        return np.dot([0.2126, 0.7152, 0.0722], linear)

    dark, light = sorted([luminance(colour), luminance(page)])
    assert (light + 0.05) / (dark + 0.05) >= 3


def test_jupyter_gets_a_control_that_draws_anew(monkeypatch):
    drawn = []

    def record(value):
        drawn.append(value)
        return draw(value)

    figure = figures.slider(record, TEMPERATURES, label="temperature", alt="A line.", start=1)
    assert drawn == TEMPERATURES
    picture, control = figure.live().children
    assert control.description == "temperature" and control.label == "0.1"
    before = picture.value
    control.value = 2
    assert drawn == [*TEMPERATURES, 1]
    assert picture.value != before and 'data-value="1"' in picture.value

    assert set(figure._repr_mimebundle_()) == {"text/html", "text/plain"}
    monkeypatch.setattr(IPython, "get_ipython", lambda: type("Shell", (), {"kernel": None})())
    bundle = figure._repr_mimebundle_()
    assert set(bundle) == {"text/html", "text/plain", "application/vnd.jupyter.widget-view+json"}
    assert bundle["text/plain"] == repr(figure)
    assert bundle["text/html"] == figure.html


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alt": " "}, "alt must be"),
        ({"alt": lambda t: ""}, "alt must be"),
        ({"label": ""}, "label must be"),
        ({"start": 3}, "start must be .* 3 values"),
        ({"start": -1}, "start must be"),
    ],
)
def test_bad_arguments_are_named(changes, message):
    with pytest.raises(ValueError, match=message):
        moving(**changes)


def test_other_bad_arguments_are_named():
    with pytest.raises(ValueError, match="values must"):
        figures.slider(draw, [], label="t", alt="A line.")
    with pytest.raises(ValueError, match="alt must"):
        figures.show(draw(1), alt="")
    with pytest.raises(TypeError, match="figure must be .* tuple"):
        figures.show(figures.new(), alt="A line.")


def test_an_error_in_a_frame_names_its_value():
    with pytest.raises(ZeroDivisionError) as caught:
        figures.slider(lambda value: 1 / value, [0], label="steps", alt="A line.")
    assert caught.value.__notes__ == ["in the frame for steps = 0"]


@pytest.mark.parametrize("missing", ["title", "xlabel", "ylabel"])
def test_a_figure_without_words_is_refused(missing):
    figure = draw(1)
    figure.axes[0].set(**{missing: ""})
    with pytest.raises(ValueError, match=f"{missing} must"):
        figures.show(figure, alt="A line.")


def test_a_figure_too_wide_for_a_phone_is_refused():
    figure, axes = figures.new(width=8)
    with pytest.raises(ValueError, match="width must be at most 5.2 inches.* it is 8"):
        figures.show(figure, alt="Nothing.")


def test_shared_labels_colour_bars_and_pictures_need_no_more_words():
    figure, (left, right) = figures.new(columns=2, sharey=True)
    left.plot([1, 2])
    right.plot([2, 1])
    left.set(title="Two lines", xlabel="step", ylabel="loss")
    right.set(xlabel="step")
    figures.show(figure, alt="Two lines.")

    figure, (left, right) = figures.new(columns=2)
    picture = left.imshow([[0, 1], [1, 0]])
    left.set(title="A picture", xlabel="column", ylabel="row")
    right.imshow([[0, 1], [1, 0]])
    right.set_axis_off()
    figure.colorbar(picture, label="cosine")
    figures.show(figure, alt="A picture.")


def test_a_plain_figure_follows_the_page_too():
    figure = Figure()
    figure.set_size_inches(5, 3)
    axes = figure.subplots()
    axes.plot([1, 2], label="a line")
    axes.legend()
    axes.set(title="A finding that is so long that it takes more than one line", xlabel="step", ylabel="loss")
    html = figures.show(figure, alt="A line.").html
    assert "#000000" not in html and "#ffffff" not in html
    assert "\n" in axes.get_title("left") and axes.get_title() == ""
