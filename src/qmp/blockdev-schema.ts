/**
 * Schemas of node options: what `blockdev-add` and `blockdev-reopen` accept, driver by driver.
 *
 * Invariants:
 * - Every driver of this project has an entry; so have the well-known drivers that only other
 *   programs can open, so that naming one gives a better answer than "bad value".
 * - Children are a node name or inline options, checked by the same schema.
 */
import { DEBUG_EVENTS } from '../drivers/debug-event.ts'
import {
  alternate,
  bool,
  int,
  list,
  type Members,
  oneOf,
  type Schema,
  type StructSchema,
  size,
  str,
  struct,
  uint16,
  uint32,
  union,
} from './schema.ts'

const permissionList = list(oneOf('consistent-read', 'write', 'write-unchanged', 'resize'))

/** A node by name, or one to open inline. */
export const blockdevRef: Schema = alternate(
  'BlockdevRef',
  { kind: 'lazy', get: (): Schema => blockdevOptions },
  str,
)

/** The same, or null for no node at all. */
export const blockdevRefOrNull: Schema = alternate(
  'BlockdevRefOrNull',
  { kind: 'lazy', get: (): Schema => blockdevOptions },
  str,
  { kind: 'null' },
)

const inetMembers: Members = {
  host: str,
  port: str,
  'numeric?': bool,
  'to?': uint16,
  'ipv4?': bool,
  'ipv6?': bool,
  'keep-alive?': bool,
  'mptcp?': bool,
}
const unixMembers: Members = { path: str, 'abstract?': bool, 'tight?': bool }
const vsockMembers: Members = { cid: str, port: str }
const socketKind = oneOf('inet', 'unix', 'vsock', 'fd')

/** A socket address, members side by side (node options). */
export const socketAddress: StructSchema = union(
  'type',
  { type: socketKind },
  { inet: inetMembers, unix: unixMembers, vsock: vsockMembers, fd: { str } },
)

/** A socket address with its members under `data` (NBD server commands). */
export const socketAddressLegacy: StructSchema = union(
  'type',
  { type: socketKind },
  {
    inet: { data: struct(inetMembers) },
    unix: { data: struct(unixMembers) },
    vsock: { data: struct(vsockMembers) },
    fd: { data: struct({ str }) },
  },
)

const nullMembers: Members = { 'size?': int, 'latency-ns?': int, 'read-zeroes?': bool }

const overlapCheck = alternate(
  'Qcow2OverlapChecks',
  struct({
    'template?': oneOf('none', 'constant', 'cached', 'all'),
    'main-header?': bool,
    'active-l1?': bool,
    'active-l2?': bool,
    'refcount-table?': bool,
    'refcount-block?': bool,
    'snapshot-table?': bool,
    'inactive-l1?': bool,
    'inactive-l2?': bool,
    'bitmap-directory?': bool,
  }),
  oneOf('none', 'constant', 'cached', 'all'),
)

const injectError = struct({
  event: oneOf(...DEBUG_EVENTS),
  'state?': int,
  'iotype?': oneOf('read', 'write', 'write-zeroes', 'discard', 'flush', 'block-status'),
  'errno?': int,
  'sector?': int,
  'once?': bool,
  'immediately?': bool,
})

/** Members that each driver adds to the common ones. */
const DRIVERS: Readonly<Record<string, Members>> = {
  memory: { 'size?': int, 'backing?': blockdevRefOrNull, 'cluster-size?': int },
  file: {
    filename: str,
    'pr-manager?': str,
    'locking?': oneOf('auto', 'on', 'off'),
    'aio?': oneOf('threads', 'native', 'io_uring'),
    'aio-max-batch?': int,
    'drop-cache?': bool,
    'x-check-cache-dropped?': bool,
  },
  raw: { file: blockdevRef, 'offset?': int, 'size?': int },
  qcow2: {
    file: blockdevRef,
    'backing?': blockdevRefOrNull,
    'lazy-refcounts?': bool,
    'pass-discard-request?': bool,
    'pass-discard-snapshot?': bool,
    'pass-discard-other?': bool,
    'overlap-check?': overlapCheck,
    'cache-size?': int,
    'l2-cache-size?': int,
    'l2-cache-entry-size?': int,
    'refcount-cache-size?': int,
    'cache-clean-interval?': int,
    'encrypt?': struct({ format: oneOf('aes', 'luks'), 'key-secret?': str }),
    'data-file?': blockdevRef,
  },
  quorum: {
    'blkverify?': bool,
    children: list(blockdevRef),
    'vote-threshold': int,
    'rewrite-corrupted?': bool,
    'read-pattern?': oneOf('quorum', 'fifo'),
  },
  nbd: {
    server: socketAddress,
    'export?': str,
    'tls-creds?': str,
    'tls-hostname?': str,
    'x-dirty-bitmap?': str,
    'reconnect-delay?': uint32,
    'open-timeout?': uint32,
    'request-timeout?': uint32,
  },
  replication: {
    file: blockdevRef,
    mode: oneOf('primary', 'secondary'),
    'top-id?': str,
    'hidden-watermark?': size,
    'crash-consistent?': bool,
  },
  'copy-before-write': {
    file: blockdevRef,
    target: blockdevRef,
    'bitmap?': struct({ node: str, name: str }),
    'on-cbw-error?': oneOf('break-guest-write', 'break-snapshot'),
    'cbw-timeout?': uint32,
  },
  'copy-on-read': { file: blockdevRef, 'bottom?': str },
  'snapshot-access': { file: blockdevRef },
  compress: { file: blockdevRef },
  preallocate: { file: blockdevRef, 'prealloc-align?': int, 'prealloc-size?': int },
  throttle: { 'throttle-group': str, file: blockdevRef },
  blkdebug: {
    image: blockdevRef,
    'config?': str,
    'align?': int,
    'max-transfer?': int,
    'opt-write-zero?': int,
    'max-write-zero?': int,
    'opt-discard?': int,
    'max-discard?': int,
    'inject-error?': list(injectError),
    'set-state?': list(struct({ event: oneOf(...DEBUG_EVENTS), 'state?': int, new_state: int })),
    'take-child-perms?': permissionList,
    'unshare-child-perms?': permissionList,
  },
  blkverify: { test: blockdevRef, raw: blockdevRef },
  luks: { file: blockdevRef, 'key-secret?': str },
  'null-co': nullMembers,
  'null-aio': nullMembers,
}

/** Drivers that the protocol knows by name and that have no schema here. */
const FOREIGN_DRIVERS = [
  ...['blklogwrites', 'blkreplay', 'bochs', 'cloop', 'dmg', 'ftp', 'ftps', 'gluster'],
  ...['host_cdrom', 'host_device', 'http', 'https', 'iscsi', 'nfs', 'nvme', 'parallels', 'qcow'],
  ...['qed', 'rbd', 'ssh', 'vdi', 'vhdx', 'vmdk', 'vpc', 'vvfat'],
]

const COMMON: Members = {
  'node-name?': str,
  'discard?': oneOf('ignore', 'unmap'),
  'cache?': struct({ 'direct?': bool, 'no-flush?': bool }),
  'read-only?': bool,
  'auto-read-only?': bool,
  'force-share?': bool,
  'detect-zeroes?': oneOf('off', 'on', 'unmap'),
}

/** Every driver that can be named, ours or not. */
export const driverNames: readonly string[] = [...Object.keys(DRIVERS), ...FOREIGN_DRIVERS]

/** Options of one node, children included. */
export const blockdevOptions: StructSchema = union(
  'driver',
  { driver: oneOf(...driverNames), ...COMMON },
  DRIVERS,
)
