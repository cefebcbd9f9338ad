/**
 * Commands that drive every replication node at once.
 *
 * Invariants:
 * - The status query never fails: it says what is wrong.
 */
import { asBlockError } from '../../util/errors.ts'
import { type CommandTable, command, flagOf, refuse } from '../command.ts'
import type { JsonValue } from '../json.ts'
import { bool } from '../schema.ts'
import type { ReplicationControl } from '../services.ts'

/** The commands about replication. */
export function replicationCommands(replication: ReplicationControl): CommandTable {
  return {
    'xen-set-replication': command(
      { enable: bool, primary: bool, 'failover?': bool },
      async (args) => {
        const enable = flagOf(args, 'enable')
        if (enable && args.failover !== undefined) {
          refuse("Parameter 'failover' is only for stopping replication")
        }
        if (enable) await replication.startAll(flagOf(args, 'primary') ? 'primary' : 'secondary')
        else await replication.stopAll(flagOf(args, 'failover'))
      },
    ),
    'xen-colo-do-checkpoint': command({}, () => replication.checkpointAll()),
    'query-xen-replication-status': command({}, () => replicationStatus(replication)),
  }
}

function replicationStatus(replication: ReplicationControl): JsonValue {
  try {
    replication.getErrorAll()
    return { error: false }
  } catch (error) {
    return { desc: asBlockError(error).message, error: true }
  }
}
