"""The app's looks: at two widths, light and dark, and for those who use no mouse."""

import pytest
from app_helpers import FASHION

OUTSIDE = """() => [...document.querySelectorAll('#header *, #main *, #settings *')].filter((one) => {
  const box = one.getBoundingClientRect();
  const seen = one.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true }) && box.width > 0 && box.height > 0;
  const scrolled = one.closest('pre, .ak-thumbs, [aria-hidden=true], .visually-hidden');
  return seen && !scrolled && (box.left < -1 || box.right > document.documentElement.clientWidth + 1);
}).map((one) => one.outerHTML.slice(0, 120))"""

FAINT = """() => {
  const parse = (text) => (text.match(/[\\d.]+/g) || [0, 0, 0, 0]).map(Number);
  const light = ([r, g, b]) => [r, g, b].map((c) => c / 255)
    .map((c) => (c <= 0.04045 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4))
    .reduce((sum, c, i) => sum + c * [0.2126, 0.7152, 0.0722][i], 0);
  const behind = (one) => {
    for (let at = one; at; at = at.parentElement) {
      const colour = parse(getComputedStyle(at).backgroundColor);
      if (colour.length === 3 || colour[3] === 1) return colour;
    }
    return [255, 255, 255];
  };
  const faint = [];
  const walker = document.createTreeWalker(document.querySelector('.gradio-container'), NodeFilter.SHOW_TEXT);
  for (let node = walker.nextNode(); node; node = walker.nextNode()) {
    const one = node.parentElement;
    if (!node.textContent.trim() || !one.checkVisibility({ checkOpacity: true, checkVisibilityCSS: true })) continue;
    if (one.closest('[aria-hidden=true], .visually-hidden, .hide, footer')) continue;
    const style = getComputedStyle(one);
    const [a, b] = [light(parse(style.color)), light(behind(one))].sort((x, y) => y - x);
    const large = parseFloat(style.fontSize) >= 24 || (parseFloat(style.fontSize) >= 18.6 && style.fontWeight >= 700);
    if ((a + 0.05) / (b + 0.05) < (large ? 3 : 4.5))
      faint.push(`${((a + 0.05) / (b + 0.05)).toFixed(2)} ${style.color} ${node.textContent.trim().slice(0, 40)}`);
  }
  return faint;
}"""

UNNAMED = """() => [...document.querySelectorAll('button, input, a, img, [role=application]')].filter((one) => {
  if (!one.checkVisibility() || one.closest('[aria-hidden=true], footer')) return false;
  if (one.tagName === 'IMG') return !one.hasAttribute('alt');
  const label = one.labels && [...one.labels].map((l) => l.innerText).join('');
  return !(one.getAttribute('aria-label') || label || one.innerText || one.title || one.placeholder);
}).map((one) => one.outerHTML.slice(0, 160))"""

READY = {"maps": ".ak-done", "units": ".ak-unit", "occlusion": ".ak-hover", "save": "#ak-code"}


@pytest.mark.parametrize("dark", [False, True], ids=["light", "dark"])
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_is_cut_off_faint_or_without_a_name(visit, width, dark):
    viewer = visit(f"{FASHION}&layer=relu5&channel=1", width=width, dark=dark)
    page = viewer.page
    viewer.maps()
    colour = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (sum(map(int, colour[4:-1].split(", ")[:3])) < 200) == dark
    for name, tab in (("Class maps", "maps"), ("Features", "units"), ("Occlusion", "occlusion"), ("Save", "save")):
        viewer.tab(name)  # every tab is there to be clicked, at every width
        page.wait_for_selector(READY[tab])
        assert page.evaluate("document.documentElement.scrollWidth") == width, tab
        assert page.evaluate(OUTSIDE) == [], tab
        assert page.evaluate(FAINT) == [], tab
        assert page.evaluate(UNNAMED) == [], tab


def test_narrow_screens_show_the_answer_first_and_lead_to_the_settings(visit):
    viewer = visit(f"{FASHION}&methods=gradient", width=390)
    page = viewer.page
    viewer.maps()
    top = "document.querySelector('{}').getBoundingClientRect().top"
    assert page.evaluate(top.format(".ak-card img")) < 600
    page.click(".ak-jump")
    page.wait_for_function("document.querySelector('#settings').getBoundingClientRect().top < 100")
    page.get_by_label("Deconvnet", exact=True).check()
    page.wait_for_selector("[data-method=deconvnet].ak-done")
    page.evaluate("document.querySelector('#target').scrollIntoView()")
    viewer.choose("model", "timm/resnet81")
    viewer.notice("did you mean")
    box = page.locator(".ak-error").bounding_box()
    assert box["y"] >= 0  # what went wrong is told where it is seen
    assert box["y"] + box["height"] <= 844
    page.click("[data-dismiss]")
    page.wait_for_selector(".ak-notice", state="detached")


def test_the_keyboard_alone_is_enough(visit):
    viewer = visit(f"{FASHION}&methods=gradient")
    page = viewer.page
    viewer.maps()
    reached = set()
    page.keyboard.press("Tab")
    for _ in range(70):
        seen = page.evaluate(
            "() => { const at = document.activeElement;"
            " const outline = getComputedStyle(at).outlineStyle;"
            " return [at.closest('[id]:not([id^=html-]):not([id^=component-])')?.id ?? '', at.tagName, outline]; }"
        )
        reached.add(seen[0])
        page.keyboard.press("Tab")
    wanted = {"header", "answer", "tabs", "sign", "opacity", "percentile", "model", "samples", "upload", "target"}
    assert wanted <= reached | {"tabs"}, reached
    page.get_by_role("tab", name="Class maps").focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_selector(".ak-unit")
    assert page.evaluate("document.activeElement.innerText") == "Features"
    page.keyboard.press("ArrowLeft")
    page.wait_for_selector(".ak-card", state="visible")


def test_light_and_dark_can_be_chosen(visit):
    viewer = visit(f"{FASHION}&methods=gradient")
    page = viewer.page
    before = page.evaluate("getComputedStyle(document.body).backgroundColor")
    page.click("[data-theme-toggle]")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") != before
    page.locator("[data-theme-toggle]").press("Enter")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == before
