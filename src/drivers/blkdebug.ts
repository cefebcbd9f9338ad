/**
 * Filter `blkdebug`: injects errors by rules, and tightens limits.
 *
 * Invariants:
 * - A rule of event `none` holds at any time; any other rule holds from its event on, until another
 *   event arms rules.
 * - A rule acts only in its state (0: in every state), and at most one rule acts on a request.
 * - A `once` rule is gone after it acted.
 */
import { readFileSync } from 'node:fs'
import type { BlockChild } from '../block/child.ts'
import type {
  BlockDriver,
  BlockdevOptions,
  BlockdevRef,
  BlockLimits,
  BlockStatus,
  ChildOpener,
  ChildRole,
  DriverDefinition,
  ImageInfo,
  Permissions,
  PreparedReopen,
} from '../block/driver.ts'
import { FLAG, PERM, STATUS } from '../block/driver.ts'
import type { BlockNode } from '../block/node.ts'
import type { MaybePromise, Pending } from '../coroutine/coroutine.ts'
import { asBlockError, BlockError, codeOfErrno, ioError } from '../util/errors.ts'
import { BreakpointTable, type DebugPoints } from './blkdebug-points.ts'
import type { DebugListener } from './debug-event.ts'
import { DEBUG_EVENTS, raiseDebugEvent } from './debug-event.ts'

const SECTOR_BYTES = 512
const EIO = 5
const PASSED_FLAGS = FLAG.FUA | FLAG.WRITE_UNCHANGED | FLAG.SERIALISING

/** What a request is, as rules name it. */
type IoType = 'read' | 'write' | 'write-zeroes' | 'discard' | 'flush' | 'block-status'

/** An `inject-error` rule. */
interface InjectRule {
  readonly event: string
  readonly state: number
  readonly iotype: string | undefined
  readonly errno: number
  /** Byte offset that a request must cover; undefined: any request. */
  readonly offset: number | undefined
  readonly once: boolean
  readonly immediately: boolean
}

/** A `set-state` rule. */
interface StateRule {
  readonly event: string
  readonly state: number
  readonly newState: number
}

interface Rules {
  readonly inject: InjectRule[]
  readonly states: StateRule[]
}

type Fields = Readonly<Record<string, unknown>>

function numberOf(fields: Fields, name: string, byDefault: number): number {
  const value = fields[name]
  if (value === undefined) return byDefault
  const number = typeof value === 'string' ? Number(value) : value
  if (typeof number === 'number' && Number.isSafeInteger(number)) return number
  throw new BlockError('EINVAL', `Parameter '${name}' expects a number`)
}

const isOn = (value: unknown): boolean => value === true || value === 'on'

function injectRule(fields: Fields): InjectRule {
  const sector = numberOf(fields, 'sector', -1)
  return {
    event: String(fields.event),
    state: numberOf(fields, 'state', 0),
    iotype: fields.iotype === undefined ? undefined : String(fields.iotype),
    errno: numberOf(fields, 'errno', EIO),
    offset: sector < 0 ? undefined : sector * SECTOR_BYTES,
    once: isOn(fields.once),
    immediately: isOn(fields.immediately),
  }
}

function stateRule(fields: Fields): StateRule {
  const newState = fields.new_state === undefined ? 'new-state' : 'new_state'
  return {
    event: String(fields.event),
    state: numberOf(fields, 'state', 0),
    newState: numberOf(fields, newState, 0),
  }
}

const listOf = (value: unknown): Fields[] => (Array.isArray(value) ? value : [])

const CONFIG_KEYS: Readonly<Record<string, readonly string[]>> = {
  'inject-error': ['event', 'state', 'iotype', 'errno', 'sector', 'once', 'immediately'],
  'set-state': ['event', 'state', 'new_state', 'new-state'],
}

function refuse(words: string): never {
  throw new BlockError('EINVAL', words)
}

