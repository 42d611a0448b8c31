"use strict";
// What the page tells of the net itself: filters, layers, model card; each is asked for when it is opened.

const loads = { filters: showFilters, layers: showLayers, card: showCard };
const SHORT = { kernel: "k", stride: "s", pad: "p", dilation: "d", group: "g" }; // as in papers: k3 s2 p1
const PLAIN = ["pool", "operation"]; // settings that need no name
const number = (value) => value.toLocaleString("en");

for (const [id, load] of Object.entries(loads)) {
  $(id).addEventListener("toggle", () => { if ($(id).open && !$(id).dataset.done) open(id, load); });
}

async function open(id, load) {
  $(id).dataset.done = "yes";
  try {
    await load();
  } catch (failure) {
    if (!(failure instanceof Failure)) throw failure;
    $(`${id}-words`).textContent = failure.message;
    delete $(id).dataset.done;
  }
}

// Another model answers now: what was told of the last one is asked for again.
function forget() {
  for (const [id, load] of Object.entries(loads)) {
    delete $(id).dataset.done;
    if ($(id).open) open(id, load);
  }
}

// -- filters --------------------------------------------------------------------------------------------------------

async function showFilters() {
  const { filters } = await ask("v1/net");
  const select = $("filters-layer");
  select.replaceChildren(...filters.map((name) => new Option(name, name)));
  select.disabled = filters.length === 0;
  if (filters.length) await drawFilters();
  else $("filters-words").textContent = "The net has no convolution, and so no filters.";
}

const drawFilters = () =>
  put($("filters-picture"), $("filters-words"), `v1/filters?layer=${encodeURIComponent($("filters-layer").value)}`);

$("filters-layer").addEventListener("change", drawFilters);

// -- layers ---------------------------------------------------------------------------------------------------------

async function showLayers() {
  $("layers-words").textContent = "Asking…";
  const net = await ask("v1/net");
  $("layers-rows").replaceChildren(...net.layers.map(layerRow));
  $("layers-table").hidden = false;
  const uncounted = net.uncounted.length ? `, not counting ${net.uncounted.join(", ")}` : "";
  $("layers-words").textContent = `${counted(net.layers.length, "layer", "layers")}, ${number(net.parameters)} parameters ` +
    `(${megabytes(net.parameter_bytes)}), ${number(net.multiply_adds)} multiply-adds a picture${uncounted}`;
}

function layerRow(layer) {
  const head = make("th", layer.name);
  head.scope = "row";
  const settings = Object.entries(layer.settings).map(([name, value]) =>
    name in SHORT && /^\d/.test(value) ? `${SHORT[name]}${value}` : PLAIN.includes(name) ? value : `${name} ${value}`);
  const shapes = layer.shapes.map((shape) => shape.slice(1).join(" × ") || "one number");
  const parts = [
    make("td", layer.type),
    make("td", settings.join(" ")),
    make("td", layer.in_place ? `${layer.tops.join(", ")} (in place)` : layer.tops.join(", ")),
    make("td", layer.in_place ? "" : shapes.join("; ")),
    make("td", layer.shares_with.length ? `as ${layer.shares_with.join(", ")}` : layer.parameters ? number(layer.parameters) : ""),
    make("td", layer.multiply_adds === null ? "?" : layer.multiply_adds ? number(layer.multiply_adds) : ""),
  ];
  parts.slice(-2).forEach((cell) => { cell.className = "number"; });
  return make("tr", "", head, ...parts);
}

// -- model card -----------------------------------------------------------------------------------------------------

async function showCard() {
  $("card-words").textContent = "Asking…";
  const [told, card, net] = await Promise.all(["v1/model", "v1/card", "v1/net"].map((path) => ask(path)));
  $("card-words").textContent = `It knows ${counted(told.classes, "class", "classes")} and nothing else: of a picture of ` +
    "anything else it names the class that comes nearest.";
  const { body_bytes: body, images, pixels } = told.limits;
  const facts = {
    net: told.net,
    weights: `${told.weights.join(", ")}, digest ${told.weights_digest}`,
    size: `${number(net.parameters)} parameters, ${number(net.multiply_adds)} multiply-adds a picture`,
    ...trainedWords(card.trained),
    input: `${told.input.blob}, ${told.input.shape.join(" × ")} (channels × height × width)`,
    preprocessing: transformWords(told.transform).join("; "),
    classes: classesOf(told),
    limits: `${megabytes(body)} and ${images} pictures a request, ${Math.floor(pixels / 1e6)} million pixels a picture`,
    versions: Object.entries(told.versions).map(([name, version]) => `${name} ${version}`).join(", "),
  };
  $("facts").replaceChildren(...Object.entries(facts).filter(([, value]) => value).map(([name, value]) => {
    const head = make("th", name);
    head.scope = "row";
    return make("tr", "", head, make("td", "", value));
  }));
}

function trainedWords(trained) {
  if (!trained) return { training: "not known: the server was given weights, not the folder of a run" };
  const { run, solver, iteration, max_iter: most, data, tests } = trained;
  const steps = iteration === null ? "" : `, ${number(iteration)}${most && most !== iteration ? ` of ${number(most)}` : ""} iterations`;
  const sets = (phase) => data.filter((one) => one.phase === phase).map((one) =>
    one.records === null ? one.name : `${one.name}, ${counted(one.records, "picture", "pictures")}`).join("; ");
  const scores = Object.entries(tests).map(([name, value]) =>
    /accuracy/i.test(name) && value <= 1 ? `${name} ${(100 * value).toFixed(2)} %` : `${name} ${Number(value.toPrecision(4))}`);
  return {
    training: `run ${run}${solver ? `, ${solver}` : ""}${steps}`,
    "trained with": sets("train"),
    "tested with": sets("test"),
    "test result": scores.join(", "),
  };
}

function transformWords(transform) {
  const known = {
    resize: (size) => `resized to ${size.join(" × ")}`,
    images_dim: (size) => `resized to ${size.join(" × ")}`,
    crop: (size) => `the middle ${[size].flat().join(" × ")} of it`,
    gray: (is) => (is ? "grey" : null),
    oversample: (is) => (is ? "the mean of ten crops" : null),
    mirror: () => null, // in training only
    channel_swap: (order) => `channels in the order ${order.map((place) => ["red", "green", "blue"][place] ?? place).join(", ")}`,
    raw_scale: (scale) => `values 0 to ${scale}`,
    mean: (mean) => (Array.isArray(mean) ? `minus ${mean.join(", ")}` : `minus a mean image (${mean})`),
    scale: (scale) => (scale === 1 ? null : `times ${Number(scale.toPrecision(6))}`),
    input_scale: (scale) => (scale === 1 ? null : `times ${Number(scale.toPrecision(6))}`),
  };
  return Object.keys(known).filter((name) => name in transform).map((name) => known[name](transform[name])).filter(Boolean)
    .concat(Object.keys(transform).filter((name) => !(name in known)).map((name) => `${name} ${JSON.stringify(transform[name])}`));
}

function classesOf(told) {
  const some = told.names.filter(Boolean);
  if (!some.length) return number(told.classes);
  return make("details", "", make("summary", number(told.classes)), make("p", some.join(" · ")));
}
