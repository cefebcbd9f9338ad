/**
 * Kinds of objects that `object-add` can make in a runtime.
 *
 * Invariants:
 * - A secret's data never leaves it by a query.
 */
import { readFileSync } from 'node:fs'
import type { ThrottleGroups } from '../drivers/throttle.ts'
import { RECORDED_KINDS, throttleLimits } from '../qmp/commands/objects.ts'
import { isObject, type JsonObject, type JsonValue } from '../qmp/json.ts'
import type { ObjectHandle, ObjectKind } from '../qmp/objects.ts'
import { struct, validate } from '../qmp/schema.ts'
import { asBlockError, BlockError } from '../util/errors.ts'
import { tlsKinds } from './tls.ts'

/** The kinds, by name. */
export function objectKinds(groups: ThrottleGroups): Readonly<Record<string, ObjectKind>> {
  const recorded = RECORDED_KINDS.map((kind) => [kind, { create: recordedObject }])
  return {
    ...Object.fromEntries(recorded),
    ...tlsKinds,
    'throttle-group': { create: (id, options) => throttleGroup(groups, id, options) },
    iothread: { create: (_id, options) => iothread(options) },
    secret: { create: (_id, options) => secret(options) },
  }
}

function throttleGroup(groups: ThrottleGroups, id: string, options: JsonObject): ObjectHandle {
  const group = groups.add(id, limitsOf(options))
  return {
    inUse: () => group.members.size > 0,
    get: (property) => {
      if (property === 'limits') return { ...group.limits }
      return property.startsWith('x-') ? group.limits[property.slice(2)] : undefined
    },
    set: (property, value) => {
      if (property !== 'limits') return false
      group.setLimits(limitsOf({ limits: value }))
      return true
    },
    properties: () => [
      { name: 'limits', type: 'ThrottleLimits' },
      ...Object.keys(group.limits).map((name) => ({ name: `x-${name}`, type: 'int' })),
    ],
    remove: () => groups.remove(id),
  }
}

const limitsSchema = struct({ 'limits?': struct(throttleLimits) })

function limitsOf(options: JsonObject): Record<string, number> {
  const { limits } = validate(limitsSchema, options)
  const numbers: Record<string, number> = {}
  if (!isObject(limits)) return numbers
  for (const [name, value] of Object.entries(limits)) numbers[name] = Number(value)
  return numbers
}

const IOTHREAD_DEFAULTS: Readonly<Record<string, number>> = {
  'thread-pool-min': 0,
  'aio-max-batch': 0,
  'thread-pool-max': 64,
  'poll-max-ns': 32768,
  'poll-grow': 0,
  'poll-shrink': 0,
}

function iothread(options: JsonObject): ObjectHandle {
  const values = new Map<string, JsonValue>(Object.entries({ ...IOTHREAD_DEFAULTS, ...options }))
  for (const [name, value] of values) checkIothread(name, value)
  return {
    get: (property) => values.get(property),
    set: (property, value) => {
      if (!values.has(property)) return false
      checkIothread(property, value)
      values.set(property, value)
      return true
    },
    properties: () => [...values.keys()].map((name) => ({ name, type: 'int' })),
    remove: () => values.clear(),
  }
}

function checkIothread(name: string, value: JsonValue): void {
  if (typeof value === 'number' && value >= 0) return
  throw new BlockError('EINVAL', `${name} value must be in range [0, 9223372036854775807]`)
}

function secret(options: JsonObject): ObjectHandle {
  const { data, file, format } = options
  if (data !== undefined && file !== undefined) {
    throw new BlockError('EINVAL', "'file' and 'data' are mutually exclusive")
  }
  const text = typeof data === 'string' ? data : readSecret(file)
  if (format === 'base64' && !/^[A-Za-z0-9+/\s]*={0,2}\s*$/.test(text)) {
    throw new BlockError('EINVAL', 'Base64 data contains invalid characters')
  }
  const shown = typeof format === 'string' ? format : 'raw'
  return {
    secret: format === 'base64' ? Buffer.from(text, 'base64').toString('utf8') : text,
    get: (property) => (property === 'format' ? shown : undefined),
    set: () => false,
    properties: () => [{ name: 'format', type: 'QCryptoSecretFormat' }],
    remove: () => undefined,
  }
}

function readSecret(file: JsonValue | undefined): string {
  if (typeof file !== 'string') {
    throw new BlockError('EINVAL', "Either 'file' or 'data' must be provided")
  }
  try {
    return readFileSync(file, 'utf8')
  } catch (error) {
    const { code, message } = asBlockError(error)
    throw new BlockError(code, `Failed to open file “${file}”: ${message}`, { path: file }, error)
  }
}

function recordedObject(_id: string, options: JsonObject): ObjectHandle {
  const values = new Map<string, JsonValue>(Object.entries({ status: 'on', ...options }))
  return {
    get: (property) => values.get(property),
    set: (property, value) => {
      values.set(property, value)
      return true
    },
    properties: () => [...values.keys()].map((name) => ({ name, type: 'string' })),
    remove: () => values.clear(),
  }
}
