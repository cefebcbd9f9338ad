import { describe, expect, it } from 'vitest'
import { AllocationMap, CLUSTER, type ClusterState } from '../../../src/sync/allocation-map.ts'
import { hostSeed, Random } from '../../../src/util/random.ts'

const seed = Number(process.env.SEED ?? hostSeed())

/** The length of the run at `cluster`, the slow way. */
function runOf(model: readonly ClusterState[], cluster: number, limit: number): number {
  let at = cluster + 1
  while (at < Math.min(model.length, cluster + limit) && model[at] === model[cluster]) at++
  return at - cluster
}

describe('sync / allocation map', () => {
  it(`sync / allocation map / equals a plain list (SEED=${seed})`, () => {
    const random = new Random(seed)
    for (const clusters of [1, 2, 1023, 1024, 1025, 5000]) {
      const map = AllocationMap.create(clusters)
      let model = Array.from({ length: clusters }, (): ClusterState => CLUSTER.EMPTY)
      for (let step = 0; step < 300; step++) {
        const first = random.int(clusters)
        const count = 1 + random.int(Math.min(3000, clusters - first))
        const state = random.pick([CLUSTER.EMPTY, CLUSTER.DATA, CLUSTER.ZERO])
        const choice = random.int(12)
        if (choice === 0) {
          map.emptyAll()
          model = model.map(() => CLUSTER.EMPTY)
        } else if (choice < 4) {
          map.setRun(first, count, state)
          model.fill(state, first, first + count)
        } else {
          map.set(first, state)
          model[first] = state
        }
        const at = random.int(clusters)
        expect(map.state(at)).toBe(model[at])
        const limit = 1 + random.int(clusters)
        expect(map.run(at, limit)).toBe(runOf(model, at, limit))
      }
    }
  })

  it('sync / allocation map / another view of the words sees the same', () => {
    for (const clusters of [1, 1024, 1025, 4096]) {
      const map = AllocationMap.create(clusters)
      map.set(clusters - 1, CLUSTER.DATA)
      const other = new AllocationMap(map.words)
      expect(other.clusters).toBe(clusters)
      expect(other.run(0, clusters)).toBe(clusters === 1 ? 1 : clusters - 1)
      expect(other.state(clusters - 1)).toBe(CLUSTER.DATA)
    }
  })

  it('sync / allocation map / the epoch starts over without showing old clusters', () => {
    const map = AllocationMap.create(3000)
    map.setRun(0, 3000, CLUSTER.DATA)
    Atomics.store(map.words, 0, 2 ** 29 - 1)
    map.set(7, CLUSTER.DATA)
    expect(map.run(7, 10)).toBe(1)
    map.emptyAll()
    expect(map.epoch).toBe(1)
    expect(map.run(0, 3000)).toBe(3000)
    expect(map.state(7)).toBe(CLUSTER.EMPTY)
  })
})
