// A mask that is painted over a picture: white is repainted. What was done is a list, so undo is its end.
import { find, readFile } from "./dom.js";

const canvas = find("brush");
const context = canvas.getContext("2d");
let base = null; // the picture below, by its data URL
let actions = []; // {stroke: [[x, y], ...], size} | {invert: true} | {image}
let stroke = null;

function drawStroke({ stroke: points, size }) {
  context.strokeStyle = "white";
  context.lineWidth = size;
  context.lineCap = context.lineJoin = "round";
  context.beginPath();
  context.moveTo(...points[0]);
  for (const point of points) context.lineTo(...point);
  context.stroke();
}

function show() {
  context.globalCompositeOperation = "source-over";
  context.fillStyle = "black";
  context.fillRect(0, 0, canvas.width, canvas.height);
  for (const action of stroke ? [...actions, stroke] : actions) {
    if (action.stroke) drawStroke(action);
    else if (action.image) context.drawImage(action.image, 0, 0, canvas.width, canvas.height);
    else {
      context.globalCompositeOperation = "difference";
      context.fillStyle = "white";
      context.fillRect(0, 0, canvas.width, canvas.height);
      context.globalCompositeOperation = "source-over";
    }
  }
  find("undo").disabled = actions.length === 0;
}

const change = (action) => { actions.push(action); show(); };

// A pointer's place in pixels of the picture.
function place(event) {
  const box = canvas.getBoundingClientRect();
  return [((event.clientX - box.left) * canvas.width) / box.width, ((event.clientY - box.top) * canvas.height) / box.height];
}

const measureBrush = () => (Number(find("brush-size").value) / 100) * Math.min(canvas.width, canvas.height);

// Paint over this picture, a data URL; another one begins anew. An address cannot be shown here.
export async function showMask(url) {
  const isShown = Boolean(url?.startsWith("data:"));
  find("paint").hidden = !isShown;
  if (url === base) return;
  base = url;
  actions = [];
  if (!isShown) return;
  const picture = find("painted");
  picture.src = url;
  await picture.decode().catch(() => {});
  if (url !== base) return;
  canvas.width = picture.naturalWidth || 1;
  canvas.height = picture.naturalHeight || 1;
  show();
}

// The mask as a PNG, null where nothing was painted.
export const readMask = () => (actions.length ? canvas.toDataURL("image/png") : null);

export async function setMask(url) {
  const image = new Image();
  image.src = url;
  await image.decode();
  change({ image });
}

canvas.addEventListener("pointerdown", (event) => {
  event.preventDefault();
  canvas.setPointerCapture(event.pointerId);
  stroke = { stroke: [place(event)], size: measureBrush() };
  show();
});
canvas.addEventListener("pointermove", (event) => {
  if (!stroke) return;
  stroke.stroke.push(place(event));
  show();
});
for (const name of ["pointerup", "pointercancel"]) {
  canvas.addEventListener(name, () => {
    if (!stroke) return;
    const done = stroke;
    stroke = null;
    change(done);
  });
}
find("undo").addEventListener("click", () => { actions.pop(); show(); });
find("invert").addEventListener("click", () => change({ invert: true }));
find("mask-file").addEventListener("change", async (event) => {
  const [file] = event.target.files;
  if (file) await setMask(await readFile(file));
  event.target.value = "";
});
