/**
 * The NBD server of a runtime and the exports it offers.
 *
 * Invariants:
 * - There is at most one server; exports live and die with it.
 * - An export's backend shares everything but resizing, so a disk keeps its length while exported.
 * - `BLOCK_EXPORT_DELETED` follows every export that ends, after its last request.
 */
import { BlockBackend } from '../block/backend.ts'
import { PERM } from '../block/driver.ts'
import type { BlockGraph } from '../block/graph.ts'
import type { NamedBitmap } from '../block/named-bitmap.ts'
import type { BlockNode } from '../block/node.ts'
import type { ExportBitmap } from '../nbd/export.ts'
import { NbdServer } from '../nbd/server.ts'
import type { TlsServerOptions } from '../nbd/tls.ts'
import type { ExportInfo, ExportRequest, ExportService, ServerAddress } from '../qmp/services.ts'
import { fenceExport } from '../replication/buffers.ts'
import { BlockError } from '../util/errors.ts'

interface Entry {
  readonly id: string
  readonly name: string
  readonly backend: BlockBackend
  /** Gives the bitmaps back. */
  readonly release: readonly (() => void)[]
  removing: boolean
}

/** Turns of the host loop in which the ends of connections that arrived are worked off. */
const GOODBYE_TURNS = 4
const ID_PATTERN = /^[A-Za-z][A-Za-z0-9\-._]*$/

/** The exports of a runtime. */
export class Exports implements ExportService {
  readonly #graph: BlockGraph
  readonly #entries = new Map<string, Entry>()
  #server: NbdServer | undefined

  constructor(graph: BlockGraph) {
    this.#graph = graph
  }

  /** The server, while it runs; for its address and its counters. */
  get server(): NbdServer | undefined {
    return this.#server
  }

  get running(): boolean {
    return this.#server !== undefined
  }

