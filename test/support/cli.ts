/**
 * The command `blockstep` as a process of its own, for tests.
 *
 * Invariants:
 * - Every process that a test started is gone when `stopAll` returned.
 */
import { type ChildProcess, spawn, spawnSync } from 'node:child_process'
import { existsSync, readFileSync } from 'node:fs'
import { fileURLToPath } from 'node:url'
import { expect, vi } from 'vitest'
import { runProgram } from '../../src/cli/program.ts'

/** The compiled program. */
export const MAIN: string = fileURLToPath(new URL('../../dist/src/cli/main.js', import.meta.url))

/** What a process said, and how it ended. */
export interface Ended {
  status: number | null
  stdout: string
  stderr: string
}

const running: ChildProcess[] = []

/** Runs a subcommand to its end. */
export function blockstep(cwd: string, ...args: string[]): Ended {
  const options = { cwd, encoding: 'utf8', timeout: 60_000 } as const
  const { status, stdout, stderr } = spawnSync(process.execPath, [MAIN, ...args], options)
  return { status, stdout, stderr }
}

/** Runs a subcommand to its end in this very process, which is quicker; not for `daemon`. */
export async function here(cwd: string, ...args: string[]): Promise<Ended> {
  const ended: Ended = { status: 0, stdout: '', stderr: '' }
  const take = (name: 'stdout' | 'stderr') => (text: unknown) => {
    ended[name] += String(text)
    return true
  }
  const say = (name: 'stdout' | 'stderr') => (text: unknown) => void take(name)(`${String(text)}\n`)
  const spies = [
    vi.spyOn(console, 'log').mockImplementation(say('stdout')),
    vi.spyOn(console, 'error').mockImplementation(say('stderr')),
    vi.spyOn(process.stdout, 'write').mockImplementation(take('stdout')),
    vi.spyOn(process.stderr, 'write').mockImplementation(take('stderr')),
  ]
  const back = process.cwd()
  const before = process.exitCode
  process.chdir(cwd)
  process.exitCode = 0
  try {
    await runProgram(args)
    ended.status = Number(process.exitCode)
  } finally {
    process.exitCode = before
    process.chdir(back)
    for (const spy of spies) spy.mockRestore()
  }
  return ended
}

/** A daemon that runs. */
export interface RunningDaemon {
  child: ChildProcess
  exit: Promise<number | null>
  stderr: () => string
}

/** Starts a daemon; its standard input and output are pipes. */
export function startDaemon(cwd: string, ...args: string[]): RunningDaemon {
  const child = spawn(process.execPath, [MAIN, 'daemon', ...args], { cwd })
  running.push(child)
  let text = ''
  child.stderr?.on('data', (chunk) => (text += String(chunk)))
  const exit = new Promise<number | null>((resolve) => child.once('close', resolve))
  return { child, exit, stderr: () => text }
}

/** Waits for the pid file of a daemon, which says that it listens. */
export async function listening(pidfile: string, daemon: RunningDaemon): Promise<void> {
  const told = (): boolean | string => existsSync(pidfile) || daemon.stderr()
  await expect.poll(told, { interval: 5, timeout: 15_000 }).toBe(true)
}

/** Whether a process lives. */
export function alive(pid: number): boolean {
  try {
    process.kill(pid, 0)
    return true
  } catch {
    return false
  }
}

/** The number in a pid file. */
export function pidIn(path: string): number {
  return Number(readFileSync(path, 'utf8'))
}

/** Ends what still runs. */
export async function stopAll(): Promise<void> {
  for (const child of running.splice(0)) {
    if (child.exitCode !== null || child.signalCode !== null) continue
    const gone = new Promise((resolve) => child.once('exit', resolve))
    child.kill('SIGKILL')
    await gone
  }
}
