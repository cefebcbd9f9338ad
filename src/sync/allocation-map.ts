/**
 * Which clusters of an overlay hold data, so that the whole overlay can be emptied by one store.
 *
 * Invariants:
 * - A cluster's word counts only while it carries the current epoch; any other word means "empty".
 * - The bytes of a cluster are in place before its word says so, and the word of its group carries
 *   the epoch before that; so a group of another epoch is empty as a whole.
 * - `emptyAll` is called with nothing in flight; for readers it is one step.
 *
 * Words: 0 epoch (written by the main thread), one word a group of 1024 clusters: the last epoch in
 * which something was written there, then one word a cluster: `epoch << 2 | state` (both written by
 * whoever wrote the cluster). Nobody waits on them.
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
const GROUPS = 1
/** Clusters of a group, so that a search steps over an empty gigabyte in a few reads. */
const GROUP = 1024
const EPOCH_MAX = 2 ** 29

/** A view of the map; every thread makes its own over the same words. */
export class AllocationMap {
  /** The words. */
  readonly words: Int32Array
  /** How many clusters it covers. */
  readonly clusters: number
  /** Where the words of the clusters begin. */
  readonly #first: number

  constructor(words: Int32Array) {
    const both = words.length - GROUPS
    this.words = words
    this.clusters = Math.floor((both * GROUP) / (GROUP + 1))
    this.#first = GROUPS + Math.ceil(this.clusters / GROUP)
    assert(
      this.clusters > 0 && this.#first + this.clusters === words.length,
      'an allocation map has words for clusters and their groups',
    )
  }

  /** A map of empty clusters. */
  static create(clusters: number): AllocationMap {
    const length = GROUPS + Math.ceil(clusters / GROUP) + clusters
    const words = new Int32Array(new SharedArrayBuffer(length * 4))
    shared.store(words, EPOCH, 1)
    return new AllocationMap(words)
  }

  /** The current epoch; above 0. */
  get epoch(): number {
    return shared.load(this.words, EPOCH)
  }

  /** What the overlay holds of a cluster. */
  state(cluster: number): ClusterState {
    const word = shared.load(this.words, this.#first + cluster)
    return word >> 2 === this.epoch ? ((word & 3) as ClusterState) : CLUSTER.EMPTY
  }

  /** Publishes the state of a cluster; its bytes are in place. */
  set(cluster: number, state: ClusterState): void {
    const { epoch } = this
    this.#touch(cluster, epoch)
    shared.store(this.words, this.#first + cluster, (epoch << 2) | state)
  }

  /** Publishes one state for a run of clusters. */
  setRun(first: number, count: number, state: ClusterState): void {
    const { epoch } = this
    const word = (epoch << 2) | state
    const end = first + count
    for (let group = first; group < end; group = nextGroup(group)) this.#touch(group, epoch)
    for (let cluster = first; cluster < end; cluster++)
      shared.store(this.words, this.#first + cluster, word)
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
    const end = Math.min(cluster + limit, this.clusters)
    let at = cluster + 1
    if (first === CLUSTER.EMPTY) at = this.#nextHeld(at, end, epoch)
    else {
      const same = (epoch << 2) | first
      while (at < end && words[this.#first + at] === same) at++
    }
    shared.load(words, EPOCH)
    return at - cluster
  }

  /** The first cluster from `at` on that is not empty, or `end`. */
  #nextHeld(at: number, end: number, epoch: number): number {
    const { words } = this
    let cluster = at
    while (cluster < end) {
      const stop = Math.min(end, nextGroup(cluster))
      if (words[GROUPS + Math.floor(cluster / GROUP)] !== epoch) cluster = stop
      else {
        while (cluster < stop && !held(words[this.#first + cluster] ?? 0, epoch)) cluster++
        if (cluster < stop) break
      }
    }
    return Math.min(cluster, end)
  }

  #touch(cluster: number, epoch: number): void {
    const group = GROUPS + Math.floor(cluster / GROUP)
    if (shared.load(this.words, group) !== epoch) shared.store(this.words, group, epoch)
  }

  /** Empties every cluster. Nothing may be in flight. */
  emptyAll(): void {
    const next = this.epoch + 1
    if (next < EPOCH_MAX) {
      shared.store(this.words, EPOCH, next)
      return
    }
    // The epoch starts over: no word of an older round may look like a new one.
    this.words.fill(0, GROUPS)
    shared.store(this.words, EPOCH, 1)
  }
}

/** Whether a word of this epoch says DATA or ZERO. */
function held(word: number, epoch: number): boolean {
  return word >> 2 === epoch && (word & 3) !== CLUSTER.EMPTY
}

/** The first cluster behind the group of `cluster`. */
function nextGroup(cluster: number): number {
  return (Math.floor(cluster / GROUP) + 1) * GROUP
}
