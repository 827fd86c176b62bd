// The same request for other programs.
const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const openai = ({ prompt, images, aspect_ratio, ...rest }) => ({ prompt, ...rest, ...(aspect_ratio ? { aspect_ratio } : {}), ...(images ? { images } : {}) });

export const LANGUAGES = {
  curl: (base, input) => `curl -s ${base}/runsync -H 'Content-Type: application/json' \\\n  -d ${quote(JSON.stringify({ input }))}`,
  Python: (base, input) => `import json, urllib.request\n\nbody = json.loads(${JSON.stringify(JSON.stringify({ input }))})\nrequest = urllib.request.Request(\n    "${base}/runsync", json.dumps(body).encode(), {"Content-Type": "application/json"}\n)\nprint(json.load(urllib.request.urlopen(request))["output"]["seed"])`,
  JavaScript: (base, input) => `const response = await fetch("${base}/runsync", {\n  method: "POST",\n  headers: { "Content-Type": "application/json" },\n  body: JSON.stringify(${JSON.stringify({ input }, null, 2)}),\n});\nconst { output } = await response.json();`,
  OpenAI: (base, input) => `from openai import OpenAI\n\nclient = OpenAI(base_url="${base}/v1", api_key="none")\nreply = client.post("/images/${input.images ? "edits" : "generations"}", body=__import__("json").loads(${JSON.stringify(JSON.stringify(openai(input)))}), cast_to=object)`,
};
