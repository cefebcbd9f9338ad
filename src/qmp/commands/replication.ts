/**
 * Commands that drive every replication node at once.
 *
 * Invariants:
 * - The status query never fails: it says what is wrong.
 */
import type { BlockGraph } from '../../block/graph.ts'
import type { ForwardFailure } from '../../replication/primary.ts'
import type { ReplicationStatus } from '../../replication/registry.ts'
import { asBlockError } from '../../util/errors.ts'
import { type CommandTable, command, flagOf, refuse, textOf } from '../command.ts'
import type { JsonValue } from '../json.ts'
import { bool, str } from '../schema.ts'
import type { ReplicationControl } from '../services.ts'

/** The commands about replication. */
export function replicationCommands(
  replication: ReplicationControl,
  graph: BlockGraph,
): CommandTable {
  return {
    'xen-set-replication': command(
      { enable: bool, primary: bool, 'failover?': bool },
      async (args) => {
        const enable = flagOf(args, 'enable')
        if (enable && args.failover !== undefined) {
          refuse("Parameter 'failover' is only for stopping replication")
        }
        if (enable) await replication.startAll(flagOf(args, 'primary') ? 'primary' : 'secondary')
        else await stop(replication, flagOf(args, 'failover'))
      },
    ),
    'xen-colo-do-checkpoint': command({}, () => replication.checkpointAll()),
    'query-xen-replication-status': command({}, () => replicationStatus(replication)),
    'query-replication': command({}, () => replication.list().map(shown)),
    'x-replication-resync': command({ 'node-name': str, source: str }, (args) =>
      replication.resync(
        textOf(args, 'node-name'),
        graph.lookup(undefined, textOf(args, 'source')),
      ),
    ),
    'x-replication-retry-failover': command({ 'node-name': str }, (args) =>
      replication.retryFailover(textOf(args, 'node-name')),
    ),
  }
}

// Told to take over, a node that has nothing to take over is no failure.
async function stop(replication: ReplicationControl, failover: boolean): Promise<void> {
  try {
    await replication.stopAll(failover)
  } catch (error) {
    if (!failover || asBlockError(error).code !== 'EINVAL') throw error
  }
}

function shown(status: ReplicationStatus): JsonValue {
  return {
    'node-name': status.node,
    mode: status.mode,
    stage: status.stage,
    ...(status.error === undefined ? {} : { error: status.error }),
    ...(status.cause === undefined ? {} : { cause: status.cause }),
    epoch: status.epoch,
    'checkpoint-age-ms': status.checkpointAgeMs,
    'last-pause-ms': status.lastPauseMs,
    'copied-bytes': status.copiedBytes,
    'forward-failures': status.forwardFailures,
    ...(status.lastFailure === undefined ? {} : { 'last-failure': failed(status.lastFailure) }),
    'missing-bytes': status.missingBytes,
    'copy-failures': status.copyFailures,
  }
}

function failed({ offset, bytes, code, message, atMs }: ForwardFailure): JsonValue {
  return { offset, length: bytes, code, error: message, 'at-ms': atMs }
}

function replicationStatus(replication: ReplicationControl): JsonValue {
  try {
    replication.getErrorAll()
    return { error: false }
  } catch (error) {
    return { desc: asBlockError(error).message, error: true }
  }
}
