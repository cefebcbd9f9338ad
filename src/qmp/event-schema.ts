/**
 * The events that a monitor may send, and what their data look like.
 *
 * Invariants:
 * - Describes; nothing is checked against it on the way out.
 */
import { bool, int, type Members, oneOf, size, str } from './schema.ts'

const jobType = oneOf('commit', 'stream', 'mirror', 'backup', 'create', 'amend')
const jobStatus = oneOf(
  ...['undefined', 'created', 'running', 'paused', 'ready', 'standby', 'waiting', 'pending'],
  ...['aborting', 'concluded', 'null'],
)
const direction = oneOf('read', 'write')
const action = oneOf('ignore', 'report', 'stop')
const coloMode = oneOf('none', 'primary', 'secondary')
const report: Members = { type: jobType, device: str, len: int, offset: int, speed: int }

/** Data of each event by name; no members: the event comes without data. */
export const EVENT_SCHEMAS: Readonly<Record<string, Members>> = {
  JOB_STATUS_CHANGE: { id: str, status: jobStatus },
  BLOCK_JOB_READY: report,
  BLOCK_JOB_PENDING: { type: jobType, id: str },
  BLOCK_JOB_COMPLETED: { ...report, 'error?': str },
  BLOCK_JOB_CANCELLED: report,
  BLOCK_JOB_ERROR: { device: str, operation: direction, action },
  BLOCK_IO_ERROR: {
    device: str,
    'node-name?': str,
    operation: direction,
    action,
    'nospace?': bool,
    reason: str,
  },
  BLOCK_IMAGE_CORRUPTED: {
    device: str,
    'node-name?': str,
    msg: str,
    'offset?': int,
    'size?': int,
    fatal: bool,
  },
  BLOCK_WRITE_THRESHOLD: { 'node-name': str, 'amount-exceeded': size, 'write-threshold': size },
  BLOCK_EXPORT_DELETED: { id: str },
  QUORUM_FAILURE: { reference: str, 'sector-num': int, 'sectors-count': int },
  QUORUM_REPORT_BAD: {
    type: oneOf('read', 'write', 'flush'),
    'error?': str,
    'node-name': str,
    'sector-num': int,
    'sectors-count': int,
  },
  COLO_EXIT: { mode: coloMode, reason: oneOf('none', 'request', 'error', 'processing') },
  MIGRATION: { status: str },
  STOP: {},
  RESUME: {},
  SHUTDOWN: { guest: bool, reason: str },
  REPLICATION_STATE_CHANGE: { 'node-name': str, mode: str, stage: str, 'error?': str },
  REPLICATION_ERROR: { 'node-name': str, offset: int, length: int, error: str },
  REPLICATION_FAILOVER_DONE: { 'node-name': str, success: bool, 'error?': str },
  REPLICATION_HIDDEN_WATERMARK: { 'node-name': str, bytes: size, watermark: size },
  REPLICATION_BUFFER_STALE: { 'node-name': str, error: str },
}
