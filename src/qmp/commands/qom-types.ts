/**
 * `qom-list-types` and `qom-list-properties`: the kinds of objects and character devices there are.
 *
 * Invariants:
 * - A type implements itself, its parents up to `object`, and what any of them is an interface for.
 * - Whatever `object-add` or `chardev-add` makes has a type here.
 */
import { BlockError } from '../../util/errors.ts'
import { type CommandTable, command, flagOf, optionalText, refuse, textOf } from '../command.ts'
import type { JsonObject } from '../json.ts'
import { bool, str } from '../schema.ts'
import { CHARDEV_BACKENDS } from './chardevs.ts'
import { RECORDED_KINDS, throttleLimits } from './objects.ts'

interface QomType {
  readonly parent?: string
  readonly abstract?: boolean
  /** `object-add` makes objects of it, or of those below it. */
  readonly creatable?: boolean
  /** Its own properties; those of its parents come before them. */
  readonly properties?: Readonly<Record<string, string>>
}

const base = (properties: Readonly<Record<string, string>> = {}): QomType => ({
  parent: 'object',
  abstract: true,
  creatable: true,
  properties,
})
const kind = (parent: string, properties: Readonly<Record<string, string>> = {}): QomType => ({
  parent,
  creatable: true,
  properties,
})

const OUTDEV = { outdev: 'string' }
const VNET = { vnet_hdr_support: 'bool' }

const OBJECTS: Readonly<Record<string, QomType>> = {
  object: { abstract: true },
  interface: { abstract: true },
  'user-creatable': { parent: 'interface', abstract: true },
  container: { parent: 'object' },
  'event-loop-base': base({
    'thread-pool-min': 'int',
    'aio-max-batch': 'int',
    'thread-pool-max': 'int',
  }),
  iothread: kind('event-loop-base', {
    'poll-max-ns': 'int',
    'poll-grow': 'int',
    'poll-shrink': 'int',
  }),
  'throttle-group': kind('object', limitProperties()),
  secret_common: base({
    iv: 'string',
    keyid: 'string',
    loaded: 'bool',
    format: 'QCryptoSecretFormat',
  }),
  secret: kind('secret_common', { file: 'string', data: 'string' }),
  'tls-creds': base({
    endpoint: 'QCryptoTLSCredsEndpoint',
    dir: 'string',
    'verify-peer': 'bool',
    priority: 'string',
  }),
  'tls-creds-x509': kind('tls-creds', {
    'sanity-check': 'bool',
    passwordid: 'string',
    loaded: 'bool',
  }),
  'tls-creds-psk': kind('tls-creds', { username: 'string', loaded: 'bool' }),
  'tls-creds-anon': kind('tls-creds', { loaded: 'bool' }),
  authz: base(),
  'authz-list': kind('authz', { policy: 'QAuthZListPolicy', rules: 'QAuthZListRule' }),
  'authz-simple': kind('authz', { identity: 'string' }),
  netfilter: base({
    queue: 'NetFilterDirection',
    netdev: 'string',
    insert: 'string',
    status: 'string',
    position: 'string',
  }),
  'filter-mirror': kind('netfilter', { ...OUTDEV, ...VNET }),
  'filter-redirector': kind('netfilter', { ...OUTDEV, indev: 'string', ...VNET }),
  'filter-rewriter': kind('netfilter', VNET),
  'colo-compare': kind('object', {
    primary_in: 'string',
    secondary_in: 'string',
    outdev: 'string',
    iothread: 'string',
    notify_dev: 'string',
    compare_timeout: 'uint64',
    expired_scan_cycle: 'uint32',
    max_queue_size: 'uint32',
    ...VNET,
  }),
}

/** Character devices over a descriptor of the host. */
const OVER_DESCRIPTOR = ['serial', 'file', 'pipe', 'stdio']

const TYPES: ReadonlyMap<string, QomType> = new Map([
  ...Object.entries(OBJECTS),
  ...RECORDED_KINDS.filter((name) => !Object.hasOwn(OBJECTS, name)).map(
    (name): [string, QomType] => [name, kind('netfilter')],
  ),
  ['chardev', { parent: 'object', abstract: true }],
  ['chardev-fd', { parent: 'chardev', abstract: true }],
  ...CHARDEV_BACKENDS.map((name): [string, QomType] => [`chardev-${name}`, chardev(name)]),
])

/** The commands. */
export function qomTypeCommands(): CommandTable {
  return {
    'qom-list-types': command({ 'implements?': str, 'abstract?': bool }, (args) =>
      listTypes(optionalText(args, 'implements'), flagOf(args, 'abstract')),
    ),
    'qom-list-properties': command({ typename: str }, (args) =>
      listProperties(textOf(args, 'typename')),
    ),
  }
}

function chardev(name: string): QomType {
  if (OVER_DESCRIPTOR.includes(name)) return { parent: 'chardev-fd' }
  if (name === 'memory') return { parent: 'chardev-ringbuf' }
  if (name !== 'socket') return { parent: 'chardev' }
  return { parent: 'chardev', properties: { connected: 'bool', addr: 'SocketAddress' } }
}

function limitProperties(): Record<string, string> {
  const names = Object.keys(throttleLimits).map((name) => `x-${name.replace('?', '')}`)
  return { limits: 'ThrottleLimits', ...Object.fromEntries(names.map((name) => [name, 'int'])) }
}

function listTypes(wanted: string | undefined, abstract: boolean): JsonObject[] {
  return [...TYPES]
    .filter(([, type]) => abstract || type.abstract !== true)
    .filter(([name]) => wanted === undefined || implemented(name).has(wanted))
    .map(([name, { parent, abstract: unmade }]) => ({
      name,
      ...(parent === undefined ? {} : { parent }),
      ...(unmade === true ? { abstract: true } : {}),
    }))
}

/** Names of the types from a type up to the root of all, the root first. */
function lineage(name: string): string[] {
  const parent = TYPES.get(name)?.parent
  return parent === undefined ? [name] : [...lineage(parent), name]
}

function implemented(name: string): Set<string> {
  const names = lineage(name)
  const creatable = names.some((one) => TYPES.get(one)?.creatable === true)
  return new Set(creatable ? [...names, 'user-creatable', 'interface'] : names)
}

function listProperties(name: string): JsonObject[] {
  if (!TYPES.has(name)) throw new BlockError('DEVICE_NOT_FOUND', `Class '${name}' not found`)
  const names = lineage(name)
  if (names[0] !== 'object') refuse("Parameter 'typename' expects a QOM type")
  const own = names.flatMap((one) => Object.entries(TYPES.get(one)?.properties ?? {}))
  return [['type', 'string'], ...own].map(([property = '', type = '']) => ({
    name: property,
    type,
  }))
}
