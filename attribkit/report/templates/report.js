"use strict";
// Opacity of a map over its photograph, which loses its colours as the map gains them.
document.querySelectorAll(".opacity input").forEach((input) => {
  const figure = input.closest("figure");
  const apply = () => { figure.style.setProperty("--opacity", input.value / 100); };
  input.addEventListener("input", apply);
  apply();
});
// A picture, enlarged. Esc or a click closes it.
const dialog = document.getElementById("zoom");
if (dialog && dialog.showModal) {
  document.querySelectorAll("button.zoom").forEach((button) => {
    button.addEventListener("click", () => {
      const figure = button.closest("figure");
      const frame = button.querySelector(".frame").cloneNode(true);
      const stage = dialog.querySelector(".stage");
      stage.className = `stage ${figure.className}`;
      stage.style.setProperty("--opacity", figure.style.getPropertyValue("--opacity"));
      stage.replaceChildren(frame);
      dialog.querySelector(".caption").textContent = button.getAttribute("aria-label").replace(/^Enlarge: /, "");
      const image = figure.querySelector("img");
      dialog.style.setProperty("--ratio", image.getAttribute("width") / image.getAttribute("height"));
      dialog.showModal();
    });
  });
  dialog.addEventListener("click", (event) => {
    if (event.target === dialog || event.target.closest(".stage, .close")) dialog.close();
  });
}
