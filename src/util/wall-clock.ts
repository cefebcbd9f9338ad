/**
 * The time of day, for what carries dates: certificates.
 *
 * Invariants:
 * - Nothing waits by it and nothing is measured with it: it may jump.
 */

/** Milliseconds since 1970, as the host has it. */
export function wallClockMs(): number {
  return Date.now()
}
