/**
 * Commands of the COLO control path, for a program that has disks and no guest.
 *
 * Invariants:
 * - A migration moves no data: it opens the control connection of a pair and starts replication.
 * - Capabilities and parameters that mean nothing to disks are kept and shown, no more.
 */
import type { ColoSession } from '../colo-session.ts'
import { type CommandTable, command, flagOf, listOf, optionalNumber, textOf } from '../command.ts'
import { isObject, type JsonObject, type JsonValue } from '../json.ts'
import { bool, list, oneOf, type Schema, size, str, struct, uint32 } from '../schema.ts'

const CAPABILITIES = [
  'xbzrle',
  'rdma-pin-all',
  'auto-converge',
  'zero-blocks',
  'compress',
  'events',
  'postcopy-ram',
  'x-colo',
  'release-ram',
  'block',
  'return-path',
  'pause-before-switchover',
  'multifd',
  'dirty-bitmaps',
  'postcopy-blocktime',
  'late-block-activate',
  'x-ignore-shared',
  'validate-uuid',
  'background-snapshot',
  'zero-copy-send',
  'postcopy-preempt',
] as const

/** Parameters and what they are at first. */
const PARAMETERS: Readonly<Record<string, number | string | boolean>> = {
  'announce-initial': 50,
  'announce-max': 550,
  'announce-rounds': 5,
  'announce-step': 100,
  'block-incremental': false,
  'compress-level': 1,
  'compress-threads': 8,
  'compress-wait-thread': true,
  'cpu-throttle-increment': 10,
  'cpu-throttle-initial': 20,
  'cpu-throttle-tailslow': false,
  'decompress-threads': 2,
  'downtime-limit': 300,
  'max-bandwidth': 134217728,
  'max-cpu-throttle': 99,
  'max-postcopy-bandwidth': 0,
  'multifd-channels': 2,
  'multifd-compression': 'none',
  'multifd-zlib-level': 1,
  'multifd-zstd-level': 1,
  'throttle-trigger-threshold': 50,
  'tls-authz': '',
  'tls-creds': '',
  'tls-hostname': '',
  'x-checkpoint-delay': 20000,
  'xbzrle-cache-size': 67108864,
}

const KINDS: Readonly<Record<string, Schema>> = { number: size, string: str, boolean: bool }

const parameterMembers: Readonly<Record<string, Schema>> = {
  ...Object.fromEntries(
    Object.entries(PARAMETERS).map(([name, value]) => [`${name}?`, KINDS[typeof value] ?? str]),
  ),
  'x-checkpoint-delay?': uint32,
}

/** The commands about a session and the migration that starts it. */
export function coloCommands(colo: ColoSession): CommandTable {
  const switches = new Map<string, boolean>(CAPABILITIES.map((name) => [name, false]))
  const parameters = new Map<string, JsonValue>(Object.entries(PARAMETERS))
  return {
    'query-colo-status': command({}, () => ({ ...colo.status })),
    'x-colo-lost-heartbeat': command({}, () => colo.lostHeartbeat()),
    migrate: command(
      { uri: str, 'blk?': bool, 'inc?': bool, 'detach?': bool, 'resume?': bool },
      (args) => colo.migrate(textOf(args, 'uri')),
    ),
    'migrate-incoming': command({ uri: str }, (args) => colo.migrateIncoming(textOf(args, 'uri'))),
    'query-migrate': command({}, () => ({ ...colo.migration })),
    'migrate-set-capabilities': command(
      { capabilities: list(struct({ capability: oneOf(...CAPABILITIES), state: bool })) },
      (args) => setCapabilities(colo, switches, args),
    ),
    'query-migrate-capabilities': command({}, () =>
      [...switches].map(([capability, state]) => ({ state, capability })),
    ),
    'migrate-set-parameters': command(parameterMembers, (args) => {
      for (const [name, value] of Object.entries(args)) parameters.set(name, value)
      const delay = optionalNumber(args, 'x-checkpoint-delay')
      if (delay !== undefined) colo.delayMs = delay
    }),
    'query-migrate-parameters': command({}, () => Object.fromEntries(parameters)),
  }
}

function setCapabilities(
  colo: ColoSession,
  switches: Map<string, boolean>,
  args: JsonObject,
): void {
  for (const one of listOf(args, 'capabilities')) {
    if (isObject(one)) switches.set(textOf(one, 'capability'), flagOf(one, 'state'))
  }
  colo.enabled = switches.get('x-colo') === true
  colo.wantsEvents = switches.get('events') === true
}
