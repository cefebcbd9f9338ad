/** A secondary's three disks under its replication node, with an NBD server that shows the lowest. */
import { join } from 'node:path'
import type { BlockdevOptions } from '../../src/block/driver.ts'
import { createQcow2 } from '../../src/drivers/qcow2/create.ts'
import type { Runtime } from '../../src/runtime/runtime.ts'
import type { DiskKind } from './replication-proof.ts'

/** Adds `local` and, over it, the node `top`; exports `exports` on the socket `nbd` of the folder. */
export async function addSecondary(
  runtime: Runtime,
  folder: string,
  disks: { readonly kind: DiskKind; readonly size: number },
  exports: readonly ('local' | 'top')[],
): Promise<void> {
  const { kind, size } = disks
  const disk = async (name: string): Promise<BlockdevOptions> => {
    if (kind === 'memory') return { driver: kind, 'node-name': name, size }
    const filename = join(folder, `${name}.qcow2`)
    await createQcow2(filename, { size })
    return { driver: kind, 'node-name': name, file: { driver: 'file', filename } }
  }
  await runtime.addNode(await disk('local'))
  const hidden = { ...(await disk('hidden')), backing: 'local' }
  const file = { ...(await disk('active')), backing: hidden }
  const role = { driver: 'replication', mode: 'secondary', 'top-id': 'top' }
  await runtime.addNode({ ...role, 'node-name': 'top', file })
  await runtime.startNbdServer({ type: 'unix', path: join(folder, 'nbd') })
  for (const id of exports) await runtime.addExport({ id, nodeName: id, name: id, writable: true })
}
