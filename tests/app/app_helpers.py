"""What a user of the app does and sees."""

from urllib.parse import parse_qs, urlsplit

FASHION = "model=zfnet-fashion&picture=fashion-0"
"""A quick view to test with."""


class Viewer:
    """One user's page."""

    def __init__(self, context, server):
        self.context, self.server = context, server
        self.page = context.new_page()
        self.page.set_default_timeout(60_000)
        self.outside, self.faults = [], []
        self.page.on("request", self._requested)
        self.page.on("pageerror", lambda error: self.faults.append(str(error)))
        self.page.on("response", lambda got: got.status >= 500 and self.faults.append(f"{got.status} {got.url}"))

    def _requested(self, request):
        if not request.url.startswith((self.server, "data:", "blob:")):
            self.outside.append(request.url)

    def open(self, address):
        self.page.goto(address)
        self.page.wait_for_selector("#answer img, #notice .ak-notice")

    def close(self):
        self.context.close()
        assert self.outside == [], "the page asked other machines"
        assert self.faults == [], "the page's scripts failed"

    # -- looking -------------------------------------------------------------------------------------------------------

    def text(self, selector):
        return self.page.inner_text(selector)

    def maps(self):
        """Wait until every map is drawn; return them by method."""
        self.page.wait_for_selector("#maps .ak-maps")
        self.page.wait_for_function("() => !document.querySelector('.ak-working, .ak-waiting')")
        # a picture that is being replaced is gone for a moment
        self.page.wait_for_function(
            "() => [...document.querySelectorAll('#maps .ak-done')].every(one => one.querySelector('img'))"
        )
        return dict(
            self.page.eval_on_selector_all(
                "#maps .ak-done", "all => all.map(one => [one.dataset.method, one.querySelector('img').src])"
            )
        )

    def notice(self, part):
        """Wait for a message that holds some text, and return it."""
        self.page.wait_for_function("part => document.querySelector('#notice')?.innerText.includes(part)", arg=part)
        return self.text("#notice")

    def query(self):
        """Return what the page's address says."""
        return {name: values[0] for name, values in parse_qs(urlsplit(self.page.url).query).items()}

    def until_query(self, **wanted):
        """Wait until the address says so."""
        for name, value in wanted.items():
            self.page.wait_for_function(
                "([name, value]) => new URLSearchParams(location.search).get(name) === value", arg=[name, value]
            )

    def changed(self, selector, before, attribute="src"):
        """Wait until an element's attribute is another than before; return it."""
        self.page.wait_for_function(
            "([selector, attribute, before]) => {"
            " const found = document.querySelector(selector)?.getAttribute(attribute);"
            " return found && found !== before; }",
            arg=[selector, attribute, before],
        )
        return self.page.get_attribute(selector, attribute)

    def until_value(self, part, value):
        """Wait until a control holds some text, or what a pattern describes."""
        from playwright.sync_api import expect  # not there where no test opens a browser

        expect(self.field(part)).to_have_value(value, timeout=60_000)

    # -- doing ---------------------------------------------------------------------------------------------------------

    def tab(self, name):
        self.page.get_by_role("tab", name=name).click()

    def choose(self, part, text):
        """Write into a dropdown and confirm, by the keyboard."""
        box = self.page.locator(f"#{part} input")
        box.fill(text)
        box.press("Enter")

    def field(self, part):
        return self.page.locator(f"#{part} input").first
