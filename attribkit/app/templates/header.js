element.addEventListener("click", (event) => {
  if (event.target.closest("[data-theme-toggle]")) document.body.classList.toggle("dark");
  // no link: gradio's page has a base address, so that #settings would load it anew
  const jump = event.target.closest("[data-jump]");
  if (!jump) return;
  const place = document.getElementById(jump.dataset.jump);
  place.scrollIntoView({ behavior: "smooth" });
  place.querySelector("input")?.focus({ preventScroll: true });
});
// gradio gives every radio button a group of its own, and its tabs no keys: so the arrow keys are seen to here.
document.addEventListener("keydown", (event) => {
  const one = event.target.closest?.("fieldset input[type=radio], [role=tablist] [role=tab]");
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!one || !step) return;
  const kind = one.matches("input") ? "input[type=radio]" : "[role=tab]";
  const all = [...one.closest("fieldset, [role=tablist]").querySelectorAll(kind)];
  const next = all[(all.indexOf(one) + step + all.length) % all.length];
  next.focus();
  next.click();
  event.preventDefault();
});
