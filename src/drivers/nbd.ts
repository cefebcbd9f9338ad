/**
 * The `nbd` driver: a disk that an NBD server keeps.
 *
 * Invariants:
 * - A read-only export is opened read-only, or not at all.
 * - Whatever becomes of the connection, every request ends; how long it may take is the options'.
 */
import {
  type BlockDriver,
  type BlockdevOptions,
  type BlockLimits,
  type BlockStatus,
  type DriverDefinition,
  FLAG,
  NO_LIMITS,
  type PreparedReopen,
  type ReopenTarget,
  STATUS,
} from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import { addressText, type NbdAddress } from '../nbd/address.ts'
import { NbdClient } from '../nbd/client.ts'
import { NBD_DEFAULT_PORT, NBD_FLAG, NBD_STATE } from '../nbd/constants.ts'
import type { TlsClientOptions, TlsCredentials } from '../nbd/tls.ts'
import { nbdUri } from '../nbd/uri.ts'
import { BlockError } from '../util/errors.ts'

/** Longest zero write sent at once, in bytes. */
const MAX_ZEROES = 32 << 20

const MAX_CONTEXT_NAME = 4096

/** Finds a client's credentials by the id of their object. Errors: EINVAL when there are none. */
export type FindCredentials = (id: string) => TlsCredentials

/** Disks behind an NBD server. */
export function makeNbdDriver(credentials: FindCredentials): DriverDefinition {
  return {
    name: 'nbd',
    kind: 'protocol',
    open: (node, options) => open(node, options, credentials),
  }
}

/** The driver where there are no objects, and so no credentials. */
export const nbdDriver: DriverDefinition = makeNbdDriver((id) => {
  throw new BlockError('EINVAL', `No TLS credentials with id '${id}'`)
})

async function open(
  node: BlockNode,
  options: BlockdevOptions,
  credentials: FindCredentials,
): Promise<BlockDriver> {
  refuseUnknown(options)
  const address = addressOf(options)
  const exportName = textOption(options, 'export') ?? ''
  const tls = tlsOptions(options, credentials)
  const client = await NbdClient.connect({
    ctx: node.graph.ctx,
    address,
    exportName,
    reconnectDelayMs: secondsOption(options, 'reconnect-delay'),
    openTimeoutMs: secondsOption(options, 'open-timeout'),
    requestTimeoutMs: secondsOption(options, 'request-timeout'),
    ...(tls === undefined ? {} : { tls }),
  })
  if (client.readOnly && !node.readOnly) {
    if (options['auto-read-only'] !== true) {
      await client.disconnect()
      const words = `NBD export '${exportName}' is read-only: Permission denied`
      throw new BlockError('EACCES', words, { path: addressText(address) })
    }
    node.readOnly = true
  }
  return new NbdDisk(client, nbdUri(address, exportName))
}

function tlsOptions(
  options: BlockdevOptions,
  credentials: FindCredentials,
): TlsClientOptions | undefined {
  const id = textOption(options, 'tls-creds')
  const hostname = textOption(options, 'tls-hostname')
  if (id === undefined) return undefined
  return { credentials: credentials(id), ...(hostname === undefined ? {} : { hostname }) }
}

/** A node's view of an NBD client. */
export class NbdDisk implements BlockDriver {
  /** The connection; a monitor yanks it. */
  readonly client: NbdClient
  /** Limits the server told. */
  readonly limits: BlockLimits
  /** FUA, when the server has it. */
  readonly writeFlags: number
  /** What the server can do with zero writes. */
  readonly zeroesFlags: number
  readonly #uri: string

  constructor(client: NbdClient, uri: string) {
    this.client = client
    this.#uri = uri
    const { minBlock, maxBlock } = client.remote
    this.limits = {
      ...NO_LIMITS,
      requestAlignment: minBlock,
      maxTransfer: maxBlock,
      maxZeroes: MAX_ZEROES,
    }
    const fua = client.can(NBD_FLAG.SEND_FUA) ? FLAG.FUA : 0
    const fast = client.can(NBD_FLAG.SEND_FAST_ZERO) ? FLAG.NO_FALLBACK : 0
    this.writeFlags = fua
    this.zeroesFlags = client.can(NBD_FLAG.SEND_WRITE_ZEROES) ? fua | fast | FLAG.MAY_UNMAP : 0
  }

  length(): number {
    return this.client.size
  }

