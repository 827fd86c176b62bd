// The playground: everything it shows comes from /openapi.json's fields and op=capabilities.
import { readParameters } from "./parameters.js";
import { addEntry, dropEntry, listEntries } from "./gallery.js";
import { LANGUAGES } from "./code.js";

const find = (id) => document.getElementById(id);
const make = (tag, facts = {}, ...inner) => {
  const element = Object.assign(document.createElement(tag), facts);
  element.append(...inner);
  return element;
};
const SHOWN_ELSEWHERE = new Set(["prompt", "images", "model", "task", "size", "width", "height", "aspect_ratio", "op", "upload_url", "response_format", "batch"]);
const KEY = "worker-key";

let capabilities = null;
let aspect = "";
let sources = [];  // {url, name}: a data URL or an address
let running = null;

const headers = () => {
  const key = sessionStorage.getItem(KEY);
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
};

async function call(path, options = {}) {
  for (;;) {
    const response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
    if (response.status !== 401) return response;
    await askForKey();
  }
}

function askForKey() {
  const dialog = find("ask");
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, find("key").value);
      find("key").value = "";
      resolve();
    }, { once: true });
  });
}

async function start() {
  for (;;) {
    const response = await fetch("ping").catch(() => null);
    if (response?.status === 200) break;
    find("health").textContent = response?.status === 204 ? "the worker is starting" : "the worker is not ready";
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
  const response = await call("runsync", { method: "POST", body: JSON.stringify({ input: { op: "capabilities" } }) });
  capabilities = (await response.json()).output;
  find("health").textContent = `ready, version ${capabilities.worker_version}`;
  find("model").replaceChildren(...capabilities.models.map((one) => make("option", { value: one.id, textContent: one.id })));
  showModel();
}

const chosenModel = () => capabilities.models.find((one) => one.id === find("model").value);

function showModel() {
  const model = chosenModel();
  const tasks = new Set(model.tasks);
  find("references").hidden = !tasks.has("edit");
  find("aspects").parentElement.hidden = !model.sizes;
  const ratios = ["", ...Object.keys(model.sizes ?? {})];
  find("aspects").replaceChildren(...ratios.map((ratio) => {
    const button = make("button", { type: "button", textContent: ratio || "model's own" });
    button.setAttribute("role", "radio");
    button.addEventListener("click", () => { aspect = ratio; showAspect(); });
    button.dataset.ratio = ratio;
    return button;
  }));
  showAspect();
  const rows = capabilities.input.filter((row) => !SHOWN_ELSEWHERE.has(row.field) && (!row.tasks || row.tasks.some((task) => tasks.has(task))));
  find("fields").replaceChildren(...rows.map(makeField));
}

function showAspect() {
  for (const button of find("aspects").children) {
    button.setAttribute("aria-checked", String(button.dataset.ratio === aspect));
  }
}

function makeField(row) {
  const schema = row.schema;
  let input;
  if (schema.enum || schema.type === "boolean") {
    const words = schema.enum ?? ["true", "false"];
    input = make("select", {}, make("option", { value: "", textContent: "default" }), ...words.map((word) => make("option", { value: word, textContent: word })));
  } else {
    const isNumber = schema.type === "number" || (schema.type === "integer" && row.field !== "seed");
    input = make("input", { type: isNumber ? "number" : "text", placeholder: row.default });
    if (isNumber && "minimum" in schema) input.min = schema.minimum;
    if (isNumber && "maximum" in schema) input.max = schema.maximum;
    if (schema.type === "number") input.step = "any";
  }
  input.name = row.field;
  input.title = row.accepts;
  return make("label", {}, row.field.replaceAll("_", " "), input);
}

function readInput() {
  const given = { prompt: find("prompt").value, model: find("model").value };
  if (sources.length && !find("references").hidden) given.images = sources.map((one) => one.url);
  if (aspect && !find("aspects").parentElement.hidden) given.aspect_ratio = aspect;
  for (const input of find("fields").querySelectorAll("[name]")) {
    if (input.value === "") continue;
    const row = capabilities.input.find((one) => one.field === input.name);
    given[input.name] = row.schema.type === "boolean" ? input.value === "true" : input.value;
  }
  return given;
}

function showSources() {
  find("sources").replaceChildren(...sources.map((one, place) => {
    const move = make("button", { type: "button", textContent: "earlier", disabled: place === 0 });
    move.addEventListener("click", () => { sources.splice(place - 1, 0, ...sources.splice(place, 1)); showSources(); });
    const remove = make("button", { type: "button", textContent: "remove" });
    remove.addEventListener("click", () => { sources.splice(place, 1); showSources(); });
    for (const button of [move, remove]) button.setAttribute("aria-label", `${button.textContent}: ${one.name}`);
    const shown = one.url.startsWith("data:") ? make("img", { src: one.url, alt: one.name }) : make("span", { textContent: one.name });
    return make("li", {}, shown, move, remove);
  }));
}

const readFile = (file) => new Promise((resolve) => {
  const reader = new FileReader();
  reader.addEventListener("load", () => resolve(reader.result));
  reader.readAsDataURL(file);
});

async function addFiles(files) {
  for (const file of files) {
    if (!file.type.startsWith("image/")) continue;
    sources.push({ url: await readFile(file), name: file.name || "pasted picture" });
  }
  showSources();
}

function showProblem(message) {
  find("problem").textContent = message;
}

function restore(settings) {
  if (settings.prompt !== undefined) find("prompt").value = settings.prompt;
  if (settings.model && capabilities.models.some((one) => one.id === settings.model)) find("model").value = settings.model;
  aspect = settings.aspect_ratio ?? "";
  showModel();
  const names = { steps: "num_inference_steps" };
  for (const [name, value] of Object.entries(settings)) {
    const input = find("fields").querySelector(`[name="${CSS.escape(names[name] ?? name)}"]`);
    if (input) input.value = String(value);
  }
  if (settings.seed !== undefined) find("lock").checked = true;
  find("state").textContent = "settings restored";
}

async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    left += value;
    let end;
    while ((end = left.indexOf("\n\n")) >= 0) {
      const lines = left.slice(0, end).split("\n");
      left = left.slice(end + 2);
      const data = lines.find((line) => line.startsWith("data: "));
      if (data) yield { name: lines.find((line) => line.startsWith("event: "))?.slice(7), data: JSON.parse(data.slice(6)) };
    }
  }
}

