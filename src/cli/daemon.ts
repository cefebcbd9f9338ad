/**
 * `blockstep daemon`: a block system of its own process, driven over monitor sockets, with the
 * command line of a storage daemon.
 *
 * Invariants:
 * - Exit status 0 after `quit`, SIGTERM, SIGINT or SIGHUP, once every disk is closed.
 * - Options are worked off in the order in which they stand, except that objects come before drives.
 * - The pid file is there only while everything that was asked for listens.
 */
import { rmSync, writeFileSync } from 'node:fs'
import { resolve } from 'node:path'
import { Duplex } from 'node:stream'
import { Command, Option } from 'commander'
import { BlockError, PROGRAM_VERSION, Runtime, type StartupOption } from '../index.ts'
import { becomeDaemon, tellReady } from './daemonize.ts'

interface DaemonArguments {
  readonly daemonize?: true
  readonly pidfile?: string
  readonly verbose?: true
  /** We are the process that stays behind; the one that started us waits for our word. */
  readonly behind?: true
}

/** An option whose place among the others matters. */
interface Step {
  readonly option: StartupOption | 'qmp'
  readonly text: string
}

const STEPS: readonly (readonly [option: StartupOption | 'qmp', value: string, help: string])[] = [
  ['qmp', '<address>', 'monitor socket, unix:PATH or tcp:HOST:PORT'],
  ['blockdev', '<options>', '[driver=]DRIVER,node-name=NAME,… or JSON: open a node'],
  ['drive', '<options>', 'id=NAME,driver=DRIVER,… : open a node, in the spelling of a machine'],
  ['object', '<options>', '[qom-type=]TYPE,id=NAME,… : make an object'],
  [
    'nbd-server',
    '<options>',
    'addr.type=inet,addr.host=…,addr.port=… or addr.type=unix,addr.path=…',
  ],
  ['export', '<options>', '[type=]nbd,id=ID,node-name=NAME[,name=…][,writable=on]: export a node'],
  ['chardev', '<options>', 'socket|stdio|null,id=ID,…: what a monitor talks over'],
  ['monitor', '<options>', '[chardev=]ID[,pretty=on]: put a monitor on a chardev'],
]

/** A disk that cannot be closed must not keep a dead process around. */
const CLOSE_DEADLINE_MS = 15_000
const SIGNALS = ['SIGTERM', 'SIGINT', 'SIGHUP'] as const

/** The program that scripts were written for reads its version from this line. */
const VERSION_LINE = `blockstep version ${PROGRAM_VERSION}, in place of qemu-storage-daemon version 7.2.0`

/** The subcommand. */
export const daemonCommand: Command = makeCommand()

function makeCommand(): Command {
  const steps: Step[] = []
  const made = new Command('daemon')
    .description('serve disks, driven by a QMP client or by options, each of which may be repeated')
    .version(VERSION_LINE, '-V, --version')
  for (const [option, value, help] of STEPS) {
    // The parser calls in the order of the command line, which no other way tells.
    const remember = (text: string): void => void steps.push({ option, text })
    made.addOption(new Option(`--${option} ${value}`, help).argParser(remember))
  }
  return made
    .option('--pidfile <path>', 'write the process id here once everything listens')
    .option('--daemonize', 'go on in the background once everything listens')
    .option('--verbose', 'say on standard error where the NBD server listens')
    .addOption(new Option('--behind').hideHelp())
    .action((args: DaemonArguments) => runDaemon(args, steps.splice(0)))
}

async function runDaemon(args: DaemonArguments, steps: readonly Step[]): Promise<void> {
  if (steps.length === 0) {
    const words = "required option '--qmp <address>' not specified, nor --monitor, nor --export"
    throw new BlockError('EINVAL', words)
  }
  if (args.daemonize === true && args.behind !== true) return becomeDaemon(steps.map(textOf))
  const runtime = await Runtime.create({
    epochMs: () => performance.timeOrigin + performance.now(),
    ...(args.behind === true ? {} : { stdio: () => standardStreams() }),
  })
  for (const signal of SIGNALS) process.on(signal, () => runtime.quit('host-signal'))
  // Nodes alone keep no process alive.
  const awake = setInterval(() => undefined, 2 ** 30)
  const pidfile = args.pidfile === undefined ? undefined : resolve(args.pidfile)
  try {
    if (await takeAll(runtime, ordered(steps))) {
      if (args.verbose === true) tellAddress(runtime)
      if (pidfile !== undefined) writePidfile(pidfile, args.pidfile ?? pidfile)
      if (args.behind === true) tellReady()
    }
    await runtime.quitRequested
  } catch (error) {
    await closeInTime(runtime)
    throw error
  } finally {
    clearInterval(awake)
  }
  await closeInTime(runtime)
  if (pidfile !== undefined) rmSync(pidfile, { force: true })
  process.exit(0)
}

/** Works the options off; false when the program was told to end meanwhile. */
async function takeAll(runtime: Runtime, steps: readonly Step[]): Promise<boolean> {
  const ended = runtime.quitRequested.then(() => false)
  for (const step of steps) {
    const done = step.option === 'qmp' ? runtime.startMonitor(step.text) : apply(runtime, step)
    if (!(await Promise.race([done.then(() => true), ended]))) return false
  }
  return true
}

async function apply(runtime: Runtime, { option, text }: Step): Promise<void> {
  if (option === 'qmp') return
  try {
    await runtime.applyOption(option, text)
  } catch (error) {
    if (!(error instanceof BlockError)) throw error
    const words = `--${option} ${text}: ${error.message}`
    throw new BlockError(error.code, words, error.context, error)
  }
}

// A machine makes its objects before its drives, wherever they stand; a storage daemon has no drives.
function ordered(steps: readonly Step[]): readonly Step[] {
  if (!steps.some(({ option }) => option === 'drive')) return steps
  const objects = steps.filter(({ option }) => option === 'object')
  return [...objects, ...steps.filter(({ option }) => option !== 'object')]
}

const textOf = ({ text }: Step): string => text

function standardStreams(): Duplex {
  const both = Duplex.from({ readable: process.stdin, writable: process.stdout })
  both.pause()
  return both
}

function tellAddress(runtime: Runtime): void {
  const address = runtime.exports.server?.address
  if (address === undefined) return
  const where = address.type === 'unix' ? address.path : `${address.host}:${address.port}`
  console.error(`blockstep: the NBD server listens on ${where}`)
}

function writePidfile(path: string, given: string): void {
  try {
    writeFileSync(path, `${process.pid}\n`)
  } catch (error) {
    const why = error instanceof Error && 'code' in error ? hostWords(error) : String(error)
    const words = `cannot create PID file: Could not create '${given}': ${why}`
    throw new BlockError('EIO', words, { path }, error)
  }
}

// `ENOENT: no such file or directory, open '…'` without the path, which was named already.
function hostWords(error: Error): string {
  const words = /^[A-Z]+: (.*?), /.exec(error.message)?.[1] ?? error.message
  return words.charAt(0).toUpperCase() + words.slice(1)
}

async function closeInTime(runtime: Runtime): Promise<void> {
  const deadline = setTimeout(() => {
    console.error('blockstep: some disks did not close in time; leaving without them')
    process.exit(1)
  }, CLOSE_DEADLINE_MS)
  await runtime.close()
  clearTimeout(deadline)
}
