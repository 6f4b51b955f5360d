"use strict";
const api = JSON.parse(document.getElementById("openapi").textContent);
const keyField = document.getElementById("key");

// Text goes in as text nodes only; backticks become code.
function make(tag, parent, text) {
  const node = document.createElement(tag);
  String(text ?? "").split("`").forEach((part, index) => {
    if (index % 2) { const code = document.createElement("code"); code.textContent = part; node.append(code) }
    else node.append(part);
  });
  parent?.append(node);
  return node;
}

function shape(schema) {
  if (!schema) return "";
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.oneOf) return schema.oneOf.map(shape).join(" or ");
  if (schema.enum) return schema.enum.map((word) => JSON.stringify(word)).join(" or ");
  if (schema.type === "array") return "list of " + shape(schema.items);
  if (schema.properties) return "{ " + Object.keys(schema.properties).join(", ") + " }";
  return [schema.type].flat().join(" or ");
}

function table(parent, title, rows) {
  if (!rows.length) return;
  make("h3", parent, title);
  const box = make("div", parent); box.className = "scroll";
  const body = make("tbody", make("table", box));
  for (const row of rows) {
    const line = make("tr", body);
    row.forEach((cell) => make("td", line, cell));
  }
}

function fields(schema) {
  const needed = new Set(schema?.required ?? []);
  return Object.entries(schema?.properties ?? {}).map(([name, field]) =>
    ["`" + name + "`" + (needed.has(name) ? "" : " (optional)"), shape(field), field.description]);
}

const operations = [];
for (const [path, item] of Object.entries(api.paths))
  for (const method of ["get", "put", "post", "delete"])
    if (item[method]) operations.push({ path, method, head: "head" in item, ...item[method] });

const answers = (operation) => Object.entries(operation.responses).map(([status, response]) =>
  ["`" + status + "`", response.description, Object.keys(response.headers ?? {}).join(", ")]);
// What every request can be answered is said once.
const common = answers(operations[0]).filter(([status, meaning]) => operations.every((operation) =>
  answers(operation).some(([other, same]) => other === status && same === meaning)));
const isCommon = ([status, meaning]) => common.some(([other, same]) => other === status && same === meaning);

// The parameters of a request. Those that go together are one of several objects in the description.
function parameters(operation) {
  return (operation.parameters ?? []).flatMap((parameter) => {
    if (parameter.schema.type !== "object") return [parameter];
    return parameter.schema.oneOf.flatMap((choice) => Object.entries(choice.properties)
      .map(([name, schema]) => ({ in: "query", name, schema, description: schema.description })));
  });
}

const PLACES = { path: "path, encoded when it is sent", query: "query, encoded when it is sent", header: "header" };
const EXAMPLES = { key: "greeting", user_id: "user123" };

function input(form, parameter) {
  const { name, schema } = parameter;
  const label = make("label", form); label.className = "field";
  const title = make("span", label, "`" + name + "`");
  make("small", title, " " + PLACES[parameter.in] + (parameter.required ? "" : ", optional"));
  const field = make(schema.enum ? "select" : "input", label);
  if (schema.enum) {
    if (!parameter.required) make("option", field, "").value = "";
    for (const word of schema.enum) make("option", field, word);
  } else {
    field.value = parameter.required ? EXAMPLES[name] ?? "" : "";
    field.autocomplete = "off"; field.spellcheck = false;
    if (schema.type === "integer") field.inputMode = "numeric";
  }
  make("small", label, parameter.description);
  return { ...parameter, field };
}

// What is to be sent, as the form says.
function request(operation, inputs, body) {
  const headers = {}, query = [];
  let path = operation.path;
  for (const { name, required, field, in: place } of inputs) {
    if (place === "path") path = path.replace("{" + name + "}", encodeURIComponent(field.value));
    else if (!field.value && !required) continue;
    else if (place === "query") query.push(name + "=" + encodeURIComponent(field.value));
    else headers[name] = field.value;
  }
  if (body) headers["Content-Type"] = "application/json";
  if (query.length) path += "?" + query.join("&");
  return { path, headers, body: body?.value };
}

const quoted = (text) => "'" + text.replaceAll("'", "'\\''") + "'";

function curl(method, { path, headers, body }, needsKey) {
  const words = ["curl -i"];
  if (method !== "GET" || body !== undefined) words.push("-X " + method);
  words.push(quoted(location.origin + path));
  if (needsKey) words.push('-H "X-API-Key: $KEY"');
  for (const [name, value] of Object.entries(headers)) words.push("-H " + quoted(name + ": " + value));
  if (body !== undefined) words.push("--data-raw " + quoted(body));
  return words.join(" ");
}

const SHOWN = 100000;

