/**
 * A disk whose power can be cut: everything that reaches it is noted, and any prefix of the notes can
 * be turned into what the disk may hold afterwards.
 *
 * Invariants:
 * - What was written before the last sync before the cut is there; of the rest each sector by chance.
 */
import type { BlockDriver, DriverDefinition } from '../../../src/block/driver.ts'
import { NO_LIMITS } from '../../../src/block/driver.ts'

export const SECTOR = 512
export const SIZE = 1024 * 1024
const CAPACITY = 5 * SIZE

export type Entry =
  | { readonly kind: 'write'; readonly offset: number; readonly bytes: Uint8Array }
  | { readonly kind: 'truncate'; readonly size: number }
  | { readonly kind: 'sync' }

/** The image under test, on a disk of a `Recorder`. */
export const IMAGE = {
  driver: 'qcow2',
  'node-name': 'a',
  discard: 'unmap',
  file: { driver: 'recorder', discard: 'unmap' },
} as const

/** A disk that notes what reached it, in order, and when it was made stable. */
export class Recorder {
  readonly log: Entry[] = []
  /** Say that flushes succeeded without making anything stable. */
  lies = false
  bytes: Uint8Array = new Uint8Array(CAPACITY)
  end = 0
  readonly definition: DriverDefinition = {
    name: 'recorder',
    kind: 'protocol',
    open: async () => this.#driver(),
  }

  load(bytes: Uint8Array, end: number): void {
    this.bytes = new Uint8Array(CAPACITY)
    this.bytes.set(bytes.subarray(0, end))
    this.end = end
    this.log.length = 0
  }

  #driver(): BlockDriver {
    return {
      limits: NO_LIMITS,
      writeFlags: 0,
      zeroesFlags: 0,
      length: () => this.end,
      pread: async (offset, buf) => {
        buf.set(this.bytes.subarray(offset, offset + buf.length))
      },
      pwrite: async (offset, buf) => {
        this.log.push({ kind: 'write', offset, bytes: buf.slice() })
        this.bytes.set(buf, offset)
        this.end = Math.max(this.end, offset + buf.length)
      },
      flush: async () => {
        if (!this.lies) this.log.push({ kind: 'sync' })
      },
      truncate: (size) => {
        this.log.push({ kind: 'truncate', size })
        this.bytes.fill(0, size)
        this.end = size
      },
      close: () => undefined,
    }
  }
}

export function random(seed: number): (below: number) => number {
  let state = seed >>> 0
  return (below) => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return Math.floor((state / 2 ** 32) * below)
  }
}

/** What a disk may hold that lost power after `cut` entries: unsynced sectors survive by chance. */
export function crash(
  first: Uint8Array,
  log: readonly Entry[],
  cut: number,
  next: (below: number) => number,
): { bytes: Uint8Array; end: number } {
  const bytes = new Uint8Array(CAPACITY)
  bytes.set(first)
  let end = first.length
  const stable = log.slice(0, cut).findLastIndex((entry) => entry.kind === 'sync')
  for (const [index, entry] of log.slice(0, cut).entries()) {
    const sure = index < stable
    if (entry.kind === 'truncate' && (sure || next(2) === 0)) {
      bytes.fill(0, entry.size)
      end = entry.size
    }
    if (entry.kind !== 'write') continue
    for (let at = 0; at < entry.bytes.length; ) {
      const step = Math.min(SECTOR - ((entry.offset + at) % SECTOR), entry.bytes.length - at)
      if (sure || next(2) === 0) {
        bytes.set(entry.bytes.subarray(at, at + step), entry.offset + at)
        end = Math.max(end, entry.offset + at + step)
      }
      at += step
    }
  }
  return { bytes, end }
}

/** What each sector may read as after a crash; steps order what log positions cannot. */
export class History {
  readonly #sectors: { step: number; value: number }[][] = Array.from(
    { length: SIZE / SECTOR },
    () => [{ step: 0, value: 0 }],
  )
  readonly #stable: { step: number; acked: number }[] = []

  wrote(step: number, offset: number, bytes: number, value: number): void {
    for (let s = offset / SECTOR; s < (offset + bytes) / SECTOR; s++)
      this.#sectors[s]?.push({ step, value })
  }

  flushed(step: number, acked: number): void {
    this.#stable.push({ step, acked })
  }

  allowed(sector: number, cut: number): Set<number> {
    const all = this.#sectors[sector] ?? []
    const flush = this.#stable.findLast(({ acked }) => acked <= cut)
    const oldest = all.findLastIndex(({ step }) => step < (flush?.step ?? 1))
    return new Set(all.slice(oldest).map(({ value }) => value))
  }

  /** The sectors of what a disk showed after that cut that nothing explains. */
  unexplained(shown: Uint8Array, cut: number): string[] {
    const wrong: string[] = []
    for (let s = 0; s < SIZE / SECTOR; s++) {
      const value = shown[s * SECTOR] ?? -1
      if (!this.allowed(s, cut).has(value)) wrong.push(`sector ${s} is ${value}`)
    }
    return wrong
  }
}
