// What survives a reload: the conversation and the gallery, in this browser only.

const STORES = { chats: {}, pictures: { keyPath: "id", autoIncrement: true } };

let opened = null;

function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open("uni-x", 1);
    request.onupgradeneeded = () => {
      for (const [name, options] of Object.entries(STORES)) request.result.createObjectStore(name, options);
    };
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

async function run(store, mode, work) {
  try {
    const request = work((await open()).transaction(store, mode).objectStore(store));
    return await new Promise((resolve, reject) => {
      request.onsuccess = () => resolve(request.result);
      request.onerror = () => reject(request.error);
    });
  } catch (error) {
    console.warn("nothing is kept in this browser:", error); // a private window, or no room
    return undefined;
  }
}

export const keep = (store, value, key) => run(store, "readwrite", (place) => place.put(value, key));
export const kept = (store, key) => run(store, "readonly", (place) => place.get(key));
export const allKept = async (store) => (await run(store, "readonly", (place) => place.getAll())) ?? [];
export const forget = (store, key) => run(store, "readwrite", (place) => place.delete(key));
