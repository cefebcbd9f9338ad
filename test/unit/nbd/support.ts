/**
 * A server with one disk on a unix socket in a directory of its own.
 *
 * Invariants:
 * - Everything made here is gone after `close`.
 */
import { mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { AioContext } from '../../../src/aio/aio-context.ts'
import type { NbdAddress } from '../../../src/nbd/address.ts'
import type { NbdExport } from '../../../src/nbd/export.ts'
import { NbdServer } from '../../../src/nbd/server.ts'
import type { TlsServerOptions } from '../../../src/nbd/tls.ts'
import { FakeDisk } from './fake-disk.ts'

export interface Served {
  server: NbdServer
  disk: FakeDisk
  address: NbdAddress & { type: 'unix' }
  dir: string
  ctx: AioContext
  close(): Promise<void>
}

export async function serve(
  options: {
    size?: number
    max?: number
    exp?: Partial<NbdExport>
    handshakeMs?: number
    tls?: TlsServerOptions
  } = {},
): Promise<Served> {
  const dir = mkdtempSync(join(tmpdir(), 'blockstep-nbd-'))
  const ctx = new AioContext()
  const server = new NbdServer({
    ctx,
    ...(options.max === undefined ? {} : { maxConnections: options.max }),
    ...(options.tls === undefined ? {} : { tls: options.tls }),
    ...(options.handshakeMs === undefined ? {} : { handshakeMs: options.handshakeMs }),
  })
  const disk = new FakeDisk(options.size ?? 1 << 20)
  server.addExport({ name: 'a', backend: disk, readOnly: false, ...options.exp })
  const address = { type: 'unix' as const, path: join(dir, 's') }
  await server.listen(address)
  const close = async (): Promise<void> => {
    await server.close()
    rmSync(dir, { recursive: true })
  }
  return { server, disk, address, dir, ctx, close }
}

/** Waits until `check` holds, a turn of the host loop at a time. */
export async function until(check: () => boolean, what: string): Promise<void> {
  const end = Date.now() + 10_000
  while (!check()) {
    if (Date.now() > end) throw new Error(`waited in vain for ${what}`)
    await new Promise((resolve) => setImmediate(resolve))
  }
}