  async startServer(
    address: ServerAddress,
    maxConnections?: number,
    tls?: TlsServerOptions,
  ): Promise<void> {
    if (this.#server !== undefined) throw new BlockError('EBUSY', 'NBD server already running')
    const options = {
      ...(maxConnections === undefined ? {} : { maxConnections }),
      ...(tls === undefined ? {} : { tls }),
    }
    const server = new NbdServer({ ctx: this.#graph.ctx, ...options })
    this.#server = server
    try {
      if (address.type === 'fd') await server.listenFd(address.fd)
      else await server.listen(address)
    } catch (error) {
      this.#server = undefined
      throw error
    }
  }

  async stopServer(): Promise<void> {
    const server = this.#needServer()
    this.#server = undefined
    const entries = [...this.#entries.values()].filter((entry) => !entry.removing)
    for (const entry of entries) entry.removing = true
    await server.close()
    for (const entry of entries) await this.#end(entry)
  }

  async add(request: ExportRequest): Promise<void> {
    const { id, nodeName, device } = request
    if (!ID_PATTERN.test(id)) throw new BlockError('EINVAL', 'Invalid block export id')
    this.#checkFreeId(id)
    const node = this.#graph.lookup(device, nodeName)
    const writable = request.writable === true
    if (writable && node.readOnly)
      throw new BlockError('EPERM', 'Cannot export read-only node as writable', { node: nodeName })
    const name = request.name ?? nodeName
    const backend = await BlockBackend.create(this.#graph, node, {
      perm: PERM.CONSISTENT_READ | (writable ? PERM.WRITE : 0),
      shared: PERM.ALL & ~PERM.RESIZE,
      sharesAllFirst: true,
      whenIn: () => void this.#needServer(),
      writethrough: request.writethrough === true,
    })
    fenceExport(backend)
    let bitmaps: NamedBitmap[]
    try {
      // Another monitor may have been quicker while the backend was made.
      const server = this.#needServer()
      this.#checkFreeId(id)
      if (server.find(name) !== undefined) {
        throw new BlockError('EEXIST', `NBD server already has export named '${name}'`)
      }
      bitmaps = this.#bitmaps(node, request, writable)
      server.addExport({
        name,
        backend,
        readOnly: !writable,
        exclusive: request.exclusive === true,
        bitmaps: bitmaps.map((bitmap) => ({ name: bitmap.name, bitmap: shown(bitmap) })),
        allocationDepth: request.allocationDepth === true,
        ...(request.description === undefined ? {} : { description: request.description }),
      })
    } catch (error) {
      await backend.close()
      throw error
    }
    this.#entries.set(id, {
      id,
      name,
      backend,
      release: bitmaps.map((bitmap) => bitmap.use()),
      removing: false,
    })
  }

  async remove(id: string, mode: 'safe' | 'hard'): Promise<void> {
    const entry = this.#entries.get(id)
    if (entry === undefined || entry.removing) {
      throw new BlockError('ENOENT', `Export '${id}' is not found`)
    }
    await this.#unlist(entry, mode)
    entry.removing = true
    await this.#end(entry)
  }

  backends(): ReadonlyMap<string, BlockBackend> {
    return new Map([...this.#entries].map(([id, { backend }]) => [id, backend]))
  }

  list(): ExportInfo[] {
    const all = [...this.#entries.values()].reverse()
    return all.map((entry) => ({
      'node-name': entry.backend.node.name,
      'shutting-down': entry.removing,
      type: 'nbd',
      id: entry.id,
    }))
  }

  /** Ends everything; for the end of the runtime. */
  async close(): Promise<void> {
    if (this.#server !== undefined) await this.stopServer()
  }

  /**
   * Takes the export off the server. A client that closed its connection before the command was
   * sent does not count: its goodbye is worked off first.
   */
  async #unlist({ id, name }: Entry, mode: 'safe' | 'hard'): Promise<void> {
    for (let turn = 0; ; turn++) {
      try {
        this.#server?.removeExport(name, mode)
        return
      } catch (error) {
        const busy = error instanceof BlockError && error.code === 'EBUSY'
        if (!busy) throw error
        if (turn === GOODBYE_TURNS) throw new BlockError('EBUSY', `export '${id}' still in use`)
      }
      await new Promise<void>((resolve) => this.#graph.ctx.clock.setImmediate(resolve))
    }
  }

  async #end(entry: Entry): Promise<void> {
    await entry.backend.close()
    for (const release of entry.release) release()
    this.#entries.delete(entry.id)
    this.#graph.events.emit('BLOCK_EXPORT_DELETED', { id: entry.id })
  }

  #bitmaps(node: BlockNode, request: ExportRequest, writable: boolean): NamedBitmap[] {
    return (request.bitmaps ?? []).map(({ node: owner, name }) => {
      const bitmap = findBitmap(this.#graph.find(owner) ?? node, name)
      if (bitmap === undefined) throw new BlockError('EINVAL', `Bitmap '${name}' is not found`)
      bitmap.checkUsable()
      if (writable || !bitmap.enabled) return bitmap
      throw new BlockError('EINVAL', `Enabled bitmap '${name}' incompatible with readonly export`)
    })
  }

  #checkFreeId(id: string): void {
    if (!this.#entries.has(id)) return
    throw new BlockError('EEXIST', `Block export id '${id}' is already in use`)
  }

  #needServer(): NbdServer {
    if (this.#server === undefined) throw new BlockError('EINVAL', 'NBD server not running')
    return this.#server
  }
}

// The bits of a bitmap are replaced when it is cleared, so they are asked for anew each time.
function shown(bitmap: NamedBitmap): ExportBitmap {
  return { nextDirty: (from) => bitmap.bits.nextDirty(from) }
}

// A bitmap may belong to an image further down the chain.
function findBitmap(node: BlockNode, name: string): NamedBitmap | undefined {
  for (let at: BlockNode | undefined = node; at !== undefined; at = at.chainNext) {
    const bitmap = at.bitmaps.get(name)
    if (bitmap !== undefined) return bitmap
  }
  return undefined
}
