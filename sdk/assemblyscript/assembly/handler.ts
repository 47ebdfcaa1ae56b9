import { Event } from "./event";
import { Results } from "./results";

let it: ((e: Event, out: Results) => void) | null = null;

/** Sets the function's handler. Call it at the top level of the module. */
export function handle(h: (e: Event, out: Results) => void): void {
  it = h;
}

/** The handler that was set. */
export function handler(): ((e: Event, out: Results) => void) | null {
  return it;
}
