// src/device.ts
var RELAXED_SIMD = Uint8Array.of(
  ...[0, 97, 115, 109, 1, 0, 0, 0, 1, 5, 1, 96, 0, 1, 123, 3, 2, 1, 0],
  ...[10, 15, 1, 13, 0, 65, 0, 253, 15, 65, 0, 253, 15, 253, 128, 2, 11]
);
async function describe() {
  const told = navigator;
  const names = ["architecture", "bitness", "model", "platformVersion"];
  const hints = await told.userAgentData?.getHighEntropyValues(names).catch(() => ({}));
  const hint = (name) => typeof hints?.[name] === "string" ? hints[name] : "";
  return {
    page: Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) => part.toString(16)).join("-"),
    name: "",
    agent: navigator.userAgent,
    platform: told.userAgentData?.platform ?? "",
    version: hint("platformVersion"),
    architecture: hint("architecture"),
    bits: hint("bitness"),
    model: hint("model"),
    cores: navigator.hardwareConcurrency || 1,
    memory: told.deviceMemory ?? null,
    isolated: self.crossOriginIsolated,
    relaxed: WebAssembly.validate(RELAXED_SIMD),
    touch: navigator.maxTouchPoints,
    gpu: await gpu()
  };
}
async function gpu() {
  if (!("gpu" in navigator)) return null;
  try {
    const adapter = await navigator.gpu.requestAdapter({ powerPreference: "high-performance" });
    if (adapter === null) return null;
    const { vendor, architecture, device, description, isFallbackAdapter } = adapter.info;
    return { vendor, architecture, device, description, fallback: isFallbackAdapter ?? false };
  } catch {
    return null;
  }
}

// src/files.ts
var PART = 8 << 20;
var STORE = "edgellm";
async function forget(base2, which) {
  if (!("caches" in self)) return;
  const store = await caches.open(STORE);
  for (const request of await store.keys()) {
    const [, kept, sha256] = new URL(request.url, base2).pathname.split("/");
    if (kept === "kept" && sha256 !== void 0 && which(sha256)) await store.delete(request);
  }
}

// src/page.ts
var BEAT = 2e3;
var TRIES = 10;
var base = new URL(".", location.href);
function element(id) {
  return document.getElementById(id);
}
var show = (text) => void (element("status").textContent = text);
var textOf = (error) => error instanceof Error ? error.message : String(error);
async function post(name, value, tries = TRIES) {
  for (let left = tries; ; left--) {
    let answer;
    let said;
    try {
      answer = await fetch(new URL(name, base), { method: "POST", body: JSON.stringify(value), cache: "no-store" });
      said = await answer.json();
    } catch (error) {
      if (left <= 1) throw error;
      await new Promise((resolve) => setTimeout(resolve, 1e3));
      continue;
    }
    if (!answer.ok) throw new Error(said?.error ?? `status ${answer.status}`);
    return said;
  }
}
var hidden = document.hidden;
document.addEventListener("visibilitychange", () => hidden ||= document.hidden);
function wasHidden() {
  const was = hidden;
  hidden = document.hidden;
  return was;
}
function work(job, send) {
  return new Promise((resolve, reject) => {
    const worker = new Worker(new URL("worker.js", base));
    let sent = Promise.resolve();
    const end = () => {
      worker.terminate();
      document.removeEventListener("visibilitychange", warn);
      sent.then(() => resolve(), reject);
    };
    const put = (said) => {
      sent = sent.then(() => send(said));
      sent.catch(end);
    };
    const tell = (word) => {
      put({ ...word, job: job.number, hidden: wasHidden() });
      if (word.kind === "progress") show(`${job.lane}: ${word.text}`);
      if (word.kind === "failed") show(`${job.lane}: ${word.text}`);
      if (word.kind === "finished" || word.kind === "failed") end();
    };
    const warn = () => {
      const text = "the page is not in front: what it measures does not count";
      if (document.hidden) put({ kind: "progress", text, job: job.number, hidden: true });
    };
    document.addEventListener("visibilitychange", warn);
    warn();
    worker.onmessage = (event) => tell(event.data);
    worker.onerror = (event) => {
      event.preventDefault();
      tell({ kind: "failed", text: event.message || "its worker could not be started, or ended" });
    };
    worker.postMessage({ base: base.href, job });
  });
}
async function measure(hello) {
  const { session } = await post("hello", hello);
  let last = Date.now();
  const beat = setInterval(() => {
    hidden ||= Date.now() - last > 4 * BEAT;
    last = Date.now();
    void post("beat", { session }, 1).catch(() => void 0);
  }, BEAT);
  const bye = () => void navigator.sendBeacon(new URL("bye", base), JSON.stringify({ session }));
  addEventListener("pagehide", bye);
  let number = 0;
  const send = (said) => post("say", { session, said, number: ++number });
  try {
    await keepAwake();
    const wanted = /* @__PURE__ */ new Set();
    for (let after = 0; ; ) {
      show("waiting");
      const next = await post("next", { session, after });
      if (next.done) break;
      if (!next.job) continue;
      for (const file of [...next.job.files, next.job.wasm]) wanted.add(file.sha256);
      await work(next.job, send);
      after = next.job.number;
    }
    await forget(base, (sha256) => !wanted.has(sha256));
    show("Done. The figures are on the machine that asked; this page can be closed.");
  } catch (error) {
    await post("bye", { session, reason: textOf(error) }, 1).catch(() => void 0);
    throw error;
  } finally {
    clearInterval(beat);
    removeEventListener("pagehide", bye);
  }
}
async function keepAwake() {
  const ask = async () => {
    if ("wakeLock" in navigator && document.visibilityState === "visible") {
      await navigator.wakeLock.request("screen").catch(() => void 0);
    }
  };
  document.addEventListener("visibilitychange", () => void ask());
  await ask();
}
async function begin() {
  const hello = await describe();
  const name = element("name");
  const button = element("begin");
  name.value ||= hello.model;
  const gpu2 = hello.gpu === null ? "no WebGPU" : "WebGPU";
  element("facts").textContent = `${hello.cores} processors, ${hello.isolated ? "threads" : "one thread"}, ${gpu2}`;
  button.disabled = false;
  element("form").addEventListener("submit", (event) => {
    event.preventDefault();
    button.disabled = name.disabled = true;
    measure({ ...hello, name: name.value }).catch((error) => {
      show(`Stopped: ${textOf(error)}`);
    });
  });
}
void begin();
