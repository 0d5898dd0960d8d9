// onnxruntime-web. It copies what lies in memory at every run, the cache too; on WebGPU the cache stays on the device.
import type * as Ort from "onnxruntime-web";
import type { Engine } from "./engine";
import type { Job } from "./protocol";

const ARRAYS = { float32: Float32Array, float16: Uint16Array, int8: Int8Array, uint8: Uint8Array } as const;
const LOGITS = "logits";

export type Library = typeof Ort;

// A graph whose only node is Identity, of one float.
const NOTHING =
  "08073a360a100a017812017922084964656e7469747912005a0f0a0178120a0a08080112040a020801620f0a0179120a0a08080112040a02080142040a00100d";

/** The library with its wasm compiled and its threads started, which it does for its first session. */
export async function bring(base: URL, job: Job, wasm: Uint8Array): Promise<Library> {
  const name = job.device === "wasm" ? "ort.wasm.min.mjs" : "ort.webgpu.min.mjs";
  const ort = (await import(new URL(`lib/${name}`, base).href)) as Library;
  ort.env.wasm.wasmPaths = new URL("lib/", base).href;
  ort.env.wasm.wasmBinary = wasm;
  ort.env.wasm.numThreads = job.threads;
  ort.env.logLevel = "fatal";
  const nothing = Uint8Array.from(NOTHING.match(/../g)!, (byte) => parseInt(byte, 16));
  await (await ort.InferenceSession.create(nothing, { executionProviders: ["wasm"], logSeverityLevel: 4 })).release();
  delete ort.env.wasm.wasmBinary;
  return ort;
}

export async function open(ort: Library, job: Job, files: ReadonlyMap<string, Uint8Array>): Promise<Engine> {
  const [main, ...others] = job.files;
  if (main === undefined) throw new Error("the graph has no files");
  const options: Ort.InferenceSession.SessionOptions = {
    executionProviders: [job.device],
    externalData: others.map((file) => ({ path: file.name, data: bytesOf(files, file.name) })),
    enableMemPattern: false, // as natively: it would be kept for every length of the mask
    logSeverityLevel: 4,
  };
  if (job.device === "webgpu") {
    options.preferredOutputLocation = Object.fromEntries(job.caches.map((cache) => [cache.present, "gpu-buffer" as const]));
  }
  const session = await ort.InferenceSession.create(bytesOf(files, main.name), options);
  return new OnnxEngine(ort, session, job);
}

function bytesOf(files: ReadonlyMap<string, Uint8Array>, name: string): Uint8Array {
  const bytes = files.get(name);
  if (bytes === undefined) throw new Error(`${name} is not there`);
  return bytes;
}

class OnnxEngine implements Engine {
  private past = new Map<string, Ort.Tensor>();
  private length = 0;

  constructor(
    private readonly ort: Library,
    private readonly session: Ort.InferenceSession,
    private readonly job: Job,
  ) {
    this.reset();
  }

  reset(): void {
    for (const tensor of this.past.values()) tensor.dispose();
    this.past = new Map(
      this.job.caches.map((cache) => {
        const empty = new ARRAYS[cache.dtype](0) as Float32Array;
        return [cache.past, new this.ort.Tensor(cache.dtype as "float32", empty, [1, cache.heads, 0, cache.width])];
      }),
    );
    this.length = 0;
  }

  async append(ids: readonly number[]): Promise<Float32Array> {
    let logits: Float32Array | undefined;
    for (let first = 0; first < ids.length; first += this.job.chunk) {
      logits = await this.run(ids.slice(first, first + this.job.chunk));
    }
    if (logits === undefined) throw new Error("no tokens");
    return logits;
  }

  async close(): Promise<void> {
    this.reset();
    await this.session.release();
  }

  private async run(ids: readonly number[]): Promise<Float32Array> {
    const { ort, job } = this;
    const total = this.length + ids.length;
    const feeds: Record<string, Ort.Tensor> = {
      input_ids: new ort.Tensor("int64", BigInt64Array.from(ids, BigInt), [1, ids.length]),
      attention_mask: new ort.Tensor("int64", new BigInt64Array(total).fill(1n), [1, total]),
    };
    for (const [name, tensor] of this.past) feeds[name] = tensor;
    // `logits_start` keeps what the file says: the last position; no input that has a value in the file can be fed here
    const results = await this.session.run(feeds);
    const logits = results[LOGITS];
    if (logits === undefined) throw new Error("the graph gives no logits");
    for (const cache of job.caches) {
      const present = results[cache.present];
      if (present === undefined) throw new Error(`the graph gives no ${cache.present}`);
      this.past.get(cache.past)?.dispose();
      this.past.set(cache.past, present);
    }
    this.length = total;
    const values = (await logits.getData()) as Float32Array;
    return values.subarray(values.length - job.vocab);
  }
}
