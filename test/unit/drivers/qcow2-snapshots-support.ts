/** Looking at the snapshots of an image that lies in memory. */
import type { BlockNode } from '../../../src/block/node.ts'
import type { Snapshot } from '../../../src/drivers/qcow2/snapshots.ts'
import type { Bench } from './qcow2-support.ts'

/** The snapshots of an open node, in whatever driver has them. */
export function storeOf(
  node: BlockNode,
): NonNullable<NonNullable<BlockNode['driver']>['internalSnapshots']> {
  const store = node.driver?.internalSnapshots
  if (store === undefined) throw new Error(`${node.name} has no snapshots`)
  return store
}

/** Takes a snapshot of a drained node. */
export function take(b: Bench, node: BlockNode, name: string): Promise<string> {
  const wanted = { name, seconds: 5, nanoseconds: 6000, clockNs: 7 }
  return b.graph.withDrained(node, () => storeOf(node).create(wanted))
}

/** Drops one. */
export function drop(b: Bench, node: BlockNode, id: string): Promise<void> {
  return b.graph.withDrained(node, () => storeOf(node).remove(id))
}

/** The same image with the tables of a snapshot as its active ones; good for reading only. */
export function asSnapshot(image: Uint8Array, snapshot: Snapshot): Uint8Array {
  const bytes = image.slice()
  const view = new DataView(bytes.buffer)
  view.setBigUint64(24, BigInt(snapshot.diskBytes ?? Number(view.getBigUint64(24))))
  view.setUint32(36, snapshot.l1Size)
  view.setBigUint64(40, BigInt(snapshot.l1Offset))
  view.setUint32(60, 0)
  return bytes
}
