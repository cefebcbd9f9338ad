/** The walls of the source tree stand, and the check sees a breach. */
import { fileURLToPath } from 'node:url'
import { describe, expect, test } from 'vitest'
import { blank, checkWalls, readTree } from '../../scripts/walls.mjs'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))

/** Path, text, and a word of the finding that the text must cause. */
const BREACHES: readonly (readonly [string, string, string])[] = [
  ['src/block/a.ts', "import { Job } from '../job/job.ts'\n", 'block may not import job'],
  ['src/util/a.ts', "import { x } from '../sync/gate.ts'\n", 'util may not import sync'],
  ['src/cli/a.ts', "import type { N } from '../block/node.ts'\n", 'cli may not import block'],
  ['src/job/a.ts', "const m = await import('../qmp/monitor.ts')\n", 'job may not import qmp'],
  ['src/block/a.ts', 'const n = Atomics.load(words, 0)\n', 'src/sync'],
  ['src/qmp/a.ts', 'const now = Date.now()\n', 'src/util, src/aio or src/cli'],
  ['src/drivers/a.ts', 'setTimeout(done, 5)\n', 'src/util, src/aio or src/cli'],
  ['src/nbd/a.ts', "console.log('x')\n", 'src/cli'],
  ['workers/a.ts', 'process.exit(1)\n', 'src/cli'],
  ['src/util/a.ts', 'export default 1\n', 'default'],
  ['src/aio/a.ts', 'co.return(undefined)\n', 'own end'],
  ['src/aio/a.ts', 'try { f() } finally {\n  if (x) { yield }\n}\n', 'yield in finally'],
  ['src/util/a.ts', 'const x = y as unknown as Z\n', 'types'],
  ['test/unit/a.test.ts', "test.only('x', () => {})\n", 'alone'],
  ['test/unit/a.test.ts', 'test.skipIf(maybe)(f)\n', 'says why'],
  ['src/util/a.ts', `// ${'TO'}${'DO'}: later\n`, 'unfinished'],
  ['workers/a.ts', 'f()\n'.repeat(61), 'at most 60'],
]

describe('walls', () => {
  test('walls / the tree has no breach', () => {
    expect(checkWalls(readTree(ROOT))).toEqual([])
  })

  test.each(BREACHES)('walls / a breach in %s is seen: %.0s%s', (path, text, word) => {
    expect(checkWalls(new Map([[path, text]])).join('\n')).toContain(word)
  })

  test('walls / a driver may not import another driver', () => {
    const files = new Map([
      ['src/drivers/raw.ts', "import { fileDriver } from './file.ts'\n"],
      ['src/drivers/file.ts', 'export const fileDriver: DriverDefinition = {}\n'],
    ])
    expect(checkWalls(files)).toEqual([
      'src/drivers/raw.ts:1: a driver may not import another driver',
    ])
  })

  test('walls / a circle of imports is seen, one of types alone is not', () => {
    const b = "import { a } from './a.ts'\n"
    const circle = new Map([
      ['src/util/a.ts', "import { b } from './b.ts'\n"],
      ['src/util/b.ts', b],
    ])
    const types = new Map([
      ['src/util/a.ts', "import type { B } from './b.ts'\n"],
      ['src/util/b.ts', b],
    ])
    expect(checkWalls(circle).join()).toContain('circle')
    expect(checkWalls(types)).toEqual([])
  })

  test('walls / words in comments and strings are not code', () => {
    const text = "/* Atomics.load */ const s = 'console.log' // Date.now()\n"
    expect(checkWalls(new Map([['src/block/a.ts', text]]))).toEqual([])
    expect(blank(text, true)).toHaveLength(text.length)
  })
})
