// The page: asks for videos, watches searches, shows what comes out.

import * as api from "./api.js";
import { Lanes } from "./lanes.js";
import { Tree, describe, latest } from "./tree.js";

const $ = (id) => document.getElementById(id);
const RETRY_MS = [500, 1000, 2000, 5000, 10000];
const DONE = ["completed", "failed", "cancelled"];
const WORDS = { queued: "waits", in_progress: "is being made", completed: "is finished", failed: "has failed",
  cancelled: "was cancelled" };

let offered = []; // the models that the server offers
let model = null; // the one that is chosen
let shown = null; // the id of the video on the stage
let watching = null; // ends the watch of it
let oldest = null; // the last id of the history
const known = new Map(); // videos by id

const tree = new Tree($("tree"), $("edges"), compare);
const lanes = new Lanes($("lanes"));

// ---- words and numbers

const words = (error) => (error instanceof api.Refused ? error.message : `Something went wrong in this page: ${error.message}`);
const budget = () => 2 ** Number($("budget").value);
const times = (value) => `${+value.toFixed(2)}x`;

function duration(seconds) {
  if (seconds < 90) return `${Math.max(1, Math.round(seconds))} s`;
  return seconds < 5400 ? `${Math.round(seconds / 60)} min` : `${(seconds / 3600).toFixed(1)} h`;
}

/** What a sample without a search takes on this server, s: the median of finished videos, by their price. */
function pace() {
  const found = [...known.values()].filter((v) => v.took && v.price).map((v) => v.took / v.price).sort((a, b) => a - b);
  return found.length ? found[found.length >> 1] : null;
}

function showPrice() {
  const policy = $("policy").value, judged = policy !== "single";
  $("budget").disabled = !judged;
  $("budget-says").textContent = judged ? times(budget()) : "1x";
  const length = Number($("seconds").value) || model.seconds;
  const samples = (judged ? budget() : 1) * (length / model.seconds);
  const about = pace();
  const cap = judged ? `at most as much computing as ${+budget().toFixed(1)} samples of this video; most searches stop earlier`
    : "one sample, as it comes";
  $("price").textContent = about ? `${cap}. About ${duration(about * samples)} at most here.` : `${cap}.`;
  $("policy-says").textContent = model.policies[policy]?.description ?? "";
}

// ---- asking

async function offer() {
  offered = (await api.models()).data;
  $("model").replaceChildren(...offered.map(({ id }) => new Option(id, id)));
  $("models").hidden = offered.length < 2;
  choose();
  $("make").disabled = false;
}

function choose() {
  model = offered[$("model").selectedIndex];
  $("knows").textContent = model.knows;
  $("prompt").placeholder = "what the video shows";
  $("seconds").placeholder = model.seconds;
  $("seconds").max = model.most_seconds;
  $("size").placeholder = model.size;
  $("n").max = model.most_videos;
  const judges = Object.keys(model.verifiers);
  $("judges").hidden = judges.length < 2;
  $("judges").replaceChildren($("judges").firstElementChild, ...(judges.length < 2 ? [] : judges.map(judge)));
  const most = Math.log2(parseFloat(model.most_budget)), usual = Math.log2(parseFloat(model.budget));
  $("budget").max = most;
  $("budget").value = usual;
  $("policy").replaceChildren(...Object.keys(model.policies).map((name) => new Option(name, name, name === "dfs", name === "dfs")));
  showPrice();
}

function judge(name) {
  const label = document.createElement("label"), box = document.createElement("input");
  Object.assign(box, { type: "checkbox", value: name, checked: true });
  label.append(box, name);
  return label;
}

async function submit(event) {
  event.preventDefault();
  $("ask-error").textContent = "";
  const button = event.submitter;
  button.disabled = true;
  try {
    const clip = $("clip").files[0];
    const video = await (clip ? api.extendClip(clipForm(clip)) : api.create(await request()));
    keep(video);
    select(video.id);
    if (video.batch?.length) history().catch(() => {}); // the others of the batch
  } catch (error) {
    if (error.status === 401) return askForKey();
    $("ask-error").textContent = words(error);
  } finally {
    button.disabled = false;
  }
}

/** How to search, as the form says. */
function search() {
  const asked = { policy: $("policy").value };
  if (asked.policy !== "single") asked.budget = `${+budget().toFixed(3)}x`;
  const boxes = [...$("judges").querySelectorAll("input")], chosen = boxes.filter((box) => box.checked);
  if (boxes.length && !chosen.length) throw new api.Refused(400, "Choose at least one verifier.");
  if (chosen.length < boxes.length) asked.verifiers = chosen.map((box) => box.value);
  return asked;
}

