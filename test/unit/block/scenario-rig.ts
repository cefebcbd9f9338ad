/** Images in a folder, nodes over them and their users, driven by the commands that scenarios send. */
import * as fs from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import { createQcow2 } from '../../../src/drivers/qcow2/create.ts'
import type { JsonObject, JsonValue } from '../../../src/qmp/json.ts'
import { Rig } from '../qmp/rig.ts'

export const MiB = 1024 * 1024

/** One world of a scenario; `close` leaves nothing. */
export class Scenario {
  readonly rig: Rig = new Rig()
  readonly dir: string = fs.mkdtempSync(join(tmpdir(), 'blockstep-'))
  readonly #users = new Map<string, BlockBackend>()

  path(name: string): string {
    return join(this.dir, name)
  }

  run(command: string, args: JsonObject = {}): Promise<JsonValue> {
    return this.rig.run(command, args)
  }

  refused(command: string, args: JsonObject = {}): Promise<string> {
    return this.rig.refused(command, args)
  }

  add(options: JsonObject): Promise<JsonValue> {
    return this.run('blockdev-add', options)
  }

  reopen(...options: JsonObject[]): Promise<JsonValue> {
    return this.run('blockdev-reopen', { options })
  }

  reopenRefused(...options: JsonObject[]): Promise<string> {
    return this.refused('blockdev-reopen', { options })
  }

  /** Options of a qcow2 node over a new image. */
  async qcow2(name: string, size: number, more: JsonObject = {}): Promise<JsonObject> {
    await createQcow2(this.path(name), { size })
    return { driver: 'qcow2', 'node-name': name, file: this.file(name, `${name}-file`), ...more }
  }

  file(name: string, node: string): JsonObject {
    return { driver: 'file', 'node-name': node, filename: this.path(name) }
  }

  /** A file of these bytes, a value for each MiB. */
  raw(name: string, ...values: number[]): string {
    fs.writeFileSync(
      this.path(name),
      Buffer.concat(values.map((value) => Buffer.alloc(MiB, value))),
    )
    return this.path(name)
  }

  /** A user of a node, as an export is one. */
  async user(name: string): Promise<BlockBackend> {
    const found = this.#users.get(name)
    if (found !== undefined) return found
    const node = this.rig.graph.lookup(name)
    const user = await BlockBackend.create(this.rig.graph, node, {
      perm: PERM.CONSISTENT_READ | (node.readOnly ? 0 : PERM.WRITE),
      shared: PERM.CONSISTENT_READ | PERM.WRITE | PERM.WRITE_UNCHANGED,
    })
    this.#users.set(name, user)
    return user
  }

  /** Lets the user of a node go. */
  async drop(name: string): Promise<void> {
    const user = this.#users.get(name)
    this.#users.delete(name)
    await user?.close()
  }

  async write(name: string, value: number, offset: number, bytes: number): Promise<void> {
    await (await this.user(name)).pwrite(offset, new Uint8Array(bytes).fill(value))
  }

  /** The value of each MiB as a user sees it; -1 where it is not one value. */
  async shows(name: string): Promise<number[]> {
    const user = await this.user(name)
    const out: number[] = []
    for (let at = 0; at < user.length(); at += MiB) {
      const buf = new Uint8Array(MiB)
      await user.pread(at, buf)
      const [first = -1] = buf
      out.push(buf.every((byte) => byte === first) ? first : -1)
    }
    return out
  }

  /** What a query says of all nodes. */
  nodes(): Promise<JsonValue> {
    return this.run('query-named-block-nodes', { flat: true })
  }

  /** One node of that. */
  async node(name: string): Promise<JsonObject> {
    const all = (await this.nodes()) as JsonObject[]
    const found = all.find((node) => node['node-name'] === name)
    if (found === undefined) throw new Error(`no node ${name}`)
    return found
  }

  names(): string[] {
    return this.rig.graph.nodes().map((node) => node.name)
  }

  /** Waits until a job has a status; it must come by itself. */
  async status(id: string, status: string): Promise<void> {
    for (;;) {
      const jobs = (await this.run('query-jobs')) as JsonObject[]
      const job = jobs.find((one) => one.id === id)
      if (job === undefined) throw new Error(`job ${id} is gone, before it was ${status}`)
      if (job.status === status) return
      await new Promise((resolve) => setImmediate(resolve))
    }
  }

  /** Waits until no job is left. */
  async jobsEnd(): Promise<void> {
    while (((await this.run('query-jobs')) as JsonObject[]).length > 0)
      await new Promise((resolve) => setImmediate(resolve))
  }

  async close(): Promise<void> {
    for (const name of [...this.#users.keys()]) await this.drop(name)
    await this.rig.close()
    fs.rmSync(this.dir, { recursive: true, force: true })
  }
}
