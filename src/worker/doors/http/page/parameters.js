// How a picture was made, as its file records it: text chunks of a PNG, EXIF of a JPEG or WEBP.
const KNOWN = new Set(["prompt", "negative_prompt", "seed", "steps", "true_cfg_scale", "lightning", "strength", "loras", "task", "model"]);
const PNG = [137, 80, 78, 71, 13, 10, 26, 10];
const DESCRIPTION = 0x010e;
const EXIF_IFD = 0x8769;
const COMMENT = 0x9286;

const read = (bytes, encoding = "utf-8") => new TextDecoder(encoding).decode(bytes);
const startsWith = (bytes, start) => start.every((byte, place) => bytes[place] === byte);
const wordAt = (bytes, place) => read(bytes.subarray(place, place + 4), "latin1");
const viewOf = (bytes) => new DataView(bytes.buffer, bytes.byteOffset, bytes.length);

// {name: text} of the tEXt and uncompressed iTXt chunks.
function readChunks(bytes) {
  const view = viewOf(bytes);
  const found = {};
  for (let place = 8; place + 12 <= bytes.length;) {
    const length = view.getUint32(place);
    const kind = wordAt(bytes, place + 4);
    const data = bytes.subarray(place + 8, place + 8 + length);
    const end = data.indexOf(0);
    const name = read(data.subarray(0, Math.max(0, end)), "latin1");
    if (kind === "tEXt") found[name] = read(data.subarray(end + 1), "latin1");
    if (kind === "iTXt" && data[end + 1] === 0) {
      const language = data.indexOf(0, end + 3);
      found[name] = read(data.subarray(data.indexOf(0, language + 1) + 1));
    }
    place += 12 + length;
  }
  return found;
}

// The TIFF of a JPEG's first EXIF segment.
function findInJpeg(bytes) {
  const view = viewOf(bytes);
  for (let place = 2; place + 4 <= bytes.length && bytes[place] === 0xff;) {
    const length = view.getUint16(place + 2);
    if (bytes[place + 1] === 0xe1 && wordAt(bytes, place + 4) === "Exif") return bytes.subarray(place + 10, place + 2 + length);
    if (bytes[place + 1] === 0xda) break;
    place += 2 + length;
  }
  return null;
}

// The TIFF of a WEBP's EXIF chunk.
function findInWebp(bytes) {
  const view = viewOf(bytes);
  for (let place = 12; place + 8 <= bytes.length;) {
    const length = view.getUint32(place + 4, true);
    if (wordAt(bytes, place) === "EXIF") {
      const data = bytes.subarray(place + 8, place + 8 + length);
      return wordAt(data, 0) === "Exif" ? data.subarray(6) : data;
    }
    place += 8 + length + (length % 2);
  }
  return null;
}

// {tag: bytes} of a TIFF's first directory and of its EXIF directory.
function readTiff(bytes) {
  const view = viewOf(bytes);
  const little = wordAt(bytes, 0).startsWith("II");
  const found = { little };
  const places = [view.getUint32(4, little)];
  while (places.length) {
    const place = places.pop();
    const count = view.getUint16(place, little);
    for (let entry = place + 2; entry < place + 2 + 12 * count; entry += 12) {
      const tag = view.getUint16(entry, little);
      const length = view.getUint32(entry + 4, little);
      const value = view.getUint32(entry + 8, little);
      if (tag === EXIF_IFD) places.push(value);
      else if (tag === DESCRIPTION || tag === COMMENT) found[tag] = bytes.subarray(value, value + length);
    }
  }
  return found;
}

function readExif(bytes) {
  const found = readTiff(bytes);
  const described = found[DESCRIPTION] ? read(found[DESCRIPTION]).replace(/\0+$/, "") : "";
  if (described.startsWith("{")) return JSON.parse(described);
  const comment = found[COMMENT];
  if (!comment) return {};
  const text = comment.subarray(8);
  if (wordAt(comment, 0) === "UNIC") return { parameters: read(text, found.little ? "utf-16le" : "utf-16be") };
  return { parameters: read(text) };
}

// The text of other programs: a prompt, a negative prompt, a line of "name: value" pairs.
function parseText(text) {
  const lines = text.trimEnd().split("\n");
  const pairs = Object.fromEntries([...lines.at(-1).matchAll(/\s*([\w ]+): ("(?:\\.|[^"\\])*"|[^,]*)(?:,|$)/g)].map((one) => one.slice(1)));
  if (!("Seed" in pairs) && !("Steps" in pairs)) return { prompt: text };
  lines.pop();
  const negative = lines.findIndex((line) => line.startsWith("Negative prompt: "));
  const found = { prompt: lines.slice(0, negative < 0 ? lines.length : negative).join("\n") };
  if (negative >= 0) found.negative_prompt = lines.slice(negative).join("\n").slice("Negative prompt: ".length);
  for (const [name, key] of Object.entries({ Steps: "steps", Seed: "seed", "CFG scale": "true_cfg_scale", Model: "model" })) {
    if (name in pairs) found[key] = pairs[name].startsWith('"') ? JSON.parse(pairs[name]) : pairs[name];
  }
  return found;
}

function find(bytes) {
  if (startsWith(bytes, PNG)) return readChunks(bytes);
  const isWebp = wordAt(bytes, 0) === "RIFF" && wordAt(bytes, 8) === "WEBP";
  const tiff = isWebp ? findInWebp(bytes) : startsWith(bytes, [0xff, 0xd8]) ? findInJpeg(bytes) : null;
  return tiff ? readExif(tiff) : {};
}

// What makes a picture again, or null if its file does not say it.
export function readParameters(bytes) {
  let found = {};
  try {
    found = find(bytes);
    if (!("prompt" in found) && found.parameters) found = parseText(found.parameters);
  } catch {
    return null; // a file of another program, broken or of a form that nobody expects
  }
  if (!("prompt" in found)) return null;
  return Object.fromEntries(Object.entries(found).filter(([name]) => KNOWN.has(name)));
}