function seed() {
  const given = $("seed").value.trim();
  if (given && !Number.isSafeInteger(Number(given))) {
    throw new api.Refused(400, "The seed must be a whole number below 9,007,199,254,740,992.");
  }
  return given && Number(given);
}

async function request() {
  const body = { model: model.id, prompt: $("prompt").value, search: search() };
  for (const name of ["seconds", "size"]) if ($(name).value.trim()) body[name] = $(name).value.trim();
  if ($("negative").value.trim()) body.negative_prompt = $("negative").value;
  if (seed() !== "") body.seed = seed();
  if (Number($("n").value) > 1) body.n = Number($("n").value);
  if ($("frame").files.length) body.input_reference = { image_url: await dataURL($("frame").files[0]) };
  return body;
}

/** The same for a clip that is gone on from. */
function clipForm(clip) {
  const form = new FormData();
  const fields = { model: model.id, prompt: $("prompt").value, seconds: $("seconds").value || model.seconds, seed: seed() };
  for (const [name, value] of Object.entries(search())) fields[`search[${name}]`] = value;
  for (const [name, value] of Object.entries(fields)) if (value !== "") form.append(name, value);
  form.append("video", clip);
  return form;
}

/** A clip has a size and a beginning of its own: what would say otherwise cannot be filled in beside it. */
function withClip() {
  const clip = $("clip").files.length > 0;
  for (const id of ["negative", "size", "n", "frame"]) $(id).disabled = clip;
  $("no-clip").hidden = !clip;
}

const dataURL = (file) => new Promise((resolve, reject) => {
  const reader = new FileReader();
  reader.onload = () => resolve(reader.result);
  reader.onerror = () => reject(new api.Refused(0, "The first frame cannot be read."));
  reader.readAsDataURL(file);
});

// ---- the list of videos

function keep(video) {
  known.set(video.id, { ...known.get(video.id), ...video });
  const item = $("history").querySelector(`[data-id="${video.id}"]`) ?? entry(video);
  item.querySelector(".what").textContent = video.prompt;
  item.querySelector(".how").textContent = video.status === "in_progress" ? `${video.progress} %` : WORDS[video.status];
  item.dataset.status = video.status;
  if (video.status === "completed" && !item.dataset.pictured) {
    item.dataset.pictured = "yes";
    api.file(video.id, "thumbnail").then((address) => { item.querySelector("img").src = address; }).catch(() => {});
  }
}

function entry(video) {
  const item = document.createElement("li");
  item.dataset.id = video.id;
  item.dataset.at = video.created_at;
  item.innerHTML = '<button type="button"><img alt="" width="56" height="40"><span class="what"></span><span class="how"></span></button>';
  item.firstChild.addEventListener("click", () => select(video.id));
  const list = $("history"), younger = [...list.children].find((each) => Number(each.dataset.at) <= video.created_at);
  list.insertBefore(item, younger ?? null);
  return item;
}

async function history(after = null) {
  const found = await api.page(after);
  found.data.forEach(keep);
  oldest = found.last_id ?? oldest;
  $("older").hidden = !found.has_more;
}

// ---- the stage

function select(id) {
  if (shown === id) return;
  watching?.abort();
  shown = id;
  location.hash = id;
  for (const item of $("history").children) item.toggleAttribute("data-shown", item.dataset.id === id);
  tree.clear(id);
  lanes.clear();
  clearStage(known.get(id)?.prompt ?? "");
  watching = new AbortController();
  watch(id, watching.signal);
  $("stage").focus({ preventScroll: matchMedia("(min-width: 60rem)").matches });
}

/** Nothing of the video that was shown is left, least of all its buttons. */
function clearStage(title) {
  $("stage-title").textContent = title;
  for (const part of ["player", "costs", "tree-part", "page-part", "bar"]) $(part).hidden = true;
  for (const part of ["stage-error", "stage-says"]) $(part).textContent = "";
  for (const part of ["compare", "actions", "stage-warnings"]) $(part).replaceChildren();
  delete $("actions").dataset.offers;
  $("video").removeAttribute("src");
}

function dropEntry(id) {
  known.delete(id);
  $("history").querySelector(`[data-id="${id}"]`)?.remove();
}

