// Files of a bundle: fetched in parts, each kept as it arrives, so that what broke off goes on and a second run loads nothing.
import type { FileEntry } from "./protocol";

const PART = 8 << 20;
const TRIES = 5;
const STORE = "edgellm";

/** The bytes of a file, from the browser's own store as far as they are there. */
export async function load(base: URL, file: FileEntry, tell: (text: string) => void): Promise<Uint8Array<ArrayBuffer>> {
  const bytes = new Uint8Array(file.size);
  // without a secure context there is no store, and the file is loaded at every run
  const store = "caches" in self ? await caches.open(STORE) : null;
  let fetched = 0;
  for (let first = 0; first < file.size; first += PART) {
    const last = Math.min(first + PART, file.size) - 1;
    const key = keyOf(base, file, first);
    const kept = await store?.match(key);
    let part = kept === undefined ? null : await kept.arrayBuffer();
    if (part?.byteLength !== last - first + 1) {
      tell(`loading ${file.name}, ${Math.floor((100 * first) / file.size)} %`);
      part = await fetchPart(new URL(`file/${file.sha256}`, base), first, last);
      fetched += part.byteLength;
      // a store that is full costs a second run its time, and this one nothing
      await store?.put(key, new Response(part)).catch(() => undefined);
    }
    bytes.set(new Uint8Array(part), first);
  }
  if (fetched > 0 && "subtle" in crypto && (await hash(bytes)) !== file.sha256) {
    await forget(base, (sha256) => sha256 === file.sha256);
    throw new Error(`${file.name} arrived damaged`);
  }
  return bytes;
}

/** Whether all of a file is in the browser's own store. */
export async function isKept(base: URL, file: FileEntry): Promise<boolean> {
  if (!("caches" in self)) return false;
  const store = await caches.open(STORE);
  for (let first = 0; first < file.size; first += PART) {
    if ((await store.match(keyOf(base, file, first))) === undefined) return false;
  }
  return true;
}

function keyOf(base: URL, file: FileEntry, first: number): URL {
  return new URL(`/kept/${file.sha256}/${first}`, base);
}

/** Drop what is kept of files for which `which` holds. */
export async function forget(base: URL, which: (sha256: string) => boolean): Promise<void> {
  if (!("caches" in self)) return;
  const store = await caches.open(STORE);
  for (const request of await store.keys()) {
    const [, kept, sha256] = new URL(request.url, base).pathname.split("/");
    if (kept === "kept" && sha256 !== undefined && which(sha256)) await store.delete(request);
  }
}

async function fetchPart(url: URL, first: number, last: number): Promise<ArrayBuffer> {
  for (let left = TRIES; ; left--) {
    try {
      // kept by ourselves, so not by the browser a second time
      const answer = await fetch(url, { headers: { Range: `bytes=${first}-${last}` }, cache: "no-store" });
      if (answer.status !== 206) throw new Error(`the file is not served: status ${answer.status}`);
      const part = await answer.arrayBuffer();
      if (part.byteLength === last - first + 1) return part;
      throw new Error("a part of the file arrived too short");
    } catch (error) {
      if (left <= 1) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000));
    }
  }
}

async function hash(bytes: Uint8Array<ArrayBuffer>): Promise<string> {
  const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
  return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
}
