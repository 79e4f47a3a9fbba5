"""The app in a real browser: every control, by mouse and by keyboard."""

import io
import re
import zlib

import numpy as np
import pytest
import torch
from app_helpers import FASHION
from PIL import Image

import attribkit
from attribkit.app.pictures import MAX_BYTES
from attribkit.datasets import open_images


def test_a_newcomer_sees_a_picture_explained(visit):
    viewer = visit()
    assert "Look inside a network" in viewer.page.title() or "look inside" in viewer.page.title()
    maps = viewer.maps()
    assert set(maps) == {"gradient", "guided_backprop", "deconvnet", "occlusion"}
    assert len(set(maps.values())) == 4
    assert viewer.page.locator(".ak-top li").count() == 5
    assert not viewer.page.locator(".ak-notice").count()
    assert viewer.query()["model"] == viewer.field("model").input_value()


def test_methods_and_how_they_are_drawn(visit):
    viewer = visit(f"{FASHION}&methods=gradient,deconvnet")
    page = viewer.page
    first = viewer.maps()
    assert set(first) == {"gradient", "deconvnet"}
    took = page.locator(".ak-seconds").all_inner_texts()
    shown = "[data-method=deconvnet] img"

    page.get_by_label("signed").check()
    signed = viewer.changed(shown, first["deconvnet"])
    viewer.until_query(sign="signed")
    page.get_by_label("signed").press("ArrowRight")  # radios by the keyboard
    positive = viewer.changed(shown, signed)
    viewer.until_query(sign="positive")
    opacity = page.locator("#opacity input[type=range]")
    opacity.press("Home")
    fainter = viewer.changed(shown, positive)
    viewer.until_query(opacity="0")
    opacity.press("End")
    full = viewer.changed(shown, fainter)
    percentile = page.locator("#percentile input[type=number]")
    percentile.fill("90")
    percentile.press("Enter")
    viewer.changed(shown, full)
    viewer.until_query(percentile="90")
    assert page.locator(".ak-seconds").all_inner_texts() == took  # drawn again, not computed again

    page.get_by_label("Gradient", exact=True).uncheck()
    page.wait_for_selector("[data-method=gradient]", state="detached")
    viewer.until_query(methods="deconvnet")
    page.get_by_label("Guided backprop").press("Space")
    page.wait_for_selector("[data-method=guided_backprop].ak-done")
    for name in ("Deconvnet", "Guided backprop"):
        page.get_by_label(name, exact=True).uncheck()
    page.wait_for_selector("text=No method is chosen")


def test_classes_by_mouse_and_by_keyboard(visit):
    viewer = visit(f"{FASHION}&methods=guided_backprop")
    page, shown = viewer.page, "[data-method=guided_backprop] img"
    before = viewer.maps()["guided_backprop"]
    viewer.until_value("target", "Ankle boot (9)")

    page.click(".ak-top button >> nth=1")
    second = viewer.changed(shown, before)
    name = page.inner_text(".ak-top button >> nth=1").split("\n")[0].strip()
    viewer.until_value("target", re.compile(f"^{re.escape(name)}"))
    assert f"for {name}" in page.get_attribute(shown, "alt")

    button = page.locator(".ak-top button >> nth=2")
    button.focus()
    button.press("Enter")
    third = viewer.changed(shown, second)
    page.wait_for_function("document.activeElement?.dataset.pick === 'class'")  # the focus stays where it was

    viewer.choose("target", "Trouser")
    viewer.changed(shown, third)
    viewer.until_query(target="1")
    assert "Trouser" in page.inner_text(".ak-top [aria-pressed=true]")  # listed, though it is not among the best
    result = attribkit.attribute(*_fashion(0), "guided_backprop", target=1)
    viewer.tab("Save")
    page.wait_for_selector("#ak-code")  # what can be taken away is listed
    _same(_saved(viewer, "#save-map"), result.values)


