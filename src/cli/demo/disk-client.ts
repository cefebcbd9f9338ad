/**
 * A guest's disk over NBD: the client of this project behind the few operations that a guest needs.
 *
 * Invariants:
 * - A lost connection is an error at once: a guest of a dead primary must not wait for it.
 */
import { HostClock, NbdClient } from '../../index.ts'
import type { GuestDisk } from './guest.ts'

/** Connects to an export on a unix socket. Errors: those of connecting and negotiating. */
export async function openDisk(path: string, exportName: string): Promise<GuestDisk> {
  const address = { type: 'unix', path } as const
  const client = await NbdClient.connect({ ctx: { clock: new HostClock() }, address, exportName })
  return {
    read: (offset, buf) => client.read(offset, buf),
    write: (offset, buf) => client.write(offset, buf),
    flush: () => client.flush(),
    close: () => client.disconnect(),
  }
}
