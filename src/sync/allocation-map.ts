/**
 * Which clusters of an overlay hold data, so that the whole overlay can be emptied by one store.
 *
 * Invariants:
 * - A cluster's word counts only while it carries the current epoch; any other word means "empty".
 * - The bytes of a cluster are in place before its word says so.
 * - `emptyAll` is called with nothing in flight; for readers it is one step.
 *
 * Words: 0 epoch (written by the main thread), then one word a cluster: `epoch << 2 | state`
 * (written by whoever wrote the cluster). Nobody waits on them.
 */
import { assert } from '../util/errors.ts'
import { shared } from './atomics.ts'

/** What an overlay holds of a cluster. */
export const CLUSTER = {
  /** Nothing; what is below shows. */
  EMPTY: 0,
  /** Data. */
  DATA: 1,
  /** Zeroes, whatever lies in the cluster's bytes. */
  ZERO: 2,
} as const

/** One of the states. */
export type ClusterState = (typeof CLUSTER)[keyof typeof CLUSTER]

const EPOCH = 0
const FIRST = 1
const EPOCH_MAX = 2 ** 29

/** A view of the map; every thread makes its own over the same words. */
export class AllocationMap {
  /** The words. */
  readonly words: Int32Array
  /** How many clusters it covers. */
  readonly clusters: number

  constructor(words: Int32Array) {
    assert(words.length > FIRST, 'an allocation map has words for clusters')
    this.words = words
    this.clusters = words.length - FIRST
  }

  /** A map of empty clusters. */
  static create(clusters: number): AllocationMap {
    const words = new Int32Array(new SharedArrayBuffer((clusters + FIRST) * 4))
    shared.store(words, EPOCH, 1)
    return new AllocationMap(words)
  }

  /** The current epoch; above 0. */
  get epoch(): number {
    return shared.load(this.words, EPOCH)
  }

  /** What the overlay holds of a cluster. */
  state(cluster: number): ClusterState {
    const word = shared.load(this.words, FIRST + cluster)
    return word >> 2 === this.epoch ? ((word & 3) as ClusterState) : CLUSTER.EMPTY
  }

  /** Publishes the state of a cluster; its bytes are in place. */
  set(cluster: number, state: ClusterState): void {
    shared.store(this.words, FIRST + cluster, (this.epoch << 2) | state)
  }

  /** Publishes one state for a run of clusters. */
  setRun(first: number, count: number, state: ClusterState): void {
    const word = (this.epoch << 2) | state
    for (let i = FIRST + first; i < FIRST + first + count; i++) shared.store(this.words, i, word)
  }

  /**
   * How many clusters from `cluster` on, at most `limit`, have the state that it has. Looks with
   * plain reads, ten times as fast as atomic ones: a 32-bit word is never torn, and the atomic read
   * at the end orders them before whatever the caller reads of the clusters' bytes.
   */
  run(cluster: number, limit: number): number {
    const { words } = this
    const epoch = this.epoch
    const first = this.state(cluster)
    const start = FIRST + cluster
    const end = start + limit
    let at = start + 1
    if (first === CLUSTER.EMPTY) while (at < end && (words[at] ?? 0) >> 2 !== epoch) at++
    else {
      const same = (epoch << 2) | first
      while (at < end && words[at] === same) at++
    }
    shared.load(words, EPOCH)
    return at - start
  }

  /** Empties every cluster. Nothing may be in flight. */
  emptyAll(): void {
    const next = this.epoch + 1
    if (next < EPOCH_MAX) {
      shared.store(this.words, EPOCH, next)
      return
    }
    // The epoch starts over: no word of an older round may look like a new one.
    this.words.fill(0, FIRST)
    shared.store(this.words, EPOCH, 1)
  }
}