def test_samples_and_models(visit):
    viewer = visit(f"{FASHION}&methods=gradient")
    page, shown = viewer.page, "[data-method=gradient] img"
    before = viewer.maps()["gradient"]
    page.get_by_label("Trouser (Fashion-MNIST)").click()
    second = viewer.changed(shown, before)
    assert viewer.text("#answer h2").startswith("Trouser")
    chosen = page.locator(".ak-samples [aria-pressed=true]")
    assert chosen.get_attribute("aria-label").startswith("Trouser")
    chosen.focus()
    chosen.press("ArrowLeft")
    page.keyboard.press("Enter")
    viewer.changed(shown, second)
    assert not viewer.text("#answer h2").startswith("Trouser")

    viewer.choose("model", "timm/test_resnet")  # any name will do
    page.wait_for_selector("text=Random weights.")
    viewer.maps()
    viewer.until_query(model="timm/test_resnet", picture="photograph")
    viewer.choose("model", "zfnet-fashion")
    page.wait_for_selector("text=shipped with attribkit")

    page.locator("#weights input").click()
    options = page.locator("#weights [role=option]").all_inner_texts()
    assert [option.strip("✓ \n") for option in options] == ["the model's own", "shifted.pt"]
    page.get_by_role("option", name="shifted.pt").click()
    page.wait_for_selector("text=Weights: shifted.pt")
    viewer.until_query(weights="shifted.pt")


def test_features(visit):
    viewer = visit(f"{FASHION}&tab=units&layer=relu5&channel=1")
    page = viewer.page
    page.wait_for_selector(".ak-unit .ak-field")
    assert page.locator(".ak-patches li").count() == 9
    values = [float(text.split()[-1]) for text in page.locator(".ak-thumbs button").all_inner_texts()]
    assert values[:20] == sorted(values[:20], reverse=True)

    crop = page.get_attribute(".ak-crop", "src")
    second = page.locator(".ak-thumbs button >> nth=1")
    channel = second.get_attribute("data-value")
    second.click()
    crop = viewer.changed(".ak-crop", crop)
    viewer.until_value("channel", channel)
    assert viewer.text(".ak-unit h2").startswith(f"Feature map {channel}")
    page.wait_for_function("document.activeElement?.dataset.pick === 'channel'")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("Space")
    crop = viewer.changed(".ak-crop", crop)
    below = page.evaluate("document.activeElement.dataset.value")
    page.keyboard.press("ArrowDown")
    assert page.evaluate("document.activeElement.dataset.value") != below

    number = viewer.field("channel")
    number.fill("7")
    number.press("Enter")
    crop = viewer.changed(".ak-crop", crop)
    viewer.until_query(channel="7")
    page.wait_for_selector(".ak-thumbs [aria-pressed=true][data-value='7']")
    viewer.choose("projector", "Guided")
    crop = viewer.changed(".ak-crop", crop)
    viewer.until_query(projector="guided_backprop")
    page.get_by_label("positive").check()
    viewer.until_query(sign="positive")

    viewer.choose("layer", "relu3")
    page.wait_for_selector("text=of relu3")
    page.wait_for_selector("text=no patches for this feature map")
    field = page.locator("rect.ak-field")
    assert 0 < float(field.get_attribute("width")) < 112
    page.click("text=Show all 96")
    page.wait_for_function("document.querySelectorAll('.ak-thumbs button').length === 96")
    viewer.choose("layer", "relu33")
    assert "relu33" in viewer.notice("did you mean")
    viewer.until_value("layer", "relu3")
    number.fill("9999")
    number.press("Enter")
    viewer.notice("feature map 9999 is out of range")


def test_occlusion(visit):
    viewer = visit(f"{FASHION}&tab=occlusion")
    page = viewer.page
    page.wait_for_selector(".ak-hover")
    readout = viewer.text("#ak-readout")
    box = page.locator(".ak-hover svg").bounding_box()
    page.mouse.move(box["x"] + box["width"] * 0.02, box["y"] + box["height"] * 0.02)
    page.wait_for_function("before => document.querySelector('#ak-readout').innerText !== before", arg=readout)
    model, inputs = _fashion(0)
    result = attribkit.attribute(model, inputs, "occlusion", target=9)
    score = float(result.extras["score_map"][0, 0, 0])
    assert f"Row 0, column 0: score {float(f'{score:.4g}'):g}" in viewer.text("#ak-readout")

    page.locator(".ak-hover").focus()
    page.keyboard.press("ArrowDown")
    page.keyboard.press("ArrowRight")
    score = float(result.extras["score_map"][0, 1, 1])
    assert f"Row 1, column 1: score {float(f'{score:.4g}'):g}" in viewer.text("#ak-readout")
    assert float(page.get_attribute(".ak-hover rect.ak-field", "x")) == 8

    viewer.field("window").fill("40")
    viewer.field("stride").fill("36")
    page.click("#run")
    page.wait_for_selector("text=of 9")
    viewer.until_query(window="40", stride="36")

    viewer.field("window").fill("10")
    viewer.field("stride").fill("1")
    page.click("#run")
    page.wait_for_selector("progress[max]")  # live, and stopped midway
    page.click("#stop")
    viewer.notice("The occlusion was stopped")
    page.wait_for_selector("#run")
    assert page.locator("#stop").count() == 0 or not page.locator("#stop").is_visible()
    viewer.field("window").fill("20")
    viewer.field("stride").fill("20")
    page.locator("#run").press("Enter")
    page.wait_for_selector(".ak-hover")
    before = page.get_attribute(".ak-hover img", "src")
    page.get_by_label("negative").check()
    viewer.changed(".ak-hover img", before)


