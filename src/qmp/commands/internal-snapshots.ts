/**
 * Snapshots inside an image: taken and dropped by command, taken as part of a transaction.
 *
 * Invariants:
 * - The node is drained while its snapshots change, so a snapshot lies between two requests.
 * - A layer that only changes requests has the snapshots of the image below it.
 * - A snapshot that a transaction took is dropped again when the transaction fails.
 */
import type { InternalSnapshot, InternalSnapshots } from '../../block/driver.ts'
import type { BlockGraph } from '../../block/graph.ts'
import type { BlockNode } from '../../block/node.ts'
import { snapshotInfo } from '../../drivers/qcow2/info.ts'
import { asBlockError, BlockError, codeWords } from '../../util/errors.ts'
import { type CommandTable, command, optionalText, refuse, textOf } from '../command.ts'
import type { JsonObject } from '../json.ts'
import { str } from '../schema.ts'
import { commandOf, type DeedTable, deed, type Step } from './deed.ts'

/** What can be part of a transaction. */
export function internalSnapshotDeeds(graph: BlockGraph): DeedTable {
  const { clock } = graph.ctx
  const started = clock.nowNs()
  return {
    'blockdev-snapshot-internal-sync': deed({ device: str, name: str }, (args) =>
      take(graph, args, Number(clock.nowNs() - started)),
    ),
  }
}

/** The commands. */
export function internalSnapshotCommands(graph: BlockGraph): CommandTable {
  const deeds = Object.entries(internalSnapshotDeeds(graph))
  return {
    ...Object.fromEntries(deeds.map(([name, one]) => [name, commandOf(one)])),
    'blockdev-snapshot-delete-internal-sync': command(
      { device: str, 'id?': str, 'name?': str },
      (args) => drop(graph, args),
    ),
  }
}

async function take(graph: BlockGraph, args: JsonObject, clockNs: number): Promise<Step> {
  const device = textOf(args, 'device')
  const name = textOf(args, 'name')
  const node = rootOf(graph, device)
  node.blockers.check('internal-snapshot', node.name)
  if (node.readOnly) throw new BlockError('EACCES', `Device '${device}' is read only`)
  const store = storeOf(node)
  if (store === undefined) {
    const format = node.definition.name
    throw new BlockError(
      'ENOTSUP',
      `Block format '${format}' used by device '${device}' does not support internal snapshots`,
      { node: node.name },
    )
  }
  if (name === '') refuse('Name is empty')
  const same = listOf(store).some((snapshot) => snapshot.name === name)
  if (same) refuse(`Snapshot with name '${name}' already exists on device '${device}'`)
  const epochMs = graph.ctx.clock.epochMs()
  const seconds = Math.floor(epochMs / 1000)
  const nanoseconds = Math.floor((epochMs - seconds * 1000) * 1000) * 1000
  const wanted = { name, seconds, nanoseconds, clockNs }
  const id = await orFail(`Failed to create snapshot '${name}' on device '${device}'`, () =>
    graph.withDrained(node, () => store.create(wanted)),
  )
  return { undo: () => takeBack(graph, node, store, id) }
}

/** A failure to drop it leaves a snapshot too many, which is not worth a second error. */
async function takeBack(
  graph: BlockGraph,
  node: BlockNode,
  store: InternalSnapshots,
  id: string,
): Promise<void> {
  try {
    await graph.withDrained(node, () => store.remove(id))
  } catch {
    // Whoever asked learns why the transaction failed, and sees the snapshot in the list.
  }
}

async function drop(graph: BlockGraph, args: JsonObject): Promise<JsonObject> {
  const device = textOf(args, 'device')
  const id = optionalText(args, 'id')
  const name = optionalText(args, 'name')
  const node = rootOf(graph, device)
  node.blockers.check('internal-snapshot-delete', node.name)
  if (id === undefined && name === undefined) refuse('Name or id must be provided')
  const store = storeOf(node)
  const found = (store === undefined ? unsupported() : listOf(store)).find(
    (one) => (id === undefined || one.id === id) && (name === undefined || one.name === name),
  )
  if (store === undefined || found === undefined) {
    const words = `id '${id ?? 'null'}' and name '${name ?? 'null'}'`
    return refuse(`Snapshot with ${words} does not exist on device '${device}'`)
  }
  const failure = 'Failed to remove snapshot from snapshot list'
  await orFail(failure, () => graph.withDrained(node, () => store.remove(found.id)))
  return snapshotInfo(found)
}

function rootOf(graph: BlockGraph, device: string): BlockNode {
  const node = graph.lookup(device, device)
  if (!node.isRootNode) refuse('Need a root block node')
  return node
}

/** The snapshots of a node, or of the image that it only passes requests to. */
function storeOf(node: BlockNode): InternalSnapshots | undefined {
  for (let at: BlockNode | undefined = node; at !== undefined; ) {
    const store = at.driver?.internalSnapshots
    if (store !== undefined) return store
    if (at.definition.kind === 'filter') at = at.chainNext
    else at = at.definition.name === 'raw' ? at.child('file')?.node : undefined
  }
  return undefined
}

function unsupported(): never {
  throw new BlockError('ENOTSUP', 'Failed to get a snapshot list: Operation not supported')
}

function listOf(store: InternalSnapshots): readonly InternalSnapshot[] {
  try {
    return store.list()
  } catch {
    return unsupported()
  }
}

async function orFail<T>(failure: string, body: () => Promise<T>): Promise<T> {
  try {
    return await body()
  } catch (thrown) {
    const { code, context } = asBlockError(thrown)
    throw new BlockError(code, `${failure}: ${codeWords(code)}`, context, thrown)
  }
}
