/**
 * Commands about what a machine has and this program has not: guest devices, drives, a name.
 *
 * Invariants:
 * - A question is answered as by a machine without devices; an order to a device is refused with the
 *   class and words for one that does not exist.
 */
import { BlockError } from '../../util/errors.ts'
import { type CommandTable, command, optionalText, refuse } from '../command.ts'
import type { JsonObject, JsonValue } from '../json.ts'
import type { ObjectStore } from '../objects.ts'
import { bool, int, type Members, oneOf, str } from '../schema.ts'

const ID = '00000000-0000-0000-0000-000000000000'
const IOTHREAD_NUMBERS = ['poll-max-ns', 'poll-grow', 'poll-shrink', 'aio-max-batch']

const device: Members = { 'device?': str, 'id?': str }
const forced: Members = { ...device, 'force?': bool }
const retain = oneOf('retain', 'read-only', 'read-write')

const limits = ['bps', 'bps_rd', 'bps_wr', 'iops', 'iops_rd', 'iops_wr']
const throttle: Members = {
  ...device,
  ...Object.fromEntries(limits.map((name) => [name, int])),
  ...Object.fromEntries(limits.map((name) => [`${name}_max?`, int])),
  ...Object.fromEntries(limits.map((name) => [`${name}_max_length?`, int])),
  'iops_size?': int,
  'group?': str,
}

/** The commands. */
export function machineCommands(objects: ObjectStore): CommandTable {
  return {
    'query-name': command({}, () => ({})),
    'query-uuid': command({}, () => ({ UUID: ID })),
    'query-kvm': command({}, () => ({ enabled: false, present: false })),
    'query-iothreads': command({}, () => iothreads(objects)),
    eject: command(forced, noDevice),
    'blockdev-open-tray': command(forced, noDevice),
    'blockdev-close-tray': command(device, noDevice),
    'blockdev-remove-medium': command({ id: str }, noDevice),
    'blockdev-insert-medium': command({ id: str, 'node-name': str }, noDevice),
    'blockdev-change-medium': command(
      { ...device, filename: str, 'format?': str, 'force?': bool, 'read-only-mode?': retain },
      noDevice,
    ),
    block_set_io_throttle: command(throttle, noDevice),
  }
}

function noDevice(args: JsonObject): never {
  const [byDevice, byId] = [optionalText(args, 'device'), optionalText(args, 'id')]
  if ((byDevice === undefined) === (byId === undefined)) {
    refuse("Need exactly one of 'device' and 'id'")
  }
  throw new BlockError('DEVICE_NOT_FOUND', `Device '${byDevice ?? byId ?? ''}' not found`)
}

// They run no loop of their own here: every disk is answered from the thread of the program.
function iothreads(objects: ObjectStore): JsonValue[] {
  const ids = objects.list('/objects').filter((entry) => entry.type === 'child<iothread>')
  const shown = ids.map(({ name }) => ({
    id: name,
    'thread-id': process.pid,
    ...Object.fromEntries(
      IOTHREAD_NUMBERS.map((property) => [property, objects.get(`/objects/${name}`, property)]),
    ),
  }))
  return shown.reverse()
}
