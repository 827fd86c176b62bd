// The playground: everything it shows comes from op=capabilities, by task and model.
import { LANGUAGES } from "./code.js";
import { find, make, makeButton } from "./dom.js";
import { listRows, readFields, setField, showFields } from "./fields.js";
import { addEntry, dropEntry, listEntries } from "./gallery.js";
import { runJob } from "./job.js";
import { readMask, setMask, showMask } from "./mask.js";
import { readParameters } from "./parameters.js";
import { addFiles, listSources, onSources, setSources } from "./references.js";
import { addressOf, listPieces, makePreview, showPiece, showShort } from "./result.js";

// A gallery's entry keeps what a job brought up to this many characters.
const MOST_KEPT = 12_000_000;

let capabilities = null;
let place = null; // where requests of other programs go
let aspect = "";
let running = null;

const has = (field, task = find("task").value) => listRows(capabilities, task).some((row) => row.field === field);
const chosenModel = () => capabilities.models.find((one) => one.id === find("model").value);
// In the order in which capabilities list them: the first that takes what is given is meant.
const servedTasks = () => capabilities.input.find((row) => row.field === "task").schema.enum.filter((task) => capabilities.models.some((one) => one.tasks.includes(task)));

async function start() {
  for (;;) {
    const response = await fetch("ping").catch(() => null);
    if (response?.status === 200) break;
    find("health").textContent = response?.status === 204 ? "the worker is starting" : "the worker is not ready";
    await new Promise((resolve) => setTimeout(resolve, 2000));
  }
  place = await (await fetch("page/place.json")).json();
  for (const name of ["jobs", "openai"]) place[name] = new URL(place[name], new URL(".", location.href)).href.replace(/\/$/, "");
  const began = Date.now();
  const state = await runJob({ op: "capabilities" }, () => {
    find("health").textContent = `waiting for a worker, ${Math.round((Date.now() - began) / 1000)} s`;
  });
  if (state.status !== "COMPLETED") throw new Error(state.error ?? state.status);
  capabilities = state.output;
  find("health").textContent = `ready, version ${capabilities.worker_version}`;
  find("task").replaceChildren(...servedTasks().map((task) => make("option", { value: task, textContent: task })));
  showTask();
}

// Show what the chosen task has: its models, then what the chosen one offers.
function showTask() {
  const task = find("task").value;
  const before = find("model").value;
  const models = capabilities.models.filter((one) => one.tasks.includes(task));
  find("model").replaceChildren(...models.map((one) => make("option", { value: one.id, textContent: one.id })));
  if (models.some((one) => one.id === before)) find("model").value = before;
  find("sources").parentElement.hidden = !servedTasks().some((one) => has("images", one));
  showModel();
}

function showModel() {
  const model = chosenModel();
  const ratios = has("aspect_ratio") && model.sizes ? ["", ...Object.keys(model.sizes)] : [];
  find("aspects").parentElement.hidden = ratios.length < 2;
  if (!ratios.includes(aspect)) aspect = "";
  find("aspects").replaceChildren(...ratios.map((ratio) => {
    const button = makeButton(ratio || "model's own", () => { aspect = ratio; showAspect(); });
    button.setAttribute("role", "radio");
    button.dataset.ratio = ratio;
    return button;
  }));
  showAspect();
  showFields(capabilities, find("task").value, model, find("fields"), find("more"));
  find("more").parentElement.hidden = !find("more").children.length;
  showBrush();
}

function showAspect() {
  for (const button of find("aspects").children) {
    button.setAttribute("aria-checked", String(button.dataset.ratio === aspect));
  }
}

function showBrush() {
  find("mask").hidden = !has("mask");
  if (has("mask")) showMask(listSources()[0]?.url ?? null);
}

// A picture asks for a task that takes one, and a task that needs none is meant where there is none.
function fitTask() {
  if (!capabilities) return;
  const task = listSources().length > 0 && !has("images") ? servedTasks().find((one) => has("images", one)) : null;
  const back = listSources().length === 0 && has("images") ? servedTasks().find((one) => !has("images", one)) : null;
  if (task ?? back) {
    find("task").value = task ?? back;
    showTask();
  }
  showBrush();
}

function readInput() {
  const given = { prompt: find("prompt").value, task: find("task").value, model: find("model").value };
  if (listSources().length && has("images")) given.images = listSources().map((one) => one.url);
  if (has("mask") && readMask()) given.mask = readMask();
  if (aspect) given.aspect_ratio = aspect;
  return { ...given, ...readFields(capabilities, given.task, find("wish")) };
}

async function restore(settings) {
  const { prompt, task, model, images, mask, aspect_ratio, ...fields } = settings;
  if (prompt !== undefined) find("prompt").value = prompt;
  if (images) setSources(images.map((url, index) => ({ url, name: `picture ${index + 1}` })));
  if (servedTasks().includes(task)) find("task").value = task;
  showTask();
  if (chosenModel() && [...find("model").options].some((one) => one.value === model)) find("model").value = model;
  aspect = aspect_ratio ?? "";
  for (const input of document.querySelectorAll("#fields [name], #more [name]")) input.value = "";
  showModel();
  for (const [name, value] of Object.entries(fields)) setField(find("wish"), name === "steps" ? "num_inference_steps" : name, value);
  for (const [name, value] of Object.entries(fields.outpaint ?? {})) setField(find("wish"), `outpaint.${name}`, value);
  // a file says more of each LoRA than a job may
  if (typeof fields.loras === "string" && fields.loras.startsWith("[")) setField(find("wish"), "loras", JSON.parse(fields.loras).map(({ name, scale }) => ({ path: name, scale })));
  if (mask) await setMask(mask);
  if (fields.seed !== undefined) find("lock").checked = true;
  find("state").textContent = "settings restored";
}

