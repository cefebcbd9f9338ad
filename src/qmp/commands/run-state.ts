/**
 * `query-status`, `stop`, `cont`.
 *
 * Invariants:
 * - All three answer at once, whatever the disks do.
 */
import { type CommandTable, command } from '../command.ts'
import type { RunState } from '../run-state.ts'

/** The commands about the run state. */
export function runStateCommands(state: RunState): CommandTable {
  return {
    'query-status': command({}, () => ({
      status: state.status,
      singlestep: false,
      running: state.status === 'running',
    })),
    stop: command({}, () => state.stop()),
    cont: command({}, () => state.cont()),
  }
}
