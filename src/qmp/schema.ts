/**
 * Schemas of command arguments as data, and the validator that checks arguments against them.
 *
 * Invariants:
 * - Members are checked in the schema's order; unexpected members are reported last.
 * - Checking never changes the arguments, except that integers come out as plain numbers.
 * - Every refusal names the argument by the words monitor clients already match on.
 */
import { BlockError } from '../util/errors.ts'
import { isObject, type JsonObject, type JsonValue } from './json.ts'

/** Kinds of integers, by the range that they accept. */
export type IntKind = 'int64' | 'uint64' | 'uint32_t' | 'uint16_t'

/** What a value must look like. */
export type Schema =
  | { readonly kind: 'str' }
  | { readonly kind: 'bool' }
  | { readonly kind: 'any' }
  | { readonly kind: 'int'; readonly range: IntKind }
  | { readonly kind: 'enum'; readonly values: readonly string[] }
  | { readonly kind: 'list'; readonly of: Schema }
  /** The kind of JSON decides between the branches; `name` is what the refusal says. */
  | { readonly kind: 'alternate'; readonly name: string; readonly branches: readonly Schema[] }
  | { readonly kind: 'null' }
  | StructSchema
  /** For schemas that contain themselves. */
  | { readonly kind: 'lazy'; readonly get: () => Schema }

/** An object with named members; a union when one member (the tag) decides about more of them. */
export interface StructSchema {
  readonly kind: 'struct'
  /** Members by name, in the order in which they are checked. */
  readonly members: Members
  /** Name of the member, one of `members`, that picks the variant. */
  readonly tag?: string
  /** Further members by value of the tag; a value without entry leaves the rest unchecked. */
  readonly variants?: Readonly<Record<string, Members>>
}

/** Members of an object; a key that ends in `?` is optional. */
export type Members = Readonly<Record<string, Schema>>

/** Any text. */
export const str: Schema = { kind: 'str' }
/** True or false. */
export const bool: Schema = { kind: 'bool' }
/** Any JSON. */
export const any: Schema = { kind: 'any' }
/** A signed integer. */
export const int: Schema = { kind: 'int', range: 'int64' }
/** An integer that is not negative. */
export const size: Schema = { kind: 'int', range: 'uint64' }
/** An integer of 32 bits that is not negative. */
export const uint32: Schema = { kind: 'int', range: 'uint32_t' }
/** An integer of 16 bits that is not negative. */
export const uint16: Schema = { kind: 'int', range: 'uint16_t' }

/** One of these words. */
export function oneOf(...values: readonly string[]): Schema {
  return { kind: 'enum', values }
}

/** A list. */
export function list(of: Schema): Schema {
  return { kind: 'list', of }
}

/** An object with these members. */
export function struct(members: Members): StructSchema {
  return { kind: 'struct', members }
}

/** An object whose `tag` member decides about the rest. */
export function union(
  tag: string,
  members: Members,
  variants: Readonly<Record<string, Members>>,
): StructSchema {
  return { kind: 'struct', members, tag, variants }
}

/** One of several shapes, told apart by their kind of JSON. */
export function alternate(name: string, ...branches: readonly Schema[]): Schema {
  return { kind: 'alternate', name, branches }
}

/** The value as the command gets it. Errors: EINVAL with the sentence for the client. */
export function validate(schema: StructSchema, args: JsonObject): JsonObject {
  return checkStruct(schema, args, '')
}

// `path` is the full name so far ('' at the top), `name` the last part of it ('null' in lists).
function check(schema: Schema, value: JsonValue, path: string, name: string): JsonValue {
  switch (schema.kind) {
    case 'any':
      return value
    case 'str':
      return typeof value === 'string' ? value : wrongType(path, 'string')
    case 'bool':
      return typeof value === 'boolean' ? value : wrongType(path, 'boolean')
    case 'null':
      return value === null ? value : wrongType(path, 'null')
    case 'int':
      return checkInt(schema.range, value, path, name)
    case 'enum':
      if (typeof value !== 'string') return wrongType(path, 'string')
      if (schema.values.includes(value)) return value
      throw new BlockError('EINVAL', `Parameter '${name}' does not accept value '${value}'`)
    case 'list':
      if (!Array.isArray(value)) return wrongType(path, 'array')
      return value.map((item: JsonValue, i) => check(schema.of, item, `${path}[${i}]`, 'null'))
    case 'alternate':
      return checkAlternate(schema.name, schema.branches, value, path, name)
    case 'struct':
      return isObject(value) ? checkStruct(schema, value, path) : wrongType(path, 'object')
    case 'lazy':
      return check(schema.get(), value, path, name)
  }
}

