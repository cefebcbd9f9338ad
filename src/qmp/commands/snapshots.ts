/**
 * Commands about overlays: putting one over a node that is in use, and renaming a backing image.
 *
 * Invariants:
 * - The users of the node move onto the overlay inside one drained section, or nothing changes.
 * - A node under an overlay is read-only unless somebody still writes it.
 */

import { type BlockdevOptions, PERM } from '../../block/driver.ts'
import type { BlockGraph } from '../../block/graph.ts'
import type { BlockNode } from '../../block/node.ts'
import { cumulative } from '../../block/permissions.ts'
import { createQcow2 } from '../../drivers/qcow2/create.ts'
import { BlockError } from '../../util/errors.ts'
import { type CommandTable, command, optionalText, refuse, textOf } from '../command.ts'
import type { JsonObject } from '../json.ts'
import { nodeFilename } from '../node-info.ts'
import { oneOf, str } from '../schema.ts'
import { commandOf, type DeedTable, deed, type Step } from './deed.ts'

/** The longest name of a backing image that an image can hold. */
const MOST_NAME_BYTES = 1023

/** What can be done about overlays in a transaction. */
export function snapshotDeeds(graph: BlockGraph): DeedTable {
  return {
    'blockdev-snapshot': deed({ node: str, overlay: str }, (args) => {
      const [name, over] = [textOf(args, 'node'), textOf(args, 'overlay')]
      const node = graph.lookup(name, name)
      node.blockers.check('external-snapshot', node.name)
      return putOver(graph, node, graph.lookup(over, over))
    }),
    'blockdev-snapshot-sync': deed(
      {
        'device?': str,
        'node-name?': str,
        'snapshot-file': str,
        'snapshot-node-name?': str,
        'format?': str,
        'mode?': oneOf('existing', 'absolute-paths'),
      },
      (args) => snapshotSync(graph, args),
    ),
  }
}

/** The commands about overlays. */
export function snapshotCommands(graph: BlockGraph): CommandTable {
  const table: { [name: string]: CommandTable[string] } = {}
  for (const [name, one] of Object.entries(snapshotDeeds(graph))) table[name] = commandOf(one)
  table['change-backing-file'] = command(
    { device: str, 'image-node-name': str, 'backing-file': str },
    (args) => changeBackingFile(graph, args),
  )
  return table
}

/** Users of `node` move onto `overlay`, which gets `node` as its backing image. */
async function putOver(graph: BlockGraph, node: BlockNode, overlay: BlockNode): Promise<Step> {
  if ((cumulative(overlay).perm & PERM.CONSISTENT_READ) !== 0) {
    refuse('The overlay is already in use')
  }
  if (overlay.definition.kind === 'filter') refuse('Filters cannot be used as overlays')
  if (overlay.definition.supportsBacking !== true) {
    refuse('The overlay does not support backing images')
  }
  if (overlay.child('backing') !== undefined) refuse('The overlay already has a backing image')
  const plain = optionsOf(overlay)
  const cut = (): Promise<void> =>
    graph.reopen([{ node: overlay, options: { ...plain, backing: null } }])
  await graph.withDrained(node, async () => {
    await graph.reopen([{ node: overlay, options: { ...plain, backing: node.name } }])
    try {
      await graph.replace(node, overlay)
    } catch (error) {
      await cut()
      throw error
    }
  })
  return {
    commit: () => freeze(graph, node),
    undo: async () => {
      await graph.replace(overlay, node)
      await cut()
    },
  }
}

// A child that was opened with the overlay stays as it is, whatever it was opened with.
function optionsOf(overlay: BlockNode): BlockdevOptions {
  const file = overlay.child('file')?.node.name
  return file === undefined ? overlay.options : { ...overlay.options, file }
}

// Whoever still writes below an overlay was let in on purpose.
async function freeze(graph: BlockGraph, node: BlockNode): Promise<void> {
  try {
    await graph.setReadOnly(node, true)
  } catch (error) {
    if (!(error instanceof BlockError)) throw error
  }
}

