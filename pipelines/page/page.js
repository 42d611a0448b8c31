"use strict";
// The page of a served net: pictures in, answers with bars out. Everything comes from this server.

const $ = (id) => document.getElementById(id);
const AT_ONCE = 4; // requests
const LOOK_EVERY = 2000; // milliseconds, for a server that is gone
const FEW = 100; // pixels of a picture that is shown as it is, pixel by pixel
const RAW = { "Content-Type": "application/octet-stream" };
const LISTS = { top: "The most probable classes.", accurate: "As specific as it is safe to be: the value is the information in bits that is to be expected." };
let model = null;
let token = sessionStorage.getItem("token") || "";
let running = 0;
let looking = null;
const queue = [];
const files = new WeakMap(); // an answer -> its picture

class Failure extends Error {
  constructor(words, { again = false, token = false } = {}) {
    super(words);
    this.again = again;
    this.token = token;
  }
}

// An element with text and more in it.
function make(tag, text = "", ...parts) {
  const made = document.createElement(tag);
  if (text !== "") made.textContent = text;
  made.append(...parts);
  return made;
}

// A request of this server: the Response, or a Failure in words.
async function request(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    gone();
    throw new Failure("The server does not answer. It may have been stopped.", { again: true });
  }
  if (answer.ok) return answer;
  const told = await answer.json().catch(() => ({ error: `status ${answer.status}` }));
  if (answer.status === 401) {
    $("token-form").hidden = false;
    throw new Failure("The server wants a token: give it above.", { again: true, token: true });
  }
  const words = told.error.charAt(0).toUpperCase() + told.error.slice(1);
  throw new Failure(`${words}.`, { again: answer.status === 503 || answer.status === 408 });
}

const ask = async (path, options) => (await request(path, options)).json();

// An <img> with a picture of the server's, and under it what is on it.
async function put(image, words, path, options) {
  words.textContent = "Asking…";
  try {
    const answer = await request(path, options);
    const told = answer.headers.get("x-shown");
    const url = URL.createObjectURL(await answer.blob());
    if (image.src) URL.revokeObjectURL(image.src);
    image.src = url;
    image.alt = told;
    image.hidden = false;
    words.textContent = told;
  } catch (failure) {
    image.hidden = true;
    words.textContent = failure.message;
  }
}

// -- the net --------------------------------------------------------------------------------------------------------

async function introduce() {
  try {
    model = await ask("v1/model");
  } catch (failure) {
    $("net").textContent = failure.message;
    if (!failure.token) setTimeout(introduce, LOOK_EVERY);
    return;
  }
  $("token-form").hidden = true;
  const card = await ask("v1/card").catch(() => null);
  const run = card && card.trained ? `run ${card.trained.run}: ` : "";
  $("net").textContent = `${run}${model.net}, ${counted(model.classes, "class", "classes")}`;
  $("top").max = Math.min(20, model.classes);
  const { body_bytes: body, pixels } = model.limits;
  $("limits").textContent =
    `JPEG, PNG, WebP, GIF, AVIF, TIFF, BMP and others, up to ${megabytes(body)} and ${Math.floor(pixels / 1e6)} million pixels each`;
  forget();
  await offerSamples();
  if (location.hash === "#try" && !$("answers").children.length) $("sample-list").querySelector("button")?.click();
}

const counted = (number, one, many) => `${number.toLocaleString("en")} ${number === 1 ? one : many}`;
const megabytes = (bytes) => (bytes < 1e5 ? `${Number((bytes / 1e3).toFixed(1))} kB` : `${Number((bytes / 1e6).toFixed(1))} MB`);

async function offerSamples() {
  const listed = await ask("v1/samples").catch(() => []);
  const found = await Promise.all(listed.slice(0, 12).map(sampleOf));
  const shown = found.filter(Boolean);
  $("samples").hidden = shown.length === 0;
  const own = listed.some((one) => one.own);
  const labelled = listed.some((one) => one.label !== null);
  $("samples-words").textContent = own ? "Ours, not of the net's own data." : labelled ? "Pictures that the net was tested with, and their labels." : "";
  document.querySelectorAll("#sample-list img").forEach((image) => URL.revokeObjectURL(image.src));
  $("sample-list").replaceChildren(...shown);
}

