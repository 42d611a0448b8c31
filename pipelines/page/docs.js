"use strict";
// openapi.json as a page.

const make = (tag, text, ...parts) => {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  made.append(...parts);
  return made;
};

// Text whose `names` are code.
const words = (text) => make("p", "", ...text.split("`").map((part, place) => (place % 2 ? make("code", part) : part)));

// What a parameter may be, in words.
function taken(one) {
  const schema = one.schema || {};
  const kinds = (schema.anyOf || [schema]).filter((kind) => kind.type !== "null");
  const told = [one.required ? "required" : schema.default ? `default ${schema.default}` : "may be left out"];
  told.push(kinds.map((kind) => (kind.enum ? kind.enum.join(" | ") : kind.type === "string" ? "text" : kind.type)).join(" or "));
  if (schema.minimum !== undefined) told.push(`${schema.minimum} to ${schema.maximum}`);
  return told.filter(Boolean).join(", ");
}

function described(path, verb, told) {
  const heading = make("h2", "", make("span", verb.toUpperCase()), ` ${path}`);
  const parts = [heading, ...(told.description || told.summary).split("\n\n").map(words)];
  for (const one of told.parameters || []) {
    const name = make("code", one.in === "path" ? `{${one.name}}` : `?${one.name}=`);
    parts.push(make("p", "", name, ` ${one.description || ""} (${taken(one)})`));
  }
  if (told.requestBody) {
    parts.push(make("p", `Body: ${Object.keys(told.requestBody.content).join(", ")}`));
  }
  const rows = Object.entries(told.responses).map(([status, answer]) => {
    const head = make("th", status);
    head.scope = "row";
    const kinds = Object.keys(answer.content || {}).join(", ");
    return make("tr", "", head, make("td", `${status === "200" ? "The answer" : answer.description}${kinds ? ` (${kinds})` : ""}`));
  });
  const table = make("table", "", make("tbody", "", ...rows));
  table.className = "answers";
  parts.push(make("details", "", make("summary", `Answers: ${Object.keys(told.responses).join(", ")}`), table));
  const section = make("section", "", ...parts);
  section.className = "route";
  return section;
}

async function main() {
  const base = new URL(".", location.href).href;
  document.getElementById("curl").textContent =
    `curl -F image=@cat.jpg '${base}v1/classify?top=3'\n` +
    `curl -F image=@cat.jpg '${base}v1/features?blobs=prob&format=npy' --output prob.npy\n` +
    `curl '${base}v1/filters' --output filters.png`;
  const answer = await fetch("openapi.json").catch(() => null);
  if (!answer || !answer.ok) {
    document.getElementById("paths").replaceChildren(make("p", "The server does not answer. Load the page again when it does."));
    return;
  }
  const { paths } = await answer.json();
  const sections = Object.entries(paths).flatMap(([path, verbs]) =>
    Object.entries(verbs).map(([verb, told]) => described(path, verb, told)));
  document.getElementById("paths").replaceChildren(...sections);
}

main();
