"use strict";
// The page can be read without this script: it shows one image at a time, draws maps on other scales, sorts and filters.
const all = (selector, root = document) => [...root.querySelectorAll(selector)];
const tools = document.querySelector("form.tools");
const table = document.querySelector(".matrix table");
const body = table && table.tBodies[0];
const rows = body ? all("tr", body) : [];
const articles = all("article.image");
const controls = tools.elements;
const screen = { view: table ? "matrix" : "page", current: articles[0] };

// --- Scales: the levels of a map's picture stand for values beyond its colours too (see levels.py), and its colours
// stand in the picture's palette. Another scale is another palette in the same picture.
const REACH = 100 / 127;
const CRC = Uint32Array.from({ length: 256 }, (_, n) => {
  for (let bit = 0; bit < 8; bit++) n = n & 1 ? 0xedb88320 ^ (n >>> 1) : n >>> 1;
  return n;
});
const maps = all("article img[data-limit]").map((image) => {
  const figure = image.closest("figure");
  return {
    image, figure, kind: figure.className, method: image.closest("[data-method]").dataset.method,
    limit: Number(image.dataset.limit), peak: Number(image.dataset.peak), source: image.src,
    ends: all(".scale span:not(.ramp)", figure).map((end) => end.textContent),
  };
});

function chunksOf(bytes) {
  const view = new DataView(bytes.buffer), found = {};
  for (let at = 8; at + 8 <= bytes.length;) {
    const size = view.getUint32(at);
    found[String.fromCharCode(...bytes.subarray(at + 4, at + 8))] = { at, size };
    at += size + 12;
  }
  return found;
}

function changeChunk(bytes, { at, size }, contents) {
  bytes.set(contents, at + 8);
  let crc = 0xffffffff;
  for (const byte of bytes.subarray(at + 4, at + 8 + size)) crc = CRC[(crc ^ byte) & 255] ^ (crc >>> 8);
  new DataView(bytes.buffer).setUint32(at + 8 + size, ~crc >>> 0);
}

const HEAD = 2048; // letters of base64, a multiple of 4: the palette stands before the pixels

function redrawn(map, scale) {
  const data = map.source.indexOf(",") + 1;
  const bytes = Uint8Array.from(atob(map.source.slice(data, data + HEAD)), (letter) => letter.charCodeAt(0));
  const chunks = chunksOf(bytes);
  if (!chunks.PLTE) return map.source; // a picture that says that every value is zero
  const signed = map.kind === "signed", zero = signed ? 127 : 0, last = signed ? 127 : 254;
  const old = bytes.slice(chunks.PLTE.at + 8, chunks.PLTE.at + 8 + chunks.PLTE.size);
  const clear = chunks.tRNS && bytes.slice(chunks.tRNS.at + 8, chunks.tRNS.at + 8 + chunks.tRNS.size);
  const colours = old.slice(), alpha = clear && clear.slice();
  for (let level = 0; level < 255; level++) {
    const share = Math.abs(level - zero) / last / REACH;
    const beyond = (share - 1) * REACH / (1 - REACH);
    const value = map.limit * (share <= 1 ? share : (map.peak / map.limit) ** beyond);
    const place = zero + Math.sign(level - zero) * Math.round(Math.min(1, value / scale) * REACH * last);
    colours.set(old.subarray(3 * place, 3 * place + 3), 3 * level);
    if (alpha) alpha[level] = clear[place];
  }
  changeChunk(bytes, chunks.PLTE, colours);
  if (alpha) changeChunk(bytes, chunks.tRNS, alpha);
  return map.source.slice(0, data) + btoa(String.fromCharCode(...bytes)) + map.source.slice(data + HEAD);
}

function number(value) {
  return String(Number(value.toPrecision(3))).replace("-", "−");
}

function rescale() {
  const shared = {}, mode = controls.scale.value;
  const group = (map) => `${map.kind} ${mode === "method" ? map.method : ""}`;
  for (const map of maps) shared[group(map)] = Math.max(shared[group(map)] || 0, map.limit);
  for (const map of maps) {
    map.scale = mode === "own" ? map.limit : shared[group(map)];
    map.image.src = map.scale === map.limit ? map.source : redrawn(map, map.scale);
    const ends = all(".scale span:not(.ramp)", map.figure);
    const words = map.scale === map.limit ? map.ends
      : [map.kind === "signed" ? number(-map.scale) : "0", (map.kind === "signed" ? "+" : "") + number(map.scale)];
    ends.forEach((end, side) => { end.textContent = words[side]; });
  }
  fill();
}

