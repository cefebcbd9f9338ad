/**
 * Going on in the background: a second process does the work, the first one waits for its word.
 *
 * Invariants:
 * - The first process ends with status 0 once everything listens, or with the status and the words
 *   of the second one when it fails before that.
 * - The second process leads a session of its own and holds none of the first one's streams.
 * - Descriptors that an option names (`addr.str=N`) are passed on under the same number.
 */
import { spawn } from 'node:child_process'
import { BlockError } from '../index.ts'

const READY = 'ready\n'

/** Starts the process that stays and ends this one when that one listens. */
export async function becomeDaemon(texts: readonly string[]): Promise<void> {
  for (const text of texts) {
    if (!/^(backend=)?stdio\b/.test(text)) continue
    throw new BlockError('EINVAL', `--chardev ${text}: cannot use stdio with -daemonize`)
  }
  const child = spawn(
    process.execPath,
    [...process.execArgv, ...process.argv.slice(1), '--behind'],
    {
      detached: true,
      stdio: ['ignore', 'pipe', 'pipe', ...inherited(texts)],
    },
  )
  const { stdout, stderr } = child
  let said = ''
  stderr?.on('data', (chunk) => (said += String(chunk)))
  const ready = await new Promise<boolean>((resolve, reject) => {
    let word = ''
    stdout?.on('data', (chunk) => {
      word += String(chunk)
      if (word === READY) resolve(true)
    })
    child.once('error', reject)
    child.once('close', () => resolve(false))
  })
  process.stderr.write(said)
  process.exit(ready ? 0 : (child.exitCode ?? 1))
}

/** The process that stays says that everything listens; nobody hears it afterwards. */
export function tellReady(): void {
  for (const stream of [process.stdout, process.stderr]) stream.on('error', () => undefined)
  process.stdout.write(READY)
}

function inherited(texts: readonly string[]): ('ignore' | number)[] {
  const numbers = texts.flatMap((text) =>
    [...text.matchAll(/\b(?:addr\.)?str["=: ]+([0-9]{1,3})\b/g)].map((found) => Number(found[1])),
  )
  const last = Math.max(2, ...numbers)
  const slots = Array.from({ length: last - 2 }, (_, at) => at + 3)
  return slots.map((fd) => (numbers.includes(fd) ? fd : 'ignore'))
}
