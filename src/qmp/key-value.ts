/**
 * Options as people type them, `driver=raw,file.driver=file,file.filename=/x`, turned into JSON.
 *
 * Invariants:
 * - Everything typed is text; the schema decides what becomes a number or a truth value.
 * - Text that does not fit stays text, so that the validator words the refusal.
 */
import { refuse } from './command.ts'
import { isObject, type JsonObject, type JsonValue } from './json.ts'
import type { Members, Schema } from './schema.ts'

/** Reads typed options. `,,` stands for a comma, dots nest, a lone word means on. Errors: EINVAL. */
export function parseKeyValue(text: string): JsonObject {
  const root: { [key: string]: JsonValue } = {}
  for (const part of splitCommas(text)) {
    if (part === '') continue
    const equals = part.indexOf('=')
    const key = equals < 0 ? part : part.slice(0, equals)
    put(root, key.split('.'), equals < 0 ? 'on' : part.slice(equals + 1), key)
  }
  return root
}

const SUFFIXES = 'BKMGT'

/** A number as people type sizes: `4M`, `64k`. */
function numberIn(text: string): number | undefined {
  const [, digits, suffix = 'B'] = /^(-?[0-9]{1,15})([BKMGT]?)$/i.exec(text) ?? []
  if (digits === undefined) return undefined
  const number = Number(digits) * 1024 ** Math.max(0, SUFFIXES.indexOf(suffix.toUpperCase()))
  return Number.isSafeInteger(number) ? number : undefined
}

/** Gives typed values the types that a schema asks for. */
export function coerce(schema: Schema, value: JsonValue): JsonValue {
  switch (schema.kind) {
    case 'lazy':
      return coerce(schema.get(), value)
    case 'int':
      return typeof value === 'string' ? (numberIn(value) ?? value) : value
    case 'bool':
      if (value === 'on' || value === 'yes' || value === 'true') return true
      return value === 'off' || value === 'no' || value === 'false' ? false : value
    case 'list':
      return isObject(value) ? asList(value).map((item) => coerce(schema.of, item)) : value
    case 'alternate': {
      const branch = schema.branches.find(({ kind }) => kind === 'struct' || kind === 'lazy')
      return isObject(value) && branch !== undefined ? coerce(branch, value) : value
    }
    case 'struct': {
      if (!isObject(value)) return value
      const tag = schema.tag === undefined ? undefined : value[schema.tag]
      const variant = typeof tag === 'string' ? schema.variants?.[tag] : undefined
      return coerceMembers({ ...schema.members, ...variant }, value)
    }
    default:
      return value
  }
}

function coerceMembers(members: Members, value: JsonObject): JsonObject {
  const entries = Object.entries(value).map(([key, member]) => {
    const schema = members[key] ?? members[`${key}?`]
    return [key, schema === undefined ? member : coerce(schema, member)]
  })
  return Object.fromEntries(entries)
}

function asList(value: JsonObject): JsonValue[] {
  return Object.keys(value)
    .sort((a, b) => Number(a) - Number(b))
    .map((key) => value[key] ?? null)
}

function splitCommas(text: string): string[] {
  const parts = ['']
  for (let at = 0; at < text.length; at++) {
    const letter = text[at] ?? ''
    if (letter !== ',') parts.push((parts.pop() ?? '') + letter)
    else if (text[at + 1] === ',') {
      parts.push(`${parts.pop() ?? ''},`)
      at += 1
    } else parts.push('')
  }
  return parts
}

function put(
  root: { [key: string]: JsonValue },
  path: readonly string[],
  value: string,
  key: string,
): void {
  const [name = '', ...rest] = path
  if (!/^[A-Za-z0-9_-]+$/.test(name) || name === '__proto__') refuse(`Invalid parameter '${key}'`)
  if (rest.length === 0) {
    if (isObject(root[name])) refuse(`Parameters '${key}.*' used inconsistently`)
    root[name] = value
    return
  }
  const below = Object.hasOwn(root, name) ? root[name] : {}
  if (!isObject(below)) refuse(`Parameters '${key}' used inconsistently`)
  const copy: { [key: string]: JsonValue } = { ...below }
  put(copy, rest, value, key)
  root[name] = copy
}
