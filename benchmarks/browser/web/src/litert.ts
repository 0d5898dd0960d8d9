// LiteRT.js, as runtimes/tflite.py has it natively: a prompt goes through the signatures for chunks, its last token is a step.
//
// Its own tensors know neither int8 nor a size that changes. So this goes one level down, to the bindings that it is made of, which
// take any type; and the file is told how many slots the cache has before it is loaded. Outputs are always new buffers.
import type { CompileOptions, LiteRt } from "@litertjs/core";
import type { Engine } from "./engine";
import type { Cache, Job, Size } from "./protocol";

const HIDDEN = -1e9; // finite: a row of which nothing is visible must not become NaN
const MASK = /^mask(?:_(\d+))?$/;
const TYPES = { float32: 1, int32: 2, uint8: 3, int8: 9, float16: 10 } as const; // LiteRT's ElementType
const BYTES = { float32: 4, int32: 4, uint8: 1, int8: 1, float16: 2 } as const;
type Type = keyof typeof TYPES;
type Bindings = LiteRt["liteRtWasm"];
type Model = ReturnType<Bindings["loadModel"]>;
type Compiled = Awaited<ReturnType<Bindings["compileModel"]>>;
type Buffer = ReturnType<Bindings["LiteRtTensorBuffer"]["createManaged"]>;

interface Signature {
  readonly index: number;
  readonly name: string;
  readonly tokens: number;
  readonly inputs: readonly string[];
  readonly outputs: readonly string[];
}

export async function bring(base: URL, job: Job, wasm: Uint8Array): Promise<LiteRt> {
  const at = (name: string): string => new URL(`lib/${name}`, base).href;
  // in a worker its script does not know from where it came, and would look for its wasm beside the worker
  const script = at(job.wasm.name.replace(/wasm$/, "js"));
  const silent = (): undefined => undefined; // what goes wrong comes as an exception, not on the console
  const module = { locateFile: at, wasmBinary: wasm, print: silent, printErr: silent, mainScriptUrlOrBlob: script };
  Object.assign(self, { Module: module });
  const library = (await import(at("litert.js"))) as typeof import("@litertjs/core");
  return library.loadLiteRt(script); // the build that the other side chose by what this browser can
}

export async function open(
  liteRt: LiteRt,
  job: Job,
  files: ReadonlyMap<string, Uint8Array>,
  size: Size | undefined,
): Promise<Engine> {
  const bytes = files.get(job.files[0]?.name ?? "");
  if (bytes === undefined || size === undefined) throw new Error("the graph's file is not there");
  const view = new DataView(bytes.buffer, bytes.byteOffset, bytes.byteLength);
  for (const place of size.places) view.setInt32(place, size.slots, true);
  const wasm = liteRt.liteRtWasm;
  const environment = liteRt.getDefaultEnvironment();
  const at = wasm._malloc(bytes.byteLength);
  wasm.HEAPU8.set(bytes, at);
  const model = wasm.loadModel(environment.liteRtEnvironment, at, bytes.byteLength);
  const options: Required<CompileOptions> = {
    environment,
    accelerator: "wasm",
    cpuOptions: { numThreads: job.threads },
    gpuOptions: {},
    webNNOptions: {},
  };
  const compiled = await wasm.compileModel(environment.liteRtEnvironment, model, options);
  return new LitertEngine(liteRt, model, compiled, at, job, size.slots);
}

class LitertEngine implements Engine {
  private readonly wasm: Bindings;
  private readonly step: Signature;
  private readonly chunks: readonly Signature[];
  private cache = new Map<string, Buffer>();
  private length = 0;

  constructor(
    private readonly liteRt: LiteRt,
    private readonly model: Model,
    private readonly compiled: Compiled,
    private readonly file: number,
    private readonly job: Job,
    private readonly slots: number,
  ) {
    this.wasm = liteRt.liteRtWasm;
    const signatures = Array.from({ length: model.getNumSignatures() }, (_, index) => this.signature(index));
    const step = signatures.find((each) => each.name === "decode");
    this.chunks = signatures.filter((each) => each.name.startsWith("prefill_")).sort((a, b) => a.tokens - b.tokens);
    if (step === undefined || this.chunks.length === 0) throw new Error("the graph has no steps or no chunks");
    this.step = step;
    this.reset();
  }

  reset(): void {
    this.release();
    for (const cache of this.job.caches) {
      const shape = this.shape(cache);
      this.cache.set(cache.past, this.buffer(cache.dtype, shape, new Uint8Array(count(shape) * BYTES[cache.dtype])));
    }
    this.length = 0;
  }

  async append(ids: readonly number[]): Promise<Float32Array> {
    let left = ids.slice(0, -1);
    while (left.length > 0) {
      const chunk = this.chunkFor(left.length);
      await this.run(chunk, left.slice(0, chunk.tokens));
      left = left.slice(chunk.tokens);
    }
    const logits = await this.run(this.step, ids.slice(-1));
    if (logits === undefined) throw new Error("the graph gives no logits");
    return logits;
  }

  async close(): Promise<void> {
    this.release();
    this.compiled.delete();
    this.model.delete();
    this.wasm._free(this.file);
  }

  private signature(index: number): Signature {
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
  private chunkFor(count: number): Signature {
    return this.chunks.filter((each) => 2 * count > each.tokens).at(-1) ?? this.chunks[0]!;
  }

  private async run(signature: Signature, ids: readonly number[]): Promise<Float32Array | undefined> {
    const own: Buffer[] = [];
    const inputs = signature.inputs.map((name) => {
      const cached = this.cache.get(name);
      if (cached !== undefined) return cached;
      const made = this.input(name, signature.tokens, ids);
      own.push(made);
      return made;
    });
    const results = await this.compiled.run(signature.index, inputs);
    for (const buffer of own) buffer.delete();
    let logits: Float32Array | undefined;
    for (const [index, name] of signature.outputs.entries()) {
      const result = results[index];
      if (result === undefined) throw new Error(`the graph gives no ${name}`);
      if (this.cache.has(name)) {
        this.cache.get(name)!.delete();
        this.cache.set(name, result);
      } else {
        if (name === "logits") logits = this.read(result);
        result.delete();
      }
    }
    this.length += ids.length;
    return logits?.subarray(logits.length - this.job.vocab);
  }

  private input(name: string, tokens: number, ids: readonly number[]): Buffer {
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

  private shape(cache: Cache): number[] {
    return [1, cache.heads, ...(cache.axis === 2 ? [this.slots, cache.width] : [cache.width, this.slots])];
  }

  private buffer(dtype: Type, shape: readonly number[], values: ArrayBufferView): Buffer {
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

  private read(buffer: Buffer): Float32Array {
    const at = buffer.lock(this.wasm.LiteRtTensorBufferLockMode.READ);
    const bytes = this.wasm.HEAPU8.slice(at, at + buffer.packedSize());
    buffer.unlock();
    return new Float32Array(bytes.buffer);
  }

  private release(): void {
    for (const buffer of this.cache.values()) buffer.delete();
    this.cache.clear();
  }
}

const count = (shape: readonly number[]): number => shape.reduce((product, size) => product * size, 1);

function strings(vector: { size(): number; get(index: number): string; delete(): void }): string[] {
  const found = Array.from({ length: vector.size() }, (_, index) => vector.get(index));
  vector.delete();
  return found;
}
