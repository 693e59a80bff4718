"use strict";
// The tree: cards that can be zoomed, moved, walked through by keys. What the search says is set as text, never as HTML.

const search = JSON.parse(document.getElementById("search").textContent);
const byName = new Map(search.branches.map((branch) => [branch.name, branch]));
const $ = (id) => document.getElementById(id);

/** A new element with attributes and children; text becomes a text node. */
function make(tag, attributes = {}, ...children) {
  const svg = ["svg", "g", "rect", "path", "text", "image", "use", "title", "line", "defs"].includes(tag);
  const element = svg ? document.createElementNS("http://www.w3.org/2000/svg", tag) : document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

function list(id, sentences) {
  $(id).hidden = !sentences.length;
  $(id).append(...sentences.map((sentence) => make("li", {}, sentence)));
}

$("prompt").textContent = search.prompt;
$("said").textContent = search.said;
list("warnings", search.warnings);
list("notes", search.notes);
$("counts").append(...search.counts.map(([fate, means, count]) =>
  make("li", {class: fate}, make("i", {style: "color: var(--fate)"}), make("b", {class: "fate"}, `${count} ${fate}`), `: ${means}`)));

// ---- cards

const UNIT = 80; // pixels of a thumbnail's height at a zoom of 1
const PAD = 0.09 * UNIT;
const SIDE = 0.8 * UNIT;
const world = $("world");
const cards = new Map();
let clicking = false;

/** How a branch was judged, a line for each time. */
function verdictLines(branch) {
  return branch.verdicts.map((v) => `${v.what} ${v.score.toFixed(2)}${v.place && `, place ${v.place}`}`);
}

function fateOf(branch) {
  const cut = branch.by ? `cut after its ${branch.by}` : branch.fate;
  return (branch.draft ? "preview, " : "") + cut;
}

function thumbnails(branch, x, y) {
  // One picture for a branch: its frames are windows onto it.
  const {clip} = branch;
  const high = branch.thumb * UNIT, wide = high * clip.width / clip.height;
  const count = Math.min(search.thumbs, clip.count);
  const id = `strip-${branch.name}`;
  const parts = [make("defs", {}, make("image", {id, href: clip.uri, width: clip.width * clip.count, height: clip.height, class: clip.height < 100 ? "pixels" : ""}))];
  for (let n = 0; n < count; n++) {
    const frame = count > 1 ? Math.round(n * (clip.count - 1) / (count - 1)) : 0;
    const box = `${frame * clip.width} 0 ${clip.width} ${clip.height}`;
    parts.push(make("svg", {x: x + n * wide, y, width: wide, height: high, viewBox: box}, make("use", {href: `#${id}`})));
  }
  return parts;
}

function drawCard(branch) {
  const x = branch.x * UNIT, y = branch.y * UNIT, width = branch.width * UNIT, height = branch.height * UNIT;
  const card = make("g", {
    class: `card ${branch.fate}`, role: "treeitem", tabindex: "-1", "aria-level": branch.depth + 1, "aria-selected": "false",
    "aria-label": [`branch ${branch.name}`, fateOf(branch), ...verdictLines(branch)].join("; "),
  });
  card.append(make("rect", {class: "box", x, y, width, height, rx: 7}), make("rect", {class: "ring", x: x - 5, y: y - 5, width: width + 10, height: height + 10, rx: 10}));
  if (branch.clip) card.append(...thumbnails(branch, x + PAD, y + PAD));
  branch.verdicts.forEach((verdict, row) => {
    const left = x + width - SIDE - PAD / 2, top = y + PAD + row * 0.42 * UNIT;
    card.append(
      make("text", {class: "label", x: left, y: top + 9}, verdict.what),
      make("text", {class: "score", x: left, y: top + 22}, verdict.score.toFixed(2)),
      make("text", {x: left + 33, y: top + 22}, verdict.place));
  });
  if (branch.thumb === 1) {
    const more = branch.left_out ? ` (+ ${branch.left_out})` : "";
    card.append(make("text", {class: "label", x: x + PAD, y: y + height - 8}, branch.name + (branch.draft ? ", preview" : "") + more));
  }
  card.addEventListener("click", () => {
    if (moved) return;
    clicking = true;
    select(branch, {play: true, focus: true});
    clicking = false;
  });
  card.addEventListener("focus", () => {
    select(branch);
    if (clicking) return; // nothing moves away under the pointer
    reveal(branch);
    showTip(branch);
  });
  card.addEventListener("blur", hideTip);
  card.addEventListener("pointerenter", () => showTip(branch));
  card.addEventListener("pointerleave", hideTip);
  cards.set(branch.name, card);
  return card;
}

function drawEdge(branch) {
  const parent = byName.get(branch.parent);
  const x0 = (parent.x + parent.width) * UNIT, y0 = (parent.y + parent.height / 2) * UNIT;
  const x1 = branch.x * UNIT, y1 = (branch.y + branch.height / 2) * UNIT, bend = (x1 - x0) * 0.55;
  return make("path", {class: `edge ${branch.fate}`, d: `M${x0} ${y0}C${x0 + bend} ${y0} ${x1 - bend} ${y1} ${x1} ${y1}`});
}

const lefts = new Map(search.branches.map((branch) => [branch.depth, branch.x]));
for (const [depth, x] of lefts) world.append(make("text", {class: "depth", x: x * UNIT, y: -16}, `unit ${depth}`));
const joined = search.branches.filter((branch) => byName.has(branch.parent));
world.append(...joined.filter((b) => b.fate !== "won").map(drawEdge), ...joined.filter((b) => b.fate === "won").map(drawEdge));
world.append(...search.branches.map(drawCard));

// ---- the view

const extent = {
  width: Math.max(...search.branches.map((b) => b.x + b.width)) * UNIT,
  height: Math.max(...search.branches.map((b) => b.y + b.height)) * UNIT,
};
const view = {x: 0, y: 0, scale: 1};
const stage = $("stage");

function place() {
  // Some of the tree stays in sight.
  const {clientWidth: width, clientHeight: height} = stage, margin = 60;
  view.x = Math.min(width - margin, Math.max(margin - extent.width * view.scale, view.x));
  view.y = Math.min(height - margin, Math.max(margin - extent.height * view.scale, view.y));
  world.setAttribute("transform", `translate(${view.x} ${view.y}) scale(${view.scale})`);
}

function wholeScale() {
  return Math.min(1.5, (stage.clientWidth - 24) / extent.width, (stage.clientHeight - 60) / (extent.height + 30));
}

function zoom(factor, x = stage.clientWidth / 2, y = stage.clientHeight / 2) {
  const scale = Math.min(4, Math.max(Math.min(wholeScale(), 0.5), view.scale * factor));
  view.x = x - (x - view.x) * scale / view.scale;
  view.y = y - (y - view.y) * scale / view.scale;
  view.scale = scale;
  place();
}

function fit() {
  view.scale = wholeScale();
  view.x = Math.max(12, (stage.clientWidth - extent.width * view.scale) / 2);
  view.y = 36;
  place();
}

/** Show a branch at a size that can be read, with what it grew from at its left. */
function centre(branch) {
  view.scale = Math.max(wholeScale(), Math.min(1, 0.8 * stage.clientWidth / (branch.width * UNIT)), 0.6);
  const right = (branch.x + branch.width) * UNIT * view.scale;
  view.x = Math.min(16, stage.clientWidth - right - 24);
  view.y = stage.clientHeight / 2 - (branch.y + branch.height / 2) * UNIT * view.scale;
  place();
}

/** Move the view just so far that a branch is in sight. */
function reveal(branch) {
  const edge = (from, size, room) => {
    const margin = Math.max(0, Math.min(room / 4, (room - size) / 2)); // its neighbours too, where there is room
    return from < margin ? margin - from : Math.min(0, room - margin - from - size);
  };
  view.x += edge(view.x + branch.x * UNIT * view.scale, branch.width * UNIT * view.scale, stage.clientWidth);
  view.y += edge(view.y + branch.y * UNIT * view.scale, branch.height * UNIT * view.scale, stage.clientHeight);
  place();
}

const pointers = new Map();
let moved = false; // since the pointer went down: then its click is none
let pressed = [0, 0];

stage.addEventListener("pointerdown", (event) => {
  if (!pointers.size) { moved = false; pressed = [event.clientX, event.clientY]; }
  pointers.set(event.pointerId, [event.clientX, event.clientY]);
});
stage.addEventListener("mousedown", (event) => { // keys go on working after a drag
  event.preventDefault();
  if (!stage.contains(document.activeElement)) stage.focus({preventScroll: true});
});
stage.addEventListener("pointermove", (event) => {
  const before = pointers.get(event.pointerId);
  if (!before) return;
  const now = [event.clientX, event.clientY];
  if (!moved && Math.hypot(now[0] - pressed[0], now[1] - pressed[1]) < 5) return;
  if (!moved) stage.setPointerCapture(event.pointerId);
  moved = true;
  hideTip();
  $("tree").classList.add("dragging");
  const other = [...pointers].find(([id]) => id !== event.pointerId)?.[1];
  if (other) {
    const distance = (point) => Math.max(10, Math.hypot(point[0] - other[0], point[1] - other[1]));
    const box = stage.getBoundingClientRect();
    zoom(distance(now) / distance(before), (now[0] + other[0]) / 2 - box.left, (now[1] + other[1]) / 2 - box.top);
  } else {
    view.x += now[0] - before[0];
    view.y += now[1] - before[1];
    place();
  }
  pointers.set(event.pointerId, now);
});
for (const end of ["pointerup", "pointercancel"]) {
  window.addEventListener(end, (event) => { pointers.delete(event.pointerId); $("tree").classList.remove("dragging"); });
}
stage.addEventListener("wheel", (event) => {
  if (!event.ctrlKey && !event.metaKey) return; // a plain wheel scrolls the page
  event.preventDefault();
  const box = stage.getBoundingClientRect();
  zoom(Math.exp(-event.deltaY * 0.004), event.clientX - box.left, event.clientY - box.top);
}, {passive: false});
$("zoom-in").addEventListener("click", () => zoom(1.3));
$("zoom-out").addEventListener("click", () => zoom(1 / 1.3));
$("fit").addEventListener("click", fit);
$("to-winner").addEventListener("click", () => { centre(winner()); select(winner(), {focus: true}); });
new ResizeObserver(place).observe(stage);

// ---- hints, and the way by keys

const tip = $("tip");

function showTip(branch) {
  if (pointers.size && moved) return;
  const scores = branch.verdicts.flatMap((v) => v.columns.map(([name, score]) => `${v.what}, ${name}: ${score.toFixed(3)}`));
  tip.textContent = [`${branch.name}: ${fateOf(branch)}`, ...(scores.length ? scores : ["not judged"])].join("\n");
  tip.hidden = false;
  const box = cards.get(branch.name).querySelector("rect").getBoundingClientRect(), frame = stage.getBoundingClientRect();
  const x = Math.min(frame.width - tip.offsetWidth - 4, Math.max(4, box.left - frame.left));
  const below = box.bottom - frame.top + 8, above = box.top - frame.top - tip.offsetHeight - 8;
  tip.style.left = `${x}px`;
  tip.style.top = `${Math.max(4, below + tip.offsetHeight < frame.height ? below : above)}px`;
}

function hideTip() { tip.hidden = true; }

function winner() { return byName.get(search.winner); }

/** Where an arrow leads from a branch. */
function neighbour(branch, key) {
  if (key === "ArrowLeft") return byName.get(branch.parent);
  if (key === "ArrowRight") return search.branches.find((each) => each.parent === branch.name);
  const column = search.branches.filter((each) => each.depth === branch.depth).sort((a, b) => a.y - b.y);
  return column[column.indexOf(branch) + (key === "ArrowUp" ? -1 : 1)];
}

stage.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.metaKey || event.altKey) return;
  const at = selected ?? winner();
  const actions = {
    Home: () => select(winner(), {focus: true}), Enter: () => select(at, {play: true}), " ": () => select(at, {play: true}),
    "+": () => zoom(1.3), "=": () => zoom(1.3), "-": () => zoom(1 / 1.3), 0: fit, Escape: hideTip,
  };
  if (event.key.startsWith("Arrow")) {
    const next = neighbour(at, event.key);
    if (next) select(next, {focus: true});
  } else if (actions[event.key]) actions[event.key]();
  else return;
  event.preventDefault();
});
