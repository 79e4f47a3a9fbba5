// A click on anything with data-pick tells the server what was picked. The value is drawn anew then: the focus goes back
// to the button that had it, and among buttons that lie in a row or a grid the arrow keys move it.
let last = null;
const named = (button) => `[data-pick="${button.dataset.pick}"][data-value="${CSS.escape(button.dataset.value)}"]`;
element.addEventListener("focusin", (event) => {
  const button = event.target.closest("[data-pick]");
  last = button ? named(button) : null;
});
element.addEventListener("focusout", (event) => { if (event.relatedTarget) last = null; });
const pick = (button) => {
  last = named(button);
  // the order tells the last of several clicks, whatever way they take through the server
  trigger("pick", { kind: button.dataset.pick, value: button.dataset.value, order: performance.now() });
};
element.addEventListener("click", (event) => {
  const button = event.target.closest("[data-pick]");
  if (button) pick(button);
});
// A button that is drawn anew while it is pressed gets no click: its successor under the pointer stands for it.
let pressed = null;
element.addEventListener("pointerdown", (event) => {
  const button = event.target.closest("[data-pick]");
  pressed = button && { button, name: named(button) };
});
element.addEventListener("pointerup", (event) => {
  const button = event.target.closest("[data-pick]");
  if (pressed && !pressed.button.isConnected && button && named(button) === pressed.name) pick(button);
  pressed = null;
});
element.addEventListener("keydown", (event) => {
  const group = event.target.closest("[data-arrows]");
  const step = { ArrowRight: 1, ArrowLeft: -1, ArrowDown: 1, ArrowUp: -1 }[event.key];
  if (!group || !step) return;
  const buttons = [...group.querySelectorAll("button")];
  const from = buttons.indexOf(event.target.closest("button"));
  let to = from + step;
  if (event.key === "ArrowDown" || event.key === "ArrowUp") {
    const here = buttons[from].getBoundingClientRect();
    const rows = buttons.filter((b) => Math.abs(b.getBoundingClientRect().left - here.left) < 4);
    to = buttons.indexOf(rows[rows.indexOf(buttons[from]) + step]);
  }
  if (buttons[to]) { buttons[to].focus(); event.preventDefault(); }
});
watch("value", () => {
  if (!last || (document.activeElement && document.activeElement !== document.body)) return;
  const button = element.querySelector(last);
  if (button) button.focus({ preventScroll: true });
});