async function submit(event) {
  event?.preventDefault();
  if (running || !capabilities) return;
  const input = readInput();
  running = new AbortController();
  find("go").disabled = true;
  find("stop").disabled = false;
  find("progress").hidden = false;
  find("progress").value = 0;
  showProblem("");
  try {
    const response = await call("runsync", {
      method: "POST", signal: running.signal, body: JSON.stringify({ input: { ...input, response_format: "data_url" } }), headers: { Accept: "text/event-stream" },
    });
    if (!response.ok) {
      const { error } = await response.json();
      const after = response.headers.get("Retry-After");
      throw new Error(error.message + (after ? ` (again in ${after} s)` : ""));
    }
    for await (const { name, data } of readEvents(response)) {
      if (name === "progress") showProgress(data);
      else await showResult(data, input);
    }
  } catch (error) {
    if (error.name === "AbortError") find("state").textContent = "cancelled";
    else showProblem(error.message);
  } finally {
    running = null;
    find("go").disabled = false;
    find("stop").disabled = true;
    find("progress").hidden = true;
  }
}

function showProgress(state) {
  if (state.status === "IN_QUEUE") find("state").textContent = `waiting, ${state.position} before`;
  else if (state.output) {
    find("progress").value = state.output.percent;
    find("state").textContent = `step ${state.output.step} of ${state.output.steps}`;
  }
}

