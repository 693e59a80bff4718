// Who worked when: a lane for each worker, a bar for each work.

const NAME = 120, LANE = 18, WIDTH = 900, SECOND_STEPS = [0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600];
const SVG = "http://www.w3.org/2000/svg";

export class Lanes {
  constructor(picture) {
    this.picture = picture;
    this.clear();
  }

  clear() {
    this.works = [];
    this.names = new Map();
    this.picture.replaceChildren();
    this.due = false;
  }

  /** Works that have ended. */
  add(works) {
    this.works.push(...works);
    for (const { who } of works) if (!this.names.has(who)) this.names.set(who, this.names.size);
    if (!this.due) {
      this.due = true;
      requestAnimationFrame(() => { this.due = false; this.draw(); });
    }
  }

  draw() {
    const names = [...this.names.keys()].sort((a, b) => a.localeCompare(b, undefined, { numeric: true }));
    const row = new Map(names.map((name, index) => [name, index]));
    const end = Math.max(0.1, ...this.works.map((work) => work.to));
    const x = (seconds) => NAME + (seconds / end) * (WIDTH - NAME - 20);
    const height = names.length * LANE + 22;
    this.picture.setAttribute("viewBox", `0 0 ${WIDTH} ${height}`);
    this.picture.style.minWidth = "480px";
    const step = SECOND_STEPS.find((s) => end / s <= 8) ?? end;
    const marks = [];
    for (let t = 0; t <= end; t += step)
      marks.push(element("text", { x: x(t), y: height - 4, class: "mark" }, `${+t.toFixed(1)} s`));
    this.picture.replaceChildren(
      ...names.map((name) => element("text", { x: 0, y: row.get(name) * LANE + 13 }, name)),
      ...marks,
      ...this.works.map((work) => element("rect", {
        x: x(work.from), y: row.get(work.who) * LANE + 3, height: LANE - 6,
        width: Math.max(1, x(work.to) - x(work.from)), class: `${work.what} ${work.ending}`,
      }, `${work.who}: ${work.what} of ${work.branches.join(", ")}, ${(work.to - work.from).toFixed(2)} s, ${work.ending}`, true)),
    );
  }
}

function element(name, attributes, text, asTitle = false) {
  const made = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  if (asTitle) made.append(element("title", {}, text));
  else made.textContent = text;
  return made;
}
