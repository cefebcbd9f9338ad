/**
 * Where we differ from the reference on purpose.
 *
 * Invariants:
 * - Every entry has a reason; one that no seed needs any more goes.
 */

/** One deliberate difference. */
export interface Known {
  /** Why. */
  readonly reason: string
  /** The command that shows it; any, if not given. */
  readonly command?: RegExp
  /** What the reference says. */
  readonly reference: RegExp
  /** What we say. */
  readonly ours: RegExp
}

/** All of them. */
export const KNOWN: readonly Known[] = [
  {
    reason: 'several options cannot change: which of them is named depends on the order of a hash',
    command: /^blockdev-reopen$/,
    reference: /Cannot change the option '/,
    ours: /Cannot change the option '|aio=native/,
  },
  {
    reason: 'the image takes its own format for that of its backing image, and does not open again',
    command: /^change-backing-file$/,
    reference: /backing-filename-format="qcow2"$/,
    ours: /backing-filename-format="[^"]+"$/,
  },
  {
    reason: 'a backing image given inline is mixed up with the one that the header names',
    command: /^blockdev-add$/,
    reference:
      /Cannot reference an existing block device with additional|Can't specify 'file' and|The only allowed filename/,
    ours: /./,
  },
  {
    reason: 'two writers of one image: bitmaps are marked as in use when written, not when opened',
    reference: /dirty-bitmaps\.\d+\.inconsistent=true/,
    ours: /dirty-bitmaps\.\d+\.inconsistent=undefined/,
  },
  {
    reason: 'a filter or window goes on showing the length that its child had when it was opened',
    command: /^(block_resize|blockdev-reopen)$/,
    reference: /^(\S+\.virtual-size=\d+ ?)+$/,
    ours: /^(\S+\.virtual-size=\d+ ?)+$/,
  },
  {
    reason: 'an image with lazy reference counts is marked from its first change of any kind on',
    reference: /^(\S+\.dirty-flag=false ?)+$/,
    ours: /^(\S+\.dirty-flag=true ?)+$/,
  },
  {
    reason: 'a name that is taken and limits that cannot be: the order in which they are found out',
    command: /^object-add$/,
    reference: /iops|bps/,
    ours: /attempt to add duplicate property/,
  },
  {
    reason: 'a merge of nothing kills the reference, or is accepted inside a transaction',
    command: /^(transaction|block-dirty-bitmap-merge)$/,
    reference: /./,
    ours: /Parameter 'bitmaps' expects at least one bitmap/,
  },
  {
    reason: 'an image with a data file of its own can be reopened',
    command: /^(blockdev-reopen|blockdev-snapshot|change-backing-file)$/,
    reference: /Option 'driver' cannot be reset to its default value/,
    ours: /./,
  },
  {
    reason: 'a node is called by its name',
    command: /^block_resize$/,
    reference: /Device '\(null\)' is in use/,
    ours: /Device '[^']+' is in use/,
  },
  {
    reason: 'an option that is given again as it was has not changed',
    command: /^blockdev-reopen$/,
    reference: /Cannot change the option 'force-share'/,
    ours: /./,
  },
  {
    reason: 'for the same reason its file stays writable below an overlay',
    command: /^(blockdev-snapshot(-sync)?|transaction)$/,
    reference: /^(\S+\.ro=false ?)+$/,
    ours: /^(\S+\.ro=true ?)+$/,
  },
]
