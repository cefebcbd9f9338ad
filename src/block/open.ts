/**
 * Opening a node: options, children, driver, permissions; undone whole when any of it fails.
 *
 * Invariants:
 * - A node whose opening failed leaves no name, no child and no reference behind.
 * - What a child inherits depends on its role alone: a backing image is read-only by default, every
 *   other child is as writable as its parent.
 * - The file below a format or filter is opened before anything of the node itself is looked at.
 */
import { asBlockError, BlockError } from '../util/errors.ts'
import type {
  BlockdevOptions,
  BlockdevRef,
  ChildOpener,
  ChildRole,
  DriverDefinition,
} from './driver.ts'
import type { BlockGraph } from './graph.ts'
import { checkFreeName, inventName } from './names.ts'
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
    discard: 'unmap' as const,
  }
  if (role === 'backing') return { ...common, 'read-only': true }
  const auto = parent['auto-read-only']
  return {
    ...common,
    'read-only': parent['read-only'] === true,
    ...(auto === undefined ? {} : { 'auto-read-only': auto }),
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
  const first = await openFirst(graph, options, definition)
  let node: BlockNode
  try {
    checkCommon(options)
    checkFreeName(graph, options['node-name'])
    const name = options['node-name'] ?? inventName(graph)
    node = new BlockNode(graph, definition, name, options, options['read-only'] === true)
  } catch (error) {
    if (first !== undefined) graph.unref(first)
    await graph.settled()
    throw error
  }
  node.given = given
  node.appending = appending
  node.refs = 1
  graph.register(node)
  await openDriver(graph, node, first)
  graph.drains.born(node)
  return node
}

/** The child that is there before its parent, if the driver has such a one. */
async function openFirst(
  graph: BlockGraph,
  options: BlockdevOptions,
  definition: DriverDefinition,
): Promise<BlockNode | undefined> {
  if (definition.kind === 'protocol' || options.file === undefined) return undefined
  return graph.take(options.file as BlockdevRef, inheritedOptions(options, 'file'))
}

async function openDriver(
  graph: BlockGraph,
  node: BlockNode,
  first: BlockNode | undefined,
): Promise<void> {
  let waiting = first
  const opener: ChildOpener = {
    open: async (childName, ref, role) => {
      const ready = childName === 'file' ? waiting : undefined
      if (ready !== undefined) waiting = undefined
      const child = ready ?? (await takeChild(graph, node, childName, ref, role))
      if (typeof ref !== 'string') child.inheritsFrom = node
      return graph.attach(node, child, childName, role)
    },
  }
  try {
    node.driver = await node.definition.open(node, node.options, opener)
    // A child that was drained already quiesced the node before it had a driver to tell.
    if (node.gate.quiesceCount > 0) node.driver.drainBegin?.()
    updatePermissions([node])
  } catch (error) {
    graph.unregister(node)
    const driver = node.driver
    node.driver = undefined
    if (driver !== undefined) await driver.close()
    for (const edge of [...node.children.values()].reverse()) graph.detach(edge)
    if (waiting !== undefined) graph.unref(waiting)
    await graph.settled()
    throw error
  }
}

async function takeChild(
  graph: BlockGraph,
  node: BlockNode,
  name: string,
  ref: BlockdevRef,
  role: ChildRole,
): Promise<BlockNode> {
  if (ref === node.name) throw wouldCircle(node, name, node)
  const parent = { ...node.options, 'read-only': node.readOnly }
  try {
    return await graph.take(ref, inheritedOptions(parent, role))
  } catch (thrown) {
    if (role !== 'backing') throw thrown
    const error = asBlockError(thrown)
    const words = `Could not open backing file: ${error.message}`
    throw new BlockError(error.code, words, error.context, thrown)
  }
}

/** The refusal to make a node its own child, near or far. */
export function wouldCircle(node: BlockNode, name: string, child: BlockNode): BlockError {
  const words = `Making '${child.name}' a ${name} child of '${node.name}' would create a cycle`
  return new BlockError('EINVAL', words, { node: node.name })
}

function checkCommon(options: BlockdevOptions): void {
  if (options['force-share'] === true && options['read-only'] !== true)
    throw new BlockError('EINVAL', 'force-share=on can only be used with read-only images')
  checkDetectZeroes(options)
}

/** Zeroes can be unmapped only where anything can be. Errors: EINVAL. */
export function checkDetectZeroes(options: BlockdevOptions): void {
  if (options['detect-zeroes'] !== 'unmap' || options.discard === 'unmap') return
  throw new BlockError(
    'EINVAL',
    'setting detect-zeroes to unmap is not allowed without setting discard operation to unmap',
  )
}
