/**
 * The two buffers of a secondary, active and hidden disk: checked, emptied, and fenced exports.
 *
 * Invariants:
 * - The active disk is emptied first: its data stand over the hidden disk's.
 * - Whoever empties learns whether the view may have changed although it failed.
 */
import type { BlockBackend } from '../block/backend.ts'
import { STATUS } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import { asBlockError, BlockError } from '../util/errors.ts'
import { formatOf, type SecondaryDisks } from './topology.ts'

/** How emptying went. */
export interface Emptied {
  /** Something was dropped, or may have been. */
  readonly moved: boolean
  /** Why it is not complete, with the disk and the cause. */
  readonly error?: BlockError
}

/** A disk that is closed cannot be emptied. Errors: ENOMEDIUM, which names it. */
export function checkBuffers({ active, hidden }: SecondaryDisks): void {
  for (const [role, disk] of [
    ['Active', active],
    ['Hidden', hidden],
  ] as const)
    if (formatOf(disk).driver?.makeEmpty === undefined)
      throw new BlockError('ENOMEDIUM', `${role} disk ${disk.name} is ejected`, { node: disk.name })
}

/** What a disk holds can be found after the end of the process. */
export function outlivesUs(disk: BlockNode): boolean {
  return formatOf(disk).driver?.flush !== undefined
}

/** Empties both buffers; nothing else may run on them. Never rejects. */
export async function emptyBuffers(disks: SecondaryDisks): Promise<Emptied> {
  let moved = false
  for (const disk of [disks.active, disks.hidden]) {
    try {
      checkBuffers(disks)
      await formatOf(disk).driver?.makeEmpty?.()
      moved = true
    } catch (thrown) {
      const cause = asBlockError(thrown)
      const about = { node: disk.name, op: 'checkpoint' }
      const words =
        cause.code === 'ENOMEDIUM'
          ? cause.message
          : `Failed to empty ${disk.name}: ${cause.message}`
      const error = new BlockError(cause.code, words, about, cause)
      return { moved: moved || !(await holdsData(disk)), error }
    }
  }
  return { moved }
}

/** A disk that failed to be emptied and still has data has all of them. */
async function holdsData(disk: BlockNode): Promise<boolean> {
  const { driver } = formatOf(disk)
  if (driver?.blockStatus === undefined) return driver === undefined
  try {
    for (let at = 0; at < driver.length(); ) {
      const { flags, bytes } = await driver.blockStatus(at, driver.length() - at)
      if ((flags & STATUS.ALLOCATED) !== 0) return true
      at += bytes
    }
  } catch {
    // What cannot be asked may have changed.
  }
  return false
}

/** Nodes whose exports are shut out, by whom. */
const SHUT = new WeakMap<BlockNode, ExportFence>()

/** The exports that are kept from changing a disk, those that come later too. */
export class ExportFence {
  readonly #fenced = new Set<BlockBackend>()
  readonly #nodes = new Set<BlockNode>()
  #error: BlockError | undefined

  /** From now on the exports of these nodes refuse to change them, with this error. */
  close(nodes: readonly (BlockNode | undefined)[], error: BlockError): void {
    this.#error = error
    for (const node of nodes) {
      if (node === undefined) continue
      this.#nodes.add(node)
      SHUT.set(node, this)
      for (const { owner } of node.parents)
        if (owner.ownerKind === 'backend') this.admit(owner as BlockBackend)
    }
  }

  /** One more export of these nodes. */
  admit(backend: BlockBackend): void {
    if (this.#error === undefined) return
    backend.fence(this.#error)
    this.#fenced.add(backend)
  }

  /** They may change them again. */
  open(): void {
    this.#error = undefined
    for (const node of this.#nodes) SHUT.delete(node)
    for (const backend of this.#fenced) backend.unfence()
    this.#nodes.clear()
    this.#fenced.clear()
  }
}

/** To be called for every new export: one of a disk that is shut out may not change it either. */
export function fenceExport(backend: BlockBackend): void {
  SHUT.get(backend.node)?.admit(backend)
}
