"""The report page in a real browser: each control and each key does what it says, and everybody can read it."""

import base64
import io
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from attribkit.report import figures
from attribkit.report.levels import ranged
from attribkit.report.page import render_page
from attribkit.report.parts import About, Failure, ImageSection, MethodSection, TopClass
from attribkit.report.sections import method_section

COMMAND = "attribkit explain 'a folder' --method gradient,deconvnet --out \"$HOME\" # <b>&amp;"
METHODS = ("gradient", "deconvnet", "occlusion")
#: name, most probable class, its probability, score, how strong the maps are
IMAGES = (("beta", "zebra", 0.4, 3.0, 1.0), ("Alpha", "cat", 0.9, -2.5, 4.0), ("img10", "dog", 0.2, 11.0, 2.0),
          ("img9", "cat", 0.6, 3.0, 0.5))  # fmt: skip
MATRIX, SINGLE = "matrix", "single"


def maps(number, strength):
    """A map with both signs and a few values far beyond the rest."""
    values = np.random.default_rng(number).normal(size=(3, 40, 48)) * strength
    values[0, 5, 5], values[1, 30, 40] = 60 * strength, -30 * strength
    return values


def sections():
    made = []
    for number, (name, label, probability, score, strength) in enumerate(IMAGES):
        view = figures.photograph(Image.new("RGB", (48, 40), (40 * number + 60, 100, 160)))
        methods = []
        for method in METHODS:
            if method == "occlusion":
                methods.append(
                    MethodSection(method, "Occlusion", "Hides parts", error="RuntimeError: out of memory", group="core")
                )
                continue
            coverage = SimpleNamespace(sentence=f"{method} rewrote all 8 rectifiers.")
            scale = strength * (10 if method == "deconvnet" else 1)
            result = SimpleNamespace(method=method, values=maps(number, scale)[None], extras={}, coverage=coverage)
            more = {"probability": "61 %", "seconds": 0.2, "source": "Somebody, 2014", "group": "core"}
            words = {"summary": "What it does", "target": label, "score": f"{score:g}", "value": score}
            methods.append(method_section(result, **words, **more))
        top = (TopClass(0, label, probability), TopClass(1, "other", 0.01))
        made.append(ImageSection(name, f"in/{name}.png", view, view, (48, 40), top, tuple(methods)))
    return made


@pytest.fixture(scope="module")
def pages(tmp_path_factory):
    """The files: a page of many images, and one of one image."""
    folder = tmp_path_factory.mktemp("pages")
    about = About("timm/resnet18", "random", COMMAND, {"torch": "2"})
    failures = [Failure("in/broken.png", "the file is empty (0 bytes)")]
    (folder / "many.html").write_text(render_page(about, sections(), failures), "utf-8")
    (folder / "one.html").write_text(render_page(about, sections()[:1]), "utf-8")
    return folder


@pytest.fixture
def visit(browser, pages):
    """Open a page; it may neither complain nor ask for anything beyond itself."""
    contexts, complaints = [], []

    def visit(name="many.html", width=1280, scheme="light", **options):
        options.setdefault("reduced_motion", "reduce")  # nothing to wait for
        context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, **options)
        context.set_default_timeout(10_000)
        contexts.append(context)
        page = context.new_page()
        page.on("pageerror", lambda error: complaints.append(str(error)))
        page.on("console", lambda message: message.type == "error" and complaints.append(message.text))
        page.on("request", lambda request: request.url.startswith(("file:", "data:")) or complaints.append(request.url))
        page.goto(f"file://{pages / name}")
        return page

    yield visit
    for context in contexts:
        context.close()
    assert complaints == []


def names(page):
    """The rows that are seen, from the top."""
    return page.eval_on_selector_all(".matrix tbody tr", "rows => rows.filter(r => !r.hidden).map(r => r.dataset.name)")


def shows(page, name):
    """Wait until an image is shown alone (None: until none is); a link is followed a little after it was clicked."""
    page.wait_for_function(
        """name => {
          const all = [...document.querySelectorAll('article.image')].filter(article => article.checkVisibility());
          return name === null ? !all.length : all.length === 1 && all[0].querySelector('h2').innerText === name;
        }""",
        arg=name,
    )
    return True


def choose(page, name, value):
    page.locator(f".tools [name={name}]").select_option(value)


def focused(page):
    return page.evaluate(
        "document.activeElement.closest('[data-name]')?.dataset.name + ' ' + document.activeElement.hash"
    )


