// Vercel's AI SDK, by @ai-sdk/openai-compatible, against the door at the address given.
import assert from "node:assert/strict";
import { createOpenAICompatible } from "@ai-sdk/openai-compatible";
import { generateImage } from "ai";

const [url, key] = process.argv.slice(2);
const provider = createOpenAICompatible({ name: "door", baseURL: `${url}/v1`, apiKey: key });
const model = provider.imageModel("standin");

const { images } = await generateImage({ model, prompt: "a fox", size: "64x64", n: 2 });
assert.equal(images.length, 2);
assert.equal(images[0].mediaType, "image/png");

const edited = await generateImage({ model, prompt: { text: "a hare", images: [images[0].uint8Array] } });
assert.equal(edited.images[0].mediaType, "image/png");
