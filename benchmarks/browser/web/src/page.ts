// The page: it says what this device is, takes one job after the other, and lets a worker do each.
import { describe } from "./device";
import { forget } from "./files";
import type { Hello, Job, Said, Word } from "./protocol";

const BEAT = 2000; // ms between two signs of life
const TRIES = 10;
const base = new URL(".", location.href);

function element<T extends HTMLElement>(id: string): T {
  return document.getElementById(id) as T;
}

const show = (text: string): void => void (element("status").textContent = text);

const textOf = (error: unknown): string => (error instanceof Error ? error.message : String(error));

/** Post a message; a network that stumbles is tried again, so it may arrive twice; a refusal is not. */
async function post<T>(name: string, value: object, tries = TRIES): Promise<T> {
  for (let left = tries; ; left--) {
    let answer: Response;
    let said: T & { error?: string };
    try {
      answer = await fetch(new URL(name, base), { method: "POST", body: JSON.stringify(value), cache: "no-store" });
      said = (await answer.json()) as T & { error?: string };
    } catch (error) {
      if (left <= 1) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1000));
      continue;
    }
    if (!answer.ok) throw new Error(said?.error ?? `status ${answer.status}`);
    return said;
  }
}

// What a system does with a page that is not in front, or with its screen off, is nothing that anybody wants to know the speed of.
let hidden = document.hidden;
document.addEventListener("visibilitychange", () => (hidden ||= document.hidden));

function wasHidden(): boolean {
  const was = hidden;
  hidden = document.hidden;
  return was;
}

/** Do a job in a worker of its own, and send what it says in the order in which it says it. */
function work(job: Job, send: (said: Said) => Promise<unknown>): Promise<void> {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL("worker.js", base));
    let sent: Promise<unknown> = Promise.resolve();
    const end = (): void => {
      worker.terminate();
      document.removeEventListener("visibilitychange", warn);
      sent.then(() => resolve(), reject);
    };
    const put = (said: Said): void => {
      sent = sent.then(() => send(said));
      sent.catch(end); // nobody hears it any more
    };
    const tell = (word: Word): void => {
      put({ ...word, job: job.number, hidden: wasHidden() });
      if (word.kind === "progress") show(`${job.lane}: ${word.text}`);
      if (word.kind === "failed") show(`${job.lane}: ${word.text}`);
      if (word.kind === "finished" || word.kind === "failed") end();
    };
    const warn = (): void => {
      const text = "the page is not in front: what it measures does not count";
      if (document.hidden) put({ kind: "progress", text, job: job.number, hidden: true });
    };
    document.addEventListener("visibilitychange", warn);
    warn();
    worker.onmessage = (event: MessageEvent<Word>) => tell(event.data);
    worker.onerror = (event) => {
      event.preventDefault();
      tell({ kind: "failed", text: event.message || "its worker could not be started, or ended" });
    };
    worker.postMessage({ base: base.href, job });
  });
}

async function measure(hello: Hello): Promise<void> {
  const { session } = await post<{ session: string }>("hello", hello);
  let last = Date.now();
  const beat = setInterval(() => {
    hidden ||= Date.now() - last > 4 * BEAT; // a device that slept has told no page
    last = Date.now();
    void post("beat", { session }, 1).catch(() => undefined);
  }, BEAT);
  const bye = (): void => void navigator.sendBeacon(new URL("bye", base), JSON.stringify({ session }));
  addEventListener("pagehide", bye);
  let number = 0;
  const send = (said: Said): Promise<unknown> => post("say", { session, said, number: ++number });
  try {
    await keepAwake();
    const wanted = new Set<string>();
    for (let after = 0; ; ) {
      show("waiting");
      const next = await post<{ done?: boolean; job?: Job | null }>("next", { session, after });
      if (next.done) break;
      if (!next.job) continue;
      for (const file of [...next.job.files, next.job.wasm]) wanted.add(file.sha256);
      await work(next.job, send);
      after = next.job.number;
    }
    await forget(base, (sha256) => !wanted.has(sha256));
    show("Done. The figures are on the machine that asked; this page can be closed.");
  } catch (error) {
    await post("bye", { session, reason: textOf(error) }, 1).catch(() => undefined);
    throw error;
  } finally {
    clearInterval(beat);
    removeEventListener("pagehide", bye);
  }
}

/** A screen that goes dark takes the processor with it. */
async function keepAwake(): Promise<void> {
  const ask = async (): Promise<void> => {
    if ("wakeLock" in navigator && document.visibilityState === "visible") {
      await navigator.wakeLock.request("screen").catch(() => undefined);
    }
  };
  document.addEventListener("visibilitychange", () => void ask());
  await ask();
}

async function begin(): Promise<void> {
  const hello = await describe();
  const name = element<HTMLInputElement>("name");
  const button = element<HTMLButtonElement>("begin");
  name.value ||= hello.model;
  const gpu = hello.gpu === null ? "no WebGPU" : "WebGPU";
  element("facts").textContent = `${hello.cores} processors, ${hello.isolated ? "threads" : "one thread"}, ${gpu}`;
  button.disabled = false;
  element<HTMLFormElement>("form").addEventListener("submit", (event) => {
    event.preventDefault();
    button.disabled = name.disabled = true;
    measure({ ...hello, name: name.value }).catch((error: unknown) => {
      show(`Stopped: ${textOf(error)}`);
    });
  });
}

void begin();
