/**
 * `blockstep daemon`: a block system of its own process, driven over monitor sockets.
 *
 * Invariants:
 * - Exit status 0 after `quit`, SIGTERM or SIGINT, once every disk is closed.
 * - The pid file is there only while every monitor listens.
 */
import { rmSync, writeFileSync } from 'node:fs'
import { Command, Option } from 'commander'
import { BlockError, Runtime } from '../index.ts'

interface DaemonArguments {
  readonly qmp: readonly string[]
  readonly pidfile?: string
}

/** A disk that cannot be closed must not keep a dead process around. */
const CLOSE_DEADLINE_MS = 15_000

/** The subcommand. */
export const daemonCommand: Command = new Command('daemon')
  .description('serve disks, driven by a QMP client')
  .addOption(
    new Option('--qmp <address>', 'monitor socket, unix:PATH or tcp:HOST:PORT (may be repeated)')
      .argParser((address: string, before: string[] | undefined) => [...(before ?? []), address])
      .makeOptionMandatory(),
  )
  .option('--pidfile <path>', 'write the process id here once the monitors listen')
  .action(runDaemon)

async function runDaemon(args: DaemonArguments): Promise<void> {
  const runtime = await Runtime.create({
    epochMs: () => performance.timeOrigin + performance.now(),
  })
  process.on('SIGTERM', () => runtime.quit('host-signal'))
  process.on('SIGINT', () => runtime.quit('host-signal'))
  try {
    for (const address of args.qmp) await runtime.startMonitor(address)
    if (args.pidfile !== undefined) writePidfile(args.pidfile)
    await runtime.quitRequested
  } catch (error) {
    await closeInTime(runtime)
    throw error
  }
  await closeInTime(runtime)
  if (args.pidfile !== undefined) rmSync(args.pidfile, { force: true })
  process.exit(0)
}

function writePidfile(path: string): void {
  try {
    writeFileSync(path, `${process.pid}\n`)
  } catch (error) {
    const why = error instanceof Error ? error.message : String(error)
    throw new BlockError('EIO', `cannot write the pid file: ${why}`, { path }, error)
  }
}

async function closeInTime(runtime: Runtime): Promise<void> {
  const deadline = setTimeout(() => {
    console.error('blockstep: some disks did not close in time; leaving without them')
    process.exit(1)
  }, CLOSE_DEADLINE_MS)
  await runtime.close()
  clearTimeout(deadline)
}