def picture(source):
    """The colours [H, W, 4] of a data URI."""
    with Image.open(io.BytesIO(base64.b64decode(source.partition(",")[2]))) as image:
        return np.asarray(image.convert("RGBA")).astype(int)


# --- the matrix


def test_the_matrix_shows_every_image_by_every_method(visit):
    page = visit()
    assert names(page) == ["beta", "Alpha", "img10", "img9", "in/broken.png"]
    assert page.locator(".matrix thead th").all_inner_texts() == ["Image", "Gradient", "Deconvnet", "Occlusion"]
    assert page.locator("article.image:visible").count() == 0
    cells = page.locator(".matrix td img")
    assert cells.count() == 8
    assert page.eval_on_selector_all(".matrix td img", "all => all.every(i => i.naturalWidth === 48)")  # whole maps
    assert page.locator(".matrix td.error").count() == 5
    assert "the file is empty (0 bytes)" in page.locator(".matrix td.error").last.inner_text()


def test_the_kind_of_map(visit):
    page = visit()
    first = page.locator(".matrix td img").first
    signed = first.get_attribute("src")
    assert page.locator(".matrix .limit").first.inner_text().startswith("±")
    choose(page, "kind", "magnitude")
    assert first.get_attribute("src") != signed
    assert page.locator(".matrix td .frame.over").count() == 8
    assert page.locator(".matrix .limit").first.inner_text().startswith("0 … ")
    behind = page.locator(".matrix td .frame").first.evaluate("f => getComputedStyle(f, '::before').backgroundImage")
    assert behind.startswith('url("data:image/jpeg')
    choose(page, "kind", "colour")
    in_colour = page.eval_on_selector_all(".matrix td img", "all => all.map(i => i.alt.includes('drawn as'))")
    assert in_colour == [False, True] * 4  # the gradient has no such picture: its signed map stays
    choose(page, "kind", "signed")
    assert first.get_attribute("src") == signed


ORDERS = {
    "order": ["beta", "Alpha", "img10", "img9"],
    "name": ["Alpha", "beta", "img9", "img10"],
    "class": ["Alpha", "img9", "img10", "beta"],
    "score": ["img10", "beta", "img9", "Alpha"],
    "probability": ["Alpha", "img9", "beta", "img10"],
}


def test_sorting(visit):
    page = visit()
    for by, wanted in ORDERS.items():
        choose(page, "sort", by)
        found = names(page)
        assert [name for name in found if name != "in/broken.png"] == wanted, by
        if by in ("class", "score", "probability"):
            assert found[-1] == "in/broken.png"  # it has none: it comes last


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("CAT", ["Alpha", "img9"]),
        ("img", ["img10", "img9"]),
        ("in/beta.png", ["beta"]),
        ("empty (0", ["in/broken.png"]),
        ("nothing such", []),
        ("  ", ["beta", "Alpha", "img10", "img9", "in/broken.png"]),
    ],
)
def test_filtering(visit, text, wanted):
    page = visit()
    page.locator("[name=filter]").fill(text)
    assert names(page) == wanted
    status = page.locator("[role=status]").inner_text()
    assert status == ("5 images" if len(wanted) == 5 else f"{len(wanted)} of 5 images")


# --- scales


def test_scales_are_what_they_say(visit):
    """Drawn again in the browser, a map has the colours that figures.py would give it on that scale."""
    page = visit()
    heats = {
        (name, method): maps(number, strength * (10 if method == "deconvnet" else 1))
        for number, (name, _, _, _, strength) in enumerate(IMAGES)
        for method in METHODS[:2]
    }
    limits = {
        "signed": {key: figures.robust_limit(values.sum(axis=0)) for key, values in heats.items()},
        "magnitude": {key: figures.robust_limit(figures.magnitude(values)) for key, values in heats.items()},
    }
    for kind, of in limits.items():
        choose(page, "kind", kind)
        for mode in ("own", "method", "all"):
            choose(page, "scale", mode)
            alike = {
                key: [limit for (_, method), limit in of.items() if mode == "all" or method == key[1]] for key in of
            }
            shown = page.eval_on_selector_all(
                ".matrix td:has(img)",
                "all => all.map(c => [c.closest('tr').dataset.name, c.querySelector('a').hash.slice(-1),"
                " c.querySelector('img').src, c.querySelector('.limit').innerText])",
            )
            assert len(shown) == 8
            for name, number, source, text in shown:
                key = name, METHODS[int(number) - 1]
                scale = of[key] if mode == "own" else max(alike[key])
                assert float(text.lstrip("±0 …") or 0) == pytest.approx(scale, rel=0.006), (kind, mode, key)
                heat = heats[key].sum(axis=0) if kind == "signed" else figures.magnitude(heats[key])
                wanted = expected(heat, scale, kind)
                assert np.abs(picture(source) - wanted).max() <= 14, (kind, mode, key)  # two steps of 8 bits
    bar = page.locator(".legend-bar")
    assert bar.inner_text().split() == ["0", f"{max(limits['magnitude'].values()):.3g}"]