/** Follows a video to its end, again and again while the server is gone. */
async function watch(id, signal) {
  let last = null;
  for (let attempt = 0; !signal.aborted; attempt++) {
    try {
      show(await api.video(id));
      connection("");
      last = await api.events(id, last, (kind, data, at) => { last = at; attempt = 0; happened(id, kind, data); }, signal);
      if (signal.aborted) return;
      const video = await api.video(id);
      show(video);
      if (DONE.includes(video.status)) return;
    } catch (error) {
      if (signal.aborted || error.name === "AbortError") return;
      if (error.status === 401) return askForKey();
      if (error.status === 404) dropEntry(id);
      if (error.status && error.status !== 429 && error.status < 500) {
        $("stage-error").textContent = words(error);
        return;
      }
      connection(error.status ? words(error) : "The connection is lost: trying again.");
    }
    await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)]));
  }
}

const connection = (text) => { if ($("connection").textContent !== text) $("connection").textContent = text; };

function happened(id, kind, data) {
  if (id !== shown) return;
  if (kind === "status") show(data);
  else if (kind === "progress") progress(data.progress, data.note);
  else if (kind === "started") { tree.clear(id); lanes.clear(); $("compare").replaceChildren(); }
  else if (kind === "branch") { $("tree-part").hidden = false; tree.update(data); }
  else if (kind === "works") lanes.add(data.works);
  else if (kind === "summary") { costs(data); if (data.winner) tree.reveal(data.winner); }
}

function show(video) {
  keep(video);
  if (video.id !== shown) return;
  $("stage-title").textContent = video.prompt;
  const before = video.status === "queued" ? video.queue_position : null;
  const where = before === 0 ? " and is next" : before ? `, ${before} before it` : "";
  $("stage-says").textContent = `${video.size}, ${video.seconds} s, ${video.search.policy} ${video.search.budget}, seed ${video.seed}: it ${WORDS[video.status]}${where}.`;
  $("stage-error").textContent = video.error ? api.sentence(video.error.message) : "";
  $("stage-warnings").replaceChildren(...video.warnings.map((text) => {
    const item = document.createElement("li");
    item.textContent = api.sentence(text);
    return item;
  }));
  $("bar").hidden = video.status !== "in_progress";
  if (video.status === "in_progress") progress(video.progress);
  actions(video);
  if (video.status === "completed" && $("player").hidden) finished(video.id);
}

function progress(percent, note = "") {
  $("bar").hidden = false;
  $("progress").value = percent;
  $("progress-says").textContent = note ? `${percent} %, ${note}` : `${percent} %`;
}

function costs(summary) {
  const spent = summary.spent;
  const parts = ["sampling", "decoding", "judging", "wasted"].map((name) => `${name} ${times(spent[name])}`).join(", ");
  $("costs").hidden = false;
  $("costs").textContent = summary.winner && !summary.works.undone
    ? `Cost: ${times(spent.total)} of one sample (${parts}).`
    : `Cost so far: ${times(spent.total)} of one sample (${parts}); to go ${times(summary.to_go)}, at most ${times(summary.at_most)}.`;
}

async function finished(id) {
  try {
    const address = await api.file(id, "video");
    if (id !== shown) return URL.revokeObjectURL(address);
    $("video").src = address;
    $("player").hidden = false;
    $("bar").hidden = true;
    $("page-part").hidden = false;
    $("page-part").ontoggle = async () => {
      if ($("page-part").open && id === shown) $("tree-page").srcdoc = await api.treePage(id);
    };
    if ($("page-part").open) $("page-part").ontoggle();
  } catch (error) {
    if (id === shown) $("stage-error").textContent = words(error);
  }
}

function actions(video) {
  const offers = [];
  if (["queued", "in_progress"].includes(video.status)) offers.push(["Cancel", () => api.cancel(video.id).then(show)]);
  if (video.status === "completed") {
    offers.push(["Download", () => download(video.id)]);
    offers.push(["Another prompt", () => goOn(video, false)]);
    offers.push(["Make it longer", () => goOn(video, true)]);
  }
  if (DONE.includes(video.status)) {
    offers.push(["Ask again", () => again(video)]);
    offers.push(["Delete", () => forget(video.id)]);
  }
  const texts = offers.map(([text]) => text).join();
  if ($("actions").dataset.offers === video.id + texts) return; // keep the focus where it is
  $("actions").dataset.offers = video.id + texts;
  $("actions").replaceChildren(...offers.map(([text, act]) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = text;
    button.addEventListener("click", async () => {
      try { await act(); } catch (error) { $("stage-error").textContent = words(error); }
    });
    return button;
  }));
}

