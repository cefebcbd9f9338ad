/**
 * Options as people type them, `driver=raw,file.driver=file,file.filename=/x`, turned into JSON.
 *
 * Invariants:
 * - Everything typed is text; the schema decides what becomes a number or a truth value.
 * - Text that does not fit stays text for the validator to refuse, unless the caller names where it
 *   stands: then it is refused in the words of a command line.
 */
import { refuse } from './command.ts'
import { isObject, type JsonObject, type JsonValue, parseJson } from './json.ts'
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

/**
 * Reads the value of a command line option: typed options, or JSON when it begins with a brace. A
 * first word without `=` is the value of `implied`. Errors: EINVAL.
 */
export function parseOption(schema: Schema, text: string, implied: string): JsonObject {
  if (text.startsWith('{')) {
    const json = parseJson(text)
    return isObject(json) ? json : refuse('Expected a JSON object')
  }
  const typed = coerce(schema, parseKeyValue(explicit(text, implied)), '')
  return isObject(typed) ? typed : refuse(`Parameter '${implied}' is missing`)
}

/** The same options with every key written out. Errors: EINVAL for a lone word. */
function explicit(text: string, implied: string): string {
  const parts = splitCommas(text)
  const first = parts[0] ?? ''
  const lone = implied !== '' && first !== '' && !first.includes('=')
  if (parts.includes('help') || parts.includes('?')) refuse('Help is not available for this option')
  for (const [at, part] of parts.entries()) {
    if (part.includes('=') || (at === 0 && (lone || text === ''))) continue
    if (part !== '') refuse(`Expected '=' after parameter '${part}'`)
    if (at < parts.length - 1) refuse("Invalid parameter ''")
  }
  return lone ? `${implied}=${text}` : text
}

const SUFFIXES = 'BKMGT'

/** A number as people type sizes: `4M`, `64k`. */
function numberIn(text: string): number | undefined {
  if (/^0x[0-9a-f]{1,13}$/i.test(text)) return Number(text)
  const [, digits, suffix = 'B'] = /^(-?[0-9]{1,15})([BKMGT]?)$/i.exec(text) ?? []
  if (digits === undefined) return undefined
  const number = Number(digits) * 1024 ** Math.max(0, SUFFIXES.indexOf(suffix.toUpperCase()))
  return Number.isSafeInteger(number) ? number : undefined
}

/**
 * Gives typed values the types that a schema asks for. With `path`, the name of the value so far
 * ('' at the top), a number or truth value that is none is refused (EINVAL); without, it stays text.
 */
export function coerce(schema: Schema, value: JsonValue, path?: string): JsonValue {
  switch (schema.kind) {
    case 'lazy':
      return coerce(schema.get(), value, path)
    case 'int':
      if (typeof value !== 'string') return value
      return numberIn(value) ?? misfit(value, path, 'integer')
    case 'bool':
      return truth(value) ?? misfit(value, path, "'on' or 'off'")
    case 'list':
      return isObject(value) ? coerceList(schema.of, value, path) : value
    case 'alternate': {
      const branch = schema.branches.find(({ kind }) => kind === 'struct' || kind === 'lazy')
      return isObject(value) && branch !== undefined ? coerce(branch, value, path) : value
    }
    case 'struct': {
      if (!isObject(value)) return value
      const tag = schema.tag === undefined ? undefined : value[schema.tag]
      const variant = typeof tag === 'string' ? schema.variants?.[tag] : undefined
      return coerceMembers({ ...schema.members, ...variant }, value, path)
    }
    default:
      return value
  }
}

function truth(value: JsonValue): boolean | undefined {
  if (value === 'on' || value === 'yes' || value === 'true') return true
  return value === 'off' || value === 'no' || value === 'false' ? false : undefined
}

function misfit(value: JsonValue, path: string | undefined, wanted: string): JsonValue {
  if (path === undefined || typeof value !== 'string') return value
  return refuse(`Parameter '${path}' expects ${wanted}`)
}

const below = (path: string | undefined, key: string): string | undefined =>
  path === undefined ? undefined : path === '' ? key : `${path}.${key}`

function coerceMembers(members: Members, value: JsonObject, path: string | undefined): JsonObject {
  const entries = Object.entries(value).map(([key, member]) => {
    const schema = members[key] ?? members[`${key}?`]
    return [key, schema === undefined ? member : coerce(schema, member, below(path, key))]
  })
  return Object.fromEntries(entries)
}

function coerceList(of: Schema, value: JsonObject, path: string | undefined): JsonValue[] {
  const keys = Object.keys(value).sort((a, b) => Number(a) - Number(b))
  return keys.map((key, at) => {
    if (path !== undefined && key !== String(at)) refuse(`Parameter '${path}.${at}' missing`)
    return coerce(of, value[key] ?? null, below(path, key))
  })
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

/**
 * Typed options of a node in today's spelling: the server of an NBD node nested, a child that is
 * only a file name with its driver.
 */
export function modernOptions(options: JsonObject): JsonObject {
  const entries = Object.entries(options).map(([key, value]): [string, JsonValue] => [
    key,
    isObject(value) ? modernOptions(value) : value,
  ])
  const all = Object.fromEntries(entries)
  const { host, port, path, ...rest } = all
  if (options.driver !== 'nbd' || options.server !== undefined) {
    const plain = all.driver === undefined && all.filename !== undefined
    return plain ? { driver: 'file', ...all } : all
  }
  if (path !== undefined) return { ...rest, server: { type: 'unix', path } }
  return { ...rest, server: { type: 'inet', host: host ?? '', port: port ?? '10809' } }
}
