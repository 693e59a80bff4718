"use strict";
// The study: one pair at a time. What the server says is set as text, never as HTML.

const $ = (id) => document.getElementById(id);
const QUESTIONS = [
  ["aesthetics", "Looks", "Which one is more pleasing to look at: sharpness, colours, light, composition?"],
  ["motion", "Motion", "Which one moves better: smoothly, steadily, as things really move?"],
  ["alignment", "Words", "Which one shows better what the words above say?"],
];
const ANSWERS = [["left", "Left"], ["tie", "About the same"], ["right", "Right"]];

let person = "", pair = null, marked = 0, sending = false;

/** A new element with attributes and children; text becomes a text node. */
function make(tag, attributes = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  element.append(...children);
  return element;
}

$("questions").append(...QUESTIONS.map(([name, title, asks], at) => {
  const legend = make("legend", {}, make("b", {}, title), make("span", {}, asks));
  const answers = ANSWERS.map(([value, label], n) =>
    make("label", {}, make("input", {type: "radio", name, value}), label, make("kbd", {"aria-hidden": "true"}, String(n + 1))));
  const field = make("fieldset", {id: name}, legend, make("div", {class: "answers"}, ...answers));
  field.addEventListener("focusin", () => mark(at));
  return field;
}));

function answered(name) {
  return document.querySelector(`input[name="${name}"]:checked`);
}

function mark(at) {
  marked = Math.max(0, Math.min(QUESTIONS.length - 1, at));
  QUESTIONS.forEach(([name], n) => $(name).classList.toggle("marked", n === marked));
}

function check() {
  $("send").disabled = sending || !QUESTIONS.every(([name]) => answered(name));
}

async function ask(url, options) {
  let response;
  try {
    response = await fetch(url, options);
  } catch {
    throw new Error("The study cannot be reached: try again, or tell whoever runs it.");
  }
  const said = await response.json().catch(() => ({}));
  if (!response.ok) throw new Error(said.error ?? `The study has answered with ${response.status}.`);
  return said;
}

async function trying(act) {
  $("error").textContent = "";
  try {
    await act();
  } catch (error) {
    $("error").textContent = error.message;
  }
}

async function next() {
  const found = await ask(`next?person=${encodeURIComponent(person)}`);
  pair = found.pair;
  $("begin").hidden = true;
  $("pair").hidden = !pair;
  $("end").hidden = Boolean(pair);
  $("progress").textContent = `${found.done} of ${found.all} pairs answered`;
  if (!pair) {
    $("end").focus();
    return;
  }
  $("pair").reset();
  $("prompt").textContent = pair.prompt;
  for (const side of ["left", "right"]) $(side).src = pair[side];
  again();
  mark(0);
  check();
  $("prompt").focus({preventScroll: true});
  scrollTo(0, 0);
}

function again() {
  for (const side of ["left", "right"]) {
    $(side).currentTime = 0;
    $(side).play().catch(() => {}); // a browser may want a click first
  }
}

async function send() {
  if ($("send").disabled) return;
  sending = true;
  check();
  const answers = Object.fromEntries(QUESTIONS.map(([name]) => [name, answered(name).value]));
  try {
    await ask("choices", {
      method: "POST",
      headers: {"Content-Type": "application/json"},
      body: JSON.stringify({person, pair: pair.token, ...answers}),
    });
    await next();
  } finally {
    sending = false;
    check();
  }
}

for (const side of ["left", "right"]) {
  $(side).addEventListener("loadedmetadata", () => $(side).classList.toggle("pixels", $(side).videoWidth < 160));
}
$("again").addEventListener("click", again);
$("pair").addEventListener("change", check);
$("pair").addEventListener("submit", (event) => {
  event.preventDefault();
  trying(send);
});
$("begin").addEventListener("submit", (event) => {
  event.preventDefault();
  person = $("person").value.trim().toLowerCase();
  if (person) trying(next);
});

document.addEventListener("keydown", (event) => {
  if ($("pair").hidden || event.ctrlKey || event.metaKey || event.altKey) return;
  const inPlace = event.target.matches("input[type=radio], video, button");
  if (["1", "2", "3"].includes(event.key)) {
    const choice = document.querySelector(`input[name="${QUESTIONS[marked][0]}"][value="${ANSWERS[event.key - 1][0]}"]`);
    choice.checked = true;
    const open = QUESTIONS.findIndex(([name]) => !answered(name));
    mark(open === -1 ? marked : open);
    check();
  } else if (event.key.toLowerCase() === "r") {
    again();
  } else if (event.key === "Enter" && !event.target.matches("button, video")) {
    event.preventDefault();
    trying(send);
  } else if ((event.key === "ArrowDown" || event.key === "ArrowUp") && !inPlace) {
    event.preventDefault();
    mark(marked + (event.key === "ArrowDown" ? 1 : -1));
  }
});
