/**
 * The same commands to both programs, and where the answers part.
 *
 * Invariants:
 * - The reference is right until the table of known differences says otherwise.
 * - After different words of a refusal both stand where they stood and the run goes on; after
 *   anything else it ends.
 * - A step that kills the reference is left out, and what came before is sent to it again.
 */
import { Random } from '../../src/util/random.ts'
import {
  Dead,
  Engine,
  type EngineName,
  Images,
  type Reply,
  type Step,
} from './graph-differential-engine.ts'
import { KNOWN } from './graph-differential-known.ts'
import { type Options, Steps, type World } from './graph-differential-steps.ts'

/** Where the two part. */
export interface Difference {
  readonly kind: 'words' | 'outcome' | 'state' | 'death'
  readonly step: Step
  readonly reference: string
  readonly ours: string
}

/** What a run found. */
export interface Outcome {
  readonly steps: readonly Step[]
  readonly differences: readonly Difference[]
  /** How often the reference died. */
  readonly crashes: number
}

interface Pair {
  readonly reference: Engine
  readonly ours: Engine
}

const QUERIES: readonly Step[] = [
  { execute: 'query-named-block-nodes', arguments: {} },
  { execute: 'query-block-exports', arguments: {} },
  { execute: 'query-jobs', arguments: {} },
]

async function startPair(images: Images): Promise<Pair> {
  const [reference, ours] = await Promise.all([
    Engine.start('reference', images),
    Engine.start('ours', images),
  ])
  return { reference, ours }
}

async function endPair(pair: Pair): Promise<void> {
  await Promise.all([pair.reference.end(), pair.ours.end()])
}

/** Invented names differ from run to run, members of objects come in any order. */
export function canonical(value: unknown): unknown {
  if (typeof value === 'string') return canonicalText(value)
  if (typeof value !== 'object' || value === null) return value
  if (Array.isArray(value)) return value.map(canonical)
  const out: Record<string, unknown> = {}
  for (const key of Object.keys(value).sort()) {
    if (!isHostAffair(value, key)) out[key] = canonical(Reflect.get(value, key))
  }
  return out
}

/** What a file takes on the host, and how long an image file grows, is each program's own affair. */
function isHostAffair(value: object, key: string): boolean {
  if (key === 'actual-size') return true
  if (key !== 'virtual-size' || Reflect.get(value, 'format') === 'qcow2') return false
  return /qcow2\b/.test(String(Reflect.get(value, 'filename')))
}

