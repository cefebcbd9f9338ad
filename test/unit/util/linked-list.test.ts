import { expect, test } from 'vitest'
import { type Linked, LinkedList } from '../../../src/util/linked-list.ts'
import { hostSeed, Random } from '../../../src/util/random.ts'

interface Item extends Linked<Item> {
  readonly name: number
}

const item = (name: number): Item => ({ name, previous: undefined, next: undefined })

test('util / linked list / keeps the order of those that stay, whoever leaves', () => {
  const seed = Number(process.env.SEED ?? hostSeed())
  const random = new Random(seed)
  const list = new LinkedList<Item>()
  const model: Item[] = []
  for (let name = 0; name < 2000; name++) {
    if (random.int(2) === 0) {
      const added = item(name)
      list.add(added)
      model.push(added)
    } else {
      const [left] = model.splice(random.int(Math.max(1, model.length)), 1)
      if (left !== undefined) list.remove(left)
    }
    expect([...list], `SEED=${seed}`).toEqual(model)
    expect([list.size, list.first]).toEqual([model.length, model[0]])
  }
})

test('util / linked list / an item that left links to nothing and cannot leave twice', () => {
  const list = new LinkedList<Item>()
  const [a, b, c] = [item(1), item(2), item(3)]
  for (const one of [a, b, c]) list.add(one)
  list.remove(b)
  expect([b.previous, b.next, list.has(b)]).toEqual([undefined, undefined, false])
  expect([...list]).toEqual([a, c])
  expect(() => list.remove(b)).toThrow(/assertion failed/)
})
