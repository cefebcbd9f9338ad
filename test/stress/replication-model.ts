/**
 * The judge of the replication stress test: which contents of a sector some history explains.
 *
 * Invariants:
 * - Times come from one shared counter, so "ended before" is certain and everything else may overlap.
 * - Within one side a sector has one writer, so its writes of that side never overlap each other.
 * - Tags are unique; 0 is the initial content.
 */

/** Something that happened between two ticks of the shared counter. */
export interface Span {
  readonly start: number
  readonly end: number
}

/** An acknowledged write of one sector. */
export interface Write extends Span {
  readonly tag: number
}

/** A read of one sector by the guest that owns it. */
export interface Read extends Span {
  readonly sector: number
  readonly tag: number
}

/** All writes of one side, sector by sector, in order. */
export class History {
  readonly #sectors = new Map<number, Write[]>()

  /** Adds a write of a run of sectors. */
  add(sector: number, count: number, write: Write): void {
    for (let each = sector; each < sector + count; each++) {
      const list = this.#sectors.get(each)
      if (list === undefined) this.#sectors.set(each, [write])
      else list.push(write)
    }
  }

  /** Writes of one sector, oldest first. */
  of(sector: number): readonly Write[] {
    return this.#sectors.get(sector) ?? []
  }
}

/** The instant at which replication started, before every write. */
export const BEGINNING: Span = { start: -1, end: -1 }

/** Judges what guests and the verifier saw. */
export class ReplicationModel {
  readonly #forwarded: History
  readonly #guest: History
  readonly #checkpoints: readonly Span[]

  /** `checkpoints` in order, those that succeeded; the beginning is added. */
  constructor(forwarded: History, guest: History, checkpoints: readonly Span[]) {
    this.#forwarded = forwarded
    this.#guest = guest
    this.#checkpoints = [BEGINNING, ...checkpoints]
  }

  /** Tags that a read of the guest's disk may have found. */
  allowed(read: Span & { readonly sector: number }): Set<number> {
    const tags = new Set<number>()
    for (const [index, checkpoint] of this.#checkpoints.entries()) {
      if (checkpoint.start > read.end) break
      const next = this.#checkpoints[index + 1]
      if (next !== undefined && next.end < read.start) continue
      this.#underCheckpoint(read.sector, checkpoint, read, tags)
    }
    return tags
  }

  /** A sentence about the first read that no history explains. */
  judge(reads: readonly Read[]): string | undefined {
    for (const read of reads) {
      const tags = this.allowed(read)
      if (tags.has(read.tag)) continue
      const wanted = [...tags].join(', ')
      return `sector ${read.sector} held ${read.tag} at ${read.start}-${read.end}, not ${wanted}`
    }
    return undefined
  }

  /**
   * Whether one instant of the last checkpoint explains the whole final view (tag by sector): what
   * the view has of forwarded writes began before it, what it lacks ended after it, and the other
   * way round for the guest's own. Answers a sentence when there is none.
   */
  oneInstant(view: ArrayLike<number>): string | undefined {
    const last = this.#checkpoints.at(-1) as Span
    let after = last.start
    let before = last.end
    for (let sector = 0; sector < view.length; sector++) {
      const own = this.#guest.of(sector)
      const keptOwn = own.findIndex((write) => write.tag === view[sector])
      const newestOwn = own.at(-1)
      if (keptOwn >= 0) before = Math.min(before, (own[keptOwn] as Write).end)
      else if (newestOwn !== undefined) after = Math.max(after, newestOwn.start)
      if (keptOwn >= 0) continue
      const forwarded = this.#forwarded.of(sector)
      const kept = forwarded.findIndex((write) => write.tag === view[sector])
      const first = forwarded[kept + 1]
      if (kept >= 0) after = Math.max(after, (forwarded[kept] as Write).start)
      if (first !== undefined) before = Math.min(before, first.end)
      if (after > before) return `no instant explains sector ${sector}: ${after} > ${before}`
    }
    return after > before ? `no instant explains the view: ${after} > ${before}` : undefined
  }

  #underCheckpoint(sector: number, checkpoint: Span, read: Span, tags: Set<number>): void {
    const own = this.#guest
      .of(sector)
      .filter((write) => write.start < read.end && write.end > checkpoint.start)
    const newest = own.at(-1)
    if (newest !== undefined) {
      tags.add(newest.tag)
      if (newest.start > checkpoint.end) return
    }
    let base = 0
    for (const write of this.#forwarded.of(sector)) {
      if (write.end < checkpoint.start) base = write.tag
      else if (write.start < checkpoint.end) tags.add(write.tag)
    }
    tags.add(base)
  }
}
