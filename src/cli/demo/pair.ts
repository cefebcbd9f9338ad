/**
 * The replicated pair: two processes, one side of the library's short way in each.
 *
 * Invariants:
 * - The two processes share nothing but the NBD connection of the primary to the secondary.
 * - Both disks start with the same bytes; an image given by the user is copied and never changed.
 */
import { constants, rmSync } from 'node:fs'
import { copyFile, mkdtemp } from 'node:fs/promises'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import type { PairStatus } from '../../index.ts'
import { openDisk } from './disk-client.ts'
import type { GuestDisk } from './guest.ts'
import { GUEST_EXPORT, type SideSpec } from './side.ts'
import { SideProcess } from './side-process.ts'

/** A side as far as checkpoints need to know it. */
export interface Peer {
  /** What it is called in errors. */
  readonly name: string
  /** Takes a checkpoint. */
  checkpoint(): Promise<void>
  /** How replication is there. */
  status(): Promise<Pick<PairStatus, 'error'>>
}

/** A pair that replicates. */
export class Pair {
  /** Holds the disk that guests write. */
  readonly primary: SideProcess
  /** Holds the standby. */
  readonly secondary: SideProcess
  private readonly folder: string
  private readonly disks: GuestDisk[] = []
  private merging: Promise<void> = Promise.resolve()

  private constructor(folder: string, primary: SideProcess, secondary: SideProcess) {
    this.folder = folder
    this.primary = primary
    this.secondary = secondary
  }

  /** Starts both sides, which replicate at once. Errors: whatever a side refuses. */
  static async start(size: number, disk: string | undefined): Promise<Pair> {
    const folder = await mkdtemp(join(tmpdir(), 'blockstep-'))
    const started: SideProcess[] = []
    const removeFiles = (): void => rmSync(folder, { recursive: true, force: true })
    // Also on an interrupt, when nobody comes back here.
    process.once('exit', removeFiles)
    const start = async (role: SideSpec['role']): Promise<SideProcess> => {
      const file = disk === undefined ? {} : { file: join(folder, `${role}.raw`) }
      if (disk !== undefined)
        await copyFile(disk, join(folder, `${role}.raw`), constants.COPYFILE_FICLONE)
      const side = await SideProcess.start({ role, size, ...file, ...sockets(folder) })
      started.push(side)
      return side
    }
    try {
      const secondary = await start('secondary')
      return new Pair(folder, await start('primary'), secondary)
    } catch (thrown) {
      for (const side of started) await side.kill()
      removeFiles()
      throw thrown
    }
  }

  /** A connection to the disk that the primary's guest sees; `close` ends it. */
  openPrimary(): Promise<GuestDisk> {
    return this.open(sockets(this.folder).primaryAt)
  }

  /** A connection to the disk that the secondary's guest sees; `close` ends it. */
  openSecondary(): Promise<GuestDisk> {
    return this.open(sockets(this.folder).secondaryAt)
  }

  /** Promotes the secondary; returns once it has taken over, with the merge still running. */
  async failover(): Promise<void> {
    this.merging = (await this.secondary.failover()).merged
  }

  /** Waits until the secondary's buffers are merged into its disk. Errors: EIO. */
  merged(): Promise<void> {
    return this.merging
  }

  /** Ends both sides, if need be by force, and removes all files. */
  async close(): Promise<void> {
    for (const disk of this.disks) await disk.close()
    for (const side of [this.primary, this.secondary]) {
      if (side.exit === undefined) await side.kill()
    }
    rmSync(this.folder, { recursive: true, force: true })
  }

  private async open(path: string): Promise<GuestDisk> {
    const disk = await openDisk(path, GUEST_EXPORT)
    this.disks.push(disk)
    return disk
  }
}

function sockets(folder: string): { readonly primaryAt: string; readonly secondaryAt: string } {
  return { primaryAt: join(folder, 'primary.nbd'), secondaryAt: join(folder, 'secondary.nbd') }
}

/** What is wrong with replication on one side, or undefined. */
export async function checkHealth(peer: Peer): Promise<string | undefined> {
  const { error } = await peer.status()
  return error === undefined ? undefined : `${peer.name}: ${error}`
}
