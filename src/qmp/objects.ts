/**
 * User-made objects: throttle groups, iothreads, secrets, and objects that are only remembered.
 *
 * Invariants:
 * - Ids are unique over all kinds.
 * - An object in use stays until its last user is gone.
 */

import type { TlsCredentials } from '../nbd/tls.ts'
import type { TlsEndpoint } from '../nbd/tls-files.ts'
import { BlockError } from '../util/errors.ts'
import type { JsonObject, JsonValue } from './json.ts'

/** One kind of object: how it is made, changed and given up. */
export interface ObjectKind {
  /** Makes it. Errors: EINVAL for options that make no sense. */
  create(id: string, options: JsonObject, store: ObjectStore): ObjectHandle
}

/** Credentials, and whose they are. */
export interface ObjectCredentials {
  /** The side of a connection that they are for. */
  readonly endpoint: TlsEndpoint
  /** What they are. */
  readonly tls: TlsCredentials
}

/** One object. */
export interface ObjectHandle {
  /** Of credentials: for connections. */
  readonly credentials?: ObjectCredentials
  /** Of a secret: what it is. */
  readonly secret?: string
  /** Of rules: whether somebody of that name may come in. */
  authorize?(identity: string): boolean
  /** Somebody needs it. */
  inUse?(): boolean
  /** Reads a property; undefined when there is none of that name. */
  get(property: string): JsonValue | undefined
  /** Changes a property; false when there is none of that name. Errors: EINVAL. */
  set(property: string, value: JsonValue): boolean
  /** Names and types of the properties. */
  properties(): readonly { readonly name: string; readonly type: string }[]
  /** Gives it up. */
  remove(): void
}

interface Entry {
  readonly type: string
  readonly handle: ObjectHandle
}

const ID_PATTERN = /^[A-Za-z][A-Za-z0-9\-._]*$/

/** All objects. */
export class ObjectStore {
  readonly #kinds: ReadonlyMap<string, ObjectKind>
  readonly #objects = new Map<string, Entry>()

  constructor(kinds: Readonly<Record<string, ObjectKind>>) {
    this.#kinds = new Map(Object.entries(kinds))
  }

  /** Makes an object. Errors: EINVAL, EEXIST. */
  add(type: string, id: string, options: JsonObject): void {
    if (!ID_PATTERN.test(id)) throw new BlockError('EINVAL', "Parameter 'id' expects an identifier")
    const kind = this.#kinds.get(type)
    if (kind === undefined) throw new BlockError('EINVAL', `invalid object type: ${type}`)
    if (this.#objects.has(id)) {
      throw new BlockError(
        'EEXIST',
        `attempt to add duplicate property '${id}' to object (type 'container')`,
      )
    }
    this.#objects.set(id, { type, handle: kind.create(id, options, this) })
  }

  /** Removes one. Errors: ENOENT, EBUSY. */
  remove(id: string): void {
    const entry = this.#objects.get(id)
    if (entry === undefined) throw new BlockError('ENOENT', `object '${id}' not found`)
    if (entry.handle.inUse?.() === true) {
      throw new BlockError('EBUSY', `object '${id}' is in use, can not be deleted`)
    }
    this.#objects.delete(id)
    entry.handle.remove()
  }

  /** Whether there is an object of that id and type. */
  has(id: string, type: string): boolean {
    return this.#objects.get(id)?.type === type
  }

  /** Whether there is anything at a path that begins with `/`. */
  exists(path: string): boolean {
    // The container comes with the first object.
    if (path === '/objects') return this.#objects.size > 0
    return path === '/' || this.#objects.has(path.slice('/objects/'.length))
  }

  /** Credentials for one side of connections. Errors: EINVAL when they are not. */
  credentials(id: string, endpoint: TlsEndpoint): TlsCredentials {
    const handle = this.#objects.get(id)?.handle
    if (handle === undefined) throw new BlockError('EINVAL', `No TLS credentials with id '${id}'`)
    const { credentials } = handle
    if (credentials === undefined) {
      throw new BlockError('EINVAL', `Object with id '${id}' is not TLS credentials`)
    }
    if (credentials.endpoint !== endpoint) {
      throw new BlockError('EINVAL', `Expected TLS credentials for a ${endpoint} endpoint`)
    }
    return credentials.tls
  }

  /** What a secret is. Errors: EINVAL when there is none of that id. */
  secret(id: string): string {
    const handle = this.#objects.get(id)?.handle
    if (handle === undefined) throw new BlockError('EINVAL', `No secret with id '${id}'`)
    if (handle.secret === undefined) {
      throw new BlockError('EINVAL', `Object with id '${id}' is not a secret`)
    }
    return handle.secret
  }

  /** Whether rules let somebody in; rules that are not there let nobody in. */
  authorizes(id: string, identity: string): boolean {
    return this.#objects.get(id)?.handle.authorize?.(identity) === true
  }

  /** Properties at a path. Errors: DEVICE_NOT_FOUND. */
  list(path: string): { readonly name: string; readonly type: string }[] {
    const type = { name: 'type', type: 'string' }
    if (path === '') throw new BlockError('EINVAL', "Path '' is ambiguous")
    if (path === '/') return [type, { name: 'objects', type: 'child<container>' }]
    if (path === '/objects') {
      const children = [...this.#objects].map(([id, entry]) => ({
        name: id,
        type: `child<${entry.type}>`,
      }))
      return [type, ...children]
    }
    return [type, ...this.#at(path).handle.properties()]
  }

  /** Reads a property. Errors: DEVICE_NOT_FOUND, EINVAL. */
  get(path: string, property: string): JsonValue {
    const entry = this.#at(path)
    if (property === 'type') return entry.type
    return entry.handle.get(property) ?? unknownProperty(entry.type, property)
  }

  /** Changes a property. Errors: DEVICE_NOT_FOUND, EINVAL. */
  set(path: string, property: string, value: JsonValue): void {
    const entry = this.#at(path)
    if (!entry.handle.set(property, value)) unknownProperty(entry.type, property)
  }

  #at(path: string): Entry {
    const id = path.startsWith('/objects/') ? path.slice('/objects/'.length) : path
    const entry = this.#objects.get(id)
    if (entry === undefined) throw new BlockError('DEVICE_NOT_FOUND', `Device '${path}' not found`)
    return entry
  }
}

function unknownProperty(type: string, property: string): never {
  throw new BlockError('EINVAL', `Property '${type}.${property}' not found`)
}
