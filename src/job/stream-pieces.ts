/**
 * What of a disk a stream has to copy, piece by piece.
 *
 * Invariants:
 * - Whole clusters of the disk only, so that no reader meets a cluster that is filled in part.
 * - Nothing that a reader sees changes, also where an image in between is shorter than the others.
 */
import type { BlockGraph } from '../block/graph.ts'
import type { BlockNode } from '../block/node.ts'
import { chainStatus } from '../block/status.ts'

/** The images of a stream. */
export interface StreamImages {
  readonly graph: BlockGraph
  /** Copies on read; sits over the disk. */
  readonly filter: BlockNode
  /** The image that is streamed into. */
  readonly layer: BlockNode
  /** The lowest image that is copied from; undefined = the whole chain. */
  readonly bottom: BlockNode | undefined
}

/** A piece in whole clusters of the disk. */
export interface Piece {
  /** Where it begins. */
  readonly offset: number
  /** Its length; above 0. */
  readonly bytes: number
  /**
   * `missing`: something of it lies in the images that are streamed. `covered`: one of them ends
   * before it, and without them what is below the bottom would show there. Zeroes that show there
   * already count for nothing with a format, so they have to be written as data.
   */
  readonly kind: 'there' | 'missing' | 'covered'
}

/** The piece at the start of a range. Errors: those of asking for block status. */
export async function nextPiece(images: StreamImages, at: number, want: number): Promise<Piece> {
  const cover = coverOf(images)
  const within = at < cover ? Math.min(want, cover - at) : want
  const { bytes, missing, own } = await nextRun(images, at, within)
  if (at + bytes > cover && !own) return { offset: at, bytes, kind: 'covered' }
  return { offset: at, bytes, kind: missing ? 'missing' : 'there' }
}

/** From where on a short image hides what is below the bottom. */
function coverOf({ layer, bottom }: StreamImages): number {
  const base = bottom?.chainNext
  if (base === undefined) return Number.POSITIVE_INFINITY
  let cover = layer.length()
  for (let node = layer.chainNext; node !== undefined && node !== base; node = node.chainNext)
    cover = Math.min(cover, node.length())
  return cover < base.length() ? cover : Number.POSITIVE_INFINITY
}

interface Run {
  readonly bytes: number
  /** Something of it lies in the images that are streamed. */
  readonly missing: boolean
  /** All of it lies in the disk itself. */
  readonly own: boolean
}

/**
 * The run at the start of a range, in whole clusters of the disk, and whether anything of it is to be
 * copied: an image below may have smaller clusters, or end within a cluster.
 */
async function nextRun({ layer, bottom }: StreamImages, at: number, want: number): Promise<Run> {
  const unit = layer.driver?.limits.clusterSize ?? 1
  const length = layer.length()
  const whole = (end: number): number => Math.min(length, Math.ceil(end / unit) * unit) - at
  const base = bottom?.chainNext
  const first = await chainStatus(layer, base, at, want)
  const own = first.depth === 0
  if (first.depth > 0) return { bytes: whole(at + first.bytes), missing: true, own }
  if (at + first.bytes === length) return { bytes: first.bytes, missing: false, own }
  if (first.bytes >= unit) return { bytes: first.bytes - (first.bytes % unit), missing: false, own }
  const bytes = whole(at + 1)
  for (let done = first.bytes; done < bytes; ) {
    const rest = await chainStatus(layer, base, at + done, bytes - done)
    if (rest.depth > 0) return { bytes, missing: true, own: false }
    done += rest.bytes
  }
  return { bytes, missing: false, own: false }
}
