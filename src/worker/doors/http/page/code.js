// The same request for other programs; a key is never in it, only the variable that has it.
const quote = (text) => `'${text.replaceAll("'", "'\\''")}'`;
const inPython = (value) => `json.loads(${JSON.stringify(JSON.stringify(value))})`;

const start = (openai, variable) => `import json, os
from openai import OpenAI

client = OpenAI(base_url="${openai}", api_key=${variable ? `os.environ["${variable}"]` : '"none"'})`;

export const LANGUAGES = {
  curl: ({ jobs, variable }, input) => `curl -s ${jobs}/runsync -H 'Content-Type: application/json' \\\n${variable ? `  -H "Authorization: Bearer $${variable}" \\\n` : ""}  -d ${quote(JSON.stringify({ input }))}`,
  Python: ({ jobs, variable }, input) => `import json, os, urllib.request

body = ${inPython({ input })}
headers = {"Content-Type": "application/json"}
${variable ? `headers["Authorization"] = "Bearer " + os.environ["${variable}"]\n` : ""}request = urllib.request.Request("${jobs}/runsync", json.dumps(body).encode(), headers)
print(json.load(urllib.request.urlopen(request))["output"]["seed"])`,
  JavaScript: ({ jobs, variable }, input) => `const response = await fetch("${jobs}/runsync", {
  method: "POST",
  headers: { "Content-Type": "application/json"${variable ? `, Authorization: \`Bearer \${process.env.${variable}}\`` : ""} },
  body: JSON.stringify(${JSON.stringify({ input }, null, 2)}),
});
const { output } = await response.json();`,
  OpenAI: (place, input) => (input.task === "speech" ? saySpeech(place, input) : askForPictures(place, input)),
};

function askForPictures({ openai, variable }, { images, ...input }) {
  return `${start(openai, variable)}
body = ${inPython({ ...input, ...(images ? { images } : {}) })}
reply = client.post("/images/${images ? "edits" : "generations"}", body=body, cast_to=object)`;
}

function saySpeech({ openai, variable }, { prompt, voice, model, task, ...input }) {
  return `${start(openai, variable)}
speech = client.audio.speech.create(
    model="${model}", voice="${voice ?? ""}", input=json.loads(${JSON.stringify(JSON.stringify(prompt))}), extra_body=${inPython(input)}
)
speech.write_to_file("speech.wav")`;
}
