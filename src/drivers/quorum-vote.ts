/**
 * Counting of quorum votes: which content wins a read, which error ends a request.
 *
 * Invariants:
 * - A ballot whose child failed never takes part.
 * - Ties go to the content that the earlier child gave, so the result does not depend on timing.
 */
import type { BlockNode } from '../block/node.ts'
import type { BlockError } from '../util/errors.ts'
import { ioError } from '../util/errors.ts'

/** Outcome of a vote over contents. */
export interface VoteResult {
  /** Index of a child that gave the winning content; 0 when nobody answered. */
  readonly winner: number
  /** How many children gave it. */
  readonly votes: number
  /** Children that answered with something else. */
  readonly losers: readonly number[]
}

/** The ballots of one read. */
export class QuorumVote {
  /** One buffer a child; only those without an error hold an answer. */
  readonly ballots: readonly Buffer[]
  /** Errors by child index. */
  readonly errors: (BlockError | undefined)[] = []

  constructor(children: number, bytes: number) {
    this.ballots = Array.from({ length: children }, () => Buffer.alloc(bytes))
  }

  /** The buffer of one child. */
  ballot(index: number): Buffer {
    return this.ballots[index] as Buffer
  }

  /** The child gave no answer. */
  fail(index: number, error: BlockError): void {
    this.errors[index] = error
  }

  /** How many children answered. */
  get goodCount(): number {
    return this.ballots.filter((_, index) => this.errors[index] === undefined).length
  }

  /** Groups equal answers and picks the largest group. */
  decide(): VoteResult {
    const groups: number[][] = []
    for (const [index, ballot] of this.ballots.entries()) {
      if (this.errors[index] !== undefined) continue
      const group = groups.find((members) => this.ballot(members[0] as number).equals(ballot))
      if (group === undefined) groups.push([index])
      else group.push(index)
    }
    let best: readonly number[] = []
    for (const group of groups) if (group.length > best.length) best = group
    const losers = groups.filter((group) => group !== best).flat()
    return { winner: best[0] ?? 0, votes: best.length, losers }
  }

  /** Index of the first byte in which the first two ballots differ; 0 when they do not. */
  firstDifference(): number {
    const [first, second] = this.ballots
    if (first === undefined || second === undefined) return 0
    const at = first.findIndex((byte, index) => byte !== second[index])
    return Math.max(at, 0)
  }
}

/** The error whose code occurs most often; EIO when there is none. */
export function mostFrequentError(errors: readonly (BlockError | undefined)[]): BlockError {
  const counts = new Map<string, { error: BlockError; count: number }>()
  for (const error of errors) {
    if (error === undefined) continue
    const entry = counts.get(error.code)
    if (entry === undefined) counts.set(error.code, { error, count: 1 })
    else entry.count++
  }
  let best: { error: BlockError; count: number } | undefined
  for (const entry of counts.values()) if (entry.count > (best?.count ?? 0)) best = entry
  return best?.error ?? ioError('EIO')
}

/**
 * Whether success of the node says that the data is stored. A node that reports its own failures
 * elsewhere says so with `countsAsVote === false`; filters answer for what is under them.
 */
export function childCounts(node: BlockNode): boolean {
  const { driver } = node
  if (driver !== undefined && 'countsAsVote' in driver) return driver.countsAsVote !== false
  if (node.definition.kind !== 'filter') return true
  for (const child of node.children.values()) {
    if (child.role === 'filtered') return childCounts(child.node)
  }
  return true
}
