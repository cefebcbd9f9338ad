/**
 * A guest's disk over NBD: the client of this project behind the few operations that a guest needs.
 */
import { NbdClient } from '../../index.ts'
import type { GuestDisk } from './guest.ts'

/** Connects to an export on a unix socket. Errors: those of connecting and negotiating. */
export async function openDisk(path: string, name: string): Promise<GuestDisk> {
  const client = await NbdClient.connect({ server: { type: 'unix', path }, export: name })
  return {
    read: async (offset, buf) => client.read(offset, buf),
    write: async (offset, buf) => client.write(offset, buf),
    flush: async () => client.flush(),
    close: async () => client.disconnect(),
  }
}
