/**
 * Items in the order in which they came, each of which can leave at any time.
 *
 * A `Set` would do but for the collector: a set that many items pass through leaves a chain of outgrown
 * tables behind, and once one of them has become old, everything that later tables held lives on until
 * the next full collection.
 *
 * Invariants:
 * - An item is in at most one list; one that left links to nothing.
 */
import { assert } from './errors.ts'

/** What an item keeps for its list; nobody else touches it. */
export interface Linked<T> {
  /** The item that came before; undefined for the first, and outside a list. */
  previous: T | undefined
  /** The item that came after; undefined for the last, and outside a list. */
  next: T | undefined
}

/** See the file's purpose. Iterates the oldest first; nothing may leave meanwhile. */
export class LinkedList<T extends Linked<T>> implements Iterable<T> {
  #first: T | undefined
  #last: T | undefined
  #size = 0

  /** How many items are in it. */
  get size(): number {
    return this.#size
  }

  /** The oldest item. */
  get first(): T | undefined {
    return this.#first
  }

  /** Puts an item, which is in no list, at the end. */
  add(item: T): void {
    const last = this.#last
    item.previous = last
    if (last === undefined) this.#first = item
    else last.next = item
    this.#last = item
    this.#size++
  }

  /** Whether the item, which is in no other list, is in this one. */
  has(item: T): boolean {
    return item.previous !== undefined || this.#first === item
  }

  /** Takes an item of this list out. */
  remove(item: T): void {
    assert(this.has(item), 'an item that leaves a list is in it')
    const { previous, next } = item
    if (previous === undefined) this.#first = next
    else previous.next = next
    if (next === undefined) this.#last = previous
    else next.previous = previous
    item.previous = undefined
    item.next = undefined
    this.#size--
  }

  *[Symbol.iterator](): Generator<T> {
    for (let item = this.#first; item !== undefined; item = item.next) yield item
  }
}
