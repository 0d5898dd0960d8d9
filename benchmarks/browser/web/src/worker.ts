// One job in a worker of its own: its memory goes with it, and the page goes on answering while it computes.
import { likeliest, type Engine } from "./engine";
import { isKept, load } from "./files";
import * as litert from "./litert";
import * as onnx from "./onnx";
import type { Case, Check, Job, Row, Size, Word } from "./protocol";

function say(word: Word): void {
  self.postMessage(word);
}

const seconds = (since: number): number => (performance.now() - since) / 1000;

async function work(base: URL, job: Job): Promise<void> {
  const tell = (text: string): void => say({ kind: "progress", text });
  const files = new Map<string, Uint8Array>();
  const loadAll = async (): Promise<void> => {
    for (const file of job.files) files.set(file.name, await load(base, file, tell));
  };
  // what comes over the network is no part of a load, and what is here already is not to be in memory twice
  const here = (await Promise.all(job.files.map((file) => isKept(base, file)))).every(Boolean);
  if (!here) await loadAll();
  const wasm = await load(base, job.wasm, tell);
  const began = performance.now();
  const open = job.library === "litert.js" ? await withLitert(base, job, wasm) : await withOnnx(base, job, wasm);
  const imported = seconds(began);
  const start = performance.now();
  if (here) await loadAll();
  const [first] = job.sizes;
  const opened = { engine: await open(files, first), slots: first?.slots };
  say({ kind: "loaded", seconds: seconds(start), imported, kept: here });
  if (job.sizes.length === 0) files.clear(); // the engine has what it needs of them
  /** The engine with the room that is wanted; true where it is a new one. */
  const resize = async (size: Size | undefined): Promise<boolean> => {
    if (size === undefined || size.slots === opened.slots) return false;
    await opened.engine.close();
    [opened.engine, opened.slots] = [await open(files, size), size.slots];
    return true;
  };
  if (job.checks.length > 0) {
    tell("its tokens");
    const rows: Row[][] = [];
    for (const index of ordered(job.checks.length, job.sizes)) {
      await resize(job.sizes[index]);
      rows[index] = await check(opened.engine, job.text, job.checks[index]!);
    }
    say({ kind: "rows", rows: rows.flat() });
  }
  let warm = false;
  for (const index of ordered(job.cases.length, job.sizes)) {
    const each = job.cases[index]!;
    if ((await resize(job.sizes[index])) || !warm) {
      // what only first calls pay: buffers grow to their size, and the browser compiles what it sees often
      for (const first of warmUps(job.cases.filter((_, other) => job.sizes[other]?.slots === job.sizes[index]?.slots))) {
        tell(`warm-up, ${nameOf(first)}`);
        await time(opened.engine, job, first);
      }
    }
    warm = true;
    tell(nameOf(each));
    say({ kind: "sample", case: index, ...(await time(opened.engine, job, each)) });
  }
  await opened.engine.close();
}

type Open = (files: ReadonlyMap<string, Uint8Array>, size: Size | undefined) => Promise<Engine>;

async function withOnnx(base: URL, job: Job, wasm: Uint8Array): Promise<Open> {
  const ort = await onnx.bring(base, job, wasm);
  return (files) => onnx.open(ort, job, files);
}

async function withLitert(base: URL, job: Job, wasm: Uint8Array): Promise<Open> {
  const liteRt = await litert.bring(base, job, wasm);
  return (files, size) => litert.open(liteRt, job, files, size);
}

/** Numbers in their order, but those of one size one after the other. */
function ordered(count: number, sizes: readonly Size[]): number[] {
  const slots = Array.from({ length: count }, (_, index) => sizes[index]?.slots ?? 0);
  const numbers = [...slots.keys()];
  return numbers.sort((a, b) => slots.indexOf(slots[a]!) - slots.indexOf(slots[b]!) || a - b);
}

/** Cases that go every way there is, so that nothing is new to those that are timed: the longest decode, and the longest cached. */
function warmUps(cases: readonly Case[]): Case[] {
  const decodes = cases.filter((each) => each.kind === "decode");
  const cached = cases.filter((each) => each.state === "cached");
  const chosen = [longest(decodes), longest(cached)].filter((each) => each !== undefined);
  return chosen.length > 0 ? chosen : [longest(cases)!];
}

function longest(cases: readonly Case[]): Case | undefined {
  const lengths = cases.map((each) => Math.max(each.prompt, each.depth));
  return cases[lengths.indexOf(Math.max(...lengths))];
}

/** What this browser finds at each token that the other side wrote behind a prompt. */
async function check(engine: Engine, text: readonly number[], wanted: Check): Promise<Row[]> {
  const rows: Row[] = [];
  engine.reset();
  let next = text.slice(0, wanted.prompt);
  for (const token of wanted.tokens) {
    const logits = await engine.append(next);
    const best = likeliest(logits);
    rows.push({ token: best, best: logits[best]!, given: logits[token]!, middle: median(logits) });
    next = [token];
  }
  return rows;
}

function median(values: Float32Array): number {
  const sorted = values.slice().sort();
  const half = sorted.length >> 1;
  return sorted.length % 2 ? sorted[half]! : (sorted[half - 1]! + sorted[half]!) / 2;
}

interface Timed {
  seconds: number;
  steps: number[];
  tokens: number[];
}

async function time(engine: Engine, job: Job, each: Case): Promise<Timed> {
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

async function decode(engine: Engine, text: readonly number[], count: number): Promise<Timed> {
  const steps: number[] = [];
  const tokens = [likeliest(await engine.append(text))];
  for (let step = 0; step < count; step++) {
    const start = performance.now();
    const logits = await engine.append(tokens.slice(-1));
    steps.push(seconds(start));
    tokens.push(likeliest(logits)); // the sampler's work, and not timed
  }
  return { seconds: steps.reduce((sum, step) => sum + step, 0), steps, tokens };
}

function nameOf(each: Case): string {
  const words = each.kind === "decode" ? `decode after ${each.depth}` : `${each.kind} ${each.prompt}`;
  return each.state === "warm" ? words : `${words}, ${each.state}`;
}

self.onmessage = (event: MessageEvent<{ base: string; job: Job }>) => {
  work(new URL(event.data.base), event.data.job).then(
    () => say({ kind: "finished" }),
    (error: unknown) => say({ kind: "failed", text: error instanceof Error ? error.message : String(error) }),
  );
};
