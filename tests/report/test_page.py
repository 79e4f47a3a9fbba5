import base64
import dataclasses
import hashlib
import html as html_module
import io
import itertools
import re
import types
from html.parser import HTMLParser

import numpy as np
import pytest
from PIL import Image

from attribkit.report import figures
from attribkit.report.page import PageWriter, render_page
from attribkit.report.parts import About, Failure, ImageSection, MethodSection, TopClass
from attribkit.report.sections import method_section, method_title
from attribkit.report.sizes import Sizes

HOSTILE = "<script>alert('x')</script>\"><img src=http://evil.example/a.png onerror=alert(1)>&amp;"
ABOUT = About("timm/resnet18", "random", "attribkit explain cat.png", {"torch": "2.0", "attribkit": "0.1"})


class Page(HTMLParser):
    """Collects the elements and the text of a page."""

    VOID = ("meta", "img", "input", "br", "link")

    def __init__(self, html):
        super().__init__()
        self.elements, self.stack, self.text, self.faults = [], [], [], []
        self.feed(html)
        self.close()
        assert self.stack == []
        assert self.faults == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.stack.append(tag)

    def handle_endtag(self, tag):
        if not self.stack or self.stack.pop() != tag:
            self.faults.append(tag)

    def handle_data(self, data):
        if not self.stack or self.stack[-1] not in ("script", "style"):
            self.text.append(data)

    def all(self, tag):
        return [attrs for name, attrs in self.elements if name == tag]

    def words(self):
        return " ".join(" ".join(self.text).split())


def attribution(method, values, **extras):
    coverage = types.SimpleNamespace(sentence=f"{method} rewrote all 8 rectifiers.")
    return types.SimpleNamespace(method=method, values=values, extras=extras, coverage=coverage)


def section(name="cat", methods=("gradient", "deconvnet", "occlusion"), values=None, text="tabby", **changes):
    values = np.random.default_rng(0).normal(size=(1, 3, 32, 48)) if values is None else values
    extras = {
        "score_map": np.random.default_rng(1).normal(size=(1, 4, 6)),
        "label_map": np.arange(24).reshape(1, 4, 6) % 3,
    }
    sections = tuple(
        method_section(
            attribution(method, values, **(extras if method == "occlusion" else {})),
            summary=text,
            target=f"{text} (1)",
            score="8.5",
            probability="61 %",
            seconds=0.25,
            labels=[text, "tiger", "lynx"],
            predicted=1,
        )
        for method in methods
    )
    photo = figures.photograph(Image.new("RGB", (90, 60), "#446688"))
    top = (TopClass(0, text, 0.612), TopClass(1, "tiger", 0.3), TopClass(2, "lynx", 0.0004))
    parts = {"path": f"in/{name}.png", "size": (900, 600), "top": top, "methods": sections} | changes
    return ImageSection(name=name, photograph=photo, view=photo, **parts)


@pytest.fixture(scope="module")
def page():
    html = render_page(ABOUT, [section("cat"), section("dog")], [Failure("in/bad.png", "the file is empty (0 bytes)")])
    return Page(html)


def test_says_what_was_asked_and_answered(page):
    words = page.words()
    for part in (
        "in/cat.png",
        "900 × 600",
        "tabby",
        "61.2 %",
        "< 0.1 %",
        "tabby (1)",
        "8.5",
        "0.25 s",
        "deconvnet rewrote all 8 rectifiers.",
        "attribkit explain cat.png",
        "random",
        "torch 2.0",
        "99.5th percentile",
        "in/bad.png the file is empty (0 bytes)",
    ):
        assert part in words


def test_each_method_has_its_pictures(page):
    kinds = [attrs.get("class") for attrs in page.all("figure")]
    assert kinds.count("signed") == kinds.count("magnitude") == 6
    assert kinds.count("colour") == 2  # deconvnet alone
    assert kinds.count("score") == kinds.count("classes") == 2
    frames = [attrs["class"] for attrs in page.all("p") if attrs.get("class", "").startswith("scale ")]
    assert frames.count("scale magnitude") == 6
    assert [attrs["class"] for attrs in page.all("ul") if attrs.get("class")] == ["legend", "legend"]


