/**
 * Resizing a node by command.
 *
 * Invariants:
 * - The length changes only while nobody else forbids it and no request is in flight.
 */
import { BlockBackend } from '../../block/backend.ts'
import { PERM } from '../../block/driver.ts'
import type { BlockGraph } from '../../block/graph.ts'
import type { BlockNode } from '../../block/node.ts'
import { nodeTruncate } from '../../block/truncate.ts'
import { BlockError } from '../../util/errors.ts'
import { refuse } from '../command.ts'

/** Gives the node another length in bytes. Errors: EINVAL, ENOTSUP, EBUSY, EPERM, the driver's. */
export async function resizeNode(graph: BlockGraph, node: BlockNode, size: number): Promise<void> {
  if (size < 0) refuse("Parameter 'size' expects a >0 size")
  if (node.blockers.reason('resize') !== undefined) {
    throw new BlockError('EBUSY', `Device '${node.name}' is in use`, { node: node.name })
  }
  const backend = await BlockBackend.create(graph, node, {
    perm: PERM.RESIZE,
    shared: PERM.ALL,
    description: 'an unnamed block device',
  })
  try {
    await graph.withDrained(node, async () => {
      await nodeTruncate(backend.root, size)
      for (const any of graph.nodes()) any.bitmaps.fitLength()
    })
  } finally {
    await backend.close()
  }
}
