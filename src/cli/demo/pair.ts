/**
 * The replicated pair: two daemons, their disks, and how they are tied together over QMP and NBD.
 *
 * Invariants:
 * - Only public commands are used; there is no private way into a daemon.
 * - Both disks start with the same bytes; an image given by the user is copied and never changed.
 */
import { constants, rmSync } from 'node:fs'
import { copyFile, mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { BlockError } from '../../index.ts'
import { DaemonProcess } from './daemon-process.ts'
import { openDisk } from './disk-client.ts'
import type { GuestDisk } from './guest.ts'

/** Names of nodes and exports. */
const OWN = 'own'
const LOCAL = 'local'
const ACTIVE = 'active'

/** Pause between two looks at the merge. */
const POLL_MS = 10

/** How long the merge after a failover may take. */
const MERGE_LIMIT_MS = 60_000

/** Somebody who takes commands. */
export interface Peer {
  /** What it is called in errors. */
  readonly name: string
  /** Runs a QMP command. */
  execute(command: string, args?: Readonly<Record<string, unknown>>): Promise<unknown>
}

/** A pair that replicates. */
export class Pair {
  /** Holds the disk that guests write. */
  readonly primary: DaemonProcess
  /** Holds the standby. */
  readonly secondary: DaemonProcess
  private readonly folder: string
  private readonly disks: GuestDisk[] = []

  private constructor(folder: string, primary: DaemonProcess, secondary: DaemonProcess) {
    this.folder = folder
    this.primary = primary
    this.secondary = secondary
  }

  /** Starts both daemons and replication. Errors: whatever a daemon refuses. */
  static async start(size: number, disk: string | undefined): Promise<Pair> {
    const folder = await mkdtemp(join(tmpdir(), 'blockstep-'))
    const started: DaemonProcess[] = []
    const removeFiles = (): void => rmSync(folder, { recursive: true, force: true })
    // Also on an interrupt, when nobody comes back here.
    process.once('exit', removeFiles)
    try {
      for (const name of ['primary', 'secondary']) {
        started.push(await DaemonProcess.start(name, join(folder, `${name}.qmp`)))
      }
      const pair = new Pair(folder, started[0] as DaemonProcess, started[1] as DaemonProcess)
      await pair.build(size, disk)
      return pair
    } catch (thrown) {
      for (const daemon of started) await daemon.kill()
      removeFiles()
      throw thrown
    }
  }

  /** A connection to the disk that the primary's guest sees; `close` ends it. */
  openPrimary(): Promise<GuestDisk> {
    return this.open('primary', 'colo')
  }

  /** A connection to the disk that the secondary's guest sees; `close` ends it. */
  openSecondary(): Promise<GuestDisk> {
    return this.open('secondary', 'top')
  }

  /** Promotes the secondary; returns once it has taken over, with the merge still running. */
  async failover(): Promise<void> {
    const stop = { enable: false, primary: false, failover: true }
    await this.secondary.execute('xen-set-replication', stop)
  }

  /** Waits until the secondary's buffers are merged into its disk. Errors: EIO, ETIMEDOUT. */
  async merged(): Promise<void> {
    const limit = performance.now() + MERGE_LIMIT_MS
    for (;;) {
      const nodes = (await this.secondary.execute('query-named-block-nodes', { flat: true })) as {
        'node-name': string
      }[]
      const status = await checkHealth(this.secondary)
      if (!nodes.some((node) => node['node-name'] === ACTIVE) && status === undefined) return
      if (performance.now() > limit) {
        throw new BlockError('ETIMEDOUT', status ?? 'the merge after the failover took too long')
      }
      await new Promise((resolve) => setTimeout(resolve, POLL_MS))
    }
  }

  /** Ends both daemons, if need be by force, and removes all files. */
  async close(): Promise<void> {
    for (const disk of this.disks) await disk.close()
    for (const daemon of [this.primary, this.secondary]) {
      if (daemon.exit === undefined) await daemon.kill()
    }
    rmSync(this.folder, { recursive: true, force: true })
  }

  private async open(side: string, name: string): Promise<GuestDisk> {
    const disk = await openDisk(join(this.folder, `${side}.nbd`), name)
    this.disks.push(disk)
    return disk
  }

  private async build(size: number, disk: string | undefined): Promise<void> {
    const { primary, secondary } = this
    const memory = (name: string): object => ({ driver: 'memory', 'node-name': name, size })
    const copy = async (name: string): Promise<object> => {
      if (disk === undefined) return memory(name)
      const filename = join(this.folder, `${name}.raw`)
      await copyFile(disk, filename, constants.COPYFILE_FICLONE)
      return { driver: 'raw', 'node-name': name, file: { driver: 'file', filename } }
    }
    await add(secondary, await copy(LOCAL))
    const hidden = { ...memory('hidden'), backing: LOCAL }
    const file = { ...memory(ACTIVE), backing: hidden }
    const role = { driver: 'replication', mode: 'secondary', 'top-id': 'top' }
    await add(secondary, { ...role, 'node-name': 'top', file })
    await this.serve(secondary, LOCAL, 'top')

    const vote = { driver: 'quorum', 'vote-threshold': 1, 'read-pattern': 'fifo' }
    await add(primary, { ...vote, 'node-name': 'colo', children: [await copy(OWN)] })
    await this.serve(primary, 'colo')
    const server = { type: 'unix', path: join(this.folder, 'secondary.nbd') }
    const link = { driver: 'nbd', 'node-name': 'link', server, export: LOCAL }
    const replica = { driver: 'replication', 'node-name': 'replica', mode: 'primary', file: link }
    await add(primary, replica)
    await primary.execute('x-blockdev-change', { parent: 'colo', node: 'replica' })

    await secondary.execute('xen-set-replication', { enable: true, primary: false })
    await primary.execute('xen-set-replication', { enable: true, primary: true })
  }

  private async serve(daemon: DaemonProcess, ...names: string[]): Promise<void> {
    const data = { path: join(this.folder, `${daemon.name}.nbd`) }
    await daemon.execute('nbd-server-start', { addr: { type: 'unix', data } })
    for (const device of names) {
      await daemon.execute('nbd-server-add', { device, writable: true })
    }
  }
}

async function add(daemon: DaemonProcess, options: object): Promise<void> {
  await daemon.execute('blockdev-add', { ...options })
}

/** What is wrong with replication on one side, or undefined. */
export async function checkHealth(daemon: Peer): Promise<string | undefined> {
  const status = (await daemon.execute('query-xen-replication-status')) as {
    error: boolean
    desc?: string
  }
  return status.error ? `${daemon.name}: ${status.desc ?? 'replication failed'}` : undefined
}
