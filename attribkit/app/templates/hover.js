// The window under the pointer, or the one that the arrow keys moved to: its outline, and the score with it there.
const nearest = (starts, ends, at) => {
  let best = 0;
  starts.forEach((start, i) => {
    const off = (j) => Math.abs((starts[j] + ends[j]) / 2 - at);
    if (off(i) < off(best)) best = i;
  });
  return best;
};
const number = (value) => Number(value.toPrecision(4)).toString().replace("-", "−");
const show = (map, row, column) => {
  const data = JSON.parse(map.dataset.windows);
  row = Math.max(0, Math.min(data.tops.length - 1, row));
  column = Math.max(0, Math.min(data.lefts.length - 1, column));
  map.dataset.at = `${row},${column}`;
  for (const rect of map.querySelectorAll("rect")) {
    rect.setAttribute("x", data.lefts[column]);
    rect.setAttribute("y", data.tops[row]);
    rect.setAttribute("width", data.rights[column] - data.lefts[column]);
    rect.setAttribute("height", data.bottoms[row] - data.tops[row]);
    rect.removeAttribute("hidden");
  }
  const score = data.scores[row][column];
  const change = score - data.clean;
  element.querySelector("#ak-readout").textContent =
    `Row ${row}, column ${column}: score ${number(score)} (${change > 0 ? "+" : ""}${number(change)}); ` +
    `the model would say ${data.names[data.labels[row][column]]}.`;
};
element.addEventListener("pointermove", (event) => {
  const map = event.target.closest(".ak-hover");
  if (!map) return;
  const data = JSON.parse(map.dataset.windows);
  const box = map.querySelector("svg").getBoundingClientRect();
  const [, , width, height] = map.querySelector("svg").getAttribute("viewBox").split(" ").map(Number);
  const x = ((event.clientX - box.left) / box.width) * width;
  const y = ((event.clientY - box.top) / box.height) * height;
  show(map, nearest(data.tops, data.bottoms, y), nearest(data.lefts, data.rights, x));
});
element.addEventListener("keydown", (event) => {
  const map = event.target.closest(".ak-hover");
  const step = { ArrowRight: [0, 1], ArrowLeft: [0, -1], ArrowDown: [1, 0], ArrowUp: [-1, 0] }[event.key];
  if (!map || !step) return;
  const [row, column] = map.dataset.at.split(",").map(Number);
  const hidden = map.querySelector("rect").hasAttribute("hidden");
  show(map, hidden ? row : row + step[0], hidden ? column : column + step[1]);
  event.preventDefault();
});