async function sampleOf(one) {
  const content = await request(`v1/samples/${encodeURIComponent(one.name)}`)
    .then((answer) => answer.blob())
    .catch(() => null);
  if (!content) return null;
  const image = make("img");
  image.src = URL.createObjectURL(content);
  image.addEventListener("load", () => image.classList.toggle("few", image.naturalWidth < FEW));
  const label = one.label === null ? "" : model.names[one.label] || String(one.label);
  image.alt = `Try ${one.name}`;
  const button = make("button", "", image, ...(label ? [make("span", label)] : []));
  button.type = "button";
  button.addEventListener("click", () => add([new File([content], one.name, { type: content.type })], label));
  return make("li", "", button);
}

// The server is gone: say so, and look until it is back.
function gone() {
  if (looking) return;
  $("banner").textContent = "The server does not answer. This page looks for it again every two seconds.";
  $("banner").hidden = false;
  looking = setInterval(async () => {
    const answer = await fetch("readyz").catch(() => null);
    if (!answer || !answer.ok) return;
    clearInterval(looking);
    looking = null;
    $("banner").hidden = true;
    introduce();
    again();
  }, LOOK_EVERY);
}

function again() {
  document.querySelectorAll(".again:not([hidden])").forEach((button) => button.click());
}

// -- pictures -------------------------------------------------------------------------------------------------------

function add(chosen, label = "") {
  for (const file of chosen) {
    const item = $("answer").content.firstElementChild.cloneNode(true);
    const image = item.querySelector("figure img");
    const name = file.name || "pasted picture";
    files.set(item, file);
    image.src = URL.createObjectURL(file);
    image.alt = name;
    image.addEventListener("load", () => image.classList.toggle("few", image.naturalWidth < FEW));
    image.addEventListener("error", () => {
      image.hidden = true;
      item.querySelector(".unseen").hidden = false;
    });
    item.dataset.name = name;
    item.querySelector("figcaption").textContent = label ? `${name}, labelled “${label}”` : name;
    item.querySelector(".again").addEventListener("click", () => send(item));
    item.querySelector(".away").addEventListener("click", () => remove(item));
    item.querySelector(".away").setAttribute("aria-label", `Remove ${name}`);
    tabs(item);
    maps(item);
    $("answers").prepend(item);
    send(item);
  }
  $("bar").hidden = $("answers").children.length === 0;
}

function remove(item) {
  for (const image of item.querySelectorAll("img[src]")) URL.revokeObjectURL(image.src);
  const next = item.nextElementSibling || item.previousElementSibling;
  item.remove();
  (next ? next.querySelector(".away") : $("files")).focus();
  $("bar").hidden = $("answers").children.length === 0;
}

function send(item) {
  item.classList.remove("failed");
  item.classList.add("waiting");
  item.querySelector(".again").hidden = true;
  item.querySelector(".state").hidden = false;
  item.querySelector(".state").textContent = "Waiting for the answer…";
  queue.push(item);
  next();
}

function next() {
  while (running < AT_ONCE && queue.length) {
    running += 1;
    answer(queue.shift()).finally(() => { running -= 1; next(); });
  }
}

async function answer(item) {
  const file = files.get(item);
  try {
    if (model && file.size > model.limits.body_bytes) {
      throw new Failure(`This file has ${megabytes(file.size)}, the server takes ${megabytes(model.limits.body_bytes)}.`);
    }
    const top = Math.min(20, Math.max(1, Number($("top").value) || 5));
    const told = await ask(`v1/classify?top=${top}`, { method: "POST", headers: RAW, body: file });
    show(item, told);
    if (model && told.weights_digest !== model.weights_digest) {
      model.weights_digest = told.weights_digest; // another model answers now
      introduce();
    }
  } catch (failure) {
    fail(item, failure);
  }
  item.classList.remove("waiting");
}

