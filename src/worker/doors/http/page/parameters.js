// The parameters that the worker writes into a PNG: its tEXt and iTXt chunks.
const SIGNATURE = [137, 80, 78, 71, 13, 10, 26, 10];
const KNOWN = new Set(["prompt", "negative_prompt", "seed", "steps", "true_cfg_scale", "lightning", "model"]);

export function readParameters(bytes) {
  if (!SIGNATURE.every((byte, place) => bytes[place] === byte)) return null;
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.length);
  const found = {};
  for (let place = 8; place + 12 <= bytes.length;) {
    const length = view.getUint32(place);
    const kind = String.fromCharCode(...bytes.subarray(place + 4, place + 8));
    const data = bytes.subarray(place + 8, place + 8 + length);
    const end = data.indexOf(0);
    const name = new TextDecoder("latin1").decode(data.subarray(0, Math.max(0, end)));
    if (KNOWN.has(name) && kind === "tEXt") found[name] = new TextDecoder("latin1").decode(data.subarray(end + 1));
    if (KNOWN.has(name) && kind === "iTXt" && data[end + 1] === 0) {
      const language = data.indexOf(0, end + 3);
      const translated = data.indexOf(0, language + 1);
      found[name] = new TextDecoder().decode(data.subarray(translated + 1));
    }
    place += 12 + length;
  }
  return "prompt" in found ? found : null;
}
