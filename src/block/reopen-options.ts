/**
 * Which options a reopen may change.
 *
 * Invariants:
 * - Options that decide how every node behaves may always change, those of a driver only if the
 *   driver says so; all others must be given again as they are.
 * - Nested options count one by one, under their dotted names.
 */
import { BlockError } from '../util/errors.ts'
import type { BlockdevOptions } from './driver.ts'
import type { BlockNode } from './node.ts'

/** Options that every node may change or drop, and those that are checked elsewhere. */
const COMMON = [
  ...['driver', 'node-name', 'read-only', 'auto-read-only', 'discard', 'detect-zeroes', 'cache'],
  ...['file', 'backing'],
]

/** Refuses options that are gone and have no default to go back to. Errors: EINVAL. */
export function checkReset(node: BlockNode, options: BlockdevOptions): void {
  const next = flat(options)
  const required = (node.definition.required ?? []).filter((key) => key in node.options)
  for (const key of [...fixedKeys(node, node.options), ...required]) {
    if (next.has(key) || isChild(node, key)) continue
    const words = `Option '${key}' cannot be reset to its default value`
    throw new BlockError('EINVAL', words, { node: node.name })
  }
}

/** Refuses other values of options that are fixed. Errors: EINVAL. */
export function checkUnchanged(node: BlockNode, options: BlockdevOptions): void {
  const now = flat(node.options)
  const next = flat(options)
  for (const key of fixedKeys(node, options)) {
    if (isChild(node, key)) continue
    if (now.get(key) !== next.get(key)) throw cannotChange(node, key)
  }
  const name = options['node-name']
  if (options.driver !== node.definition.name) throw cannotChange(node, 'driver')
  if (name !== undefined && name !== node.name) throw cannotChange(node, 'node-name')
}

/** The refusal to change one option. */
export function cannotChange(node: BlockNode, option: string): BlockError {
  return new BlockError('EINVAL', `Cannot change the option '${option}'`, { node: node.name })
}

function fixedKeys(node: BlockNode, options: BlockdevOptions): string[] {
  const changeable = [...COMMON, ...(node.definition.changeable ?? [])]
  return [...flat(options).keys()].filter((key) => !changeable.includes(key.split('.')[0] ?? key))
}

// `children.0` and a child of any other name; what is below it is the child's own.
function isChild(node: BlockNode, key: string): boolean {
  for (const name of node.children.keys())
    if (key === name || key.startsWith(`${name}.`)) return true
  return false
}

function flat(options: BlockdevOptions): Map<string, unknown> {
  const out = new Map<string, unknown>()
  const visit = (key: string, value: unknown): void => {
    if (value === undefined) return
    if (typeof value !== 'object' || value === null) out.set(key, value)
    else for (const [part, inner] of Object.entries(value)) visit(`${key}.${part}`, inner)
  }
  for (const [key, value] of Object.entries(options)) visit(key, value)
  return out
}