def test_bars_are_as_long_as_the_probabilities(page):
    widths = [attrs["style"] for attrs in page.all("span") if attrs.get("style", "").startswith("width:")]
    assert widths[:3] == ["width:61.20%", "width:30.00%", "width:0.04%"]


def test_every_picture_has_an_alternative_text_and_its_size(page):
    for image in page.all("img"):
        assert "alt" in image
    inside = [image for image in page.all("img") if "bar" not in image.get("class", "")]
    assert all(int(image["width"]) > 0 and int(image["height"]) > 0 for image in inside)
    told = [image["alt"] for image in page.all("img") if image["alt"].startswith("Deconvnet")]
    assert any("strongest in the" in alt for alt in told)


def test_every_control_has_a_name(page):
    labelled = {attrs["for"] for attrs in page.all("label") if "for" in attrs}  # the others hold their control
    sliders = page.all("input")
    own = [slider for slider in sliders if "id" in slider]
    assert len(own) == 6
    assert all(slider["type"] == "range" and slider["id"] in labelled for slider in own)
    assert sorted(each["name"] for each in sliders if "id" not in each) == ["filter", "opacity", "view", "view"]
    zooms = [attrs for attrs in page.all("button") if attrs.get("class") == "zoom"]
    assert all(attrs["aria-label"] for attrs in zooms)


def test_ids_are_unique_and_links_and_labels_lead_somewhere(page):
    ids = [attrs["id"] for _, attrs in page.elements if "id" in attrs]
    assert len(set(ids)) == len(ids)
    for _, attrs in page.elements:
        for reference in (attrs.get("aria-labelledby"), attrs.get("for"), attrs.get("href", "#images")[1:]):
            assert reference is None or reference in ids


def test_pictures_are_whole(page):
    for image in page.all("img"):
        header, _, data = image["src"].partition(",")
        assert header in ("data:image/png;base64", "data:image/jpeg;base64", "data:image/webp;base64")
        with Image.open(io.BytesIO(base64.b64decode(data, validate=True))) as opened:
            opened.load()


def test_nothing_comes_from_the_network(page):
    for tag, attrs in page.elements:
        assert tag not in ("link", "iframe", "object", "embed", "base")
        for name in ("src", "href", "srcset", "data", "action", "poster"):
            value = attrs.get(name, "#")
            assert value.startswith(("data:", "#")), (tag, name, value[:60])
    html = render_page(ABOUT, [section()])
    style = re.search(r"<style>(.*?)</style>", html, re.DOTALL).group(1)
    assert "url(" not in style
    assert "@import" not in style


