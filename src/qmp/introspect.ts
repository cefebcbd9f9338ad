/**
 * The answer of `query-qmp-schema`: every command and event, and the types that they are made of.
 *
 * Invariants:
 * - Made from the very tables that arguments are checked with, so it says what is accepted.
 * - Names of types carry no meaning: they are numbers, and `[n]` for a list of `n`.
 * - Equal schema objects share one type, so a schema that contains itself ends.
 * - What a command returns is not described further than whether it returns anything.
 */
import type { CommandTable } from './command.ts'
import type { JsonObject, JsonValue } from './json.ts'
import type { Members, Schema, StructSchema } from './schema.ts'

const BUILTINS: Readonly<Record<string, string>> = {
  str: 'string',
  bool: 'boolean',
  any: 'value',
  null: 'null',
  int: 'int',
}
const EMPTY: Members = {}

/** The whole answer: commands and events first, then types. */
export function introspect(
  commands: CommandTable,
  events: Readonly<Record<string, Members>>,
): JsonObject[] {
  const types = new TypeTable()
  const named: JsonObject[] = []
  for (const [name, one] of Object.entries(commands)) {
    named.push({
      name,
      'meta-type': 'command',
      'arg-type': types.ofStruct(one.schema),
      'ret-type': answers(name) ? types.of({ kind: 'any' }) : types.ofMembers(EMPTY),
      ...(one.oob ? { 'allow-oob': true } : {}),
    })
  }
  for (const [name, members] of Object.entries(events)) {
    named.push({ name, 'meta-type': 'event', 'arg-type': types.ofMembers(members) })
  }
  return [...named, ...types.entries()]
}

function answers(name: string): boolean {
  const asks = [
    'query-',
    'qom-get',
    'qom-list',
    'human-',
    'x-debug-',
    'chardev-add',
    'chardev-change',
    'ringbuf-read',
  ]
  return asks.some((start) => name.startsWith(start)) || name.includes('delete-internal')
}

/** Types that were asked for, each described once. */
class TypeTable {
  readonly #names = new Map<object, string>()
  readonly #entries = new Map<string, JsonObject>()
  #count = 0

  entries(): JsonObject[] {
    return [...this.#entries.values()]
  }

  of(schema: Schema): string {
    switch (schema.kind) {
      case 'lazy':
        return this.of(schema.get())
      case 'struct':
        return this.ofStruct(schema)
      case 'int':
        return this.#builtin('int')
      case 'list':
        return this.#list(this.of(schema.of))
      case 'enum':
        return this.#once(schema, () => ({
          'meta-type': 'enum',
          members: schema.values.map((name) => ({ name })),
          values: [...schema.values],
        }))
      case 'alternate':
        return this.#once(schema, () => ({
          'meta-type': 'alternate',
          members: schema.branches.map((branch) => ({ type: this.of(branch) })),
        }))
      default:
        return this.#builtin(schema.kind)
    }
  }

  ofStruct(schema: StructSchema): string {
    return this.#once(schema, () => ({
      'meta-type': 'object',
      members: this.#members(schema.members),
      ...this.#variants(schema),
    }))
  }

  ofMembers(members: Members): string {
    return this.#once(members, () => ({
      'meta-type': 'object',
      members: this.#members(members),
    }))
  }

  #members(members: Members): JsonValue[] {
    return Object.entries(members).map(([key, schema]) => {
      const optional = key.endsWith('?')
      const name = optional ? key.slice(0, -1) : key
      return { name, type: this.of(schema), ...(optional ? { default: null } : {}) }
    })
  }

  #variants({ tag, variants, members }: StructSchema): JsonObject {
    if (tag === undefined || variants === undefined) return {}
    const picks = members[tag]
    const values = picks?.kind === 'enum' ? picks.values : Object.keys(variants)
    const described = values.map((value) => ({
      case: value,
      type: this.ofMembers(variants[value] ?? EMPTY),
    }))
    return { tag, variants: described }
  }

  #builtin(name: string): string {
    if (!this.#entries.has(name)) {
      const type = BUILTINS[name] ?? 'value'
      this.#entries.set(name, { name, 'meta-type': 'builtin', 'json-type': type })
    }
    return name
  }

  #list(of: string): string {
    const name = `[${of}]`
    if (!this.#entries.has(name)) {
      this.#entries.set(name, { name, 'meta-type': 'array', 'element-type': of })
    }
    return name
  }

  // The name is known before the description is made: it may mention itself.
  #once(key: object, describe: () => JsonObject): string {
    const known = this.#names.get(key)
    if (known !== undefined) return known
    const name = String(this.#count++)
    this.#names.set(key, name)
    this.#entries.set(name, {})
    this.#entries.set(name, { name, ...describe() })
    return name
  }
}
