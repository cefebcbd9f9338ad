import { execFileSync, spawnSync } from 'node:child_process'
import * as fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { afterEach } from 'vitest'
import { AioContext } from '../../../src/aio/aio-context.ts'
import { BlockBackend } from '../../../src/block/backend.ts'
import type { BlockdevOptions, DriverDefinition } from '../../../src/block/driver.ts'
import { PERM } from '../../../src/block/driver.ts'
import { BlockGraph } from '../../../src/block/graph.ts'
import type { BlockNode } from '../../../src/block/node.ts'
import { blkdebugDriver } from '../../../src/drivers/blkdebug.ts'
import { fileDriver } from '../../../src/drivers/file.ts'
import { memoryDriver } from '../../../src/drivers/memory.ts'
import { nullAioDriver, nullCoDriver } from '../../../src/drivers/null.ts'
import { createQcow2, type Qcow2CreateOptions } from '../../../src/drivers/qcow2/create.ts'
import { qcow2Driver } from '../../../src/drivers/qcow2/driver.ts'
import { rawDriver } from '../../../src/drivers/raw.ts'

/** Drivers that the tests of this folder use. */
export const DRIVERS: DriverDefinition[] = [
  blkdebugDriver,
  fileDriver,
  memoryDriver,
  nullAioDriver,
  nullCoDriver,
  qcow2Driver,
  rawDriver,
]

/** A graph on a host clock, and a folder; both go at the end. */
export class Bench {
  readonly ctx = new AioContext()
  readonly graph: BlockGraph
  readonly dir: string = fs.mkdtempSync(join(tmpdir(), 'blockstep-'))
  readonly #backends: BlockBackend[] = []
  readonly #last: (() => Promise<void>)[] = []

  constructor(drivers: DriverDefinition[] = DRIVERS) {
    this.graph = new BlockGraph({ ctx: this.ctx, drivers })
  }

  path(name: string): string {
    return join(this.dir, name)
  }

  async open(options: BlockdevOptions): Promise<{ node: BlockNode; disk: BlockBackend }> {
    return this.openNode(await this.graph.add(options))
  }

  async openNode(node: BlockNode): Promise<{ node: BlockNode; disk: BlockBackend }> {
    const perm = PERM.CONSISTENT_READ | (node.readOnly ? 0 : PERM.WRITE)
    const disk = await BlockBackend.create(this.graph, node, { perm, shared: PERM.ALL })
    this.#backends.push(disk)
    return { node, disk }
  }

  async shut(disk: BlockBackend): Promise<void> {
    const node = disk.node
    this.#backends.splice(this.#backends.indexOf(disk), 1)
    await disk.close()
    if (node !== undefined) await this.graph.remove(node.name)
  }

  /** Ends, after the nodes, what they depend on. */
  onClose(end: () => Promise<void>): void {
    this.#last.push(end)
  }

  async close(): Promise<void> {
    for (const disk of this.#backends) await disk.close()
    await this.graph.close()
    for (const end of this.#last) await end()
    await this.ctx.close()
    fs.rmSync(this.dir, { recursive: true, force: true })
  }
}

/** Options of a node `a` over an image file. */
export function qcow2(path: string, more: Partial<BlockdevOptions> = {}): BlockdevOptions {
  return { driver: 'qcow2', 'node-name': 'a', file: { driver: 'file', filename: path }, ...more }
}

let current: Bench | undefined
afterEach(async () => {
  await current?.close()
  current = undefined
})

/** The bench of a test, closed after it. */
export function newBench(): Bench {
  current = new Bench()
  return current
}

/** The same with a new image. */
export async function freshImage(options: Qcow2CreateOptions): Promise<{ b: Bench; path: string }> {
  const b = newBench()
  const path = b.path('a')
  await createQcow2(path, options)
  return { b, path }
}

/** True when the tool is there; missing under CI is a failure. */
export function haveTool(tool: string): boolean {
  if (spawnSync('which', [tool]).status === 0) return true
  if (process.env.CI === 'true') throw new Error(`${tool} is missing`)
  return false
}

/** Runs a tool and answers what it printed. */
export function run(tool: string, ...args: string[]): string {
  return execFileSync(tool, args, { encoding: 'utf8', stdio: 'pipe' })
}

/** What qemu-img says of an image; throws unless it is clean. */
export function qemuCheck(path: string): void {
  const done = spawnSync('qemu-img', ['check', '-f', 'qcow2', path], { encoding: 'utf8' })
  if (done.status !== 0) throw new Error(`${path}: ${done.stdout}${done.stderr}`)
}
