"use strict";
(() => {
  // src/engine.ts
  function likeliest(logits) {
    let best = 0;
    let most = -Infinity;
    for (let index = 0; index < logits.length; index++) {
      const value = logits[index];
      if (Number.isNaN(value)) throw new Error("a logit is not a number");
      if (value > most) {
        most = value;
        best = index;
      }
    }
    if (!Number.isFinite(most)) throw new Error("a logit is not a finite number");
    return best;
  }

  // src/files.ts
  var PART = 8 << 20;
  var TRIES = 5;
  var STORE = "edgellm";
  async function load(base, file, tell) {
    const bytes = new Uint8Array(file.size);
    const store = "caches" in self ? await caches.open(STORE) : null;
    let fetched = 0;
    for (let first = 0; first < file.size; first += PART) {
      const last = Math.min(first + PART, file.size) - 1;
      const key = keyOf(base, file, first);
      const kept = await store?.match(key);
      let part = kept === void 0 ? null : await kept.arrayBuffer();
      if (part?.byteLength !== last - first + 1) {
        tell(`loading ${file.name}, ${Math.floor(100 * first / file.size)} %`);
        part = await fetchPart(new URL(`file/${file.sha256}`, base), first, last);
        fetched += part.byteLength;
        await store?.put(key, new Response(part)).catch(() => void 0);
      }
      bytes.set(new Uint8Array(part), first);
    }
    if (fetched > 0 && "subtle" in crypto && await hash(bytes) !== file.sha256) {
      await forget(base, (sha256) => sha256 === file.sha256);
      throw new Error(`${file.name} arrived damaged`);
    }
    return bytes;
  }
  async function isKept(base, file) {
    if (!("caches" in self)) return false;
    const store = await caches.open(STORE);
    for (let first = 0; first < file.size; first += PART) {
      if (await store.match(keyOf(base, file, first)) === void 0) return false;
    }
    return true;
  }
  function keyOf(base, file, first) {
    return new URL(`/kept/${file.sha256}/${first}`, base);
  }
  async function forget(base, which) {
    if (!("caches" in self)) return;
    const store = await caches.open(STORE);
    for (const request of await store.keys()) {
      const [, kept, sha256] = new URL(request.url, base).pathname.split("/");
      if (kept === "kept" && sha256 !== void 0 && which(sha256)) await store.delete(request);
    }
  }
  async function fetchPart(url, first, last) {
    for (let left = TRIES; ; left--) {
      try {
        const answer = await fetch(url, { headers: { Range: `bytes=${first}-${last}` }, cache: "no-store" });
        if (answer.status !== 206) throw new Error(`the file is not served: status ${answer.status}`);
        const part = await answer.arrayBuffer();
        if (part.byteLength === last - first + 1) return part;
        throw new Error("a part of the file arrived too short");
      } catch (error) {
        if (left <= 1) throw error;
        await new Promise((resolve) => setTimeout(resolve, 1e3));
      }
    }
  }
  async function hash(bytes) {
    const digest = new Uint8Array(await crypto.subtle.digest("SHA-256", bytes));
    return Array.from(digest, (byte) => byte.toString(16).padStart(2, "0")).join("");
  }

  // src/litert.ts
  var HIDDEN = -1e9;
  var MASK = /^mask(?:_(\d+))?$/;
  var TYPES = { float32: 1, int32: 2, uint8: 3, int8: 9, float16: 10 };
  var BYTES = { float32: 4, int32: 4, uint8: 1, int8: 1, float16: 2 };
  async function bring(base, job, wasm) {
    const at = (name) => new URL(`lib/${name}`, base).href;
    const script = at(job.wasm.name.replace(/wasm$/, "js"));
    const silent = () => void 0;
    const module = { locateFile: at, wasmBinary: wasm, print: silent, printErr: silent, mainScriptUrlOrBlob: script };
    Object.assign(self, { Module: module });
    const library = await import(at("litert.js"));
    return library.loadLiteRt(script);
  }
  async function open(liteRt, job, files, size) {
    const bytes = files.get(job.files[0]?.name ?? "");
    if (bytes === void 0 || size === void 0) throw new Error("the graph's file is not there");
    const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
    for (const place of size.places) view.setInt32(place, size.slots, true);
    const wasm = liteRt.liteRtWasm;
    const environment = liteRt.getDefaultEnvironment();
    const at = wasm._malloc(bytes.byteLength);
    wasm.HEAPU8.set(bytes, at);
    const model = wasm.loadModel(environment.liteRtEnvironment, at, bytes.byteLength);
    const options = {
      environment,
      accelerator: "wasm",
      cpuOptions: { numThreads: job.threads },
      gpuOptions: {},
      webNNOptions: {}
    };
    const compiled = await wasm.compileModel(environment.liteRtEnvironment, model, options);
    return new LitertEngine(liteRt, model, compiled, at, job, size.slots);
  }
  var LitertEngine = class {
    constructor(liteRt, model, compiled, file, job, slots) {
      this.liteRt = liteRt;
      this.model = model;
      this.compiled = compiled;
      this.file = file;
      this.job = job;
      this.slots = slots;
      this.wasm = liteRt.liteRtWasm;
      const signatures = Array.from({ length: model.getNumSignatures() }, (_, index) => this.signature(index));
      const step = signatures.find((each) => each.name === "decode");
      this.chunks = signatures.filter((each) => each.name.startsWith("prefill_")).sort((a, b) => a.tokens - b.tokens);
      if (step === void 0 || this.chunks.length === 0) throw new Error("the graph has no steps or no chunks");
      this.step = step;
      this.reset();
    }
    liteRt;
    model;
    compiled;
    file;
    job;
    slots;
    wasm;
    step;
    chunks;
    cache = /* @__PURE__ */ new Map();
    length = 0;
    reset() {
      this.release();
      for (const cache of this.job.caches) {
        const shape = this.shape(cache);
        this.cache.set(cache.past, this.buffer(cache.dtype, shape, new Uint8Array(count(shape) * BYTES[cache.dtype])));
      }
      this.length = 0;
    }
    async append(ids) {
      let left = ids.slice(0, -1);
      while (left.length > 0) {
        const chunk = this.chunkFor(left.length);
        await this.run(chunk, left.slice(0, chunk.tokens));
        left = left.slice(chunk.tokens);
      }
      const logits = await this.run(this.step, ids.slice(-1));
      if (logits === void 0) throw new Error("the graph gives no logits");
      return logits;
    }
    async close() {
      this.release();
      this.compiled.delete();
      this.model.delete();
      this.wasm._free(this.file);
    }
    signature(index) {
      const signature = this.model.getSignature(index);
      const [name, inputs, outputs] = [signature.key(), strings(signature.inputNames()), strings(signature.outputNames())];
      signature.delete();
      const type = this.model.getInputTensorType(index, inputs.indexOf("tokens"));
      const layout = type.layout();
      const tokens = layout.numElements();
      layout.delete();
      type.delete();
      return { index, name, tokens, inputs, outputs };
    }
    /** The signature that takes the next part of `count` tokens: padding more than half of a chunk does not pay. */
    chunkFor(count2) {
      return this.chunks.filter((each) => 2 * count2 > each.tokens).at(-1) ?? this.chunks[0];
    }
    async run(signature, ids) {
      const own = [];
      const inputs = signature.inputs.map((name) => {
        const cached = this.cache.get(name);
        if (cached !== void 0) return cached;
        const made = this.input(name, signature.tokens, ids);
        own.push(made);
        return made;
      });
      const results = await this.compiled.run(signature.index, inputs);
      for (const buffer of own) buffer.delete();
      let logits;
      for (const [index, name] of signature.outputs.entries()) {
        const result = results[index];
        if (result === void 0) throw new Error(`the graph gives no ${name}`);
        if (this.cache.has(name)) {
          this.cache.get(name).delete();
          this.cache.set(name, result);
        } else {
          if (name === "logits") logits = this.read(result);
          result.delete();
        }
      }
      this.length += ids.length;
      return logits?.subarray(logits.length - this.job.vocab);
    }
    input(name, tokens, ids) {
      if (name === "tokens") {
        const padded = new Int32Array(tokens);
        padded.set(ids);
        return this.buffer("int32", [tokens], padded);
      }
      if (name === "input_pos") {
        return this.buffer("int32", [tokens], Int32Array.from({ length: tokens }, (_, index) => this.length + index));
      }
      const mask = MASK.exec(name);
      if (mask === null) throw new Error(`the graph wants ${name}`);
      const window = Number(mask[1] ?? 0);
      const values = new Float32Array(tokens * this.slots).fill(HIDDEN);
      for (let row = 0; row < tokens; row++) {
        const at = this.length + row;
        const first = window ? Math.max(0, at - window + 1) : 0;
        values.fill(0, row * this.slots + first, row * this.slots + Math.min(at + 1, this.slots));
      }
      return this.buffer("float32", [1, 1, tokens, this.slots], values);
    }
    shape(cache) {
      return [1, cache.heads, ...cache.axis === 2 ? [this.slots, cache.width] : [cache.width, this.slots]];
    }
    buffer(dtype, shape, values) {
      const { wasm } = this;
      const sizes = new wasm.VectorInt32();
      for (const size of shape) sizes.push_back(size);
      const layout = wasm.LiteRtLayout.create(sizes);
      const type = wasm.LiteRtRankedTensorType.create({ value: TYPES[dtype] }, layout);
      const environment = this.liteRt.getDefaultEnvironment().liteRtEnvironment;
      const { HOST_MEMORY } = wasm.LiteRtTensorBufferType;
      const made = wasm.LiteRtTensorBuffer.createManaged(environment, HOST_MEMORY, type, values.byteLength);
      for (const each of [sizes, layout, type]) each.delete();
      const at = made.lock(wasm.LiteRtTensorBufferLockMode.WRITE);
      wasm.HEAPU8.set(new Uint8Array(values.buffer, values.byteOffset, values.byteLength), at);
      made.unlock();
      return made;
    }
    read(buffer) {
      const at = buffer.lock(this.wasm.LiteRtTensorBufferLockMode.READ);
      const bytes = this.wasm.HEAPU8.slice(at, at + buffer.packedSize());
      buffer.unlock();
      return new Float32Array(bytes.buffer);
    }
    release() {
      for (const buffer of this.cache.values()) buffer.delete();
      this.cache.clear();
    }
  };
  var count = (shape) => shape.reduce((product, size) => product * size, 1);
  function strings(vector) {
    const found = Array.from({ length: vector.size() }, (_, index) => vector.get(index));
    vector.delete();
    return found;
  }

  // src/onnx.ts
  var ARRAYS = { float32: Float32Array, float16: Uint16Array, int8: Int8Array, uint8: Uint8Array };
  var LOGITS = "logits";
  var NOTHING = "08073a360a100a017812017922084964656e7469747912005a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a00100d";
  async function bring2(base, job, wasm) {
    const name = job.device === "wasm" ? "ort.wasm.min.mjs" : "ort.webgpu.min.mjs";
    const ort = await import(new URL(`lib/${name}`, base).href);
    ort.env.wasm.wasmPaths = new URL("lib/", base).href;
    ort.env.wasm.wasmBinary = wasm;
    ort.env.wasm.numThreads = job.threads;
    ort.env.logLevel = "fatal";
    const nothing = Uint8Array.from(NOTHING.match(/../g), (byte) => parseInt(byte, 16));
    await (await ort.InferenceSession.create(nothing, { executionProviders: ["wasm"], logSeverityLevel: 4 })).release();
    delete ort.env.wasm.wasmBinary;
    return ort;
  }
  async function open2(ort, job, files) {
    const [main, ...others] = job.files;
    if (main === void 0) throw new Error("the graph has no files");
    const options = {
      executionProviders: [job.device],
      externalData: others.map((file) => ({ path: file.name, data: bytesOf(files, file.name) })),
      enableMemPattern: false,
      // as natively: it would be kept for every length of the mask
      logSeverityLevel: 4
    };
    if (job.device === "webgpu") {
      options.preferredOutputLocation = Object.fromEntries(job.caches.map((cache) => [cache.present, "gpu-buffer"]));
    }
    const session = await ort.InferenceSession.create(bytesOf(files, main.name), options);
    return new OnnxEngine(ort, session, job);
  }
  function bytesOf(files, name) {
    const bytes = files.get(name);
    if (bytes === void 0) throw new Error(`${name} is not there`);
    return bytes;
  }
  var OnnxEngine = class {
    constructor(ort, session, job) {
      this.ort = ort;
      this.session = session;
      this.job = job;
      this.reset();
    }
    ort;
    session;
    job;
    past = /* @__PURE__ */ new Map();
    length = 0;
    reset() {
      for (const tensor of this.past.values()) tensor.dispose();
      this.past = new Map(
        this.job.caches.map((cache) => {
          const empty = new ARRAYS[cache.dtype](0);
          return [cache.past, new this.ort.Tensor(cache.dtype, empty, [1, cache.heads, 0, cache.width])];
        })
      );
      this.length = 0;
    }
    async append(ids) {
      let logits;
      for (let first = 0; first < ids.length; first += this.job.chunk) {
        logits = await this.run(ids.slice(first, first + this.job.chunk));
      }
      if (logits === void 0) throw new Error("no tokens");
      return logits;
    }
    async close() {
      this.reset();
      await this.session.release();
    }
    async run(ids) {
      const { ort, job } = this;
      const total = this.length + ids.length;
      const feeds = {
        input_ids: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
        attention_mask: new ort.Tensor("int64", new BigInt64Array(total).fill(1n), [1, total])
      };
      for (const [name, tensor] of this.past) feeds[name] = tensor;
      const results = await this.session.run(feeds);
      const logits = results[LOGITS];
      if (logits === void 0) throw new Error("the graph gives no logits");
      for (const cache of job.caches) {
        const present = results[cache.present];
        if (present === void 0) throw new Error(`the graph gives no ${cache.present}`);
        this.past.get(cache.past)?.dispose();
        this.past.set(cache.past, present);
      }
      this.length = total;
      const values = await logits.getData();
      return values.subarray(values.length - job.vocab);
    }
  };

  // src/worker.ts
  function say(word) {
    self.postMessage(word);
  }
  var seconds = (since) => (performance.now() - since) / 1e3;
  async function work(base, job) {
    const tell = (text) => say({ kind: "progress", text });
    const files = /* @__PURE__ */ new Map();
    const loadAll = async () => {
      for (const file of job.files) files.set(file.name, await load(base, file, tell));
    };
    const here = (await Promise.all(job.files.map((file) => isKept(base, file)))).every(Boolean);
    if (!here) await loadAll();
    const wasm = await load(base, job.wasm, tell);
    const began = performance.now();
    const open3 = job.library === "litert.js" ? await withLitert(base, job, wasm) : await withOnnx(base, job, wasm);
    const imported = seconds(began);
    const start = performance.now();
    if (here) await loadAll();
    const [first] = job.sizes;
    const opened = { engine: await open3(files, first), slots: first?.slots };
    say({ kind: "loaded", seconds: seconds(start), imported, kept: here });
    if (job.sizes.length === 0) files.clear();
    const resize = async (size) => {
      if (size === void 0 || size.slots === opened.slots) return false;
      await opened.engine.close();
      [opened.engine, opened.slots] = [await open3(files, size), size.slots];
      return true;
    };
    if (job.checks.length > 0) {
      tell("its tokens");
      const rows = [];
      for (const index of ordered(job.checks.length, job.sizes)) {
        await resize(job.sizes[index]);
        rows[index] = await check(opened.engine, job.text, job.checks[index]);
      }
      say({ kind: "rows", rows: rows.flat() });
    }
    let warm = false;
    for (const index of ordered(job.cases.length, job.sizes)) {
      const each = job.cases[index];
      if (await resize(job.sizes[index]) || !warm) {
        for (const first2 of warmUps(job.cases.filter((_, other) => job.sizes[other]?.slots === job.sizes[index]?.slots))) {
          tell(`warm-up, ${nameOf(first2)}`);
          await time(opened.engine, job, first2);
        }
      }
      warm = true;
      tell(nameOf(each));
      say({ kind: "sample", case: index, ...await time(opened.engine, job, each) });
    }
    await opened.engine.close();
  }
  async function withOnnx(base, job, wasm) {
    const ort = await bring2(base, job, wasm);
    return (files) => open2(ort, job, files);
  }
  async function withLitert(base, job, wasm) {
    const liteRt = await bring(base, job, wasm);
    return (files, size) => open(liteRt, job, files, size);
  }
  function ordered(count2, sizes) {
    const slots = Array.from({ length: count2 }, (_, index) => sizes[index]?.slots ?? 0);
    const numbers = [...slots.keys()];
    return numbers.sort((a, b) => slots.indexOf(slots[a]) - slots.indexOf(slots[b]) || a - b);
  }
  function warmUps(cases) {
    const decodes = cases.filter((each) => each.kind === "decode");
    const cached = cases.filter((each) => each.state === "cached");
    const chosen = [longest(decodes), longest(cached)].filter((each) => each !== void 0);
    return chosen.length > 0 ? chosen : [longest(cases)];
  }
  function longest(cases) {
    const lengths = cases.map((each) => Math.max(each.prompt, each.depth));
    return cases[lengths.indexOf(Math.max(...lengths))];
  }
  async function check(engine, text, wanted) {
    const rows = [];
    engine.reset();
    let next = text.slice(0, wanted.prompt);
    for (const token of wanted.tokens) {
      const logits = await engine.append(next);
      const best = likeliest(logits);
      rows.push({ token: best, best: logits[best], given: logits[token], middle: median(logits) });
      next = [token];
    }
    return rows;
  }
  function median(values) {
    const sorted = values.slice().sort();
    const half = sorted.length >> 1;
    return sorted.length % 2 ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
  }
  async function time(engine, job, each) {
    const text = job.text.slice(0, Math.max(1, each.prompt, each.depth));
    engine.reset();
    if (each.kind === "decode") return decode(engine, text, each.steps);
    if (each.state === "cached") await engine.append(text.slice(0, -job.tail));
    const rest = each.state === "cached" ? text.slice(-job.tail) : text;
    const start = performance.now();
    const logits = await engine.append(rest);
    if (each.kind === "prefill") {
      const spent = seconds(start);
      likeliest(logits);
      return { seconds: spent, steps: [], tokens: [] };
    }
    const token = likeliest(logits);
    return { seconds: seconds(start), steps: [], tokens: [token] };
  }
  async function decode(engine, text, count2) {
    const steps = [];
    const tokens = [likeliest(await engine.append(text))];
    for (let step = 0; step < count2; step++) {
      const start = performance.now();
      const logits = await engine.append(tokens.slice(-1));
      steps.push(seconds(start));
      tokens.push(likeliest(logits));
    }
    return { seconds: steps.reduce((sum, step) => sum + step, 0), steps, tokens };
  }
  function nameOf(each) {
    const words = each.kind === "decode" ? `decode after ${each.depth}` : `${each.kind} ${each.prompt}`;
    return each.state === "warm" ? words : `${words}, ${each.state}`;
  }
  self.onmessage = (event) => {
    work(new URL(event.data.base), event.data.job).then(
      () => say({ kind: "finished" }),
      (error) => say({ kind: "failed", text: error instanceof Error ? error.message : String(error) })
    );
  };
})();
