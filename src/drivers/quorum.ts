/**
 * The quorum driver: one disk kept in several children that vote on what is true.
 *
 * Invariants:
 * - A request ends only when every child it went to has answered, so the caller's buffer is free.
 * - A child that hides its own failures (`countsAsVote === false`) never counts as a vote.
 * - Discards are accepted and not forwarded: all children keep the same bytes.
 * - A child's name `children.N` is never given to two children at once; only the highest is given back.
 */
import type { BlockChild } from '../block/child.ts'
import type {
  BlockDriver,
  BlockdevOptions,
  BlockdevRef,
  BlockLimits,
  BlockStatus,
  ChildOpener,
  DriverDefinition,
  Permissions,
} from '../block/driver.ts'
import { FLAG, NO_LIMITS, PERM, STATUS } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import { wouldCircle } from '../block/open.ts'
import { isBelow } from '../block/replace.ts'
import { chainStatus } from '../block/status.ts'
import type { Pending } from '../coroutine/coroutine.ts'
import { asBlockError, BlockError, codeWords, ioError } from '../util/errors.ts'
import { childCounts, mostFrequentError, QuorumVote } from './quorum-vote.ts'

/** Bytes of a sector, the unit of quorum events. */
const SECTOR = 512

/** What a request was, as the events name it. */
type RequestType = 'read' | 'write' | 'flush'

/** Options that were checked. */
interface QuorumOptions {
  readonly threshold: number
  readonly fifo: boolean
  readonly blkverify: boolean
  readonly rewrite: boolean
}

/** `quorum`: writes go to all children, reads to the first good one (`fifo`) or to a vote. */
export const quorumDriver: DriverDefinition = {
  name: 'quorum',
  kind: 'format',
  open: openQuorum,
  childPermissions(node, _child, above): Permissions {
    const rewrite = rewrites(node.options)
    const shared = above.shared & PERM.CONSISTENT_READ
    return {
      perm: above.perm | (rewrite ? PERM.WRITE : 0),
      shared: shared | PERM.WRITE_UNCHANGED,
    }
  },
}

async function openQuorum(
  node: BlockNode,
  options: BlockdevOptions,
  opener: ChildOpener,
): Promise<BlockDriver> {
  const refs = (options.children ?? []) as readonly BlockdevRef[]
  const checked = checkOptions(options, refs.length)
  const children: BlockChild[] = []
  for (const [index, ref] of refs.entries()) {
    children.push(await opener.open(`children.${index}`, ref, 'data'))
  }
  const length = children[0]?.length()
  if (children.some((child) => child.length() !== length)) throw sizeError(node.name)
  return new Quorum(node, checked, children)
}

/** Only a vote finds out that a child is wrong. */
function rewrites(options: BlockdevOptions): boolean {
  return options['rewrite-corrupted'] === true && options['read-pattern'] !== 'fifo'
}

function checkOptions(options: BlockdevOptions, count: number): QuorumOptions {
  const threshold = Number(options['vote-threshold'])
  const checked = {
    threshold,
    fifo: options['read-pattern'] === 'fifo',
    blkverify: options.blkverify === true,
    rewrite: rewrites(options),
  }
  if (count < 1) throw invalid('Number of provided children must be 1 or more')
  if (!(threshold >= 1)) throw invalid("Parameter 'vote-threshold' expects a value >= 1")
  if (threshold > count) throw invalid('threshold may not exceed children count')
  if (checked.blkverify && (count !== 2 || threshold !== 2)) {
    throw invalid(
      'blkverify=on can only be set if there are exactly two files and vote-threshold is 2',
    )
  }
  if (checked.blkverify && options['rewrite-corrupted'] === true) {
    throw invalid('rewrite-corrupted=on cannot be used with blkverify=on')
  }
  return checked
}

function invalid(sentence: string): BlockError {
  return new BlockError('EINVAL', sentence)
}

function sizeError(node: string): BlockError {
  const sentence = `Could not refresh total sector count: ${codeWords('EIO')}`
  return new BlockError('EIO', sentence, { node })
}

/** The open driver; `children` is in the order of adding, which is the order of fifo reads. */
class Quorum implements BlockDriver {
  // No FUA: whether a write is stable is a vote of its own, by flush.
  readonly writeFlags = FLAG.WRITE_UNCHANGED
  readonly zeroesFlags = FLAG.WRITE_UNCHANGED | FLAG.MAY_UNMAP
  private readonly node: BlockNode
  private readonly options: QuorumOptions
  private children: readonly BlockChild[]
  private nextIndex: number
  private cachedLimits: BlockLimits = NO_LIMITS

