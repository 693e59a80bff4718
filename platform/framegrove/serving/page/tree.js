// The growing tree: branches as buttons with previews, in columns by unit, joined by lines.

import * as api from "./api.js";

const WIDTH = 148, HEIGHT = 58, GAP_X = 44, GAP_Y = 14, EDGE = 12;
const SHOWN = 400; // branches: more would be slow to draw and impossible to read
const AT_A_TIME = 4; // previews that are fetched side by side
const WORDS = { won: "the winner", cut: "cut", running: "at work", kept: "kept", judged: "judged",
  sampled: "waits for its scores", waiting: "to be sampled", unused: "sampled ahead, not needed" };

export class Tree {
  /** `choose(id)` is called when somebody chooses a branch. */
  constructor(box, edges, choose) {
    this.box = box;
    this.edges = edges;
    this.choose = choose;
    this.clear(null);
    box.addEventListener("keydown", (event) => this.move(event));
  }

  clear(video) {
    this.stop?.abort();
    this.stop = new AbortController();
    this.video = video;
    this.branches = new Map();
    this.buttons = new Map();
    this.pictures = new Map();
    this.wanted = [];
    this.fetching = 0;
    this.due = false;
    this.revealed = null;
    for (const button of this.box.querySelectorAll("button")) button.remove();
    this.edges.replaceChildren();
  }

  /** All that is known of a branch now. Drawing waits for the next animation frame, however many come. */
  update(branch) {
    if (branch.gone) this.forget(branch.id);
    else this.branches.set(branch.id, branch);
    if (!this.due) {
      this.due = true;
      requestAnimationFrame(() => { this.due = false; this.draw(); });
    }
  }

  /** A branch is gone; if it is begun again it needs a new picture. */
  forget(id) {
    this.branches.delete(id);
    if (this.pictures.get(id)) URL.revokeObjectURL(this.pictures.get(id));
    this.pictures.delete(id);
    this.wanted = this.wanted.filter((each) => each !== id);
  }

  /** Scroll to a branch once it is drawn. */
  reveal(id) {
    requestAnimationFrame(() => {
      const place = this.buttons.get(id)?.style.transform;
      if (!place || this.revealed === id) return;
      this.revealed = id;
      const { e, f } = new DOMMatrix(place), frame = this.box.parentElement;
      frame.scrollTo(e - (frame.clientWidth - WIDTH) / 2, f - (frame.clientHeight - HEIGHT) / 2);
    });
  }

  draw() {
    const chosen = this.chosen();
    const { places, rows, columns } = layout(chosen);
    const winners = new Set();
    for (const branch of chosen.values())
      if (branch.standing === "won") winners.add(branch.id);
    for (const [id, branch] of chosen) {
      const button = this.buttons.get(id) ?? this.add(id);
      const [x, y] = places.get(id);
      button.style.transform = `translate(${x}px, ${y}px)`;
      button.dataset.standing = branch.standing;
      button.dataset.speculative = Boolean(branch.speculative);
      button.querySelector(".name").textContent = branch.name;
      button.querySelector(".score").textContent = score(branch);
      button.setAttribute("aria-label", describe(branch));
      button.title = describe(branch);
      this.want(id, branch);
    }
    for (const [id, button] of this.buttons)
      if (!chosen.has(id)) { button.remove(); this.buttons.delete(id); }
    const width = EDGE * 2 + columns * (WIDTH + GAP_X) - GAP_X, height = EDGE * 2 + rows * (HEIGHT + GAP_Y) - GAP_Y;
    this.box.style.width = `${width}px`;
    this.box.style.height = `${height}px`;
    this.edges.setAttribute("width", width);
    this.edges.setAttribute("height", height);
    this.edges.replaceChildren(...[...chosen.values()].filter((b) => places.has(b.parent)).map((b) => {
      const [x1, y1] = places.get(b.parent), [x2, y2] = places.get(b.id);
      const from = [x1 + WIDTH, y1 + HEIGHT / 2], to = [x2, y2 + HEIGHT / 2], bend = GAP_X / 2;
      const line = document.createElementNS("http://www.w3.org/2000/svg", "path");
      line.setAttribute("d", `M${from} C${from[0] + bend},${from[1]} ${to[0] - bend},${to[1]} ${to}`);
      line.dataset.standing = winners.has(b.id) ? "won" : b.standing;
      return line;
    }));
  }

  /** The branches that are drawn: all, or of a large tree those that are not cut, then the latest. */
  chosen() {
    if (this.branches.size <= SHOWN) return this.branches;
    const order = [...this.branches.values()].reverse().sort((a, b) => isOver(a) - isOver(b));
    const chosen = new Map();
    for (const branch of order) {
      const line = [];
      for (let b = branch; b && !chosen.has(b.id); b = this.branches.get(b.parent)) line.push(b);
      if (chosen.size + line.length <= SHOWN) for (const b of line) chosen.set(b.id, b);
    }
    return new Map([...this.branches].filter(([id]) => chosen.has(id)));
  }

