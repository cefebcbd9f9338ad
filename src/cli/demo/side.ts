/**
 * One side of the demo's pair inside a process of its own: made by the library's short way, driven
 * by orders from the process that started it.
 *
 * Invariants:
 * - Every order is answered once, with a value or with an error's code and sentence.
 * - The process ends with the one that started it, whatever ends that.
 */
import {
  BlockError,
  createPrimary,
  createSecondary,
  type PairStatus,
  type Primary,
  type Secondary,
  type ServerAddress,
} from '../../index.ts'

/** What a side is made of; given as JSON. */
export interface SideSpec {
  /** Which one. */
  readonly role: 'primary' | 'secondary'
  /** Raw image to work on; undefined: memory. */
  readonly file?: string
  /** Length of the disk in memory in bytes. */
  readonly size: number
  /** Socket of the secondary: the replication export, and its guest's disk. */
  readonly secondaryAt: string
  /** Socket of the primary: its guest's disk. */
  readonly primaryAt: string
}

/** Name under which a side serves its guest's disk. */
export const GUEST_EXPORT = 'guest'

/** What a side may be told to do. */
export type SideOrder = 'checkpoint' | 'status' | 'failover' | 'quit'

/** An order on its way to a side. */
export interface OrderMessage {
  readonly id: number
  readonly order: SideOrder
}

/** What a side says: that it is ready, the stage it entered, or the end of an order. */
export type SideMessage =
  | { readonly kind: 'ready' }
  | { readonly kind: 'stage'; readonly stage: PairStatus['stage'] }
  | { readonly kind: 'done'; readonly id: number; readonly value: unknown }
  | {
      readonly kind: 'failed'
      readonly id: number
      readonly code: BlockError['code']
      readonly message: string
    }

/** Becomes a side until it is told to quit. Errors: those of making it. */
export async function runSide(json: string): Promise<void> {
  if (process.send === undefined) throw new BlockError('EINVAL', 'a side has nobody to obey')
  const spec = JSON.parse(json) as SideSpec
  const say = (message: SideMessage): void => void process.send?.(message)
  // Who started this process decides when it ends.
  process.on('SIGINT', () => undefined)
  process.once('disconnect', () => process.exit(1))
  const side = await make(spec)
  const told = ({ stage }: { readonly stage: PairStatus['stage'] }): void =>
    say({ kind: 'stage', stage })
  if (side.role === 'primary') side.disk.on('stage', told)
  else side.disk.on('stage', told)
  process.on('message', (message) => void obey(side, message as OrderMessage, say))
  say({ kind: 'ready' })
}

type Side =
  | { readonly role: 'primary'; readonly disk: Primary }
  | { readonly role: 'secondary'; readonly disk: Secondary }

async function make({ role, file, size, secondaryAt, primaryAt }: SideSpec): Promise<Side> {
  const disk = file === undefined ? { memory: size } : { file }
  const unix = (path: string): ServerAddress => ({ type: 'unix', path })
  if (role === 'primary') {
    const primary = await createPrimary({ disk, secondary: unix(secondaryAt) })
    await primary.serve(GUEST_EXPORT, unix(primaryAt))
    return { role, disk: primary }
  }
  const secondary = await createSecondary({ disk, exportAt: unix(secondaryAt) })
  await secondary.serve(GUEST_EXPORT)
  return { role, disk: secondary }
}

async function obey(
  side: Side,
  { id, order }: OrderMessage,
  say: (message: SideMessage) => void,
): Promise<void> {
  try {
    say({ kind: 'done', id, value: await run(side, order) })
  } catch (thrown) {
    const error = thrown instanceof BlockError ? thrown : new BlockError('EIO', String(thrown))
    say({ kind: 'failed', id, code: error.code, message: error.message })
  }
  if (order === 'quit') process.exit(0)
}

async function run({ role, disk }: Side, order: SideOrder): Promise<unknown> {
  switch (order) {
    case 'checkpoint':
      return disk.checkpoint()
    case 'status':
      return disk.status()
    case 'failover':
      if (role === 'secondary') return disk.failover()
      throw new BlockError('EINVAL', 'only a secondary fails over')
    case 'quit':
      return disk.close()
  }
}
