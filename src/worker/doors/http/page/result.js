// What came back: pictures with a slider between before and after, sounds with a player.
import { make, makeButton } from "./dom.js";
import { setSources } from "./references.js";

// The pieces in a reply, a list or a single one, under whatever name its task has for them.
export function listPieces(output) {
  const found = Object.values(output).map((value) => [value].flat()).find(([first]) => first?.mime_type) ?? [];
  return found.map((piece) => ({ seed: output.seed, ...piece }));
}
export const addressOf = (piece) => piece.data_url ?? piece.url;

export const showShort = (state) => JSON.stringify(state, (_, value) => (typeof value === "string" && value.length > 2000 ? `${value.slice(0, 40)}... (${value.length} characters)` : value), 2);

// A picture or a player, with no text of its own but for screen readers.
export function makePreview(url, mime, about) {
  if (mime?.startsWith("audio/")) {
    const player = make("audio", { controls: true, src: url });
    player.setAttribute("aria-label", about);
    return player;
  }
  return make("img", { src: url, alt: about });
}

function compare(before, picture) {
  const over = make("img", { src: before, alt: "before", className: "over" });
  const slider = make("input", { type: "range", min: 0, max: 100, value: 0 });
  slider.setAttribute("aria-label", "Before and after");
  const slide = () => { over.style.clipPath = `inset(0 ${100 - slider.value}% 0 0)`; };
  slider.addEventListener("input", slide);
  slide();
  return [make("div", { className: "compare" }, picture, over), slider];
}

export function showPiece(piece, input, canUse) {
  const url = addressOf(piece);
  const shown = makePreview(url, piece.mime_type, `Result for: ${input.prompt}`);
  const save = make("a", { href: url, download: `${input.task}-${piece.seed}.${piece.mime_type.split("/")[1]}`, textContent: "Save" });
  const foot = make("div", { className: "row" }, save, `seed ${piece.seed}`);
  if (piece.mime_type.startsWith("audio/")) return make("figure", {}, shown, foot);
  Object.assign(shown, { width: piece.width, height: piece.height });
  if (canUse) foot.prepend(makeButton("Edit this result", () => setSources([{ url, name: "result" }])));
  const before = input.outpaint ? null : input.images?.at(-1);
  if (!before?.startsWith("data:")) return make("figure", {}, shown, foot);
  return make("figure", {}, ...compare(before, shown), foot);
}
