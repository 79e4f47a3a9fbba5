"use strict";
// A feature map, enlarged: pairs of projection and patch with their captions. Arrows go to the next one, Esc closes.
const dialog = document.getElementById("zoom");
if (dialog && dialog.showModal) {
  const maps = [...document.querySelectorAll(".map")];
  let current = 0;
  const show = (index) => {
    current = (index + maps.length) % maps.length;
    const map = maps[current];
    dialog.querySelector("h2").textContent = map.querySelector(".zoom").getAttribute("aria-label").replace(/^Enlarge: f/, "F");
    const stage = dialog.querySelector(".stage");
    stage.style.cssText = map.style.cssText;
    stage.classList.toggle("coarse", map.classList.contains("coarse"));
    const [projections, patches] = map.querySelectorAll(".block");
    stage.replaceChildren(...[...map.querySelectorAll("li")].map((item, rank) => {
      const pair = document.createElement("div");
      pair.className = "pair";
      const caption = document.createElement("p");
      item.childNodes.forEach((node) => caption.append(node.cloneNode(true)));
      pair.append(projections.children[rank].cloneNode(true), patches.children[rank].cloneNode(true), caption);
      return pair;
    }));
  };
  maps.forEach((map, index) => map.querySelector(".zoom").addEventListener("click", () => { show(index); dialog.showModal(); dialog.scrollTop = 0; }));
  dialog.querySelector(".close").addEventListener("click", () => dialog.close());
  dialog.querySelector(".previous").addEventListener("click", () => show(current - 1));
  dialog.querySelector(".next").addEventListener("click", () => show(current + 1));
  dialog.addEventListener("click", (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener("close", () => maps[current].querySelector(".zoom").focus());
  dialog.addEventListener("keydown", (event) => {
    if (event.key === "ArrowRight") show(current + 1);
    if (event.key === "ArrowLeft") show(current - 1);
  });
  if (location.hash.startsWith("#map-")) {
    const index = maps.findIndex((map) => `#${map.id}` === location.hash.replace(/-open$/, ""));
    if (index >= 0 && location.hash.endsWith("-open")) { show(index); dialog.showModal(); }
  }
}
