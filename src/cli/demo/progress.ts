/**
 * Live progress: one line that is rewritten on a terminal, one line a second elsewhere.
 *
 * Invariants:
 * - Progress only looks; nothing in the run depends on it.
 */

/** What the line shows. */
export interface ProgressState {
  /** Bytes acknowledged to the primary's guest so far. */
  readonly bytes: number
  /** Checkpoints that both sides acknowledged. */
  readonly checkpoints: number
  /** The last checkpoint's pause in milliseconds; undefined before the first. */
  readonly pauseMs: number | undefined
  /** Bytes written since the last checkpoint. */
  readonly dirtyBytes: number
}

const TERMINAL_PERIOD_MS = 100
const PLAIN_PERIOD_MS = 1000

/** Shows the state until `stop`. */
export class Progress {
  private readonly out: NodeJS.WriteStream
  private readonly look: () => ProgressState
  private readonly startMs = performance.now()
  private readonly timer: ReturnType<typeof setInterval>
  private lastMs = this.startMs
  private lastBytes = 0

  constructor(out: NodeJS.WriteStream, look: () => ProgressState) {
    this.out = out
    this.look = look
    const period = out.isTTY ? TERMINAL_PERIOD_MS : PLAIN_PERIOD_MS
    this.timer = setInterval(() => this.show(), period)
  }

  /** Ends the display; on a terminal the line is cleared. */
  stop(): void {
    clearInterval(this.timer)
    if (this.out.isTTY) this.out.write('\r\x1b[2K')
  }

  private show(): void {
    const state = this.look()
    const now = performance.now()
    const rate = ((state.bytes - this.lastBytes) / (now - this.lastMs)) * 1000
    this.lastMs = now
    this.lastBytes = state.bytes
    const pause = state.pauseMs === undefined ? '' : `, last pause ${ms(state.pauseMs)}`
    const line =
      `${((now - this.startMs) / 1000).toFixed(1).padStart(5)} s  ${mib(rate)}/s  ` +
      `checkpoints ${state.checkpoints}${pause}, dirty ${mib(state.dirtyBytes)}`
    this.out.write(this.out.isTTY ? `\r\x1b[2K${line}` : `${line}\n`)
  }
}

/** Bytes in words. */
export function mib(bytes: number): string {
  return `${(bytes / 1024 ** 2).toFixed(1)} MiB`
}

/** Milliseconds in words. */
export function ms(value: number): string {
  return value < 10 ? `${value.toFixed(1)} ms` : `${Math.round(value)} ms`
}
