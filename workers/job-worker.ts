/**
 * The worker thread that runs the body of a job: attaches disks, hands over to the body.
 *
 * Invariants:
 * - No logic of a job lives here.
 */
import type { DiskDescription } from '../src/block/driver.ts'
import { type MemoryDescription, MemoryStore } from '../src/drivers/memory-store.ts'
import { type BodyTask, runBodyTask } from '../src/job/body-task.ts'
import { openFileView } from '../src/job/file-view.ts'
import { memoryView } from '../src/job/memory-view.ts'
import type { DiskView } from '../src/job/view.ts'
import { BlockError } from '../src/util/errors.ts'

function isMemory(description: DiskDescription): description is MemoryDescription {
  return description.kind === 'memory'
}

function attach(description: DiskDescription): DiskView {
  if (isMemory(description)) return memoryView(MemoryStore.attach(description))
  if (description.kind === 'file') return openFileView(description)
  throw new BlockError('ENOTSUP', `A worker cannot attach a ${description.kind} disk`)
}

/** What the pool calls. */
export function run(task: BodyTask): Promise<void> {
  return runBodyTask(task, attach)
}
