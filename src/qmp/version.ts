/**
 * The version that a monitor announces.
 *
 * Invariants:
 * - `qemu` names the release whose monitor language is spoken; `package` names this program.
 */

/** Version of this program, as in its package. */
export const PROGRAM_VERSION = '0.1.0'

/** What the greeting and `query-version` say. */
export const VERSION: {
  readonly qemu: { readonly micro: number; readonly minor: number; readonly major: number }
  readonly package: string
} = {
  qemu: { micro: 0, minor: 2, major: 7 },
  package: `blockstep ${PROGRAM_VERSION}`,
}
