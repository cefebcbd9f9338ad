/** What the page about the command line promises, checked against the program. */
import { readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { expect, test } from 'vitest'
import { program } from '../../../src/cli/program.ts'

const PAGE = readFileSync(fileURLToPath(new URL('../../../docs/cli.md', import.meta.url)), 'utf8')

test('docs / cli / every subcommand stands in the table, and no other', () => {
  const table = PAGE.slice(
    PAGE.indexOf('| subcommand | does |'),
    PAGE.indexOf('## `blockstep daemon`'),
  )
  const listed = [...table.matchAll(/^\| `(\w+)` \|/gm)].map(([, name]) => name)
  expect(listed).toEqual(program.commands.map((command) => command.name()))
})

test('docs / cli / every option of the daemon stands in the table, and no other', () => {
  const daemon = program.commands.find((command) => command.name() === 'daemon')
  const options = daemon?.options.filter((option) => !option.hidden) ?? []
  const names = options.map((option) => option.long ?? '')
  const table = PAGE.slice(
    PAGE.indexOf('| option | does |'),
    PAGE.indexOf('- Options are worked off'),
  )
  const rows = table.split('\n').filter((row) => row.startsWith('| `--'))
  const listed = rows.flatMap((row) => {
    const cell = row.split(' | ')[0] ?? ''
    return [...cell.matchAll(/--[\w-]+/g)].map(String)
  })
  expect(listed.toSorted()).toEqual([...names, '--help'].toSorted())
})