def test_a_link_restores_the_view(visit):
    viewer = visit(f"{FASHION}&tab=units")
    page = viewer.page
    page.wait_for_selector(".ak-unit")
    viewer.choose("layer", "relu4")
    page.wait_for_selector("text=of relu4")
    page.locator(".ak-thumbs button >> nth=3").click()
    page.get_by_label("signed").check()
    viewer.until_query(sign="signed", layer="relu4")
    page.wait_for_function("new URLSearchParams(location.search).has('channel')")
    viewer.tab("Save")
    viewer.until_query(tab="save")  # the link is not drawn anew after this
    page.wait_for_selector("#ak-address")
    page.wait_for_function("document.querySelector('#ak-address').value === location.href")
    page.context.grant_permissions(["clipboard-read", "clipboard-write"])
    page.click("#link [data-copy]")
    page.wait_for_selector("#link >> text=Copied")
    link = page.evaluate("navigator.clipboard.readText()")
    viewer.tab("Features")
    channel = viewer.query()["channel"]
    page.wait_for_selector(f"[aria-label='Feature map {channel} of relu4'] .ak-scale >> text=−")  # drawn with its sign
    crop, over = page.get_attribute(".ak-crop", "src"), page.get_attribute(".ak-unit img", "src")

    other = visit(address=link.replace("tab=save", "tab=units"))
    other.page.wait_for_selector(".ak-crop")
    assert other.page.get_attribute(".ak-crop", "src") == crop
    assert other.page.get_attribute(".ak-unit img", "src") == over
    assert other.page.get_by_label("signed").is_checked()
    other.until_value("layer", "relu4")


@pytest.mark.parametrize(("item", "stem"), [("Deconvnet of “Ankle boot”", "deconvnet"), ("feature map", "relu5-1")])
def test_numbers_figure_and_code_are_one(visit, item, stem, tmp_path, monkeypatch):
    viewer = visit(f"{FASHION}&tab=save&layer=relu5&channel=1&sign=signed&opacity=0.5")
    page = viewer.page
    page.wait_for_selector("#ak-code")
    box = page.locator("#item input")
    box.click()
    page.get_by_role("option", name=item).click()
    page.wait_for_function("stem => document.querySelector('#ak-code').innerText.includes(stem)", arg=stem)
    numbers, figure, code = (_saved(viewer, f"#save-{what}") for what in ("map", "figure", "code"))
    assert [file.suffix for file in (numbers, figure, code)] == [".safetensors", ".png", ".py"]
    assert code.read_text().strip() == page.inner_text("#ak-code").strip()
    monkeypatch.chdir(tmp_path)
    exec(compile(code.read_text(), "snippet", "exec"), {})
    _same(numbers, attribkit.Attribution.load(tmp_path / numbers.name).values)
    assert figure.read_bytes() == (tmp_path / figure.name).read_bytes()


