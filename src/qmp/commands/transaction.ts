/**
 * `transaction`: several deeds that happen together or not at all.
 *
 * Invariants:
 * - All nodes are drained from the first deed to the last, so that everything takes effect between
 *   the same two requests of every disk.
 * - When a deed fails, those before it are taken back, the last first; no job of it has run.
 */
import type { BlockGraph } from '../../block/graph.ts'
import { Transaction } from '../../job/transaction.ts'
import { assert } from '../../util/errors.ts'
import { type CommandTable, command, listOf, optionalText, refuse, textOf } from '../command.ts'
import { isObject, type JsonObject } from '../json.ts'
import { list, type Members, oneOf, struct, union } from '../schema.ts'
import { type DeedTable, deed, type Step } from './deed.ts'

const abort = deed({}, () => refuse('Transaction aborted using Abort action'), true)

/** The command, over everything that can be part of it. */
export function transactionCommands(graph: BlockGraph, given: DeedTable): CommandTable {
  const deeds: DeedTable = { abort, ...given }
  const variants: { [type: string]: Members } = {}
  for (const [type, one] of Object.entries(deeds)) variants[type] = { data: one.schema }
  const action = union('type', { type: oneOf(...Object.keys(deeds)) }, variants)
  const properties = struct({ 'completion-mode?': oneOf('individual', 'grouped') })
  return {
    transaction: command({ actions: list(action), 'properties?': properties }, (args) =>
      transact(graph, deeds, args),
    ),
  }
}

async function transact(graph: BlockGraph, deeds: DeedTable, args: JsonObject): Promise<void> {
  const { properties } = args
  const mode = isObject(properties) ? optionalText(properties, 'completion-mode') : undefined
  const group = mode === 'grouped' ? new Transaction() : undefined
  const actions = listOf(args, 'actions')
  if (actions.length === 0) return
  await graph.drainAllBegin()
  try {
    const steps: Step[] = []
    try {
      for (const action of actions) {
        assert(isObject(action), 'the schema demands objects')
        steps.push(await prepareOne(deeds, action, group))
      }
    } catch (error) {
      for (const step of steps.reverse()) await step.undo()
      throw error
    }
    for (const step of steps) await step.commit?.()
  } finally {
    graph.drainAllEnd()
  }
}

async function prepareOne(
  deeds: DeedTable,
  action: JsonObject,
  group: Transaction | undefined,
): Promise<Step> {
  const type = textOf(action, 'type')
  const one = deeds[type]
  const { data } = action
  assert(one !== undefined && isObject(data), 'the schema demands a known deed with its data')
  if (group !== undefined && one.groups !== true) {
    refuse(`Action '${type}' does not support Transaction property completion-mode = grouped`)
  }
  return one.prepare(data, group)
}