def expected(heat, scale, kind):
    if kind == "signed":
        return np.asarray(ranged(np.clip(heat, -scale, scale), scale, "signed").convert("RGBA")).astype(int)
    strength = np.clip(heat / scale, 0, 1)
    colours = figures.coloured(strength, figures.MAGNITUDE_COLOURS, start=figures.MAGNITUDE_START).convert("RGBA")
    wanted = np.asarray(colours).astype(int)
    wanted[..., 3] = np.round(strength * 255)
    return wanted


def test_the_scale_of_one_image(visit):
    page = visit("one.html")
    assert page.locator(".tools [name=sort], .tools [name=view], .tools [name=filter]").count() == 0
    ends = page.locator("figure.signed .scale span:last-child")
    own = ends.all_inner_texts()
    assert own[0] != own[1]
    choose(page, "scale", "all")
    shared = ends.all_inner_texts()
    assert shared == [own[1], own[1]]  # deconvnet's is the greater one
    assert page.locator("figure.signed .scale span:first-child").first.inner_text() == shared[0].replace("+", "−")
    choose(page, "scale", "own")
    assert ends.all_inner_texts() == own


def test_opacity_of_all_and_of_one(visit):
    page = visit("one.html")
    layers = page.locator("figure.magnitude .frame img")

    def opacities():
        return [float(layers.nth(n).evaluate("i => getComputedStyle(i).opacity")) for n in range(layers.count())]

    assert opacities() == pytest.approx([0.85, 0.85])
    page.locator(".tools [name=opacity]").fill("30")
    assert opacities() == pytest.approx([0.3, 0.3])
    assert page.locator(".opacity input").last.input_value() == "30"
    page.locator(".opacity input").first.fill("0")
    assert opacities() == pytest.approx([0.0, 0.3])


def test_opacity_in_the_matrix(visit):
    page = visit()
    choose(page, "kind", "magnitude")
    page.locator(".tools [name=opacity]").fill("20")
    assert page.locator(".matrix td .frame.over img").first.evaluate("i => getComputedStyle(i).opacity") == "0.2"


# --- one image


def test_from_the_matrix_to_one_image_and_on(visit):
    page = visit()
    choose(page, "sort", "name")
    page.locator(".matrix tr[data-name=beta] td a").nth(1).click()
    assert shows(page, "beta")
    assert page.locator(".matrix").is_hidden()
    assert page.locator("[role=status]").inner_text() == "Image 2 of 4: beta"
    assert page.locator("article.image:visible section.method").count() == 3
    in_view = page.locator("article:visible section.method").nth(1).evaluate("s => s.getBoundingClientRect().top")
    assert -100 < in_view < 500
    page.get_by_role("button", name="Next").click()
    assert shows(page, "img9")  # as sorted
    page.get_by_role("button", name="Previous").click()
    page.get_by_role("button", name="Previous").click()
    assert shows(page, "Alpha")
    assert page.get_by_role("button", name="Previous").is_disabled()
    page.go_back()
    assert shows(page, "beta")
    page.get_by_role("button", name="All images").click()
    assert shows(page, None)
    assert page.locator(".matrix").is_visible()


def test_the_choice_of_the_view(visit):
    page = visit()
    page.locator(".views label").nth(1).click()
    assert shows(page, "beta")
    page.locator(".views label").nth(0).click()
    assert page.locator(".matrix").is_visible()
    page.locator("[name=filter]").fill("img")
    page.locator(".views label").nth(1).click()
    assert shows(page, "img10")  # the first of those that are left


def test_a_link_to_an_image(visit, pages):
    page = visit()
    page.goto(f"file://{pages}/many.html#image-3-2")
    page.reload()
    assert shows(page, "img10")


# --- keys


