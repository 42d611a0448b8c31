"use strict";
// The page of a served model: pictures in, answers with bars out. Everything comes from this server.

const $ = (id) => document.getElementById(id);
const AT_ONCE = 4; // requests
const MOST_MAPS = 64; // of a blob that are drawn
let model = null;
let token = sessionStorage.getItem("token") || "";
let running = 0;
const queue = [];

class Failure extends Error {
  constructor(words, { again = false, token = false } = {}) {
    super(words);
    this.again = again;
    this.token = token;
  }
}

// A request of this server: its answer, or a Failure in words.
async function ask(path, options = {}) {
  const headers = { ...options.headers, ...(token ? { Authorization: `Bearer ${token}` } : {}) };
  let answer;
  try {
    answer = await fetch(path, { ...options, headers });
  } catch {
    gone();
    throw new Failure("The server does not answer. It may have been stopped.", { again: true });
  }
  if (answer.ok) return answer.json();
  const told = await answer.json().catch(() => ({ error: `status ${answer.status}` }));
  if (answer.status === 401) {
    $("token-form").hidden = false;
    throw new Failure("The server wants a token: give it above.", { again: true, token: true });
  }
  const words = told.error.charAt(0).toUpperCase() + told.error.slice(1);
  throw new Failure(`${words}.`, { again: answer.status === 503 || answer.status === 408 });
}

// -- the net --------------------------------------------------------------------------------------------------------

async function introduce() {
  try {
    model = await ask("v1/model");
  } catch (failure) {
    $("net").textContent = failure.message;
    if (!failure.token) setTimeout(introduce, 2000);
    return;
  }
  $("token-form").hidden = true;
  $("net").textContent = `${model.net}, ${model.classes.toLocaleString()} classes`;
  const limits = model.limits;
  $("limits").textContent = `JPEG, PNG, WebP, GIF, AVIF, TIFF, BMP, …: up to ${Number((limits.body_bytes / 1e6).toFixed(1))} MB and ` +
    `${Math.floor(limits.pixels / 1e6)} million pixels each`;
  const facts = {
    net: model.net,
    weights: `${model.weights.join(", ")} (${model.weights_digest.slice(0, 12)})`,
    input: `${model.input.blob}, ${model.input.shape.join(" × ")}`,
    classes: model.classes.toLocaleString(),
    preprocessing: Object.entries(model.transform).map(([key, value]) => `${key} ${JSON.stringify(value)}`).join(", "),
    blobs: Object.entries(model.blobs).map(([name, shape]) => `${name} ${shape.join("×")}`).join(", "),
    versions: Object.entries(model.versions).map(([name, version]) => `${name} ${version}`).join(", "),
  };
  $("facts").replaceChildren(...Object.entries(facts).map(([name, value]) => {
    const row = document.createElement("tr");
    const head = document.createElement("th");
    head.scope = "row";
    head.textContent = name;
    const cell = document.createElement("td");
    cell.textContent = value;
    row.append(head, cell);
    return row;
  }));
}

async function offerSamples() {
  const names = await ask("samples").catch(() => []);
  $("samples").hidden = names.length === 0;
  $("sample-list").replaceChildren(...names.slice(0, 12).map((name) => {
    const button = document.createElement("button");
    button.type = "button";
    const image = document.createElement("img");
    image.src = `samples/${encodeURIComponent(name)}`;
    image.alt = `Try ${name}`;
    button.append(image);
    button.addEventListener("click", async () => {
      const answer = await fetch(image.src).catch(() => null);
      if (answer && answer.ok) add([new File([await answer.blob()], name)]);
      else gone();
    });
    return button;
  }));
}

// The server is gone: say so, and look until it is back.
function gone() {
  if (!$("banner").hidden) return;
  $("banner").textContent = "The server does not answer. This page looks for it again every two seconds.";
  $("banner").hidden = false;
  const timer = setInterval(async () => {
    const answer = await fetch("readyz").catch(() => null);
    if (!answer || !answer.ok) return;
    clearInterval(timer);
    $("banner").hidden = true;
    introduce();
    document.querySelectorAll(".again:not([hidden])").forEach((button) => button.click());
  }, 2000);
}

