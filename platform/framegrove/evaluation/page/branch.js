// The chosen branch: its video, what its judges said, by verifier and aspect and by question.

let selected = null;
const screen = $("screen");
const reel = {frames: [], at: 0, timer: 0};
const images = new Map(); // of strips that were played, by branch

/** Show a branch beside the tree; ``play`` its video from the start, ``focus`` its card. */
function select(branch, {play = false, focus = false} = {}) {
  if (branch !== selected) {
    if (selected) mark(selected, false);
    selected = branch;
    mark(branch, true);
    describe(branch);
    load(branch);
  }
  if (focus) cards.get(branch.name).focus({preventScroll: true});
  if (play) start(0);
}

function mark(branch, on) {
  cards.get(branch.name).setAttribute("aria-selected", String(on));
  cards.get(branch.name).setAttribute("tabindex", on ? "0" : "-1"); // one stop for Tab; arrows go on from there
}

function describe(branch) {
  $("branch-name").textContent = `Branch ${branch.name}`;
  const when = branch.start === null ? "from an earlier run" : `worked on from ${branch.start.toFixed(1)} s to ${branch.end.toFixed(1)} s`;
  const fate = make("span", {class: `fate ${branch.fate}`}, fateOf(branch));
  $("branch-fate").replaceChildren(fate, `, ${when}`, branch.left_out ? `; below it, not shown: ${branch.left_out}` : "");
  $("verdicts").replaceChildren(...(branch.verdicts.length ? branch.verdicts.map(verdictOf) : [make("p", {class: "quiet"}, "It was not judged.")]));
}

function verdictOf(verdict) {
  const rank = verdict.total === null ? "" : `, path score ${verdict.total.toFixed(3)}`;
  const caption = `${verdict.what}: ${verdict.score.toFixed(3)}${verdict.place && `, place ${verdict.place}`}${rank}`;
  const block = make("div", {}, table(caption, verdict.columns.map(([name, score]) => [name, score])));
  if (verdict.answers.length) {
    const verifiers = [...new Set(verdict.answers.map(([verifier]) => verifier))];
    block.append(make("details", {open: ""}, make("summary", {}, "by question, the probability of yes"),
      ...verifiers.map((verifier) => table(verifiers.length > 1 ? verifier : "",
        verdict.answers.filter((answer) => answer[0] === verifier).map(([, question, yes]) => [question, yes])))));
  }
  return block;
}

function table(caption, rows) {
  const body = make("tbody", {}, ...rows.map(([name, score]) => {
    const meter = make("span", {class: "meter"});
    meter.style.width = `${100 * score}%`;
    return make("tr", {}, make("td", {}, name, make("span", {class: "track"}, meter)), make("td", {class: "number"}, score.toFixed(3)));
  }));
  return make("table", {}, ...(caption ? [make("caption", {}, caption)] : []), body);
}

// ---- the player: the frames of a branch are those of every unit on its path

function pathOf(branch) {
  const above = byName.get(branch.parent);
  return above ? [...pathOf(above), branch] : [branch];
}

function load(branch) {
  stop();
  const units = ($("newest").checked ? [branch] : pathOf(branch));
  const there = units.filter((unit) => unit.clip);
  reel.frames = there.flatMap((unit) => Array.from({length: unit.clip.count}, (_, frame) => ({unit, frame})));
  const missing = units.length - there.length;
  $("clip-note").hidden = !missing;
  $("clip-note").textContent = `${missing} of ${units.length} units have no clip on this page.`;
  for (const control of [$("play"), $("seek")]) control.disabled = reel.frames.length < 2;
  screen.hidden = !reel.frames.length;
  $("seek").max = Math.max(0, reel.frames.length - 1);
  show(Math.max(0, reel.frames.length - (branch.clip ? branch.clip.count : 0))); // the first frame of what is new
}

async function imageOf(unit) {
  if (!images.has(unit.name)) {
    const image = new Image();
    image.src = unit.clip.uri;
    images.set(unit.name, image.decode().then(() => image));
  }
  return images.get(unit.name);
}

async function show(at) {
  reel.at = at;
  $("seek").value = at;
  $("frame").textContent = reel.frames.length ? `${at + 1} of ${reel.frames.length}` : "";
  if (!reel.frames.length) return;
  const {unit, frame} = reel.frames[at];
  const image = await imageOf(unit);
  if (reel.frames[reel.at]?.unit !== unit || reel.frames[reel.at].frame !== frame) return; // it has moved on meanwhile
  const {width, height} = unit.clip;
  if (screen.width !== width || screen.height !== height) Object.assign(screen, {width, height});
  screen.className = height < 100 ? "pixels" : "";
  screen.getContext("2d").drawImage(image, frame * width, 0, width, height, 0, 0, width, height);
}

function start(from) {
  stop();
  if (reel.frames.length < 2) return;
  show(from);
  $("play").textContent = "pause";
  const next = () => {
    if (reel.at + 1 >= reel.frames.length) return stop();
    show(reel.at + 1);
    reel.timer = setTimeout(next, stay());
  };
  reel.timer = setTimeout(next, stay());
}

/** Milliseconds that the frame stays: longer where a clip has only some of its unit's frames. */
function stay() {
  const {clip} = reel.frames[reel.at].unit;
  return 1000 / search.fps * clip.of / clip.count;
}

function stop() {
  clearTimeout(reel.timer);
  reel.timer = 0;
  $("play").textContent = "play";
}

$("play").addEventListener("click", () => reel.timer ? stop() : start(reel.at + 1 < reel.frames.length ? reel.at : 0));
$("seek").addEventListener("input", () => { stop(); show(Number($("seek").value)); });
$("newest").addEventListener("change", () => load(selected));
