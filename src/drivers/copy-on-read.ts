/**
 * `copy-on-read`: what is read from a backing image is written to the overlay.
 *
 * Invariants:
 * - A copy and a write of the same range never overlap in time, also when the writer comes beside
 *   the filter, so a copy never replaces what was just written.
 * - A copy changes nothing that a reader can see. A copy that fails fails the read.
 */
import type { BlockChild } from '../block/child.ts'
import { copyUp } from '../block/copy-up.ts'
import type { BlockdevRef, DriverDefinition } from '../block/driver.ts'
import { FLAG, PERM } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import { isAllocatedAbove } from '../block/status.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import { BlockError } from '../util/errors.ts'
import { PassThrough } from './pass-through.ts'

/** Most bytes that are copied at once. */
const COPY_BYTES = 1024 * 1024

interface Held {
  readonly start: number
  readonly end: number
  readonly done: Promise<void>
}

/** Ranges that are held, first come first served. */
class HeldRanges {
  readonly #held = new Set<Held>()

  /** Runs `body` while nobody else holds any of the range. */
  async run(start: number, end: number, body: () => Pending): Promise<void> {
    const before = [...this.#held].filter((other) => other.start < end && start < other.end)
    let release!: () => void
    const mine = { start, end, done: new Promise<void>((resolve) => (release = resolve)) }
    this.#held.add(mine)
    try {
      for (const other of before) await other.done
      const pending = body()
      if (pending !== undefined) await pending
    } finally {
      this.#held.delete(mine)
      release()
    }
  }
}

class CopyOnReadDriver extends PassThrough {
  override readonly writeFlags: number = FLAG.FUA | FLAG.WRITE_UNCHANGED | FLAG.WRITE_COMPRESSED
  readonly #node: BlockNode
  readonly #bottom: string | undefined
  readonly #links: readonly BlockChild[]
  readonly #ranges = new HeldRanges()

  constructor(
    node: BlockNode,
    file: BlockChild,
    bottom: string | undefined,
    links: readonly BlockChild[],
  ) {
    super(file)
    this.#node = node
    this.#bottom = bottom
    this.#links = links
    for (const link of links) link.frozen = true
  }

  override close(): void {
    for (const link of this.#links) link.frozen = false
  }

  override pread(offset: number, buf: Uint8Array): Pending {
    if (this.#node.readOnly || topLayer(this.file.node).chainNext === undefined)
      return this.file.pread(offset, buf)
    return this.#readAndCopy(offset, buf)
  }

  override pwrite(offset: number, buf: Uint8Array, flags: number): Pending {
    return this.#ranges.run(offset, offset + buf.length, () => this.file.pwrite(offset, buf, flags))
  }

  override pwriteZeroes(offset: number, bytes: number, flags: number): Pending {
    return this.#ranges.run(offset, offset + bytes, () =>
      this.file.pwriteZeroes(offset, bytes, flags),
    )
  }

  override pdiscard(offset: number, bytes: number): Pending {
    return this.#ranges.run(offset, offset + bytes, () => this.file.pdiscard(offset, bytes))
  }

  /** Runs `work` while no write and no copy through this filter touches the range. */
  holdRange(offset: number, bytes: number, work: () => Promise<void>): Promise<void> {
    return this.#ranges.run(offset, offset + bytes, work)
  }

  async #readAndCopy(offset: number, buf: Uint8Array): Promise<void> {
    for (let at = offset; at < offset + buf.length; ) {
      const rest = Math.min(COPY_BYTES, offset + buf.length - at)
      const { wanted, bytes } = await this.#lookUp(at, rest)
      const piece = buf.subarray(at - offset, at - offset + bytes)
      if (wanted) await this.#copy(at, piece)
      else await this.file.pread(at, piece)
      at += bytes
    }
  }