// -- pictures -------------------------------------------------------------------------------------------------------

function add(files) {
  for (const file of files) {
    const item = $("answer").content.firstElementChild.cloneNode(true);
    const image = item.querySelector("img");
    image.src = URL.createObjectURL(file);
    image.alt = file.name || "pasted picture";
    image.addEventListener("error", () => { image.hidden = true; });
    item.querySelector("figcaption").textContent = file.name || "pasted picture";
    item.querySelector(".again").addEventListener("click", () => send(item, file));
    item.querySelector(".away").addEventListener("click", () => remove(item));
    tabs(item);
    maps(item, file);
    $("answers").prepend(item);
    send(item, file);
  }
  $("bar").hidden = $("answers").children.length === 0;
}

function remove(item) {
  URL.revokeObjectURL(item.querySelector("img").src);
  const next = item.nextElementSibling || item.previousElementSibling;
  item.remove();
  (next ? next.querySelector(".away") : $("files")).focus();
  $("bar").hidden = $("answers").children.length === 0;
}

function send(item, file) {
  item.classList.remove("failed");
  item.querySelector(".again").hidden = true;
  item.querySelector(".state").hidden = false;
  item.querySelector(".state").textContent = "Waiting for the answer…";
  queue.push([item, file]);
  next();
}

function next() {
  while (running < AT_ONCE && queue.length) {
    const [item, file] = queue.shift();
    running += 1;
    answer(item, file).finally(() => { running -= 1; next(); });
  }
}

async function answer(item, file) {
  try {
    if (model && file.size > model.limits.body_bytes) {
      const most = (model.limits.body_bytes / 1e6).toLocaleString();
      throw new Failure(`This file has ${(file.size / 1e6).toFixed(1)} MB, the server takes ${most} MB.`);
    }
    const top = Math.min(20, Math.max(1, Number($("top").value) || 5));
    const headers = { "Content-Type": "application/octet-stream" };
    const told = await ask(`v1/classify?top=${top}`, { method: "POST", headers, body: file });
    show(item, told);
  } catch (failure) {
    fail(item, failure);
  }
}

