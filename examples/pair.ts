import { createPrimary, createSecondary } from '../src/index.ts'

const disk = { memory: 64 * 1024 * 1024 }
const path = `/tmp/blockstep-pair-${process.pid}.sock`

await using secondary = await createSecondary({ disk, exportAt: { type: 'unix', path } })
await using primary = await createPrimary({ disk, secondary: { type: 'unix', path } })

await primary.backend.pwrite(0, Buffer.from('from the primary'))
await primary.checkpoint() // everything arrived
await secondary.checkpoint() // and is what we see from now on
await primary.backend.pwrite(0, Buffer.from('never checkpointed'))
await primary.close() // the primary dies

await secondary.backend.pwrite(4096, Buffer.from('from our guest'))
const { restoredBytes } = await secondary.failover()

const seen = Buffer.alloc(16)
await secondary.backend.pread(0, seen)
console.log(`${seen}, ${restoredBytes} bytes put back`) // from the primary, 65536 bytes put back