  constructor(node: BlockNode, options: QuorumOptions, children: readonly BlockChild[]) {
    this.node = node
    this.options = options
    this.children = children
    this.nextIndex = children.length
  }

  length(): number {
    return this.children[0]?.length() ?? 0
  }

  /** A child that cannot read (a replica) must not have to complete a partial block itself. */
  get limits(): BlockLimits {
    let requestAlignment = 1
    for (const child of this.children) {
      const own = child.node.driver?.limits.requestAlignment ?? 1
      if (own > requestAlignment) requestAlignment = own
    }
    if (this.cachedLimits.requestAlignment !== requestAlignment) {
      this.cachedLimits = { ...NO_LIMITS, requestAlignment }
    }
    return this.cachedLimits
  }

  pread(offset: number, buf: Uint8Array): Pending {
    return this.options.fifo ? this.readFifo(offset, buf, 0, []) : this.readVote(offset, buf)
  }

  pwrite(offset: number, buf: Uint8Array, flags: number): Pending {
    return this.ask('write', offset, buf.length, (child) => child.pwrite(offset, buf, flags))
  }

  pwriteZeroes(offset: number, bytes: number, flags: number): Pending {
    return this.ask('write', offset, bytes, (child) => child.pwriteZeroes(offset, bytes, flags))
  }

  flush(toDisk: boolean): Pending {
    return toDisk ? this.ask('flush', 0, 0, (child) => child.flush()) : undefined
  }

  /** ZERO only where every child that is asked says so; a child that cannot answer has no say. */
  async blockStatus(offset: number, bytes: number): Promise<BlockStatus> {
    let covered = bytes
    let zero = true
    const errors: BlockError[] = []
    for (const child of this.children) {
      try {
        const status = await chainStatus(child.node, undefined, offset, covered)
        covered = Math.min(covered, status.bytes)
        zero &&= (status.flags & STATUS.ZERO) !== 0
        if (this.options.fifo || !zero) break
      } catch (thrown) {
        errors.push(asBlockError(thrown, { node: child.node.name, offset, bytes, op: 'status' }))
      }
    }
    if (errors.length === this.children.length) throw mostFrequentError(errors)
    return { flags: (zero ? STATUS.ZERO : STATUS.DATA) | STATUS.ALLOCATED, bytes: covered }
  }

  async addChild(child: BlockNode): Promise<void> {
    if (this.options.blkverify) throw invalid('Cannot add a child to a quorum in blkverify mode')
    if (child.length() !== this.length()) throw sizeError(this.node.name)
    const { graph } = this.node
    const name = `children.${this.nextIndex}`
    if (isBelow(child, this.node)) throw wouldCircle(this.node, name, child)
    await graph.withDrained(this.node, async () => {
      child.refs++
      const edge = await graph.attach(this.node, child, name, 'data')
      this.nextIndex++
      this.children = [...this.children, edge]
    })
  }

  async removeChild(child: BlockChild): Promise<void> {
    const { threshold } = this.options
    if (this.children.length <= threshold) {
      throw new BlockError(
        'EINVAL',
        `The number of children cannot be lower than the vote threshold ${threshold}`,
        { node: this.node.name },
      )
    }
    const { graph } = this.node
    await graph.withDrained(this.node, async () => {
      this.children = this.children.filter((each) => each !== child)
      graph.detach(child)
      if (child.name === `children.${this.nextIndex - 1}`) this.nextIndex--
    })
  }

  close(): void {
    this.children = []
  }

  /** Sends a request to every child and lets their answers vote. */
  private ask(
    type: RequestType,
    offset: number,
    bytes: number,
    act: (child: BlockChild) => Pending,
  ): Pending {
    const { children } = this
    const errors: (BlockError | undefined)[] = []
    const fail = (index: number, thrown: unknown): void => {
      const node = children[index]?.node.name ?? ''
      errors[index] = asBlockError(thrown, { node, offset, bytes, op: type })
    }
    const count = (): undefined => this.count(type, offset, bytes, children, errors)
    let first: Promise<void> | undefined
    let firstIndex = 0
    let others: Promise<void>[] | undefined
    for (let index = 0; index < children.length; index++) {
      try {
        const pending = act(children[index] as BlockChild)
        if (pending === undefined) continue
        if (first === undefined) {
          first = pending
          firstIndex = index
        } else {
          others ??= []
          others.push(pending.catch((thrown: unknown) => fail(index, thrown)))
        }
      } catch (thrown) {
        fail(index, thrown)
      }
    }
    if (first === undefined) return count()
    // Most often one child waits, a replica, while the local disk answered at once.
    if (others === undefined) {
      return first.then(count, (thrown: unknown) => {
        fail(firstIndex, thrown)
        return count()
      })
    }
    others.push(first.catch((thrown: unknown) => fail(firstIndex, thrown)))
    return Promise.all(others).then(count)
  }

