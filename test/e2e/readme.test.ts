/** What the README shows is what happens. */
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { expect, test, vi } from 'vitest'

const ROOT = fileURLToPath(new URL('../../', import.meta.url))
const README = readFileSync(`${ROOT}README.md`, 'utf8')

/** The code block between two markers. */
function shown(marker: string): string {
  const pattern = new RegExp(
    `<!-- ${marker} -->\\n\`\`\`\\w*\\n([\\s\\S]*?)\`\`\`\\n<!-- end of ${marker} -->`,
  )
  return pattern.exec(README)?.[1] ?? ''
}

test('readme / the library example is the one that runs, but for where it imports from', () => {
  const example = readFileSync(`${ROOT}examples/standby.ts`, 'utf8')
  expect(shown('example')).toBe(example.replace("'../src/index.ts'", "'blockstep'"))
})

test('readme / the library example prints what it says', async () => {
  const log = vi.spyOn(console, 'log').mockImplementation(() => {})
  try {
    await import('../../examples/standby.ts')
    expect(log.mock.calls).toEqual([['from the primary']])
  } finally {
    log.mockRestore()
  }
})

test('readme / the demo output is that of a good run', () => {
  const output = shown('demo output')
  expect(output).toMatch(/^blockstep demo: 256\.0 MiB \(memory\), seed \d+$/m)
  expect(output).toMatch(/^verified {5}65536 blocks/m)
  expect(output).toMatch(/^verdict {6}0 blocks wrong/m)
})

test('readme / every page it points to is there', () => {
  const links = [...README.matchAll(/\]\(([^)#:]+)\)/g)].map((match) => match[1] as string)
  expect(links.length).toBeGreaterThan(4)
  expect(links.filter((link) => !existsSync(ROOT + link))).toEqual([])
})