// --- The matrix
function fill() {
  if (!table) return;
  const kind = controls.kind.value;
  for (const link of all("a[data-cell]", body)) {
    const section = document.getElementById(link.hash.slice(1)).closest("section");
    const figure = section.querySelector(`figure.${kind}`) || section.querySelector("figure.signed");
    if (!figure) continue; // the method failed
    const frame = figure.querySelector(".frame").cloneNode(true), image = frame.querySelector("img");
    const name = link.closest("tr").dataset.name;
    image.alt = `${name}, ${image.alt}`;
    frame.classList.toggle("over", figure.className === "magnitude");
    link.replaceChildren(frame);
    link.closest("tr").style.setProperty("--view", section.closest("article").style.getPropertyValue("--view"));
    const limit = link.parentNode.querySelector(".limit");
    const ends = all(".scale span:not(.ramp)", figure);
    if (limit && ends.length) {
      limit.textContent = figure.className === "magnitude" ? `0 … ${ends[1].textContent}` : `±${ends[1].textContent.slice(1)}`;
    }
  }
  const bar = document.querySelector(".legend-bar"), ends = all("span:not(.ramp)", bar);
  const one = maps.find((map) => map.kind === kind && controls.scale.value === "all");
  bar.className = `scale legend-bar ${kind}`;
  ends[0].textContent = kind === "magnitude" ? "0" : one ? number(-one.scale) : "−limit";
  ends[1].textContent = one ? `${kind === "magnitude" ? "" : "+"}${number(one.scale)}` : kind === "magnitude" ? "limit" : "+limit";
}

function arrange() {
  if (!table) return;
  const by = controls.sort.value, wanted = controls.filter.value.trim().toLowerCase();
  const words = (a, b) => a.localeCompare(b, undefined, { numeric: true, sensitivity: "base" });
  const sorted = [...rows].sort((a, b) => {
    const [x, y] = by === "order" ? ["", ""] : [a.dataset[by], b.dataset[by]];
    if ((x === "") !== (y === "")) return x === "" ? 1 : -1; // what has none comes last
    return by === "name" || by === "class" ? words(x, y) : Number(y) - Number(x); // of equals the first stays first
  });
  for (const row of sorted) row.hidden = !row.dataset.text.includes(wanted);
  body.append(...sorted);
  const images = document.querySelector(".images");
  images.append(...sorted.map((row) => document.getElementById(row.dataset.anchor)).filter(Boolean));
  show();
}

const visible = () => rows.length ? [...body.rows].filter((row) => !row.hidden) : [];
const shown = () => visible().map((row) => document.getElementById(row.dataset.anchor)).filter(Boolean);

// --- One image at a time, or all of them in the matrix
function show() {
  const single = screen.view === "single", list = shown(), state = tools.querySelector(".state");
  for (const article of articles) article.classList.toggle("off", screen.view !== "page" && !(single && article === screen.current));
  if (!table) return;
  table.closest(".matrix").classList.toggle("off", single);
  const turn = document.querySelector(".turn");
  turn.hidden = !single;
  controls.view.value = screen.view;
  for (const label of all(".for-matrix", tools)) label.hidden = single && !label.querySelector("[name=sort]");
  const place = list.indexOf(screen.current);
  turn.querySelector("[value='-1']").disabled = place <= 0;
  turn.querySelector("[value='1']").disabled = place < 0 || place >= list.length - 1;
  const count = visible().length;
  state.textContent = single
    ? `Image ${place + 1} of ${list.length}: ${screen.current.querySelector("h2").textContent}`
    : count < rows.length ? `${count} of ${rows.length} images` : `${count} images`;
}

function open(article, target) {
  if (!article) return;
  screen.view = "single";
  screen.current = article;
  show();
  const place = target || article;
  place.scrollIntoView();
  (target ? target.closest("section").querySelector("button") || article.querySelector("h2") : article.querySelector("h2")).focus({ preventScroll: true });
}

function back() {
  if (!table || screen.view === "matrix") return;
  screen.view = "matrix";
  show();
  const row = document.getElementById(`row-${screen.current.id}`), link = row.querySelector("a");
  if (location.hash) history.pushState(null, "", location.pathname + location.search);
  (row.hidden ? controls.filter : link).focus();
}

function turnBy(step) {
  const list = shown(), next = list[list.indexOf(screen.current) + step];
  if (!next) return;
  history.pushState(null, "", `#${next.id}`); // at once, where a link would come a little later
  open(next);
}

function follow() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  const article = target && target.closest("article.image");
  if (table && article) open(article, target === article ? null : target);
  else if (table && !location.hash) { screen.view = "matrix"; show(); }
}

// --- Keys
const cycle = (select) => {
  select.selectedIndex = (select.selectedIndex + 1) % select.options.length;
  select.dispatchEvent(new Event("change", { bubbles: true }));
};