async function snapshotSync(graph: BlockGraph, args: JsonObject): Promise<Step> {
  const nodeName = optionalText(args, 'node-name')
  const node = graph.lookup(optionalText(args, 'device'), nodeName)
  const name = optionalText(args, 'snapshot-node-name')
  node.blockers.check('external-snapshot', node.name)
  if (nodeName !== undefined && name === undefined) refuse('New overlay node-name missing')
  if (name !== undefined && graph.find(name) !== undefined) {
    refuse('New overlay node-name already in use')
  }
  const format = optionalText(args, 'format') ?? 'qcow2'
  const filename = textOf(args, 'snapshot-file')
  if (optionalText(args, 'mode') !== 'existing') checkFormat(graph, format)
  if (optionalText(args, 'mode') !== 'existing' && filename === nodeFilename(node)) {
    refuse('Error: Trying to create an image with the same filename as the backing file')
  }
  checkUnused(graph, filename)
  if (optionalText(args, 'mode') !== 'existing') await createOverlay(node, format, filename)
  const overlay = await graph.open({
    driver: format,
    file: { driver: 'file', filename },
    backing: null,
    'read-only': node.readOnly,
    ...(name === undefined ? {} : { 'node-name': name }),
    ...(node.options.cache === undefined ? {} : { cache: node.options.cache }),
  })
  return adoptOverlay(graph, node, overlay)
}

/** The overlay is held by those who used the node alone: without any it closes at once. */
async function adoptOverlay(graph: BlockGraph, node: BlockNode, overlay: BlockNode): Promise<Step> {
  let step: Step
  try {
    step = await putOver(graph, node, overlay)
  } catch (error) {
    graph.unref(overlay)
    await graph.settled()
    throw error
  }
  return {
    commit: async () => {
      await step.commit?.()
      graph.unref(overlay)
      await graph.settled()
    },
    undo: async () => {
      await step.undo()
      graph.unref(overlay)
      await graph.settled()
    },
  }
}

function checkFormat(graph: BlockGraph, format: string): void {
  const definition = graph.drivers.get(format)
  if (definition === undefined) refuse(`Unknown file format '${format}'`)
  if (definition.supportsBacking === true) return
  if (['file', 'raw'].includes(format)) {
    refuse(`Backing file not supported for file format '${format}'`)
  }
  refuse(`Format driver '${format}' does not support image creation`)
}

/** An image that is open must not be written over. */
export function checkUnused(graph: BlockGraph, filename: string): void {
  for (const node of graph.nodes()) {
    if (node.definition.kind !== 'protocol' || node.driver?.filename?.() !== filename) continue
    if (node.options.locking === 'off') continue
    throw new BlockError('EBUSY', 'Failed to get "write" lock', { node: node.name })
  }
}

async function createOverlay(node: BlockNode, format: string, filename: string): Promise<void> {
  if (format !== 'qcow2') {
    throw new BlockError('ENOTSUP', `Format driver '${format}' does not support image creation`)
  }
  await createQcow2(filename, {
    size: Math.ceil(node.length() / 512) * 512,
    backingFile: nodeFilename(node),
    backingFormat: node.definition.name,
  })
}

async function changeBackingFile(graph: BlockGraph, args: JsonObject): Promise<void> {
  const device = textOf(args, 'device')
  const root = graph.lookup(device, device)
  if (!root.isRootNode) refuse('Need a root block node')
  const image = graph.lookup(undefined, textOf(args, 'image-node-name'))
  const below = image.chainNext
  if (below === undefined) {
    refuse('not allowing backing file change on an image without a backing file')
  }
  if (!isInChain(root, image)) refuse(`'${device}' and image file are not in the same chain`)
  const name = textOf(args, 'backing-file')
  const { readOnly } = image
  if (readOnly) await graph.setReadOnly(image, false)
  try {
    const driver = image.needDriver()
    if (driver.changeBackingFile === undefined) {
      const words = `Could not change backing file to '${name}': Operation not supported`
      throw new BlockError('ENOTSUP', words, { node: image.name })
    }
    const format = below.definition.name
    // Longer than an image can hold: the same words as for any other refusal of the format.
    if (Buffer.byteLength(name) > MOST_NAME_BYTES) {
      refuse(`Could not change backing file to '${name}': Invalid argument`)
    }
    await graph.withDrained(image, () => driver.changeBackingFile?.(name, format))
  } finally {
    if (readOnly) await graph.setReadOnly(image, true)
  }
}

function isInChain(root: BlockNode, image: BlockNode): boolean {
  for (let at: BlockNode | undefined = root; at !== undefined; at = at.chainNext) {
    if (at === image) return true
  }
  return false
}