async function download(id) {
  const link = document.createElement("a");
  link.href = await api.file(id, "video");
  link.download = `${id}.mp4`;
  link.click();
}

function again(video) {
  $("prompt").value = video.prompt;
  if (offered.some(({ id }) => id === video.model)) $("model").value = video.model;
  choose();
  $("policy").value = video.search.policy;
  $("budget").value = Math.log2(parseFloat(video.search.budget));
  $("seconds").value = video.seconds;
  $("size").value = video.size;
  $("seed").value = video.seed;
  showPrice();
  $("prompt").focus();
}

async function forget(id) {
  await api.remove(id);
  dropEntry(id);
  watching?.abort();
  shown = null;
  history_hash("");
  clearStage("Deleted");
  $("stage").focus();
}

const history_hash = (hash) => window.history.replaceState(null, "", hash || location.pathname);

/** Asks for the same video with another prompt, or for a longer one that begins with it. */
function goOn(video, longer) {
  $("remix-title").textContent = longer ? "The same video, and what happens next" : "The same video, another prompt";
  $("longer-part").hidden = !longer;
  $("remix-prompt").value = video.prompt;
  $("remix-dialog").showModal();
  $("remix-form").onsubmit = async () => {
    const prompt = $("remix-prompt").value;
    try {
      const made = await (longer ? api.extend(video.id, prompt, $("longer").value) : api.remix(video.id, prompt));
      keep(made);
      select(made.id);
    } catch (error) { $("stage-error").textContent = words(error); }
  };
}

/** Two branches side by side: the one that was chosen last beside the one before. */
function compare(id) {
  const branch = tree.branches.get(id);
  if (!branch) return; // it has just been given up
  const card = document.createElement("figure");
  card.dataset.id = id;
  const picture = document.createElement("img");
  picture.alt = `Branch ${branch.name}`;
  if (tree.pictures.get(id)) picture.src = tree.pictures.get(id);
  const caption = document.createElement("figcaption");
  caption.textContent = describe(branch);
  const bars = document.createElement("div");
  for (const [aspect, value] of latest(branch)?.[1] ?? []) {
    const bar = document.createElement("label");
    bar.textContent = `${aspect} `;
    const meter = document.createElement("meter");
    meter.value = value;
    bar.append(meter, ` ${value.toFixed(2)}`);
    bars.append(bar);
  }
  card.append(picture, caption, bars);
  const others = [...$("compare").children].filter((each) => each.dataset.id !== id);
  $("compare").replaceChildren(...others.slice(-1), card);
}

// ---- keys, frames, start

function askForKey() {
  $("key-error").textContent = api.key.get() ? "The server does not accept this key." : "";
  if (!$("key-dialog").open) $("key-dialog").showModal();
}

function step(by) {
  const video = $("video");
  video.pause();
  video.currentTime = Math.min(Math.max(0, video.currentTime + by / (model?.fps || 24)), video.duration || 0);
}

async function begin() {
  for (let attempt = 0; ; attempt++) {
    try {
      await offer();
      await history();
      connection("");
      break;
    } catch (error) {
      if (error.status === 401) return askForKey();
      connection(words(error));
      await new Promise((resolve) => setTimeout(resolve, RETRY_MS[Math.min(attempt, RETRY_MS.length - 1)]));
    }
  }
  const asked = location.hash.slice(1);
  if (asked) select(asked);
  setInterval(() => history().catch(() => {}), 5000);
}

$("ask").addEventListener("submit", submit);
$("model").addEventListener("change", choose);
$("policy").addEventListener("change", showPrice);
$("budget").addEventListener("input", showPrice);
$("seconds").addEventListener("input", showPrice);
$("clip").addEventListener("change", withClip);
$("no-clip").addEventListener("click", () => { $("clip").value = ""; withClip(); $("clip").focus(); });
$("older").addEventListener("click", () => history(oldest).catch((error) => connection(words(error))));
$("back-frame").addEventListener("click", () => step(-1));
$("next-frame").addEventListener("click", () => step(1));
$("remix-close").addEventListener("click", () => $("remix-dialog").close());
$("key-form").addEventListener("submit", () => { api.key.set($("key").value); begin(); });
window.addEventListener("hashchange", () => { const id = location.hash.slice(1); if (id && id !== shown) select(id); });
begin();
