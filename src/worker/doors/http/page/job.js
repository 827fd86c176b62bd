// One job: posted, followed by its events until its end; closing the connection cancels it.
const KEY = "worker-key";

const headers = () => {
  const key = sessionStorage.getItem(KEY);
  return { "Content-Type": "application/json", ...(key ? { Authorization: `Bearer ${key}` } : {}) };
};

function askForKey() {
  const dialog = document.getElementById("ask");
  const field = document.getElementById("key");
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => {
      sessionStorage.setItem(KEY, field.value);
      field.value = "";
      resolve();
    }, { once: true });
  });
}

async function call(path, options) {
  for (;;) {
    const response = await fetch(path, { ...options, headers: { ...headers(), ...options.headers } });
    if (response.status !== 401) return response;
    await askForKey();
  }
}

async function* readEvents(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let left = "";
  for (;;) {
    const { value, done } = await reader.read();
    if (done) return;
    left += value;
    let end;
    while ((end = left.indexOf("\n\n")) >= 0) {
      const lines = left.slice(0, end).split("\n");
      left = left.slice(end + 2);
      const data = lines.find((line) => line.startsWith("data: "));
      if (data) yield { name: lines.find((line) => line.startsWith("event: "))?.slice(7), data: JSON.parse(data.slice(6)) };
    }
  }
}

// Return the job's last state; `onProgress` gets those before.
export async function runJob(input, onProgress, signal) {
  const response = await call("runsync", { method: "POST", signal, body: JSON.stringify({ input }), headers: { Accept: "text/event-stream" } });
  if (!response.ok) {
    const { error } = await response.json();
    const after = response.headers.get("Retry-After");
    throw new Error(error.message + (after ? ` (again in ${after} s)` : ""));
  }
  for await (const { name, data } of readEvents(response)) {
    if (name === "result") return data;
    onProgress(data);
  }
  throw new Error("the connection ended before the job");
}
