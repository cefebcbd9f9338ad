/** Expectations over explorations; every one reports how many interleavings were run. */
import { afterAll, expect, vi } from 'vitest'
import { type Bounds, explore, type Program, replay } from './explorer.ts'

// A search is pure computing; a busy machine must not make it look like a hang.
vi.setConfig({ testTimeout: 60_000 })

const lines: string[] = []
let total = 0

/** `MODEL_DEPTH=1 npx vitest run test/model` searches one preemption deeper; takes minutes. */
const DEEPER = Number(process.env.MODEL_DEPTH ?? 0)

function deepen(bounds: Bounds): Bounds {
  const { preemptions = 2, executions = 200_000 } = bounds
  return { preemptions: preemptions + DEEPER, executions: executions * 100 ** DEEPER }
}

afterAll(() => {
  process.stdout.write(`${lines.join('\n')}\n  in all ${total} interleavings, none of them bad\n`)
})

/** No interleaving of the program fails. */
export function expectSound<S>(name: string, program: Program<S>, bounds: Bounds = {}): void {
  const { executions, failure } = explore(program, deepen(bounds))
  lines.push(`  ${name}: ${executions} interleavings`)
  total += executions
  if (failure === undefined) {
    expect(executions).toBeGreaterThan(1)
    return
  }
  const message = failure.error instanceof Error ? failure.error.stack : String(failure.error)
  const choices = JSON.stringify(failure.choices)
  throw new Error(
    `${name} failed in interleaving ${executions}; replay with ${choices}\n${message}`,
  )
}

/** Some interleaving of the program fails, and its choice list fails again. */
export function expectCaught<S>(
  name: string,
  program: Program<S>,
  words: RegExp,
  bounds: Bounds = {},
): void {
  const { executions, failure } = explore(program, bounds)
  if (failure === undefined)
    throw new Error(`${name}: nothing caught in ${executions} interleavings`)
  const message = failure.error instanceof Error ? failure.error.message : String(failure.error)
  expect(message).toMatch(words)
  expect(() => replay(program, failure.choices, bounds.preemptions)).toThrow(message)
  const choices = JSON.stringify(failure.choices)
  lines.push(`  ${name}: caught in interleaving ${executions}, choices ${choices}`)
}

/** Fails an execution with a sentence. */
export function must(condition: boolean, sentence: string): void {
  if (!condition) throw new Error(sentence)
}