const RANGES: Readonly<Record<IntKind, readonly [bigint, bigint]>> = {
  int64: [-(2n ** 63n), 2n ** 63n - 1n],
  uint64: [0n, 2n ** 64n - 1n],
  uint32_t: [0n, 2n ** 32n - 1n],
  uint16_t: [0n, 2n ** 16n - 1n],
}

function checkInt(kind: IntKind, value: JsonValue, path: string, name: string): number {
  const whole =
    typeof value === 'bigint' || (typeof value === 'number' && Number.isSafeInteger(value))
  if (!whole) return kind === 'int64' ? wrongType(path, 'integer') : expects(path, 'uint64')
  const [min, max] = RANGES[kind]
  const exact = BigInt(value)
  if (exact >= min && exact <= max) return Number(exact)
  if (kind === 'int64') return wrongType(path, 'integer')
  // A negative number is taken for the unsigned one that has the same 64 bits.
  if (kind === 'uint64' && exact < 0n && exact >= -(2n ** 63n)) return Number(exact + 2n ** 64n)
  if (kind === 'uint64') return expects(path, kind)
  throw new BlockError('EINVAL', `Parameter '${name}' expects ${kind}`)
}

function expects(path: string, kind: IntKind): never {
  throw new BlockError('EINVAL', `Parameter '${path}' expects ${kind}`)
}

function checkAlternate(
  typeName: string,
  branches: readonly Schema[],
  value: JsonValue,
  path: string,
  name: string,
): JsonValue {
  const branch = branches.find((candidate) => fits(candidate, value))
  if (branch === undefined) return wrongType(name === 'null' ? 'null' : path, typeName)
  return check(branch, value, path, name)
}

function fits(schema: Schema, value: JsonValue): boolean {
  switch (schema.kind) {
    case 'str':
    case 'enum':
      return typeof value === 'string'
    case 'null':
      return value === null
    case 'bool':
      return typeof value === 'boolean'
    case 'int':
      return typeof value === 'number' || typeof value === 'bigint'
    case 'list':
      return Array.isArray(value)
    case 'struct':
      return isObject(value)
    case 'lazy':
      return fits(schema.get(), value)
    default:
      return true
  }
}

function checkStruct(schema: StructSchema, value: JsonObject, path: string): JsonObject {
  const seen = new Set<string>()
  const out: { [key: string]: JsonValue } = {}
  const visit = (members: Members): void => {
    for (const [key, member] of Object.entries(members)) {
      const optional = key.endsWith('?')
      const name = optional ? key.slice(0, -1) : key
      const full = path === '' ? name : `${path}.${name}`
      seen.add(name)
      const given = Object.hasOwn(value, name) ? value[name] : undefined
      if (given !== undefined) out[name] = check(member, given, full, name)
      else if (!optional) throw new BlockError('EINVAL', `Parameter '${full}' is missing`)
    }
  }
  visit(schema.members)
  const tag = schema.tag === undefined ? undefined : out[schema.tag]
  if (typeof tag === 'string') {
    const variant = schema.variants?.[tag]
    if (variant === undefined) return value
    visit(variant)
  }
  for (const key of Object.keys(value)) {
    if (seen.has(key)) continue
    throw new BlockError(
      'EINVAL',
      `Parameter '${path === '' ? key : `${path}.${key}`}' is unexpected`,
    )
  }
  return out
}

function wrongType(path: string, expected: string): never {
  throw new BlockError('EINVAL', `Invalid parameter type for '${path}', expected: ${expected}`)
}
