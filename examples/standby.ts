import { Runtime } from '../src/index.ts'

const memory = { driver: 'memory', size: 64 * 1024 * 1024 }
const hidden = { ...memory, 'node-name': 'hidden', backing: 'local' }
const active = { ...memory, 'node-name': 'active', backing: hidden }
const role = { driver: 'replication', mode: 'secondary', 'top-id': 'top' }

await using standby = await Runtime.create()
await standby.addNode({ ...memory, 'node-name': 'local' })
await standby.addNode({ ...role, 'node-name': 'top', file: active })
const replica = await standby.openBackend('local') // what the primary sends arrives here
const guest = await standby.openBackend('top') // what our own guest sees
await standby.replication.startAll('secondary')

await replica.pwrite(0, Buffer.from('from the primary'))
await standby.replication.checkpointAll()
await replica.pwrite(0, Buffer.from('never checkpointed'))
await standby.replication.stopAll(true) // the primary is dead: take over

const seen = Buffer.alloc(16)
await guest.pread(0, seen)
console.log(seen.toString()) // from the primary
for (const disk of [guest, replica]) await disk.close()
