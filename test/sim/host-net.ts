/**
 * What stands in for the host's `connect` and `createServer` while a history runs.
 *
 * Invariants:
 * - This file imports nothing but types of the host's network, so that it can be loaded in place of it.
 */
import type { Socket } from 'node:net'

/** Whoever makes connections and listening sockets; shaped as the host's module. */
export interface HostNet {
  connect(where: object): unknown
  createServer(options: object, accept: (socket: Socket) => void): unknown
}

let current: HostNet | undefined

/** Everything goes to this one from now on. */
export function useHostNet(net: HostNet | undefined): void {
  current = net
}

function net(): HostNet {
  if (current === undefined) throw new Error('no simulated network')
  return current
}

/** As of `node:net`. */
export function connect(where: object): unknown {
  return net().connect(where)
}

/** As of `node:net`. */
export function createServer(options: object, accept: (socket: Socket) => void): unknown {
  return net().createServer(options, accept)
}