def test_uploads(visit, tmp_path):
    viewer = visit(f"{FASHION}&methods=gradient")
    page = viewer.page
    before = viewer.maps()["gradient"]
    noise = np.random.default_rng(0).integers(0, 256, (90, 70), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "own & mine.png")
    choose = "#upload input[type=file]"
    page.set_input_files(choose, tmp_path / "own & mine.png")
    shown = viewer.changed("[data-method=gradient] img", before)
    assert "own & mine.png" in viewer.text("#answer figcaption")
    viewer.until_query(picture="upload")
    viewer.tab("Save")
    page.wait_for_selector("text=Without your picture.")
    viewer.tab("Class maps")

    (tmp_path / "text.png").write_text("no picture at all")
    page.set_input_files(choose, tmp_path / "text.png")
    assert "is not an image" in viewer.notice("text.png")
    head = io.BytesIO()
    Image.new("L", (9, 9)).save(head, "PNG")
    size = b"IHDR" + (6000).to_bytes(4, "big") + (5000).to_bytes(4, "big") + head.getvalue()[24:29]
    vast = head.getvalue()[:12] + size + zlib.crc32(size).to_bytes(4, "big") + head.getvalue()[33:]
    (tmp_path / "vast.png").write_bytes(vast)  # its head says so: nothing is decoded
    page.set_input_files(choose, tmp_path / "vast.png")
    assert "at most 25 million" in viewer.notice("vast.png")
    (tmp_path / "large.png").write_bytes(b"\x89PNG" + bytes(MAX_BYTES))
    page.set_input_files(choose, tmp_path / "large.png")
    page.wait_for_selector("text=exceed the maximum allowed size")
    (tmp_path / "text.txt").write_text("no picture either")
    page.set_input_files(choose, tmp_path / "text.txt")
    page.wait_for_selector("text=Invalid file type")
    assert page.get_attribute("[data-method=gradient] img", "src") == shown

    other = visit(f"{FASHION.replace('fashion-0', 'upload')}&methods=gradient&target=3")
    assert "which no link can hold" in other.notice("uploaded picture")
    page = other.page
    before = other.maps()["gradient"]
    page.set_input_files(choose, tmp_path / "own & mine.png")
    other.changed("[data-method=gradient] img", before)
    assert other.query()["target"] == "3"


def test_errors_are_messages(visit):
    viewer = visit(f"{FASHION}&methods=gradient,magic&sign=both&target=99")
    for part in ("no method 'magic'", "sign must be one of", "class 99 is out of range"):
        viewer.notice(part)
    for wrong, words in (
        ("timm/resnet81", "did you mean"),
        ("os:getcwd", "attribkit app --model"),
        ("run//etc", "attribkit app --model"),
    ):
        viewer.choose("model", wrong)
        viewer.notice(words)
        viewer.page.wait_for_function("wrong => document.querySelector('#model input').value !== wrong", arg=wrong)
    assert viewer.field("model").input_value() == viewer.query()["model"]
    assert "Traceback" not in viewer.text("body")
    viewer.page.click(".ak-top button >> nth=1")
    viewer.page.wait_for_selector(".ak-notice", state="detached")  # what works clears the message


def test_two_users_at_once_get_their_own(visit):
    """Each gets, with another model and picture, what they would get alone."""
    one = visit(f"{FASHION}&methods=gradient,deconvnet")
    two = visit("model=timm/test_resnet&picture=photograph&methods=gradient,deconvnet")
    alone = one.maps(), two.maps()
    assert set(alone[0].values()).isdisjoint(alone[1].values())
    for round in range(2):
        one.page.click(f".ak-top button >> nth={1 + round}")  # both work at the same time
        two.page.click(f".ak-top button >> nth={2 + round}")
        one.changed("[data-method=deconvnet] img", alone[0]["deconvnet"])
        two.changed("[data-method=deconvnet] img", alone[1]["deconvnet"])
    one.page.click(".ak-top button >> nth=0")
    two.page.click(".ak-top button >> nth=0")
    for viewer, wanted in ((one, alone[0]), (two, alone[1])):
        viewer.page.wait_for_function(
            "wanted => document.querySelector('[data-method=deconvnet] img')?.src === wanted", arg=wanted["deconvnet"]
        )
        assert viewer.maps() == wanted
    assert one.text("#answer h2") != two.text("#answer h2")
    assert (one.query()["model"], two.query()["model"]) == ("zfnet-fashion", "timm/test_resnet")
    one.tab("Features")
    one.page.wait_for_selector(".ak-unit")
    assert two.page.get_by_role("tab", name="Class maps").get_attribute("aria-selected") == "true"


def _fashion(index):
    loaded = attribkit.load_model("zfnet-fashion")
    return loaded.model, loaded.preprocess(open_images("fashion-sample").load(index))[None]


def _saved(viewer, button):
    with viewer.page.expect_download() as caught:
        viewer.page.click(button)
    path = caught.value.path()
    named = path.with_name(f"{path.name}-{caught.value.suggested_filename}")
    path.rename(named)
    final = path.parent / caught.value.suggested_filename
    named.rename(final)
    return final


def _same(path, values):
    torch.testing.assert_close(attribkit.Attribution.load(path).values, values, rtol=1e-4, atol=1e-6)
