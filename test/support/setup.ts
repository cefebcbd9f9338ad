/** For every test file: a coroutine that a test leaves behind fails that test. */
import { afterAll, afterEach, beforeEach } from 'vitest'
import { leftBehind, takeSpawned, watchSpawns } from './left-behind.ts'

watchSpawns()

/** Spawned before a test began: whoever did it ends them at the end of the file. */
const ofFile: ReturnType<typeof takeSpawned> = []

beforeEach(() => {
  ofFile.push(...takeSpawned())
})

afterEach(async () => {
  await expectNone(takeSpawned(), 'test')
})

afterAll(async () => {
  await expectNone([...ofFile, ...takeSpawned()], 'test file')
})

async function expectNone(list: ReturnType<typeof takeSpawned>, what: string): Promise<void> {
  const left = await leftBehind(list)
  if (left !== '') throw new Error(`the ${what} left coroutines behind:\n${left}`)
}
