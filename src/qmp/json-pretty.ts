/**
 * Messages spread over lines, for people who read a monitor.
 *
 * Invariants:
 * - The value is that of the line; only the white space differs.
 */
import { isObject, type JsonValue, parseJson, stringifyJson } from './json.ts'

/** A message as its line, spread over several; ends as the line does. */
export function prettyLine(line: string): string {
  return `${spread(parseJson(line), '\r\n')}\r\n`
}

function spread(value: JsonValue, newline: string): string {
  const inner = `${newline}    `
  if (Array.isArray(value))
    return wrap(
      '[',
      ']',
      value.map((item) => spread(item, inner)),
      newline,
    )
  if (!isObject(value)) return stringifyJson(value)
  const members = Object.entries(value).map(
    ([key, member]) => `${stringifyJson(key)}: ${spread(member, inner)}`,
  )
  return wrap('{', '}', members, newline)
}

function wrap(open: string, close: string, parts: readonly string[], newline: string): string {
  return `${open}${parts.map((part) => `${newline}    ${part}`).join(',')}${newline}${close}`
}