def test_the_policy_lets_this_script_run_and_no_other(page):
    html = render_page(ABOUT, [section()])
    (script,) = re.findall(r"<script>(.*?)</script>", html, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = next(attrs["content"] for attrs in Page(html).all("meta") if "http-equiv" in attrs)
    assert "default-src 'none'" in policy
    assert f"script-src 'sha256-{digest}'" in policy
    assert "script-src 'unsafe-inline'" not in policy


def test_a_matrix_only_for_many(page):
    assert len(page.all("table")) == 1
    rows = [attrs for attrs in page.all("tr") if "data-anchor" in attrs]
    assert [row["data-name"] for row in rows] == ["cat", "dog", "in/bad.png"]
    assert [row["data-score"] for row in rows] == ["", "", ""]  # these sections have no score as a number
    assert [attrs["scope"] for attrs in page.all("th")] == ["col"] * 4 + ["row"] * 3
    anchors = [attrs["href"] for attrs in page.all("a")]
    for image in (1, 2):
        assert f"#image-{image}" in anchors
        assert [f"#image-{image}-{number}" in anchors for number in (1, 2, 3, 4)] == [True] * 3 + [False]
    assert Page(render_page(ABOUT, [section()])).all("table") == []


def test_the_matrix_has_a_column_for_each_method_of_any_image_by_what_it_came_with():
    def of(name, group, **more):
        return dataclasses.replace(section(methods=(name,)).methods[0], group=group, **more)

    one = section("one", methods=()), (of("a", "core", value=2.0), of("b", "shelf"))
    two = (
        section("two", methods=()),
        (of("a", "core", value=-1.5), MethodSection("c", "C", "", error="no", group="shelf")),
    )
    made = Page(render_page(ABOUT, [dataclasses.replace(image, methods=methods) for image, methods in (one, two)]))
    groups = [(attrs["colspan"], attrs["scope"]) for attrs in made.all("th") if attrs["scope"] == "colgroup"]
    assert groups == [("1", "colgroup"), ("2", "colgroup")]
    assert [attrs.get("class") for attrs in made.all("td")] == [None, None, None, "none", None, "none", "error"]
    assert [attrs["data-score"] for attrs in made.all("tr") if "data-anchor" in attrs] == ["2.0", "-1.5"]


def test_what_a_filter_finds():
    from attribkit.report.matrix import Matrix

    failed = MethodSection("c", "C", "", error="No layer")
    row = Matrix().add(dataclasses.replace(section("Cat"), methods=(*section().methods, failed)))
    for word in ("cat", "in/cat.png", "tabby", "failed", "no layer"):
        assert word in row.text
    assert "failed" not in Matrix().add(section("Cat")).text


def test_headings_are_in_order(page):
    levels = [int(tag[1]) for tag, _ in page.elements if re.fullmatch("h[1-6]", tag)]
    assert levels[0] == 1
    assert levels.count(1) == 1
    assert all(after - before <= 1 for before, after in itertools.pairwise(levels))


def test_one_image_and_four_methods_stay_below_two_megabytes_whatever_they_show():
    """Noise in every channel cannot be compressed: no real map is larger."""
    values = np.random.default_rng(3).normal(size=(1, 3, 500, 400))
    sizes = Sizes.of(1, 4)
    noise = np.random.default_rng(4).integers(0, 255, (900, 900, 3), dtype=np.uint8)
    photograph = figures.photograph(Image.fromarray(noise), longest=sizes.photograph)
    sections = tuple(
        method_section(
            attribution("deconvnet", values), summary="", target="t", score="1", seconds=1.0, longest=sizes.map
        )
        for _ in range(4)
    )
    view = figures.photograph(Image.fromarray(noise), longest=sizes.map)
    shown = ImageSection("n", "n.png", photograph, view, (900, 900), (), sections)
    assert 10**6 < len(render_page(ABOUT, [shown])) < 2 * 10**6
    assert max(sections[0].figures[0].picture.width, sections[0].figures[0].picture.height) >= 224


@pytest.mark.parametrize(("images", "methods"), [(1, 1), (4, 4), (50, 4), (50, 40), (200, 4), (5000, 1)])
def test_the_pictures_of_many_images_are_smaller(images, methods):
    sizes, one = Sizes.of(images, methods), Sizes.of(1, methods)
    assert 64 <= sizes.map <= one.map
    assert 64 <= sizes.photograph <= one.photograph <= 640
    bytes_at_worst = images * methods * sizes.map**2 * 6 + images * sizes.photograph**2 * 0.7
    assert bytes_at_worst < 41 * 10**6 or 64 in (sizes.map, sizes.photograph)


def test_what_went_wrong_beside_the_maps_is_said():
    words = Page(
        render_page(ABOUT, [section(top=(), problem="the model's forward raised ValueError: too dark")])
    ).words()
    assert "the model's forward raised ValueError: too dark" in words


def test_hostile_names_are_text():
    hostile = MethodSection(HOSTILE, HOSTILE, HOSTILE, error=HOSTILE)
    shown = section(HOSTILE, text=HOSTILE, path=HOSTILE)
    shown = dataclasses.replace(shown, methods=(*shown.methods, hostile), question=HOSTILE)
    about = About(HOSTILE, HOSTILE, HOSTILE, {HOSTILE: HOSTILE})
    html = render_page(about, [shown, shown], [Failure(HOSTILE, HOSTILE)])
    assert f"<h1>{html_module.escape(HOSTILE)[:8]}" in render_page(about, [shown])
    page = Page(html)
    assert len(page.all("script")) == 1
    assert all(image["src"].startswith("data:") for image in page.all("img"))
    assert not any(name.startswith("on") for _, attrs in page.elements for name in attrs)
    assert HOSTILE in " ".join(page.text)


def test_awkward_characters():
    html = render_page(ABOUT, [section("na\u00efve \u732b {{ 7 * 7 }} {% raw %} \udcff")])
    assert "naïve 猫 {{ 7 * 7 }} {% raw %} ?" in html
    assert "49" not in Page(html).all("title")


@pytest.mark.parametrize("scale", [0.0, 1.0, -1.0, np.nan, 1e-320, 1e300])
def test_maps_without_structure(scale):
    page = Page(render_page(ABOUT, [section(values=np.full((1, 3, 16, 16), scale))]))
    assert len(page.all("figure")) == 10
    if scale == 0 or np.isnan(scale):
        assert "every value is zero" in page.words().lower()


def test_a_method_that_failed_says_why():
    failed = MethodSection("occlusion", "Occlusion", "hides parts", error="RuntimeError: out of memory")
    page = Page(render_page(ABOUT, [section(methods=("gradient",)), section(methods=())]))
    assert "Failed." not in page.words()
    shown = section(methods=("gradient",))
    shown = dataclasses.replace(shown, methods=(*shown.methods, failed))
    words = Page(render_page(ABOUT, [shown, section("b")])).words()
    assert "Failed. RuntimeError: out of memory" in words
    assert "1 failed" in words


def test_no_class_scores():
    page = Page(render_page(ABOUT, [section(top=())]))
    assert "What timm/resnet18 looked at" in page.words()


def test_one_image_has_its_question_for_a_heading():
    shown = section(question="Why “tabby”?")
    assert "Why “tabby”?" in Page(render_page(ABOUT, [shown])).words()
    assert "Why “tabby”?" not in Page(render_page(ABOUT, [shown, shown])).words()


def test_random_weights_are_said():
    assert "weights are random" in Page(render_page(ABOUT, [section()])).words()
    trained = dataclasses.replace(ABOUT, weights="w.pt")
    assert "weights are random" not in Page(render_page(trained, [section()])).words()


def test_sections_are_kept_in_order_and_the_spool_is_closed():
    stream = io.BytesIO()
    with PageWriter() as writer:
        for name in "cab":
            writer.add(section(name, methods=("gradient",)))
        writer.write(stream, ABOUT)
    titles = re.findall(r'<h2 id="image-\d+-title" tabindex="-1">(.)</h2>', stream.getvalue().decode())
    assert titles == ["c", "a", "b"]
    with pytest.raises(ValueError, match="closed"):
        writer.add(section("d", methods=()))


@pytest.mark.parametrize(
    ("name", "title"), [("guided_backprop", "Guided backprop"), ("lrp.epsilon_plus", "Lrp · epsilon plus")]
)
def test_titles(name, title):
    assert method_title(name) == title


@pytest.mark.parametrize(("channels", "title"), [(3, "In colour"), (1, "In grey")])
def test_the_image_that_came_back_is_called_what_it_is(channels, title):
    values = np.random.default_rng(0).normal(size=(1, channels, 60, 90))
    (shown,) = section(methods=("deconvnet",), values=values).methods
    assert shown.figures[-1].title == title
