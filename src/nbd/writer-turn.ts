/**
 * One writer at a time on an exclusive export: the client that writes last has the turn.
 *
 * Invariants:
 * - A change begins only after every change of an earlier writer has ended; what an earlier writer
 *   sends after it lost its turn is refused. So a write that hung on a connection its client gave up
 *   can never land after a newer one.
 * - Clients that only read or flush neither take the turn nor wait for it.
 */
import type { MaybePromise, Pending } from '../coroutine/coroutine.ts'
import { BlockError } from '../util/errors.ts'
import type { ExportBackend, ExportHooks, ExportStatus } from './export.ts'
import type { NbdSession } from './handshake.ts'

/** Who may change an exclusive export. */
export class WriterTurn {
  #holder: TurnBackend | undefined

  /** The session that a client works with; `cut` ends it when it loses its turn. */
  join(session: NbdSession, cut: () => void): NbdSession {
    const backend = new TurnBackend(session.export.backend, this, cut)
    return { ...session, export: { ...session.export, backend } }
  }

  /** The turn of a client; settles when the changes of all earlier ones have ended. */
  take(client: TurnBackend): Pending {
    const before = this.#holder
    this.#holder = client
    return before?.revoke()
  }
}

/** The disk of an exclusive export, as one client reaches it. */
class TurnBackend implements ExportBackend {
  readonly #inner: ExportBackend
  readonly #turn: WriterTurn
  readonly #cut: () => void
  #state: 'reader' | 'waits' | 'writer' | 'revoked' = 'reader'
  #begun: Promise<void> | undefined
  #running = 0
  #idle: (() => void) | undefined

  constructor(inner: ExportBackend, turn: WriterTurn, cut: () => void) {
    this.#inner = inner
    this.#turn = turn
    this.#cut = cut
  }

  get readOnly(): boolean {
    return this.#inner.readOnly
  }

  length(): number {
    return this.#inner.length()
  }

  pread(offset: number, buf: Uint8Array): Pending {
    return this.#inner.pread(offset, buf)
  }

  pwrite(offset: number, buf: Uint8Array, flags?: number): Pending {
    return this.#change(() => this.#inner.pwrite(offset, buf, flags))
  }

  pwriteZeroes(offset: number, bytes: number, flags?: number): Pending {
    return this.#change(() => this.#inner.pwriteZeroes(offset, bytes, flags))
  }

  pdiscard(offset: number, bytes: number): Pending {
    return this.#change(() => this.#inner.pdiscard(offset, bytes))
  }

  flush(): Pending {
    return this.#inner.flush()
  }

  prefetch(offset: number, bytes: number): Pending {
    return this.#inner.prefetch(offset, bytes)
  }

  blockStatus(offset: number, bytes: number): MaybePromise<ExportStatus> {
    return this.#inner.blockStatus(offset, bytes)
  }

  setHooks(hooks: ExportHooks): void {
    this.#inner.setHooks(hooks)
  }

  /** Takes the turn away; settles when the changes that run have ended. */
  revoke(): Pending {
    this.#state = 'revoked'
    this.#cut()
    if (this.#running === 0) return undefined
    return new Promise((resolve) => {
      this.#idle = resolve
    })
  }

  #change(act: () => Pending): Pending {
    if (this.#state === 'reader') this.#begin()
    if (this.#state === 'waits') return this.#changeLater(act)
    if (this.#state === 'revoked') throw takenOver()
    const pending = act()
    return pending === undefined ? undefined : this.#count(pending)
  }

  #begin(): void {
    const wait = this.#turn.take(this)
    this.#state = wait === undefined ? 'writer' : 'waits'
    this.#begun = wait?.then(() => {
      if (this.#state === 'waits') this.#state = 'writer'
    })
  }

  /** Counts as running while it waits: who takes the turn next waits for the earlier ones too. */
  #changeLater(act: () => Pending): Promise<void> {
    const later = async (): Promise<void> => {
      await this.#begun
      if (this.#state === 'revoked') throw takenOver()
      const pending = act()
      if (pending !== undefined) await pending
    }
    return this.#count(later())
  }

  async #count(pending: Promise<void>): Promise<void> {
    this.#running++
    try {
      await pending
    } finally {
      this.#running--
      if (this.#running === 0) this.#idle?.()
    }
  }
}

function takenOver(): BlockError {
  return new BlockError('EPERM', 'A newer connection writes to this export now')
}
