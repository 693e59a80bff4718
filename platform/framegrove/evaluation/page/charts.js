// What it cost, and who worked when.

const KINDS = {
  sampling: "sampling", judging: "judging", early: "begun on speculation, and needed",
  lost: "speculation that was not needed", failed: "failed",
};

function legend(id, entries) {
  $(id).append(...entries.map(([kind, words]) => make("li", {}, make("i", {class: `k-${kind}`}), words)));
}

// ---- price

const PARTS = ["sampling", "decoding", "judging", "wasted"];
const most = Math.max(search.budget, ...search.prices.map((price) => price.total));
search.prices.forEach((price, row) => {
  const stack = make("div", {class: "stack"});
  for (const [part, value] of price.parts) {
    const piece = make("span", {class: `k-${part}`, title: `${part} ${value.toFixed(2)}x`});
    Object.assign(piece.style, {width: `${100 * value / most}%`, background: "currentColor"});
    stack.append(piece);
  }
  if (row === 0 && search.prices.length > 1) {
    const line = make("div", {class: "budget", title: `the budget, ${search.budget}x`});
    line.style.left = `calc(${100 * search.budget / most}% - 2px)`;
    stack.append(line);
  }
  $("prices").append(make("div", {class: "price"}, make("span", {}, price.name), stack, make("b", {}, `${price.total.toFixed(2)}x`)));
});
const parts = new Map(search.prices[0].parts);
legend("price-legend", PARTS.map((part) => [part, `${part} ${parts.get(part).toFixed(2)}x`]));
if (search.prices.length > 1) $("price-legend").append(make("li", {}, `the line is the budget, ${search.budget}x`));

const count = (value) => value >= 1e6 ? value.toExponential(2) : String(value);
$("costs").querySelector("tbody").append(...search.costs.map(([name, nfe, flops, decoding, seconds]) =>
  make("tr", {}, make("th", {scope: "row"}, name), ...[count(nfe), count(flops), count(decoding), seconds ? seconds.toFixed(1) : ""].map((said) => make("td", {}, said)))));

// ---- timeline

const LEFT = 130, WIDTH = 1000, ROW = 14, GAP = 8;
const time = $("time");
const tops = [];
let bottom = 22;
for (const lane of search.lanes) {
  tops.push(bottom);
  bottom += Math.max(1, lane.rows) * ROW + GAP;
}
time.setAttribute("viewBox", `0 0 ${WIDTH} ${bottom}`);
const across = (seconds) => LEFT + (WIDTH - LEFT - 34) * seconds / (search.seconds || 1);

/** Seconds between two marks: 1, 2 or 5 times a power of ten, so that about eight fit. */
function stepOf(seconds) {
  const rough = seconds / 8 || 1, power = 10 ** Math.floor(Math.log10(rough));
  return power * [1, 2, 5, 10].find((each) => each * power >= rough);
}

for (let at = 0, step = stepOf(search.seconds); at <= search.seconds; at += step) {
  time.append(make("line", {class: "grid", x1: across(at), x2: across(at), y1: 16, y2: bottom}), make("text", {class: "tick", x: across(at), y: 12}, `${+at.toFixed(3)} s`));
}
search.lanes.forEach((lane, index) => {
  const name = lane.name.length > 18 ? `${lane.name.slice(0, 17)}…` : lane.name;
  time.append(make("text", {x: 0, y: tops[index] + ROW - 3}, name, make("title", {}, lane.name)));
});
for (const [lane, row, begin, end, kind, what] of search.bars) {
  const said = `${search.lanes[lane].name}: ${what}, ${begin.toFixed(2)} s to ${end.toFixed(2)} s (${KINDS[kind]})`;
  const bar = make("rect", {class: `k-${kind}`, x: across(begin), width: Math.max(1, across(end) - across(begin)), y: tops[lane] + row * ROW, height: ROW - 2, rx: 2}, make("title", {}, said));
  bar.addEventListener("pointerenter", () => { $("time-said").textContent = said; });
  time.append(bar);
}
const used = new Set(search.bars.map((bar) => bar[4]));
legend("time-legend", Object.entries(KINDS).filter(([kind]) => used.has(kind)));
time.setAttribute("aria-label", `${search.bars.length} attempts of ${search.lanes.length} workers in ${search.seconds.toFixed(1)} seconds`);
$("time-said").textContent = search.bars.length ? "Point at a bar to read what it was." : "Everything came from an earlier run.";

// ---- at first: the whole tree where it can be read, otherwise the winner

select(winner());
if (wholeScale() > 0.42) fit();
else centre(winner());
