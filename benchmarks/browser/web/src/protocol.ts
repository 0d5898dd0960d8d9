// What goes between the page, its worker and the machine that asks; browser/lanes.py and browser/session.py are the other side.

export interface FileEntry {
  readonly name: string;
  readonly sha256: string;
  readonly size: number;
}

/** Keys or values of one layer; `axis` is the one that has the slots. */
export interface Cache {
  readonly past: string;
  readonly present: string;
  readonly heads: number;
  readonly width: number;
  readonly axis: number;
  readonly dtype: "float32" | "float16" | "int8" | "uint8";
}

export interface Case {
  readonly kind: "prefill" | "first token" | "decode";
  readonly prompt: number;
  readonly depth: number;
  readonly steps: number;
  readonly state: "warm" | "cached";
}

/** Tokens that the other side finds behind the first `prompt` ones of the text. */
export interface Check {
  readonly prompt: number;
  readonly tokens: readonly number[];
}

/** Slots of a .tflite file's cache, and the bytes at which it says how many. */
export interface Size {
  readonly slots: number;
  readonly places: readonly number[];
}

export interface Job {
  readonly number: number;
  readonly lane: string;
  readonly library: "onnxruntime-web" | "litert.js";
  readonly device: "wasm" | "webgpu";
  readonly threads: number;
  readonly files: readonly FileEntry[];
  /** The library's own; its scripts lie in lib/. */
  readonly wasm: FileEntry;
  readonly caches: readonly Cache[];
  readonly vocab: number;
  readonly chunk: number;
  readonly tail: number;
  readonly text: readonly number[];
  readonly checks: readonly Check[];
  readonly cases: readonly Case[];
  /** One for each check or case; empty where the cache grows by itself. */
  readonly sizes: readonly Size[];
}

/** What is found at a position: the likeliest token, its logit, that of the token that was given, and the median. */
export interface Row {
  readonly token: number;
  readonly best: number;
  readonly given: number;
  readonly middle: number;
}

export type Word =
  | { kind: "progress"; text: string }
  | { kind: "loaded"; seconds: number; imported: number; kept: boolean }
  | { kind: "rows"; rows: Row[] }
  | { kind: "sample"; case: number; seconds: number; steps: number[]; tokens: number[] }
  | { kind: "finished" }
  | { kind: "failed"; text: string };

/** `hidden` is whether the page was, at any time since the word before. */
export type Said = Word & { job: number; hidden: boolean };

export interface Gpu {
  vendor: string;
  architecture: string;
  device: string;
  description: string;
  fallback: boolean;
}

export interface Hello {
  /** Of this page and no other: a hello may be heard twice. */
  page: string;
  name: string;
  agent: string;
  platform: string;
  version: string;
  architecture: string;
  bits: string;
  model: string;
  cores: number;
  memory: number | null;
  isolated: boolean;
  relaxed: boolean;
  touch: number;
  gpu: Gpu | null;
}
