import { Level, log } from "./host";

/** What a failed assertion or a thrown error does: it says so in the function's log and traps, which fails the event
 * at work alone. The compiler is told of it by --use abort=… */
export function abort(message: string | null, file: string | null, line: u32, column: u32): void {
  log(Level.Error, (message ? message : "aborted") + " at " + (file ? file : "?") + ":" + line.toString() + ":" + column.toString());
  unreachable();
}