  private count(
    type: RequestType,
    offset: number,
    bytes: number,
    children: readonly BlockChild[],
    errors: readonly (BlockError | undefined)[],
  ): undefined {
    let voters = 0
    let votes = 0
    for (const [index, child] of children.entries()) {
      const counts = childCounts(child.node)
      const error = errors[index]
      if (counts) voters++
      if (error !== undefined) this.reportBad(type, child, offset, bytes, error)
      else if (counts) votes++
    }
    if (votes > 0 && votes >= Math.min(this.options.threshold, voters)) return undefined
    this.reportFailure(offset, bytes)
    throw mostFrequentError(errors)
  }

  private readFifo(offset: number, buf: Uint8Array, from: number, errors: BlockError[]): Pending {
    for (let index = from; index < this.children.length; index++) {
      const child = this.children[index] as BlockChild
      const failed = (thrown: unknown): void => {
        const context = { node: child.node.name, offset, bytes: buf.length, op: 'read' }
        const error = asBlockError(thrown, context)
        errors.push(error)
        this.reportBad('read', child, offset, buf.length, error)
      }
      try {
        const pending = child.pread(offset, buf)
        return pending?.catch((thrown: unknown) => {
          failed(thrown)
          return this.readFifo(offset, buf, index + 1, errors)
        })
      } catch (thrown) {
        failed(thrown)
      }
    }
    throw mostFrequentError(errors)
  }

  private async readVote(offset: number, buf: Uint8Array): Promise<void> {
    const { children } = this
    const vote = new QuorumVote(children.length, buf.length)
    await Promise.all(
      children.map(async (child, index) => {
        try {
          const pending = child.pread(offset, vote.ballot(index))
          if (pending !== undefined) await pending
        } catch (thrown) {
          vote.fail(index, asBlockError(thrown, { node: child.node.name, offset, op: 'read' }))
        }
      }),
    )
    for (const [index, child] of children.entries()) {
      const error = vote.errors[index]
      if (error !== undefined) this.reportBad('read', child, offset, buf.length, error)
    }
    const result = vote.decide()
    if (result.votes < this.options.threshold) this.refuseRead(vote, offset, buf.length)
    buf.set(vote.ballot(result.winner))
    await this.handleLosers(vote, result.losers, offset, buf, children)
  }

  private refuseRead(vote: QuorumVote, offset: number, bytes: number): never {
    if (this.options.blkverify && vote.goodCount === vote.ballots.length) {
      const at = offset + vote.firstDifference()
      throw new BlockError('EIO', `The children differ at offset ${at}`, {
        node: this.node.name,
        offset: at,
        op: 'read',
      })
    }
    this.reportFailure(offset, bytes)
    if (vote.goodCount < this.options.threshold) throw mostFrequentError(vote.errors)
    throw ioError('EIO', { node: this.node.name, offset, bytes, op: 'read' })
  }

  private async handleLosers(
    vote: QuorumVote,
    losers: readonly number[],
    offset: number,
    buf: Uint8Array,
    children: readonly BlockChild[],
  ): Promise<void> {
    for (const index of losers) {
      const child = children[index] as BlockChild
      this.reportBad('read', child, offset, buf.length, undefined)
      if (!this.options.rewrite || this.node.readOnly) continue
      vote.ballot(index).set(buf)
      try {
        const pending = child.pwrite(offset, vote.ballot(index), 0)
        if (pending !== undefined) await pending
      } catch (thrown) {
        this.reportBad('write', child, offset, buf.length, asBlockError(thrown))
      }
    }
  }

  private reportBad(
    type: RequestType,
    child: BlockChild,
    offset: number,
    bytes: number,
    error: BlockError | undefined,
  ): void {
    this.node.graph.events.emit('QUORUM_REPORT_BAD', {
      type,
      ...(error === undefined ? {} : { error: codeWords(error.code) }),
      'node-name': child.node.name,
      ...sectors(offset, bytes),
    })
  }

  private reportFailure(offset: number, bytes: number): void {
    this.node.graph.events.emit('QUORUM_FAILURE', {
      reference: this.node.name,
      ...sectors(offset, bytes),
    })
  }
}

function sectors(offset: number, bytes: number): { 'sector-num': number; 'sectors-count': number } {
  const first = Math.floor(offset / SECTOR)
  return { 'sector-num': first, 'sectors-count': Math.ceil((offset + bytes) / SECTOR) - first }
}
