/**
 * `object-add`, `object-del`, `qom-list`, `qom-get`, `qom-set`, `x-blockdev-set-iothread`.
 *
 * Invariants:
 * - Kinds of objects that have no meaning for disks are checked by name only and remembered.
 */
import type { BlockGraph } from '../../block/graph.ts'
import { BlockError } from '../../util/errors.ts'
import { type CommandTable, command, textOf } from '../command.ts'
import { isObject, type JsonObject } from '../json.ts'
import type { ObjectStore } from '../objects.ts'
import {
  alternate,
  any,
  bool,
  int,
  list,
  type Members,
  oneOf,
  str,
  struct,
  union,
} from '../schema.ts'

const kinds = ['iops-total', 'iops-read', 'iops-write', 'bps-total', 'bps-read', 'bps-write']

/** Limits of a throttle group. */
export const throttleLimits: Members = Object.fromEntries([
  ...kinds.flatMap((kind) => [
    [`${kind}?`, int],
    [`${kind}-max?`, int],
    [`${kind}-max-length?`, int],
  ]),
  ['iops-size?', int],
])

const tlsCredentials: Members = {
  'verify-peer?': bool,
  'dir?': str,
  'endpoint?': oneOf('client', 'server'),
  'priority?': str,
  'loaded?': bool,
}

const policy = oneOf('deny', 'allow')
const authorizationRule = struct({ match: str, policy, 'format?': oneOf('exact', 'glob') })

/** Kinds with members that are checked. */
const VARIANTS: Readonly<Record<string, Members>> = {
  'throttle-group': { 'limits?': struct(throttleLimits) },
  iothread: {
    'aio-max-batch?': int,
    'thread-pool-min?': int,
    'thread-pool-max?': int,
    'poll-max-ns?': int,
    'poll-grow?': int,
    'poll-shrink?': int,
  },
  secret: {
    'loaded?': bool,
    'format?': oneOf('raw', 'base64'),
    'keyid?': str,
    'iv?': str,
    'data?': str,
    'file?': str,
  },
  'tls-creds-x509': {
    ...tlsCredentials,
    'sanity-check?': bool,
    'passwordid?': str,
  },
  'tls-creds-psk': { ...tlsCredentials, 'username?': str },
  'tls-creds-anon': tlsCredentials,
  'authz-simple': { identity: str },
  'authz-list': { 'policy?': policy, 'rules?': list(authorizationRule) },
}

/** Kinds that replication scripts make around a disk and that concern only networks. */
export const RECORDED_KINDS: readonly string[] = [
  ...['filter-mirror', 'filter-redirector', 'filter-rewriter', 'filter-drop', 'colo-compare'],
]

// Older scripts put the options of a kind into `props`.
const withProps = Object.fromEntries(
  Object.entries(VARIANTS).map(([kind, members]) => [
    kind,
    { ...members, 'props?': struct(members) },
  ]),
)

const objectAdd = union(
  'qom-type',
  { 'qom-type': oneOf(...Object.keys(VARIANTS), ...RECORDED_KINDS), id: str },
  withProps,
)

/** The commands about objects. */
export function objectCommands(objects: ObjectStore, graph: BlockGraph): CommandTable {
  return {
    'object-add': command(objectAdd, (args) => {
      objects.add(textOf(args, 'qom-type'), textOf(args, 'id'), ownOptions(args))
    }),
    'x-blockdev-set-iothread': command(
      { 'node-name': str, iothread: alternate('StrOrNull', str, { kind: 'null' }), 'force?': bool },
      (args) => setIothread(objects, graph, args),
    ),
    'object-del': command({ id: str }, (args) => objects.remove(textOf(args, 'id'))),
    'qom-list': command({ path: str }, (args) => objects.list(textOf(args, 'path'))),
    'qom-get': command({ path: str, property: str }, (args) =>
      objects.get(textOf(args, 'path'), textOf(args, 'property')),
    ),
    'qom-set': command({ path: str, property: str, value: any }, (args) =>
      objects.set(textOf(args, 'path'), textOf(args, 'property'), args.value ?? null),
    ),
  }
}

// Which thread answers a node is not the user's to choose here, so the choice is only checked.
function setIothread(objects: ObjectStore, graph: BlockGraph, args: JsonObject): void {
  const name = textOf(args, 'node-name')
  const node = graph.find(name)
  if (node === undefined) {
    throw new BlockError('EINVAL', `Failed to find node with node-name='${name}'`, { node: name })
  }
  if (node.hasBackend && args.force !== true) {
    const words =
      `Node ${name} is associated with a BlockBackend and could be in use ` +
      '(use force=true to override this check)'
    throw new BlockError('EBUSY', words, { node: name })
  }
  const { iothread } = args
  if (typeof iothread !== 'string' || objects.has(iothread, 'iothread')) return
  throw new BlockError('EINVAL', `Cannot find iothread ${iothread}`, { node: name })
}

function ownOptions(args: JsonObject): JsonObject {
  const { 'qom-type': _type, id: _id, props, ...rest } = args
  return isObject(props) ? { ...props, ...rest } : rest
}
