/** A loaded graph and one sequence of tokens. */
export interface Engine {
  /** Forget the sequence. */
  reset(): void;
  /** Append tokens; the logits behind the last one, which are the caller's until the next call. */
  append(ids: readonly number[]): Promise<Float32Array>;
  close(): Promise<void>;
}

/** The likeliest token; an error where it cannot be told. */
export function likeliest(logits: Float32Array): number {
  let best = 0;
  let most = -Infinity;
  for (let index = 0; index < logits.length; index++) {
    const value = logits[index] as number;
    if (Number.isNaN(value)) throw new Error("a logit is not a number");
    if (value > most) {
      most = value;
      best = index;
    }
  }
  if (!Number.isFinite(most)) throw new Error("a logit is not a finite number");
  return best;
}
