// openai-node against the door at the address given: generate, edit, stream, errors.
import assert from "node:assert/strict";
import OpenAI, { toFile } from "openai";

const [url, key] = process.argv.slice(2);
const client = new OpenAI({ baseURL: `${url}/v1`, apiKey: key });
const isPng = (text) => Buffer.from(text, "base64").subarray(1, 4).toString() === "PNG";

assert.equal((await client.models.list()).data[0].id, "standin");

const made = await client.images.generate({ model: "gpt-image-1", prompt: "a fox", n: 2, size: "64x64" });
assert.equal(made.data.length, 2);
assert.ok(made.data.every((one) => isPng(one.b64_json)));

const picture = Buffer.from(made.data[0].b64_json, "base64");
const files = [await toFile(picture, "a.png"), await toFile(picture, "b.png")];
const edited = await client.images.edit({ image: files, prompt: "a hare" });
assert.ok(isPng(edited.data[0].b64_json));
assert.equal(edited.worker.task, "edit");

const kinds = [];
for await (const event of await client.images.generate({ prompt: "a fox", stream: true })) kinds.push(event.type);
assert.deepEqual(kinds, ["image_generation.completed"]);

await assert.rejects(client.images.generate({ prompt: "x", size: "3x3" }), (error) => {
  assert.deepEqual([error.status, error.code, error.param], [400, "invalid_input", "size"]);
  return true;
});