function configGroups(text: string): { readonly title: string; readonly fields: Fields }[] {
  const groups: { title: string; fields: Record<string, unknown> }[] = []
  for (const line of text.split('\n')) {
    if (/^\s*(#|$)/.test(line)) continue
    const title = /^\s*\[([\w-]+)/.exec(line)?.[1]
    if (title !== undefined) {
      if (CONFIG_KEYS[title] === undefined) refuse(`There is no option group '${title}'`)
      groups.push({ title, fields: {} })
      continue
    }
    const group = groups.at(-1) ?? refuse('no group defined')
    const [, key, value] = /^\s*([\w-]+)\s*=\s*"?([^"]*)"?\s*$/.exec(line) ?? refuse('parse error')
    if (key === undefined) continue
    if (CONFIG_KEYS[group.title]?.includes(key) !== true) refuse(`Invalid parameter '${key}'`)
    group.fields[key] = value
  }
  for (const { fields } of groups)
    if (!DEBUG_EVENTS.includes(String(fields.event)))
      refuse(`invalid parameter value: ${String(fields.event)}`)
  return groups
}

/** Reads `[inject-error]` and `[set-state]` groups of `key = "value"` lines. */
function configRules(path: string): Rules {
  let text: string
  try {
    text = readFileSync(path, 'utf8')
  } catch (thrown) {
    const { code, message } = asBlockError(thrown)
    throw new BlockError(code, `Could not read blkdebug config file: ${message}`, { path }, thrown)
  }
  const rules: Rules = { inject: [], states: [] }
  for (const { title, fields } of configGroups(text)) {
    if (title === 'inject-error') rules.inject.push(injectRule(fields))
    else rules.states.push(stateRule(fields))
  }
  return rules
}

function rulesOf(options: BlockdevOptions): Rules {
  const config = options.config
  const rules: Rules = typeof config === 'string' ? configRules(config) : { inject: [], states: [] }
  rules.inject.push(...listOf(options['inject-error']).map(injectRule))
  rules.states.push(...listOf(options['set-state']).map(stateRule))
  return rules
}

function limitsOf(options: BlockdevOptions, image: BlockChild): BlockLimits {
  const align = numberOf(options, 'align', 0)
  if (align < 0)
    throw new BlockError('EINVAL', "Parameter 'align' expects a non-negative number below 2^64")
  if (align !== 0 && (!Number.isInteger(Math.log2(align)) || align > 65536))
    throw new BlockError('EINVAL', `Cannot meet constraints with align ${align}`)
  const below = image.node.driver?.limits.requestAlignment ?? 1
  const multiple = (name: string, unit = 1): number => {
    const value = numberOf(options, name, 0)
    if (value < 0)
      throw new BlockError('EINVAL', `Parameter '${name}' expects a non-negative number below 2^64`)
    if (value !== 0 && value % Math.max(align, unit, below) !== 0)
      throw new BlockError('EINVAL', `Cannot meet constraints with ${name} ${value}`)
    return value
  }
  const maxTransfer = multiple('max-transfer')
  const zeroesAlignment = multiple('opt-write-zero')
  const maxZeroes = multiple('max-write-zero', zeroesAlignment)
  const discardAlignment = multiple('opt-discard')
  const maxDiscard = multiple('max-discard', discardAlignment)
  return {
    requestAlignment: Math.max(align, 1),
    maxTransfer,
    clusterSize: 0,
    maxZeroes,
    zeroesAlignment,
    discardAlignment,
    maxDiscard,
  }
}

/** The places of a node, if it is a `blkdebug` one. */
export function debugPointsOf(node: BlockNode): DebugPoints | undefined {
  return node.driver instanceof BlkdebugDriver ? node.driver.points : undefined
}

class BlkdebugDriver implements BlockDriver, DebugListener {
  /** Where requests stop. */
  readonly points = new BreakpointTable()
  readonly limits: BlockLimits
  readonly zeroesFlags = PASSED_FLAGS | FLAG.MAY_UNMAP
  readonly #node: BlockNode
  readonly #image: BlockChild
  readonly #inject: Set<InjectRule>
  readonly #states: readonly StateRule[]
  #armed: InjectRule[] = []
  #state = 1

  constructor(node: BlockNode, image: BlockChild, rules: Rules, limits: BlockLimits) {
    this.#node = node
    this.#image = image
    this.#inject = new Set(rules.inject)
    this.#states = rules.states
    this.limits = limits
  }

  /** What the image makes up for with a flush is a flush that passes here. */
  get writeFlags(): number {
    const below = this.#image.node.driver?.writeFlags ?? 0
    return PASSED_FLAGS & (below | ~FLAG.FUA)
  }

  length(): number {
    return this.#image.length()
  }

  filename(): string {
    return this.#image.node.driver?.filename?.() ?? ''
  }

  debugEvent(event: string): void {
    const state = this.#state
    const due = [...this.#inject].filter((rule) => rule.event === event && inState(rule, state))
    // The newest rule comes first, as if each had been put on top of the others.
    if (due.length > 0) this.#armed = due.reverse()
    for (const rule of this.#states)
      if (rule.event === event && inState(rule, state)) this.#state = rule.newState
    this.points.happened(event)
    raiseDebugEvent(this.#image, event)
  }

  pread(offset: number, buf: Uint8Array): Pending {
    return this.#pass(
      () => this.#injected('read', offset, buf.length) ?? this.#image.pread(offset, buf),
    )
  }

  pwrite(offset: number, buf: Uint8Array, flags: number): Pending {
    return this.#pass(
      () => this.#injected('write', offset, buf.length) ?? this.#image.pwrite(offset, buf, flags),
    )
  }

  pwriteZeroes(offset: number, bytes: number, flags: number): Pending {
    return this.#pass(
      () =>
        this.#injected('write-zeroes', offset, bytes) ??
        this.#image.pwriteZeroes(offset, bytes, flags),
    )
  }

  pdiscard(offset: number, bytes: number): Pending {
    return this.#pass(
      () => this.#injected('discard', offset, bytes) ?? this.#image.pdiscard(offset, bytes),
    )
  }

  flush(toDisk: boolean): Pending {
    return this.#pass(() => (toDisk ? this.#injected('flush', 0, 0) : undefined))
  }

  blockStatus(offset: number, bytes: number): MaybePromise<BlockStatus> {
    const status: BlockStatus = { flags: STATUS.RAW, bytes, map: offset, file: this.#image }
    const injected = this.#injected('block-status', offset, bytes)
    return injected === undefined ? status : injected.then(() => status)
  }

  truncate(size: number): MaybePromise<void> {
    return this.#image.node.driver?.truncate?.(size)
  }

  reopenPrepare(): PreparedReopen {
    return { commit: noop, abort: noop }
  }

  info(): MaybePromise<ImageInfo> {
    return this.#image.node.driver?.info?.() ?? {}
  }

  close(): void {
    this.points.clear()
  }

  /** Stops the request if somebody asked for that, then runs it. */
  #pass(request: () => Pending): Pending {
    const wait = this.points.pass()
    return wait === undefined ? request() : wait.then(request)
  }

  /** Fails the request if a rule says so. */
  #injected(type: IoType, offset: number, bytes: number): Pending {
    const rule = this.#match(type, offset, bytes)
    if (rule === undefined) return undefined
    if (rule.once) {
      this.#inject.delete(rule)
      this.#armed = this.#armed.filter((armed) => armed !== rule)
    }
    if (rule.errno === 0) return undefined
    const error = ioError(codeOfErrno(rule.errno), {
      node: this.#node.name,
      offset,
      bytes,
      op: type,
    })
    if (rule.immediately) throw error
    return Promise.resolve().then(() => {
      throw error
    })
  }

  #match(type: IoType, offset: number, bytes: number): InjectRule | undefined {
    const acts = (rule: InjectRule): boolean => {
      // A rule without a type means data and flushes, not questions about them.
      if (rule.iotype === undefined ? type === 'block-status' : rule.iotype !== type) return false
      if (rule.offset === undefined) return true
      return offset <= rule.offset && rule.offset < offset + bytes
    }
    for (const rule of this.#armed) if (acts(rule)) return rule
    for (const rule of this.#inject)
      if (rule.event === 'none' && inState(rule, this.#state) && acts(rule)) return rule
    return undefined
  }
}

function noop(): void {}

const inState = (rule: { readonly state: number }, state: number): boolean =>
  rule.state === 0 || rule.state === state

const PERM_WORDS: Readonly<Record<string, number>> = {
  'consistent-read': PERM.CONSISTENT_READ,
  write: PERM.WRITE,
  'write-unchanged': PERM.WRITE_UNCHANGED,
  resize: PERM.RESIZE,
}

function permBits(value: unknown): number {
  if (!Array.isArray(value)) return 0
  return value.reduce((bits: number, word) => bits | (PERM_WORDS[String(word)] ?? 0), 0)
}

/**
 * Driver `blkdebug`; options `image`, `inject-error`, `set-state`, `config` (a file of rules), limits
 * (`align`, `max-transfer`, `opt-write-zero`, `max-write-zero`, `opt-discard`, `max-discard`; bytes),
 * `take-child-perms`, `unshare-child-perms`.
 */
export const blkdebugDriver: DriverDefinition = {
  name: 'blkdebug',
  kind: 'filter',
  async open(node: BlockNode, options: BlockdevOptions, opener: ChildOpener): Promise<BlockDriver> {
    const rules = rulesOf(options)
    const image = await opener.open('image', options.image as BlockdevRef, 'filtered')
    return new BlkdebugDriver(node, image, rules, limitsOf(options, image))
  },
  childPermissions(
    node: BlockNode,
    _child: { readonly name: string; readonly role: ChildRole },
    above: Permissions,
  ): Permissions {
    return {
      perm: above.perm | permBits(node.options['take-child-perms']),
      shared: above.shared & ~permBits(node.options['unshare-child-perms']),
    }
  },
}