function pretty(text) {
  try { text = JSON.stringify(JSON.parse(text), null, 2) } catch { /* no JSON: as it came */ }
  return text.length > SHOWN ? text.slice(0, SHOWN) + "\n… " + (text.length - SHOWN) + " characters more" : text;
}

async function send(box, method, asked, needsKey) {
  const headers = needsKey && keyField.value ? { ...asked.headers, "X-API-Key": keyField.value } : asked.headers;
  box.replaceChildren();
  make("p", box, "Sent; waiting for the answer.");
  try {
    const begun = performance.now();
    const answer = await fetch(asked.path, { method, headers, body: asked.body, cache: "no-store" });
    const text = await answer.text();
    const took = Math.round(performance.now() - begun);
    box.replaceChildren();
    const status = make("p", box); status.className = answer.ok ? "status good" : "status bad";
    // HTTP/2 has no words for a status.
    status.textContent = (answer.status + " " + answer.statusText).trim() + ", " + took + " ms";
    table(box, "Headers of the answer", [...answer.headers].map(([name, value]) => [name, value]));
    make("h3", box, text ? "Body of the answer" : "No body");
    if (text) { const shown = make("pre", box); shown.textContent = pretty(text); shown.tabIndex = 0 }
  } catch (error) {
    box.replaceChildren();
    const status = make("p", box); status.className = "status bad";
    status.textContent = "Not sent, or not answered: " + error.message;
  }
}

function tryOut(parent, operation) {
  const needsKey = Boolean(operation.security), method = operation.method.toUpperCase();
  const form = make("form", parent);
  make("h3", form, "Send a request");
  const inputs = parameters(operation).map((parameter) => input(form, parameter));
  const example = operation.requestBody?.content["application/json"].example;
  let body;
  if (example !== undefined) {
    const label = make("label", form); label.className = "field";
    make("span", label, "Body");
    body = make("textarea", label);
    body.value = JSON.stringify(example, null, 2); body.spellcheck = false;
    body.rows = Math.min(12, body.value.split("\n").length + 1);
  }
  const row = make("div", form); row.className = "row";
  make("button", row, "Send").className = "main";
  const head = operation.head && method === "GET" ? make("button", row, "Send as HEAD") : undefined;
  if (head) head.value = "HEAD";
  const copy = navigator.clipboard ? make("button", row, "Copy as curl") : undefined;
  const command = make("pre", form); command.tabIndex = 0;
  const show = () => { command.textContent = curl(method, request(operation, inputs, body), needsKey) };
  form.addEventListener("input", show);
  show();
  const box = make("div", form); box.className = "answer"; box.setAttribute("aria-live", "polite");
  if (copy) {
    copy.type = "button";
    copy.onclick = async () => { await navigator.clipboard.writeText(command.textContent); copy.textContent = "Copied" };
  }
  form.onsubmit = (event) => {
    event.preventDefault();
    send(box, event.submitter?.value || method, request(operation, inputs, body), needsKey);
  };
}

function show(parent, operation) {
  const box = make("details", parent);
  box.id = operation.operationId;
  const line = make("summary", box);
  make("b", line, operation.method.toUpperCase());
  make("code", line, operation.path);
  make("span", line, operation.summary).className = "soft";
  const inside = make("div", box); inside.className = "in";
  if (operation.description) make("p", inside, operation.description);
  if (operation.security) make("p", inside, "Needs a key for `" + Object.values(operation.security[0])[0] + "`.");
  tryOut(inside, operation);
  const request = operation.requestBody?.content["application/json"].schema;
  table(inside, "Fields of the body", fields(request));
  table(inside, "Answers", answers(operation).filter((row) => !isCommon(row)));
  const good = Object.entries(operation.responses).find(([status]) => status < 300)?.[1];
  const answer = good?.content?.["application/json"]?.schema;
  table(inside, "Fields of the answer", fields(answer));
}

const about = document.getElementById("about");
for (const text of api.info.description.split("\n")) make("p", about, text);
document.getElementById("keys").hidden = !api.components.securitySchemes;
const main = document.getElementById("operations");
// Operations, which every level has, are the last.
const groups = [...new Set(operations.map((operation) => operation.tags[0]))];
const rank = (name) => (name === "Operations" ? 1 : 0);
for (const name of groups.sort((one, other) => rank(one) - rank(other))) {
  make("h2", main, name);
  for (const operation of operations) if (operation.tags[0] === name) show(main, operation);
}
table(document.getElementById("common"), "Every request may be answered, too", common);
function open() {
  const wanted = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (wanted?.tagName === "DETAILS") wanted.open = true;
  wanted?.scrollIntoView();
}
addEventListener("hashchange", open);
open();
