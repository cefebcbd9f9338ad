/**
 * Gives up what a target holds before all of it is overwritten, so that zeroes can stay holes.
 *
 * Invariants:
 * - Only for a target that lets discards through, and only a whole raw file; others stay as they are.
 * - The length is the same afterwards, and nobody sees another one meanwhile.
 */
import type { BlockNode } from '../block/node.ts'
import { isBelow } from '../block/replace.ts'
import { markWritten } from './mark-written.ts'

/**
 * The host can be asked to give up the end of a file only, so the whole file goes at once. Errors:
 * those of the host.
 */
export async function giveUpContent(target: BlockNode, source: BlockNode): Promise<void> {
  const { options, definition } = target
  // A disk that is copied onto an image below it still needs what that image holds.
  if (isBelow(source, target)) return
  if (options.discard !== 'unmap' || definition.name !== 'raw') return
  if (options.offset !== undefined || options.size !== undefined) return
  const file = target.children.get('file')?.node
  const bytes = file?.driver?.length() ?? 0
  if (file?.definition.name !== 'file' || file.driver?.truncate === undefined) return
  // Nothing runs between the two calls, as a file changes its length inline.
  const shrunk = file.driver.truncate(0)
  const grown = file.driver.truncate(bytes)
  await shrunk
  await grown
  markWritten(target, true)
}