def test_keys_in_the_matrix(visit):
    page = visit()
    press = page.keyboard.press
    press("ArrowDown")
    assert focused(page) == "beta #image-1"
    press("ArrowRight")
    press("ArrowRight")
    assert focused(page) == "beta #image-1-2"
    press("ArrowDown")
    assert focused(page) == "Alpha #image-2-2"
    press("ArrowLeft")
    press("ArrowUp")
    press("ArrowUp")  # stays in the first row
    assert focused(page) == "beta #image-1-1"
    press("Enter")
    assert shows(page, "beta")
    press("ArrowRight")
    assert shows(page, "Alpha")
    press("ArrowLeft")
    press("ArrowLeft")
    assert shows(page, "beta")
    press("ArrowRight")
    press("Escape")
    assert shows(page, None)
    assert focused(page) == "Alpha #image-2"


def test_keys_for_the_controls(visit):
    page = visit()
    value = {name: page.locator(f".tools [name={name}]") for name in ("kind", "scale", "sort", "opacity", "filter")}
    for key, name, wanted in (
        ("m", "kind", ["magnitude", "colour", "signed"]),
        ("s", "scale", ["method", "all", "own"]),
        ("O", "sort", ["name", "class", "score", "probability", "order"]),
    ):
        found = []
        for _ in wanted:
            page.keyboard.press(key)
            found.append(value[name].input_value())
        assert found == wanted
    page.keyboard.press("-")
    page.keyboard.press("-")
    assert value["opacity"].input_value() == "65"
    page.keyboard.press("+")
    assert value["opacity"].input_value() == "75"
    keys = page.locator(".keys p")
    assert keys.is_visible()
    page.keyboard.press("?")
    assert keys.is_hidden()
    page.keyboard.press("?")
    for key in page.locator(".keys kbd").all_inner_texts():
        assert key in ("←", "→", "↑", "↓", "Enter", "Esc", "/", "O", "M", "S", "+", "−", "?")  # all are tried here
    page.keyboard.press("/")
    page.keyboard.type("mso/?cat")
    assert value["filter"].input_value() == "mso/?cat"  # letters are letters there
    assert value["scale"].input_value() == "own"
    assert names(page) == []
    page.keyboard.press("Escape")
    page.keyboard.press("s")
    assert value["scale"].input_value() == "method"


def test_keys_of_one_image(visit):
    page = visit("one.html")
    page.keyboard.press("s")
    assert page.locator("[name=scale]").input_value() == "all"
    for key in ("ArrowRight", "Escape", "m", "/"):
        page.keyboard.press(key)  # nothing, and no error
    assert page.locator(".keys kbd").all_inner_texts() == ["S", "+", "−", "?"]


def test_modifiers_leave_keys_to_the_browser(visit):
    page = visit()
    page.keyboard.press("Control+s")
    page.keyboard.press("Alt+m")
    assert page.locator("[name=scale]").input_value() == "own"
    assert page.locator("[name=kind]").input_value() == "signed"


# --- a picture enlarged, the command


def test_a_picture_enlarged(visit):
    page = visit("one.html")
    dialog = page.locator("dialog")
    for close in ("Escape", ".close", ".stage"):
        page.locator("figure.magnitude button.zoom").first.click()
        assert dialog.is_visible()
        assert "Gradient" in dialog.locator(".caption").inner_text()
        assert dialog.locator("img").bounding_box()["width"] > 400
        assert dialog.locator(".scale").inner_text().startswith("0")
        behind = dialog.locator(".frame").evaluate("f => getComputedStyle(f, '::before').backgroundImage")
        assert behind.startswith("url(")
        page.keyboard.press(close) if close == "Escape" else dialog.locator(close).click()
        assert dialog.is_hidden()


def test_the_command_is_copied(visit):
    page = visit("one.html", permissions=["clipboard-read", "clipboard-write"])
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Copied").wait_for()
    assert page.evaluate("navigator.clipboard.readText()") == COMMAND


def test_the_command_is_selected_where_nothing_can_be_copied(visit):
    page = visit("one.html")
    page.evaluate("""() => {
      Object.defineProperty(navigator, 'clipboard', {value: undefined});
      document.execCommand = () => false;
    }""")
    page.get_by_role("button", name="Copy").click()
    page.get_by_role("button", name="Selected").wait_for()
    assert page.evaluate("String(getSelection())") == COMMAND


# --- for everybody