function moveFocus(key) {
  const lines = visible().map((row) => all("a", row)), row = document.activeElement.closest(".matrix tbody tr");
  if (!lines.length) return;
  let y = row ? visible().indexOf(row) : 0, x = row ? lines[y].indexOf(document.activeElement) : 0;
  if (row) [x, y] = { ArrowLeft: [x - 1, y], ArrowRight: [x + 1, y], ArrowUp: [x, y - 1], ArrowDown: [x, y + 1] }[key];
  y = Math.min(Math.max(y, 0), lines.length - 1);
  lines[y][Math.min(Math.max(x, 0), lines[y].length - 1)].focus();
}

document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey || document.querySelector("dialog[open]")) return;
  const typing = event.target.matches("select, textarea, input:not([type=radio])");
  if (event.key === "Escape" && event.target.name !== "filter") return back();
  if (event.key === "Escape") event.target.blur();
  if (typing || event.target.matches("input") && event.key.startsWith("Arrow")) return;
  const keys = {
    "?": () => { const list = tools.querySelector(".keys"); list.open = !list.open; },
    s: () => cycle(controls.scale),
    "+": () => { controls.opacity.stepUp(10); controls.opacity.dispatchEvent(new Event("input")); },
    "-": () => { controls.opacity.stepDown(10); controls.opacity.dispatchEvent(new Event("input")); },
  };
  if (table) {
    keys["/"] = () => controls.filter.focus();
    keys.m = () => { if (screen.view === "matrix") cycle(controls.kind); };
    keys.o = () => cycle(controls.sort);
    if (screen.view === "single") Object.assign(keys, { ArrowLeft: () => turnBy(-1), ArrowRight: () => turnBy(1) });
    else for (const key of ["ArrowLeft", "ArrowRight", "ArrowUp", "ArrowDown"]) keys[key] = () => moveFocus(key);
  }
  const act = keys[event.key] || keys[event.key.toLowerCase()];
  if (act) { event.preventDefault(); act(); }
});

// --- Controls
function fade(figures, opacity) {
  for (const figure of figures) {
    figure.style.setProperty("--opacity", opacity / 100);
    const own = figure.querySelector(".opacity input");
    if (own) own.value = opacity;
  }
}
for (const line of all(".opacity")) {
  line.hidden = false;
  line.querySelector("input").addEventListener("input", (event) => fade([line.closest("figure")], event.target.value));
}
controls.opacity.addEventListener("input", (event) => {
  fade(all("figure.magnitude"), event.target.value);
  document.body.style.setProperty("--opacity", event.target.value / 100);
});
controls.scale.addEventListener("change", rescale);
tools.addEventListener("submit", (event) => event.preventDefault());
if (table) {
  controls.kind.addEventListener("change", fill);
  controls.sort.addEventListener("change", arrange);
  controls.filter.addEventListener("input", arrange);
  for (const choice of controls.view) choice.addEventListener("change", () => choice.value === "single"
    ? open(shown().includes(screen.current) ? screen.current : shown()[0]) || show() : back());
  for (const button of all(".turn button")) button.addEventListener("click", () => button.value === "0" ? back() : turnBy(Number(button.value)));
  window.addEventListener("hashchange", follow);
  if (matchMedia("(max-width: 42rem)").matches) tools.querySelector(".keys").open = false;
}
tools.hidden = false;

// --- A picture, enlarged; Esc or a click closes it
const dialog = document.getElementById("zoom");
for (const button of all("button.zoom")) {
  button.addEventListener("click", () => {
    const figure = button.closest("figure"), stage = dialog.querySelector(".stage"), image = figure.querySelector("img");
    stage.className = `stage ${figure.className}`;
    for (const name of ["--opacity", "--view"]) stage.style.setProperty(name, getComputedStyle(figure).getPropertyValue(name));
    stage.replaceChildren(button.querySelector(".frame").cloneNode(true));
    const scale = figure.querySelector(".scale"), line = dialog.querySelector(".scale");
    line.className = scale ? scale.className : "scale";
    line.replaceChildren(...(scale ? scale.cloneNode(true).childNodes : []));
    dialog.querySelector(".caption").textContent = button.getAttribute("aria-label").replace(/^Enlarge: /, "");
    dialog.style.setProperty("--ratio", image.getAttribute("width") / image.getAttribute("height"));
    dialog.showModal();
  });
}
dialog.addEventListener("click", (event) => {
  if (event.target === dialog || event.target.closest(".stage, .close")) dialog.close();
});

// --- The command
const copy = document.querySelector("button.copy");
copy.hidden = false;
copy.addEventListener("click", async () => {
  const command = document.getElementById("command");
  let done = false;
  try {
    await navigator.clipboard.writeText(command.textContent);
    done = true;
  } catch { // no clipboard for this page: the text is selected, to be copied by hand where that fails too
    getSelection().selectAllChildren(command);
    done = document.execCommand("copy");
  }
  copy.textContent = done ? "Copied" : "Selected: copy it";
  setTimeout(() => { copy.textContent = "Copy"; }, 2000);
});

fill();
show();
follow();