function canonicalText(text: string): string {
  const plain = text.replace(/#block\d+/g, '#block')
  if (!plain.startsWith('json:')) return plain
  try {
    return `json:${JSON.stringify(canonical(JSON.parse(plain.slice(5))))}`
  } catch {
    return plain
  }
}

const show = (value: unknown): string => JSON.stringify(canonical(value))

const words = (reply: Reply): string =>
  reply.error === undefined
    ? show(reply.return)
    : `${reply.error.class}: ${canonicalText(reply.error.desc)}`

interface Drawn {
  readonly nodes: readonly { readonly id: number; readonly name: string; readonly type: string }[]
  readonly edges: readonly {
    readonly parent: number
    readonly child: number
    readonly name: string
    readonly perm: readonly string[]
    readonly 'shared-perm': readonly string[]
  }[]
}

/** Who uses whom and how, without the numbers. */
function drawn(graph: unknown): string[] {
  const { nodes, edges } = graph as Drawn
  const names = new Map(nodes.map(({ id, name, type }) => [id, `${type} ${name}`] as const))
  const lines = edges.map(({ parent, child, name, perm, 'shared-perm': shared }) =>
    [names.get(parent), name, names.get(child), [...perm].sort(), [...shared].sort()].join(' '),
  )
  return lines.map(canonicalText).sort()
}

const GRAPH: Step = { execute: 'x-debug-query-block-graph', arguments: {} }

/** The permissions of every edge. */
async function compareEdges(pair: Pair, step: Step): Promise<Difference | undefined> {
  const [left, right] = [await pair.reference.ask(GRAPH), await pair.ours.ask(GRAPH)]
  if (right.error !== undefined) return undefined
  const [reference, ours] = [drawn(left.return), drawn(right.return)]
  if (show(reference) === show(ours)) return undefined
  const only = (some: string[], others: string[]): string =>
    some.filter((line) => !others.includes(line)).join('; ')
  return { kind: 'state', step, reference: only(reference, ours), ours: only(ours, reference) }
}

/** Sends one step to both; what differs. */
async function compare(pair: Pair, step: Step): Promise<{ reply: Reply; found?: Difference }> {
  const reply = await pair.reference.ask(step)
  const reference = words(reply)
  let ours: Reply
  try {
    ours = await pair.ours.ask(step)
  } catch (error) {
    return { reply, found: { kind: 'death', step, reference, ours: String(error) } }
  }
  if (words(ours) === reference) return { reply }
  const bothFail = reply.error !== undefined && ours.error !== undefined
  const bothWork = reply.error === undefined && ours.error === undefined
  const kind = bothFail ? 'words' : bothWork ? 'state' : 'outcome'
  return { reply, found: { kind, step, reference, ours: words(ours) } }
}

/** Compares what both show of themselves; keeps what the reference shows. */
async function compareState(pair: Pair, step: Step, world: World): Promise<Difference | undefined> {
  for (const query of QUERIES) {
    const { reply, found } = await compare(pair, query)
    if (query.execute === 'query-named-block-nodes') readNodes(reply.return, world)
    if (query.execute === 'query-block-exports') readExports(reply.return, world)
    if (found !== undefined) return { ...found, kind: 'state', step, ...parted(found) }
  }
  return eventsDifference(pair, step) ?? (await compareEdges(pair, step))
}

// A machine that begins to run says so, whenever it gets round to it.
const shownEvents = (engine: Engine): string =>
  show(engine.take().filter((event) => !JSON.stringify(event).includes('"RESUME"')))

function eventsDifference(pair: Pair, step: Step): Difference | undefined {
  const [reference, ours] = [shownEvents(pair.reference), shownEvents(pair.ours)]
  return reference === ours ? undefined : { kind: 'state', step, reference, ours }
}

/** Only what is not the same, by path: whole graphs are too long to read. */
function parted(found: Difference): { readonly reference: string; readonly ours: string } {
  const left: string[] = []
  const right: string[] = []
  const walk = (path: string, a: unknown, b: unknown): void => {
    if (JSON.stringify(a) === JSON.stringify(b)) return
    if (typeof a === 'object' && typeof b === 'object' && a !== null && b !== null) {
      if (Array.isArray(a) === Array.isArray(b)) {
        for (const key of new Set([...Object.keys(a), ...Object.keys(b)]))
          walk(`${path}.${key}`, Reflect.get(a, key), Reflect.get(b, key))
        return
      }
    }
    left.push(`${path}=${JSON.stringify(a)}`)
    right.push(`${path}=${JSON.stringify(b)}`)
  }
  try {
    walk('', JSON.parse(found.reference), JSON.parse(found.ours))
  } catch {
    return found
  }
  return { reference: left.slice(0, 6).join(' '), ours: right.slice(0, 6).join(' ') }
}

interface Shown {
  readonly 'node-name': string
  readonly 'dirty-bitmaps'?: readonly { readonly name?: string }[]
}

function readNodes(list: unknown, world: World): void {
  const nodes = list as readonly Shown[]
  const named = nodes.filter((node) => !node['node-name'].startsWith('#'))
  world.nodes = named.map((node) => node['node-name'])
  world.bitmaps = named.flatMap((node) =>
    (node['dirty-bitmaps'] ?? []).map((bitmap) => [node['node-name'], bitmap.name ?? ''] as const),
  )
}

function readExports(list: unknown, world: World): void {
  world.exports = (list as readonly { readonly id: string }[]).map(({ id }) => id)
}

function remember(step: Step, world: World): void {
  const { arguments: given } = step
  const all = step.execute === 'blockdev-reopen' ? (given.options as Options[]) : [given as Options]
  if (!step.execute.startsWith('blockdev-add') && step.execute !== 'blockdev-reopen') return
  const visit = (options: Options): void => {
    const name = options['node-name']
    if (typeof name === 'string') world.given.set(name, options)
    for (const child of Object.values(options).flat())
      if (typeof child === 'object' && child !== null && 'driver' in child) visit(child as Options)
  }
  for (const options of all) visit(options)
}

function isKnown({ reference, ours, step }: Difference): boolean {
  return KNOWN.some(
    (known) =>
      (known.command === undefined || known.command.test(step.execute)) &&
      known.reference.test(reference) &&
      known.ours.test(ours),
  )
}

/** Sends what `next` gives until it gives nothing or the two have parted. */
export async function run(
  next: (world: World, done: number) => Step | undefined,
  stopAtWords: boolean,
): Promise<Outcome> {
  const images = new Images()
  const world: World = { nodes: [], bitmaps: [], exports: [], given: new Map() }
  let pair = await startPair(images)
  const steps: Step[] = []
  const differences: Difference[] = []
  let crashes = 0
  try {
    for (
      let step = next(world, 0);
      step !== undefined;
      step = next(world, steps.length + crashes)
    ) {
      let found: Difference | undefined
      try {
        const { reply, found: first } = await compare(pair, step)
        if (reply.error === undefined) remember(step, world)
        const parts = first !== undefined && first.kind !== 'words'
        found = parts ? first : ((await compareState(pair, step, world)) ?? first)
      } catch (error) {
        if (!(error instanceof Dead)) throw error
        crashes++
        await endPair(pair)
        pair = await startPair(images)
        for (const again of steps)
          await Promise.all([pair.reference.ask(again), pair.ours.ask(again)])
        eventsDifference(pair, step)
        continue
      }
      steps.push(step)
      if (found === undefined) continue
      if (isKnown(found)) {
        if (found.kind === 'words') continue
        break
      }
      differences.push(found)
      if (found.kind !== 'words' || stopAtWords) break
    }
    return { steps, differences, crashes }
  } finally {
    await endPair(pair)
    images.end()
  }
}

/** A run from a seed. */
export function runSeed(seed: number, length: number, stopAtWords: boolean): Promise<Outcome> {
  const random = new Random(seed)
  return run(
    (world, done) => (done < length ? new Steps(random, world).next() : undefined),
    stopAtWords,
  )
}

/** The same steps without those that the difference does not need. */
export async function shrink(outcome: Outcome): Promise<Outcome> {
  let best = outcome
  for (let size = Math.ceil(best.steps.length / 2); size >= 1; size = Math.floor(size / 2)) {
    for (let at = best.steps.length - 1 - size; at >= 0; at -= size) {
      const fewer = best.steps.filter((_, i) => i < at || i >= at + size)
      const again = await run((_, done) => fewer[done], true)
      if (again.differences[0]?.kind === outcome.differences[0]?.kind) best = again
    }
  }
  return best
}

/** What a person needs to see. */
export function report(seed: number, { steps, differences }: Outcome): string {
  return [
    `seed ${seed}; again: SEEDS=${seed}..${seed} npx vitest run test/interop/graph-differential`,
    ...steps.map((step) => `  ${step.execute} ${JSON.stringify(step.arguments)}`),
    ...differences.flatMap(({ kind, reference, ours }) => [
      `${kind}:`,
      `  reference: ${reference}`,
      `  ours:      ${ours}`,
    ]),
  ].join('\n')
}

export type { EngineName }
