"use strict";

const byId = (id) => document.getElementById(id);
const { examples, limits } = JSON.parse(byId("setup").textContent);
const form = byId("question");
const text = byId("text");
const field = byId("type");
const say = (number) => number.toLocaleString("en");

// The types that are asked for; an answer gives each its colour and its count

let types = [];

function showTypes() {
  byId("types").replaceChildren(...types.map(chip));
  byId("clear").hidden = types.length === 0;
}

function chip(type) {
  const item = element("li", `chip ${type.colour ?? "new"}`);
  item.append(element("span", "name", type.label));
  if (type.count !== undefined) item.append(element("span", "number", say(type.count)));
  const remove = element("button", "", "×");
  remove.type = "button";
  remove.title = `Remove ${type.label}`;
  remove.setAttribute("aria-label", remove.title);
  remove.addEventListener("click", () => {
    setTypes(types.filter((other) => other !== type));
    field.focus();
  });
  item.append(remove);
  return item;
}

function element(name, className, content = "") {
  const made = document.createElement(name);
  made.className = className;
  made.textContent = content;
  return made;
}

function setTypes(wanted) {
  types = wanted;
  showTypes();
  outdate();
}

function addTypes(listed) {
  const labels = listed.split(/[,\n]/).map((label) => label.trim()).filter(Boolean);
  const known = new Set(types.map((type) => type.label));
  const added = [...new Set(labels)].filter((label) => !known.has(label));
  if (added.length) setTypes([...types, ...added.map((label) => ({ label }))]);
}

function takeField() {
  addTypes(field.value);
  field.value = "";
}

// The text

function showCount() {
  // code points, as the server counts.
  const length = [...text.value].length;
  byId("count").textContent = `${say(length)} of ${say(limits.characters)} characters`;
  byId("count").classList.toggle("over", length > limits.characters);
}

function outdate() {
  byId("result").classList.add("stale");
}

function load(example) {
  text.value = example.text;
  showCount();
  setTypes(example.labels.map((label) => ({ label })));
  byId("result").replaceChildren();
  complain("");
}

// The question and its answer

let asking = null;

async function ask() {
  takeField();
  if (asking) return;
  asking = new AbortController();
  complain("");
  const shown = showWaiting();
  try {
    show(await answered(asking.signal));
  } catch (error) {
    if (error.name !== "AbortError") complain(error.message);
  }
  clearInterval(shown);
  asking = null;
  byId("status").textContent = "";
  byId("find").disabled = false;
  byId("stop").hidden = true;
}

async function answered(signal) {
  const body = JSON.stringify({ text: text.value, labels: types.map((type) => type.label) });
  const headers = { "Content-Type": "application/json" };
  const reply = await fetch("/extract", { method: "POST", headers, body, signal }).catch((error) => {
    if (error.name === "AbortError") throw error;
    throw new Error("The demo does not answer: has it ended, or are too many reading?");
  });
  const found = await reply.json().catch(() => ({ error: `The demo answered with ${reply.status}; try again.` }));
  if (!reply.ok) throw new Error(found.error);
  return { ...found, asked: body };
}

function show(found) {
  // the server escapes all that is in it, and the page's policy runs no script but this one.
  byId("result").innerHTML = found.html;
  const now = JSON.stringify({ text: text.value, labels: types.map((type) => type.label) });
  byId("result").classList.toggle("stale", now !== found.asked);
  const known = new Map(found.types.map((type) => [type.label, type]));
  types = types.map((type) => known.get(type.label) ?? { label: type.label });
  showTypes();
}

function showWaiting() {
  byId("find").disabled = true;
  byId("stop").hidden = false;
  const began = performance.now();
  const tick = () => {
    const seconds = Math.floor((performance.now() - began) / 1000);
    const why = seconds < 8 ? "" : ": the first text of a length takes longest, and others may be waiting too";
    byId("status").textContent = `reading, ${seconds} s${why}`;
  };
  tick();
  return setInterval(tick, 1000);
}

function complain(problem) {
  byId("problem").textContent = problem;
}

// What the reader does

form.addEventListener("submit", (event) => {
  event.preventDefault();
  ask();
});
text.addEventListener("input", () => {
  showCount();
  outdate();
});
text.addEventListener("keydown", (event) => {
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) ask();
});
field.addEventListener("keydown", (event) => {
  if (event.isComposing) return;
  if (event.key === "Enter" && field.value.trim()) {
    event.preventDefault();
    takeField();
  } else if (event.key === "Backspace" && !field.value && types.length) {
    setTypes(types.slice(0, -1));
  }
});
field.addEventListener("input", () => {
  if (field.value.includes(",")) takeField();
});
byId("clear").addEventListener("click", () => setTypes([]));
byId("stop").addEventListener("click", () => asking?.abort());

byId("examples").append(
  ...examples.map((example) => {
    const item = element("li", "");
    const button = element("button", "", example.name);
    button.type = "button";
    button.addEventListener("click", () => load(example));
    item.append(button);
    return item;
  }),
);
load(examples[0]);