  add(id) {
    const button = document.createElement("button");
    button.type = "button";
    button.className = "branch";
    button.dataset.id = id;
    button.innerHTML = '<span class="picture"></span><span class="name"></span><span class="score"></span>';
    button.addEventListener("click", () => this.choose(id));
    this.box.append(button);
    this.buttons.set(id, button);
    return button;
  }

  /** Have the preview of a branch fetched once it is sampled, and again once it is refined. */
  want(id, branch) {
    const sampled = !["waiting", "running"].includes(branch.standing) || Object.keys(branch.scores ?? {}).length > 0;
    if (!sampled || this.pictures.has(id) || !this.video) return;
    this.pictures.set(id, null);
    this.wanted.push(id);
    this.fetch();
  }

  async fetch() {
    while (this.fetching < AT_A_TIME && this.wanted.length) {
      const id = this.wanted.shift(), { stop } = this;
      this.fetching++;
      api.preview(this.video, id, stop.signal)
        .then((address) => { if (stop === this.stop) this.show(id, address); })
        .catch(() => { if (stop === this.stop) this.pictures.delete(id); }) // it is over, or lost: the page goes on
        .finally(() => { if (stop === this.stop) { this.fetching--; this.fetch(); } });
    }
  }

  show(id, address) {
    this.pictures.set(id, address);
    const picture = this.buttons.get(id)?.querySelector(".picture");
    if (picture) picture.style.backgroundImage = `url(${address})`;
  }

  /** Arrow keys walk through the tree. */
  move(event) {
    const here = this.branches.get(event.target.dataset?.id);
    if (!here) return;
    const siblings = [...this.buttons.keys()].filter((id) => this.branches.get(id)?.unit === here.unit)
      .sort((a, b) => top(this.buttons.get(a)) - top(this.buttons.get(b)));
    const place = siblings.indexOf(here.id);
    const target = {
      ArrowLeft: () => here.parent,
      ArrowRight: () => [...this.buttons.keys()].find((id) => this.branches.get(id)?.parent === here.id),
      ArrowUp: () => siblings[place - 1],
      ArrowDown: () => siblings[place + 1],
    }[event.key]?.();
    if (!target || !this.buttons.has(target)) return;
    event.preventDefault();
    this.buttons.get(target).focus();
  }
}

const top = (button) => new DOMMatrix(button.style.transform).f;
const isOver = (branch) => ["cut", "unused"].includes(branch.standing);

/** Where each branch stands: columns by unit, a parent in the middle of its children. */
function layout(branches) {
  const children = new Map(), places = new Map();
  let first = Infinity, last = 0;
  for (const branch of branches.values()) {
    const parent = branches.has(branch.parent) ? branch.parent : null;
    if (!children.has(parent)) children.set(parent, []);
    children.get(parent).push(branch);
    first = Math.min(first, branch.unit);
    last = Math.max(last, branch.unit);
  }
  for (const list of children.values()) list.sort((a, b) => order(a.id, b.id));
  let row = 0;
  const put = (branch) => {
    const below = (children.get(branch.id) ?? []).map(put);
    const place = below.length ? (below[0] + below.at(-1)) / 2 : row++;
    places.set(branch.id, [EDGE + (branch.unit - first) * (WIDTH + GAP_X), EDGE + place * (HEIGHT + GAP_Y)]);
    return place;
  };
  (children.get(null) ?? []).forEach(put);
  return { places, rows: Math.max(row, 1), columns: last - first + 1 || 1 };
}

function order(one, other) {
  const a = one.split("-").map(Number), b = other.split("-").map(Number);
  for (let i = 0; i < Math.min(a.length, b.length); i++) if (a[i] !== b[i]) return a[i] - b[i];
  return a.length - b.length;
}

/** The latest scores of a branch: [assessment, [[aspect, score], ..]]. */
export function latest(branch) {
  const entries = Object.entries(branch.scores ?? {});
  return entries.length ? [entries.at(-1)[0], Object.entries(entries.at(-1)[1])] : null;
}

const score = (branch) => branch.score?.toFixed(2) ?? "";

export function describe(branch) {
  const found = latest(branch);
  const said = found ? `; ${found[0]}: ${found[1].map(([aspect, value]) => `${aspect} ${value.toFixed(2)}`).join(", ")}` : "";
  const who = branch.workers?.length ? ` (${branch.workers.join(", ")})` : "";
  const ahead = branch.speculative && branch.standing !== "unused" ? ", ahead of need" : "";
  return `Branch ${branch.name}, unit ${branch.unit}: ${WORDS[branch.standing] ?? branch.standing}${who}${ahead}${said}`;
}
