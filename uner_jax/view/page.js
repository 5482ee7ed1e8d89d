"use strict";

const all = (selector) => [...document.querySelectorAll(selector)];
const byId = (id) => document.getElementById(id);

const cards = all("article").map((element) => ({ element, words: null, shown: true }));
const cardOf = new Map(cards.map((card) => [card.element, card]));
const marks = all("mark").map((element) => ({
  element,
  card: cardOf.get(element.closest("article")),
  type: element.dataset.type,
  score: Number(element.dataset.score),
  last: element.classList.contains("last"),
  off: false,
}));
const chips = all(".chip");
const numbers = new Map(chips.map((chip) => [chip.dataset.type, chip.querySelector(".number")]));
const say = (number) => number.toLocaleString("en");

// Which documents and entities are shown

function showEntities() {
  const least = Number(byId("score").value);
  const hidden = new Set(chips.filter((chip) => !isPressed(chip)).map((chip) => chip.dataset.type));
  byId("least").value = least.toFixed(2);
  for (const mark of marks) {
    const off = mark.score < least || hidden.has(mark.type);
    if (off === mark.off) continue;
    mark.off = off;
    mark.element.classList.toggle("off", off);
  }
  showCounts();
}

function showDocuments() {
  const wanted = byId("filter").value.trim().toLowerCase();
  for (const card of cards) {
    card.shown = !wanted || words(card).includes(wanted);
    card.element.hidden = !card.shown;
  }
  showCounts();
}

function words(card) {
  card.words ??= [...card.element.querySelectorAll(".id, .source, .text, .error span")]
    .map((element) => element.textContent.toLowerCase())
    .join("\n");
  return card.words;
}

function showCounts() {
  const documents = cards.filter((card) => card.shown).length;
  const entities = marks.filter((mark) => mark.last && mark.card.shown);
  const drawn = entities.filter((mark) => !mark.off).length;
  byId("shown").textContent =
    `Showing ${say(drawn)} of ${say(entities.length)} entities in ${say(documents)} of ${say(cards.length)} documents`;
  showTypeCounts(entities);
}

// of a type that is hidden too: so many would be shown
function showTypeCounts(entities) {
  const least = Number(byId("score").value);
  const counts = new Map();
  for (const { type, score } of entities) if (score >= least) counts.set(type, (counts.get(type) ?? 0) + 1);
  for (const [type, number] of numbers) number.textContent = say(counts.get(type) ?? 0);
}

const isPressed = (chip) => chip.getAttribute("aria-pressed") === "true";

function press(chosen, pressed) {
  for (const chip of chosen) chip.setAttribute("aria-pressed", pressed);
  showEntities();
}

// The tooltip: all entities at the pointer, the innermost first

const tip = byId("tip");
let pointed = [];
let strong = [];

function pointAt(target, x, y) {
  leave();
  for (let at = target.closest("mark"); at; at = at.parentElement.closest("mark")) pointed.push(at);
  const drawn = pointed.filter((mark) => !mark.classList.contains("off"));
  if (drawn.length) {
    tip.replaceChildren(...drawn.map(describe));
    strong = parts(drawn[0]);
    for (const part of strong) part.classList.add("pointed");
    place(drawn[0], x, y);
  }
  // the browser's own tooltip would lie over ours, and tell of hidden entities.
  for (const mark of pointed) {
    mark.dataset.title = mark.title;
    mark.removeAttribute("title");
  }
}

function leave() {
  for (const mark of strong) mark.classList.remove("pointed");
  for (const mark of pointed) mark.title = mark.dataset.title;
  pointed = [];
  strong = [];
  tip.hidden = true;
}

// an entity is several marks where others cross it.
const parts = (mark) => [
  ...mark.closest("article").querySelectorAll(`mark[data-entity="${mark.dataset.entity}"]`),
];

function describe(mark) {
  const words = mark.title.split(" · ");
  const [score, offsets] = words.splice(-2);
  const line = document.createElement("div");
  line.className = mark.className.match(/c\d+/)[0];
  for (const part of [words.join(" · "), score, offsets]) {
    const cell = document.createElement("span");
    cell.textContent = part;
    line.append(cell);
  }
  return line;
}

function place(mark, x, y) {
  const lines = [...mark.getClientRects()];
  const line = lines.find((box) => y >= box.top && y <= box.bottom) ?? lines[0];
  tip.hidden = false;
  const { width, height } = tip.getBoundingClientRect();
  const below = line.bottom + 8;
  const top = below + height > innerHeight ? line.top - height - 8 : below;
  const left = Math.min(Math.max(x - 24, 8), document.documentElement.clientWidth - width - 8);
  tip.style.transform = `translate(${Math.round(left)}px, ${Math.round(top)}px)`;
}

// What the reader does

for (const chip of chips) chip.addEventListener("click", () => press([chip], !isPressed(chip)));
byId("all").addEventListener("click", () => press(chips, true));
byId("none").addEventListener("click", () => press(chips, false));
byId("score").addEventListener("input", showEntities);
byId("scores").addEventListener("input", (event) => document.body.classList.toggle("scores", event.target.checked));
byId("filter").addEventListener("input", showDocuments);

// a finger points by a tap: its pointerover ends with the touch.
document.addEventListener("pointerover", (event) => {
  if (event.pointerType === "mouse") pointAt(event.target, event.clientX, event.clientY);
});
document.addEventListener("click", (event) => pointAt(event.target, event.clientX, event.clientY));
document.addEventListener("scroll", leave, { passive: true });
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") leave();
});

for (const element of all(".controls, .some")) element.hidden = false;
showEntities();
