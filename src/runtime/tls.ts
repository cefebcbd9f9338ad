/**
 * Objects that connections are secured by: credentials, and rules for who may come in.
 *
 * Invariants:
 * - Credentials are read when the object is made; who uses them keeps them when it is deleted.
 * - Rules are looked at whenever somebody comes in: they may be changed or replaced meanwhile.
 */

import type { TlsCredentials } from '../nbd/tls.ts'
import { pskFromFiles, type TlsEndpoint, x509FromFiles } from '../nbd/tls-files.ts'
import { isObject, type JsonObject, type JsonValue } from '../qmp/json.ts'
import type { ObjectHandle, ObjectKind, ObjectStore } from '../qmp/objects.ts'
import { BlockError } from '../util/errors.ts'

/** The kinds, by name. */
export const tlsKinds: Readonly<Record<string, ObjectKind>> = {
  'tls-creds-x509': credentialsKind('tls-creds-x509', x509),
  'tls-creds-psk': credentialsKind('tls-creds-psk', psk),
  'tls-creds-anon': credentialsKind('tls-creds-anon', anonymous),
  'authz-simple': { create: (_id, options) => simpleRule(options) },
  'authz-list': { create: (_id, options) => ruleList(options) },
}

function credentialsKind(
  type: string,
  make: (options: JsonObject, store: ObjectStore) => ObjectHandle,
): ObjectKind {
  return {
    create: (_id, options, store) => {
      if (options.loaded === undefined) return make(options, store)
      throw new BlockError('EINVAL', `Property '${type}.loaded' is not writable`)
    },
  }
}

const text = (value: JsonValue | undefined): string | undefined =>
  typeof value === 'string' ? value : undefined

const endpointOf = (options: JsonObject): TlsEndpoint =>
  options.endpoint === 'server' ? 'server' : 'client'

function x509(options: JsonObject, store: ObjectStore): ObjectHandle {
  const secret = text(options.passwordid)
  const credentials = x509FromFiles({
    dir: directoryOf(options),
    endpoint: endpointOf(options),
    verifyPeer: options['verify-peer'] !== false,
    sanityCheck: options['sanity-check'] !== false,
    ...(secret === undefined ? {} : { passphrase: store.secret(secret) }),
  })
  return credentialsHandle(options, credentials, { 'sanity-check': true, passwordid: '' })
}

function psk(options: JsonObject): ObjectHandle {
  const keys = pskFromFiles(directoryOf(options), endpointOf(options), text(options.username))
  return credentialsHandle(options, keys, { username: '' })
}

function anonymous(options: JsonObject): ObjectHandle {
  return credentialsHandle(options, { kind: 'anon' }, {})
}

function directoryOf(options: JsonObject): string {
  const dir = text(options.dir)
  if (dir === undefined) throw new BlockError('EINVAL', "Missing 'dir' property value")
  return dir
}

function credentialsHandle(
  options: JsonObject,
  credentials: TlsCredentials,
  more: JsonObject,
): ObjectHandle {
  const common = { endpoint: 'client', dir: '', 'verify-peer': true, priority: '' }
  const values = new Map(Object.entries({ ...common, ...more, ...options, loaded: true }))
  return {
    credentials: { endpoint: endpointOf(options), tls: credentials },
    get: (property) => values.get(property),
    set: (property) => {
      if (!values.has(property)) return false
      // They were read and checked; another set of them is another object.
      throw new BlockError('EINVAL', `Property '${property}' cannot be changed after loading`)
    },
    properties: () => [...values].map(([name, value]) => ({ name, type: typeOf(name, value) })),
    remove: () => undefined,
  }
}

function typeOf(name: string, value: JsonValue): string {
  if (name === 'endpoint') return 'QCryptoTLSCredsEndpoint'
  return typeof value === 'boolean' ? 'bool' : 'string'
}

function simpleRule(options: JsonObject): ObjectHandle {
  let identity = text(options.identity) ?? ''
  return {
    authorize: (who) => who === identity,
    get: (property) => (property === 'identity' ? identity : undefined),
    set: (property, value) => {
      if (property !== 'identity') return false
      if (typeof value !== 'string') throw wrongType('identity', 'string')
      identity = value
      return true
    },
    properties: () => [{ name: 'identity', type: 'string' }],
    remove: () => undefined,
  }
}

interface Rule {
  readonly match: string
  readonly policy: string
  readonly format: string
}

function ruleList(options: JsonObject): ObjectHandle {
  let policy = text(options.policy) ?? 'deny'
  let rules = rulesOf(options.rules ?? [])
  return {
    authorize: (who) => {
      const rule = rules.find((one) => fits(one, who))
      return (rule?.policy ?? policy) === 'allow'
    },
    get: (property) => {
      if (property === 'policy') return policy
      return property === 'rules' ? rules.map((rule) => ({ ...rule })) : undefined
    },
    set: (property, value) => {
      if (property === 'policy') policy = policyOf(value)
      else if (property === 'rules') rules = rulesOf(value)
      else return false
      return true
    },
    properties: () => [
      { name: 'policy', type: 'QAuthZListPolicy' },
      { name: 'rules', type: 'QAuthZListRule' },
    ],
    remove: () => undefined,
  }
}

function policyOf(value: JsonValue | undefined): string {
  if (value === 'allow' || value === 'deny') return value
  if (typeof value !== 'string') throw wrongType('policy', 'string')
  throw new BlockError('EINVAL', `Parameter 'policy' does not accept value '${value}'`)
}

function rulesOf(value: JsonValue): Rule[] {
  if (!Array.isArray(value)) throw wrongType('rules', 'array')
  return value.map((rule) => {
    if (!isObject(rule)) throw wrongType('rules', 'object')
    const { match, policy, format } = rule
    if (typeof match !== 'string') throw wrongType('match', 'string')
    return { match, policy: policyOf(policy), format: format === 'glob' ? 'glob' : 'exact' }
  })
}

function fits(rule: Rule, who: string): boolean {
  if (rule.format === 'exact') return rule.match === who
  const parts = rule.match.split(/([*?])/).map((part) => GLOB[part] ?? literally(part))
  return new RegExp(`^${parts.join('')}$`, 's').test(who)
}

const GLOB: Readonly<Record<string, string>> = { '*': '.*', '?': '.' }

function literally(part: string): string {
  return part.replace(/[$()*+.?[\\\]^{|}]/g, '\\$&')
}

function wrongType(name: string, type: string): BlockError {
  return new BlockError('EINVAL', `Invalid parameter type for '${name}', expected: ${type}`)
}
