/**
 * Frozen links: while a job works on a chain, nobody may cut or move what holds it together.
 *
 * Invariants:
 * - Either every link from top to base is frozen by the caller, or none.
 */
import type { BlockChild } from '../block/child.ts'
import type { BlockNode } from '../block/node.ts'
import { BlockError } from '../util/errors.ts'

/** Freezes the links from `top` down to `base`. Error (EPERM): one is frozen already. */
export function freezeChain(top: BlockNode, base: BlockNode): BlockChild[] {
  const links: BlockChild[] = []
  for (let node: BlockNode | undefined = top; node !== undefined && node !== base; ) {
    const next: BlockNode | undefined = node.chainNext
    for (const edge of node.children.values()) {
      if (edge.node !== next || (edge.role !== 'backing' && edge.role !== 'filtered')) continue
      if (edge.frozen) {
        throw new BlockError('EPERM', `Cannot freeze '${edge.name}' link to '${next.name}'`, {
          node: node.name,
        })
      }
      links.push(edge)
    }
    node = next
  }
  for (const link of links) link.frozen = true
  return links
}

/** Lets the links go again. */
export function unfreezeChain(links: readonly BlockChild[]): void {
  for (const link of links) link.frozen = false
}
