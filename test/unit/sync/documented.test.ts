/** Every shared word stands in docs/shared-memory.md, and only src/sync names the host's operations. */
import { readdirSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'

const root = fileURLToPath(new URL('../../../', import.meta.url))
const page = readFileSync(`${root}docs/shared-memory.md`, 'utf8')

/** What a file says of its words: the sentence after `Words:` in its header. */
function wordsOf(file: string): string {
  const source = readFileSync(`${root}src/sync/${file}`, 'utf8')
  const header = source.slice(0, source.indexOf('*/'))
  return /Words: ([\s\S]*)$/.exec(header)?.[1] ?? 'none'
}

function sectionOf(name: string): string | undefined {
  return page.split('\n## ').find((section) => new RegExp(`^${name}\\b`).test(section))
}

const files = readdirSync(`${root}src/sync`).filter((file) => !wordsOf(file).startsWith('none'))

test('sync / documented / there are files with words', () => {
  expect(files.length).toBeGreaterThan(9)
})

for (const file of files) {
  test(`sync / documented / ${file} has its table, with every word that its header names`, () => {
    const name = file
      .replace('.ts', '')
      .replace(/(^|-)(.)/g, (_, __, letter: string) => letter.toUpperCase())
    const section = sectionOf(name)
    expect(section, `a section '## ${name}'`).toBeDefined()
    expect(section).toContain('| word | name | meaning | written by | waited on by |')
    for (const [, word] of wordsOf(file).matchAll(/`([a-z-]+)`/g))
      expect(section, `the word '${word}'`).toContain(word)
  })
}
