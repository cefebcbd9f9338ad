import fc from 'fast-check'
import { describe, expect, it } from 'vitest'
import { BlockBackend } from '../../../src/block/backend.ts'
import { PERM } from '../../../src/block/driver.ts'
import type { BlockGraph } from '../../../src/block/graph.ts'
import { cumulative } from '../../../src/block/permissions.ts'
import { HeldDriver, memoryGraph } from '../../support/graph.ts'

const NAMES = ['a', 'b', 'c'] as const
const name = fc.constantFrom(...NAMES)
const perms = fc.integer({ min: 0, max: PERM.ALL })

const step = fc.oneof(
  fc.record({ kind: fc.constant('user' as const), node: name, perm: perms, shared: perms }),
  fc.record({ kind: fc.constant('leave' as const), index: fc.nat(7) }),
  fc.record({ kind: fc.constant('overlay' as const), node: name, over: name }),
  fc.record({ kind: fc.constant('filter' as const), node: name }),
  fc.record({ kind: fc.constant('read-only' as const), node: name, value: fc.boolean() }),
  fc.record({ kind: fc.constant('replace' as const), from: name, to: name }),
)

type Step = typeof step extends fc.Arbitrary<infer T> ? T : never

/** Everything about edges and flags that a failed change must leave alone. */
function snapshot(graph: BlockGraph): unknown {
  return graph.nodes().map((node) => ({
    name: node.name,
    readOnly: node.readOnly,
    quiesced: node.gate.quiesceCount,
    edges: [...node.parents]
      .map((e) => `${e.owner.ownerDescription} ${e.name} ${e.perm} ${e.shared}`)
      .sort(),
  }))
}

function checkInvariants(graph: BlockGraph): void {
  for (const node of graph.nodes()) {
    const edges = [...node.parents]
    for (const a of edges)
      for (const b of edges) if (a !== b) expect(a.perm & ~b.shared, `on ${node.name}`).toBe(0)
    const writes = cumulative(node).perm & (PERM.WRITE | PERM.WRITE_UNCHANGED)
    if (node.readOnly) expect(writes, `writers of read-only ${node.name}`).toBe(0)
    expect(node.gate.quiesceCount, `drains of ${node.name}`).toBe(0)
  }
}

class World {
  readonly graph: BlockGraph = memoryGraph(new HeldDriver().definition)
  readonly users: BlockBackend[] = []

  async apply(s: Step): Promise<void> {
    const { graph } = this
    switch (s.kind) {
      case 'user': {
        const node = graph.lookup(s.node)
        const shared = s.shared | PERM.WRITE_UNCHANGED
        this.users.push(await BlockBackend.create(graph, node, { perm: s.perm, shared }))
        return
      }
      case 'leave': {
        const [user] = this.users.splice(s.index % Math.max(1, this.users.length), 1)
        await user?.close()
        return
      }
      case 'overlay':
        await graph.add({
          driver: 'memory',
          'node-name': `o${graph.nodes().length}`,
          size: 4096,
          backing: s.over,
        })
        return
      case 'filter': {
        await graph.insertFilter({ driver: 'held', file: s.node }, graph.lookup(s.node))
        return
      }
      case 'read-only':
        await graph.setReadOnly(graph.lookup(s.node), s.value)
        return
      case 'replace':
        await graph.replace(graph.lookup(s.from), graph.lookup(s.to))
    }
  }
}

describe('block / permissions / property', () => {
  it('block / permissions / property / no history leaves a conflict, and a refused change changes nothing', async () => {
    let refused = 0
    let done = 0
    await fc.assert(
      fc.asyncProperty(fc.array(step, { minLength: 8, maxLength: 16 }), async (steps) => {
        const world = new World()
        for (const n of NAMES)
          await world.graph.add({ driver: 'memory', 'node-name': n, size: 4096 })
        for (const s of steps) {
          const before = snapshot(world.graph)
          try {
            await world.apply(s)
            done++
          } catch (error) {
            expect(error).toMatchObject({ name: 'BlockError' })
            expect(snapshot(world.graph)).toEqual(before)
            refused++
          }
          checkInvariants(world.graph)
        }
      }),
      { numRuns: 300 },
    )
    // Both outcomes must really have been met, or the property says nothing.
    expect(Math.min(refused, done)).toBeGreaterThan(50)
  })
})