function fail(item, failure) {
  const words = failure.message.replace(/^#0: (.)/, (_, first) => first.toUpperCase());
  item.classList.add("failed");
  item.querySelector(".state").textContent = words;
  item.querySelector(".again").hidden = !failure.again;
  $("said").textContent = `${item.dataset.name}: ${words}`;
}

function show(item, told) {
  const [one] = told.images;
  const state = item.querySelector(".state");
  state.hidden = !one.warning;
  state.textContent = one.warning ? `Note: ${one.warning}.` : "";
  fill(item, "top", one.top.map((entry) => [entry.name, entry.score]), 1, percent);
  const sure = (one.accurate || []).map((entry) => [entry.name, entry.value]);
  fill(item, "accurate", sure, Math.max(1e-9, ...sure.map(([, value]) => value)), (value) => `${value.toFixed(2)} bits`);
  const tabbed = item.querySelector(".tabs");
  tabbed.hidden = sure.length === 0;
  item.querySelectorAll(".about").forEach((words) => { words.hidden = tabbed.hidden; });
  const ms = told.ms;
  item.querySelector(".times").textContent = `${ms.all.toFixed(0)} ms: waiting ${ms.waiting.toFixed(1)}, decoding ` +
    `${ms.decoding.toFixed(1)}, forward ${ms.forward.toFixed(1)}; ${told.batch === 1 ? "alone" : `with ${told.batch - 1} more`} in its batch`;
  item.querySelector(".maps").hidden = false;
  $("said").textContent = `${item.dataset.name}: ${one.top[0].name}, ${percent(one.top[0].score)}`;
}

const percent = (value) => `${(100 * value).toFixed(1)} %`;

function fill(item, which, entries, most, written) {
  item.querySelector(`.classes[data-list="${which}"]`).replaceChildren(...entries.map(([name, value]) => {
    const label = make("span", name);
    label.className = "name";
    const score = make("span", value === null ? "not a number" : written(value));
    score.className = "score";
    const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    drawing.setAttribute("class", "track");
    drawing.setAttribute("aria-hidden", "true");
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    bar.setAttribute("height", "100%");
    bar.setAttribute("width", `${Math.max(0, Math.min(100, (100 * value) / most))}%`);
    drawing.append(bar);
    return make("li", "", label, score, drawing);
  }));
}

let made = 0; // tabs so far: their panels need names

function tabs(item) {
  const buttons = [...item.querySelectorAll('[role="tab"]')];
  const panels = [...item.querySelectorAll(".list")];
  made += 1;
  const choose = (chosen) => {
    buttons.forEach((button, place) => {
      button.setAttribute("aria-selected", String(button === chosen));
      button.tabIndex = button === chosen ? 0 : -1;
      panels[place].hidden = button !== chosen;
    });
  };
  buttons.forEach((button, place) => {
    panels[place].id = `panel-${made}-${button.dataset.list}`;
    panels[place].querySelector(".about").textContent = LISTS[button.dataset.list];
    button.setAttribute("aria-controls", panels[place].id);
    button.addEventListener("click", () => choose(button));
    button.addEventListener("keydown", (event) => {
      const steps = { ArrowRight: 1, ArrowLeft: -1, Home: -place, End: buttons.length - 1 - place };
      if (!(event.key in steps)) return;
      event.preventDefault();
      const other = buttons[(place + steps[event.key] + buttons.length) % buttons.length];
      choose(other);
      other.focus();
    });
  });
  choose(buttons[0]);
}

// What the net makes of this picture, blob by blob.
function maps(item) {
  const details = item.querySelector(".maps");
  const select = details.querySelector("select");
  const draw = () => put(details.querySelector("img"), details.querySelector(".words"),
    `v1/maps?blob=${encodeURIComponent(select.value)}`, { method: "POST", headers: RAW, body: files.get(item) });
  select.addEventListener("change", draw);
  details.addEventListener("toggle", () => {
    if (!details.open || !model) return;
    const names = Object.keys(model.blobs);
    if (names.join() === [...select.options].map((option) => option.value).join()) return;
    select.replaceChildren(...names.map((name) => new Option(`${name}, ${model.blobs[name].join(" × ")}`, name)));
    const first = names.find((name) => name !== model.input.blob && model.blobs[name].length === 3);
    if (first) select.value = first;
    draw();
  });
}

// -- how pictures come ----------------------------------------------------------------------------------------------

$("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  const pasted = [...event.clipboardData.files];
  if (pasted.length) {
    event.preventDefault();
    add(pasted);
  }
});
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  $("drop").classList.add("over");
});
document.addEventListener("dragleave", (event) => {
  if (!event.relatedTarget) $("drop").classList.remove("over");
});
document.addEventListener("drop", (event) => {
  event.preventDefault();
  $("drop").classList.remove("over");
  if (event.dataTransfer.files.length) add(event.dataTransfer.files);
  else $("said").textContent = "What was dropped holds no file.";
});
$("clear").addEventListener("click", () => [...$("answers").children].forEach(remove));
$("top").addEventListener("change", () => [...$("answers").children].forEach(send));
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("token", token);
  introduce().then(again);
});

document.addEventListener("DOMContentLoaded", introduce);
