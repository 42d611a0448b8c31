"use strict";
// openapi.json as a page.

const make = (tag, text, ...parts) => {
  const made = document.createElement(tag);
  if (text) made.textContent = text;
  made.append(...parts);
  return made;
};

function described(path, verb, told) {
  const parts = [make("h2", `${verb.toUpperCase()} ${path}`), make("p", told.description || told.summary)];
  for (const one of told.parameters || []) {
    const schema = one.schema || {};
    const words = [one.required ? "required" : `default ${schema.default}`, schema.enum ? schema.enum.join(" | ") : schema.type];
    if (schema.minimum !== undefined) words.push(`${schema.minimum} to ${schema.maximum}`);
    parts.push(make("p", "", make("code", `?${one.name}=`), ` ${one.description || ""} (${words.join(", ")})`));
  }
  if (told.requestBody) {
    parts.push(make("p", `Body: ${Object.keys(told.requestBody.content).join(", ")}`));
  }
  const rows = Object.entries(told.responses).map(([status, answer]) => {
    const head = make("th", status);
    head.scope = "row";
    const kinds = Object.keys(answer.content || {}).join(", ");
    return make("tr", "", head, make("td", `${answer.description}${kinds ? ` (${kinds})` : ""}`));
  });
  parts.push(make("table", "", make("tbody", "", ...rows)));
  return make("section", "", ...parts);
}

async function main() {
  const base = new URL(".", location.href).href;
  document.getElementById("curl").textContent =
    `curl -F image=@cat.jpg '${base}v1/classify?top=3'\n` +
    `curl -F image=@cat.jpg '${base}v1/features?blobs=prob&format=npy' --output prob.npy`;
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
