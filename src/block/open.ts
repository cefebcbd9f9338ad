/**
 * Opening a node: options, children, driver, permissions; undone whole when any of it fails.
 *
 * Invariants:
 * - A node whose opening failed leaves no name, no child and no reference behind.
 * - What a child inherits depends on its role alone: a backing image is read-only by default, every
 *   other child is as writable as its parent.
 */
import { BlockError } from '../util/errors.ts'
import type { BlockChild } from './child.ts'
import type { BlockdevOptions, BlockdevRef, ChildOpener, ChildRole } from './driver.ts'
import type { BlockGraph } from './graph.ts'
import { inventName } from './names.ts'
import { BlockNode } from './node.ts'
import { updatePermissions } from './permissions.ts'

/** Options that go down from a parent with these options to its inline children, by role. */
export function inheritedOptions(
  parent: Partial<BlockdevOptions>,
  role: ChildRole,
): Partial<BlockdevOptions> {
  const cache = parent.cache
  const force = parent['force-share']
  const common = {
    ...(cache === undefined ? {} : { cache }),
    ...(force === undefined ? {} : { 'force-share': force }),
  }
  if (role === 'backing') return { ...common, 'read-only': true }
  const auto = parent['auto-read-only']
  return {
    ...common,
    'read-only': parent['read-only'] === true,
    ...(auto === undefined ? {} : { 'auto-read-only': auto }),
    discard: 'unmap',
  }
}

/**
 * Opens a node with one reference, which is the caller's. One that is `appending` leaves what is
 * below it to the users it has.
 */
export async function openNode(
  graph: BlockGraph,
  given: BlockdevOptions,
  inherited: Partial<BlockdevOptions>,
  appending = false,
): Promise<BlockNode> {
  const options: BlockdevOptions = { ...inherited, ...given }
  const definition = graph.drivers.get(options.driver)
  if (definition === undefined)
    throw new BlockError('EINVAL', `Unknown driver '${options.driver}'`, { op: 'open' })
  checkCommon(options)
  const name = options['node-name'] ?? inventName(graph)
  const node = new BlockNode(graph, definition, name, options, options['read-only'] === true)
  node.given = given
  node.appending = appending
  node.refs = 1
  graph.register(node)
  const opener: ChildOpener = {
    open: (childName, ref, role) => openChild(graph, node, childName, ref, role),
  }
  try {
    node.driver = await definition.open(node, options, opener)
    // A child that was drained already quiesced the node before it had a driver to tell.
    if (node.gate.quiesceCount > 0) node.driver.drainBegin?.()
    updatePermissions([node])
  } catch (error) {
    graph.unregister(node)
    const driver = node.driver
    node.driver = undefined
    if (driver !== undefined) await driver.close()
    for (const edge of [...node.children.values()].reverse()) graph.detach(edge)
    await graph.settled()
    throw error
  }
  graph.drains.born(node)
  return node
}

async function openChild(
  graph: BlockGraph,
  node: BlockNode,
  name: string,
  ref: BlockdevRef,
  role: ChildRole,
): Promise<BlockChild> {
  const parent = { ...node.options, 'read-only': node.readOnly }
  const child = await graph.take(ref, inheritedOptions(parent, role))
  if (typeof ref !== 'string') child.inheritsFrom = node
  // The file is there before the image in it; all other children come after their parent.
  if (name === 'file') graph.relist(node)
  return graph.attach(node, child, name, role)
}

function checkCommon(options: BlockdevOptions): void {
  if (options['detect-zeroes'] === 'unmap' && options.discard !== 'unmap')
    throw new BlockError(
      'EINVAL',
      'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap',
    )
  if (options['force-share'] === true && options['read-only'] !== true)
    throw new BlockError('EINVAL', 'force-share=on can only be used with read-only images')
}
