/**
 * Jobs: throughput between memory disks and between files, and what a guest feels of them.
 *
 * Invariants:
 * - Everything lies in memory (`/dev/shm`), so that the engines are compared and not a disk.
 */
import { existsSync, mkdtempSync, rmSync } from 'node:fs'
import { tmpdir } from 'node:os'
import { join } from 'node:path'
import { fileRows } from './job-files.ts'
import { guestRows } from './job-guest.ts'
import { memoryRows } from './job-memory.ts'
import type { BenchRow } from './measure.ts'

/** The rows of this benchmark; needs `qemu-system-x86_64`, `qemu-img` and 2 GiB in `/dev/shm`. */
export async function bench(): Promise<BenchRow[]> {
  const base = existsSync('/dev/shm') ? '/dev/shm' : tmpdir()
  const folder = mkdtempSync(join(base, 'bench-'))
  try {
    return [...(await memoryRows()), ...(await fileRows(folder)), ...(await guestRows(folder))]
  } finally {
    rmSync(folder, { recursive: true, force: true })
  }
}
