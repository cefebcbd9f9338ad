/**
 * The worker's end of copy-before-write: takes commands from a ring, copies, answers in another.
 *
 * Invariants:
 * - Commands are answered in their order, each once.
 * - A pause does not stop it: a drain waits for the writes that wait for these copies.
 */
import type { Ring } from '../sync/ring.ts'
import type { ErrorRecord } from '../util/errors.ts'
import type { MoveParts } from './move.ts'
import { copyRange } from './range-copy.ts'

/** Numbers in a command: id, offset, bytes. */
export const COMMAND_SLOTS = 3
/** Numbers in an answer: id, 0 or 1 for failed. */
export const ANSWER_SLOTS = 2
/** Bytes copied before the thread's loop gets a turn for the other bodies of the thread. */
const TURN_BYTES = 8 * 1024 * 1024
/** Looks at an empty ring before it waits: a guest that writes on sends the next one soon. */
const LOOKS = 2000

/** What a server works with. */
export interface ClusterServerParts extends MoveParts {
  readonly commands: Ring
  readonly answers: Ring
  /** Accounts for copied bytes. */
  readonly done: (bytes: number) => void
  /** Lets the thread's loop turn. */
  readonly turn: () => Promise<void>
}

/** Serves copies until its ring of commands is closed. */
export class ClusterServer {
  readonly #parts: ClusterServerParts
  readonly #errors = new Map<number, ErrorRecord>()
  #sinceTurn = 0

  constructor(parts: ClusterServerParts) {
    this.#parts = parts
  }

  /** Ends when the ring of commands is closed. */
  async run(): Promise<void> {
    const { commands } = this.#parts
    const command = new Float64Array(COMMAND_SLOTS)
    for (;;) {
      while (commands.pop(command)) await this.#serve(command)
      if (commands.closed) return
      if (this.#look()) continue
      const readable = commands.whenReadable()
      if (readable !== undefined) await readable
    }
  }

  /** Why a command failed; answers once. */
  takeError(id: number): ErrorRecord | undefined {
    const error = this.#errors.get(id)
    this.#errors.delete(id)
    return error
  }

  #look(): boolean {
    const { commands } = this.#parts
    for (let i = 0; i < LOOKS; i++) if (commands.readable) return true
    return false
  }

  async #serve(command: Float64Array): Promise<void> {
    const { answers, done } = this.#parts
    const [id = 0, offset = 0, bytes = 0] = command
    const outcome = await copyRange(this.#parts, offset, bytes)
    if (outcome === null) done(bytes)
    else this.#errors.set(id, outcome)
    while (!answers.push([id, outcome === null ? 0 : 1])) {
      if (answers.closed) return
      await answers.whenWritable()
    }
    this.#sinceTurn += bytes
    if (this.#sinceTurn < TURN_BYTES) return
    this.#sinceTurn = 0
    await this.#parts.turn()
  }
}
