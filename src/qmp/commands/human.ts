/**
 * `human-monitor-command`: the few typed commands that replication scripts still use.
 *
 * Invariants:
 * - A typed command never fails: what went wrong is the text it returns.
 */
import type { BlockGraph } from '../../block/graph.ts'
import { queryBlockJobs } from '../../job/info.ts'
import type { JobRegistry } from '../../job/registry.ts'
import { asBlockError } from '../../util/errors.ts'
import { blockdevOptions } from '../blockdev-schema.ts'
import { type CommandTable, command, refuse, textOf } from '../command.ts'
import { isObject } from '../json.ts'
import { coerce, modernOptions, parseKeyValue } from '../key-value.ts'
import { int, str, validate } from '../schema.ts'
import { PROGRAM_VERSION } from '../version.ts'
import { nodeOptions } from './nodes.ts'

/** The typed commands. */
export function humanCommands(graph: BlockGraph, jobs: JobRegistry): CommandTable {
  return {
    'human-monitor-command': command({ 'command-line': str, 'cpu-index?': int }, (args) =>
      runLine(graph, jobs, textOf(args, 'command-line')),
    ),
  }
}

async function runLine(graph: BlockGraph, jobs: JobRegistry, line: string): Promise<string> {
  const words = line.trim().split(/\s+/)
  try {
    const text = await run(graph, jobs, words)
    return text === '' ? '' : `${text}\r\n`
  } catch (error) {
    return `${asBlockError(error).message}\r\n`
  }
}

async function run(
  graph: BlockGraph,
  jobs: JobRegistry,
  words: readonly string[],
): Promise<string> {
  const [name = '', ...rest] = words
  switch (name) {
    case '':
      return ''
    case 'drive_add':
      await driveAdd(graph, rest)
      return ''
    case 'drive_del':
      await driveDel(graph, rest[0] ?? refuse('drive_del: string expected'))
      return ''
    case 'info':
      return info(jobs, rest[0] ?? '')
    default:
      return `unknown command: '${name}'`
  }
}

// drive_add -n BUS OPTIONS: the bus is for machines, which this program has none of.
async function driveAdd(graph: BlockGraph, words: readonly string[]): Promise<void> {
  const [flag, , text] = words
  if (flag !== '-n') refuse('drive_add: only nodes can be added (-n)')
  const typed = parseKeyValue(text ?? refuse('drive_add: string expected'))
  if (typed['node-name'] === undefined) refuse("'node-name' needs to be specified")
  const options = coerce(blockdevOptions, modernOptions(typed))
  if (!isObject(options)) refuse('drive_add: string expected')
  await graph.add(nodeOptions(validate(blockdevOptions, options)))
}

async function driveDel(graph: BlockGraph, name: string): Promise<void> {
  if (graph.find(name) === undefined) refuse(`Device '${name}' not found`)
  await graph.remove(name)
}

function info(jobs: JobRegistry, what: string): string {
  if (what === 'version') return `7.2.0 blockstep ${PROGRAM_VERSION}`
  if (what === 'block') return ''
  if (what !== 'block-jobs') return `unknown command: 'info ${what}'`
  const lines = queryBlockJobs(jobs).map(
    (job) => `Type ${job.type}, device ${job.device}: Completed ${job.offset} of ${job.len} bytes`,
  )
  return lines.length === 0 ? 'No active jobs' : lines.join('\r\n')
}