function fail(item, failure) {
  item.classList.add("failed");
  item.querySelector(".state").textContent = failure.message.replace(/^#0: /, "");
  item.querySelector(".again").hidden = !failure.again;
  $("said").textContent = `${item.querySelector("figcaption").textContent}: ${failure.message}`;
}

function show(item, told) {
  const [one] = told.images;
  item.querySelector(".state").hidden = !one.warning;
  item.querySelector(".state").textContent = one.warning ? `Note: ${one.warning}.` : "";
  fill(item.querySelector('.classes[data-list="top"]'), one.top.map((entry) => [entry.name, entry.score]), 1);
  const sure = (one.accurate || []).map((entry) => [entry.name, entry.value]);
  item.querySelector(".tabs").hidden = sure.length === 0;
  fill(item.querySelector('.classes[data-list="accurate"]'), sure, Math.max(1e-9, ...sure.map(([, value]) => value)));
  const ms = told.ms;
  item.querySelector(".times").textContent = `${ms.all.toFixed(0)} ms: waiting ${ms.waiting.toFixed(1)}, decoding ` +
    `${ms.decoding.toFixed(1)}, forward ${ms.forward.toFixed(1)}; a batch of ${told.batch}`;
  item.querySelector(".maps").hidden = spatial().length === 0;
  $("said").textContent = `${item.querySelector("figcaption").textContent}: ${one.top[0].name}`;
}

function fill(list, entries, most) {
  list.replaceChildren(...entries.map(([name, value]) => {
    const row = document.createElement("li");
    const label = document.createElement("span");
    label.className = "name";
    label.textContent = name;
    const score = document.createElement("span");
    score.className = "score";
    score.textContent = most === 1 ? `${(100 * value).toFixed(1)} %` : value.toFixed(2);
    const track = document.createElement("span");
    track.className = "track";
    track.setAttribute("aria-hidden", "true");
    const drawing = document.createElementNS("http://www.w3.org/2000/svg", "svg");
    const bar = document.createElementNS("http://www.w3.org/2000/svg", "rect");
    bar.setAttribute("height", "100%");
    bar.setAttribute("width", `${Math.max(0, Math.min(100, (100 * value) / most))}%`);
    drawing.append(bar);
    track.append(drawing);
    row.append(label, score, track);
    return row;
  }));
}

function tabs(item) {
  const buttons = [...item.querySelectorAll('[role="tab"]')];
  const choose = (chosen) => {
    buttons.forEach((button) => {
      button.setAttribute("aria-selected", String(button === chosen));
      button.tabIndex = button === chosen ? 0 : -1;
    });
    item.querySelectorAll(".classes").forEach((list) => { list.hidden = list.dataset.list !== chosen.dataset.list; });
  };
  buttons.forEach((button, place) => {
    button.addEventListener("click", () => choose(button));
    button.addEventListener("keydown", (event) => {
      if (event.key !== "ArrowRight" && event.key !== "ArrowLeft") return;
      const other = buttons[(place + 1) % buttons.length];
      choose(other);
      other.focus();
    });
  });
}

// -- feature maps ---------------------------------------------------------------------------------------------------

const spatial = () => (model ? Object.keys(model.blobs).filter((name) => model.blobs[name].length === 3) : []);

function maps(item, file) {
  const details = item.querySelector(".maps");
  const select = details.querySelector("select");
  const words = details.querySelector("p");
  const draw = async () => {
    words.textContent = "Asking…";
    try {
      const headers = { "Content-Type": "application/octet-stream" };
      const path = `v1/features?blobs=${encodeURIComponent(select.value)}`;
      const told = await ask(path, { method: "POST", headers, body: file });
      const planes = told.images[0].blobs[select.value];
      paint(details.querySelector("canvas"), planes.slice(0, MOST_MAPS));
      const some = planes.length > MOST_MAPS ? `the first ${MOST_MAPS} of ` : "";
      words.textContent = `${some}${planes.length} maps of ${planes[0].length} × ${planes[0][0].length}, each from its lowest to its highest value`;
    } catch (failure) {
      words.textContent = failure.message;
    }
  };
  select.addEventListener("change", draw);
  details.addEventListener("toggle", () => {
    if (!details.open || select.options.length) return;
    select.replaceChildren(...spatial().map((name) => new Option(name, name)));
    const second = spatial()[1];
    if (second) select.value = second;
    draw();
  });
}

function paint(canvas, planes) {
  const [height, width] = [planes[0].length, planes[0][0].length];
  const across = Math.ceil(Math.sqrt(planes.length));
  canvas.width = across * (width + 1);
  canvas.height = Math.ceil(planes.length / across) * (height + 1);
  canvas.style.width = `${Math.max(canvas.width, Math.min(512, canvas.width * 8))}px`;
  const context = canvas.getContext("2d");
  planes.forEach((plane, place) => {
    const values = plane.flat();
    const low = values.reduce((a, b) => Math.min(a, b), Infinity);
    const high = values.reduce((a, b) => Math.max(a, b), -Infinity);
    const pixels = context.createImageData(width, height);
    values.forEach((value, at) => {
      const grey = high > low ? (255 * (value - low)) / (high - low) : 0;
      pixels.data.set([grey, grey, grey, 255], 4 * at);
    });
    context.putImageData(pixels, (place % across) * (width + 1), Math.floor(place / across) * (height + 1));
  });
}

// -- how pictures come ----------------------------------------------------------------------------------------------

$("files").addEventListener("change", (event) => {
  add(event.target.files);
  event.target.value = "";
});
document.addEventListener("paste", (event) => {
  const files = [...event.clipboardData.files];
  if (files.length) {
    event.preventDefault();
    add(files);
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
$("token-form").addEventListener("submit", (event) => {
  event.preventDefault();
  token = $("token").value.trim();
  sessionStorage.setItem("token", token);
  introduce().then(() => document.querySelectorAll(".again:not([hidden])").forEach((button) => button.click()));
});

introduce();
offerSamples();