  /** Whether the start of a range is to be copied, and how far that answer goes. */
  async #lookUp(offset: number, want: number): Promise<{ wanted: boolean; bytes: number }> {
    const { node } = this.file
    const own = await isAllocatedAbove(node, topLayer(node).chainNext, offset, want)
    if (own.allocated) return { wanted: false, bytes: own.bytes }
    if (this.#bottom === undefined) return { wanted: true, bytes: own.bytes }
    const bottom = layerNamed(node, this.#bottom)
    const chain = await isAllocatedAbove(node, bottom?.chainNext, offset, own.bytes)
    return { wanted: bottom !== undefined && chain.allocated, bytes: chain.bytes }
  }

  /** Copies the clusters of a range and answers the range itself. */
  async #copy(offset: number, into: Uint8Array): Promise<void> {
    const { node } = this.file
    const align = node.driver?.limits.requestAlignment ?? 1
    const unit = Math.max(align, topLayer(node).driver?.limits.clusterSize ?? 1)
    const start = offset - (offset % unit)
    const end = Math.min(Math.ceil((offset + into.length) / unit) * unit, this.length())
    await this.#ranges.run(start, end, async () => {
      const whole = start === offset && end === offset + into.length
      const data = whole ? into : Buffer.allocUnsafeSlow(end - start)
      await copyUp(node, start, data)
      if (!whole) into.set(data.subarray(offset - start, offset - start + into.length))
    })
  }
}

/** The first node of a chain that holds data itself. */
function topLayer(node: BlockNode): BlockNode {
  let at = node
  while (at.definition.kind === 'filter' && at.chainNext !== undefined) at = at.chainNext
  return at
}

function layerNamed(top: BlockNode, name: string): BlockNode | undefined {
  for (let at: BlockNode | undefined = top; at !== undefined; at = at.chainNext)
    if (at.name === name) return at
  return undefined
}

/** The links between `top` and the layer that limits copying: while it does, they stay. */
function linksDownTo(top: BlockNode, bottom: string | undefined): BlockChild[] {
  const links: BlockChild[] = []
  for (let at = top; bottom !== undefined && at.name !== bottom; ) {
    const next = at.chainNext
    const link = [...at.children.values()].find((edge) => edge.node === next)
    if (next === undefined || link === undefined) break
    if (link.frozen) {
      const words = `Cannot freeze '${link.name}' link to '${next.name}'`
      throw new BlockError('EPERM', words, { node: at.name })
    }
    links.push(link)
    at = next
  }
  return links
}

/** The node that limits copying; a filter limits nothing, as it holds nothing. */
function bottomName(node: BlockNode, file: BlockNode, given: unknown): string | undefined {
  if (given === undefined) return undefined
  const name = String(given)
  const context = { node: node.name }
  if (node.graph.find(name) === undefined)
    throw new BlockError('EINVAL', `Bottom node '${name}' not found`, context)
  const layer = layerNamed(file, name)
  if (layer === undefined)
    throw new BlockError('EINVAL', `Bottom node '${name}' is not in the backing chain`, context)
  if (layer.definition.kind === 'filter')
    throw new BlockError('EINVAL', `Bottom node '${name}' is a filter`, context)
  return name
}

/** `copy-on-read`: options `file` and `bottom`, the lowest image of the chain that is copied from. */
export const copyOnReadDriver: DriverDefinition = {
  name: 'copy-on-read',
  kind: 'filter',
  async open(node, options, opener) {
    const file = await opener.open('file', options.file as BlockdevRef, 'filtered')
    const bottom = bottomName(node, file.node, options.bottom)
    // A job holds the links that it walks itself.
    const held = options['holds-chain'] === false ? [] : linksDownTo(file.node, bottom)
    return new CopyOnReadDriver(node, file, bottom, held)
  },
  childPermissions(_node, _child, above) {
    return {
      perm: above.perm | PERM.WRITE_UNCHANGED,
      shared: above.shared | PERM.WRITE_UNCHANGED,
    }
  },
}
