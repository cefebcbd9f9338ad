/**
 * Which clusters were copied since the last checkpoint, and who is copying one now.
 *
 * Invariants:
 * - A cluster is untouched, claimed by one copier, or copied. Its word counts only while it carries
 *   the current epoch, so one store makes all clusters untouched again.
 * - The epoch moves only while nothing is claimed and nobody can claim: inside a drained section.
 * - Whoever waits for a claim marks it first, so settling an unmarked claim wakes nobody.
 *
 * Words: `epoch` written by the drain owner; `claims`, `settled` and one word a cluster written by
 * copiers of any thread; `settled` is waited on.
 */
import { assert } from '../util/errors.ts'
import { shared } from './atomics.ts'
import { ChangeWait } from './word-wait.ts'

const EPOCH = 0
const CLAIMS = 1
const SETTLED = 2
const CLUSTERS = 3

/** Low two bits of a cluster's word; the epoch is above them. */
const CLAIMED = 1
const COPIED = 2
const CLAIMED_WAITED = 3
/** The epoch has 30 bits; when they are used up every word is cleared, once in a billion. */
const LAST_EPOCH = 0x3fff_ffff

/** What `claim` and `state` say of a cluster. */
export type ClusterState = 'untouched' | 'claimed' | 'copied'

/** A view of a copy map. */
export class CopyMap {
  /** How many clusters it covers. */
  readonly clusters: number
  /** The array that holds the words. */
  readonly words: Int32Array
  readonly #settled: ChangeWait

  /** A view over words that `create` made. */
  constructor(words: Int32Array) {
    this.words = words
    this.clusters = words.length - CLUSTERS
    this.#settled = new ChangeWait(words, SETTLED)
  }

  /** A map with every cluster untouched. */
  static create(clusters: number): CopyMap {
    const words = new Int32Array(new SharedArrayBuffer((CLUSTERS + clusters) * 4))
    // Epoch 0 would make the zero words of a new map current.
    shared.store(words, EPOCH, 1)
    return new CopyMap(words)
  }

  /** Number of the current epoch. */
  get epoch(): number {
    return shared.load(this.words, EPOCH)
  }

  /** How many clusters are being copied. */
  get claims(): number {
    return shared.load(this.words, CLAIMS)
  }

  /** Where a cluster stands. */
  state(cluster: number): ClusterState {
    const epoch = shared.load(this.words, EPOCH)
    return stateOf(shared.load(this.words, CLUSTERS + cluster), epoch)
  }

  /**
   * Tries to claim a cluster; answers what it was. After `untouched` the caller owns it and must
   * `complete` or `abandon` it. Only while the caller holds up drains.
   */
  claim(cluster: number): ClusterState {
    const index = CLUSTERS + cluster
    const epoch = shared.load(this.words, EPOCH)
    // Nearly every write finds its cluster copied: that answer costs two loads.
    let word = shared.load(this.words, index)
    if (stateOf(word, epoch) !== 'untouched') return stateOf(word, epoch)
    shared.add(this.words, CLAIMS, 1)
    for (;;) {
      const before = shared.compareExchange(this.words, index, word, (epoch << 2) | CLAIMED)
      if (before === word) return 'untouched'
      word = before
      if (stateOf(word, epoch) !== 'untouched') break
    }
    shared.sub(this.words, CLAIMS, 1)
    return stateOf(word, epoch)
  }

  /** The copy of a claimed cluster is done. */
  complete(cluster: number): void {
    this.#settle(cluster, (shared.load(this.words, EPOCH) << 2) | COPIED)
  }

  /** The copy of a claimed cluster failed; it is untouched again. */
  abandon(cluster: number): void {
    this.#settle(cluster, 0)
  }

  /**
   * Waits for the claim of a cluster; `undefined` = it is not claimed. The wait may be over early, and
   * the cluster may be claimed again: who waits calls `claim` again.
   */
  whenSettled(cluster: number): Promise<void> | undefined {
    for (;;) {
      const seen = shared.load(this.words, SETTLED)
      if (!this.#markWaited(cluster)) return undefined
      const wait = this.#settled.wait(seen)
      if (wait !== undefined) return wait
    }
  }

  /** The blocking form, for workers. */
  waitSettled(cluster: number): void {
    for (;;) {
      const seen = shared.load(this.words, SETTLED)
      if (!this.#markWaited(cluster)) return
      shared.wait(this.words, SETTLED, seen)
    }
  }

  /** Makes all clusters untouched. Only drained, with nothing claimed. Answers the new epoch. */
  bumpEpoch(): number {
    assert(this.claims === 0, 'no cluster is claimed when the epoch moves')
    return this.#nextEpoch()
  }

  /**
   * The same after the copiers died: their claims are void and who waits for them looks again. Only
   * drained, with no living copier.
   */
  rearm(): number {
    shared.store(this.words, CLAIMS, 0)
    const epoch = this.#nextEpoch()
    this.#wake()
    return epoch
  }

  /** Lets the host's wait on the words go; for the end of the map's life. */
  dispose(): void {
    this.#settled.release()
  }

  /** Tells the copier of a cluster that somebody waits; false when it is not claimed. */
  #markWaited(cluster: number): boolean {
    const index = CLUSTERS + cluster
    const epoch = shared.load(this.words, EPOCH)
    for (;;) {
      const word = shared.load(this.words, index)
      if (word === ((epoch << 2) | CLAIMED_WAITED)) return true
      if (word !== ((epoch << 2) | CLAIMED)) return false
      const marked = (epoch << 2) | CLAIMED_WAITED
      if (shared.compareExchange(this.words, index, word, marked) === word) return true
    }
  }

  #settle(cluster: number, word: number): void {
    const before = shared.exchange(this.words, CLUSTERS + cluster, word)
    const state = before & 3
    assert(state === CLAIMED || state === CLAIMED_WAITED, 'only a claimed cluster is settled')
    if (state === CLAIMED_WAITED) this.#wake()
    // Last, so that no epoch begins while this cluster's word may still change.
    shared.sub(this.words, CLAIMS, 1)
  }

  #wake(): void {
    shared.add(this.words, SETTLED, 1)
    shared.notify(this.words, SETTLED)
    this.#settled.poke()
  }

  #nextEpoch(): number {
    const epoch = shared.load(this.words, EPOCH)
    if (epoch < LAST_EPOCH) return shared.store(this.words, EPOCH, epoch + 1)
    this.words.fill(0, CLUSTERS)
    return shared.store(this.words, EPOCH, 1)
  }
}

function stateOf(word: number, epoch: number): ClusterState {
  if (word >>> 2 !== epoch) return 'untouched'
  return (word & 3) === COPIED ? 'copied' : 'claimed'
}
