/**
 * Schemas of node options: what `blockdev-add` and `blockdev-reopen` accept, driver by driver.
 *
 * Invariants:
 * - Every driver of this project has an entry; so have the well-known drivers that only other
 *   programs can open, so that naming one gives a better answer than "bad value".
 * - Children are a node name or inline options, checked by the same schema.
 */
import {
  alternate,
  any,
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

const BLKDEBUG_EVENTS = [
  ...['l1_update', 'l1_grow_alloc_table', 'l1_grow_write_table', 'l1_grow_activate_table'],
  ...['l2_load', 'l2_update', 'l2_update_compressed', 'l2_alloc_cow_read', 'l2_alloc_write'],
  ...['read_aio', 'read_backing_aio', 'read_compressed', 'write_aio', 'write_compressed'],
  ...['vmstate_load', 'vmstate_save', 'cow_read', 'cow_write', 'reftable_load', 'reftable_grow'],
  ...['reftable_update', 'refblock_load', 'refblock_update', 'refblock_update_part'],
  ...['refblock_alloc', 'refblock_alloc_hookup', 'refblock_alloc_write'],
  ...['refblock_alloc_write_blocks', 'refblock_alloc_write_table', 'refblock_alloc_switch_table'],
  ...['cluster_alloc', 'cluster_alloc_bytes', 'cluster_free', 'flush_to_os', 'flush_to_disk'],
  ...['pwritev_rmw_head', 'pwritev_rmw_after_head', 'pwritev_rmw_tail', 'pwritev_rmw_after_tail'],
  ...['pwritev', 'pwritev_zero', 'pwritev_done', 'empty_image_prepare', 'l1_shrink_write_table'],
  ...['l1_shrink_free_l2_clusters', 'cor_write', 'cluster_alloc_space', 'none'],
]

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

const nullMembers: Members = { 'size?': int, 'latency-ns?': size, 'read-zeroes?': bool }

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
  event: oneOf(...BLKDEBUG_EVENTS),
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
    'encrypt?': any,
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
    'set-state?': list(struct({ event: oneOf(...BLKDEBUG_EVENTS), 'state?': int, new_state: int })),
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

/** Options of one node, children included. */
export const blockdevOptions: StructSchema = union(
  'driver',
  { driver: oneOf(...Object.keys(DRIVERS), ...FOREIGN_DRIVERS), ...COMMON },
  DRIVERS,
)
