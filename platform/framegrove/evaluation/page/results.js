"use strict";
// Videos side by side. What the data says is set as text, never as HTML.

const data = JSON.parse(document.getElementById("data").textContent);
const $ = (id) => document.getElementById(id);
const STEP = 20; // prompts that are shown at once

/** A new element with attributes and children; text becomes a text node. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

const counted = (number, noun) => `${number} ${noun}${number === 1 ? "" : "s"}`;
const videos = data.prompts.reduce((sum, prompt) => sum + prompt.videos.length, 0);
$("said").textContent = `${counted(videos, "video")} for ${counted(data.prompts.length, "prompt")}, in ` +
  `${counted(data.settings.length, "setting")}. Judges: ${data.judges.join(", ")}.`;

// ---- tables

function interval(found) {
  const [mean, low, high] = [found.mean, found.low, found.high].map((value) => value.toFixed(3).replace(/^-(0\.0+)$/, "$1"));
  const range = `[${low}, ${high}]`;
  const p = "p" in found ? ` p ${found.p < 0.001 ? "< 0.001" : `= ${found.p.toFixed(3)}`}` : "";
  return [found.decided ? make("b", {}, mean) : mean, make("small", {}, range + p)];
}

function fill(table, first, head, rows) {
  table.append(make("thead", {}, make("tr", {}, make("th", {scope: "col"}, first), ...head.map((name) => make("th", {scope: "col"}, name)))));
  table.append(make("tbody", {}, ...rows.map(([name, ...cells]) => make("tr", {}, make("th", {scope: "row"}, name),
    ...cells.map((cell) => make("td", {}, ...(typeof cell === "number" ? [`${cell.toFixed(2)}x`] : interval(cell))))))));
}

fill($("means"), "setting", data.table.head, data.table.rows);
fill($("differences"), "left minus right", data.differences.head, data.differences.rows);
$("differences-section").hidden = !data.differences.rows.length;

// ---- orders

const disputing = data.judges.length > 1;
const orders = new Map();
if (disputing) orders.set("judges disagree most", (prompt) => -prompt.disagreement);
orders.set("as they were asked", (prompt) => prompt.index);
data.judges.forEach((judge, at) => {
  const mean = (prompt) => prompt.videos.reduce((sum, video) => sum + video.scores[at], 0) / prompt.videos.length;
  orders.set(`best by ${judge}`, (prompt) => -mean(prompt));
  orders.set(`worst by ${judge}`, mean);
  if (data.settings.length > 1) {
    orders.set(`settings differ most by ${judge}`, (prompt) => {
      const scores = prompt.videos.map((video) => video.scores[at]);
      return Math.min(...scores) - Math.max(...scores);
    });
  }
});
$("order").append(...[...orders.keys()].map((name) => make("option", {}, name)));
$("order-said").textContent = disputing
  ? "Disagreement of a video: how far apart its places among all videos are, from the judge who ranks it highest to the one who ranks it lowest, from 0 to 1. Of a prompt: that of its most disputed video."
  : "There is one judge, so nobody disagrees: give others by --held-out.";

const kinds = [...new Set(data.prompts.flatMap((prompt) => prompt.kinds))];
$("kind-label").hidden = !kinds.length;
$("kind").append(make("option", {value: ""}, "all dimensions"), ...kinds.map((kind) => make("option", {}, kind)));

// ---- videos

const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
$("moving").checked = !still;

// Videos are loaded, and play, while they are in sight: browsers give up where hundreds do at once.
const sight = new IntersectionObserver((entries) => {
  for (const {target, isIntersecting} of entries) {
    if (isIntersecting && !target.src) target.src = target.dataset.file;
    if (isIntersecting && $("moving").checked) target.play().catch(() => {});
    else target.pause();
  }
}, {rootMargin: "200px"});

function figure(video) {
  const name = data.settings[video.setting] + (video.take ? `, take ${video.take + 1}` : "");
  let screen = make("div", {class: "gone"}, "this video was not kept");
  if (video.file) {
    screen = make("video", {controls: "", loop: "", muted: "", playsinline: "", preload: "metadata", "data-file": video.file,
      "aria-label": `video by ${name}`});
    screen.muted = true;
    screen.addEventListener("loadedmetadata", () => {
      screen.style.setProperty("--shape", `${screen.videoWidth} / ${screen.videoHeight}`);
      screen.classList.toggle("pixels", screen.videoWidth < 160);
    });
    screen.addEventListener("error", () => screen.replaceWith(make("div", {class: "gone"}, "no video at this place: keep report.html beside its videos")));
    sight.observe(screen);
  }
  const scores = data.judges.flatMap((judge, at) => {
    const bar = make("i");
    bar.style.width = `${100 * Math.min(1, Math.max(0, video.scores[at]))}%`;
    return [make("dt", {}, judge), make("dd", {}, video.scores[at].toFixed(3)), make("dd", {class: "track", "aria-hidden": "true"}, bar)];
  });
  const more = [["price", `${video.price.toFixed(2)}x`], ["seed", String(video.seed)]];
  if (disputing) more.unshift(["disagreement", video.disagreement.toFixed(2)]);
  return make("figure", {}, screen, make("figcaption", {}, make("b", {}, name),
    make("dl", {}, ...scores, ...more.flatMap(([label, value]) => [make("dt", {}, label), make("dd", {}, value)]))));
}

function entry(prompt) {
  const about = make("div", {class: "about"}, make("h3", {}, prompt.text), make("span", {class: "quiet"}, `prompt ${prompt.index}`));
  if (disputing) about.append(make("span", {class: "apart"}, `disagreement ${prompt.disagreement.toFixed(2)}`));
  if (prompt.kinds.length) about.append(make("span", {class: "quiet"}, prompt.kinds.join(", ").replaceAll("_", " ")));
  const side = make("div", {class: "side", tabindex: "0", role: "group", "aria-label": `videos of: ${prompt.text}`}, ...prompt.videos.map(figure));
  return make("li", {}, about, side);
}

let chosen = [], shown = 0;

function more() {
  const next = chosen.slice(shown, shown + STEP);
  $("prompts").append(...next.map(entry));
  shown += next.length;
  $("more").hidden = shown >= chosen.length;
  $("count").textContent = shown < chosen.length ? `${shown} of ${counted(chosen.length, "prompt")}` : counted(chosen.length, "prompt");
}

function choose() {
  const words = $("words").value.toLowerCase(), kind = $("kind").value, order = orders.get($("order").value);
  chosen = data.prompts.filter((prompt) => prompt.text.toLowerCase().includes(words) && (!kind || prompt.kinds.includes(kind)));
  chosen.sort((one, other) => order(one) - order(other) || one.index - other.index);
  sight.disconnect();
  $("prompts").replaceChildren();
  shown = 0;
  more();
}

$("tools").addEventListener("submit", (event) => event.preventDefault());
for (const id of ["order", "kind"]) $(id).addEventListener("change", choose);
$("words").addEventListener("input", choose);
$("more").addEventListener("click", more);
$("moving").addEventListener("change", () => {
  for (const video of document.querySelectorAll("video")) {
    sight.unobserve(video); // observing anew tells whether it is in sight
    sight.observe(video);
  }
});
choose();
