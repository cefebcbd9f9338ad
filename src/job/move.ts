/**
 * Moves the start of a range from one view to another: the one place where a body's bytes go.
 *
 * Invariants:
 * - Memory goes to an attached disk in one copy, without a buffer in between.
 * - Zeroes go as zeroes, also those that only reading finds.
 */
import type { DiskView, ViewStatus } from './view.ts'
import { zeroRun } from './zeroes.ts'

/** From where to where, and through what. */
export interface MoveParts {
  readonly source: DiskView
  readonly target: DiskView
  /** Shared memory for data that has to be read; bounds what is moved at once. */
  readonly buffer: Uint8Array
  /** Data is looked through for zeroes, which the source cannot tell or the target wants to know. */
  readonly findZeroes: boolean
  /** What the source does not hold shows through from the target already. */
  readonly skipUnallocated: boolean
}

/** A move that failed, and on which side. */
export class MoveError {
  /** The side. */
  readonly operation: 'read' | 'write'
  /** What was thrown there. */
  readonly thrown: unknown

  constructor(operation: 'read' | 'write', thrown: unknown) {
    this.operation = operation
    this.thrown = thrown
  }
}

/** Moves up to `bytes` from `offset`; answers how many. Throws `MoveError`. */
export async function moveSome(parts: MoveParts, offset: number, bytes: number): Promise<number> {
  const { source, buffer, skipUnallocated } = parts
  const want = Math.min(bytes, buffer.length)
  let status: ViewStatus
  let data: Uint8Array | undefined
  try {
    const answer = source.status(offset, want)
    status = answer instanceof Promise ? await answer : answer
    if (status.kind === 'data') data = await read(parts, offset, status.bytes)
  } catch (thrown) {
    throw new MoveError('read', thrown)
  }
  try {
    if (data !== undefined) await write(parts, offset, data)
    else if (status.kind === 'zero' || !skipUnallocated) {
      const pending = parts.target.pwriteZeroes(offset, status.bytes)
      if (pending !== undefined) await pending
    }
  } catch (thrown) {
    throw new MoveError('write', thrown)
  }
  return status.bytes
}

async function read(parts: MoveParts, offset: number, bytes: number): Promise<Uint8Array> {
  const { source, target, buffer } = parts
  const there = target.attached ? source.inPlace?.(offset, bytes) : undefined
  if (there !== undefined) return there
  const view = buffer.subarray(0, bytes)
  const pending = source.pread(offset, view)
  if (pending !== undefined) await pending
  return view
}

async function write(parts: MoveParts, offset: number, data: Uint8Array): Promise<void> {
  const { target, findZeroes } = parts
  if (!findZeroes) {
    const pending = target.pwrite(offset, data)
    if (pending !== undefined) await pending
    return
  }
  for (let at = 0; at < data.length; ) {
    const run = zeroRun(data, at)
    const pending = run.zero
      ? target.pwriteZeroes(offset + at, run.bytes)
      : target.pwrite(offset + at, data.subarray(at, at + run.bytes))
    if (pending !== undefined) await pending
    at += run.bytes
  }
}
