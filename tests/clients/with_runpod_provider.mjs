// RunPod's provider for the AI SDK, unchanged, against the door at the address given.
import assert from "node:assert/strict";
import { createRunpod } from "@runpod/ai-sdk-provider";
import { generateImage } from "ai";

const [url, key] = process.argv.slice(2);
const provider = createRunpod({ apiKey: key, baseURL: `${url}/v2/any` });
const model = provider.imageModel("qwen/qwen-image");
const { image } = await generateImage({ model, prompt: "a fox", size: "1024x1024" });
assert.equal(image.mediaType, "image/png");
