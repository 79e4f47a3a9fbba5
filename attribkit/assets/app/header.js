element.addEventListener("click", (event) => {
  if (event.target.closest("[data-theme-toggle]")) document.body.classList.toggle("dark");
});
// gradio gives every radio button a group of its own, so that the browser's arrow keys do nothing: these do.
document.addEventListener("keydown", (event) => {
  const radio = event.target.closest?.("fieldset input[type=radio]");
  const step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
  if (!radio || !step) return;
  const all = [...radio.closest("fieldset").querySelectorAll("input[type=radio]")];
  const next = all[(all.indexOf(radio) + step + all.length) % all.length];
  next.focus();
  next.click();
  event.preventDefault();
});
