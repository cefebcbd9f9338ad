/**
 * Foreign programs: found, run, and missed loudly where they must not be missing.
 *
 * Invariants:
 * - A missing program skips its tests by name, and fails them when `CI` is `true`.
 */
import { type ChildProcess, execFile, execFileSync, spawn } from 'node:child_process'
import { test } from 'vitest'

export interface Ran {
  code: number
  out: string
  err: string
}

/** Whether a program is there. */
export function has(tool: string): boolean {
  try {
    execFileSync('sh', ['-c', `command -v ${tool}`], { stdio: 'ignore' })
    return true
  } catch {
    return false
  }
}

/** A test that needs programs. */
export function withTools(tools: string[], name: string, body: () => Promise<void>): void {
  const missing = tools.filter((tool) => !has(tool))
  if (missing.length === 0) test(name, body)
  else if (process.env.CI === 'true') {
    test(name, () => {
      throw new Error(`missing on CI: ${missing.join(', ')}`)
    })
  } else test.skip(`${name} (needs ${missing.join(', ')})`, body)
}

/** Runs a program to its end. */
export function run(tool: string, args: string[], cwd?: string): Promise<Ran> {
  return new Promise((resolve) => {
    const options = { maxBuffer: 1 << 26, timeout: 15_000, ...(cwd === undefined ? {} : { cwd }) }
    execFile(tool, args, options, (error, out, err) => {
      const code = error === null ? 0 : typeof error.code === 'number' ? error.code : -1
      resolve({ code, out, err })
    })
  })
}

/** Runs a program that must succeed; its output. */
export async function must(tool: string, args: string[], cwd?: string): Promise<string> {
  const { code, out, err } = await run(tool, args, cwd)
  if (code !== 0) throw new Error(`${tool} ${args.join(' ')}: exit ${code}\n${out}${err}`)
  return out
}

/** Starts a server and waits until `uri` answers. */
export async function serving(tool: string, args: string[], uri: string): Promise<ChildProcess> {
  const child = spawn(tool, args, { stdio: 'ignore' })
  for (;;) {
    if ((await run('nbdinfo', ['--size', uri])).code === 0) return child
    if (child.exitCode !== null) throw new Error(`${tool} ended with ${child.exitCode}`)
  }
}