// The aspect or the sides that give a file's size again, where its task chooses them.
async function measure(file, settings) {
  if (settings.task && settings.task !== "text-to-image") return {};
  const { width, height } = await createImageBitmap(file).catch(() => ({}));
  const { sizes = {} } = capabilities.models.find((one) => one.id === settings.model) ?? chosenModel();
  const ratio = Object.keys(sizes).find((one) => sizes[one][0] === width && sizes[one][1] === height);
  return ratio ? { aspect_ratio: ratio } : width ? { width, height } : {};
}

const showProblem = (message) => { find("problem").textContent = message; };

async function submit(event) {
  event?.preventDefault();
  if (running || !capabilities) return;
  running = new AbortController();
  const began = Date.now();
  find("go").disabled = true;
  find("stop").disabled = false;
  find("progress").hidden = false;
  find("progress").removeAttribute("value");
  find("state").textContent = "sent";
  showProblem("");
  try {
    const input = readInput();
    const state = await runJob({ ...input, response_format: "data_url" }, (one) => showProgress(one, began), running.signal);
    await showResult(state, input);
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

function showProgress(state, began) {
  const spent = `${Math.round((Date.now() - began) / 1000)} s`;
  if (state.status === "IN_QUEUE") find("state").textContent = state.position === undefined ? `waiting, ${spent}` : `waiting, ${state.position} before, ${spent}`;
  else if (state.output?.steps) {
    find("progress").value = state.output.percent;
    find("state").textContent = `step ${state.output.step} of ${state.output.steps}, ${spent}`;
  }
}

const describeChange = ([name, [asked, done]]) => `${name} is ${JSON.stringify(done)}, not ${JSON.stringify(asked)}`;

async function showResult(state, input) {
  const output = state.output ?? {};
  find("reply").textContent = showShort(state);
  if (state.status !== "COMPLETED") {
    find("state").textContent = state.status.toLowerCase();
    throw new Error(state.error ?? state.status);
  }
  const changes = Object.entries(output.adjusted ?? {}).map(describeChange);
  find("state").textContent = [`done in ${(output.timings_ms.total / 1000).toFixed(1)} s`, ...output.warnings, ...changes].join("; ");
  const pieces = listPieces(output);
  find("result").replaceChildren(...pieces.map((piece) => showPiece(piece, input, servedTasks().some((task) => has("images", task)))));
  setField(find("wish"), "seed", find("lock").checked ? String(output.seed) : "");
  const { images, mask, ...settings } = input;
  const isSmall = JSON.stringify([images, mask]).length <= MOST_KEPT;
  for (const piece of pieces) {
    const brought = isSmall ? { ...(images ? { images } : {}), ...(mask ? { mask } : {}) } : {};
    const entry = { ...settings, ...brought, seed: String(piece.seed) };
    delete entry.num_images; // the seed is that of this piece alone
    await addEntry({ picture: addressOf(piece), mime: piece.mime_type, settings: entry, at: Date.now() });
  }
  await showGallery();
}

const shorten = (input) => JSON.parse(JSON.stringify(input, (_, value) => (typeof value === "string" && value.startsWith("data:") ? `${value.slice(0, value.indexOf(",") + 1)}...` : value)));

function showLanguages() {
  find("languages").replaceChildren(...Object.entries(LANGUAGES).map(([name, write]) => makeButton(`Copy as ${name}`, async () => {
    const text = write(place, shorten(readInput()));
    find("code").textContent = text;
    await navigator.clipboard?.writeText(text).catch(() => {});
  })));
}

async function showGallery() {
  const entries = await listEntries();
  find("gallery").replaceChildren(...entries.map((entry) => {
    const { prompt } = entry.settings;
    const again = makeButton("restore", () => restore(entry.settings), prompt);
    const remove = makeButton("delete", async () => { await dropEntry(entry.id); await showGallery(); }, prompt);
    return make("li", {}, makePreview(entry.picture, entry.mime, prompt), again, remove);
  }));
}

async function drop(event) {
  event.preventDefault();
  document.body.classList.remove("dropping");
  const files = [...(event.dataTransfer?.files ?? [])];
  const isReference = event.target.closest?.("#references");
  const settings = files.length === 1 && !isReference ? readParameters(new Uint8Array(await files[0].arrayBuffer())) : null;
  if (settings && capabilities) await restore({ ...settings, ...(await measure(files[0], settings)) });
  else await addFiles(files);
}

find("wish").addEventListener("submit", submit);
find("stop").addEventListener("click", () => running?.abort());
find("task").addEventListener("change", showTask);
find("model").addEventListener("change", showModel);
onSources(fitTask);
document.addEventListener("dragover", (event) => { event.preventDefault(); document.body.classList.add("dropping"); });
document.addEventListener("dragleave", () => document.body.classList.remove("dropping"));
document.addEventListener("drop", drop);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape") running?.abort();
  if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) find("wish").requestSubmit();
});
await start().then(showLanguages, (error) => showProblem(error.message));
await showGallery();
