/**
 * An independent model of a secondary, cluster by cluster and epoch by epoch, and the question
 * whether some order of what happened at the same time explains what was seen.
 *
 * Invariants:
 * - Nothing here knows the product: only what a guest, an export and an order mean.
 * - What ended before something else began comes before it; everything else may come in any order.
 * - A request that failed has changed its range or not; one that was refused has not.
 */

/** Bytes of a unit of the model; every request covers whole units. */
export const UNIT = 4096

/**
 * Where a world is in the life of a secondary. A merge, whether it succeeds or not, is `failover`,
 * and `done` when it is complete; after a stop the guest goes on over the living secondary disk.
 */
export type WorldStage = 'none' | 'running' | 'failover' | 'done' | 'stopped'

/** One possible state of the disks, by unit. */
export interface PossibleWorld {
  readonly stage: WorldStage
  /** What the primary has written: the secondary disk. */
  readonly secondary: Uint8Array
  /** The secondary disk at the last checkpoint. */
  readonly checkpoint: Uint8Array
  /** The guest's own writes since; -1 = none. */
  readonly own: Int16Array
  /** Exports may not change anything any more. */
  readonly fenced: boolean
  /** Old data cannot be saved: writes of the primary fail until a checkpoint. */
  readonly lost: boolean
}

/** Orders, and what else happens to a secondary. */
export type Deed = 'start' | 'checkpoint' | 'failover' | 'stop' | 'lose-protection' | 'nothing'

/** What happened, between two ticks of one counter. */
export interface Happening {
  readonly start: number
  readonly end: number
  /** The failure, when it failed. */
  readonly error?: string | undefined
  readonly what:
    | { readonly deed: Deed }
    | {
        readonly side: 'guest' | 'export'
        readonly op: 'read' | 'write' | 'discard' | 'flush'
        /** First unit and their number. */
        readonly first: number
        readonly count: number
        /** The byte that is written. */
        readonly value: number
        /** What was read, by unit. */
        readonly seen?: readonly number[]
      }
}

/** The beginning: nothing runs and the disk is full of one byte. */
export function firstWorld(units: number, byte: number): PossibleWorld {
  const full = new Uint8Array(units).fill(byte)
  const own = new Int16Array(units).fill(-1)
  return { stage: 'none', secondary: full, checkpoint: full, own, fenced: false, lost: false }
}

/** What the guest sees, by unit. */
export function guestView(world: PossibleWorld): Uint8Array {
  if (world.stage === 'done') return world.secondary
  const below = world.stage === 'stopped' ? world.secondary : world.checkpoint
  return below.map((byte, unit) => {
    const own = world.own[unit] ?? -1
    return own < 0 ? byte : own
  })
}

/** Whether two contents are equal. */
export function sameUnits(a: ArrayLike<number>, b: ArrayLike<number>): boolean {
  if (a.length !== b.length) return false
  for (let unit = 0; unit < a.length; unit++) if (a[unit] !== b[unit]) return false
  return true
}

function withRange<T extends Uint8Array | Int16Array>(
  units: T,
  first: number,
  count: number,
  value: number,
): T {
  const copy = units.slice() as T
  copy.fill(value, first, first + count)
  return copy
}

function afterDeed(world: PossibleWorld, deed: Deed): PossibleWorld[] {
  const { secondary, stage } = world
  const clean = { checkpoint: secondary, own: new Int16Array(secondary.length).fill(-1) }
  switch (deed) {
    case 'nothing':
      return [world]
    case 'lose-protection':
      return stage === 'running' ? [{ ...world, lost: true }] : [world]
    case 'start':
      return stage === 'none' ? [{ ...world, ...clean, stage: 'running' }] : []
    case 'checkpoint':
      return stage === 'running' ? [{ ...world, ...clean, lost: false }] : []
    case 'failover':
      return stage === 'running' ? [{ ...world, stage: 'failover', fenced: true }] : []
    case 'stop':
      return stage === 'running' ? [{ ...world, ...clean, stage: 'stopped', lost: false }] : []
  }
}

function written(world: PossibleWorld, first: number, count: number, value: number, own: boolean) {
  if (own && world.stage !== 'done')
    return { ...world, own: withRange(world.own, first, count, value) }
  return { ...world, secondary: withRange(world.secondary, first, count, value) }
}

/** The worlds that may follow; none: this cannot have happened in that world. */
export function after(
  world: PossibleWorld,
  { what, error }: Happening,
  faulty: boolean,
): PossibleWorld[] {
  if ('deed' in what) {
    if (error === undefined) return afterDeed(world, what.deed)
    return faulty ? [world] : []
  }
  const { side, op, first, count, value } = what
  const guest = side === 'guest'
  const changes = op === 'write' || op === 'discard'
  const refused = guest ? world.stage === 'none' && op !== 'flush' : changes && world.fenced
  // A replicated disk takes a discard and does nothing about it, before the start too.
  if (guest && op === 'discard') return error === undefined || faulty || refused ? [world] : []
  if (refused) return error === undefined ? [] : [world]
  if (error !== undefined) {
    if (/taken over by a failover/.test(error)) return []
    if (!faulty && !(world.lost && !guest && changes)) return []
    return changes ? [world, written(world, first, count, value, guest)] : [world]
  }
  if (op === 'flush') return [world]
  if (op === 'read') {
    const view = guest ? guestView(world) : world.secondary
    return sameUnits(view.subarray(first, first + count), what.seen ?? []) ? [world] : []
  }
  if (world.lost && !guest && op === 'write') return []
  const changed = written(world, first, count, value, guest)
  return op === 'discard' ? [world, changed] : [changed]
}

function keyOf(world: PossibleWorld): string {
  const { stage, secondary, checkpoint, own, fenced, lost } = world
  return [stage, fenced, lost, secondary, checkpoint, own].join('|')
}

/** Every world that some order of the happenings leads to. */
export function explain(
  worlds: readonly PossibleWorld[],
  happenings: readonly Happening[],
  faulty: boolean,
): PossibleWorld[] {
  const found = new Map<string, PossibleWorld>()
  const visited = new Set<string>()
  const visit = (world: PossibleWorld, left: readonly Happening[]): void => {
    const key = `${keyOf(world)}#${left.map((one) => happenings.indexOf(one)).join()}`
    if (visited.has(key)) return
    visited.add(key)
    if (left.length === 0) found.set(keyOf(world), world)
    const soonest = Math.min(...left.map((one) => one.end))
    for (const next of left) {
      if (next.start > soonest) continue
      const rest = left.filter((one) => one !== next)
      for (const each of after(world, next, faulty)) visit(each, rest)
    }
  }
  for (const world of worlds) visit(world, happenings)
  return [...found.values()]
}