async function showResult(state, input) {
  const output = state.output ?? {};
  const short = JSON.stringify(state, (_, value) => (typeof value === "string" && value.length > 2000 ? `${value.slice(0, 40)}... (${value.length} characters)` : value), 2);
  find("reply").textContent = short;
  if (state.status !== "COMPLETED") {
    find("state").textContent = state.status.toLowerCase();
    throw new Error(state.error ?? state.status);
  }
  find("state").textContent = [`done in ${(output.timings_ms.total / 1000).toFixed(1)} s`, ...output.warnings].join("; ");
  const pieces = output.images ?? output.audio ?? [];
  find("result").replaceChildren(...pieces.map((piece) => showPiece(piece, input)));
  const seedField = find("fields").querySelector('[name="seed"]');
  if (seedField) seedField.value = find("lock").checked ? String(output.seed) : "";
  for (const piece of output.images ?? []) {
    const { images, ...settings } = input;
    await addEntry({ picture: piece.data_url ?? piece.url, settings: { ...settings, seed: String(piece.seed) }, at: Date.now() });
  }
  await showGallery();
}

function showPiece(piece, input) {
  const url = piece.data_url ?? piece.url;
  if (piece.mime_type.startsWith("audio/")) return make("audio", { controls: true, src: url });
  const picture = make("img", { src: url, alt: `Result for: ${input.prompt}`, width: piece.width, height: piece.height });
  const use = make("button", { type: "button", textContent: "Edit this result" });
  use.addEventListener("click", () => { sources = [{ url, name: "result" }]; showSources(); find("prompt").focus(); });
  const save = make("a", { href: url, download: `picture-${piece.seed}.${piece.mime_type.split("/")[1]}`, textContent: "Save" });
  const foot = make("div", { className: "row" }, use, save, `seed ${piece.seed}`);
  const before = input.images?.at(-1);
  if (!before?.startsWith("data:")) return make("figure", {}, picture, foot);
  const over = make("img", { src: before, alt: "before", className: "over" });
  const slider = make("input", { type: "range", min: 0, max: 100, value: 0 });
  slider.setAttribute("aria-label", "Before and after");
  const slide = () => { over.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`; };
  slider.addEventListener("input", slide);
  slide();
  return make("figure", {}, make("div", { className: "compare" }, picture, over), slider, foot);
}

const shorten = (input) => ({ ...input, ...(input.images ? { images: input.images.map((url) => (url.startsWith("data:") ? "data:image/png;base64,..." : url)) } : {}) });

function showLanguages() {
  const base = new URL(".", location.href).href.replace(/\/$/, "");
  find("languages").replaceChildren(...Object.entries(LANGUAGES).map(([name, write]) => {
    const button = make("button", { type: "button", textContent: `Copy as ${name}` });
    button.addEventListener("click", async () => {
      const text = write(base, shorten(readInput()));
      find("code").textContent = text;
      await navigator.clipboard?.writeText(text).catch(() => {});
    });
    return button;
  }));
}

async function showGallery() {
  const entries = await listEntries();
  find("gallery").replaceChildren(...entries.map((entry) => {
    const again = make("button", { type: "button", textContent: "restore" });
    again.addEventListener("click", () => restore(entry.settings));
    const remove = make("button", { type: "button", textContent: "delete" });
    remove.addEventListener("click", async () => { await dropEntry(entry.id); await showGallery(); });
    for (const button of [again, remove]) button.setAttribute("aria-label", `${button.textContent}: ${entry.settings.prompt}`);
    return make("li", {}, make("img", { src: entry.picture, alt: entry.settings.prompt }), again, remove);
  }));
}

async function drop(event) {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const files = [...(event.dataTransfer?.files ?? [])];
  const parameters = files.length === 1 ? readParameters(new Uint8Array(await files[0].arrayBuffer())) : null;
  const isReference = event.target.closest?.("#references");
  if (parameters && !isReference) restore(parameters);
  else await addFiles(files);
}

find("wish").addEventListener("submit", submit);
find("stop").addEventListener("click", () => running?.abort());
find("model").addEventListener("change", showModel);
find("file").addEventListener("change", async (event) => { await addFiles(event.target.files); event.target.value = ""; });
find("add").addEventListener("click", () => {
  const url = find("address").value.trim();
  if (url) sources.push({ url, name: url });
  find("address").value = "";
  showSources();
});
document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) addFiles(event.clipboardData.files); });
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
document.addEventListener("drop", drop);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("wish").requestSubmit();
});
await start();
showLanguages();
await showGallery();
