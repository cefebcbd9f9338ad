/**
 * Copying bytes to and from memory that threads share.
 *
 * Invariants:
 * - The copy is one native move. `TypedArray.set` on shared memory moves byte by byte where source
 *   and target are not aligned alike, which is most of what arrives from a socket.
 */

/** Below this the call into the host costs more than it saves. */
const NATIVE_MIN = 256
const fill = Buffer.prototype.fill

/** Copies all of `from` to `to`, where it begins at `at`. Any thread. */
export function copyBytes(to: Uint8Array, at: number, from: Uint8Array): void {
  if (from.length < NATIVE_MIN) to.set(from, at)
  else fill.call(to, from, at, at + from.length)
}