CONTRAST = """() => {
  const channels = text => text.match(/[\\d.]+/g).map(Number);
  const luminance = rgb => {
    const [r, g, b] = rgb.map(v => { v /= 255; return v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4; });
    return 0.2126 * r + 0.7152 * g + 0.0722 * b;
  };
  const background = element => {
    for (let e = element; e; e = e.parentElement) {
      const c = channels(getComputedStyle(e).backgroundColor);
      if (c.length === 3 || c[3] === 1) return c.slice(0, 3);
    }
    throw new Error(`${element.outerHTML} stands on nothing`);
  };
  const found = [];
  const walker = document.createTreeWalker(document.body, NodeFilter.SHOW_TEXT);
  while (walker.nextNode()) {
    const element = walker.currentNode.parentElement;
    const unseen = element.closest('script, style, option, :disabled') || !element.checkVisibility();
    if (!walker.currentNode.data.trim() || unseen) continue;
    const a = luminance(channels(getComputedStyle(element).color).slice(0, 3));
    const b = luminance(background(element));
    const ratio = (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
    found.push([ratio, walker.currentNode.data.trim().slice(0, 40)]);
  }
  return found.sort((x, y) => x[0] - y[0]);
}"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_text_can_be_read_and_fits(visit, scheme, width):
    page = visit(width=width, scheme=scheme)
    for step in (MATRIX, SINGLE):
        if step == SINGLE:
            page.locator(".views label").nth(1).click()
        ratios = page.evaluate(CONTRAST)
        assert len(ratios) > 60
        assert ratios[0][0] >= 4.5, ratios[:3]
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    names_of_controls = (
        "all => all.filter(e => e.checkVisibility()).map(e => e.labels?.length || e.innerText || e.ariaLabel)"
    )
    assert all(page.eval_on_selector_all("button, input, select", names_of_controls))


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_focus_is_seen(visit, scheme):
    page = visit(scheme=scheme)
    seen = []
    for _ in range(24):
        page.keyboard.press("Tab")
        seen.append(
            page.evaluate("""() => {
          const e = document.activeElement, shown = e.matches('.views input') ? e.nextElementSibling : e;
          const style = getComputedStyle(shown);
          return [e.tagName, e.name || e.className || e.hash, style.outlineStyle, parseFloat(style.outlineWidth)];
        }""")
        )
    assert {tag for tag, *_ in seen} >= {"A", "INPUT", "SELECT", "SUMMARY", "DIV"}
    for tag, name, style, width in seen:
        assert style != "none", (tag, name)
        assert width >= 1, (tag, name)


def test_without_javascript_everything_is_there(visit):
    page = visit(java_script_enabled=False)
    assert page.locator("article.image").count() == 4
    assert all(page.locator("article.image").nth(n).is_visible() for n in range(4))
    assert page.locator(".matrix td img").count() == 8
    for dead in (".tools", ".opacity", ".copy", ".turn"):
        assert not any(page.locator(dead).nth(n).is_visible() for n in range(page.locator(dead).count())), dead
    page.locator(".matrix tr[data-name=img9] td a").first.click()
    assert page.url.endswith("#image-4-1")
    assert COMMAND in page.locator("#command").inner_text()


def test_a_print_has_everything_and_no_controls(visit):
    page = visit()
    page.emulate_media(media="print")
    assert page.locator("article.image:visible").count() == 4
    assert page.locator(".matrix").is_visible()
    for gone in (".tools", ".turn", ".copy"):
        assert page.locator(gone).first.is_hidden()


def test_motion_only_for_those_who_like_it(visit):
    page = visit(reduced_motion="reduce")
    moving = "all => all.filter(e => { const s = getComputedStyle(e); return s.scrollBehavior === 'smooth'"
    moving += " || parseFloat(s.transitionDuration) > 0 || s.animationName !== 'none'; }).length"
    assert page.eval_on_selector_all("*", moving) == 0
    page = visit(reduced_motion="no-preference")
    assert page.evaluate("getComputedStyle(document.documentElement).scrollBehavior") == "smooth"


def test_every_picture_says_what_it_is(visit):
    page = visit()
    said = "all => all.map(i => [i.getAttribute('alt'), i.closest('a')?.innerText || ''])"
    alts = page.eval_on_selector_all("img", said)
    assert len(alts) > 20
    for alt, link in alts:
        assert alt or link.strip(), alts  # only a picture beside its image's name needs no words
    tree = page.locator("body").aria_snapshot()
    assert "table" in tree
    assert 'rowheader "beta' in tree
    assert 'columnheader "Deconvnet"' in tree
    assert 'searchbox "Filter"' in tree