  pread(offset: number, buf: Uint8Array): Promise<void> {
    return this.client.read(offset, buf)
  }

  pwrite(offset: number, buf: Uint8Array, flags: number): Promise<void> {
    return this.client.write(offset, buf, { fua: (flags & FLAG.FUA) !== 0 })
  }

  pwriteZeroes(offset: number, bytes: number, flags: number): Promise<void> {
    if (!this.client.can(NBD_FLAG.SEND_WRITE_ZEROES)) {
      throw new BlockError('ENOTSUP', 'NBD server cannot write zeroes', { offset, bytes })
    }
    return this.client.writeZeroes(offset, bytes, {
      fua: (flags & FLAG.FUA) !== 0,
      unmap: (flags & FLAG.MAY_UNMAP) !== 0,
      fast: (flags & FLAG.NO_FALLBACK) !== 0,
    })
  }

  pdiscard(offset: number, bytes: number): Promise<void> | undefined {
    return this.client.can(NBD_FLAG.SEND_TRIM) ? this.client.trim(offset, bytes) : undefined
  }

  flush(toDisk: boolean): Promise<void> | undefined {
    return toDisk ? this.client.flush() : undefined
  }

  async blockStatus(offset: number, bytes: number): Promise<BlockStatus> {
    const asked = Math.min(bytes, MAX_STATUS)
    const status = await this.client.blockStatus(offset, asked)
    const data = (status.bits & NBD_STATE.HOLE) === 0 ? STATUS.DATA : 0
    const zero = (status.bits & NBD_STATE.ZERO) === 0 ? 0 : STATUS.ZERO
    return { flags: data | zero | STATUS.OFFSET_VALID, bytes: status.bytes, map: offset }
  }

  /** Read-only may change as far as the export allows; where the disk is may not. */
  reopenPrepare(target: ReopenTarget): PreparedReopen {
    if (!target.readOnly && this.client.readOnly) {
      throw new BlockError('EACCES', 'NBD export is read-only: Permission denied')
    }
    return { commit: () => undefined, abort: () => undefined }
  }

  filename(): string {
    return this.#uri
  }

  close(): Promise<void> {
    return this.client.disconnect()
  }
}

/** The length field of a request has 32 bits; whole 64 KiB clusters keep what is below aligned. */
const MAX_STATUS = 0xffff_0000

function addressOf(options: BlockdevOptions): NbdAddress {
  const server = options.server
  const source = typeof server === 'object' && server !== null ? { ...server } : { ...options }
  const fields: Readonly<Record<string, unknown>> = source
  const { path, host, port, type } = fields
  if (path !== undefined && host !== undefined) {
    throw new BlockError('EINVAL', 'path and host may not be used at the same time')
  }
  if (type === 'fd') {
    const words = `File descriptor named '${String(fields.str)}' has not been found`
    throw new BlockError('EINVAL', words)
  }
  if (type !== undefined && type !== 'unix' && type !== 'inet') {
    throw new BlockError('EINVAL', `NBD server address of type '${String(type)}' is not supported`)
  }
  if (typeof path === 'string') return { type: 'unix', path }
  if (typeof host !== 'string')
    throw new BlockError('EINVAL', 'one of path and host must be specified')
  return { type: 'inet', host, port: port === undefined ? NBD_DEFAULT_PORT : String(port) }
}

function textOption(options: BlockdevOptions, name: string): string | undefined {
  const value = options[name]
  if (value === undefined) return undefined
  if (typeof value === 'string') return value
  throw new BlockError('EINVAL', `Invalid parameter type for '${name}', expected: string`)
}

// Dirty bitmaps of servers are read by other means.
function refuseUnknown(options: BlockdevOptions): void {
  const context = options['x-dirty-bitmap']
  if (context === undefined) return
  const words =
    String(context).length > MAX_CONTEXT_NAME
      ? 'x-dirty-bitmap query too long to send to server'
      : 'Could not open image: Invalid argument'
  throw new BlockError('EINVAL', words)
}

/** An option in seconds, as milliseconds; 0 when absent. */
function secondsOption(options: BlockdevOptions, name: string): number {
  const value = options[name]
  if (value === undefined) return 0
  const seconds = Number(value)
  if (Number.isFinite(seconds) && seconds >= 0) return seconds * 1000
  throw new BlockError('EINVAL', `Parameter '${name}' expects a number of seconds`)
}
