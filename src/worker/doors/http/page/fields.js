// The fields of a task, each made from its JSON Schema: what a new task has shows up by itself.
import { make } from "./dom.js";

// Made by other parts of the page, or of no use in it.
const ELSEWHERE = new Set(["prompt", "images", "mask", "model", "task", "size", "aspect_ratio", "op", "upload_url", "response_format", "batch", "stream"]);
// What people set most, of the fields that every task of a model has.
const FIRST = new Set(["num_inference_steps", "preset", "seed", "num_images", "voice"]);

// The fields of a task, as capabilities list them.
export const listRows = (capabilities, task) => capabilities.input.filter((row) => !row.tasks || row.tasks.includes(task));

const chooseWords = (row, model) => row.schema.enum ?? (row.schema.type === "boolean" ? ["true", "false"] : model[`${row.field}s`]);

function makeInput(row, model, schema = row.schema) {
  const words = chooseWords({ ...row, schema }, model);
  if (words?.length && words.every((word) => typeof word === "string")) {
    return make("select", {}, make("option", { value: "", textContent: "default" }), ...words.map((word) => make("option", { value: word, textContent: word })));
  }
  const isNumber = schema.type === "number" || (schema.type === "integer" && row.field !== "seed");
  const input = make("input", { type: isNumber ? "number" : "text", placeholder: model[row.field] ?? row.default ?? "" });
  if (isNumber && "minimum" in schema) input.min = schema.minimum;
  if (isNumber && "maximum" in schema) input.max = schema.maximum;
  if (schema.type === "number") input.step = "any";
  return input;
}

const labelled = (text, input, title) => make("label", { title }, text.replaceAll("_", " "), input);

function makeField(row, model) {
  const inner = row.schema.type === "object" ? Object.entries(row.schema.properties ?? {}) : [];
  if (inner.length) {
    const parts = inner.map(([name, schema]) => labelled(name, Object.assign(makeInput({ field: name }, model, schema), { name: `${row.field}.${name}` }), row.accepts));
    return make("fieldset", { className: "grid wide" }, make("legend", { textContent: row.field.replaceAll("_", " ") }), ...parts);
  }
  return labelled(row.field, Object.assign(makeInput(row, model), { name: row.field }), row.accepts);
}

// Show the fields of a task in two places: first what people set most, and what not every task of
// the model has. What was typed stays where the field does.
export function showFields(capabilities, task, model, first, more) {
  const typed = new Map([...first.querySelectorAll("[name]"), ...more.querySelectorAll("[name]")].map((input) => [input.name, input.value]));
  const isOpen = ({ schema }) => !("minimum" in schema) || schema.minimum !== schema.maximum;
  const rows = listRows(capabilities, task).filter((row) => !ELSEWHERE.has(row.field) && isOpen(row));
  const isFirst = ({ field, tasks }) => FIRST.has(field) || (tasks && !model.tasks.every((one) => tasks.includes(one)));
  first.replaceChildren(...rows.filter(isFirst).map((row) => makeField(row, model)));
  more.replaceChildren(...rows.filter((row) => !isFirst(row)).map((row) => makeField(row, model)));
  for (const [name, value] of typed) setField(first.parentElement, name, value);
}

export function setField(form, name, value) {
  const input = form.querySelector(`[name="${CSS.escape(name)}"]`);
  if (input) input.value = typeof value === "object" && value !== null ? JSON.stringify(value) : String(value);
}

function readValue(schema, text) {
  if (schema.type === "boolean") return text === "true";
  if (schema.type === "array" && !/^\s*[[{]/.test(text)) return text.split(",").map((one) => one.trim()).filter(Boolean);
  if (schema.type === "array" || schema.type === "object") return JSON.parse(text);
  return text; // numbers too: a seed has more digits than a number of JavaScript
}

// What is filled in, as a job's input has it.
export function readFields(capabilities, task, form) {
  const rows = listRows(capabilities, task);
  const given = {};
  for (const input of form.querySelectorAll("#fields [name], #more [name]")) {
    if (input.value === "") continue;
    const [name, part] = input.name.split(".");
    const { schema } = rows.find((row) => row.field === name);
    if (part) given[name] = { ...given[name], [part]: Number(input.value) };
    else given[name] = readValue(schema, input.value);
  }
  return given;
}
