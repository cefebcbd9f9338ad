/** What the documents and the public door promise to a reader, checked against the tree. */
import { existsSync, readdirSync, readFileSync } from 'node:fs'
import { dirname, join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { builtinDrivers } from '../../src/runtime/drivers.ts'
import { Rig } from './qmp/rig.ts'

const ROOT = fileURLToPath(new URL('../..', import.meta.url))
const read = (path: string): string => readFileSync(join(ROOT, path), 'utf8')

const CHANGELOG = read('CHANGELOG.md')

const DOCUMENTS = [
  ...['README.md', 'CHANGELOG.md', 'bench/README.md'],
  ...readdirSync(join(ROOT, 'docs'), { recursive: true })
    .map((name) => `docs/${String(name)}`)
    .filter((name) => name.endsWith('.md')),
]

/** Names of the public door, with the file that declares each. */
function publicNames(): [name: string, path: string][] {
  const found: [string, string][] = []
  for (const [, names = '', from = ''] of read('src/index.ts').matchAll(
    /export (?:type )?\{([^}]*)\} from '\.\/([^']+)'/g,
  ))
    for (const name of names.split(','))
      if (name.trim() !== '') found.push([name.trim().replace(/^type /, ''), `src/${from}`])
  return found
}

/** Declarations of a name, and members of its interface, that have no comment before them. */
function undocumented(name: string, path: string): string[] {
  const lines = read(path).split('\n')
  const declares = new RegExp(
    `^export (async )?(class|function\\*?|const|interface|type) ${name}\\b`,
  )
  const at = lines.findIndex((line) => declares.test(line))
  if (at < 0) return [`${path}: ${name} is not declared there`]
  const bare = (index: number): boolean => !lines[index - 1]?.trimEnd().endsWith('*/')
  const found = bare(at) ? [`${path}: ${name}`] : []
  if (!lines[at]?.startsWith('export interface')) return found
  for (let i = at + 1; i < lines.length && !lines[i]?.startsWith('}'); i++) {
    const member = /^ {2}(?:readonly )?(['\w-]+)\??[:(]/.exec(lines[i] ?? '')?.[1]
    if (member !== undefined && bare(i)) found.push(`${path}: ${name}.${member}`)
  }
  return found
}

test('docs / public door / every name and every field has a doc comment', () => {
  expect(publicNames().length).toBeGreaterThan(20)
  expect(publicNames().flatMap(([name, path]) => undocumented(name, path))).toEqual([])
})

test('docs / architecture / the table of rooms is the source tree', () => {
  const text = read('docs/architecture.md')
  const rooms = readdirSync(join(ROOT, 'src'), { withFileTypes: true })
    .filter((entry) => entry.isDirectory())
    .map((entry) => entry.name)
  const listed = [...text.matchAll(/^\| `src\/(\w+)` \|/gm)].map(([, room]) => room)
  expect(listed.toSorted()).toEqual(rooms.toSorted())
})

test('docs / testing / the table of folders is the test tree', () => {
  const folders = readdirSync(join(ROOT, 'test'), { withFileTypes: true })
    .filter((entry) => entry.isDirectory() && entry.name !== 'support')
    .map((entry) => entry.name)
  const listed = [...read('docs/testing.md').matchAll(/^\| `test\/(\w+)` \|/gm)]
  expect(listed.map(([, name]) => name).toSorted()).toEqual(folders.toSorted())
})

test('docs / monitor / every command stands in the table of families', async () => {
  const rig = new Rig()
  const families = read('docs/qmp.md')
    .split('\n')
    .filter((line) => line.includes('`commands/'))
  const words = families.flatMap((line) =>
    [...line.matchAll(/`([\w*-]+)`/g)].map((match) => match[1] as string),
  )
  const stands = (name: string): boolean => words.some((word) => names(word, name))
  expect(Object.keys(rig.commands).filter((name) => !stands(name))).toEqual([])
  await rig.close()
})

/** `job-*` stands for every command that begins so, `-remove` for the one of the bitmaps. */
function names(word: string, command: string): boolean {
  if (word.endsWith('*')) return command.startsWith(word.slice(0, -1))
  return command === word || (word.startsWith('-') && command === `block-dirty-bitmap${word}`)
}

test('docs / changelog / every driver that a user may name is in the list', () => {
  const ofJobs = /_top$/
  const names = builtinDrivers().map((driver) => driver.name)
  const missing = names.filter((name) => !ofJobs.test(name) && !CHANGELOG.includes(`\`${name}\``))
  expect(missing).toEqual([])
})

test('docs / links / every file that a document names is there', () => {
  const broken: string[] = []
  for (const document of DOCUMENTS)
    for (const [, target = ''] of read(document).matchAll(/\]\(([^)#\s]+)(?:#[^)]*)?\)/g))
      if (!target.includes('://') && !existsSync(join(ROOT, dirname(document), target)))
        broken.push(`${document}: ${target}`)
  expect(broken).toEqual([])
})

test('docs / paths / a source file that a document speaks of exists', () => {
  const broken: string[] = []
  for (const document of DOCUMENTS.filter((name) => name !== 'CHANGELOG.md'))
    for (const [, path = ''] of read(document).matchAll(
      /`((?:src|test|scripts|workers|bench|examples|docs)\/[\w./-]+)`/g,
    ))
      if (!existsSync(join(ROOT, path))) broken.push(`${document}: ${path}`)
  expect(broken).toEqual([])
})
