/** `blockstep demo` as a user runs it: verdict, exit status, bad input. */
import { execFile, spawn } from 'node:child_process'
import { createHash, randomBytes } from 'node:crypto'
import { once } from 'node:events'
import { existsSync, mkdtempSync, readdirSync, readFileSync, rmSync, writeFileSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileURLToPath } from 'node:url'
import { afterEach, beforeEach, describe, expect, test } from 'vitest'

const MAIN = fileURLToPath(new URL('../../dist/src/cli/main.js', import.meta.url))

interface Ran {
  readonly status: number
  readonly out: string
  readonly err: string
}

let folder = ''

beforeEach(() => {
  folder = mkdtempSync(join(tmpdir(), 'demo-'))
})

afterEach(() => {
  rmSync(folder, { recursive: true, force: true })
})

/** Runs the demo with its temporary files in our folder. */
function demo(...args: string[]): Promise<Ran> {
  const env = { ...process.env, TMPDIR: folder }
  return new Promise((resolve) => {
    execFile(process.execPath, [MAIN, 'demo', ...args], { env }, (error, out, err) => {
      resolve({ status: error === null ? 0 : Number(error.code ?? 1), out, err })
    })
  })
}

const QUICK = ['--size', '16M', '--seconds', '1.2']

describe('demo', () => {
  test('demo / a killed primary costs nothing that was checkpointed', async () => {
    const { status, out, err } = await demo(...QUICK, '--seed', '7', '--json')
    expect(err).toContain('seed 7')
    const result = JSON.parse(out) as Record<string, number>
    expect(result).toMatchObject({ seed: 7, blocks: 4096, wrong: 0, ok: true })
    expect(result.checkpoints).toBeGreaterThan(0)
    expect(result.writes).toBeGreaterThan(0)
    expect(result.mergedMs).toBeGreaterThan(0)
    expect(status).toBe(0)
    expect(readdirSync(folder)).toEqual([])
  })

  test('demo / the verdict fails when a block is spoiled', async () => {
    const { status, out } = await demo(...QUICK, '--break')
    expect(out).toContain('FAILED: 1 of 4096 blocks wrong')
    expect(status).toBe(1)
  })

  test('demo / an image is replicated and left alone', async () => {
    const image = join(folder, 'image.raw')
    writeFileSync(image, randomBytes(3 * 1024 * 1024 + 512))
    const digest = (): string => createHash('sha256').update(readFileSync(image)).digest('hex')
    const before = digest()
    const { status, out } = await demo('--disk', image, '--seconds', '1.2', '--json')
    expect(JSON.parse(out)).toMatchObject({ blocks: 769, wrong: 0, ok: true })
    expect(status).toBe(0)
    expect(digest()).toBe(before)
    expect(readdirSync(folder)).toEqual(['image.raw'])
  })

  test('demo / without a terminal it prints plain lines and a verdict', async () => {
    const { status, out } = await demo('--size', '512', '--seconds', '2.4')
    expect(out).toMatch(/checkpoints.*dirty/)
    expect(out).toContain('verdict      0 blocks wrong')
    expect(out).not.toContain('\r')
    expect(status).toBe(0)
  })

  test('demo / an interrupt leaves no process and no file behind', async () => {
    const env = { ...process.env, TMPDIR: folder }
    const child = spawn(process.execPath, [MAIN, 'demo', '--size', '1M'], { env })
    let out = ''
    child.stdout.setEncoding('utf8').on('data', (text: string) => {
      out += text
    })
    while (!out.includes('checkpoints')) await once(child.stdout, 'data')
    child.kill('SIGINT')
    expect(await once(child, 'exit')).toEqual([130, null])
    expect(readdirSync(folder)).toEqual([])
  })

  test.each([
    [['--disk', '/nonexistent/disk.raw'], 'No such file or directory'],
    [['--disk', tmpdir()], 'not a regular file'],
    [['--size', '1000'], 'multiple of 512'],
    [['--size', 'big'], '--size must look like'],
    [['--size', '0'], 'above 0'],
    [['--size', '1M', '--disk', MAIN], '--size cannot be given with --disk'],
    [['--seconds', '0'], '--seconds must be'],
    [['--seed', '-1'], '--seed must be'],
    [['--colour'], 'unknown option'],
  ])('demo / bad input %j costs one clear line', async (args, words) => {
    const { status, out, err } = await demo(...args)
    expect(err).toContain(words)
    expect(err).toMatch(/^blockstep: [^\n]+\n$/)
    expect(out).toBe('')
    expect(status).not.toBe(0)
    expect(existsSync(folder) && readdirSync(folder)).toEqual([])
  })
})
