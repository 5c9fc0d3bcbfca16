"use strict";
// Renders /openapi.json. All text is inserted as text nodes, never as markup.

const el = (name, attributes, ...children) => {
  const e = document.createElement(name);
  for (const [k, v] of Object.entries(attributes || {})) e.setAttribute(k, v);
  e.append(...children.filter((c) => c !== undefined && c !== null && c !== ""));
  return e;
};

const paragraphs = (text) => (text || "").split("\n\n").filter(Boolean).map((t) => el("p", {}, t));

const nameOf = (ref) => ref.slice(ref.lastIndexOf("/") + 1);

// typeOf describes a schema's type briefly; named schemas become links.
const typeOf = (schema) => {
  if (!schema) return el("span");
  if (schema.$ref) return el("a", { href: "#schema-" + nameOf(schema.$ref) }, nameOf(schema.$ref));
  if (schema.oneOf) return el("span", {}, ...schema.oneOf.flatMap((s, i) => (i ? [" or ", typeOf(s)] : [typeOf(s)])));
  if (schema.items) return el("span", {}, "array of ", typeOf(schema.items));
  const type = Array.isArray(schema.type) ? schema.type.join(" or ") : schema.type || "any";
  const limits = [];
  if (schema.enum) limits.push(schema.enum.join(" | "));
  if (schema.format && !/^u?int|^double/.test(schema.format)) limits.push(schema.format);
  if (schema.minimum !== undefined || schema.maximum !== undefined) limits.push(`${schema.minimum ?? ""}..${schema.maximum ?? ""}`);
  if (schema.maxLength !== undefined) limits.push(`up to ${schema.maxLength} characters`);
  if (schema.default !== undefined) limits.push(`default ${schema.default}`);
  return el("span", {}, type + (limits.length ? ": " + limits.join(", ") : ""));
};

const table = (head, rows) =>
  el("table", {}, el("thead", {}, el("tr", {}, ...head.map((h) => el("th", {}, h)))),
    el("tbody", {}, ...rows.map((cells) => el("tr", {}, ...cells.map((c) => el("td", {}, c))))));

const schemaTable = (schema) => table(["Member", "Type", "Description"],
  Object.entries(schema.properties || {}).map(([name, p]) =>
    [name + ((schema.required || []).includes(name) ? " *" : ""), typeOf(p), p.description || ""]));

const mediaOf = (content) => Object.values(content || {})[0] || {};

const operation = (path, method, op) => {
  const parts = [...paragraphs(op.description)];
  if (op.parameters && op.parameters.length) {
    parts.push(el("h4", {}, "Parameters"), table(["Name", "In", "Type", "Description"],
      op.parameters.map((p) => [p.name, p.in, typeOf(p.schema), p.description || ""])));
  }
  if (op.requestBody) {
    const media = mediaOf(op.requestBody.content);
    parts.push(el("h4", {}, "Request body: ", typeOf(media.schema)));
    if (media.example) parts.push(el("pre", {}, JSON.stringify(media.example, null, 2)));
  }
  parts.push(el("h4", {}, "Responses"), table(["Status", "Body", "Description"],
    Object.entries(op.responses).map(([status, r]) => [status, typeOf(mediaOf(r.content).schema), r.description || ""])));
  return el("details", { id: op.operationId },
    el("summary", {}, el("span", { class: "method" }, method.toUpperCase()), el("span", { class: "path" }, path),
      el("span", { class: "phrase" }, op.summary || "")),
    el("div", {}, ...parts));
};

const render = (doc) => {
  const main = document.getElementById("main");
  main.replaceChildren(el("h1", {}, `${doc.info.title} ${doc.info.version}`), ...paragraphs(doc.info.description));
  for (const tag of doc.tags) {
    main.append(el("h2", {}, tag.name), ...paragraphs(tag.description));
    for (const [path, item] of Object.entries(doc.paths)) {
      for (const method of ["get", "post", "put", "patch", "delete"]) {
        if (item[method] && item[method].tags.includes(tag.name)) main.append(operation(path, method, item[method]));
      }
    }
  }
  main.append(el("h2", {}, "Schemas"));
  for (const [name, schema] of Object.entries(doc.components.schemas)) {
    main.append(el("details", { id: "schema-" + name }, el("summary", {}, el("span", { class: "path" }, name)),
      el("div", {}, ...paragraphs(schema.description), schemaTable(schema))));
  }
  const open = () => {
    const target = document.getElementById(location.hash.slice(1));
    if (target && target.tagName === "DETAILS") { target.open = true; target.scrollIntoView(); }
  };
  addEventListener("hashchange", open);
  open();
};

fetch("/openapi.json").then((r) => r.json()).then(render).catch((err) => {
  document.getElementById("main").replaceChildren(el("p", {}, "Cannot read openapi.json: " + err.message));
});
