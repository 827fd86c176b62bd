// What was made in this browser, with what makes it again: IndexedDB, the newest 60.
const MOST = 60;

const open = () => new Promise((resolve, reject) => {
  const request = indexedDB.open("worker", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("made", { keyPath: "id", autoIncrement: true });
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

const run = async (mode, work) => {
  const database = await open();
  return new Promise((resolve, reject) => {
    const request = work(database.transaction("made", mode).objectStore("made"));
    request.onsuccess = () => { resolve(request.result); database.close(); };
    request.onerror = () => { reject(request.error); database.close(); };
  });
};

export const listEntries = async () => (await run("readonly", (store) => store.getAll())).reverse();
export const dropEntry = (id) => run("readwrite", (store) => store.delete(id));

export async function addEntry(entry) {
  await run("readwrite", (store) => store.add(entry));
  for (const old of (await listEntries()).slice(MOST)) await dropEntry(old.id);
}
