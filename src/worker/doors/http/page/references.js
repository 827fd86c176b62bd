// The pictures that a job brings, in order: by drop, paste, file or address.
import { find, make, makeButton, readFile } from "./dom.js";

let sources = []; // {url, name}: a data URL or an address
let onChange = () => {};

export const listSources = () => sources;
export const onSources = (work) => { onChange = work; };

export function setSources(given) {
  sources = given;
  show();
}

function show() {
  find("sources").replaceChildren(...sources.map((one, place) => {
    const earlier = makeButton("earlier", () => { sources.splice(place - 1, 0, ...sources.splice(place, 1)); show(); }, one.name);
    earlier.disabled = place === 0;
    const remove = makeButton("remove", () => { sources.splice(place, 1); show(); }, one.name);
    const shown = one.url.startsWith("data:") ? make("img", { src: one.url, alt: one.name }) : make("span", { textContent: one.name });
    return make("li", {}, shown, earlier, remove);
  }));
  onChange();
}

export async function addFiles(files) {
  for (const file of files) {
    if (file.type.startsWith("image/")) sources.push({ url: await readFile(file), name: file.name || "pasted picture" });
  }
  show();
}

find("file").addEventListener("change", async (event) => { await addFiles(event.target.files); event.target.value = ""; });
find("add").addEventListener("click", () => {
  const url = find("address").value.trim();
  if (url) sources.push({ url, name: url });
  find("address").value = "";
  show();
});
document.addEventListener("paste", (event) => { if (event.clipboardData.files.length) addFiles(event.clipboardData.files); });
