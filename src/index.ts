/**
 * The public door of blockstep.
 *
 * Invariants:
 * - Named re-exports only; what is not here may change without notice.
 */
export type {
  BackendStatistics,
  LatencyHistogram,
  Operation,
  OperationStatistics,
} from './block/accounting.ts'
export { BlockBackend } from './block/backend.ts'
export {
  type BlockdevOptions,
  type BlockStatus,
  type DriverDefinition,
  FLAG,
  PERM,
  STATUS,
} from './block/driver.ts'
export type { BlockEvents } from './block/events.ts'
export type { BlockGraph } from './block/graph.ts'
export type { BlockNode } from './block/node.ts'
export type { CheckResult } from './drivers/qcow2/check.ts'
export { createQcow2, type Qcow2CreateOptions } from './drivers/qcow2/create.ts'
export { NbdClient, type NbdClientOptions } from './nbd/client.ts'
export type {
  AnonymousCredentials,
  PskCredentials,
  TlsClientOptions,
  TlsCredentials,
  TlsServerOptions,
  X509Credentials,
} from './nbd/tls.ts'
export { pskFromFiles, type TlsEndpoint, type X509Files, x509FromFiles } from './nbd/tls-files.ts'
export type { ExportInfo, ExportRequest, ServerAddress } from './qmp/services.ts'
export { PROGRAM_VERSION } from './qmp/version.ts'
export type { DiskSource, FileSource, MemorySource } from './runtime/disk.ts'
export {
  compareImages,
  convertImage,
  type ImageComparison,
  type ImageConvertOptions,
  type ImageExtent,
  mapImage,
} from './runtime/image-data.ts'
export {
  checkImage,
  createImage,
  type ImageCheck,
  type ImageCheckOptions,
  type ImageCreateOptions,
  type ImageDescription,
  type ImageFormat,
  type ImageOptions,
  inspectImage,
} from './runtime/images.ts'
export {
  type BackupJobOptions,
  type CommitJobOptions,
  type JobProgress,
  type JobStartOptions,
  type MirrorJobOptions,
  RunningJob,
  type StreamJobOptions,
  startBackup,
  startCommit,
  startMirror,
  startStream,
} from './runtime/jobs.ts'
export type { StartupOption } from './runtime/options.ts'
export {
  createPrimary,
  createSecondary,
  type FailoverResult,
  type PairStatus,
  type Primary,
  type PrimaryOptions,
  type Secondary,
  type SecondaryOptions,
} from './runtime/pair.ts'
export type {
  BufferStale,
  CheckpointDone,
  FailoverEnd,
  ForwardError,
  HiddenWatermark,
  PrimaryEvents,
  SecondaryEvents,
  StageChange,
} from './runtime/pair-events.ts'
export { type QuitReason, Runtime, type RuntimeOptions } from './runtime/runtime.ts'
export { type Clock, HostClock, VirtualClock } from './util/clock.ts'
export { BlockError, type ErrorCode, type ErrorContext } from './util/errors.ts'
