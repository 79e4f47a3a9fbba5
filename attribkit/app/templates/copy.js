// Copies what a button's data-copy names, and says so on the button.
element.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  const source = element.querySelector(button.dataset.copy);
  const text = source.value ?? source.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = "Copied";
  } catch {
    if (source.select) source.select();
    else window.getSelection().selectAllChildren(source);
    button.textContent = "Press Ctrl+C";
  }
  window.setTimeout(() => { button.textContent = "Copy"; }, 2000);
});
